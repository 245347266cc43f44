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
import { decodeCounters, decodeHeader, encodeJson, type SetCounters, type SetHeader } from './set-format.ts';

export interface CatalogEntry {
  readonly header: SetHeader;
  readonly counters: SetCounters;
  /** 64 hexadecimal digits. */
  readonly seal: string;
  readonly lengthBytes: number;
}

const DATABASE = 'sets';
const SEAL_BYTES = 32;

/**
 * All entries, by id.
 *
 * @returns undefined where there is no catalog, or it is damaged: it is to be made anew from the sets.
 */
export async function readCatalog(path: string): Promise<Map<string, CatalogEntry> | undefined> {
  if (!existsSync(path)) return undefined;
  try {
    const file = openLmdb(path, { readOnly: true });
    try {
      const entries = new Map<string, CatalogEntry>();
      for (const { key, value } of file.database(DATABASE).range()) {
        const id = key.toString();
        entries.set(id, decodeEntry(value, `${path} ${id}`));
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
 * @throws {LmdbError} `no-space` or `io`.
 */
export async function updateCatalog(
  path: string,
  entries: ReadonlyMap<string, CatalogEntry | null>,
): Promise<void> {
  const file = openLmdb(path, { create: true });
  try {
    const database = file.database(DATABASE);
    file.transaction(() => {
      for (const [id, entry] of entries) {
        if (entry === null) database.remove(id);
        else database.put(id, ...encodeEntry(entry));
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

/** Length 8, seal 32, header length 4, header, counters. */
function encodeEntry(entry: CatalogEntry): Buffer[] {
  const header = encodeJson(entry.header);
  const head = Buffer.alloc(12 + SEAL_BYTES);
  head.writeBigUInt64BE(BigInt(entry.lengthBytes), 0);
  head.write(entry.seal, 8, 'hex');
  head.writeUInt32BE(header.length, 8 + SEAL_BYTES);
  return [head, header, encodeJson(entry.counters)];
}

function decodeEntry(bytes: Buffer, where: string): CatalogEntry {
  const start = 12 + SEAL_BYTES;
  if (bytes.length < start) throw new CorruptionError(`Catalog entry ${where} is cut short`, { where });
  const end = start + bytes.readUInt32BE(8 + SEAL_BYTES);
  return {
    lengthBytes: Number(bytes.readBigUInt64BE(0)),
    seal: bytes.toString('hex', 8, 8 + SEAL_BYTES),
    header: decodeHeader(bytes.subarray(start, end), where),
    counters: decodeCounters(bytes.subarray(end), where),
  };
}
