/**
 * The catalog: which complete sets a store has, so that listing them need not open each.
 *
 * It is an index and nothing more. Whatever it says can be read again from the sets, and is, where it is
 * missing or damaged. What only it holds is a second copy of each seal: a set file that was exchanged for
 * another whole one shows by that.
 *
 * The callers hold the store's lock: shared to read, since a commit in another process would reuse pages
 * under the reader's hands, exclusive to write.
 */

import { existsSync, rmSync } from 'node:fs';
import { CorruptionError } from '../base/index.ts';
import { LmdbError, openLmdb } from '../records/index.ts';
import { decodeSealedSet, encodeSealedSet, type SealedSet } from './set-format.ts';
import { encryptedFile, type ValueCipher } from './value-cipher.ts';

export type CatalogEntry = SealedSet;

const DATABASE = 'sets';

/**
 * All entries, by id.
 *
 * @param cipher of an encrypted store.
 * @returns undefined where there is no catalog, or it is damaged: it is to be made anew from the sets.
 */
export async function readCatalog(
  path: string,
  cipher?: ValueCipher,
): Promise<Map<string, CatalogEntry> | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    const file = encryptedFile(openLmdb(path, { readOnly: true }), cipher);
    try {
      const entries = new Map<string, CatalogEntry>();
      for (const { key, value } of file.database(DATABASE).range()) {
        const id = key.toString();
        entries.set(id, decodeSealedSet(value, `${path} ${id}`));
      }
      return entries;
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof LmdbError) return undefined;
    throw error;
  }
}

/**
 * Makes the catalog say what `entries` say in place of what it said, durably. Entries that are null are
 * removed; others that it has stay.
 *
 * @param cipher of an encrypted store.
 * @throws {LmdbError} `no-space` or `io`.
 */
export async function updateCatalog(
  path: string,
  entries: ReadonlyMap<string, CatalogEntry | null>,
  cipher?: ValueCipher,
): Promise<void> {
  const file = encryptedFile(openLmdb(path, { create: true }), cipher);
  try {
    const database = file.database(DATABASE);
    file.transaction(() => {
      for (const [id, entry] of entries) {
        if (entry === null) database.remove(id);
        else database.put(id, encodeSealedSet(entry));
      }
    });
    await file.sync('catalog');
  } finally {
    await file.close();
  }
}

/** Removes a catalog that is damaged, so that `updateCatalog` begins a new one. */
export function dropCatalog(path: string): void {
  rmSync(path, { force: true });
  rmSync(`${path}-lock`, { force: true });
}
