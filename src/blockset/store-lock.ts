/**
 * The store's lock: an flock on `<store>/lock`, held for moments only. Exclusive while sets are begun or
 * finished, removed, or entered into the catalog; shared while the catalog is read. Reading sets takes no
 * lock, since a complete set never changes, so verify and restore run beside a backup.
 */

import { closeSync, openSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { LIMITS, systemCode, tryLock } from '../base/index.ts';
import { StoreError } from './errors.ts';

const RETRY_MS = 10;

/**
 * Runs `body` under the lock.
 *
 * @throws {StoreError} `locked` where another process does not let go of it.
 */
export async function withStoreLock<T>(
  path: string,
  mode: 'exclusive' | 'shared',
  body: () => Promise<T>,
): Promise<T> {
  const descriptor = openLock(path, mode);
  // A store on a read-only medium without its lock file: nobody can be writing.
  if (descriptor === undefined) return await body();
  try {
    for (let waitedMs = 0; !tryLock(descriptor, mode); waitedMs += RETRY_MS) {
      if (waitedMs >= LIMITS.storeLockWaitMsMax) {
        throw new StoreError('locked', `The store's lock ${path} is held by another process`, { path });
      }
      await delay(RETRY_MS);
    }
    return await body();
  } finally {
    closeSync(descriptor);
  }
}

function openLock(path: string, mode: 'exclusive' | 'shared'): number | undefined {
  try {
    return openSync(path, mode === 'exclusive' ? 'a+' : 'r', 0o600);
  } catch (error) {
    if (mode === 'shared' && systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
