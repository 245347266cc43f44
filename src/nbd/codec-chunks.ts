/**
 * The bytes of structured replies and extended headers: requests with 64-bit lengths, chunks of replies and
 * what is in them.
 *
 *     structured chunk   magic flags type cookie length32           payload     20 bytes
 *     extended chunk     magic flags type cookie offset64 length64  payload     32 bytes
 *     extended request   magic flags type cookie offset64 length64  [payload]   32 bytes
 *
 * Pure, as `codec.ts` is: decoders take what a peer sent and answer `undefined` or `false` for bytes that are no
 * such message; encoders assert.
 *
 * Source: NBD proto.md § Structured reply chunk message, § Structured reply types; of the branch
 * `extension-ext-header` § Request message, § Extended reply chunk message, § Request types,
 * NBD_CMD_BLOCK_STATUS.
 */

import { assert } from '../base/index.ts';
import {
  decodeRequestStart,
  decodeString,
  encodeRequestStart,
  readUint64,
  type ReplyAddress,
  type Request,
  type RequestToSend,
  writeUint64,
} from './codec.ts';

/** How the replies of a session look. Each is a superset of the one before in what it can say. */
export type ReplyMode = 'simple' | 'structured' | 'extended';

/** NBD proto.md § Structured reply types. Errors have bit 15 set. */
export const CHUNK = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  blockStatusExtended: 6,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

export const CHUNK_ERROR_BIT = 0x8000;
/** NBD proto.md § Structured reply flags: the last chunk of a reply. */
export const CHUNK_DONE = 1;

/** The flags of the context `base:allocation`. */
export const ALLOCATION_FLAG = { hole: 1, zero: 2 } as const;

export const EXTENDED_REQUEST_BYTES = 32;
export const STRUCTURED_CHUNK_BYTES = 20;
export const EXTENDED_CHUNK_BYTES = 32;
/** What precedes the data of NBD_REPLY_TYPE_OFFSET_DATA in its payload. */
export const DATA_OFFSET_BYTES = 8;

const EXTENDED_REQUEST_MAGIC = 0x21e4_1c71;
export const STRUCTURED_CHUNK_MAGIC = 0x668e_33ef;
export const EXTENDED_CHUNK_MAGIC = 0x6e8a_278c;

const UINT32_MAX = 2 ** 32 - 1;

/** Decodes into `target`. @returns false where the magic is wrong: the stream is lost. */
export function decodeExtendedRequest(buffer: Buffer, at: number, target: Request): boolean {
  if (buffer.readUInt32BE(at) !== EXTENDED_REQUEST_MAGIC) return false;
  decodeRequestStart(buffer, at, target);
  target.lengthBytes = readUint64(buffer, at + 24);
  return true;
}

export function encodeExtendedRequest(request: RequestToSend): Buffer {
  const buffer = Buffer.allocUnsafe(EXTENDED_REQUEST_BYTES);
  encodeRequestStart(buffer, EXTENDED_REQUEST_MAGIC, request);
  writeUint64(buffer, request.lengthBytes, 24);
  return buffer;
}

/** Writes the header of a structured chunk: 20 bytes at `at`. */
export function writeStructuredChunk(
  buffer: Buffer,
  at: number,
  kind: { readonly flags: number; readonly type: number },
  to: ReplyAddress,
  payloadBytes: number,
): void {
  buffer.writeUInt32BE(STRUCTURED_CHUNK_MAGIC, at);
  buffer.writeUInt16BE(kind.flags, at + 4);
  buffer.writeUInt16BE(kind.type, at + 6);
  buffer.writeUInt32BE(to.cookieHigh, at + 8);
  buffer.writeUInt32BE(to.cookieLow, at + 12);
  buffer.writeUInt32BE(payloadBytes, at + 16);
}

