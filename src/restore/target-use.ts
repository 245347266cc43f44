/**
 * Who uses a file or block device already: mounts, swap, loop devices, device mapper and md.
 *
 * A restore overwrites its target, so a target in use is refused. The kernel's own word for block devices is
 * an exclusive open (`targets.ts`); what is read here adds the reason, the partitions of a disk and the disk
 * of a partition, and is all there is for a file behind a loop device or swapped to.
 *
 * Reads `/proc` and `/sys` only. What another mount namespace has mounted does not show in its mounts, but
 * does refuse the exclusive open.
 */

import type { Stats } from 'node:fs';
import { readdir, readFile, realpath, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';

/** Where the kernel's tables are; tests put their own. */
export interface KernelTables {
  readonly mountinfoPath: string;
  readonly swapsPath: string;
  readonly sysPath: string;
}

export const KERNEL_TABLES: KernelTables = {
  mountinfoPath: '/proc/self/mountinfo',
  swapsPath: '/proc/swaps',
  sysPath: '/sys',
};

/**
 * What uses a regular file as a whole.
 *
 * @returns words for a message, such as `attached as /dev/loop0`, or undefined.
 */
export async function fileUse(
  stats: Pick<Stats, 'dev' | 'ino'>,
  tables: KernelTables = KERNEL_TABLES,
): Promise<string | undefined> {
  const same = (other: Stats | undefined): boolean => other?.dev === stats.dev && other.ino === stats.ino;
  for (const name of await namesIn(join(tables.sysPath, 'block'))) {
    if (!name.startsWith('loop')) continue;
    const backing = await textOf(join(tables.sysPath, 'block', name, 'loop/backing_file'));
    if (backing === '') continue;
    if (same(await statOf(backing.replace(/\n$/, '')))) return `attached as /dev/${name}`;
  }
  for (const path of await swapPaths(tables)) {
    if (same(await statOf(path))) return 'used as swap';
  }
  return undefined;
}

/**
 * What uses a block device, one of its partitions or the disk it is a partition of.
 *
 * @param device `major:minor`, see `deviceNumber`.
 * @returns words for a message, such as `mounted at /home`, or undefined.
 */
export async function blockDeviceUse(
  device: string,
  tables: KernelTables = KERNEL_TABLES,
): Promise<string | undefined> {
  const related = await relatedDevices(device, tables);
  const isRelated = async (path: string): Promise<boolean> => {
    const stats = await statOf(path);
    return stats?.isBlockDevice() === true && related.has(deviceNumber(stats.rdev));
  };
  for (const mount of parseMountinfo(await textOf(tables.mountinfoPath))) {
    // A filesystem over several devices shows a number of its own; its source still names one of them.
    const used =
      related.has(mount.device) || (mount.source.startsWith('/') && (await isRelated(mount.source)));
    if (used) return `mounted at ${mount.mountPoint}`;
  }
  for (const path of await swapPaths(tables)) {
    if (await isRelated(path)) return 'used as swap';
  }
  for (const number of related) {
    const [holder] = await namesIn(join(tables.sysPath, 'dev/block', number, 'holders'));
    if (holder !== undefined) return `held by ${holder}`;
  }
  return undefined;
}

/** `major:minor` of a device number as `stat` gives it (makedev(3)). */
export function deviceNumber(rdev: number): string {
  const major = Math.floor(rdev / 2 ** 8) % 2 ** 12;
  const minor = (rdev % 2 ** 8) + Math.floor(rdev / 2 ** 20) * 2 ** 8;
  return `${major}:${minor}`;
}

export interface Mount {
  readonly device: string;
  readonly mountPoint: string;
  readonly source: string;
}

/** Parses proc_pid_mountinfo(5); lines of another form are left out. */
export function parseMountinfo(text: string): Mount[] {
  return text.split('\n').flatMap((line) => {
    const [place, origin] = line.split(' - ');
    const [, , device, , mountPoint] = place?.split(' ') ?? [];
    const [, source] = origin?.split(' ') ?? [];
    if (device === undefined || mountPoint === undefined || source === undefined) return [];
    return [{ device, mountPoint: unescaped(mountPoint), source: unescaped(source) }];
  });
}

/** The kernel writes white space and backslashes in these tables as three octal digits. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** The device itself, its partitions, and the disk it is a partition of. */
async function relatedDevices(device: string, tables: KernelTables): Promise<Set<string>> {
  const related = new Set([device]);
  const place = join(tables.sysPath, 'dev/block', device);
  for (const name of await namesIn(place)) {
    if ((await textOf(join(place, name, 'partition'))) === '') continue;
    related.add((await textOf(join(place, name, 'dev'))).trim());
  }
  if ((await textOf(join(place, 'partition'))) !== '') {
    const disk = dirname(await realpath(place));
    related.add((await textOf(join(disk, 'dev'))).trim());
  }
  related.delete('');
  return related;
}

async function swapPaths(tables: KernelTables): Promise<string[]> {
  const lines = (await textOf(tables.swapsPath)).split('\n').slice(1);
  return lines.flatMap((line) => {
    const path = line.split(/\s/)[0] ?? '';
    return path.startsWith('/') ? [unescaped(path)] : [];
  });
}

/** A table that is not there, or may not be read, says nothing. */
async function textOf(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}

async function namesIn(path: string): Promise<string[]> {
  return readdir(path).catch(() => []);
}

async function statOf(path: string): Promise<Stats | undefined> {
  return stat(path).catch(() => undefined);
}
