/**
 * Small files that are replaced as a whole: one line of JSON, then one line with its BLAKE3.
 *
 * None is ever changed in place: the new one is written beside it and made durable, then takes its name, then the
 * directory is made durable. Cut anywhere, it is the old one or the new one. One writer at a time is for the callers
 * to see to; each of theirs holds a lock.
 */

import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { CorruptionError, syncDirectory, type SyncName, syncPath, systemCode } from '../base/index.ts';
import { digest } from './digest.ts';

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

/**
 * Replaces what the file says, durably.
 *
 * @param syncName of the syncs that make it so.
 */
export async function writeStateFile(path: string, value: unknown, syncName: SyncName): Promise<void> {
  const body = JSON.stringify(value);
  const fresh = `${path}.new`;
  writeFileSync(fresh, `${body}\n${digest(Buffer.from(body)).toString('hex')}\n`, { mode: 0o600 });
  await syncPath(syncName, fresh);
  renameSync(fresh, path);
  await syncDirectory(syncName, dirname(path));
}
