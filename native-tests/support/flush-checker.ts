/**
 * A writer that knows, for each sector, which of its writes must be there after the server was killed.
 *
 * Every write gets a number, which each of its sectors carries. A write counts as flushed when it asked for FUA
 * and was answered, or when it was answered before a FLUSH was sent that was answered too. Writes in flight
 * never overlap, so the writes of one sector have one order. After a kill a sector must hold its last flushed
 * write or any later one that was sent, whole: a sector is never torn.
 */
import { LIMITS, type SeededRandom } from '../../src/base/index.ts';
import { NbdClient } from '../../src/nbd/index.ts';

const SECTOR_BYTES = LIMITS.blockSizeBytesMin;
const WRITE_SECTORS_MAX = 256;
const DEPTH = 24;

interface Range {
  readonly first: number;
  readonly count: number;
}

interface SentWrite extends Range {
  readonly version: number;
}

export class FlushChecker {
  readonly #sectorCount: number;
  readonly #random: SeededRandom;
  readonly #before: Buffer | undefined;
  /** The last flushed version of each sector; 0 is a sector never written. */
  readonly #flushed: Uint32Array;
  /** Versions of each sector that were sent after the flushed one, ascending. */
  readonly #later = new Map<number, number[]>();
  /** Versions that wrote zeroes. */
  readonly #zeroes = new Set<number>();
  readonly #inFlight = new Set<Range>();
  /** Answered writes that no flush covers yet. */
  #unflushed: SentWrite[] = [];
  #lastVersion = 0;
  #answeredCount = 0;
  #flushedCount = 0;

  /** Uses the first `sizeBytes` of an export, which must hold `before`: zeroes where it is left out. */
  constructor(options: {
    readonly sizeBytes: number;
    readonly random: SeededRandom;
    readonly before?: Buffer;
  }) {
    this.#sectorCount = options.sizeBytes / SECTOR_BYTES;
    this.#random = options.random;
    this.#before = options.before;
    this.#flushed = new Uint32Array(this.#sectorCount);
  }

  get sizeBytes(): number {
    return this.#sectorCount * SECTOR_BYTES;
  }

  /** Writes that a flush or FUA has covered, since the beginning. */
  get flushedCount(): number {
    return this.#flushedCount;
  }

  /**
   * Writes, zeroes and flushes, many at once, until the connection is lost. `onAnswered` gets the number of
   * requests answered since the call.
   */
  async writeUntilLost(uri: string, onAnswered: (count: number) => void): Promise<void> {
    const client = await NbdClient.connect(uri);
    const before = this.#answeredCount;
    const lane = async (): Promise<void> => {
      while (client.isConnected) {
        try {
          await this.#step(client);
        } catch (error) {
          if (client.isConnected) throw error; // Refused, and not lost.
          return;
        }
        this.#answeredCount += 1;
        onAnswered(this.#answeredCount - before);
      }
    };
    await Promise.all(Array.from({ length: DEPTH }, lane));
    this.#inFlight.clear();
    this.#unflushed = [];
  }

  /**
   * Holds the volume's content against what was sent, and takes it as the new beginning.
   *
   * @returns what is wrong, at most ten sectors of it.
   */
  judge(content: Buffer): readonly string[] {
    const findings: string[] = [];
    for (let sector = 0; sector < this.#sectorCount; sector += 1) {
      const found = content.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
      const flushed = this.#flushed[sector] ?? 0;
      const allowed = [flushed, ...(this.#later.get(sector) ?? [])];
      const version = allowed.find((candidate) => found.equals(this.#content(sector, candidate)));
      if (version === undefined) {
        const carries = `version ${found.readUInt32LE(0)} of sector ${found.readUInt32LE(4)}`;
        if (findings.length < 10)
          findings.push(`Sector ${sector} carries ${carries}, wanted one of ${allowed.join(', ')}`);
      } else {
        this.#flushed[sector] = version;
      }
    }
    this.#later.clear();
    return findings;
  }

  async #step(client: NbdClient): Promise<void> {
    if (this.#random.chance(0.08)) {
      const covered = this.#unflushed;
      this.#unflushed = [];
      try {
        await client.flush();
      } catch (error) {
        this.#unflushed.push(...covered);
        throw error;
      }
      for (const write of covered) this.#markFlushed(write);
      return;
    }
    const range = this.#freeRange();
    this.#lastVersion += 1;
    const write = { ...range, version: this.#lastVersion };
    const fua = this.#random.chance(0.1);
    for (let sector = range.first; sector < range.first + range.count; sector += 1) {
      const later = this.#later.get(sector);
      if (later === undefined) this.#later.set(sector, [write.version]);
      else later.push(write.version);
    }
    this.#inFlight.add(range);
    await this.#send(client, write, fua);
    this.#inFlight.delete(range);
    if (fua) this.#markFlushed(write);
    else this.#unflushed.push(write);
  }

  #send(client: NbdClient, write: SentWrite, fua: boolean): Promise<void> {
    const offsetBytes = write.first * SECTOR_BYTES;
    if (this.#random.chance(0.1)) {
      this.#zeroes.add(write.version);
      return client.writeZeroes(offsetBytes, write.count * SECTOR_BYTES, { fua });
    }
    const content = Buffer.alloc(write.count * SECTOR_BYTES);
    for (let index = 0; index < write.count; index += 1) {
      this.#content(write.first + index, write.version).copy(content, index * SECTOR_BYTES);
    }
    return client.write(content, offsetBytes, { fua });
  }

  #freeRange(): Range {
    for (;;) {
      const count = 1 + this.#random.below(this.#random.chance(0.5) ? 16 : WRITE_SECTORS_MAX);
      const first = this.#random.below(this.#sectorCount - count + 1);
      const isFree = [...this.#inFlight].every(
        (other) => first + count <= other.first || other.first + other.count <= first,
      );
      if (isFree) return { first, count };
    }
  }

  #markFlushed(write: SentWrite): void {
    this.#flushedCount += 1;
    for (let sector = write.first; sector < write.first + write.count; sector += 1) {
      if ((this.#flushed[sector] ?? 0) >= write.version) continue;
      this.#flushed[sector] = write.version;
      const later = this.#later.get(sector)?.filter((version) => version > write.version);
      if (later === undefined || later.length === 0) this.#later.delete(sector);
      else this.#later.set(sector, later);
    }
  }

  #content(sector: number, version: number): Buffer {
    if (this.#zeroes.has(version)) return ZERO_SECTOR;
    if (version === 0)
      return this.#before?.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES) ?? ZERO_SECTOR;
    const stamp = Buffer.alloc(8);
    stamp.writeUInt32LE(version, 0);
    stamp.writeUInt32LE(sector, 4);
    return Buffer.alloc(SECTOR_BYTES, stamp);
  }
}

const ZERO_SECTOR = Buffer.alloc(SECTOR_BYTES);
