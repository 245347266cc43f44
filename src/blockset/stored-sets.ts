/** The sets of a store as they are listed: what the catalog or their files say, and what can be seen of their state. */

import { existsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CorruptionError, messageOf, systemCode } from '../base/index.ts';
import type { CatalogEntry } from './catalog.ts';
import { StoreError } from './errors.ts';
import type { StoredSet } from './lineage.ts';
import type { MasterKey } from './master-key.ts';
import { laneFileName, type SealedLane } from './set-format.ts';
import { SetReader } from './set-reader.ts';

/** A set as its catalog entry, or its own files, tell of it. @param path of lane 0. */
export function storedSet(path: string, entry: CatalogEntry): StoredSet {
  const { id } = entry.header;
  return { id, path, ...storedFiles(path, entry.lanes, id), ...entry };
}

/** A set of which nothing is known but its file. */
export function unreadableSet(id: string, path: string, damage: string): StoredSet {
  const nothing = { header: undefined, counters: undefined, seal: undefined, lengthBytes: 0 };
  return { id, path, ...nothing, lanePaths: [path], damage };
}

/** Where a set's lanes are, and what can be seen of their state without reading them. */
function storedFiles(
  path: string,
  lanes: readonly SealedLane[],
  id: string,
): { lanePaths: string[]; lengthBytes: number; damage: string | undefined } {
  const lanePaths = lanes.map(({ directory }, lane) => {
    const beside = join(dirname(path), laneFileName(id, lane));
    return directory === '' || existsSync(beside) ? beside : join(directory, laneFileName(id, lane));
  });
  const damages = lanes.map(({ lengthBytes }, lane) => {
    const damage = visibleDamage(lanePaths[lane] ?? path, lengthBytes);
    return damage === undefined || lane === 0 ? damage : `lane ${lane}: ${damage} (${lanePaths[lane]})`;
  });
  return {
    lanePaths,
    lengthBytes: lanes.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0),
    damage: damages.find((damage) => damage !== undefined),
  };
}

function visibleDamage(path: string, lengthBytes: number): string | undefined {
  try {
    const found = statSync(path).size;
    return found === lengthBytes ? undefined : `its file has ${found} bytes, wanted ${lengthBytes}`;
  } catch (error) {
    return systemCode(error) === 'ENOENT' ? 'its file is missing' : messageOf(error);
  }
}

/** Reads what the catalog should say of a set, from the set. */
export async function readEntry(
  path: string,
  master: MasterKey | undefined,
): Promise<CatalogEntry | { damage: string }> {
  try {
    const reader = SetReader.open(path, { master, lease: false });
    const { header, counters, seal } = reader;
    const lanes = reader.laneFiles().map((lane) => ({ ...lane, lengthBytes: statSync(lane.path).size }));
    await reader.close();
    return {
      header,
      counters,
      seal,
      lanes: lanes.map(({ directory, lengthBytes }) => ({ directory, lengthBytes })),
    };
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof StoreError) return { damage: error.message };
    throw error;
  }
}
