/** A small filesystem that tests fill up, and free again, without touching the machine's own. */
import { mkdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './process.ts';
import { type Skippable, skipOrFail } from './tools.ts';

const PIECE_BYTES = 4096;

export class SmallDisk {
  readonly path: string;
  readonly #filler: string;

  private constructor(path: string) {
    this.path = path;
    this.#filler = join(path, 'filler');
  }

  /**
   * Mounts a tmpfs of `size` at `path` until the end of the test. Where that may not be done the test is
   * skipped, or failed under `CI=true`, and must return at once.
   */
  static async mount(
    t: Skippable & { teardown(end: () => Promise<void>): void },
    path: string,
    size: string,
  ): Promise<SmallDisk | undefined> {
    mkdirSync(path);
    const { status, stderr } = await run('mount', [
      '-t',
      'tmpfs',
      '-o',
      `size=${size}`,
      'cowbell-test',
      path,
    ]);
    if (status !== 0) {
      skipOrFail(t, `missing the right to mount a tmpfs: ${stderr.trim()}`);
      return undefined;
    }
    // Lazily: after a failed test something may still hold a file there.
    t.teardown(async () => {
      await run('umount', ['--lazy', path]);
    });
    return new SmallDisk(path);
  }

  get freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.path);
    return bavail * bsize;
  }

  /** Leaves this much room. */
  fill(leaveBytes: number): void {
    this.free();
    const pieces = Math.floor((this.freeBytes - leaveBytes) / PIECE_BYTES);
    writeFileSync(this.#filler, Buffer.alloc(Math.max(0, pieces) * PIECE_BYTES));
  }

  /** Gives back all that `fill` took. */
  free(): void {
    rmSync(this.#filler, { force: true });
  }
}
