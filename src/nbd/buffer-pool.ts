/**
 * Large buffers, used again and again.
 *
 * A fresh buffer of 1 MiB costs 256 page faults before its first byte is there, and as much again when it is
 * given back: more than the copy that fills it. So buffers of large requests come from here, the last one given
 * back first, since its bytes are still in the processor's cache.
 *
 * A buffer is a page of room and then a power of two, so that data may begin on a page with the header of a
 * reply in front of it. Small buffers are not kept: `acquire` allocates them and `release` leaves them to the
 * garbage collector.
 *
 * Whoever gives a buffer back must be the only one that still knows it. Where that is not sure, as after a
 * broken connection, `forget` it: the garbage collector can tell. One that is never given back is only lost to the
 * pool.
 */

import { assert, LIMITS } from '../base/index.ts';

/** Room in front of the data. */
const PREFIX_BYTES_MAX = 4096;
/** Below this size the heap is as good. */
const POOLED_BYTES_MIN = 32 * 1024;

export class BufferPool {
  readonly #idleBytesMax: number;
  /** Buffers nobody uses, by size; the one used last is at the end. */
  readonly #idle = new Map<number, ArrayBuffer[]>();
  /** Those in use: a buffer that was given back twice would have two owners. */
  readonly #used = new WeakSet<ArrayBufferLike>();
  #idleBytes = 0;

  /** @param idleBytesMax what may be kept for later. */
  constructor(idleBytesMax: number) {
    this.#idleBytesMax = idleBytesMax;
  }

  get idleBytes(): number {
    return this.#idleBytes;
  }

  /**
   * A buffer of `prefixBytes` and `lengthBytes` behind it, in one piece, with content of any kind. The part
   * behind the prefix begins on a page.
   */
  acquire(lengthBytes: number, prefixBytes = 0): Buffer {
    assert(prefixBytes <= PREFIX_BYTES_MAX, `A prefix of ${prefixBytes} bytes is too long`);
    if (lengthBytes < POOLED_BYTES_MIN) return Buffer.allocUnsafeSlow(prefixBytes + lengthBytes);
    const memory = this.#take(PREFIX_BYTES_MAX + 2 ** Math.ceil(Math.log2(lengthBytes)));
    this.#used.add(memory);
    return Buffer.from(memory, PREFIX_BYTES_MAX - prefixBytes, prefixBytes + lengthBytes);
  }

  /** Gives back what `acquire` gave; nobody may use any part of it any more. */
  release(buffer: Buffer): void {
    const memory = buffer.buffer;
    if (!this.#used.delete(memory)) return;
    assert(memory instanceof ArrayBuffer, 'A buffer of the pool is shared memory');
    if (this.#idleBytes + memory.byteLength > this.#idleBytesMax) return;
    this.#idleBytes += memory.byteLength;
    const idle = this.#idle.get(memory.byteLength);
    if (idle === undefined) this.#idle.set(memory.byteLength, [memory]);
    else idle.push(memory);
  }

  /** Leaves a buffer to the garbage collector: somebody may still use it. */
  forget(buffer: Buffer): void {
    this.#used.delete(buffer.buffer);
  }

  #take(sizeBytes: number): ArrayBuffer {
    const memory = this.#idle.get(sizeBytes)?.pop();
    if (memory === undefined) return uninitialized(sizeBytes);
    this.#idleBytes -= sizeBytes;
    return memory;
  }
}

/** Memory that is not cleared first, which `new ArrayBuffer` would do. */
function uninitialized(sizeBytes: number): ArrayBuffer {
  const { buffer } = Buffer.allocUnsafeSlow(sizeBytes);
  assert(buffer instanceof ArrayBuffer, 'A buffer is shared memory');
  return buffer;
}

/** The pool of this process's connections. */
export const sharedBuffers = new BufferPool(LIMITS.nbdIdleBufferBytesMax);
