/**
 * The records of one log as one member has them, in the order of their sequence numbers.
 *
 *     segment 0: r1 r2 r3 | r4 (bad) ........ r6    segment 1: r7 r8 (blank)
 *                  `end` = 3                  both come all the same, and do not follow r3
 *
 * A record that is not whole ends what is known to follow without a gap (`end`). What is found behind it is given all
 * the same: other members may have what is between. A member that was cut off in the middle of writing and one that is
 * damaged look alike here; who knows what was durable tells them apart.
 *
 * A segment that is being written is read as far as it is there. Its records may be found before one that was written
 * earlier, so a bad place is looked at again when something is found behind it.
 */

import { LIMITS, present, roundUp } from '../base/index.ts';
import {
  decodeRecordHeader,
  type DecodedRecord,
  isPayloadOf,
  mayBeRecord,
  payloadBytesOf,
  RECORD_HEADER_BYTES,
  recordBytes,
  SEGMENT_HEADER_BYTES,
} from './format.ts';
import type { MemberLog } from './log-set.ts';
import type { Area, FoundSegment, Member } from './member.ts';

/** A record, and where it is. */
export interface Entry extends DecodedRecord {
  readonly member: Member;
  readonly segment: FoundSegment;
  /** Of the payload, in the segment. */
  readonly payloadAtBytes: number;
}

/** Open areas, the ones used last; each may cost a descriptor. */
export class Areas {
  readonly #open = new Map<Member, Map<string, Promise<Area>>>();
  readonly #order: { readonly member: Member; readonly key: string }[] = [];

