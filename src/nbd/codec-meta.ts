/**
 * The bytes of metadata contexts in the handshake: what NBD_OPT_LIST_META_CONTEXT and
 * NBD_OPT_SET_META_CONTEXT ask, and one context of the answer.
 *
 * As in `codec.ts`, decoders answer `undefined` for bytes that are no such message and never throw.
 *
 * Source: NBD proto.md § Option types, § Option reply types, NBD_REP_META_CONTEXT.
 */

import { assert } from '../base/index.ts';
import { decodeString } from './codec.ts';

/** The longest string of the protocol (NBD proto.md § Conventions). */
const STRING_BYTES_MAX = 4096;

/** The data of both options: an export and what is wanted of it. */
export interface MetaContextRequest {
  readonly exportName: string;
  readonly queries: readonly string[];
}

export function encodeMetaContextRequest(request: MetaContextRequest): Buffer {
  const strings = [request.exportName, ...request.queries].map((text) => Buffer.from(text));
  const parts = strings.flatMap((text, index) => {
    const length = uint32(text.length);
    return index === 0 ? [length, text, uint32(request.queries.length)] : [length, text];
  });
  return Buffer.concat(parts);
}

/** Undefined where lengths do not add up to the data, or a text is no string of the protocol. */
export function decodeMetaContextRequest(data: Buffer): MetaContextRequest | undefined {
  const name = takeString(data, 0);
  if (name === undefined || data.length < name.endBytes + 4) return undefined;
  const count = data.readUInt32BE(name.endBytes);
  let at = name.endBytes + 4;
  // Each query has four bytes at least: the count cannot make this long.
  if (count > (data.length - at) / 4) return undefined;
  const queries: string[] = [];
  for (let index = 0; index < count; index += 1) {
    const query = takeString(data, at);
    if (query === undefined) return undefined;
    queries.push(query.text);
    at = query.endBytes;
  }
  return at === data.length ? { exportName: name.text, queries } : undefined;
}

/** The data of NBD_REP_META_CONTEXT. */
export interface MetaContextEntry {
  readonly id: number;
  readonly name: string;
}

export function encodeMetaContextEntry(entry: MetaContextEntry): Buffer {
  const name = Buffer.from(entry.name);
  assert(
    name.length <= STRING_BYTES_MAX,
    `Context name ${entry.name} is longer than ${STRING_BYTES_MAX} bytes`,
  );
  return Buffer.concat([uint32(entry.id), name]);
}

export function decodeMetaContextEntry(data: Buffer): MetaContextEntry | undefined {
  if (data.length < 4) return undefined;
  const name = decodeString(data.subarray(4));
  return name === undefined ? undefined : { id: data.readUInt32BE(0), name };
}

function takeString(data: Buffer, at: number): { text: string; endBytes: number } | undefined {
  if (data.length < at + 4) return undefined;
  const endBytes = at + 4 + data.readUInt32BE(at);
  if (endBytes > data.length || endBytes - at - 4 > STRING_BYTES_MAX) return undefined;
  const text = decodeString(data.subarray(at + 4, endBytes));
  return text === undefined ? undefined : { text, endBytes };
}

function uint32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value, 0);
  return buffer;
}
