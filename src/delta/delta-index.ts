/**
 * The newest content that a row of records leaves of each track: which blocks of it, and where they are.
 *
 *     records, in order:   w1 [.........]   w2    [....]   z3 [..]
 *     pieces of the track:       w1 [...] w2 [..] z3 [..]
 *
 * Records are kept as numbers while they come. Then they are gone through from the newest to the oldest, and each
 * leaves pieces where none was newer. A piece is read with all of its record, whose checksum is over the whole; the
 * records read last are kept. Memory: some 40 bytes for each record, 16 for each piece, and the bitmaps of tracks that
 * are held in parts.
 *
 * Nothing is changed once it is finished. The reader that made it must stay open.
 */

import { assert, CorruptionError, LIMITS, MIB, present } from '../base/index.ts';
import { TrackBits, type TrackSet } from '../tracks/index.ts';
import { BlockMap, blocksOf } from './block-map.ts';
import { decodeRecordHeader, isPayloadOf, payloadBytesOf } from './format.ts';
import { findRecord } from './log-copy.ts';
import type { Log } from './log-set.ts';
import { type Areas, type Entry, readPayload } from './log-stream.ts';
import { NumberList } from './number-list.ts';

const BLOCK_BYTES = LIMITS.blockSizeBytesMin;
/** Payloads that are kept: those that the next tracks are in too. */
const KEPT_BYTES_MAX = 8 * MIB;

/** Where records are: one segment of one member. */
interface Place {
  readonly log: Log;
  readonly limit: number;
  readonly entry: Pick<Entry, 'member' | 'segment'>;
}

export interface DeltaIndexOptions {
  readonly trackBytes: number;
  /** Of the volume where the logs begin; records of the kind `size` tell of others. */
  readonly volumeBytes: number;
  readonly areas: Areas;
  readonly onDamage: (sentence: string) => void;
}

export class DeltaIndex {
  readonly #options: DeltaIndexOptions;
  readonly #places: Place[] = [];
  /** Of records: number, offset, length (negative for zeroes), place, and where the payload is there. */
  readonly #sequences = new NumberList();
  readonly #offsets = new NumberList();
  readonly #lengths = new NumberList();
  readonly #placeOf = new NumberList();
  readonly #payloadAt = new NumberList();
  /** Of pieces: the next of the same track, the record, the blocks. */
  readonly #next = new NumberList();
  readonly #record = new NumberList();
  readonly #blocks = new NumberList();
  readonly #heads = new Map<number, number>();
  /** Tracks that are nothing but zeroes. */
  readonly #zero = new TrackBits(LIMITS.trackCountMax);
  readonly #touched = new TrackBits(LIMITS.trackCountMax);
  #whole: TrackBits | undefined;
  /** Payloads read last, by record. */
  readonly #kept = new Map<number, Buffer>();
  #keptBytes = 0;
  #volumeBytes: number;
  #lastSequence = 0;

  constructor(options: DeltaIndexOptions) {
    this.#options = options;
    this.#volumeBytes = options.volumeBytes;
  }

  /** Of the volume after the records. */
  get volumeBytes(): number {
    return this.#volumeBytes;
  }

  /** Of the last record, of any kind; 0 where there is none. */
  get lastSequence(): number {
    return this.#lastSequence;
  }

  get trackBytes(): number {
    return this.#options.trackBytes;
  }

  /** Takes records, in order. */
  add(log: Log, limit: number, entries: readonly Entry[]): void {
    for (const entry of entries) {
      this.#lastSequence = entry.sequence;
      if (entry.kind === 'size') this.#volumeBytes = entry.lengthBytes;
      if (entry.kind !== 'write' && entry.kind !== 'zeroes') continue;
      const last = this.#places.at(-1);
      if (last?.log !== log || last.entry.segment !== entry.segment)
        this.#places.push({ log, limit, entry: { member: entry.member, segment: entry.segment } });
      this.#sequences.push(entry.sequence);
      this.#offsets.push(entry.offsetBytes);
      this.#lengths.push(entry.kind === 'write' ? entry.lengthBytes : -entry.lengthBytes);
      this.#placeOf.push(this.#places.length - 1);
      this.#payloadAt.push(entry.payloadAtBytes);
    }
  }

  /** All records are here. */
  finish(): void {
    const { trackBytes } = this.#options;
    const volumeBytes = this.#volumeBytes;
    const seen = new BlockMap(trackBytes);
    const endBlock = (volumeBytes % trackBytes) / BLOCK_BYTES;
    // What of the last track lies behind the volume's end is not waited for.
    if (endBlock > 0)
      seen.add(Math.floor(volumeBytes / trackBytes), endBlock, trackBytes / BLOCK_BYTES - endBlock);
    for (let record = this.#sequences.length - 1; record >= 0; record -= 1) {
      const length = this.#lengths.at(record);
      for (const { track, first, count } of blocksOf(
        this.#offsets.at(record),
        Math.abs(length),
        trackBytes,
      )) {
        this.#touched.add(track);
        const isAllZero = length < 0 && count * BLOCK_BYTES === trackBytes;
        const runs = seen.add(track, first, count);
        if (isAllZero && runs[0]?.count === count) this.#zero.add(track);
        else for (const run of runs) this.#addPiece(track, record, run.first, run.count);
      }
    }
    this.#whole = seen.whole;
  }