/** Writes the header of an extended chunk: 32 bytes at `at`. */
export function writeExtendedChunk(
  buffer: Buffer,
  at: number,
  kind: { readonly flags: number; readonly type: number },
  to: ReplyAddress,
  payloadBytes: number,
): void {
  buffer.writeUInt32BE(EXTENDED_CHUNK_MAGIC, at);
  buffer.writeUInt16BE(kind.flags, at + 4);
  buffer.writeUInt16BE(kind.type, at + 6);
  buffer.writeUInt32BE(to.cookieHigh, at + 8);
  buffer.writeUInt32BE(to.cookieLow, at + 12);
  buffer.writeUInt32BE(to.offsetHigh, at + 16);
  buffer.writeUInt32BE(to.offsetLow, at + 20);
  // Payloads are buffers of ours, far below 4 GiB: the branch says that the upper half is never used.
  buffer.writeUInt32BE(0, at + 24);
  buffer.writeUInt32BE(payloadBytes, at + 28);
}

/** The header of a chunk of either form. */
export interface ChunkHeader {
  readonly flags: number;
  readonly type: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  /** Of the request; extended chunks only. `Infinity` beyond the safe integers. */
  readonly offsetBytes: number | undefined;
  /** `Infinity` beyond the safe integers. */
  readonly payloadBytes: number;
}

export function decodeStructuredChunk(buffer: Buffer, at: number): ChunkHeader | undefined {
  if (buffer.readUInt32BE(at) !== STRUCTURED_CHUNK_MAGIC) return undefined;
  return { ...chunkStart(buffer, at), offsetBytes: undefined, payloadBytes: buffer.readUInt32BE(at + 16) };
}

export function decodeExtendedChunk(buffer: Buffer, at: number): ChunkHeader | undefined {
  if (buffer.readUInt32BE(at) !== EXTENDED_CHUNK_MAGIC) return undefined;
  const offsetBytes = readUint64(buffer, at + 16);
  return { ...chunkStart(buffer, at), offsetBytes, payloadBytes: readUint64(buffer, at + 24) };
}

function chunkStart(
  buffer: Buffer,
  at: number,
): Pick<ChunkHeader, 'flags' | 'type' | 'cookieHigh' | 'cookieLow'> {
  return {
    flags: buffer.readUInt16BE(at + 4),
    type: buffer.readUInt16BE(at + 6),
    cookieHigh: buffer.readUInt32BE(at + 8),
    cookieLow: buffer.readUInt32BE(at + 12),
  };
}

