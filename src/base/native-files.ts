/**
 * System calls on files and block devices that Node lacks: locks, reads of what is in memory only, holes, sizes,
 * cached pages, attributes. What each does without them is in its comment; see `native.ts` for how they are
 * bound and for what must be asserted first.
 */

import { fstatSync, readFileSync } from 'node:fs';
import { LIMITS } from './limits.ts';
import {
  assertBytes,
  assertDescriptor,
  callOnThreadPool,
  EINTR,
  ENOSYS,
  loadNative,
  NativeError,
  withoutFallback,
} from './native.ts';

export type LockMode = 'exclusive' | 'shared';

/** The size of a memory page where Linux runs on x64; on arm64 it may be larger, and a part of one then. */
const PAGE_BYTES = 4096n;

const EPERM = 1;
const ENXIO = 6;
const EAGAIN = 11;
const EACCES = 13;
const EXDEV = 18;
const EINVAL = 22;
const ESPIPE = 29;
const ENOTTY = 25;
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
const SYNC_RANGE_WAIT_BEFORE = 1;
const SYNC_RANGE_WRITE = 2;
const SYNC_RANGE_WAIT_AFTER = 4;
const BLKGETSIZE64 = 0x8008_1272;
const FICLONERANGE = 0x4020_940d;
/** `struct file_clone_range`: descriptor, offset and length of the source, offset in the target; 8 bytes each. */
const CLONE_STRUCT_BYTES = 32;

/** Whether holes can be told from data and space be given back: false where koffi is absent. */
export function hasSparseFiles(): boolean {
  const native = loadNative();
  return native?.fallocate !== undefined && native.lseek !== undefined;
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
  const native = loadNative();
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
  const native = loadNative();
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
  const address = loadNative()?.address(buffer) ?? 0n;
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
  const native = loadNative();
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
  const native = loadNative();
  const { fallocate } = native ?? {};
  if (native === undefined || fallocate === undefined) return false;
  const end = offsetBytes + lengthBytes;
  for (let at = offsetBytes; at < end; at += LIMITS.punchBytesMax) {
    const length = Math.min(LIMITS.punchBytesMax, end - at);
    const errno = await untilNotInterrupted(native, (done) =>
      fallocate.async(descriptor, mode, at, length, done),
    );
    // EINVAL is what a block device says to a range that does not fit its sectors; the range is sane otherwise.
    if (errno === EOPNOTSUPP || errno === ENOSYS || errno === EINVAL) return false;
    if (errno !== 0) throw new NativeError('fallocate', errno, `${at}+${length} on descriptor ${descriptor}`);
  }
  return true;
}

/** What one file is to have of another. */
export interface SharedRange {
  readonly sourceOffsetBytes: number;
  readonly targetOffsetBytes: number;
  /** 0: up to the source's end. */
  readonly lengthBytes: number;
}

/**
 * Makes a range of the target one with a range of the source without copying (FICLONERANGE): the filesystem shares
 * the blocks until one of the two is written. The source's dirty pages are written out first. Runs on the thread
 * pool; takes longer the more extents the range has. Not durable before a sync of the target.
 *
 * @returns false where the two are not on one filesystem that can, the range does not fit its blocks, or koffi is
 *   absent: then copy. Nothing has changed.
 * @throws {NativeError} through the promise.
 */
export async function shareRange(source: number, target: number, range: SharedRange): Promise<boolean> {
  assertDescriptor(source);
  assertDescriptor(target);
  const { sourceOffsetBytes, targetOffsetBytes, lengthBytes } = range;
  assertBytes('Source offset', sourceOffsetBytes, 0);
  assertBytes('Target offset', targetOffsetBytes, 0);
  assertBytes('Range length', lengthBytes, 0);
  const native = loadNative();
  const { ioctl } = native ?? {};
  if (native === undefined || ioctl === undefined) return false;
  const request = Buffer.alloc(CLONE_STRUCT_BYTES);
  for (const [index, value] of [source, sourceOffsetBytes, lengthBytes, targetOffsetBytes].entries())
    request.writeBigInt64LE(BigInt(value), 8 * index);
  const errno = await untilNotInterrupted(native, (done) => ioctl.async(target, FICLONERANGE, request, done));
  if (errno === 0) return true;
  // What filesystems that cannot say, by their kind and the kernel's age.
  if ([EOPNOTSUPP, ENOTTY, EXDEV, EINVAL, ENOSYS, EPERM].includes(errno)) return false;
  throw new NativeError('ioctl', errno, `FICLONERANGE from descriptor ${source} to ${target}`);
}

