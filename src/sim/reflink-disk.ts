/** A filesystem whose files can share blocks (xfs with reflink), for tests, where the machine's own cannot. */

import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { MIB } from '../base/index.ts';
import { makeScratchDirectory } from './scratch.ts';

/** The least that mkfs.xfs takes, and some room; the file behind it is sparse. */
const SIZE_BYTES = 512 * MIB;

/**
 * Mounts a new xfs until the end of the test.
 *
 * @returns its directory, or undefined, said loudly, where it cannot be made; the test must return then.
 */
export function mountReflinkDisk(t: Pick<Test, 'comment' | 'teardown'>): string | undefined {
  const parent = makeScratchDirectory();
  const [image, directory] = [join(parent, 'disk'), join(parent, 'mounted')];
  const run = (command: string, ...args: string[]): unknown =>
    execFileSync(command, args, {
      stdio: 'pipe',
      env: { ...process.env, PATH: '/usr/sbin:/sbin:/usr/bin:/bin' },
    });
  try {
    mkdirSync(directory);
    writeFileSync(image, '');
    truncateSync(image, SIZE_BYTES);
    run('mkfs.xfs', '-q', '-m', 'reflink=1', image);
    run('mount', '-o', 'loop', image, directory);
  } catch {
    rmSync(parent, { recursive: true, force: true });
    t.comment('SKIPPED: making a filesystem with shared blocks needs root, a loop device, xfs and mkfs.xfs');
    return undefined;
  }
  t.teardown(() => {
    // Lazily: after a failed test something may still hold a file there.
    run('umount', '--lazy', directory);
    rmSync(parent, { recursive: true, force: true });
  });
  return directory;
}
