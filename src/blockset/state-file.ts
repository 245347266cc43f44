/**
 * Small files of a store that no set holds and the catalog cannot be rebuilt with: which sets are protected, what
 * removed points came after, how far verifying has come. What the files look like is that of `records/state-file.ts`.
 * The callers hold the store's lock for as long as they read and write.
 */

import { existsSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { syncDirectory } from '../base/index.ts';
import { writeStateFile as writeFile } from '../records/index.ts';

export { readStateFile } from '../records/index.ts';

/** Replaces what the file says, durably. */
export async function writeStateFile(path: string, value: unknown): Promise<void> {
  await writeFile(path, value, 'store-directory');
}

/** Removes the file, durably; nothing where there is none. */
export async function dropStateFile(path: string): Promise<void> {
  if (!existsSync(path)) return;
  rmSync(path);
  await syncDirectory('store-directory', dirname(path));
}

/** The members of a record; none of anything else. */
export function membersOf(value: unknown): Map<string, unknown> {
  if (typeof value !== 'object' || value === null) return new Map();
  return new Map(Object.entries(value));
}
