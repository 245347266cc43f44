/** The operating errors of stores and block sets. */

import { BlockError, messageOf, systemCode } from '../base/index.ts';
import { LmdbError } from '../records/index.ts';

export interface StoreErrorDetails {
  /** The directory is no store, or does not exist. */
  readonly 'not-a-store': { readonly path: string };
  /** A store was to be made where there is something already. */
  readonly 'not-empty': { readonly path: string };
  /** The selector names no set. */
  readonly 'unknown-set': { readonly selector: string; readonly candidates: readonly string[] };
  /** The selector names several sets. */
  readonly 'ambiguous-set': { readonly selector: string; readonly candidates: readonly string[] };
  /** No complete set in the store holds the point that a set builds on. */
  readonly 'missing-base': { readonly set: string; readonly base: string };
  /** A base is of another volume or has another track size. */
  readonly 'wrong-volume': { readonly set: string; readonly base: string };
  /** The file system of the store is full. */
  readonly 'no-space': { readonly path: string };
  /** The system refused an operation on a file of the store. */
  readonly io: { readonly path: string };
  /** Another process holds the store's lock for longer than it should. */
  readonly locked: { readonly path: string };
  /** The store or the set was written by a later version. */
  readonly 'newer-format': { readonly path: string; readonly format: number };
  /** The set is not there, or no longer: it was removed, or merged into another. */
  readonly removed: { readonly path: string };
  /** Sets cannot be merged: they are no consecutive part of one chain. */
  readonly 'no-chain': { readonly sets: readonly string[] };
  /** The store was opened for reading. */
  readonly 'read-only': { readonly path: string };
  /** The store is encrypted and no key was given. */
  readonly 'key-needed': { readonly path: string };
  /** No slot of the store opens with the key that was given. */
  readonly 'wrong-key': { readonly path: string };
  /** A key was given for a store that is not encrypted: it may have been exchanged for another. */
  readonly 'not-encrypted': { readonly path: string };
  /** A passphrase or key file (`path`) that cannot be one. */
  readonly 'bad-key': { readonly path: string | undefined };
  /** All slots for keys are taken. */
  readonly 'too-many-keys': { readonly path: string };
  /** The store has no slot of that number. */
  readonly 'unknown-slot': { readonly path: string; readonly slot: number };
  /** The slot to be removed is the one that the given key opens; the last one always is. */
  readonly 'key-in-use': { readonly path: string; readonly slot: number };
}

export class StoreError extends BlockError<StoreErrorDetails> {}

/** Turns what the system or LMDB refused into a `StoreError`; everything else passes unchanged. */
export function storeError(error: unknown, path: string): unknown {
  if (error instanceof LmdbError) {
    if (error.code === 'no-space')
      return new StoreError('no-space', error.message, { path }, { cause: error });
    return new StoreError('io', error.message, { path }, { cause: error });
  }
  const code = systemCode(error);
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new StoreError('no-space', `Cannot write ${path}: no space is left`, { path }, { cause: error });
  }
  if (code !== undefined && /^E[A-Z0-9]+$/.test(code)) {
    return new StoreError('io', `Cannot use ${path}: ${messageOf(error)}`, { path }, { cause: error });
  }
  return error;
}

/** Runs `body`, its errors as `storeError` makes them. */
export function asStoreErrors<T>(path: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw storeError(error, path);
  }
}

export async function asStoreErrorsLater<T>(path: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    throw storeError(error, path);
  }
}
