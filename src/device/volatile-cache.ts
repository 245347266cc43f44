/**
 * What a power cut may leave of a device: the volatile half of `faulty.ts`.
 *
 * Kept per sector of 512 bytes: its durable content, and every version written since that no flush has made
 * durable. At a power cut each write survives whole, in part (torn between sectors) or not at all, and where
 * several survive in one sector any of them may be the last that reached the disk. So every order in which a
 * drive may write its cache is covered, and no sector is ever half old, half new.
 *
 * A flush promotes the versions of the writes that had finished when it was called. After a failed flush those
 * writes are _lost_: a later flush does not make them durable, although they read back until the cut, as the
 * page cache does after a failed writeback. They may still survive by chance.
 */

import { LIMITS, type SeededRandom } from '../base/index.ts';

const SECTOR_BYTES = LIMITS.blockSizeBytesMin;

interface Version {
  readonly write: CachedWrite;
  readonly content: Buffer;
}

/** Stays once it was made: a write in flight may have learned its durable content and not finished yet. */
interface Sector {
  durable: Buffer;
  versions: Version[];
}

/** One write of any kind, from its start on. */
export interface CachedWrite {
  readonly offsetBytes: number;
  /** A copy of what was written; zeroes for zeroes and trims. */
  readonly content: Buffer;
  /** Its place in the order in which writes finished; undefined while it is in flight. */
  sequence?: number;
  lost?: boolean;
}

export class VolatileCache {
  readonly #sectors = new Map<number, Sector>();
  #sequence = 0;

  /** Sectors of a range whose durable content must be read before the range is written for the first time. */
  unknownSectors(offsetBytes: number, lengthBytes: number): number[] {
    const unknown: number[] = [];
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += SECTOR_BYTES) {
      if (!this.#sectors.has(at / SECTOR_BYTES)) unknown.push(at / SECTOR_BYTES);
    }
    return unknown;
  }

  /** Notes what a sector holds while nothing unsynced has reached it. */
  learn(sector: number, durable: Buffer): void {
    if (!this.#sectors.has(sector)) this.#sectors.set(sector, { durable, versions: [] });
  }

  /** A write has reached the device; with `durable` nothing older in its sectors can come back. */
  finish(write: CachedWrite, durable: boolean): void {
    this.#sequence += 1;
    write.sequence = this.#sequence;
    for (const [index, content] of sectorsOf(write)) {
      const sector = this.#sectors.get(index);
      if (sector === undefined) continue;
      if (durable) {
        sector.durable = content;
        sector.versions = [];
      } else {
        sector.versions.push({ write, content });
      }
    }
  }

  /** Marks the writes that a flush called now would cover; pass it to `flushed`. */
  mark(): number {
    return this.#sequence;
  }

  /** A flush covering everything up to `mark` has succeeded, or failed. */
  flushed(mark: number, succeeded: boolean): void {
    for (const sector of this.#sectors.values()) {
      const covered = sector.versions.filter((version) => isCovered(version, mark));
      if (!succeeded) {
        for (const version of covered) version.write.lost = true;
        continue;
      }
      const last = covered.at(-1);
      if (last !== undefined && last.write.lost !== true) {
        sector.durable = last.content;
        sector.versions = sector.versions.filter((version) => !isCovered(version, mark));
      }
    }
  }

  /** How many sectors hold something that is not durable. */
  get unsyncedSectorCount(): number {
    return [...this.#sectors.values()].filter((sector) => sector.versions.length > 0).length;
  }

  /**
   * Decides what the disk holds after a power cut, for every sector that could differ, and forgets everything.
   *
   * @param inFlight writes that had begun and not finished; they may have reached the disk in part.
   */
  cut(random: SeededRandom, inFlight: Iterable<CachedWrite>): Map<number, Buffer> {
    for (const write of inFlight) {
      for (const [index, content] of sectorsOf(write)) {
        this.#sectors.get(index)?.versions.push({ write, content });
      }
    }
    const fates = new Map<CachedWrite, 'kept' | 'dropped' | 'torn'>();
    const survives = ({ write }: Version): boolean => {
      const fate = fates.get(write) ?? random.pick(['kept', 'dropped', 'torn'] as const);
      fates.set(write, fate);
      return fate === 'kept' || (fate === 'torn' && random.chance(0.5));
    };
    const left = new Map<number, Buffer>();
    for (const [index, sector] of this.#sectors) {
      if (sector.versions.length === 0) continue;
      const survivors = sector.versions.filter(survives);
      left.set(index, survivors.length === 0 ? sector.durable : random.pick(survivors).content);
    }
    this.#sectors.clear();
    return left;
  }
}

function isCovered(version: Version, mark: number): boolean {
  return version.write.sequence !== undefined && version.write.sequence <= mark;
}

function* sectorsOf(write: CachedWrite): Generator<[number, Buffer]> {
  for (let at = 0; at < write.content.length; at += SECTOR_BYTES) {
    yield [(write.offsetBytes + at) / SECTOR_BYTES, write.content.subarray(at, at + SECTOR_BYTES)];
  }
}
