/**
 * What `bench/backup` saves: an ext4 filesystem with a copy of files of /usr in a raw file, the same file with a hole
 * behind it, and a volume at rest over such a file.
 *
 * The files are hard links in a scratch directory where the filesystem allows that, so that only the image takes room.
 * They are chosen evenly over the whole tree, in the order of their names: the image is the same on each run of a
 * machine, and has text, programs and compressed files as they occur. All contenders read one file, one after the
 * other, so that they find the same bytes in the same state of the page cache.
 */

import { randomBytes } from 'node:crypto';
import {
  constants,
  copyFileSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  rmSync,
  truncateSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { must, mustCowbell, startCowbell } from '../native-tests/support/process.ts';
import { findTool } from '../native-tests/support/tools.ts';
import { NbdClient } from '../src/nbd/index.ts';

export const TRACK_BYTES = 65_536;
const MIB = 1024 ** 2;
const BLOCK_BYTES = 4096;

const SOURCE = '/usr';

/** Of the image; the rest is inode tables, the journal and directories. */
const SHARE_OF_FILES = 0.85;

interface Found {
  readonly path: string;
  readonly bytes: number;
}

/** Regular files below a directory with the room they take, by name. */
function filesBelow(directory: string): Found[] {
  const found: Found[] = [];
  for (const entry of readdirSync(directory, { withFileTypes: true }).sort((a, b) =>
    a.name < b.name ? -1 : 1,
  )) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) found.push(...filesBelow(path));
    else if (entry.isFile()) {
      found.push({ path, bytes: Math.ceil(lstatSync(path).size / BLOCK_BYTES) * BLOCK_BYTES });
    }
  }
  return found;
}

/** So many bytes of files, spread evenly over all; all where there are fewer. */
function choose(files: readonly Found[], bytesMax: number): Found[] {
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  const share = Math.min(1, bytesMax / total);
  const chosen: Found[] = [];
  let [passed, taken] = [0, 0];
  for (const file of files) {
    passed += file.bytes;
    if (taken + file.bytes / 2 > passed * share) continue;
    taken += file.bytes;
    chosen.push(file);
  }
  return chosen;
}

function linkOrCopy(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    copyFileSync(from, to, constants.COPYFILE_FICLONE);
  }
}

/**
 * Makes the image at `path`.
 *
 * @returns the bytes that are not a hole.
 */
export async function makeImage(path: string, sizeBytes: number): Promise<number> {
  const tree = `${path}.tree`;
  try {
    for (const { path: from } of choose(filesBelow(SOURCE), sizeBytes * SHARE_OF_FILES)) {
      const to = join(tree, from);
      mkdirSync(dirname(to), { recursive: true });
      linkOrCopy(from, to);
    }
    const mkfs = findTool('mkfs.ext4') ?? 'mkfs.ext4';
    const kib = String(sizeBytes / 1024);
    const style = ['-i', '8192', '-E', 'lazy_itable_init=1'];
    await must(mkfs, ['-q', '-F', ...style, '-d', tree, path, kib], { timeoutMs: 600_000 });
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
  await must('sync', ['-f', path], { timeoutMs: 600_000 });
  return lstatSync(path).blocks * 512;
}

/** A copy of the image with a hole behind it. */
export async function makeSparseCopy(image: string, path: string, sizeBytes: number): Promise<void> {
  rmSync(path, { force: true });
  await must('cp', ['--sparse=always', image, path], { timeoutMs: 600_000 });
  truncateSync(path, sizeBytes);
}

/** A volume that nobody serves, over a file that is there already. */
export class VolumeAtRest {
  readonly directory: string;
  readonly home: string;
  readonly sizeBytes: number;

  private constructor(directory: string, home: string, sizeBytes: number) {
    this.directory = directory;
    this.home = home;
    this.sizeBytes = sizeBytes;
  }

  static async create(directory: string, home: string): Promise<VolumeAtRest> {
    const { size } = lstatSync(home);
    await mustCowbell(['volume', 'create', directory, '--size', String(size), '--home', home]);
    return new VolumeAtRest(directory, home, size);
  }

  /**
   * Serves the volume, writes random bytes over that share of the first tracks, each anywhere and whole, and ends.
   *
   * @param withinBytes where there is data.
   */
  async change(share: number, withinBytes: number): Promise<void> {
    const server = startCowbell(['serve', this.directory]);
    const uri = (await server.waitForLine(/^ready nbd/)).slice('ready '.length);
    const client = await NbdClient.connect(uri);
    const trackCount = Math.floor(withinBytes / TRACK_BYTES);
    const tracks = new Set<number>();
    while (tracks.size < trackCount * share) tracks.add(Math.floor(Math.random() * trackCount));
    for (const track of tracks) await client.write(randomBytes(TRACK_BYTES), track * TRACK_BYTES);
    await client.flush();
    await client.disconnect();
    await server.stop();
  }
}

/** As much as these files and directories take on the disk. */
export function bytesOnDisk(path: string): number {
  const stats = lstatSync(path);
  const own = stats.blocks * 512;
  if (!stats.isDirectory()) return own;
  return readdirSync(path).reduce((sum, name) => sum + bytesOnDisk(join(path, name)), own);
}

/** Brings the first bytes of a file into the page cache; what stayed there since the turn before is not read again. */
export async function keepWarm(path: string, bytes: number): Promise<void> {
  const count = `count=${Math.ceil(bytes / MIB)}`;
  await must('dd', [`if=${path}`, 'of=/dev/null', 'bs=1M', count, 'status=none'], { timeoutMs: 600_000 });
}
