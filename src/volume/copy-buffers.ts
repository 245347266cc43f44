/**
 * Buffers of one track each, used again and again. A copy for a snapshot needs one for about a millisecond; allocated
 * for each copy, they are most of what the garbage collector has to do while tracks are being copied.
 *
 * Who takes one gives it back when nobody reads or fills it any more, and where that is not sure leaves it to the
 * garbage collector.
 */

import { assert } from '../base/index.ts';

export class CopyBuffers {
  readonly #sizeBytes: number;
  readonly #idleCountMax: number;
  /** The one used last is at the end: its bytes are still in the processor's cache. */
  readonly #idle: Buffer[] = [];

  /** @param idleBytesMax what may be kept for later. */
  constructor(sizeBytes: number, idleBytesMax: number) {
    this.#sizeBytes = sizeBytes;
    this.#idleCountMax = Math.floor(idleBytesMax / sizeBytes);
  }

  get idleBytes(): number {
    return this.#idle.length * this.#sizeBytes;
  }

  /** A buffer with content of any kind. */
  take(): Buffer {
    return this.#idle.pop() ?? Buffer.allocUnsafe(this.#sizeBytes);
  }

  /** Gives back the whole of what `take` gave. */
  giveBack(buffer: Buffer): void {
    assert(buffer.length === this.#sizeBytes, `A copy's buffer of ${buffer.length} bytes is given back`);
    if (this.#idle.length < this.#idleCountMax) this.#idle.push(buffer);
  }

  /** Keeps nothing for later. */
  clear(): void {
    this.#idle.length = 0;
  }
}
