/**
 * Small files of a store that no set holds and the catalog cannot be rebuilt with: which sets are protected, what
 * removed points came after, how far verifying has come. One line of JSON, then one line with its BLAKE3.
 *
 * A file is replaced as a whole, never changed in place: the new one is written beside it and made durable, then takes
 * its name, then the directory is made durable. Cut anywhere, it is the old one or the new one. The callers hold the
 * store's lock for as long as they read and write.
 */

import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { CorruptionError, syncDirectory, syncPath, systemCode } from '../base/index.ts';
import { digest } from '../records/index.ts';

/**
 * What the file says, as JSON gives it; undefined where there is none.
 *
 * @throws {CorruptionError} where it is not what was written.
 */
export function readStateFile(path: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
  const [body = '', seal] = text.split('\n');
  if (digest(Buffer.from(body)).toString('hex') === seal) return JSON.parse(body);
  throw new CorruptionError(`File ${path} is damaged: its checksum does not fit`, { where: path });
}

/** Replaces what the file says, durably. */
export async function writeStateFile(path: string, value: unknown): Promise<void> {
  const body = JSON.stringify(value);
  const fresh = `${path}.new`;
  writeFileSync(fresh, `${body}\n${digest(Buffer.from(body)).toString('hex')}\n`, { mode: 0o600 });
  await syncPath('store-directory', fresh);
  renameSync(fresh, path);
  await syncDirectory('store-directory', dirname(path));
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
