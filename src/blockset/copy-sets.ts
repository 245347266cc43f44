/**
 * Copies sets to another store, as they are: same ids, same points, same seals, byte by byte; between encrypted stores
 * the key of each file is wrapped anew, which the seal leaves out. What the other store has
 * already is left out, so that a copy that was interrupted goes on.
 *
 *     the files of all lanes into `sets/<id>.copy/`, fdatasync each       sync `set-data`
 *     the copy is opened and every byte of it checked
 *     renamed into `sets/`, lane 0 last, fsync                            sync `set-directory`
 *     catalog record                                                      sync `catalog`
 *
 * Bases go first, so that no set stands in the other store without what it builds on. Lanes that lie in other
 * directories come to lie beside lane 0. Cut before the rename of lane 0, the copy is removed at the next opening of
 * the store; the set being copied is leased meanwhile.
 */

import { closeSync, mkdirSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { assert, CorruptionError, MIB, syncDirectory, syncPath, tryLock } from '../base/index.ts';
import { asStoreErrorsLater, StoreError } from './errors.ts';
import {
  baseKey,
  chainOf,
  completeSets,
  dependentsFirst,
  isKnown,
  ownKey,
  type StoredSet,
} from './lineage.ts';
import { copyDirectory } from './set-files.ts';
import { laneFileName } from './set-format.ts';
import type { SetReader } from './set-reader.ts';
import type { Store } from './store.ts';

export interface CopyOptions {
  /** Copy what the sets build on too. */
  readonly chain?: boolean;
  readonly signal?: AbortSignal;
  /** Called with the bytes copied, and again with those checked, since the last call. */
  readonly onProgress?: (bytes: number) => void;
}

export interface CopiedSet {
  readonly set: StoredSet;
  /** Whether the target had it already, with the same seal. */
  readonly isPresent: boolean;
}

const PIECE_BYTES = MIB;

/**
 * Copies sets, each durable and visible in the target before the next is begun.
 *
 * @param ids whole ids, as `find` gives them.
 * @throws {StoreError} `unknown-set`; `missing-base` where the target would lack what a set builds on; `wrong-key`
 *   where only one of the stores is encrypted; `no-space`, `io`,
 *   `locked`, `removed` or `read-only`.
 * @throws {CorruptionError} where a set is damaged, or the target has another set of its id.
 */
export async function* copySets(
  source: Store,
  target: Store,
  ids: readonly string[],
  options: CopyOptions = {},
): AsyncGenerator<CopiedSet> {
  target.assertCanTakeFrom(source);
  const sets = await source.list();
  const wanted = new Set(
    ids.flatMap((id) => (options.chain === true ? chainOf(sets, id).map((set) => set.id) : id)),
  );
  const going = dependentsFirst(sets)
    .filter(({ id }) => wanted.has(id))
    .toReversed();
  const unknown = [...wanted].find((id) => !going.some((set) => set.id === id));
  if (unknown !== undefined) {
    throw new StoreError('unknown-set', `No set in the store is ${unknown}`, {
      selector: unknown,
      candidates: [],
    });
  }
  const there = await target.list();
  assertBases(going, there);
  await target.learnLineage(source, going);
  for (const set of going) {
    const isPresent = isSame(set, there);
    if (!isPresent) await copySet(source, target, set, options);
    yield { set, isPresent };
  }
}

/** Each set that goes must find its base there, or go with it. */
function assertBases(going: readonly StoredSet[], there: readonly StoredSet[]): void {
  const held = new Set([...completeSets(there)].filter(isKnown).map(ownKey));
  for (const set of going.filter(isKnown)) {
    const { base } = set.header;
    if (base !== null && !held.has(baseKey(set))) {
      const message = `Set ${set.id} builds on point ${base}, which the target does not hold: copy the chain`;
      throw new StoreError('missing-base', message, { set: set.id, base });
    }
    held.add(ownKey(set));
  }
}

function isSame(set: StoredSet, there: readonly StoredSet[]): boolean {
  const other = there.find(({ id }) => id === set.id);
  if (other === undefined) return false;
  if (other.seal === set.seal && other.damage === undefined) return true;
  throw new CorruptionError(
    `The target has a set ${set.id} that is not the same: ${other.damage ?? 'its seal differs'}`,
    { where: other.path },
  );
}

async function copySet(source: Store, target: Store, set: StoredSet, options: CopyOptions): Promise<void> {
  const reader = source.openSet(set);
  const directory = copyDirectory(join(target.path, 'sets'), set.id);
  let lock: number | undefined;
  try {
    await asStoreErrorsLater(directory, async () => {
      mkdirSync(directory);
      for (const [lane, path] of reader.paths.entries()) {
        const copy = join(directory, laneFileName(set.id, lane));
        const descriptor = openSync(copy, 'wx', 0o600);
        if (lane === 0) {
          lock = descriptor;
          assert(tryLock(descriptor, 'exclusive'), `The new file ${copy} is locked`);
        }
        copyFile(path, descriptor, options);
        await target.takeOverKey(source, copy);
        await syncPath('set-data', copy);
        if (lane !== 0) closeSync(descriptor);
      }
      await syncDirectory('set-directory', directory);
    });
    const copied = target.openCopied(join(directory, laneFileName(set.id, 0)), reader.seal);
    await check(copied, options);
    await target.adopt(set.id, directory);
  } finally {
    if (lock !== undefined) closeSync(lock);
    rmSync(directory, { recursive: true, force: true });
    await reader.close();
  }
}

function copyFile(path: string, target: number, { signal, onProgress }: CopyOptions): void {
  const source = openSync(path, 'r');
  try {
    const piece = Buffer.allocUnsafe(PIECE_BYTES);
    for (let offset = 0; ;) {
      signal?.throwIfAborted();
      const bytes = readSync(source, piece, 0, PIECE_BYTES, offset);
      if (bytes === 0) return;
      for (let done = 0; done < bytes;) done += writeSync(target, piece, done, bytes - done, offset + done);
      offset += bytes;
      onProgress?.(bytes);
    }
  } finally {
    closeSync(source);
  }
}

/** Every byte of the copy, before it counts. */
async function check(copy: SetReader, { signal, onProgress }: CopyOptions): Promise<void> {
  try {
    for (const plan of copy.readPlan(copy.present)) {
      signal?.throwIfAborted();
      copy.readFrame(plan);
      onProgress?.(plan.tracks.length * copy.header.trackSizeBytes);
    }
  } finally {
    await copy.close();
  }
}
