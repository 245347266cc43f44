/**
 * Holds what a server answered against what it was asked: a second reading of the stream, simpler than the
 * server's own, for the fuzzer.
 *
 * Requests are read from the client's bytes one after another. Every reply must carry the cookie of one of
 * them, each is answered once, the chunks of a reply fit its request, and the bytes of a read are bytes that
 * the device gave for that range: nothing from outside of the export, nor another client's.
 */

import { assert } from '../base/index.ts';
import {
  COMMAND,
  COMMAND_FLAG,
  decodeRequest,
  decodeSimpleReply,
  emptyRequest,
  readUint64,
  REQUEST_BYTES,
} from './codec.ts';
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_ERROR_BIT,
  type ChunkHeader,
  DATA_OFFSET_BYTES,
  decodeBlockStatus,
  decodeChunkError,
  decodeExtendedChunk,
  decodeExtendedRequest,
  decodeHole,
  decodeStructuredChunk,
  EXTENDED_CHUNK_BYTES,
  EXTENDED_REQUEST_BYTES,
  type ReplyMode,
  STRUCTURED_CHUNK_BYTES,
} from './codec-chunks.ts';

/** A request as it stood in the stream. */
export interface Asked {
  readonly type: number;
  readonly flags: number;
  readonly cookie: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** What follows the header; less than its length says where the stream ends in it. */
  readonly payload: Buffer;
  /** Whether all of its payload is there. */
  readonly isWhole: boolean;
}

/** The requests in a stream, up to the goodbye, the end, or what is no request. */
export function readRequests(stream: Buffer, mode: ReplyMode): Asked[] {
  const isExtended = mode === 'extended';
  const headerBytes = isExtended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
  const asked: Asked[] = [];
  for (let at = 0; at + headerBytes <= stream.length;) {
    const request = emptyRequest();
    const isRequest = isExtended
      ? decodeExtendedRequest(stream, at, request)
      : decodeRequest(stream, at, request);
    if (!isRequest || request.type === COMMAND.disconnect) break;
    const hasPayload = isExtended
      ? (request.flags & COMMAND_FLAG.payloadLength) !== 0
      : request.type === COMMAND.write;
    const start = at + headerBytes;
    const end = start + (hasPayload ? request.lengthBytes : 0);
    const { type, flags, cookieHigh, cookieLow, offsetBytes, lengthBytes } = request;
    const cookie = `${cookieHigh}:${cookieLow}`;
    const payload = stream.subarray(start, Math.min(end, stream.length));
    asked.push({ type, flags, cookie, offsetBytes, lengthBytes, payload, isWhole: end <= stream.length });
    at = end;
  }
  return asked;
}

/** What the device gave. */
export interface GivenRead {
  readonly offsetBytes: number;
  readonly bytes: Buffer;
}

interface Open {
  readonly asked: Asked;
  /** Bytes of a read that have come. */
  coveredBytes: number;
  failed: boolean;
}

export interface AnsweredOptions {
  readonly mode: ReplyMode;
  readonly given: readonly GivenRead[];
  /** Nothing ended the session early: every whole request is answered, and the output ends with a reply. */
  readonly isComplete: boolean;
}

/** Fails where the output is no right answer to the requests; undefined cookies are looked for among all. */
export function assertAnswered(asked: readonly Asked[], output: Buffer, options: AnsweredOptions): void {
  const open = new Map<string, Open[]>();
  for (const request of asked) {
    const alike = open.get(request.cookie) ?? [];
    alike.push({ asked: request, coveredBytes: 0, failed: false });
    open.set(request.cookie, alike);
  }
  // With one cookie for two requests nobody can tell whose bytes follow: that is the client's own fault.
  if ([...open.values()].some((alike) => alike.length > 1)) return;
  let at = 0;
  while (at < output.length) {
    const reply = readReply(output, at, open, options);
    if (reply === undefined) break;
    at = reply.nextBytes;
    if (reply.isLast) open.delete(reply.cookie);
  }
  if (!options.isComplete) return;
  assert(at === output.length, `The output ends within a reply, at ${at} of ${output.length}`);
  const left = [...open.values()].flat().filter((one) => one.asked.isWhole);
  assert(left.length === 0, `No answer came to ${left.map((one) => nameOf(one.asked)).join(', ')}`);
}

interface Reply {
  readonly cookie: string;
  readonly isLast: boolean;
  readonly nextBytes: number;
}