/** The payload of NBD_REPLY_TYPE_OFFSET_HOLE. */
export interface Hole {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export function encodeHole(hole: Hole): Buffer {
  const buffer = Buffer.allocUnsafe(12);
  writeUint64(buffer, hole.offsetBytes, 0);
  buffer.writeUInt32BE(hole.lengthBytes, 8);
  return buffer;
}

/** The caller has made sure of the 12 bytes. */
export function decodeHole(payload: Buffer): Hole {
  return { offsetBytes: readUint64(payload, 0), lengthBytes: payload.readUInt32BE(8) };
}

/** What an error chunk says. */
export interface ChunkError {
  readonly error: number;
  readonly message: string;
  /** Where it failed, in the export; NBD_REPLY_TYPE_ERROR_OFFSET only. */
  readonly offsetBytes: number | undefined;
}

/** Longer messages are cut: the reply of an error should not cost more than the request. */
const MESSAGE_BYTES_MAX = 512;
const encoder = new TextEncoder();

/** The payload of NBD_REPLY_TYPE_ERROR, or of NBD_REPLY_TYPE_ERROR_OFFSET where there is an offset. */
export function encodeChunkError(said: ChunkError): Buffer {
  const message = new Uint8Array(MESSAGE_BYTES_MAX);
  // Never cuts a character, and a NUL would end the string early for the other side.
  const { written } = encoder.encodeInto(said.message.replaceAll('\0', ' '), message);
  const buffer = Buffer.alloc(6 + written + (said.offsetBytes === undefined ? 0 : 8));
  buffer.writeUInt32BE(said.error, 0);
  buffer.writeUInt16BE(written, 4);
  buffer.set(message.subarray(0, written), 6);
  if (said.offsetBytes !== undefined) writeUint64(buffer, said.offsetBytes, 6 + written);
  return buffer;
}

/**
 * Undefined where the message does not fit into the payload. An unknown type of error is one without an
 * offset; a message that is no UTF-8 is taken as none.
 */
export function decodeChunkError(type: number, payload: Buffer): ChunkError | undefined {
  const hasOffset = type === CHUNK.errorOffset;
  if (payload.length < (hasOffset ? 14 : 6)) return undefined;
  const messageBytes = payload.readUInt16BE(4);
  const endBytes = 6 + messageBytes;
  if (endBytes + (hasOffset ? 8 : 0) > payload.length) return undefined;
  return {
    error: payload.readUInt32BE(0),
    message: decodeString(payload.subarray(6, endBytes)) ?? '',
    offsetBytes: hasOffset ? readUint64(payload, endBytes) : undefined,
  };
}

/** A run of bytes that a metadata context says the same of. */
export interface StatusExtent {
  readonly lengthBytes: number;
  /** What they mean is the context's affair. `Infinity` where the wire held more than a safe integer. */
  readonly flags: number;
}

/** The payload of NBD_REPLY_TYPE_BLOCK_STATUS. */
export interface BlockStatus {
  readonly contextId: number;
  readonly extents: readonly StatusExtent[];
}

export function encodeBlockStatus(status: BlockStatus): Buffer {
  const { extents } = status;
  assert(extents.length > 0, 'A block status has no extents');
  const buffer = Buffer.allocUnsafe(4 + 8 * extents.length);
  buffer.writeUInt32BE(status.contextId, 0);
  let at = 4;
  for (const { lengthBytes, flags } of extents) {
    assert(
      lengthBytes > 0 && lengthBytes <= UINT32_MAX,
      `Extent of ${lengthBytes} bytes is no positive uint32`,
    );
    buffer.writeUInt32BE(lengthBytes, at);
    buffer.writeUInt32BE(flags, at + 4);
    at += 8;
  }
  return buffer;
}

/** The payload of NBD_REPLY_TYPE_BLOCK_STATUS_EXT. */
export function encodeExtendedBlockStatus(status: BlockStatus): Buffer {
  const { extents } = status;
  assert(extents.length > 0, 'A block status has no extents');
  const buffer = Buffer.allocUnsafe(8 + 16 * extents.length);
  buffer.writeUInt32BE(status.contextId, 0);
  buffer.writeUInt32BE(extents.length, 4);
  let at = 8;
  for (const { lengthBytes, flags } of extents) {
    assert(lengthBytes > 0, `Extent of ${lengthBytes} bytes is not positive`);
    writeUint64(buffer, lengthBytes, at);
    writeUint64(buffer, flags, at + 8);
    at += 16;
  }
  return buffer;
}

/** Undefined where the lengths do not fit, there is no extent, or one is empty. */
export function decodeBlockStatus(type: number, payload: Buffer): BlockStatus | undefined {
  const isExtended = type === CHUNK.blockStatusExtended;
  const [startBytes, extentBytes] = isExtended ? [8, 16] : [4, 8];
  const count = (payload.length - startBytes) / extentBytes;
  if (!Number.isInteger(count) || count < 1) return undefined;
  if (isExtended && payload.readUInt32BE(4) !== count) return undefined;
  const extents: StatusExtent[] = [];
  for (let at = startBytes; at < payload.length; at += extentBytes) {
    const lengthBytes = isExtended ? readUint64(payload, at) : payload.readUInt32BE(at);
    const flags = isExtended ? readUint64(payload, at + 8) : payload.readUInt32BE(at + 4);
    if (lengthBytes === 0) return undefined;
    extents.push({ lengthBytes, flags });
  }
  return { contextId: payload.readUInt32BE(0), extents };
}

/** The payload of a block status request that names the contexts it wants; extended headers only. */
export interface StatusFilter {
  /** `Infinity` where the wire held more than a safe integer. */
  readonly lengthBytes: number;
  readonly contextIds: readonly number[];
}

export function encodeStatusFilter(filter: StatusFilter): Buffer {
  const buffer = Buffer.alloc(8 + 4 * filter.contextIds.length);
  writeUint64(buffer, filter.lengthBytes, 0);
  for (const [index, id] of filter.contextIds.entries()) buffer.writeUInt32BE(id, 8 + 4 * index);
  return buffer;
}

export function decodeStatusFilter(payload: Buffer): StatusFilter | undefined {
  if (payload.length < 8 || payload.length % 4 !== 0) return undefined;
  const contextIds: number[] = [];
  for (let at = 8; at < payload.length; at += 4) contextIds.push(payload.readUInt32BE(at));
  return { lengthBytes: readUint64(payload, 0), contextIds };
}
