/**
 * A log of lines that does not grow without end: at `LIMITS.logBytesMax` the file becomes `<path>.1`, in the place of
 * the one before. It is not synced.
 */

import { appendFile, rename, stat } from 'node:fs/promises';
import { systemCode } from './errors.ts';
import { LIMITS } from './limits.ts';

/** @param line without its end. @throws the system's error where the file cannot be written. */
export async function appendLogLine(path: string, line: string): Promise<void> {
  const bytes = Buffer.from(`${line}\n`);
  if ((await sizeOf(path)) + bytes.length > LIMITS.logBytesMax) {
    await rename(path, `${path}.1`).catch((error: unknown) => {
      if (systemCode(error) !== 'ENOENT') throw error;
    });
  }
  await appendFile(path, bytes, { mode: 0o600 });
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return 0;
    throw error;
  }
}
