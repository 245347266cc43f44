/**
 * What native tests need from the machine. A test whose tools are missing is skipped with a reason that
 * `scripts/test` prints; where `CI=true` it fails, so that a workshop without its tools cannot look green.
 */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';

/** The part of a tap test that a skip needs. */
export interface Skippable {
  pass(message: string, extra: { skip: string }): unknown;
  fail(message: string): unknown;
}

/** The Debian package of each tool, for the reason of a skip. */
const PACKAGES: Readonly<Record<string, string>> = {
  cpio: 'cpio',
  debugfs: 'e2fsprogs',
  e2fsck: 'e2fsprogs',
  fio: 'fio',
  fstrim: 'util-linux',
  fusermount3: 'fuse3',
  losetup: 'mount',
  'mkfs.ext4': 'e2fsprogs',
  'mkfs.xfs': 'xfsprogs',
  'nbd-client': 'nbd-client',
  nbdcopy: 'libnbd-bin',
  nbdfuse: 'libnbd-bin',
  nbdinfo: 'libnbd-bin',
  nbdkit: 'nbdkit',
  openssl: 'openssl',
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  'qemu-system-x86_64': 'qemu-system-x86',
  sqlite3: 'sqlite3',
  xfs_repair: 'xfsprogs',
};

/** System tools live in `sbin` directories, which the path of an ordinary user leaves out. */
const SYSTEM_DIRECTORIES = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

/** The absolute path of a tool, or undefined where it is not installed. */
export function findTool(name: string): string | undefined {
  const directories = [...(process.env['PATH'] ?? '').split(':'), ...SYSTEM_DIRECTORIES];
  return directories
    .filter((directory) => directory !== '')
    .map((directory) => join(directory, name))
    .find(isExecutable);
}

/**
 * True when all tools are there. Otherwise the test is skipped with the reason, or failed where `CI=true`,
 * and must return at once.
 */
export function requireTools(t: Skippable, names: readonly string[]): boolean {
  const missing = names.filter((name) => findTool(name) === undefined);
  if (missing.length === 0) return true;
  const described = missing.map((name) => `${name} (Debian package ${PACKAGES[name] ?? name})`);
  skipOrFail(t, `missing ${described.join(', ')}`);
  return false;
}

/** Skips the test loudly, or fails it where `CI=true`. The test must return at once. */
export function skipOrFail(t: Skippable, reason: string): void {
  if (process.env['CI'] === 'true') t.fail(`${reason}; a skip is a failure where CI=true`);
  else t.pass('not run', { skip: reason });
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
