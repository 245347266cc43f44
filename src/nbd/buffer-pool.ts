/**
 * Large buffers, used again and again.
 *
 * A fresh buffer of 1 MiB costs 256 page faults before its first byte is there, and as much again when it is
 * given back: more than the copy that fills it. Smaller ones, allocated for each turn, keep the garbage collector
 * at work on the other processor. So they come from here, the last one given back first, since its bytes are still
 * in the processor's cache.
 *
 * Data begins on a page of memory, with the header of a reply in front of it: the kernel copies from its page cache
 * twice as fast as to an odd address. Small buffers are not kept: `acquire` allocates them and `release` leaves
 * them to the garbage collector.
 *
 * A buffer has one holder, and one more for each `share`; each gives it back once, and uses no part of it
 * afterwards. Where it is not sure whether somebody still does, as after a broken connection, `forget` it: the
 * garbage collector can tell. One that is never given back is only lost to the pool.
 */

import { assert, bytesToPage, LIMITS } from '../base/index.ts';

/** Room in front of the data. */
const PREFIX_BYTES_MAX = 4096;
/** What may be lost to reach a page. */
const ALIGNMENT_BYTES_MAX = 4096;
/** Below this size the heap is as good. */
const POOLED_BYTES_MIN = 32 * 1024;

/** Memory that is used again. */
interface Piece {
  readonly memory: ArrayBufferLike;
  /** Where the data begins. */
  readonly dataAtBytes: number;
  /** 0 while nobody uses it. */
  holderCount: number;
}

export class BufferPool {
  readonly #idleBytesMax: number;
  /** What nobody uses, by size; the one used last is at the end. */
  readonly #idle = new Map<number, Piece[]>();
  /** Everything that may come back. */
  readonly #pieces = new WeakMap<ArrayBufferLike, Piece>();
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
    const piece = this.#take(2 ** Math.ceil(Math.log2(lengthBytes)));
    piece.holderCount = 1;
    return Buffer.from(piece.memory, piece.dataAtBytes - prefixBytes, prefixBytes + lengthBytes);
  }

  /** One more holder of the memory that `buffer`, or what it is a part of, is in. */
  share(buffer: Buffer): void {
    const piece = this.#pieces.get(buffer.buffer);
    if (piece === undefined) return;
    assert(piece.holderCount > 0, 'A buffer is shared that nobody holds');
    piece.holderCount += 1;
  }

  /** Somebody beside the caller holds a part of the memory that `buffer` is in, or that is not known. */
  isShared(buffer: Buffer): boolean {
    return this.#pieces.get(buffer.buffer)?.holderCount !== 1;
  }

  /** Gives back what `acquire` gave, or a part of it; the holder uses none of it any more. */
  release(buffer: Buffer): void {
    const piece = this.#pieces.get(buffer.buffer);
    if (piece === undefined || piece.holderCount === 0) return;
    piece.holderCount -= 1;
    if (piece.holderCount > 0) return;
    const sizeBytes = piece.memory.byteLength;
    if (this.#idleBytes + sizeBytes > this.#idleBytesMax) return;
    this.#idleBytes += sizeBytes;
    const idle = this.#idle.get(sizeBytes);
    if (idle === undefined) this.#idle.set(sizeBytes, [piece]);
    else idle.push(piece);
  }

  /** Leaves a buffer to the garbage collector: somebody may still use it. */
  forget(buffer: Buffer): void {
    this.#pieces.delete(buffer.buffer);
  }

  #take(dataBytes: number): Piece {
    const sizeBytes = PREFIX_BYTES_MAX + ALIGNMENT_BYTES_MAX + dataBytes;
    const idle = this.#idle.get(sizeBytes)?.pop();
    if (idle !== undefined) {
      this.#idleBytes -= sizeBytes;
      return idle;
    }
    // Not cleared first, which `new ArrayBuffer` would do.
    const { buffer: memory } = Buffer.allocUnsafeSlow(sizeBytes);
    const dataAtBytes = PREFIX_BYTES_MAX + bytesToPage(Buffer.from(memory, PREFIX_BYTES_MAX));
    const piece = { memory, dataAtBytes, holderCount: 0 };
    this.#pieces.set(memory, piece);
    return piece;
  }
}

/** The pool of this process's connections. */
export const sharedBuffers = new BufferPool(LIMITS.nbdIdleBufferBytesMax);
