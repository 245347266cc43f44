/**
 * The system calls that Node lacks, through `koffi` (prebuilt, no compiler). Linux on x64 and arm64.
 *
 * `koffi` is loaded at the first call. Where it is absent, or the C library lacks a function, each call says
 * in its comment what it does instead; only locks have no fallback and refuse.
 *
 * What koffi makes of wrong arguments decides the shape of this file: numbers that are fractions or too large
 * are truncated silently, so every offset is asserted first; there is no check of a length against a buffer;
 * an address pins nothing, so the caller's buffer stays referenced until the call is over; `koffi.errno()` is
 * overwritten by the next `fs` call, so it is read at once. Asynchronous calls run on Node's thread pool and
 * fail beyond 256 at once, so few are let through.
 *
 * Errors look like Node's own system errors: `code` (`ENOSPC`), `errno` (negative), `syscall`.
 *
 * Does not wrap what Node can do itself, and nothing here moves data asynchronously: Node's `fs` is faster.
 */

import { fstatSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { env } from 'node:process';
import { getSystemErrorMap, getSystemErrorName } from 'node:util';
import { assert } from './assert.ts';
import { LIMITS } from './limits.ts';
import { Slots } from './slots.ts';

export type LockMode = 'exclusive' | 'shared';

/** A failed system call, in the form of Node's own errors. */
export class NativeError extends Error {
  override readonly name = 'NativeError';
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;

  constructor(syscall: string, errno: number, what: string) {
    const code = getSystemErrorName(-errno);
    super(`${code}: ${getSystemErrorMap().get(-errno)?.[1] ?? 'unknown error'}, ${syscall} ${what}`);
    this.code = code;
    this.errno = -errno;
    this.syscall = syscall;
  }
}

/** A C function as koffi gives it; the arguments are checked by the callers in this file. */
interface NativeFunction<Arguments extends readonly unknown[]> {
  (...parameters: Arguments): number;
  async(...parameters: [...Arguments, (error: unknown, result: number) => void]): void;
}

interface Bindings {
  readonly errno: () => number;
  readonly address: (buffer: Buffer) => bigint;
  readonly flock?: NativeFunction<[number, number]>;
  readonly fcntl?: NativeFunction<[number, number, Buffer]>;
  readonly ioctl?: NativeFunction<[number, number, Buffer]>;
  readonly preadv2?: NativeFunction<[number, Buffer, number, number, number]>;
  readonly setxattr?: NativeFunction<[string, string, Buffer, number, number]>;
  readonly getxattr?: NativeFunction<[string, string, Buffer, number]>;
  readonly fallocate?: NativeFunction<[number, number, number, number]>;
  readonly lseek?: NativeFunction<[number, number, number]>;
  readonly posixFadvise?: NativeFunction<[number, number, number, number]>;
  readonly socket?: NativeFunction<[number, number, number]>;
  readonly setsockopt?: NativeFunction<[number, number, number, Buffer, number]>;
  readonly getsockopt?: NativeFunction<[number, number, number, Buffer, Buffer]>;
  readonly poll?: NativeFunction<[Buffer, number, number]>;
}

/** The size of a memory page where Linux runs on x64; on arm64 it may be larger, and a part of one then. */
const PAGE_BYTES = 4096n;

const EINTR = 4;
const ENXIO = 6;
const EAGAIN = 11;
const EACCES = 13;
const EINVAL = 22;
const ENOTTY = 25;
const ENOSYS = 38;
const EOPNOTSUPP = 95;

const LOCK_SHARED = 1;
const LOCK_EXCLUSIVE = 2;
const LOCK_NOWAIT = 4;
const F_OFD_SETLK = 37;
const F_READ_LOCK = 0;
const F_WRITE_LOCK = 1;
/** `struct flock`: short type, short whence, 4 bytes padding, start, length, pid, 4 bytes padding. */
const LOCK_STRUCT_BYTES = 32;
const RWF_NOWAIT = 8;
const FALLOC_KEEP_SIZE = 0x01;
const FALLOC_PUNCH_HOLE = 0x02;
const FALLOC_ZERO_RANGE = 0x10;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ADVICE_DONT_NEED = 4;
const BLKGETSIZE64 = 0x8008_1272;

let bindings: Bindings | undefined;
let plainNode = false;

function load(): Bindings | undefined {
  if (plainNode) return undefined;
  bindings ??= bind();
  return bindings;
}

function bind(): Bindings {
  const none: Bindings = { errno: () => ENOSYS, address: () => 0n };
  let koffi: typeof import('koffi');
  try {
    // The package is CommonJS, and an import of it could not be left out where it is not installed.
    koffi = createRequire(import.meta.url)('koffi');
  } catch {
    return none;
  }
  const library = koffi.load(null);
  const find = <Arguments extends readonly unknown[]>(prototype: string) => {
    try {
      const callable: NativeFunction<Arguments> = library.func(prototype);
      return callable;
    } catch {
      return undefined;
    }
  };
  const found = {
    flock: find<[number, number]>('int flock(int, int)'),
    fcntl: find<[number, number, Buffer]>('int fcntl(int, int, void *)'),
    ioctl: find<[number, number, Buffer]>('int ioctl(int, unsigned long, void *)'),
    preadv2: find<[number, Buffer, number, number, number]>(
      'intptr_t preadv2(int, const void *, int, int64_t, int)',
    ),
    fallocate: find<[number, number, number, number]>('int fallocate(int, int, int64_t, int64_t)'),
    lseek: find<[number, number, number]>('int64_t lseek(int, int64_t, int)'),
    setxattr: find<[string, string, Buffer, number, number]>(
      'int setxattr(const char *, const char *, const void *, size_t, int)',
    ),
    getxattr: find<[string, string, Buffer, number]>(
      'intptr_t getxattr(const char *, const char *, void *, size_t)',
    ),
    posixFadvise: find<[number, number, number, number]>('int posix_fadvise(int, int64_t, int64_t, int)'),
    socket: find<[number, number, number]>('int socket(int, int, int)'),
    setsockopt: find<[number, number, number, Buffer, number]>(
      'int setsockopt(int, int, int, const void *, uint32_t)',
    ),
    getsockopt: find<[number, number, number, Buffer, Buffer]>(
      'int getsockopt(int, int, int, void *, void *)',
    ),
    poll: find<[Buffer, number, number]>('int poll(void *, unsigned long, int)'),
  };
  const there = Object.fromEntries(Object.entries(found).filter(([, callable]) => callable !== undefined));
  return { errno: () => koffi.errno(), address: (buffer) => koffi.address(buffer), ...there };
}

/** Tests only: makes every call behave as if koffi were not installed. */
export function forcePlainNode(forced: boolean): void {
  plainNode = forced;
}

/** Whether holes can be told from data and space be given back: false where koffi is absent. */
export function hasSparseFiles(): boolean {
  const native = load();
  return native?.fallocate !== undefined && native.lseek !== undefined;
}

/**
 * Threads in Node's pool. Set in the environment of the process before it starts; a value set later is
 * ignored by libuv, and so must not be written by the program itself.
 */
export function threadPoolSize(): number {
  const wanted = Number.parseInt(env['UV_THREADPOOL_SIZE'] ?? '', 10);
  return wanted >= 1 ? Math.min(wanted, 1024) : 4;
}

const asynchronous = new Slots(LIMITS.nativeCallCountMax);

function assertBytes(what: string, value: number, least: number): void {
  // The sentence is only put together where it is needed: small reads come by here.
  if (Number.isSafeInteger(value) && value >= least) return;
  assert(false, `${what} ${value} is not a whole number from ${least} on`);
}

function assertDescriptor(descriptor: number): void {
  assert(Number.isInteger(descriptor) && descriptor >= 0, `Descriptor ${descriptor} is not open`);
}

function withoutFallback(syscall: string): NativeError {
  return new NativeError(syscall, ENOSYS, 'needs the koffi package, which could not be loaded');
}

/**
 * Takes an advisory lock on a whole file (flock) without waiting. It belongs to the open file: the kernel
 * drops it when the last descriptor of that open closes, at the latest when the process dies.
 *
 * @returns false where someone else holds it.
 * @throws {NativeError} ENOSYS without koffi; there is no fallback.
 */
export function tryLock(descriptor: number, mode: LockMode): boolean {
  assertDescriptor(descriptor);
  const native = load();
  if (native?.flock === undefined) throw withoutFallback('flock');
  const operation = (mode === 'exclusive' ? LOCK_EXCLUSIVE : LOCK_SHARED) | LOCK_NOWAIT;
  for (;;) {
    if (native.flock(descriptor, operation) === 0) return true;
    const errno = native.errno();
    if (errno === EAGAIN) return false;
    if (errno !== EINTR) throw new NativeError('flock', errno, `${mode} on descriptor ${descriptor}`);
  }
}

/**
 * Takes an advisory lock on a range of bytes (an open-file-description lock) without waiting, so that several
 * volumes can share one device. Belongs to the open file, as with `tryLock`; two opens in one process exclude
 * each other too. An exclusive lock needs a descriptor open for writing.
 *
 * @returns false where someone else holds a part of it.
 * @throws {NativeError} ENOSYS without koffi; there is no fallback.
 */
export function tryLockRange(
  descriptor: number,
  offsetBytes: number,
  lengthBytes: number,
  mode: LockMode,
): boolean {
  assertDescriptor(descriptor);
  assertBytes('Lock offset', offsetBytes, 0);
  assertBytes('Lock length', lengthBytes, 1);
  const native = load();
  if (native?.fcntl === undefined) throw withoutFallback('fcntl');
  const lock = Buffer.alloc(LOCK_STRUCT_BYTES);
  lock.writeInt16LE(mode === 'exclusive' ? F_WRITE_LOCK : F_READ_LOCK, 0);
  lock.writeBigInt64LE(BigInt(offsetBytes), 8);
  lock.writeBigInt64LE(BigInt(lengthBytes), 16);
  if (native.fcntl(descriptor, F_OFD_SETLK, lock) === 0) return true;
  const errno = native.errno();
  if (errno === EAGAIN || errno === EACCES) return false;
  throw new NativeError('fcntl', errno, `${mode} ${offsetBytes}+${lengthBytes} on descriptor ${descriptor}`);
}

/** `struct iovec`: one address, one length; filled anew for each read, which never outlives its call. */
const vector = Buffer.alloc(16);

/** Bytes from the buffer's first byte to the first page that begins in it; 0 where koffi is absent. */
export function bytesToPage(buffer: Buffer): number {
  const address = load()?.address(buffer) ?? 0n;
  return Number((PAGE_BYTES - (address % PAGE_BYTES)) % PAGE_BYTES);
}

/** What `readNoWait` answers instead of a count. */
export const NO_WAIT = {
  /** The bytes are not in memory now. */
  wouldWait: -1,
  /** The filesystem, the kernel or a missing koffi does not allow such reads of this open file at all. */
  unsupported: -2,
} as const;

/**
 * Reads what the page cache holds, never waiting for the disk (preadv2 with RWF_NOWAIT).
 *
 * @returns bytes read, which may be fewer than wanted, 0 at the end of the file, or one of `NO_WAIT`, which are
 *   negative: then read another way.
 * @throws {NativeError} for every other failure.
 */
export function readNoWait(descriptor: number, target: Buffer, offsetBytes: number): number {
  assertBytes('Read offset', offsetBytes, 0);
  const native = load();
  if (native?.preadv2 === undefined) return NO_WAIT.unsupported;
  vector.writeBigUInt64LE(native.address(target), 0);
  vector.writeUInt32LE(target.length, 8);
  const count = native.preadv2(descriptor, vector, 1, offsetBytes, RWF_NOWAIT);
  if (count >= 0) return count;
  const errno = native.errno();
  if (errno === EAGAIN || errno === EINTR) return NO_WAIT.wouldWait;
  if (errno === EOPNOTSUPP || errno === ENOSYS) return NO_WAIT.unsupported;
  throw new NativeError('preadv2', errno, `${offsetBytes}+${target.length} on descriptor ${descriptor}`);
}

/**
 * Frees the space of a range; it reads as zeroes afterwards, the file keeps its size. Not durable before a
 * sync. Runs on the thread pool in bounded pieces, a few at once in the whole process.
 *
 * @returns false where the filesystem cannot, or koffi is absent: then write zeroes. The range may have been
 *   punched in part.
 * @throws {NativeError} through the promise.
 */
export function punchHole(descriptor: number, offsetBytes: number, lengthBytes: number): Promise<boolean> {
  return allocate(descriptor, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offsetBytes, lengthBytes);
}

/** As `punchHole`, but the range keeps its space, so that later writes into it need none. */
export function zeroRange(descriptor: number, offsetBytes: number, lengthBytes: number): Promise<boolean> {
  return allocate(descriptor, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, offsetBytes, lengthBytes);
}

async function allocate(
  descriptor: number,
  mode: number,
  offsetBytes: number,
  lengthBytes: number,
): Promise<boolean> {
  assertDescriptor(descriptor);
  assertBytes('Range offset', offsetBytes, 0);
  assertBytes('Range length', lengthBytes, 1);
  const native = load();
  const { fallocate } = native ?? {};
  if (native === undefined || fallocate === undefined) return false;
  const end = offsetBytes + lengthBytes;
  for (let at = offsetBytes; at < end; at += LIMITS.punchBytesMax) {
    const length = Math.min(LIMITS.punchBytesMax, end - at);
    const errno = await asynchronous.run(() =>
      call(native, (done) => fallocate.async(descriptor, mode, at, length, done)),
    );
    // EINVAL is what a block device says to a range that does not fit its sectors; the range is sane otherwise.
    if (errno === EOPNOTSUPP || errno === ENOSYS || errno === EINVAL) return false;
    if (errno !== 0) throw new NativeError('fallocate', errno, `${at}+${length} on descriptor ${descriptor}`);
  }
  return true;
}

/** Waits for an asynchronous call; its errno, 0 where it succeeded. A call cut off by a signal is repeated. */
async function call(
  native: Bindings,
  start: (done: (error: unknown, result: number) => void) => void,
): Promise<number> {
  for (;;) {
    const errno = await new Promise<number>((resolve, reject) => {
      start((error, result) => {
        // The worker thread's errno is valid in this callback only until the next call of any kind.
        const failure = result === -1 ? native.errno() : 0;
        if (error !== null && error !== undefined)
          reject(new Error('Native call could not start', { cause: error }));
        else resolve(failure);
      });
    });
    if (errno !== EINTR) return errno;
  }
}

/**
 * The first byte from `offsetBytes` on that is data, or undefined where only a hole follows up to the end.
 * Without koffi, or where the filesystem does not know, everything up to the end is data. Moves the shared
 * position of the descriptor: use positional reads and writes only.
 */
export function seekData(descriptor: number, offsetBytes: number): number | undefined {
  return seek(descriptor, offsetBytes, SEEK_DATA);
}

/**
 * The first byte from `offsetBytes` on that is in a hole, the file's end at the latest; undefined at or past
 * the end. See `seekData`.
 */
export function seekHole(descriptor: number, offsetBytes: number): number | undefined {
  return seek(descriptor, offsetBytes, SEEK_HOLE);
}

function seek(descriptor: number, offsetBytes: number, whence: number): number | undefined {
  assertDescriptor(descriptor);
  assertBytes('Seek offset', offsetBytes, 0);
  const native = load();
  if (native?.lseek !== undefined) {
    const found = native.lseek(descriptor, offsetBytes, whence);
    if (found >= 0) return found;
    const errno = native.errno();
    if (errno === ENXIO) return undefined;
    if (errno !== EINVAL)
      throw new NativeError('lseek', errno, `from ${offsetBytes} on descriptor ${descriptor}`);
  }
  const stat = fstatSync(descriptor);
  const size = stat.isBlockDevice() ? blockDeviceSize(descriptor) : stat.size;
  if (offsetBytes >= size) return undefined;
  return whence === SEEK_DATA ? offsetBytes : size;
}

/**
 * Bytes of a block device (BLKGETSIZE64; without koffi from sysfs).
 *
 * @throws {NativeError} where the descriptor is no block device.
 */
export function blockDeviceSize(descriptor: number): number {
  assertDescriptor(descriptor);
  const native = load();
  if (native?.ioctl === undefined) return sizeFromSysfs(descriptor);
  const size = Buffer.alloc(8);
  if (native.ioctl(descriptor, BLKGETSIZE64, size) === -1) {
    throw new NativeError('ioctl', native.errno(), `BLKGETSIZE64 on descriptor ${descriptor}`);
  }
  return Number(size.readBigUInt64LE(0));
}

function sizeFromSysfs(descriptor: number): number {
  const stat = fstatSync(descriptor);
  if (!stat.isBlockDevice())
    throw new NativeError('ioctl', ENOTTY, `BLKGETSIZE64 on descriptor ${descriptor}`);
  // The kernel's split of a device number, see makedev(3).
  const major = Math.floor(stat.rdev / 256) % 4096;
  const minor = (stat.rdev % 256) + Math.floor(stat.rdev / 2 ** 20) * 256;
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * 512;
}

/**
 * Drops the clean cached pages of a file, so that the next reads come from the disk (posix_fadvise). Pages not
 * written back yet stay: sync first.
 *
 * @returns false where koffi is absent and nothing was dropped.
 * @throws {NativeError} through the promise.
 */
export async function dropCache(descriptor: number): Promise<boolean> {
  assertDescriptor(descriptor);
  const { posixFadvise } = load() ?? {};
  if (posixFadvise === undefined) return false;
  // This function returns its error instead of setting errno.
  const errno = await asynchronous.run(
    () =>
      new Promise<number>((resolve, reject) => {
        posixFadvise.async(descriptor, 0, 0, ADVICE_DONT_NEED, (error, result) => {
          if (error !== null && error !== undefined)
            reject(new Error('Native call could not start', { cause: error }));
          else resolve(result);
        });
      }),
  );
  if (errno !== 0) throw new NativeError('posix_fadvise', errno, `on descriptor ${descriptor}`);
  return true;
}

/** Enough for every attribute of ours. */
const ATTRIBUTE_BYTES_MAX = 256;

/**
 * Sets an extended attribute of a file.
 *
 * @returns false where the filesystem keeps none, the file may not have one, or koffi is missing.
 */
export function setAttribute(path: string, name: string, value: string): boolean {
  const { setxattr } = load() ?? {};
  const bytes = Buffer.from(value);
  return setxattr !== undefined && setxattr(path, name, bytes, bytes.length, 0) === 0;
}

/** An extended attribute of a file, or undefined where it has none of that name. */
export function getAttribute(path: string, name: string): string | undefined {
  const { getxattr } = load() ?? {};
  if (getxattr === undefined) return undefined;
  const bytes = Buffer.alloc(ATTRIBUTE_BYTES_MAX);
  const lengthBytes = getxattr(path, name, bytes, bytes.length);
  return lengthBytes < 0 ? undefined : bytes.toString('utf8', 0, lengthBytes);
}

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
  const native = load();
  if (native?.socket === undefined) throw withoutFallback('socket');
  const descriptor = native.socket(domain, type, protocol);
  if (descriptor < 0) throw new NativeError('socket', native.errno(), `of domain ${domain}`);
  return descriptor;
}

/** Sets an option of a socket (setsockopt). @throws {NativeError} */
export function setSocketOption(descriptor: number, level: number, option: number, value: Buffer): void {
  assertDescriptor(descriptor);
  const native = load();
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
  const native = load();
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
  const native = load();
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
  const { poll, errno } = load() ?? {};
  if (poll === undefined || errno === undefined) throw withoutFallback('poll');
  assert(Number.isInteger(timeoutMs) && timeoutMs >= 0, `A wait of ${timeoutMs} ms is no whole time`);
  const table = encodePollTable(requests);
  await asynchronous.run(
    () =>
      new Promise<void>((resolve, reject) => {
        poll.async(table, requests.length, timeoutMs, (error, result) => {
          const failure = result === -1 ? errno() : 0;
          if (error !== null && error !== undefined)
            reject(new Error('Native call could not start', { cause: error }));
          else if (failure !== 0 && failure !== EINTR)
            reject(new NativeError('poll', failure, `of ${requests.length} descriptors`));
          else resolve();
        });
      }),
  );
  return requests.map((_, index) => happenedTo(table, index));
}
