/**
 * The open log on one member: where its next record goes.
 *
 *     area:  header  r1 r2 r3 ...            | room for what is not a write |
 *     next:  (no header yet)                  the log's next segment, made while this one fills
 *     log:   (no header yet)                  the next log's first, made before a freeze
 *
 * Records are put one behind the other, and a write of one may still be under way when the next is put. A segment takes
 * effect with its header, which is written when its first record is put.
 *
 * It knows nothing of the other members; what fails here is for the store to judge.
 */

import { LIMITS, type MaybePromise, present } from '../base/index.ts';
import {
  encodeSegmentHeader,
  RECORD_HEADER_BYTES,
  recordBytes,
  SEGMENT_HEADER_BYTES,
  type SegmentHeader,
} from './format.ts';
import type { Area, Member } from './member.ts';

/** Room at the end of a segment that writes leave to flush, size and point records. */
const SMALL_RECORDS = 8;

/** What a record's bytes are. */
export interface RecordBytes {
  /** The header, and behind it the payload where `isJoined`; no shorter than both. */
  readonly front: Buffer;
  readonly isJoined: boolean;
  readonly payload: Buffer | undefined;
  /** The sequence number that the record follows. */
  readonly previous: number;
}

/** What all headers of the open log have in common. */
export type LogFacts = Omit<
  SegmentHeader,
  'segmentNumber' | 'generation' | 'segmentCount' | 'segmentBytes' | 'alignBytes' | 'previous' | 'compactedMs'
>;

export class MemberWriter {
  readonly member: Member;
  #facts: LogFacts;
  #area: Area | undefined;
  #atBytes = 0;
  #segmentNumber = -1;
  #next: Area | undefined;
  #nextLog: { readonly number: number; readonly area: Area } | undefined;
  #preparing: Promise<boolean> | undefined;
  /** No room was left for another segment when one was asked for. */
  #wasFull = false;
  /** Written to since the last sync; those that are full are closed after it. */
  readonly #dirty = new Set<Area>();
  /** Writes under way. */
  readonly #pending = new Map<Area, number>();

  constructor(member: Member, facts: LogFacts) {
    this.member = member;
    this.#facts = facts;
  }

  /** The most that one record may carry. */
  get payloadBytesMax(): number {
    const { alignBytes, segmentBytes } = this.member;
    const room = segmentBytes - this.#firstAt - alignBytes * (1 + SMALL_RECORDS);
    return Math.min(
      LIMITS.deltaRecordBytesMax,
      Math.floor(room / SEGMENT_HEADER_BYTES) * SEGMENT_HEADER_BYTES,
    );
  }

  /** Of the segment that is written; undefined where none is begun. */
  get key(): string | undefined {
    return this.#area?.key;
  }

  /** Whether a record can be put now. @param payloadBytes undefined for those that are small. */
  fits(payloadBytes: number | undefined): boolean {
    return this.#fitsArea(payloadBytes) || this.#next !== undefined;
  }

