/**
 * The bytes of a snapshot's file: one header page, then batches (FORMAT.md).
 *
 *     page 0     `CBSNAP`, who it belongs to
 *     batch      header page: `CBSBATCH`, the tracks and the checksum of each one's content
 *                their contents, each on whole pages; zeroes have none
 *
 * Every checksum takes in the store's id and the place in the file, so that neither the remains of another file nor a
 * batch at a wrong place can pass for a batch of this one.
 */

import { CorruptionError } from '../base/index.ts';
import { checksum, CHECKSUM_BYTES } from '../records/index.ts';

/** Everything begins on a multiple of it, so that contents are copied page by page. */
export const PAGE_BYTES = 4096;
const FORMAT_VERSION = 0;
const STORE_MAGIC = Buffer.from('CBSNAP\0\0');
const BATCH_MAGIC = Buffer.from('CBSBATCH');
/** Magic, number of tracks. */
const BATCH_FIXED_BYTES = BATCH_MAGIC.length + 4;
const BATCH_HEADER_BYTES = BATCH_FIXED_BYTES + CHECKSUM_BYTES;
/** Track, kind, checksum of the content. */
const ENTRY_BYTES = 8 + CHECKSUM_BYTES;
/** What one header page has room for. */
export const BATCH_TRACKS_MAX = Math.floor((PAGE_BYTES - BATCH_HEADER_BYTES) / ENTRY_BYTES);
const KIND_ZEROES = 0;
const KIND_CONTENT = 1;

export interface StoreIdentity {
  /** Random, 32 hex digits. */
  readonly storeId: string;
  /** A content takes that much of the file, rounded up to pages; the last track of a volume may be shorter. */
  readonly trackSizeBytes: number;
}

/** One entry of a batch. */
export interface BatchEntry {
  readonly track: number;
  readonly isZero: boolean;
  /** Of the whole slot; zeroes have the checksum of nothing. */
  readonly checksum: Buffer;
}

/** Bytes that one track's content takes. */
export function slotBytesOf({ trackSizeBytes }: StoreIdentity): number {
  return Math.ceil(trackSizeBytes / PAGE_BYTES) * PAGE_BYTES;
}

export function encodeStoreHeader({ storeId, trackSizeBytes }: StoreIdentity): Buffer {
  const page = Buffer.alloc(PAGE_BYTES);
  const text = Buffer.from(JSON.stringify({ formatVersion: FORMAT_VERSION, storeId, trackSizeBytes }));
  STORE_MAGIC.copy(page);
  page.writeUInt32BE(text.length, STORE_MAGIC.length);
  checksum(text).copy(page, STORE_MAGIC.length + 4);
  text.copy(page, STORE_MAGIC.length + 4 + CHECKSUM_BYTES);
  return page;
}

/** @throws {CorruptionError} where the page is no header, damaged, or another store's. */
export function assertStoreHeader(page: Buffer, identity: StoreIdentity, where: string): void {
  const textAt = STORE_MAGIC.length + 4 + CHECKSUM_BYTES;
  const lengthBytes = page.length < PAGE_BYTES ? 0 : page.readUInt32BE(STORE_MAGIC.length);
  const text = page.subarray(textAt, textAt + lengthBytes);
  const isWhole =
    page.subarray(0, STORE_MAGIC.length).equals(STORE_MAGIC) &&
    text.length === lengthBytes &&
    checksum(text).equals(page.subarray(STORE_MAGIC.length + 4, textAt));
  if (!isWhole) throw new CorruptionError(`Header of snapshot file ${where} is damaged`, { where });
  const found: StoreIdentity & { readonly formatVersion: number } = JSON.parse(text.toString());
  if (found.formatVersion !== FORMAT_VERSION) {
    const message = `Snapshot file ${where} has format version ${found.formatVersion}, wanted ${FORMAT_VERSION}`;
    throw new CorruptionError(message, { where });
  }
  const { storeId, trackSizeBytes } = identity;
  if (found.storeId === storeId && found.trackSizeBytes === trackSizeBytes) return;
  const message = `Snapshot file ${where} is of snapshot ${found.storeId} with tracks of ${found.trackSizeBytes} bytes, wanted ${storeId} with ${trackSizeBytes}`;
  throw new CorruptionError(message, { where });
}

/** The checksum of a slot's bytes; of nothing for zeroes. */
export function checksumOfSlot({ storeId }: StoreIdentity, track: number, slot: Buffer): Buffer {
  return checksum(Buffer.from(storeId), numberBytes(track), slot);
}

/** @param atBytes where in the file the header page goes. */
export function encodeBatchHeader(
  identity: StoreIdentity,
  atBytes: number,
  entries: readonly BatchEntry[],
): Buffer {
  const page = Buffer.alloc(PAGE_BYTES);
  BATCH_MAGIC.copy(page);
  page.writeUInt32BE(entries.length, BATCH_MAGIC.length);
  for (const [index, entry] of entries.entries()) {
    const at = BATCH_HEADER_BYTES + index * ENTRY_BYTES;
    page.writeUInt32BE(entry.track, at);
    page.writeUInt32BE(entry.isZero ? KIND_ZEROES : KIND_CONTENT, at + 4);
    entry.checksum.copy(page, at + 8);
  }
  checksumOfHeader(identity, atBytes, page).copy(page, BATCH_FIXED_BYTES);
  return page;
}

/** @returns undefined where the page is no whole batch header of this place. */
export function decodeBatchHeader(
  identity: StoreIdentity,
  atBytes: number,
  page: Buffer,
): readonly BatchEntry[] | undefined {
  if (page.length < PAGE_BYTES || !page.subarray(0, BATCH_MAGIC.length).equals(BATCH_MAGIC)) return undefined;
  const count = page.readUInt32BE(BATCH_MAGIC.length);
  const expected = page.subarray(BATCH_FIXED_BYTES, BATCH_HEADER_BYTES);
  if (count > BATCH_TRACKS_MAX || !checksumOfHeader(identity, atBytes, page).equals(expected))
    return undefined;
  return Array.from({ length: count }, (_, index) => {
    const at = BATCH_HEADER_BYTES + index * ENTRY_BYTES;
    return {
      track: page.readUInt32BE(at),
      isZero: page.readUInt32BE(at + 4) === KIND_ZEROES,
      checksum: page.subarray(at + 8, at + ENTRY_BYTES),
    };
  });
}

/** Over the store, the place in the file, and all of the page but the checksum itself. */
function checksumOfHeader({ storeId }: StoreIdentity, atBytes: number, page: Buffer): Buffer {
  return checksum(
    Buffer.from(storeId),
    numberBytes(atBytes),
    page.subarray(0, BATCH_FIXED_BYTES),
    page.subarray(BATCH_HEADER_BYTES),
  );
}

function numberBytes(value: number): Buffer {
  const bytes = Buffer.alloc(6);
  bytes.writeUIntBE(value, 0, 6);
  return bytes;
}
