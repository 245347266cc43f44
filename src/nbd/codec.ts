/**
 * The bytes of the NBD protocol: its constants, and functions that encode and decode each message.
 *
 * Everything here is pure: Buffers in, values out, no state and no sockets. All integers are in network
 * byte order. Offsets and sizes are u64 on the wire and safe integers here: one beyond 2^53 - 1 decodes to
 * `Infinity`, which fails every comparison with a size, so that no caller can forget the check. Cookies are
 * opaque; they travel as two uint32, which cost no allocation.
 *
 * Decoders take what a peer sent: they answer `undefined` or `false` for bytes that are no such message and
 * never throw. Encoders take what this program made and assert it.
 *
 * The messages of metadata contexts are in `codec-meta.ts`, those of structured replies and extended headers
 * in `codec-chunks.ts`; their constants are here.
 *
 * Source: NBD proto.md § Protocol phases, § Values; for extended headers the same text on the branch
 * `extension-ext-header`.
 */

import { assert } from '../base/index.ts';

/** NBD proto.md § Handshake flags. */
export const HANDSHAKE_FLAG = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** NBD proto.md § Client flags. */
export const CLIENT_FLAG = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** NBD proto.md § Transmission flags. */
export const TRANSMISSION_FLAG = {
  hasFlags: 1,
  readOnly: 2,
  sendFlush: 4,
  sendFua: 8,
  rotational: 16,
  sendTrim: 32,
  sendWriteZeroes: 64,
  sendDf: 128,
  canMultiConn: 256,
  sendResize: 512,
  sendCache: 1024,
  sendFastZero: 2048,
  /** Extended headers only: block status may name the contexts it wants. */
  blockStatusPayload: 4096,
} as const;

/** NBD proto.md § Option types. */
export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  peekExport: 4,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

/** NBD proto.md § Option reply types. Errors have bit 31 set. */
export const OPTION_REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errorUnsupported: 0x8000_0001,
  errorPolicy: 0x8000_0002,
  errorInvalid: 0x8000_0003,
  errorPlatform: 0x8000_0004,
  errorTlsRequired: 0x8000_0005,
  errorUnknown: 0x8000_0006,
  errorShutdown: 0x8000_0007,
  errorBlockSizeRequired: 0x8000_0008,
  errorTooBig: 0x8000_0009,
  errorExtendedHeadersRequired: 0x8000_000a,
} as const;

/** NBD proto.md § Option reply types, NBD_REP_INFO. */
export const INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

/** NBD proto.md § Request types. */
export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
  /** Of the branch `extension-resize`; its number is reserved in the text. */
  resize: 8,
} as const;

/** NBD proto.md § Command flags. `payloadLength` exists with extended headers only. */
export const COMMAND_FLAG = {
  fua: 1,
  noHole: 2,
  df: 4,
  requestOne: 8,
  fastZero: 16,
  payloadLength: 32,
} as const;

/** NBD proto.md § Error values. */
export const NBD_ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export const GREETING_BYTES = 18;
export const CLIENT_FLAGS_BYTES = 4;
export const OPTION_HEADER_BYTES = 16;
export const OPTION_REPLY_HEADER_BYTES = 20;
/** Zeroes that close an NBD_OPT_EXPORT_NAME reply unless the client asked for none. */
export const EXPORT_NAME_ZEROES_BYTES = 124;
export const EXPORT_NAME_REPLY_BYTES = 10;
export const REQUEST_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;

// 64-bit magic numbers, as their two halves.
const INIT_MAGIC = [0x4e42_444d, 0x4147_4943] as const;
const OPTION_MAGIC = [0x4948_4156, 0x454f_5054] as const;
const OPTION_REPLY_MAGIC = [0x0003_e889, 0x0455_65a9] as const;
const REQUEST_MAGIC = 0x2560_9513;
export const SIMPLE_REPLY_MAGIC = 0x6744_6698;

const UINT32 = 2 ** 32;
const UINT32_MAX = UINT32 - 1;

/** A u64 as a safe integer, or `Infinity` where it is beyond them. */
export function readUint64(buffer: Buffer, at: number): number {
  return joinUint64(buffer.readUInt32BE(at), buffer.readUInt32BE(at + 4));
}

function joinUint64(high: number, low: number): number {
  const value = high * UINT32 + low;
  return value <= Number.MAX_SAFE_INTEGER ? value : Number.POSITIVE_INFINITY;
}