  /** More than half of the segment is used, and no other one is ready. */
  get wantsNext(): boolean {
    if (this.#next !== undefined || this.#preparing !== undefined || this.#wasFull) return false;
    return this.#area === undefined || this.#atBytes * 2 > this.#area.sizeBytes;
  }

  /** Logs went: there may be room again. */
  noteRoom(): void {
    this.#wasFull = false;
  }

  /**
   * Puts a record, which `fits`. The buffers are used until the call has finished.
   *
   * @throws what the device says.
   */
  put(bytes: RecordBytes, payloadBytes: number): MaybePromise<void> {
    const isThere = this.#fitsArea(bytes.payload === undefined ? undefined : payloadBytes);
    const header = isThere ? undefined : this.#nextSegment(bytes);
    const area = present(this.#area, 'A record is put that does not fit');
    const at = area.baseBytes + this.#atBytes;
    this.#atBytes += recordBytes(payloadBytes, this.member.alignBytes);
    this.#dirty.add(area);
    const written = both(header, () => this.#write(area, at, bytes, payloadBytes));
    return written === undefined ? undefined : this.#pendingIn(area, written);
  }

  /** The area stays open while a write to it is under way, whatever was synced meanwhile. */
  async #pendingIn(area: Area, written: Promise<void>): Promise<void> {
    this.#pending.set(area, (this.#pending.get(area) ?? 0) + 1);
    try {
      await written;
    } finally {
      const left = (this.#pending.get(area) ?? 1) - 1;
      if (left > 0) this.#pending.set(area, left);
      else this.#pending.delete(area);
    }
  }

  /** Begins the next log, in the area that `prepareLog` made, or without one until `prepareNext`. */
  beginLog(facts: LogFacts): void {
    this.#facts = facts;
    this.#segmentNumber = -1;
    this.#atBytes = 0;
    this.#area = undefined;
    if (this.#next !== undefined) this.#unused.push(this.#next);
    this.#next = undefined;
    if (this.#nextLog?.number === facts.logNumber) this.#next = this.#nextLog.area;
    else if (this.#nextLog !== undefined) this.#unused.push(this.#nextLog.area);
    this.#nextLog = undefined;
  }

  /** Goes on with a log that was copied here. */
  continueLog(segmentNumber: number): void {
    this.#segmentNumber = segmentNumber;
  }

  /** Made for a log that ended before it was needed. */
  #unused: Area[] = [];
  readonly #closed = new WeakSet<Area>();

  /**
   * Makes the log's next segment. One call at a time is under way.
   *
   * @returns false where the member is full.
   * @throws what making it failed with.
   */
  prepareNext(): Promise<boolean> {
    this.#preparing ??= this.#makeNext().finally(() => {
      this.#preparing = undefined;
    });
    return this.#preparing;
  }

  async #makeNext(): Promise<boolean> {
    await this.#dropUnused();
    if (this.#next !== undefined) return true;
    this.#wasFull = !this.member.hasRoom(1);
    if (this.#wasFull) return false;
    const facts = this.#facts;
    const segmentNumber = this.#segmentNumber + 1;
    const area = await this.member.create({ logNumber: facts.logNumber, segmentNumber });
    if (this.#facts === facts && this.#next === undefined) this.#next = area;
    else this.#unused.push(area);
    return this.#next !== undefined;
  }

  /** Makes the first segment of a log. @throws {DeltaError} 'full' from devices, what making it failed with. */
  async prepareLog(logNumber: number): Promise<boolean> {
    await this.#dropUnused();
    if (this.#nextLog?.number === logNumber) return true;
    if (!this.member.hasRoom(-LIMITS.deltaSegmentsOverMax)) return false;
    this.#nextLog = { number: logNumber, area: await this.member.create({ logNumber, segmentNumber: 0 }) };
    return true;
  }

  /** Makes durable what was put, of which nothing may be under way any more but what came later. */
  async sync(): Promise<void> {
    const areas = [...this.#dirty];
    if (areas.length === 0) return;
    for (const area of areas) this.#dirty.delete(area);
    await this.member.sync(areas);
    for (const area of areas) {
      if (area === this.#area || this.#dirty.has(area)) continue;
      if (this.#pending.has(area)) this.#dirty.add(area);
      else await this.#closeArea(area);
    }
  }

  /** Gives up what is open, and what was made in advance. */
  async close(): Promise<void> {
    await this.#preparing?.catch(() => undefined);
    const made = [this.#next, this.#nextLog?.area].filter((area) => area !== undefined);
    this.#unused.push(...made);
    this.#next = undefined;
    this.#nextLog = undefined;
    for (const area of new Set([...this.#dirty, this.#area])) await this.#closeArea(area);
    this.#dirty.clear();
    this.#area = undefined;
    await this.#dropUnused();
  }

  /** Removes what was made for logs that ended: the names are free then. */
  async dropUnused(): Promise<void> {
    await this.#preparing?.catch(() => undefined);
    await this.#dropUnused();
  }

  /** Once: a sync that is under way when the writer is closed closes what is full, too. */
  async #closeArea(area: Area | undefined): Promise<void> {
    if (area === undefined || this.#closed.has(area)) return;
    this.#closed.add(area);
    await area.close();
  }

  async #dropUnused(): Promise<void> {
    for (let area = this.#unused.pop(); area !== undefined; area = this.#unused.pop()) {
      await this.#closeArea(area);
      await this.member.remove([area.key]);
    }
  }

  get #firstAt(): number {
    const { alignBytes } = this.member;
    return Math.ceil(SEGMENT_HEADER_BYTES / alignBytes) * alignBytes;
  }

  #fitsArea(payloadBytes: number | undefined): boolean {
    if (this.#area === undefined) return false;
    const { alignBytes } = this.member;
    const left = this.#area.sizeBytes - this.#atBytes;
    if (payloadBytes === undefined) return left >= alignBytes;
    return left >= recordBytes(payloadBytes, alignBytes) + SMALL_RECORDS * alignBytes;
  }

  #nextSegment({ previous }: RecordBytes): MaybePromise<void> {
    const area = present(this.#next, 'A record is put that does not fit');
    this.#next = undefined;
    this.#area = area;
    this.#segmentNumber += 1;
    this.#atBytes = this.#firstAt;
    this.#dirty.add(area);
    const header = encodeSegmentHeader({
      ...this.#facts,
      segmentNumber: this.#segmentNumber,
      generation: 0,
      segmentCount: 0,
      segmentBytes: area.sizeBytes,
      alignBytes: this.member.alignBytes,
      previous,
      compactedMs: 0,
    });
    return area.device.write(header, area.baseBytes);
  }

  #write(area: Area, at: number, bytes: RecordBytes, payloadBytes: number): MaybePromise<void> {
    const { alignBytes } = this.member;
    const { front, isJoined, payload } = bytes;
    if (alignBytes !== RECORD_HEADER_BYTES)
      return area.device.write(padded(bytes, payloadBytes, alignBytes), at);
    if (isJoined || payload === undefined)
      return area.device.write(front.subarray(0, RECORD_HEADER_BYTES + payloadBytes), at);
    const header = area.device.write(front.subarray(0, RECORD_HEADER_BYTES), at);
    return both(header, () => area.device.write(payload, at + RECORD_HEADER_BYTES));
  }
}

/** For a device of larger blocks: header and payload each at a multiple of them. */
export function padded(
  { front, payload }: Pick<RecordBytes, 'front' | 'payload'>,
  payloadBytes: number,
  alignBytes: number,
): Buffer {
  const whole = Buffer.alloc(recordBytes(payloadBytes, alignBytes));
  front.copy(whole, 0, 0, RECORD_HEADER_BYTES);
  payload?.copy(whole, alignBytes);
  return whole;
}

/** Both calls, at once: neither waits for the other. */
function both(one: MaybePromise<void>, begin: () => MaybePromise<void>): MaybePromise<void> {
  if (one === undefined) return begin();
  // Its failure is told by the promise of both, or by what the other call throws.
  one.catch(() => undefined);
  const other = begin();
  return Promise.all([one, other]).then(() => undefined);
}
