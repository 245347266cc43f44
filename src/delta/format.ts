/**
 * The bytes of a segment's header and of a record's; see FORMAT.md. Nothing here reads or writes.
 *
 * Every record carries the random id of its log and a checksum over its whole header, so that bytes that were left by
 * an earlier use of the same place are never taken for one.
 */

import { assert } from '../base/index.ts';
import { CHECKSUM_BYTES, digest } from '../records/index.ts';

export const SEGMENT_HEADER_BYTES = 4096;
export const RECORD_HEADER_BYTES = 512;
/** Of a log's id. */
const ID_BYTES = 16;

const SEGMENT_MAGIC = Buffer.from('CBDELTAS');
const VERSION = 0;
const RECORD_MAGIC = 0x43424452; // "CBDR"

const KINDS = ['write', 'zeroes', 'flush', 'point', 'size'] as const;
export type RecordKind = (typeof KINDS)[number];

const POINT_BYTES_MAX = 64;
const NAME_BYTES_MAX = 255;

export interface SegmentHeader {
  readonly volumeId: string;
  readonly volumeName: string;
  /** Of the volume when the segment began; a record of the kind `size` tells a later one. */
  readonly volumeBytes: number;
  readonly trackSizeBytes: number;
  /** Ascending; the same on each member. */
  readonly logNumber: number;
  /** 32 hexadecimal digits: tells a log from another of its number, which a member that was lost may have. */
  readonly logId: string;
  /** Ascending within the log, on this member. */
  readonly segmentNumber: number;
  /** 0 as it was written; each compaction on this member makes the next. */
  readonly generation: number;
  /** In the first segment of a generation that is complete, how many it has; 0 where more may come. */
  readonly segmentCount: number;
  readonly segmentBytes: number;
  /** Records begin at multiples of it, and so do their payloads. */
  readonly alignBytes: number;
  /** The point that closed the epoch before; empty for the first log since the volume was made. */
  readonly startPoint: string;
  /** When that was, in milliseconds since 1970. */
  readonly pointMs: number;
  /** When the log was begun. */
  readonly beganMs: number;
  /** The sequence number that the first record of this segment follows. */
  readonly previous: number;
  /** Where the log was compacted, the time of its last record; no instant before it is known any more. 0 otherwise. */
  readonly compactedMs: number;
}

export interface RecordHeader {
  readonly kind: RecordKind;
  readonly sequence: number;
  /** The record before it: one less, unless those between were given up by a compaction. */
  readonly previous: number;
  /** Everything up to this sequence number was durable when the record was written. */
  readonly durable: number;
  readonly timeMs: number;
  /** Of the change; of a point, when it was made. */
  readonly offsetBytes: number;
  /** Of the change; of a size, the volume's. */
  readonly lengthBytes: number;
  /** Of a point. */
  readonly point: string;
}

/** Bytes that a record takes. @param payloadBytes 0 for all but writes. */
export function recordBytes(payloadBytes: number, alignBytes: number): number {
  return alignBytes + Math.ceil(payloadBytes / alignBytes) * alignBytes;
}

/** What of a record is payload. */
export function payloadBytesOf(record: Pick<RecordHeader, 'kind' | 'lengthBytes'>): number {
  return record.kind === 'write' ? record.lengthBytes : 0;
}

/** Writing a BigInt takes ten times as long. */
function putNumber(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  bytes.writeUInt32BE(value >>> 0, at + 4);
}

function takeNumber(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4);
}

function putText(bytes: Buffer, text: string, at: number): void {
  bytes.writeUInt16BE(bytes.write(text, at + 2, 'utf8'), at);
}

function takeText(bytes: Buffer, at: number, bytesMax: number): string | undefined {
  const length = bytes.readUInt16BE(at);
  return length > bytesMax ? undefined : bytes.toString('utf8', at + 2, at + 2 + length);
}

const SEGMENT_CHECKSUM_AT = SEGMENT_HEADER_BYTES - CHECKSUM_BYTES;

