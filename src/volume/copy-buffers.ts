/**
 * Buffers of one track each, used again and again. A copy for a snapshot needs one for about a millisecond; allocated
 * for each copy, they are most of what the garbage collector has to do while tracks are being copied.
 */

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

  /**
   * Lends a buffer with content of any kind to `body`, which uses no part of it after it has finished. Where it fails,
   * the device that was to fill the buffer may still be doing so: that one is left to the garbage collector.
   */
  async lend(body: (buffer: Buffer) => Promise<void>): Promise<void> {
    const buffer = this.#idle.pop() ?? Buffer.allocUnsafe(this.#sizeBytes);
    await body(buffer);
    if (this.#idle.length < this.#idleCountMax) this.#idle.push(buffer);
  }
}
