/** The file `store.json`, which makes a directory a store: its format, its id, and whether it is encrypted. */

import { readFileSync, renameSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { syncDirectory, syncPath, systemCode } from '../base/index.ts';
import { StoreError } from './errors.ts';
import { FORMAT_VERSION } from './set-format.ts';

const MARKER = 'store.json';
const ENCRYPTION = 'aes-256-gcm';

export interface StoreMarker {
  readonly path: string;
  readonly id: string;
  readonly isEncrypted: boolean;
}

/** What `store.json` says. @throws {StoreError} `not-a-store`, `newer-format`. */
export function readMarker(path: string): StoreMarker {
  let text = '';
  try {
    text = readFileSync(join(path, MARKER), 'utf8');
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
  return parseMarker(text, path);
}

/** As `readMarker`, without holding the loop; undefined where the directory is no store of a known format. */
export async function findMarker(path: string): Promise<StoreMarker | undefined> {
  try {
    return parseMarker(await readFile(join(path, MARKER), 'utf8'), path);
  } catch (error) {
    if (error instanceof StoreError || isMissing(error)) return undefined;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  const code = systemCode(error);
  return code === 'ENOENT' || code === 'ENOTDIR';
}

function parseMarker(text: string, path: string): StoreMarker {
  let format: unknown;
  let id: unknown;
  let encryption: unknown;
  try {
    const marker: unknown = JSON.parse(text);
    if (typeof marker === 'object' && marker !== null) {
      format = 'cowbellStore' in marker ? marker.cowbellStore : undefined;
      id = 'id' in marker ? marker.id : undefined;
      encryption = 'encryption' in marker ? marker.encryption : undefined;
    }
  } catch {
    // Said below.
  }
  if (typeof format === 'number' && format > FORMAT_VERSION) {
    const message = `Store ${path} has format ${format}, this version reads up to ${FORMAT_VERSION}`;
    throw new StoreError('newer-format', message, { path, format });
  }
  const isKnown = encryption === undefined || encryption === ENCRYPTION;
  if (typeof format === 'number' && typeof id === 'string' && isKnown) {
    return { path, id, isEncrypted: encryption !== undefined };
  }
  throw new StoreError('not-a-store', `${path} is not a store`, { path });
}

/** Makes the directory a store, durably and in one step. */
export async function writeMarker({ path, id, isEncrypted }: StoreMarker): Promise<void> {
  const marker = join(path, MARKER);
  const encryption = isEncrypted ? { encryption: ENCRYPTION } : {};
  await writeFile(
    `${marker}.new`,
    `${JSON.stringify({ cowbellStore: FORMAT_VERSION, id, ...encryption })}\n`,
  );
  await syncPath('store-directory', `${marker}.new`);
  renameSync(`${marker}.new`, marker);
  await syncDirectory('store-directory', path);
}
