/**
 * A lane's file that is being made: with an flock that shows to others that its writer lives, and with every database
 * that a lane has, since a reader misses one that is not there.
 */

import { closeSync, openSync, rmSync } from 'node:fs';
import { assert, tryLock } from '../base/index.ts';
import { type LmdbFile, openLmdb } from '../records/index.ts';
import { DATABASES } from './set-format.ts';

export interface NewLaneFile {
  readonly file: LmdbFile;
  /** The descriptor that holds the lock; closed by whoever closes the file. */
  readonly lock: number;
}

/**
 * @param path where nothing is yet.
 * @param fill puts what is known from the start.
 * @throws {LmdbError} and system errors; nothing is left of the file then.
 */
export function newLaneFile(path: string, fill: (file: LmdbFile) => void = () => undefined): NewLaneFile {
  const lock = openSync(path, 'wx', 0o600);
  let file: LmdbFile | undefined;
  try {
    assert(tryLock(lock, 'exclusive'), `The new file ${path} is locked`);
    file = openLmdb(path, { create: true, bulk: true, ownLock: true });
    for (const name of Object.values(DATABASES)) file.database(name);
    fill(file);
    return { file, lock };
  } catch (error) {
    // The file is of no use and nobody else knows it; LMDB's mapping of it goes with the process at the latest.
    void file?.close();
    rmSync(path, { force: true });
    rmSync(`${path}-lock`, { force: true });
    closeSync(lock);
    throw error;
  }
}
