/**
 * Whether a file or block device can be zeroed without writing zeroes: what `fastZero` declares.
 *
 * Asked at open and without touching the file. Punching behind its end would change no byte, but sets its time of
 * modification (seen on ext4, xfs and tmpfs), by which a volume knows that nobody wrote to its home meanwhile.
 * So a nameless file beside it stands in: the same filesystem, gone when it is closed. Where the filesystem has
 * no nameless files, or the directory may not be written to, nobody can tell, and the answer is no.
 *
 * A block device says of itself what it can; a punch fails there instead of writing (BLKDEV_ZERO_NOFALLBACK).
 */

import { constants, type Stats } from 'node:fs';
import { open, readFile, realpath } from 'node:fs/promises';
import { dirname } from 'node:path';
import { hasSparseFiles, LIMITS, punchHole } from '../base/index.ts';

/** Linux's flag for a nameless file, without O_DIRECTORY, which is part of it; Node has no name for it. */
const O_TMPFILE = 0o20_000_000;

/** @param stats of the open file or block device. Never fails: what cannot be found out is no. */
export async function canPunchHoles(path: string, stats: Stats): Promise<boolean> {
  if (!hasSparseFiles()) return false;
  try {
    return stats.isBlockDevice() ? await hasWriteZeroes(stats.rdev) : await punchesBeside(path, stats.dev);
  } catch {
    return false;
  }
}

async function punchesBeside(path: string, device: number): Promise<boolean> {
  const directory = dirname(await realpath(path));
  const handle = await open(directory, constants.O_DIRECTORY | O_TMPFILE | constants.O_RDWR, 0o600);
  try {
    if ((await handle.stat()).dev !== device) return false;
    const bytes = Buffer.alloc(LIMITS.blockSizeBytesPreferred, 1);
    await handle.write(bytes, 0, bytes.length, 0);
    if (!(await punchHole(handle.fd, 0, bytes.length))) return false;
    const { bytesRead } = await handle.read(bytes, 0, bytes.length, 0);
    return bytes.subarray(0, bytesRead).every((byte) => byte === 0);
  } finally {
    await handle.close();
  }
}

/** What the kernel says of the device, or of the disk that the partition is on. */
async function hasWriteZeroes(deviceNumber: number): Promise<boolean> {
  // The kernel's split of a device number, see makedev(3).
  const major = Math.floor(deviceNumber / 256) % 4096;
  const minor = (deviceNumber % 256) + Math.floor(deviceNumber / 2 ** 20) * 256;
  const directory = await realpath(`/sys/dev/block/${major}:${minor}`);
  const read = (place: string) => readFile(`${directory}/${place}/write_zeroes_max_bytes`, 'latin1');
  const text = await read('queue').catch(() => read('../queue'));
  return Number(text) > 0;
}
