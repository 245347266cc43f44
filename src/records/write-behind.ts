/**
 * Writes a growing file back while it grows, and takes its pages out of the page cache:
 *
 *     written back and dropped | being written back, one window | still gathering |
 *     0                        ended                            begun             end of the file
 *
 * Whoever fills gigabytes that nobody will read soon would otherwise push what others read out of memory, and leave
 * the disk with all of them at the final sync. Where memory is taken from a host by its first touch, as in virtual
 * machines, using the same pages again also more than halves the time of the whole.
 *
 * Nothing is durable by that. A page behind the window that is written again waits for the sync as ever.
 */

import { closeSync, fstatSync, openSync } from 'node:fs';
import { beginWriteBack, endWriteBack, LIMITS } from '../base/index.ts';

const WINDOW_BYTES = LIMITS.writeBehindBytes;

export class WriteBehind {
  readonly #descriptor: number;
  #begunBytes = 0;
  #endedBytes = 0;
  #isSupported = true;

  /** Opens the file, which must exist, a second time; what it has already is left alone. */
  constructor(path: string) {
    this.#descriptor = openSync(path, 'r+');
    this.#begunBytes = fstatSync(this.#descriptor).size;
    this.#endedBytes = this.#begunBytes;
  }

  /**
   * Called after each write. May wait for the disk.
   *
   * @throws {NativeError} where the disk did not take what was written before; a later sync may not tell of it.
   */
  advance(): void {
    const { size } = fstatSync(this.#descriptor);
    while (this.#isSupported && size - this.#begunBytes >= WINDOW_BYTES) {
      this.#isSupported = beginWriteBack(this.#descriptor, this.#begunBytes, WINDOW_BYTES);
      this.#begunBytes += WINDOW_BYTES;
      if (this.#isSupported && this.#begunBytes - this.#endedBytes > WINDOW_BYTES) {
        this.#isSupported = endWriteBack(this.#descriptor, this.#endedBytes, WINDOW_BYTES);
        this.#endedBytes += WINDOW_BYTES;
      }
    }
  }

  close(): void {
    closeSync(this.#descriptor);
  }
}
