/**
 * Leases: who reads a set keeps it from being removed.
 *
 * A lease is a shared flock on the file of the set's lane 0, held from before the file is read until it is closed. The
 * kernel drops it with the process, so that a reader that dies leaves none behind. Whoever removes a set takes the lock
 * exclusively and without waiting.
 *
 * Between finding a path and locking it the set may have been removed, or, its name being free, be another file:
 * after locking, the path must still be the file that was locked. A writer that seals its set holds the exclusive lock
 * for a moment beyond the rename; that moment is waited for.
 */

import { closeSync, existsSync, fstatSync, openSync, statSync } from 'node:fs';
import { LIMITS, systemCode, tryLock } from '../base/index.ts';
import { asStoreErrors, StoreError } from './errors.ts';

const RETRY_MS = 2;

/** A lock on a set's file, held until `release`. */
export class Lease {
  #descriptor: number | undefined;

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /** Without effect when it was released before. */
  release(): void {
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
    this.#descriptor = undefined;
  }
}

/**
 * Takes a reader's lease on a set.
 *
 * @param path the file of the set's lane 0.
 * @throws {StoreError} `removed` where the set is not there, or no longer; `io` where it cannot be opened.
 */
export function takeLease(path: string): Lease {
  for (let waitedMs = 0; waitedMs < LIMITS.leaseWaitMsMax; waitedMs += RETRY_MS) {
    const descriptor = open(path);
    if (descriptor !== undefined && tryLock(descriptor, 'shared')) {
      if (isStill(path, descriptor)) return new Lease(descriptor);
      closeSync(descriptor);
      break;
    }
    if (descriptor === undefined) break;
    closeSync(descriptor);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
  }
  throw new StoreError('removed', `Block set ${path} was removed`, { path });
}

/**
 * Takes the lock that shuts out all leases; undefined where somebody holds one, or the file is not there. Under the
 * store's lock.
 */
export function shutOutLeases(path: string): Lease | undefined {
  const descriptor = open(path);
  if (descriptor === undefined) return undefined;
  if (tryLock(descriptor, 'exclusive') && isStill(path, descriptor)) return new Lease(descriptor);
  closeSync(descriptor);
  return undefined;
}

/** Whether somebody holds a lease on the set now; by the time of the answer that may have changed. */
export function isLeased(path: string): boolean {
  const lock = shutOutLeases(path);
  lock?.release();
  return lock === undefined && existsSync(path);
}

function open(path: string): number | undefined {
  return asStoreErrors(path, () => {
    try {
      return openSync(path, 'r');
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return undefined;
      throw error;
    }
  });
}

function isStill(path: string, descriptor: number): boolean {
  const locked = fstatSync(descriptor, { bigint: true });
  const named = statSync(path, { bigint: true, throwIfNoEntry: false });
  return named !== undefined && named.ino === locked.ino && named.dev === locked.dev;
}