  /** Tracks of which every byte is held. */
  whole(): TrackSet {
    return present(this.#whole, 'The index is finished').toTrackSet();
  }

  /** Tracks of which anything is held. */
  touched(): TrackSet {
    return this.#touched.toTrackSet();
  }

  /**
   * Fills `target` with a track that is held whole; as much of it as fits.
   *
   * @throws {CorruptionError} where a record is damaged on every member.
   */
  async read(track: number, target: Buffer): Promise<void> {
    assert(this.#whole?.has(track) === true, `Track ${track} is not held whole`);
    await this.overlay(track, target);
  }

  /**
   * Lays what is held of a track over its earlier content.
   *
   * @param target begins where the track begins, and may be shorter.
   * @returns whether anything was.
   * @throws {CorruptionError} where a record is damaged on every member.
   */
  async overlay(track: number, target: Buffer): Promise<boolean> {
    if (this.#zero.has(track)) {
      target.fill(0);
      return true;
    }
    const head = this.#heads.get(track);
    if (head === undefined) return false;
    for (let piece = head; piece >= 0; piece = this.#next.at(piece)) {
      const blocks = this.#blocks.at(piece);
      const from = Math.floor(blocks / BLOCKS_BASE) * BLOCK_BYTES;
      const to = Math.min(from + (blocks % BLOCKS_BASE) * BLOCK_BYTES, target.length);
      if (from >= to) continue;
      const record = this.#record.at(piece);
      if (this.#lengths.at(record) < 0) target.fill(0, from, to);
      else {
        const payload = await this.#payloadOf(record);
        const begin = track * this.#options.trackBytes + from - this.#offsets.at(record);
        payload.copy(target, from, begin, begin + to - from);
      }
    }
    return true;
  }

  /** Whether all of the track that is held is zeroes, and all of it is held. */
  isZero(track: number): boolean {
    return this.#zero.has(track);
  }

  #addPiece(track: number, record: number, first: number, count: number): void {
    this.#next.push(this.#heads.get(track) ?? -1);
    this.#record.push(record);
    this.#blocks.push(first * BLOCKS_BASE + count);
    this.#heads.set(track, this.#next.length - 1);
  }

  async #payloadOf(record: number): Promise<Buffer> {
    const kept = this.#kept.get(record);
    if (kept !== undefined) return kept;
    const payload = await this.#readPayload(record);
    this.#kept.set(record, payload);
    this.#keptBytes += payload.length;
    for (const [oldest, bytes] of this.#kept) {
      if (this.#keptBytes <= KEPT_BYTES_MAX) break;
      this.#kept.delete(oldest);
      this.#keptBytes -= bytes.length;
    }
    return payload;
  }

  async #readPayload(record: number): Promise<Buffer> {
    const { log, limit, entry } = present(this.#places[this.#placeOf.at(record)], 'A record has a place');
    const { areas, onDamage } = this.#options;
    const sequence = this.#sequences.at(record);
    const lengthBytes = this.#lengths.at(record);
    const payloadAtBytes = this.#payloadAt.at(record);
    const found = await this.#readWhere(entry, payloadAtBytes, sequence, lengthBytes);
    if (found !== undefined) return found;
    const payload = Buffer.allocUnsafe(lengthBytes);
    for (const copy of log.copies) {
      if (copy.member === entry.member) continue;
      const other = await findRecord(copy, { sequence, lengthBytes }, { areas, limit });
      if (other === undefined || !(await readPayload(areas, other, payload))) continue;
      onDamage(`Delta record ${sequence} in ${entry.member.place} is damaged; another member has it whole`);
      return payload;
    }
    throw new CorruptionError(
      `Delta record ${sequence} of log ${log.number} is damaged on every member that has it`,
      { where: `${entry.member.place}, ${entry.segment.key} at ${payloadAtBytes}` },
    );
  }

  /** The record with its header, which has the checksum; undefined where they are not what was written. */
  async #readWhere(
    { member, segment }: Place['entry'],
    payloadAtBytes: number,
    sequence: number,
    lengthBytes: number,
  ): Promise<Buffer | undefined> {
    const { alignBytes, logId } = segment.header;
    const bytes = Buffer.allocUnsafe(alignBytes + Math.ceil(lengthBytes / alignBytes) * alignBytes);
    try {
      const area = await this.#options.areas.get(member, segment.key);
      await area.device.read(bytes, area.baseBytes + payloadAtBytes - alignBytes);
    } catch {
      // Another member may have it.
      return undefined;
    }
    const header = decodeRecordHeader(bytes, 0, Buffer.from(logId, 'hex'));
    if (header?.sequence !== sequence || payloadBytesOf(header) !== lengthBytes) return undefined;
    const payload = bytes.subarray(alignBytes, alignBytes + lengthBytes);
    return isPayloadOf(payload, header) ? payload : undefined;
  }
}

/** Two numbers of blocks in one: a track has 2048 at most. */
const BLOCKS_BASE = 4096;