/** A fresh buffer of `SEGMENT_HEADER_BYTES`. */
export function encodeSegmentHeader(header: SegmentHeader): Buffer {
  const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES);
  assert(Buffer.byteLength(header.startPoint) <= POINT_BYTES_MAX, `Point ${header.startPoint} is too long`);
  assert(Buffer.byteLength(header.volumeId) <= POINT_BYTES_MAX, `Volume id ${header.volumeId} is too long`);
  SEGMENT_MAGIC.copy(bytes);
  bytes.writeUInt32BE(VERSION, 8);
  bytes.writeUInt32BE(header.alignBytes, 12);
  putNumber(bytes, header.segmentBytes, 16);
  putNumber(bytes, header.volumeBytes, 24);
  bytes.writeUInt32BE(header.trackSizeBytes, 32);
  bytes.writeUInt32BE(header.segmentNumber, 36);
  putNumber(bytes, header.logNumber, 40);
  bytes.writeUInt32BE(header.generation, 48);
  bytes.writeUInt32BE(header.segmentCount, 52);
  putNumber(bytes, header.previous, 56);
  putNumber(bytes, header.pointMs, 64);
  putNumber(bytes, header.beganMs, 72);
  putNumber(bytes, header.compactedMs, 80);
  bytes.write(header.logId, 88, 'hex');
  putText(bytes, header.volumeId, 104);
  putText(bytes, header.startPoint, 176);
  putText(bytes, cutName(header.volumeName), 248);
  digest(bytes.subarray(0, SEGMENT_CHECKSUM_AT)).copy(bytes, SEGMENT_CHECKSUM_AT, 0, CHECKSUM_BYTES);
  return bytes;
}

function cutName(name: string): string {
  let cut = name;
  while (Buffer.byteLength(cut) > NAME_BYTES_MAX) cut = cut.slice(0, -1);
  return cut;
}

/** Undefined where the bytes are no header, or not whole. */
export function decodeSegmentHeader(bytes: Buffer): SegmentHeader | undefined {
  if (bytes.length < SEGMENT_HEADER_BYTES || !bytes.subarray(0, 8).equals(SEGMENT_MAGIC)) return undefined;
  if (bytes.readUInt32BE(8) !== VERSION) return undefined;
  const expected = digest(bytes.subarray(0, SEGMENT_CHECKSUM_AT)).subarray(0, CHECKSUM_BYTES);
  if (!expected.equals(bytes.subarray(SEGMENT_CHECKSUM_AT, SEGMENT_HEADER_BYTES))) return undefined;
  const volumeId = takeText(bytes, 104, POINT_BYTES_MAX);
  const startPoint = takeText(bytes, 176, POINT_BYTES_MAX);
  const volumeName = takeText(bytes, 248, NAME_BYTES_MAX);
  if (volumeId === undefined || startPoint === undefined || volumeName === undefined) return undefined;
  return {
    volumeId,
    volumeName,
    startPoint,
    alignBytes: bytes.readUInt32BE(12),
    segmentBytes: takeNumber(bytes, 16),
    volumeBytes: takeNumber(bytes, 24),
    trackSizeBytes: bytes.readUInt32BE(32),
    segmentNumber: bytes.readUInt32BE(36),
    logNumber: takeNumber(bytes, 40),
    generation: bytes.readUInt32BE(48),
    segmentCount: bytes.readUInt32BE(52),
    previous: takeNumber(bytes, 56),
    pointMs: takeNumber(bytes, 64),
    beganMs: takeNumber(bytes, 72),
    compactedMs: takeNumber(bytes, 80),
    logId: bytes.toString('hex', 88, 88 + ID_BYTES),
  };
}

const LOG_ID_AT = 48;
const POINT_AT = 64;
const PAYLOAD_CHECKSUM_AT = 136;
const RECORD_CHECKSUM_AT = PAYLOAD_CHECKSUM_AT + CHECKSUM_BYTES;

/**
 * Fills the first `RECORD_HEADER_BYTES` of `target`, of which the rest is zeroes already.
 *
 * @param logId the log's, as bytes.
 * @param payloadChecksum of a write; `checksumOf`.
 */
