/**
 * System calls on sockets that Node lacks: kinds of sockets and options that it does not know, and what happened to
 * a descriptor. They have no fallback, except where a comment says so; see `native.ts` for how they are bound.
 */

import { assert } from './assert.ts';
import {
  assertBytes,
  assertDescriptor,
  callOnThreadPool,
  EINTR,
  loadNative,
  NativeError,
  withoutFallback,
} from './native.ts';

/** The numbers that name a kind of socket, as socket(2) takes them. */
export interface SocketKind {
  readonly domain: number;
  readonly type: number;
  readonly protocol: number;
}

/**
 * Opens a socket of a kind that Node does not know. The caller closes the descriptor; `fs.read` and `fs.write`
 * work on it.
 *
 * @throws {NativeError} ENOSYS without koffi; EAFNOSUPPORT, EPROTONOSUPPORT where the kernel has no such kind.
 */
export function openSocket(kind: SocketKind): number {
  const { domain, type, protocol } = kind;
  const native = loadNative();
  if (native?.socket === undefined) throw withoutFallback('socket');
  const descriptor = native.socket(domain, type, protocol);
  if (descriptor < 0) throw new NativeError('socket', native.errno(), `of domain ${domain}`);
  return descriptor;
}

/** Sets an option of a socket (setsockopt). @throws {NativeError} */
export function setSocketOption(descriptor: number, level: number, option: number, value: Buffer): void {
  assertDescriptor(descriptor);
  const native = loadNative();
  if (native?.setsockopt === undefined) throw withoutFallback('setsockopt');
  if (native.setsockopt(descriptor, level, option, value, value.length) === 0) return;
  throw new NativeError('setsockopt', native.errno(), `${level}/${option} on descriptor ${descriptor}`);
}

/** An option of a socket (getsockopt), at most `lengthBytes` bytes of it. @throws {NativeError} */
export function getSocketOption(
  descriptor: number,
  level: number,
  option: number,
  lengthBytes: number,
): Buffer {
  assertDescriptor(descriptor);
  assertBytes('Option length', lengthBytes, 1);
  const native = loadNative();
  if (native?.getsockopt === undefined) throw withoutFallback('getsockopt');
  const value = Buffer.alloc(lengthBytes);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(lengthBytes);
  if (native.getsockopt(descriptor, level, option, value, length) !== 0) {
    throw new NativeError('getsockopt', native.errno(), `${level}/${option} on descriptor ${descriptor}`);
  }
  return value.subarray(0, length.readUInt32LE());
}

/** The events of poll(2). `peerClosed` is POLLRDHUP; hang-up and errors are reported unasked. */
export const POLL = { readable: 0x01, error: 0x08, hangUp: 0x10, invalid: 0x20, peerClosed: 0x2000 } as const;

/** One descriptor to watch, with the events that matter: some of `POLL`, added up. */
export interface PollRequest {
  readonly descriptor: number;
  readonly events: number;
}

/** `struct pollfd`: int descriptor, short events, short what happened. */
const POLL_STRUCT_BYTES = 8;

function encodePollTable(requests: readonly PollRequest[]): Buffer {
  const table = Buffer.alloc(POLL_STRUCT_BYTES * requests.length);
  for (const [index, { descriptor, events }] of requests.entries()) {
    assertDescriptor(descriptor);
    table.writeInt32LE(descriptor, index * POLL_STRUCT_BYTES);
    table.writeInt16LE(events, index * POLL_STRUCT_BYTES + 4);
  }
  return table;
}

/** What the kernel wrote into the table for the request of that index. */
function happenedTo(table: Buffer, index: number): number {
  return table.readInt16LE(index * POLL_STRUCT_BYTES + 6);
}

/**
 * Whether the other side of a socket has closed it, or its sending direction, as far as the kernel has heard, however
 * much of what it sent is still unread (POLLRDHUP). @returns false where koffi is absent.
 * @throws {NativeError}
 */
export function hasPeerClosed(descriptor: number): boolean {
  const table = encodePollTable([{ descriptor, events: POLL.peerClosed }]);
  const native = loadNative();
  if (native?.poll === undefined) return false;
  if (native.poll(table, 1, 0) >= 0)
    return (happenedTo(table, 0) & (POLL.peerClosed | POLL.hangUp | POLL.error)) !== 0;
  const errno = native.errno();
  if (errno === EINTR) return false;
  throw new NativeError('poll', errno, `of descriptor ${descriptor}`);
}

/**
 * Waits until something happens on one of the descriptors or the time is over (poll). A wait holds a thread of
 * Node's pool and one of the few native calls at once: waits should be rare and short.
 *
 * @returns what happened on each, in the order asked; all 0 where the time was over or a signal came.
 * @throws {NativeError} through the promise; ENOSYS without koffi.
 */
export async function pollDescriptors(
  requests: readonly PollRequest[],
  timeoutMs: number,
): Promise<readonly number[]> {
  const native = loadNative();
  const { poll } = native ?? {};
  if (native === undefined || poll === undefined) throw withoutFallback('poll');
  assert(Number.isInteger(timeoutMs) && timeoutMs >= 0, `A wait of ${timeoutMs} ms is no whole time`);
  const table = encodePollTable(requests);
  const { errno } = await callOnThreadPool(native, (done) =>
    poll.async(table, requests.length, timeoutMs, done),
  );
  if (errno !== 0 && errno !== EINTR)
    throw new NativeError('poll', errno, `of ${requests.length} descriptors`);
  return requests.map((_, index) => happenedTo(table, index));
}
