/**
 * The files of sets in a directory: their names, and what a crash left of sets that were being written.
 *
 *     <id>-<lane>.cbs           a lane of a complete set
 *     <id>-<lane>.cbs.partial   a lane that is being written, or was cut off
 *
 * Lane 0 is made first and removed last, and gets its name last: without it the other lanes are of no use. A
 * partial set whose writer lives, which the flock on lane 0 shows, is left alone.
 */

import { closeSync, existsSync, openSync, readdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
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
  const known = new Set(files.filter(({ lane }) => lane === 0).map(({ id }) => id));
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
