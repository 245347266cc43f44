/**
 * Flushes a part of a larger device only where it was written to since its last good flush.
 *
 *     written (has finished) -> flush begins: forgotten -> flush fails: written again
 *
 * A write counts when it has ended, since a flush covers only those; one that failed counts too, as nobody knows what
 * of it was done. Whoever flushes while a flush is under way, with nothing new to flush, waits for that one: it covers
 * what they wrote.
 *
 * Begins as written: who wrote before this device was opened is not known, and their flush may never have come.
 */

import type { BlockDevice } from './block-device.ts';

export class WrittenFlush {
  readonly #device: Pick<BlockDevice, 'flush'>;
  #isWritten = true;
  #running: Promise<void> | undefined;

  constructor(device: Pick<BlockDevice, 'flush'>) {
    this.#device = device;
  }

  /** A change has ended, well or not. */
  written(): void {
    this.#isWritten = true;
  }

  /** Makes every change that had ended before this call durable. @throws what the device's flush throws. */
  flush(): Promise<void> {
    if (!this.#isWritten) return this.#running ?? Promise.resolve();
    this.#isWritten = false;
    const before = this.#running;
    const running = this.#flush(before).finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    return running;
  }

  /** @param before one that is under way, and covers for this one's callers what it began with. */
  async #flush(before: Promise<void> | undefined): Promise<void> {
    try {
      await Promise.all([this.#device.flush(), before]);
    } catch (error) {
      this.#isWritten = true;
      throw error;
    }
  }
}
