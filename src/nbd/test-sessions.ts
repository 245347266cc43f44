/**
 * Recorded NBD sessions, for the fuzzer: what a client and a server said to each other, in order.
 *
 * A session is a file in `fixtures/nbd-sessions/`, whose README says how each was recorded. It is a sequence
 * of segments:
 *
 *     1 byte 'C' (client to server) or 'S' (server to client)   u32 BE length   that many bytes
 *
 * Neighbouring segments of one direction are joined when recorded, so the segments are the turns of a talk.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { assert } from '../base/index.ts';
import { type NbdClient, type NbdConnectOptions } from './client.ts';

export const SESSIONS_DIRECTORY = fileURLToPath(new URL('../../fixtures/nbd-sessions/', import.meta.url));
/** The export of all sessions: large enough for a filesystem, small enough to compare often. */
export const SESSION_EXPORT = { name: 'vol', sizeBytes: 1024 * 1024 } as const;
/** Of a recorded session in a file; later segments are left out. */
export const SESSION_BYTES_MAX = 48 * 1024;

const SEGMENT_HEADER_BYTES = 5;
const FROM_CLIENT = 0x43;
const FROM_SERVER = 0x53;

export interface Segment {
  readonly from: 'client' | 'server';
  readonly bytes: Buffer;
}

export interface Session {
  readonly name: string;
  readonly segments: readonly Segment[];
}

/** Joins neighbours of one direction and cuts the session where it grows too long. */
export function encodeSegments(segments: readonly Segment[]): Buffer {
  const joined: { from: Segment['from']; bytes: Buffer }[] = [];
  for (const { from, bytes } of segments) {
    const last = joined.at(-1);
    if (last?.from === from) last.bytes = Buffer.concat([last.bytes, bytes]);
    else joined.push({ from, bytes });
  }
  const parts: Buffer[] = [];
  let leftBytes = SESSION_BYTES_MAX;
  for (const { from, bytes } of joined) {
    const kept = bytes.subarray(0, leftBytes - SEGMENT_HEADER_BYTES);
    const header = Buffer.alloc(SEGMENT_HEADER_BYTES);
    header.writeUInt8(from === 'client' ? FROM_CLIENT : FROM_SERVER, 0);
    header.writeUInt32BE(kept.length, 1);
    parts.push(header, kept);
    leftBytes -= SEGMENT_HEADER_BYTES + kept.length;
    if (kept.length < bytes.length || leftBytes <= SEGMENT_HEADER_BYTES) break;
  }
  return Buffer.concat(parts);
}

export function decodeSegments(file: Buffer): Segment[] {
  const segments: Segment[] = [];
  for (let at = 0; at < file.length;) {
    const tag = file.readUInt8(at);
    assert(tag === FROM_CLIENT || tag === FROM_SERVER, `A segment begins with byte ${tag}`);
    const start = at + SEGMENT_HEADER_BYTES;
    const end = start + file.readUInt32BE(at + 1);
    assert(end <= file.length, `A segment ends at byte ${end} of ${file.length}`);
    segments.push({ from: tag === FROM_CLIENT ? 'client' : 'server', bytes: file.subarray(start, end) });
    at = end;
  }
  return segments;
}

/** All recorded sessions, in the order of their names. */
export function readSessions(): readonly Session[] {
  const files = readdirSync(SESSIONS_DIRECTORY).filter((file) => file.endsWith('.session'));
  return files.toSorted().map((file) => ({
    name: file.slice(0, -'.session'.length),
    segments: decodeSegments(readFileSync(SESSIONS_DIRECTORY + file)),
  }));
}

/** All that one side said. */
export function bytesFrom(session: Session, from: Segment['from']): Buffer {
  return Buffer.concat(session.segments.flatMap((segment) => (segment.from === from ? [segment.bytes] : [])));
}

/** A client of this room in one mode, as it was recorded and is played again. */
export interface OwnClient {
  readonly name: string;
  readonly options: NbdConnectOptions;
}

const contexts = ['base:allocation', `cowbell:changed-since:${'0'.repeat(32)}`];
export const OWN_CLIENTS: readonly OwnClient[] = [
  { name: 'own-simple', options: { structuredReplies: false, extendedHeaders: false } },
  { name: 'own-structured', options: { extendedHeaders: false, contexts } },
  { name: 'own-extended', options: { contexts } },
];

/**
 * What our own client is made to do: the same each time, so that the cookies in a recorded reply are those of
 * the requests made when it is played. All are asked at once; the promises are returned, not awaited. What the
 * server does not offer is left out.
 */
export function playScript(client: NbdClient, allocate: (lengthBytes: number) => Buffer): Promise<unknown>[] {
  const { sizeBytes } = SESSION_EXPORT;
  const { canFlush, canFua: fua, canTrim, canWriteZeroes } = client.exportInfo;
  const read = (lengthBytes: number, offsetBytes: number): Promise<void> =>
    client.read(allocate(lengthBytes), offsetBytes);
  const asked: Promise<unknown>[] = [
    read(512, 0),
    read(8192, 4096),
    client.write(Buffer.alloc(4096, 0xa1), 64 * 1024),
    client.write(Buffer.alloc(512, 0xa2), 65 * 1024, { fua }),
    read(512, sizeBytes),
    read(1024, sizeBytes - 512),
  ];
  if (canWriteZeroes) {
    asked.push(client.writeZeroes(68 * 1024, 4096, { mayTrim: false }), client.writeZeroes(sizeBytes, 512));
  }
  if (canTrim) asked.push(client.trim(72 * 1024, 4096));
  if (client.canCache) asked.push(client.cache(0, 4096));
  if (canFlush) asked.push(client.flush());
  const [context] = client.contexts;
  if (context !== undefined) {
    asked.push(client.blockStatus(0, sizeBytes), client.blockStatus(4096, 4096, { requestOne: true }));
    asked.push(client.blockStatus(0, 65_536, { contexts: [context] }));
  }
  asked.push(read(4096, 256 * 1024), read(512, 1024));
  return asked;
}
