/**
 * What is written to files through handles: seen, and refused where there is no room. Tests only.
 *
 * While the disk is full, what is written to files with one ending is refused with ENOSPC, after a part of it was taken,
 * as a nearly full file system does it. It stands in for `write` and `writev` of Node's file handles.
 */

import { readlinkSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

interface Written {
  readonly path: string;
  readonly atBytes: number;
  readonly lengthBytes: number;
}

type Writer = (this: FileHandle, ...args: readonly unknown[]) => Promise<unknown>;

export class FileWrites {
  /** Whether there is no room now. */
  isFull = false;
  /** Called before each write to a known place. */
  onWrite: (written: Written) => void = () => undefined;
  readonly #prototype: Record<'write' | 'writev', Writer>;
  readonly #originals: Readonly<Record<'write' | 'writev', Writer>>;

  private constructor(prototype: Record<'write' | 'writev', Writer>, ending: string) {
    const { write, writev } = prototype;
    this.#prototype = prototype;
    this.#originals = { write, writev };
    const pathOf = (handle: FileHandle): string => readlinkSync(`/proc/self/fd/${handle.fd}`);
    const onWrite = (written: Written): void => this.onWrite(written);
    const isFull = (path: string): boolean => this.isFull && path.endsWith(ending);
    prototype.write = function writeSeen(this: FileHandle, ...args) {
      const [, , lengthBytes, atBytes] = args;
      if (typeof atBytes === 'number' && typeof lengthBytes === 'number')
        onWrite({ path: pathOf(this), atBytes, lengthBytes });
      return Reflect.apply(write, this, args);
    };
    prototype.writev = async function writevSeen(this: FileHandle, ...args) {
      const [parts, atBytes] = args;
      const path = pathOf(this);
      if (!Array.isArray(parts) || typeof atBytes !== 'number') return Reflect.apply(writev, this, args);
      const isRefused = isFull(path);
      const taken: readonly Buffer[] = isRefused ? parts.slice(0, 1) : parts;
      onWrite({ path, atBytes, lengthBytes: taken.reduce((sum, { length }) => sum + length, 0) });
      const result: unknown = await Reflect.apply(writev, this, [taken, atBytes]);
      if (!isRefused) return result;
      throw Object.assign(new Error('ENOSPC: injected, no space left on device'), { code: 'ENOSPC' });
    };
  }

  /** @param ending of the names of the files for which the disk may be full. */
  static async install(ending: string): Promise<FileWrites> {
    const handle = await open('/dev/null', 'r');
    try {
      return new FileWrites(Object.getPrototypeOf(handle), ending);
    } finally {
      await handle.close();
    }
  }

  /** Everything is written again as it ever was. */
  close(): void {
    Object.assign(this.#prototype, this.#originals);
  }
}
