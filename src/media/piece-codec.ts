/**
 * The content of a piece: a header that names its set, records, a trailer. FORMAT.md is the contract.
 *
 * A record carries the stored bytes of one frame, or of one record of metadata, and for a frame the tracks in it
 * with their hashes: so a reader can put tracks where they belong without having seen the set's metadata.
 * Each record has a checksum of its own, so that damage costs the records that it hits and no others.
 *
 * Pure; buffers handed to the encoder are not copied and must not change before they are written.
 */

import { assert, CorruptionError, LIMITS } from '../base/index.ts';
import { RAW_DATABASES, type RawRecord } from '../blockset/index.ts';
import { checksum, CHECKSUM_BYTES, DIGEST_BYTES, digestOf } from '../records/index.ts';
import { countField, decodeText, encodeText, textField } from './text-entry.ts';

export interface TrackPlace {
  readonly track: number;
  /** Place in the frame, in tracks. */
  readonly position: number;
  /** The BLAKE3 of the track. */
  readonly hash: Buffer;
}

export interface MediaRecord extends RawRecord {
  /** The tracks that the set has in this frame; none in metadata, and none where the set is encrypted. */
  readonly places: readonly TrackPlace[];
}

export const PIECE_CONTENTS = ['frames', 'metadata'] as const;
export type PieceContent = (typeof PIECE_CONTENTS)[number];

export interface PieceHeader {
  readonly writing: string;
  readonly set: string;
  /** Counted from 1 through all media of a writing. */
  readonly piece: number;
  readonly content: PieceContent;
  readonly records: number;
}

export const RECORD_HEAD_BYTES = 16;
const PLACE_BYTES = 8 + DIGEST_BYTES;
const MAGIC = Buffer.from('CBPIECE\0', 'latin1');
export const PIECE_PREFIX_BYTES = MAGIC.length + 4;
export const PIECE_TRAILER_BYTES = MAGIC.length + 8 + DIGEST_BYTES;
const TRAILER_MAGIC = Buffer.from('CBPEND\0\0', 'latin1');
/** What a header takes at most: its fields have bounded lengths. */
export const PIECE_HEADER_BYTES_MAX = 512;

/** Bytes of a record in a piece. */
export function recordBytes(record: MediaRecord): number {
  return (
    RECORD_HEAD_BYTES +
    record.key.length +
    record.places.length * PLACE_BYTES +
    record.value.length +
    CHECKSUM_BYTES
  );
}

export interface EncodedPiece {
  readonly parts: readonly Buffer[];
  readonly sizeBytes: number;
}

export function encodePiece(header: PieceHeader, records: readonly MediaRecord[]): EncodedPiece {
  assert(records.length === header.records, 'A piece counts its records');
  const text = encodeText(header);
  assert(text.length <= PIECE_HEADER_BYTES_MAX, `A piece's header has ${text.length} bytes`);
  const prefix = Buffer.alloc(PIECE_PREFIX_BYTES);
  MAGIC.copy(prefix);
  prefix.writeUInt32BE(text.length, MAGIC.length);
  const parts: Buffer[] = [prefix, text];
  const sums: Buffer[] = [];
  for (const record of records) {
    const encoded = encodeRecord(record);
    parts.push(...encoded.parts, encoded.sum);
    sums.push(encoded.sum);
  }
  parts.push(encodeTrailer(text, sums));
  return { parts, sizeBytes: parts.reduce((sum, part) => sum + part.length, 0) };
}

function encodeRecord(record: MediaRecord): { parts: readonly Buffer[]; sum: Buffer } {
  const head = Buffer.alloc(RECORD_HEAD_BYTES + record.key.length + record.places.length * PLACE_BYTES);
  head.writeUInt16BE(record.lane, 0);
  head.writeUInt8(RAW_DATABASES.indexOf(record.database), 2);
  head.writeUInt16BE(record.key.length, 4);
  head.writeUInt32BE(record.places.length, 8);
  head.writeUInt32BE(record.value.length, 12);
  let at = RECORD_HEAD_BYTES;
  at += record.key.copy(head, at);
  for (const { track, position, hash } of record.places) {
    head.writeUInt32BE(track, at);
    head.writeUInt32BE(position, at + 4);
    at += 8 + hash.copy(head, at + 8);
  }
  const parts = [head, record.value];
  return { parts, sum: checksum(...parts) };
}

function encodeTrailer(text: Buffer, sums: readonly Buffer[]): Buffer {
  const count = Buffer.alloc(8);
  count.writeUInt32BE(sums.length);
  return Buffer.concat([TRAILER_MAGIC, count, digestOf([text, ...sums])]);
}

/** @returns the length of the header's text. @throws {CorruptionError} where the entry is no piece. */
export function decodePiecePrefix(prefix: Buffer, where: string): number {
  const length = prefix.length < PIECE_PREFIX_BYTES ? 0 : prefix.readUInt32BE(MAGIC.length);
  if (!prefix.subarray(0, MAGIC.length).equals(MAGIC) || length > PIECE_HEADER_BYTES_MAX) {
    throw new CorruptionError(`${where} is no piece`, { where });
  }
  return length;
}

/** @throws {CorruptionError} where the header is damaged. */
export function decodePieceHeader(text: Buffer, where: string): PieceHeader {
  const record = decodeText(text, where);
  const named = textField(record, 'content', where);
  const content = PIECE_CONTENTS.find((known) => known === named);
  if (content === undefined) throw new CorruptionError(`${where} holds ${named}`, { where });
  return {
    writing: textField(record, 'writing', where),
    set: textField(record, 'set', where),
    piece: countField(record, 'piece', where),
    content,
    records: countField(record, 'records', where),
  };
}

/** What follows a record's head: key, places, value and checksum; undefined where the head makes no sense. */
export function recordRestBytes(head: Buffer): number | undefined {
  const restBytes =
    head.readUInt16BE(4) + head.readUInt32BE(8) * PLACE_BYTES + head.readUInt32BE(12) + CHECKSUM_BYTES;
  return restBytes <= LIMITS.mediaRecordBytesMax ? restBytes : undefined;
}

/** @returns the record, which shares the buffers' memory, and its checksum; undefined where it is damaged. */
export function decodeRecord(head: Buffer, rest: Buffer): { record: MediaRecord; sum: Buffer } | undefined {
  const body = rest.subarray(0, rest.length - CHECKSUM_BYTES);
  const sum = rest.subarray(rest.length - CHECKSUM_BYTES);
  const database = RAW_DATABASES[head.readUInt8(2)];
  if (database === undefined || !checksum(head, body).equals(sum)) return undefined;
  const keyEnd = head.readUInt16BE(4);
  const places: TrackPlace[] = [];
  let at = keyEnd;
  for (let count = head.readUInt32BE(8); count > 0; count -= 1) {
    const hash = body.subarray(at + 8, at + PLACE_BYTES);
    places.push({ track: body.readUInt32BE(at), position: body.readUInt32BE(at + 4), hash });
    at += PLACE_BYTES;
  }
  const lane = head.readUInt16BE(0);
  return { record: { lane, database, key: body.subarray(0, keyEnd), places, value: body.subarray(at) }, sum };
}

/** Whether the trailer ends a piece of this header and these checksums of its records. */
export function isTrailerOf(trailer: Buffer, text: Buffer, sums: readonly Buffer[]): boolean {
  return trailer.equals(encodeTrailer(text, sums));
}
