/**
 * Bytes that arrived but do not make a whole message yet.
 *
 * Used by the two handshake machines, where messages are few and small. Chunks are joined only when a whole
 * message is there, so that a peer that sends byte by byte costs no more than one that does not.
 */

import { assert } from '../base/index.ts';

const NOTHING = Buffer.alloc(0);

export class ByteQueue {
  #chunks: Buffer[] = [];
  #lengthBytes = 0;

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  /** Keeps the chunk itself, not a copy. */
  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#lengthBytes += chunk.length;
  }

  /** Takes exactly `lengthBytes` bytes; they must be there. */
  take(lengthBytes: number): Buffer {
    assert(lengthBytes <= this.#lengthBytes, `Cannot take ${lengthBytes} of ${this.#lengthBytes} bytes`);
    if (lengthBytes === 0) return NOTHING;
    const joined = this.#join();
    const rest = joined.subarray(lengthBytes);
    this.#chunks = rest.length === 0 ? [] : [rest];
    this.#lengthBytes = rest.length;
    return joined.subarray(0, lengthBytes);
  }

  /** Throws away up to `lengthBytes` bytes. @returns how many. */
  drop(lengthBytes: number): number {
    const dropped = Math.min(lengthBytes, this.#lengthBytes);
    this.take(dropped);
    return dropped;
  }

  #join(): Buffer {
    const first = this.#chunks[0];
    if (this.#chunks.length === 1 && first !== undefined) return first;
    const joined = Buffer.concat(this.#chunks);
    this.#chunks = [joined];
    return joined;
  }
}
