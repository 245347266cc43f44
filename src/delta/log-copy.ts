/**
 * Writes records of a log, taken from where they are whole, into new segments of one member: to make a member anew, to
 * give one what the others have of the end, to compact a log.
 *
 * The headers are written when all records are durable, the first one last. So the copy is there as a whole or not at
 * all; where it takes the place of other segments, those go afterwards.
 */

import { assert, CorruptionError, present } from '../base/index.ts';
import {
  checksumOf,
  encodeRecordHeader,
  encodeSegmentHeader,
  payloadBytesOf,
  RECORD_HEADER_BYTES,
  recordBytes,
  SEGMENT_HEADER_BYTES,
  type SegmentHeader,
} from './format.ts';
import type { Log, MemberLog } from './log-set.ts';
import { LogMerge } from './log-merge.ts';
import { type Areas, type Entry, LogStream, readPayload } from './log-stream.ts';
import type { Area, Member } from './member.ts';
import type { LogFacts } from './member-writer.ts';

export interface CopyPlace {
  readonly facts: LogFacts;
  readonly generation: number;
  /** Of the first segment. */
  readonly segmentNumber: number;
  /** The record that is followed. */
  readonly previous: number;
  readonly compactedMs: number;
}

export class LogCopier {
  readonly #member: Member;
  readonly #place: CopyPlace;
  readonly #logId: Buffer;
  readonly #done: { readonly area: Area; readonly previous: number }[] = [];
  #area: Area | undefined;
  #atBytes = 0;
  #previous: number;

  constructor(member: Member, place: CopyPlace) {
    this.#member = member;
    this.#place = place;
    this.#logId = Buffer.from(place.facts.logId, 'hex');
    this.#previous = place.previous;
  }

  /** The number that the next segment of the log may have. */
  get segmentNumber(): number {
    return this.#place.segmentNumber + this.#done.length;
  }

  get isEmpty(): boolean {
    return this.#done.length === 0;
  }

  /** @param payload empty but for writes. */
  async add(entry: Entry, payload: Buffer): Promise<void> {
    const { alignBytes } = this.#member;
    const bytes = Buffer.alloc(recordBytes(payload.length, alignBytes));
    if (this.#area === undefined || this.#atBytes + bytes.length > this.#area.sizeBytes)
      await this.#nextArea();
    const area = present(this.#area, 'There is an area');
    const check = entry.kind === 'write' ? checksumOf(payload) : undefined;
    encodeRecordHeader(
      bytes.subarray(0, RECORD_HEADER_BYTES),
      { ...entry, previous: this.#previous },
      this.#logId,
      check,
    );
    payload.copy(bytes, alignBytes);
    assert(
      this.#atBytes + bytes.length <= area.sizeBytes,
      `A record of ${bytes.length} bytes fits no segment`,
    );
    await area.device.write(bytes, area.baseBytes + this.#atBytes);
    this.#atBytes += bytes.length;
    this.#previous = entry.sequence;
  }

  /** Everything that was added is durable, and there, when it resolves. */
  async finish(): Promise<void> {
    if (this.#area === undefined) await this.#nextArea();
    await this.#member.sync(this.#done.map(({ area }) => area));
    for (const [index, { area, previous }] of [...this.#done.entries()].toReversed()) {
      const header = encodeSegmentHeader(this.#headerOf(index, previous, area));
      await area.device.write(header, area.baseBytes);
      if (index <= 1) await this.#member.sync(this.#done.slice(index).map((one) => one.area));
    }
    await this.#close();
  }

  /** Leaves nothing of it. */
  async abort(): Promise<void> {
    await this.#close();
    await this.#member.remove(this.#done.map(({ area }) => area.key));
  }

  async #nextArea(): Promise<void> {
    const { logNumber } = this.#place.facts;
    const area = await this.#member.create({ logNumber, segmentNumber: this.segmentNumber });
    this.#done.push({ area, previous: this.#previous });
    this.#area = area;
    this.#atBytes = Math.ceil(SEGMENT_HEADER_BYTES / this.#member.alignBytes) * this.#member.alignBytes;
  }

  #headerOf(index: number, previous: number, area: Area): SegmentHeader {
    const { facts, generation, segmentNumber, compactedMs } = this.#place;
    return {
      ...facts,
      generation,
      segmentNumber: segmentNumber + index,
      segmentCount: generation > 0 && index === 0 ? this.#done.length : 0,
      segmentBytes: area.sizeBytes,
      alignBytes: this.#member.alignBytes,
      previous,
      compactedMs,
    };
  }

  async #close(): Promise<void> {
    for (const { area } of this.#done) await area.close();
  }
}

export interface CopySource {
  readonly log: Log;
  readonly areas: Areas;
  readonly limit: number;
  readonly verifyBeyond: number;
}

/**
 * Copies the records after `from`.
 *
 * @param choose which ones; all where left out.
 * @returns the last record that was copied, or passed over.
 * @throws {CorruptionError} where a payload is whole nowhere.
 */
export async function copyRecords(
  source: CopySource,
  from: number,
  copier: LogCopier,
  options: { readonly choose?: (entry: Entry) => boolean; readonly signal?: AbortSignal | undefined } = {},
): Promise<number> {
  const merge = new LogMerge(source.log, from, source);
  try {
    for (;;) {
      const batch = await merge.next();
      if (batch === undefined) return merge.end;
      for (const entry of batch) {
        options.signal?.throwIfAborted();
        if (options.choose?.(entry) === false) continue;
        await copier.add(entry, await payloadOf(source, entry));
      }
    }
  } finally {
    await merge.stop();
  }
}

/** The payload of a record from whichever member has it whole; a fresh buffer. @throws {CorruptionError} */
export async function payloadOf(
  { log, areas, limit }: Omit<CopySource, 'verifyBeyond'>,
  entry: Entry,
): Promise<Buffer> {
  const payload = Buffer.allocUnsafe(payloadBytesOf(entry));
  if (payload.length === 0 || (await readPayload(areas, entry, payload))) return payload;
  for (const copy of log.copies) {
    if (copy.member === entry.member) continue;
    const other = await findRecord(copy, entry, { areas, limit });
    if (other !== undefined && (await readPayload(areas, other, payload))) return payload;
  }
  throw new CorruptionError(
    `Delta record ${entry.sequence} of log ${log.number} is damaged on every member that has it`,
    { where: `${entry.member.place}, ${entry.segment.key} at ${entry.payloadAtBytes}` },
  );
}

/** Looks for a record on one member; undefined where it is not there. */
export async function findRecord(
  copy: MemberLog,
  wanted: Pick<Entry, 'sequence' | 'lengthBytes'>,
  { areas, limit }: Pick<CopySource, 'areas' | 'limit'>,
): Promise<Entry | undefined> {
  const stream = new LogStream(copy, { areas, limit, verifyBeyond: Number.POSITIVE_INFINITY });
  try {
    for (;;) {
      const { head } = stream;
      if (head === undefined) {
        if (!stream.needsFill) return undefined;
        await stream.fill();
      } else if (head.sequence < wanted.sequence) stream.shift();
      else
        return head.sequence === wanted.sequence && head.lengthBytes === wanted.lengthBytes
          ? head
          : undefined;
    }
  } finally {
    await stream.stop();
  }
}
