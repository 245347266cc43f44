/**
 * Whether a volume's home is still where it was: a file that was deleted, replaced or cut short goes on taking writes, and
 * what is written there nobody finds again.
 *
 * Only a home that is one whole file can be watched by its name. A block device or another server tells by failing.
 */

import { stat } from 'node:fs/promises';
import { systemCode } from '../base/index.ts';

interface Seen {
  readonly device: bigint;
  readonly inode: bigint;
}

export class HomeWatch {
  readonly #path: string;
  readonly #seen: Seen;

  private constructor(path: string, seen: Seen) {
    this.#path = path;
    this.#seen = seen;
  }

  /** Undefined where it cannot be watched. */
  static async begin(path: string | undefined): Promise<HomeWatch | undefined> {
    if (path === undefined) return undefined;
    try {
      const stats = await stat(path, { bigint: true });
      return stats.isFile() ? new HomeWatch(path, { device: stats.dev, inode: stats.ino }) : undefined;
    } catch {
      return undefined;
    }
  }

  /**
   * @param sizeBytes what it must have.
   * @returns what has become of it, one clause; undefined where it is there.
   */
  async whatIsWrong(sizeBytes: number): Promise<string | undefined> {
    try {
      const stats = await stat(this.#path, { bigint: true });
      if (stats.dev !== this.#seen.device || stats.ino !== this.#seen.inode)
        return `${this.#path} is another file now`;
      if (stats.size < BigInt(sizeBytes)) return `${this.#path} has ${stats.size} bytes, wanted ${sizeBytes}`;
      return undefined;
    } catch (error) {
      const code = systemCode(error);
      return code === 'ENOENT' || code === 'ENOTDIR'
        ? `${this.#path} is gone`
        : `${this.#path} cannot be looked at: ${code}`;
    }
  }
}
