/**
 * The files of sets in a directory: their names, and what a crash left of sets that were being written.
 *
 *     <id>-<lane>.cbs           a lane of a complete set
 *     <id>-<lane>.cbs.partial   a lane that is being written, or was cut off
 *
 *     <id>-0.cbs.removed        lane 0 of a set that is being removed, or whose removal was cut off
 *     <id>.copy/                a set that is being copied here
 *
 * Lane 0 is made first and removed last, and gets its name last: without it the other lanes are of no use. A
 * partial set whose writer lives, which the flock on lane 0 shows, is left alone.
 */

import { closeSync, existsSync, openSync, readdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { CorruptionError, syncDirectory, syncPath, systemCode, tryLock } from '../base/index.ts';
import { LmdbError, openLmdb } from '../records/index.ts';
import { StoreError } from './errors.ts';
import { LaneReader } from './lane-reader.ts';
import { fileCipher, type MasterKey } from './master-key.ts';
import { renameLanes } from './set-assembly.ts';
import {
  DATABASES,
  decodeHeader,
  decodeLaneRecord,
  decodeSeal,
  KEY_KEY,
  laneFileName,
  type LaneRecord,
} from './set-format.ts';
import { encryptedFile } from './value-cipher.ts';

const ID_LENGTH = 26;
const REMOVED_NAME = /^([0-9A-HJKMNP-TV-Z]{26})-0\.cbs\.removed$/;
const COPY_NAME = /^([0-9A-HJKMNP-TV-Z]{26})\.copy$/;
const NAME = /^([0-9A-HJKMNP-TV-Z]{26})-([0-9]{1,2})\.cbs(\.partial)?$/;

export interface SetFile {
  readonly id: string;
  readonly lane: number;
  readonly partial: boolean;
}

/** The files of sets in a directory, by name; others are left out. */
export function listSetFiles(directory: string): SetFile[] {
  const files: SetFile[] = [];
  for (const name of readdirSync(directory).sort()) {
    const [, id, lane, partial] = NAME.exec(name) ?? [];
    if (id !== undefined) files.push({ id, lane: Number(lane), partial: partial !== undefined });
  }
  return files;
}

/** The sets of a directory whose removal was begun. */
export function listRemoved(directory: string): string[] {
  return readdirSync(directory).flatMap((name) => REMOVED_NAME.exec(name)?.[1] ?? []);
}

/**
 * Unlinks what is left of a set whose lane 0 was renamed, and which the catalog does not name any more: the lanes in
 * other directories, as lane 0 says, those beside it, and last lane 0, which tells of the others. Of other directories
 * only those of this store count: a set that was copied here names those of the store it came from.
 *
 * @param path of lane 0 as it was.
 * @param master of an encrypted store.
 */
export async function unlinkRemoved(path: string, storeId: string, master?: MasterKey): Promise<void> {
  const id = basename(path).slice(0, ID_LENGTH);
  const removed = removedPath(path);
  const own = [dirname(path), storeId];
  for (const lane of otherLanes(path, id, await readLaneRecord(removed, master))) {
    const directory = dirname(lane.path);
    if (own.includes(directory) || own.includes(basename(directory))) removeLane(lane.path);
  }
  for (const file of listSetFiles(dirname(path))) {
    if (file.id === id && file.lane > 0) removeLane(join(dirname(path), laneFileName(id, file.lane)));
  }
  removeLane(removed);
  rmSync(`${path}-lock`, { force: true });
}

/** What lane 0 is called while its set is being removed. */
export function removedPath(path: string): string {
  return `${path}.removed`;
}

/** Removes what copies that were cut off left; one that is being made, which its flock shows, is left alone. */
export function removeCutCopies(directory: string): void {
  for (const name of readdirSync(directory)) {
    const id = COPY_NAME.exec(name)?.[1];
    if (id === undefined) continue;
    const copy = join(directory, name);
    const first = join(copy, laneFileName(id, 0));
    const descriptor = existsSync(first) ? openSync(first, 'r') : undefined;
    const isLive = descriptor !== undefined && !tryLock(descriptor, 'exclusive');
    if (descriptor !== undefined) closeSync(descriptor);
    if (!isLive) rmSync(copy, { recursive: true, force: true });
  }
}

/** Where a set lies while it is being copied into the store that has this directory of sets. */
export function copyDirectory(directory: string, id: string): string {
  return join(directory, `${id}.copy`);
}

/**
 * Finishes the partial sets of a directory that are sealed, and removes those that are not.
 *
 * @param master of an encrypted store.
 */
export async function settlePartials(directory: string, master?: MasterKey): Promise<void> {
  const files = listSetFiles(directory);
  for (const { id, lane, partial } of files) {
    if (partial && lane === 0) await settle(join(directory, laneFileName(id, 0)), id, master);
  }
  const firsts = files.filter(({ lane }) => lane === 0).map(({ id }) => id);
  const known = new Set([...firsts, ...listRemoved(directory)]);
  await removeOrphans(directory, (id) => known.has(id));
}

/** Removes the further lanes of sets that have no lane 0 any more, of which only a crash can leave some. */
export async function removeOrphans(directory: string, hasFirst: (id: string) => boolean): Promise<void> {
  const orphans = listSetFiles(directory).filter(({ id, lane }) => lane > 0 && !hasFirst(id));
  for (const { id, lane, partial } of orphans) {
    removeLane(join(directory, `${laneFileName(id, lane)}${partial ? '.partial' : ''}`));
  }
  if (orphans.length > 0) await syncDirectory('set-directory', directory);
}

/** @param path of lane 0 when it is complete. */
async function settle(path: string, id: string, master: MasterKey | undefined): Promise<void> {
  const partialPath = `${path}.partial`;
  let descriptor: number;
  try {
    descriptor = openSync(partialPath, 'r');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return;
    throw error;
  }
  try {
    if (!tryLock(descriptor, 'exclusive')) return;
    const sealed = await isSealed(partialPath, master);
    if (sealed === undefined) return;
    const others = otherLanes(path, id, await readLaneRecord(partialPath, master));
    if (sealed) {
      // With a lane on a disk that is away the set stays invisible until it is back (promise 5).
      if (others.some((lane) => !existsSync(lane.partialPath) && !existsSync(lane.path))) return;
      // The seal may have been seen in the page cache only.
      await syncPath('set-seal', partialPath);
      await renameLanes([{ partialPath, path }, ...others.filter((lane) => existsSync(lane.partialPath))]);
    } else {
      for (const lane of others) removeLane(lane.partialPath);
      for (const directory of new Set(others.map((lane) => dirname(lane.path)))) {
        if (existsSync(directory)) await syncDirectory('set-directory', directory);
      }
      removeLane(partialPath);
      await syncDirectory('set-directory', dirname(path));
    }
    rmSync(`${partialPath}-lock`, { force: true });
  } finally {
    closeSync(descriptor);
  }
}

function otherLanes(
  path: string,
  id: string,
  record: LaneRecord | undefined,
): { partialPath: string; path: string }[] {
  const directories = record?.directories ?? [];
  return directories.slice(1).map((directory, index) => {
    const lane = join(directory === '' ? dirname(path) : directory, laneFileName(id, index + 1));
    return { partialPath: `${lane}.partial`, path: lane };
  });
}

function removeLane(path: string): void {
  rmSync(path, { force: true });
  rmSync(`${path}-lock`, { force: true });
}

/**
 * Whether a partial set is sealed. A seal over metadata that does not match it reached the disk without its
 * sync having ended, so it seals nothing. The further lanes were durable before the seal was written. Undefined
 * where the file cannot be judged: a later version's, one that cannot be opened, or one that is sealed and yet
 * cannot be read.
 */
async function isSealed(partialPath: string, master: MasterKey | undefined): Promise<boolean | undefined> {
  let agrees = false;
  try {
    const lane = LaneReader.open(
      partialPath,
      (digest, sealRecord) => {
        const { lanes } = decodeSeal(sealRecord ?? Buffer.alloc(0), partialPath);
        agrees = lanes[0]?.metadata.equals(digest) === true;
        if (!agrees)
          throw new CorruptionError(`Seal of ${partialPath} is of other metadata`, { where: partialPath });
      },
      master,
    );
    await lane.close();
    return agrees;
  } catch (error) {
    if (error instanceof CorruptionError) return agrees ? undefined : false;
    if (error instanceof StoreError) return undefined;
    throw error;
  }
}

/** What a lane that was cut off says of the others; undefined where it cannot be read. */
async function readLaneRecord(path: string, master: MasterKey | undefined): Promise<LaneRecord | undefined> {
  try {
    const file = openLmdb(path, { readOnly: true, ownLock: true });
    try {
      const cipher = fileCipher(file.database(DATABASES.header).get(KEY_KEY), master, path);
      const records = encryptedFile(file, cipher).database(DATABASES.header);
      const { lanes } = decodeHeader(records.get('set'), path);
      return decodeLaneRecord(records.get('lane'), lanes, path);
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof LmdbError) return undefined;
    throw error;
  }
}
