/**
 * A file system that has no room for one kind of file: tests only.
 *
 * While it is full, what is written to files with one ending is refused with ENOSPC, after a part of it was taken, as a
 * nearly full file system does it. It stands in for `FileHandle.writev`, by which such content is written.
 */

import { readlinkSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

type Writev = FileHandle['writev'];

export class FullDisk {
  /** Whether there is no room now. */
  isFull = false;
  readonly #prototype: { writev: Writev };
  readonly #original: Writev;

  private constructor(prototype: { writev: Writev }, ending: string) {
    this.#prototype = prototype;
    this.#original = prototype.writev;
    const original = this.#original;
    const isFull = (handle: FileHandle): boolean =>
      this.isFull && readlinkSync(`/proc/self/fd/${handle.fd}`).endsWith(ending);
    prototype.writev = async function writev(this: FileHandle, buffers, position) {
      if (!isFull(this)) return Reflect.apply(original, this, [buffers, position]);
      await Reflect.apply(original, this, [buffers.slice(0, 1), position]);
      throw Object.assign(new Error('ENOSPC: injected, no space left on device'), { code: 'ENOSPC' });
    };
  }

  /** @param ending of the names of the files that are concerned. */
  static async install(ending: string): Promise<FullDisk> {
    const handle = await open('/dev/null', 'r');
    try {
      return new FullDisk(Object.getPrototypeOf(handle), ending);
    } finally {
      await handle.close();
    }
  }

  /** Everything is written again as it ever was. */
  close(): void {
    this.#prototype.writev = this.#original;
  }
}