/** The errno of an asynchronous call, 0 where it succeeded. A call cut off by a signal is repeated. */
async function untilNotInterrupted(...call: Parameters<typeof callOnThreadPool>): Promise<number> {
  for (;;) {
    const { errno } = await callOnThreadPool(...call);
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
  const native = loadNative();
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
  const native = loadNative();
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
  const native = loadNative();
  const { posixFadvise } = native ?? {};
  if (native === undefined || posixFadvise === undefined) return false;
  // This function returns its error instead of setting errno.
  const { result: errno } = await callOnThreadPool(native, (done) =>
    posixFadvise.async(descriptor, 0, 0, ADVICE_DONT_NEED, done),
  );
  if (errno !== 0) throw new NativeError('posix_fadvise', errno, `on descriptor ${descriptor}`);
  return true;
}

/**
 * Begins to write a range of the page cache to the disk (sync_file_range), and does not wait for it. Nothing is
 * durable by that: it is no sync.
 *
 * @returns false where the filesystem or the system has no such call, or koffi is absent.
 * @throws {NativeError} for every other failure.
 */
export function beginWriteBack(descriptor: number, offsetBytes: number, lengthBytes: number): boolean {
  return syncFileRange(descriptor, offsetBytes, lengthBytes, SYNC_RANGE_WRITE);
}

/**
 * Writes a range of the page cache to the disk, waits for that and drops it from the cache. What fails to be written
 * is thrown here, and a later sync may no longer tell of it.
 *
 * @returns as `beginWriteBack`.
 * @throws {NativeError} EIO, ENOSPC and others: what was written is lost.
 */
export function endWriteBack(descriptor: number, offsetBytes: number, lengthBytes: number): boolean {
  const flags = SYNC_RANGE_WAIT_BEFORE | SYNC_RANGE_WRITE | SYNC_RANGE_WAIT_AFTER;
  if (!syncFileRange(descriptor, offsetBytes, lengthBytes, flags)) return false;
  // Whether the pages go is of no importance to what is in the file.
  loadNative()?.posixFadvise?.(descriptor, offsetBytes, lengthBytes, ADVICE_DONT_NEED);
  return true;
}

function syncFileRange(descriptor: number, offsetBytes: number, lengthBytes: number, flags: number): boolean {
  assertDescriptor(descriptor);
  assertBytes('Offset', offsetBytes, 0);
  assertBytes('Length', lengthBytes, 1);
  const native = loadNative();
  if (native?.syncFileRange === undefined) return false;
  for (;;) {
    if (native.syncFileRange(descriptor, offsetBytes, lengthBytes, flags) === 0) return true;
    const errno = native.errno();
    if (errno === EINTR) continue;
    if (errno === ENOSYS || errno === EINVAL || errno === ESPIPE) return false;
    const what = `${offsetBytes}+${lengthBytes} on descriptor ${descriptor}`;
    throw new NativeError('sync_file_range', errno, what);
  }
}

/** Enough for every attribute of ours. */
const ATTRIBUTE_BYTES_MAX = 256;

/**
 * Sets an extended attribute of a file.
 *
 * @returns false where the filesystem keeps none, the file may not have one, or koffi is missing.
 */
export function setAttribute(path: string, name: string, value: string): boolean {
  const { setxattr } = loadNative() ?? {};
  const bytes = Buffer.from(value);
  return setxattr !== undefined && setxattr(path, name, bytes, bytes.length, 0) === 0;
}

/** An extended attribute of a file, or undefined where it has none of that name. */
export function getAttribute(path: string, name: string): string | undefined {
  const { getxattr } = loadNative() ?? {};
  if (getxattr === undefined) return undefined;
  const bytes = Buffer.alloc(ATTRIBUTE_BYTES_MAX);
  const lengthBytes = getxattr(path, name, bytes, bytes.length);
  return lengthBytes < 0 ? undefined : bytes.toString('utf8', 0, lengthBytes);
}