export function encodeRecordHeader(
  target: Buffer,
  record: RecordHeader,
  logId: Buffer,
  payloadChecksum: Buffer | undefined,
): void {
  target.writeUInt32BE(RECORD_MAGIC, 0);
  target.writeUInt32BE(KINDS.indexOf(record.kind) + 1, 4);
  putNumber(target, record.sequence, 8);
  putNumber(target, record.previous, 16);
  putNumber(target, record.durable, 24);
  putNumber(target, record.timeMs, 32);
  putNumber(target, record.offsetBytes, 40);
  logId.copy(target, LOG_ID_AT, 0, ID_BYTES);
  target.fill(0, POINT_AT, PAYLOAD_CHECKSUM_AT);
  putNumber(target, record.lengthBytes, POINT_AT);
  if (record.point !== '') {
    assert(Buffer.byteLength(record.point) <= POINT_BYTES_MAX - 2, `Point ${record.point} is too long`);
    putText(target, record.point, POINT_AT + 8);
  }
  if (payloadChecksum === undefined) target.fill(0, PAYLOAD_CHECKSUM_AT, RECORD_CHECKSUM_AT);
  else payloadChecksum.copy(target, PAYLOAD_CHECKSUM_AT, 0, CHECKSUM_BYTES);
  digest(target.subarray(0, RECORD_CHECKSUM_AT)).copy(target, RECORD_CHECKSUM_AT, 0, CHECKSUM_BYTES);
}

/** Of a payload, or of a part that is to be compared with one; the first `CHECKSUM_BYTES` count. */
export function checksumOf(payload: Buffer): Buffer {
  return digest(payload);
}

/** Whether a record may begin here: what a scan looks for before it looks closer. */
export function mayBeRecord(bytes: Buffer, at: number): boolean {
  return bytes.readUInt32BE(at) === RECORD_MAGIC;
}

export interface DecodedRecord extends RecordHeader {
  /** Of the payload; 16 bytes that belong to the caller. */
  readonly payloadChecksum: Buffer;
}

/** The record whose header begins at `at`; undefined where there is none of that log. */
export function decodeRecordHeader(bytes: Buffer, at: number, logId: Buffer): DecodedRecord | undefined {
  if (bytes.readUInt32BE(at) !== RECORD_MAGIC) return undefined;
  const kind = KINDS[bytes.readUInt32BE(at + 4) - 1];
  if (kind === undefined || logId.compare(bytes, at + LOG_ID_AT, at + LOG_ID_AT + ID_BYTES) !== 0)
    return undefined;
  const expected = digest(bytes.subarray(at, at + RECORD_CHECKSUM_AT));
  const found = at + RECORD_CHECKSUM_AT;
  if (expected.compare(bytes, found, found + CHECKSUM_BYTES, 0, CHECKSUM_BYTES) !== 0) return undefined;
  const record = {
    kind,
    sequence: takeNumber(bytes, at + 8),
    previous: takeNumber(bytes, at + 16),
    durable: takeNumber(bytes, at + 24),
    timeMs: takeNumber(bytes, at + 32),
    offsetBytes: takeNumber(bytes, at + 40),
    lengthBytes: takeNumber(bytes, at + POINT_AT),
    point: takeText(bytes, at + POINT_AT + 8, POINT_BYTES_MAX - 2) ?? '',
    payloadChecksum: Buffer.from(bytes.subarray(at + PAYLOAD_CHECKSUM_AT, at + RECORD_CHECKSUM_AT)),
  };
  return isSensible(record) ? record : undefined;
}

/** What a checksum does not say: a header that somebody made up must not lead anywhere. */
function isSensible(record: RecordHeader): boolean {
  const { sequence, previous, timeMs, offsetBytes, lengthBytes, durable } = record;
  for (const value of [sequence, previous, timeMs, offsetBytes, lengthBytes, durable])
    if (!Number.isSafeInteger(value)) return false;
  return previous < sequence && durable < sequence && Number.isSafeInteger(offsetBytes + lengthBytes);
}

/** Whether a payload, or the part of one that was read, is the record's. */
export function isPayloadOf(payload: Buffer, record: Pick<DecodedRecord, 'payloadChecksum'>): boolean {
  return digest(payload).compare(record.payloadChecksum, 0, CHECKSUM_BYTES, 0, CHECKSUM_BYTES) === 0;
}
