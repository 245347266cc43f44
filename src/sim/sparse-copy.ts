/** Copies of files as they are now, without writing out their holes: a clone where the filesystem can, else data only. */

import {
  closeSync,
  constants,
  copyFileSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { MIB, seekData, seekHole } from '../base/index.ts';

let canClone = true;
const buffer = Buffer.alloc(MIB);

/** Makes `target`, which must not exist, a copy of `source`. */
export function copySparse(source: string, target: string): void {
  if (canClone) {
    try {
      copyFileSync(source, target, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL);
      return;
    } catch {
      canClone = false;
      removeIfThere(target);
    }
  }
  const from = openSync(source, 'r');
  const to = openSync(target, 'wx');
  try {
    copyData(from, to);
  } finally {
    closeSync(from);
    closeSync(to);
  }
}

/** Makes the existing file `target` equal to `source`, in its inode. */
export function overwriteSparse(source: string, target: string): void {
  const from = openSync(source, 'r');
  const to = openSync(target, 'r+');
  try {
    ftruncateSync(to, 0);
    copyData(from, to);
  } finally {
    closeSync(from);
    closeSync(to);
  }
}

function copyData(from: number, to: number): void {
  const size = fstatSync(from).size;
  ftruncateSync(to, size);
  let at = seekData(from, 0);
  while (at !== undefined && at < size) {
    const end = Math.min(seekHole(from, at) ?? size, size);
    while (at < end) {
      const count = readSync(from, buffer, 0, Math.min(buffer.length, end - at), at);
      if (count === 0) return;
      writeSync(to, buffer, 0, count, at);
      at += count;
    }
    at = seekData(from, end);
  }
}

function removeIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // A clone that was refused leaves nothing on most filesystems.
  }
}