export function writeUint64(buffer: Buffer, value: number, at: number): void {
  assert(Number.isSafeInteger(value) && value >= 0, `Value ${value} is no unsigned 64-bit integer`);
  buffer.writeUInt32BE(Math.floor(value / UINT32), at);
  buffer.writeUInt32BE(value % UINT32, at + 4);
}

function hasMagic(buffer: Buffer, at: number, magic: readonly [number, number]): boolean {
  return buffer.readUInt32BE(at) === magic[0] && buffer.readUInt32BE(at + 4) === magic[1];
}

function writeMagic(buffer: Buffer, at: number, magic: readonly [number, number]): void {
  buffer.writeUInt32BE(magic[0], at);
  buffer.writeUInt32BE(magic[1], at + 4);
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A string of the protocol: UTF-8 without NUL. Undefined for anything else (NBD proto.md § Conventions). */
export function decodeString(bytes: Buffer): string | undefined {
  if (bytes.includes(0)) return undefined;
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

// ---------------------------------------------------------------------------------------------------
// Handshake: NBD proto.md § Newstyle negotiation, § Fixed newstyle negotiation.

/** The server's first bytes. */
export function encodeGreeting(handshakeFlags: number): Buffer {
  const buffer = Buffer.alloc(GREETING_BYTES);
  writeMagic(buffer, 0, INIT_MAGIC);
  writeMagic(buffer, 8, OPTION_MAGIC);
  buffer.writeUInt16BE(handshakeFlags, 16);
  return buffer;
}

/** @returns the handshake flags, or undefined where the peer is no newstyle NBD server. */
export function decodeGreeting(buffer: Buffer): number | undefined {
  if (!hasMagic(buffer, 0, INIT_MAGIC) || !hasMagic(buffer, 8, OPTION_MAGIC)) return undefined;
  return buffer.readUInt16BE(16);
}

export function encodeClientFlags(flags: number): Buffer {
  const buffer = Buffer.alloc(CLIENT_FLAGS_BYTES);
  buffer.writeUInt32BE(flags, 0);
  return buffer;
}

export interface OptionHeader {
  readonly option: number;
  readonly lengthBytes: number;
}

export function encodeOption(option: number, data: Buffer): Buffer {
  const header = Buffer.alloc(OPTION_HEADER_BYTES);
  writeMagic(header, 0, OPTION_MAGIC);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

/** Undefined where the magic is wrong: the stream cannot be followed any further. */
export function decodeOptionHeader(buffer: Buffer): OptionHeader | undefined {
  if (!hasMagic(buffer, 0, OPTION_MAGIC)) return undefined;
  return { option: buffer.readUInt32BE(8), lengthBytes: buffer.readUInt32BE(12) };
}

export interface OptionReplyHeader {
  readonly option: number;
  readonly type: number;
  readonly lengthBytes: number;
}

export function encodeOptionReply(option: number, type: number, data: Buffer): Buffer {
  const header = Buffer.alloc(OPTION_REPLY_HEADER_BYTES);
  writeMagic(header, 0, OPTION_REPLY_MAGIC);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(type, 12);
  header.writeUInt32BE(data.length, 16);
  return Buffer.concat([header, data]);
}

export function decodeOptionReplyHeader(buffer: Buffer): OptionReplyHeader | undefined {
  if (!hasMagic(buffer, 0, OPTION_REPLY_MAGIC)) return undefined;
  return {
    option: buffer.readUInt32BE(8),
    type: buffer.readUInt32BE(12),
    lengthBytes: buffer.readUInt32BE(16),
  };
}

export interface ExportBasics {
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
}

/** The answer to NBD_OPT_EXPORT_NAME, which has no reply header. */
export function encodeExportNameReply(basics: ExportBasics, zeroes: boolean): Buffer {
  const buffer = Buffer.alloc(EXPORT_NAME_REPLY_BYTES + (zeroes ? EXPORT_NAME_ZEROES_BYTES : 0));
  writeUint64(buffer, basics.sizeBytes, 0);
  buffer.writeUInt16BE(basics.transmissionFlags, 8);
  return buffer;
}

export function decodeExportNameReply(buffer: Buffer): ExportBasics {
  return { sizeBytes: readUint64(buffer, 0), transmissionFlags: buffer.readUInt16BE(8) };
}

/** The data of NBD_OPT_INFO and NBD_OPT_GO. */
export interface InfoRequest {
  readonly name: Buffer;
  readonly infos: readonly number[];
}

export function encodeInfoRequest(request: InfoRequest): Buffer {
  const { name, infos } = request;
  const buffer = Buffer.alloc(4 + name.length + 2 + 2 * infos.length);
  buffer.writeUInt32BE(name.length, 0);
  name.copy(buffer, 4);
  buffer.writeUInt16BE(infos.length, 4 + name.length);
  for (const [index, info] of infos.entries()) {
    buffer.writeUInt16BE(info, 6 + name.length + 2 * index);
  }
  return buffer;
}

/** Undefined where the lengths inside the data do not add up to the data. */
export function decodeInfoRequest(data: Buffer): InfoRequest | undefined {
  if (data.length < 6) return undefined;
  const nameBytes = data.readUInt32BE(0);
  if (nameBytes > data.length - 6) return undefined;
  const infoCount = data.readUInt16BE(4 + nameBytes);
  if (data.length !== 6 + nameBytes + 2 * infoCount) return undefined;
  const infos: number[] = [];
  for (let index = 0; index < infoCount; index += 1) {
    infos.push(data.readUInt16BE(6 + nameBytes + 2 * index));
  }
  return { name: data.subarray(4, 4 + nameBytes), infos };
}

/** One NBD_REP_INFO. Types that are not known decode to `other`, which a client ignores. */
export type InfoReply =
  | ({ readonly kind: 'export' } & ExportBasics)
  | { readonly kind: 'name' | 'description'; readonly text: string }
  | {
      readonly kind: 'block-size';
      readonly minimumBytes: number;
      readonly preferredBytes: number;
      readonly maximumPayloadBytes: number;
    }
  | { readonly kind: 'other'; readonly type: number };

export function encodeInfoReply(info: Exclude<InfoReply, { kind: 'other' }>): Buffer {
  switch (info.kind) {
    case 'export': {
      const buffer = Buffer.alloc(12);
      buffer.writeUInt16BE(INFO.export, 0);
      writeUint64(buffer, info.sizeBytes, 2);
      buffer.writeUInt16BE(info.transmissionFlags, 10);
      return buffer;
    }
    case 'name':
    case 'description': {
      const type = Buffer.alloc(2);
      type.writeUInt16BE(INFO[info.kind], 0);
      return Buffer.concat([type, Buffer.from(info.text)]);
    }
    case 'block-size': {
      const buffer = Buffer.alloc(14);
      buffer.writeUInt16BE(INFO.blockSize, 0);
      buffer.writeUInt32BE(info.minimumBytes, 2);
      buffer.writeUInt32BE(info.preferredBytes, 6);
      buffer.writeUInt32BE(info.maximumPayloadBytes, 10);
      return buffer;
    }
  }
}

/** Undefined where the length does not fit the type or a text is no string of the protocol. */
export function decodeInfoReply(data: Buffer): InfoReply | undefined {
  if (data.length < 2) return undefined;
  const type = data.readUInt16BE(0);
  switch (type) {
    case INFO.export:
      if (data.length !== 12) return undefined;
      return { kind: 'export', sizeBytes: readUint64(data, 2), transmissionFlags: data.readUInt16BE(10) };
    case INFO.name:
    case INFO.description: {
      const text = decodeString(data.subarray(2));
      if (text === undefined) return undefined;
      return { kind: type === INFO.name ? 'name' : 'description', text };
    }
    case INFO.blockSize:
      if (data.length !== 14) return undefined;
      return {
        kind: 'block-size',
        minimumBytes: data.readUInt32BE(2),
        preferredBytes: data.readUInt32BE(6),
        maximumPayloadBytes: data.readUInt32BE(10),
      };
    default:
      return { kind: 'other', type };
  }
}

/** One entry of a list of exports. */
export interface ServerEntry {
  readonly name: string;
  readonly description: string;
}

/** The data of NBD_REP_SERVER. */
export function encodeServerEntry(entry: ServerEntry): Buffer {
  const name = Buffer.from(entry.name);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(name.length, 0);
  return Buffer.concat([length, name, Buffer.from(entry.description)]);
}

export function decodeServerEntry(data: Buffer): ServerEntry | undefined {
  if (data.length < 4) return undefined;
  const nameBytes = data.readUInt32BE(0);
  if (nameBytes > data.length - 4) return undefined;
  const name = decodeString(data.subarray(4, 4 + nameBytes));
  const description = decodeString(data.subarray(4 + nameBytes));
  if (name === undefined || description === undefined) return undefined;
  return { name, description };
}

// ---------------------------------------------------------------------------------------------------
// Transmission: NBD proto.md § Request message, § Simple reply message.

/** A request's header. Mutable, so that the server decodes every request into one object. */
export interface Request {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  /** `Infinity` where the wire held more than a safe integer. */
  offsetBytes: number;
  /** The same as it stood on the wire, for replies that repeat it; set by decoding, not encoded. */
  offsetHigh: number;
  offsetLow: number;
  /** `Infinity` where the wire held more than a safe integer. */
  lengthBytes: number;
}

export function emptyRequest(): Request {
  return {
    flags: 0,
    type: 0,
    cookieHigh: 0,
    cookieLow: 0,
    offsetBytes: 0,
    offsetHigh: 0,
    offsetLow: 0,
    lengthBytes: 0,
  };
}

/** What both forms of a request header have in common, from byte 4 to 23. */
export function decodeRequestStart(buffer: Buffer, at: number, target: Request): void {
  target.flags = buffer.readUInt16BE(at + 4);
  target.type = buffer.readUInt16BE(at + 6);
  target.cookieHigh = buffer.readUInt32BE(at + 8);
  target.cookieLow = buffer.readUInt32BE(at + 12);
  target.offsetHigh = buffer.readUInt32BE(at + 16);
  target.offsetLow = buffer.readUInt32BE(at + 20);
  target.offsetBytes = joinUint64(target.offsetHigh, target.offsetLow);
}

/** What to encode: where a request was decoded from does not matter. */
export type RequestToSend = Readonly<Omit<Request, 'offsetHigh' | 'offsetLow'>>;

export function encodeRequestStart(buffer: Buffer, magic: number, request: RequestToSend): void {
  buffer.writeUInt32BE(magic, 0);
  buffer.writeUInt16BE(request.flags, 4);
  buffer.writeUInt16BE(request.type, 6);
  buffer.writeUInt32BE(request.cookieHigh, 8);
  buffer.writeUInt32BE(request.cookieLow, 12);
  writeUint64(buffer, request.offsetBytes, 16);
}

/** Decodes into `target`. @returns false where the magic is wrong: the stream is lost. */
export function decodeRequest(buffer: Buffer, at: number, target: Request): boolean {
  if (buffer.readUInt32BE(at) !== REQUEST_MAGIC) return false;
  decodeRequestStart(buffer, at, target);
  target.lengthBytes = buffer.readUInt32BE(at + 24);
  return true;
}

export function encodeRequest(request: RequestToSend): Buffer {
  assert(request.lengthBytes <= UINT32_MAX, `Length ${request.lengthBytes} is no unsigned 32-bit integer`);
  const buffer = Buffer.allocUnsafe(REQUEST_BYTES);
  encodeRequestStart(buffer, REQUEST_MAGIC, request);
  buffer.writeUInt32BE(request.lengthBytes, 24);
  return buffer;
}

export interface SimpleReply {
  readonly error: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

/** What a reply repeats of its request: the cookie and, with extended headers, the offset. */
export interface ReplyAddress {
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offsetHigh: number;
  readonly offsetLow: number;
}

/** Writes the 16 bytes of a simple reply at `at`. */
export function writeSimpleReply(
  buffer: Buffer,
  at: number,
  error: number,
  to: Pick<ReplyAddress, 'cookieHigh' | 'cookieLow'>,
): void {
  buffer.writeUInt32BE(SIMPLE_REPLY_MAGIC, at);
  buffer.writeUInt32BE(error, at + 4);
  buffer.writeUInt32BE(to.cookieHigh, at + 8);
  buffer.writeUInt32BE(to.cookieLow, at + 12);
}

export function decodeSimpleReply(buffer: Buffer, at: number): SimpleReply | undefined {
  if (buffer.readUInt32BE(at) !== SIMPLE_REPLY_MAGIC) return undefined;
  return {
    error: buffer.readUInt32BE(at + 4),
    cookieHigh: buffer.readUInt32BE(at + 8),
    cookieLow: buffer.readUInt32BE(at + 12),
  };
}
