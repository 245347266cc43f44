/** A filesystem in memory of a size that tests can fill up, and can remount read-only. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';

/**
 * Mounts a tmpfs of `sizeBytes` on a new directory until the end of the test.
 *
 * @returns the directory, or undefined, said loudly, where it cannot be mounted; the test must return then.
 */
export function mountTmpfs(t: Test, sizeBytes: number): string | undefined {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-tmpfs-'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes}`, 'tmpfs', directory], {
      stdio: 'ignore',
    });
  } catch {
    rmdirSync(directory);
    t.comment('SKIPPED: mounting a tmpfs needs root');
    return undefined;
  }
  t.teardown(() => {
    // Lazily: after a failed test something may still hold a file there.
    execFileSync('umount', ['-l', directory]);
    rmdirSync(directory);
  });
  return directory;
}