/** Checks one reply, or one chunk of one; undefined where its end is not there. */
function readReply(
  output: Buffer,
  at: number,
  open: ReadonlyMap<string, readonly Open[]>,
  options: AnsweredOptions,
): Reply | undefined {
  if (options.mode === 'simple') return readSimple(output, at, open, options);
  const isExtended = options.mode === 'extended';
  const headerBytes = isExtended ? EXTENDED_CHUNK_BYTES : STRUCTURED_CHUNK_BYTES;
  // A success without content may be a simple reply, which is shorter.
  const isSimple = !isExtended && at + 16 <= output.length && decodeSimpleReply(output, at) !== undefined;
  if (isSimple) return readSimple(output, at, open, options);
  if (at + headerBytes > output.length) return undefined;
  const header = isExtended ? decodeExtendedChunk(output, at) : decodeStructuredChunk(output, at);
  assert(header !== undefined, `No reply begins at byte ${at} of the output`);
  const one = find(open, `${header.cookieHigh}:${header.cookieLow}`);
  const { asked } = one;
  assert(
    header.offsetBytes === undefined || header.offsetBytes === asked.offsetBytes,
    `The reply to ${nameOf(asked)} names offset ${header.offsetBytes}`,
  );
  const start = at + headerBytes;
  const nextBytes = start + header.payloadBytes;
  if (nextBytes > output.length) return undefined;
  checkChunk(one, header, output.subarray(start, nextBytes), options.given);
  const isLast = (header.flags & CHUNK_DONE) !== 0;
  if (isLast && asked.type === COMMAND.read && !one.failed) {
    assert(one.coveredBytes === asked.lengthBytes, `${nameOf(asked)} got ${one.coveredBytes} bytes`);
  }
  return { cookie: asked.cookie, isLast, nextBytes };
}

function readSimple(
  output: Buffer,
  at: number,
  open: ReadonlyMap<string, readonly Open[]>,
  { mode, given }: AnsweredOptions,
): Reply | undefined {
  if (at + 16 > output.length) return undefined;
  const reply = decodeSimpleReply(output, at);
  assert(reply !== undefined, `No reply begins at byte ${at} of the output`);
  const { asked } = find(open, `${reply.cookieHigh}:${reply.cookieLow}`);
  const isRead = asked.type === COMMAND.read && reply.error === 0;
  assert(!isRead || mode === 'simple', `${nameOf(asked)} was answered with a simple reply`);
  const nextBytes = at + 16 + (isRead ? asked.lengthBytes : 0);
  if (nextBytes > output.length) return undefined;
  if (isRead) assertGiven(asked, asked.offsetBytes, output.subarray(at + 16, nextBytes), given);
  return { cookie: asked.cookie, isLast: true, nextBytes };
}

function checkChunk(one: Open, header: ChunkHeader, payload: Buffer, given: readonly GivenRead[]): void {
  const { asked } = one;
  const name = nameOf(asked);
  if ((header.type & CHUNK_ERROR_BIT) !== 0) {
    assert(decodeChunkError(header.type, payload) !== undefined, `The error of ${name} is malformed`);
    one.failed = true;
    return;
  }
  switch (header.type) {
    case CHUNK.none:
      assert(payload.length === 0, `The end of ${name} has a payload`);
      return;
    case CHUNK.offsetData: {
      const data = payload.subarray(DATA_OFFSET_BYTES);
      assertGiven(asked, readUint64(payload, 0), data, given);
      one.coveredBytes += data.length;
      return;
    }
    case CHUNK.offsetHole: {
      const hole = decodeHole(payload);
      assertInside(asked, hole.offsetBytes, hole.lengthBytes);
      one.coveredBytes += hole.lengthBytes;
      return;
    }
    default: {
      assert(asked.type === COMMAND.blockStatus, `${name} was answered with a chunk of type ${header.type}`);
      const status = decodeBlockStatus(header.type, payload);
      assert(status !== undefined && status.extents.length > 0, `The status of ${name} is malformed`);
    }
  }
}

function find(open: ReadonlyMap<string, readonly Open[]>, cookie: string): Open {
  const one = open.get(cookie)?.[0];
  assert(one !== undefined, `A reply carries the cookie ${cookie}, which no open request has`);
  return one;
}

function assertInside(asked: Asked, offsetBytes: number, lengthBytes: number): void {
  const from = offsetBytes - asked.offsetBytes;
  const isInside = asked.type === COMMAND.read && from >= 0 && from + lengthBytes <= asked.lengthBytes;
  assert(isInside, `${nameOf(asked)} was answered with ${offsetBytes}+${lengthBytes}`);
}

/** The bytes must be what the device gave for them, at one time or another. */
function assertGiven(asked: Asked, offsetBytes: number, bytes: Buffer, given: readonly GivenRead[]): void {
  assertInside(asked, offsetBytes, bytes.length);
  const isGiven = given.some((read) => {
    const from = offsetBytes - read.offsetBytes;
    const to = from + bytes.length;
    return from >= 0 && to <= read.bytes.length && bytes.equals(read.bytes.subarray(from, to));
  });
  assert(
    isGiven || bytes.length === 0,
    `${nameOf(asked)} got bytes at ${offsetBytes} that the device did not give`,
  );
}

function nameOf({ type, cookie, offsetBytes, lengthBytes }: Asked): string {
  return `command ${type} on ${offsetBytes}+${lengthBytes} with cookie ${cookie}`;
}
