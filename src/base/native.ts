/**
 * The system calls that Node lacks, through `koffi` (prebuilt, no compiler). Linux on x64 and arm64. Here they are
 * bound; `native-files.ts` and `native-sockets.ts` call them.
 *
 * `koffi` is loaded at the first call. Where it is absent, or the C library lacks a function, each call says
 * in its comment what it does instead; only locks and sockets have no fallback and refuse.
 *
 * What koffi makes of wrong arguments decides the shape of these files: numbers that are fractions or too large
 * are truncated silently, so every offset is asserted first; there is no check of a length against a buffer;
 * an address pins nothing, so the caller's buffer stays referenced until the call is over; `koffi.errno()` is
 * overwritten by the next `fs` call, so it is read at once. Asynchronous calls run on Node's thread pool and
 * fail beyond 256 at once, so few are let through.
 *
 * Errors look like Node's own system errors: `code` (`ENOSPC`), `errno` (negative), `syscall`.
 *
 * Does not wrap what Node can do itself, and nothing here moves data asynchronously: Node's `fs` is faster.
 */

import { createRequire } from 'node:module';
import { env } from 'node:process';
import { getSystemErrorMap, getSystemErrorName } from 'node:util';
import { assert } from './assert.ts';
import { LIMITS } from './limits.ts';
import { Slots } from './slots.ts';

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

/** A C function as koffi gives it; the arguments are checked by its caller. */
interface NativeFunction<Arguments extends readonly unknown[]> {
  (...parameters: Arguments): number;
  async(...parameters: [...Arguments, (error: unknown, result: number) => void]): void;
}

export interface NativeBindings {
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
  readonly syncFileRange?: NativeFunction<[number, number, number, number]>;
  readonly socket?: NativeFunction<[number, number, number]>;
  readonly setsockopt?: NativeFunction<[number, number, number, Buffer, number]>;
  readonly getsockopt?: NativeFunction<[number, number, number, Buffer, Buffer]>;
  readonly poll?: NativeFunction<[Buffer, number, number]>;
}

export const EINTR = 4;
export const ENOSYS = 38;

let bindings: NativeBindings | undefined;
let plainNode = false;

/** The system calls that are there; undefined where a test forces plain Node. */
export function loadNative(): NativeBindings | undefined {
  if (plainNode) return undefined;
  bindings ??= bind();
  return bindings;
}

function bind(): NativeBindings {
  const none: NativeBindings = { errno: () => ENOSYS, address: () => 0n };
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
    syncFileRange: find<[number, number, number, number]>(
      'int sync_file_range(int, int64_t, int64_t, unsigned int)',
    ),
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

/**
 * Threads in Node's pool. Set in the environment of the process before it starts; a value set later is
 * ignored by libuv, and so must not be written by the program itself.
 */
export function threadPoolSize(): number {
  const wanted = Number.parseInt(env['UV_THREADPOOL_SIZE'] ?? '', 10);
  return wanted >= 1 ? Math.min(wanted, 1024) : 4;
}

const asynchronous = new Slots(LIMITS.nativeCallCountMax);

/**
 * Makes a call on Node's thread pool, a few at once in the whole process.
 *
 * @param start begins the call, whose memory must stay referenced until the promise resolves.
 * @returns what the function returned, and its errno where that was -1, else 0.
 * @throws where the call could not be started.
 */
export function callOnThreadPool(
  native: NativeBindings,
  start: (done: (error: unknown, result: number) => void) => void,
): Promise<{ readonly result: number; readonly errno: number }> {
  return asynchronous.run(
    () =>
      new Promise((resolve, reject) => {
        start((error, result) => {
          // The worker thread's errno is valid in this callback only until the next call of any kind.
          const errno = result === -1 ? native.errno() : 0;
          if (error !== null && error !== undefined)
            reject(new Error('Native call could not start', { cause: error }));
          else resolve({ result, errno });
        });
      }),
  );
}

/** What koffi would cut silently is refused: @throws {AssertionError} unless a safe integer from `least` on. */
export function assertBytes(what: string, value: number, least: number): void {
  // The sentence is only put together where it is needed: small reads come by here.
  if (Number.isSafeInteger(value) && value >= least) return;
  assert(false, `${what} ${value} is not a whole number from ${least} on`);
}

/** @throws {AssertionError} where the number can be no open descriptor. */
export function assertDescriptor(descriptor: number): void {
  assert(Number.isInteger(descriptor) && descriptor >= 0, `Descriptor ${descriptor} is not open`);
}

/** The error of a call that has no fallback where it is not bound. */
export function withoutFallback(syscall: string): NativeError {
  return new NativeError(syscall, ENOSYS, 'needs the koffi package, which could not be loaded');
}