  /** The area belongs to this; it may be used until so many others were asked for. */
  get(member: Member, key: string): Promise<Area> {
    let areas = this.#open.get(member);
    if (areas === undefined) this.#open.set(member, (areas = new Map()));
    const there = areas.get(key);
    if (there !== undefined) return there;
    const opening = member.open(key);
    areas.set(key, opening);
    this.#order.push({ member, key });
    if (this.#order.length > AREA_COUNT_MAX) this.#forgetOldest();
    return opening;
  }

  async close(): Promise<void> {
    const all = [...this.#open.values()].flatMap((areas) => [...areas.values()]);
    this.#open.clear();
    this.#order.length = 0;
    for (const opening of await Promise.allSettled(all))
      if (opening.status === 'fulfilled') await opening.value.close();
  }

  #forgetOldest(): void {
    const oldest = present(this.#order.shift(), 'There are areas');
    const opening = this.#open.get(oldest.member)?.get(oldest.key);
    this.#open.get(oldest.member)?.delete(oldest.key);
    opening
      ?.then((area) => setTimeout(() => void area.close(), CLOSE_AFTER_MS).unref())
      .catch(() => undefined);
  }
}

const AREA_COUNT_MAX = 64;
/** A read may still be under way. */
const CLOSE_AFTER_MS = 10_000;

/** Reads the payload of a write. @returns whether it is what was written. */
export async function readPayload(areas: Areas, entry: Entry, target: Buffer): Promise<boolean> {
  const area = await areas.get(entry.member, entry.segment.key);
  await area.device.read(target, area.baseBytes + entry.payloadAtBytes);
  return isPayloadOf(target, entry);
}

export interface StreamOptions {
  readonly areas: Areas;
  /** Records beyond it are none: a later log follows an earlier one. */
  readonly limit: number;
  /** Records beyond it may not be whole, and count only where their payload is. */
  readonly verifyBeyond: number;
}

export class LogStream {
  readonly log: MemberLog;
  /** The last record that follows without a gap. */
  end: number;
  readonly #batches: AsyncGenerator<readonly Entry[]>;
  #batch: readonly Entry[] = [];
  #index = 0;
  #isDone = false;
  /** What reading it failed with; nothing comes any more then. */
  failure: unknown;

  constructor(log: MemberLog, options: StreamOptions) {
    this.log = log;
    this.end = Math.min(log.first.previous, options.limit);
    this.#batches = scanLog(log, options);
  }

  /** The next record; undefined at the end, and where `fill` is to be called first. */
  get head(): Entry | undefined {
    return this.#batch[this.#index];
  }

  get needsFill(): boolean {
    return !this.#isDone && this.#index >= this.#batch.length;
  }

  async fill(): Promise<void> {
    try {
      const next = await this.#batches.next();
      this.#isDone = next.done === true;
      this.#batch = next.done === true ? [] : next.value;
    } catch (error) {
      this.failure = error;
      this.#isDone = true;
      this.#batch = [];
    }
    this.#index = 0;
  }

  shift(): void {
    const entry = present(this.#batch[this.#index], 'There is a record');
    if (entry.previous <= this.end && entry.sequence > this.end) this.end = entry.sequence;
    this.#index += 1;
  }

  async stop(): Promise<void> {
    await this.#batches.return(undefined);
  }
}

/** The records of all segments. What a later segment follows is the end of the one before. */
async function* scanLog(log: MemberLog, options: StreamOptions): AsyncGenerator<readonly Entry[]> {
  const limits: number[] = [];
  let limit = options.limit;
  for (const { header } of log.segments.toReversed()) {
    limits.unshift(limit);
    limit = Math.min(limit, header.previous);
  }
  let last = 0;
  for (const [index, segment] of log.segments.entries()) {
    const end = limits[index] ?? options.limit;
    for await (const batch of scanSegment(log.member, segment, options)) {
      const taken = batch.filter(({ sequence }) => sequence <= end && sequence > last);
      last = taken.at(-1)?.sequence ?? last;
      yield taken;
    }
  }
}

/** Looks at one segment from its beginning to its end, in its order. */
async function* scanSegment(
  member: Member,
  segment: FoundSegment,
  { areas, verifyBeyond }: StreamOptions,
): AsyncGenerator<readonly Entry[]> {
  const area = await areas.get(member, segment.key);
  const { alignBytes } = segment.header;
  const logId = Buffer.from(segment.header.logId, 'hex');
  const window = new Window(area);
  let batch: Entry[] = [];
  let badAt: number | undefined;
  let lookedAgainAt: number | undefined;
  for (let at = roundUp(SEGMENT_HEADER_BYTES, alignBytes); at + RECORD_HEADER_BYTES <= area.sizeBytes;) {
    if (!window.has(at)) {
      if (batch.length > 0) yield batch;
      batch = [];
      await window.load(at);
    }
    const entry = entryAt(window, at, { member, segment, logId, area });
    const isWhole =
      entry !== undefined && (entry.sequence <= verifyBeyond || (await isPayloadThere(areas, entry)));
    if (!isWhole) {
      badAt ??= at;
      at += alignBytes;
      continue;
    }
    if (badAt !== undefined && badAt !== lookedAgainAt) {
      at = badAt;
      lookedAgainAt = badAt;
      badAt = undefined;
      window.forget();
      continue;
    }
    batch.push(entry);
    at += recordBytes(payloadBytesOf(entry), alignBytes);
  }
  if (batch.length > 0) yield batch;
}

function entryAt(
  window: Window,
  at: number,
  place: {
    readonly member: Member;
    readonly segment: FoundSegment;
    readonly logId: Buffer;
    readonly area: Area;
  },
): Entry | undefined {
  const { member, segment, logId, area } = place;
  const offset = at - window.atBytes;
  if (!mayBeRecord(window.bytes, offset)) return undefined;
  const record = decodeRecordHeader(window.bytes, offset, logId);
  if (record === undefined) return undefined;
  const { alignBytes } = segment.header;
  const payloadBytes = payloadBytesOf(record);
  if (payloadBytes > LIMITS.deltaRecordBytesMax || payloadBytes % LIMITS.blockSizeBytesMin !== 0)
    return undefined;
  if (at + recordBytes(payloadBytes, alignBytes) > area.sizeBytes) return undefined;
  return { ...record, member, segment, payloadAtBytes: at + alignBytes };
}

async function isPayloadThere(areas: Areas, entry: Entry): Promise<boolean> {
  const length = payloadBytesOf(entry);
  return length === 0 || (await readPayload(areas, entry, Buffer.allocUnsafe(length)));
}

/** A part of an area in memory. */
class Window {
  readonly bytes = Buffer.alloc(LIMITS.deltaScanBytes);
  atBytes = 0;
  #lengthBytes = 0;
  readonly #area: Area;

  constructor(area: Area) {
    this.#area = area;
  }

  /** Whether a header that begins at `at` is here. */
  has(at: number): boolean {
    return at >= this.atBytes && at + RECORD_HEADER_BYTES <= this.atBytes + this.#lengthBytes;
  }

  async load(at: number): Promise<void> {
    const { device, baseBytes, sizeBytes } = this.#area;
    const length = Math.min(this.bytes.length, sizeBytes - at);
    await device.read(this.bytes.subarray(0, length), baseBytes + at);
    this.atBytes = at;
    this.#lengthBytes = length;
  }

  forget(): void {
    this.#lengthBytes = 0;
  }
}
