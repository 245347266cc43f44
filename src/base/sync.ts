/**
 * Every fsync and fdatasync of Cowbell goes through here, under a name.
 *
 * Why: durability cannot be tested by looking at the page cache. A test installs an observer that makes
 * one named sync a no-op, or that records what is on disk at each sync and later replaces each file by an
 * image that a power cut could have left (`sim/lossy-disk.ts`). A sync that no test misses is a defect. The
 * observer may also hold a sync, before and after it, so that a simulation decides when a disk is slow.
 *
 * LMDB commits without a sync of their own; `noteCommit` tells the observer that a newer consistent image
 * exists that may, or may not, have reached the disk.
 */

import { close, fdatasync, fsync, open } from 'node:fs';
import { promisify } from 'node:util';
import type { MaybePromise } from './units.ts';

const fdatasyncAsync = promisify(fdatasync);
const fsyncAsync = promisify(fsync);
const openAsync = promisify(open);
const closeAsync = promisify(close);

/** The names of all syncs; one name is one place in the write order that some promise needs. */
export const SYNC_NAMES = [
  'home',
  'home-create',
  'volume-state',
  'volume-directory',
  'intent-log-create',
  'intent-log',
  /** What is written to the logs of a delta store, the creation of a segment, and the names of segments. */
  'delta',
  'delta-create',
  'delta-directory',
  'snapshot-store',
  'snapshot-directory',
  'set-data',
  'set-seal',
  'set-directory',
  'catalog',
  'store-directory',
  'store-keys',
  'restore-target',
  'medium',
  'media-record',
  'policy-record',
  /** Areas of an intermediate container: never synced, the name is there for the device port. */
  'container',
] as const;

export type SyncName = (typeof SYNC_NAMES)[number];

export type SyncEvent =
  | { readonly kind: 'file'; readonly name: SyncName; readonly path: string }
  | { readonly kind: 'directory'; readonly name: SyncName; readonly path: string }
  | { readonly kind: 'commit'; readonly path: string };

export interface SyncObserver {
  /** Called before the sync, and waited for; `skip` makes it a no-op, a throw makes it fail. */
  before?(event: SyncEvent): MaybePromise<'perform' | 'skip'>;
  /** Called when the sync has succeeded, was skipped excepted, and waited for; and after each noted commit. */
  after?(event: SyncEvent): unknown;
}

let observer: SyncObserver | undefined;

/** Installs the observer of this process, tests only; undefined removes it. */
export function observeSyncs(next: SyncObserver | undefined): void {
  observer = next;
}

async function observed(event: SyncEvent, perform: () => Promise<void>): Promise<void> {
  const verdict = observer?.before?.(event);
  if ((verdict instanceof Promise ? await verdict : verdict) === 'skip') return;
  await perform();
  await observer?.after?.(event);
}

/**
 * Makes the data of an open file, and its size, durable (fdatasync).
 *
 * @param path where the file was opened; names it for the observer.
 */
export function syncFile(name: SyncName, descriptor: number, path: string): Promise<void> {
  return observed({ kind: 'file', name, path }, () => fdatasyncAsync(descriptor));
}

/** Makes a file durable through a descriptor of its own, for files that a library has open. */
export async function syncPath(name: SyncName, path: string): Promise<void> {
  await observed({ kind: 'file', name, path }, async () => {
    const descriptor = await openAsync(path, 'r');
    try {
      await fdatasyncAsync(descriptor);
    } finally {
      await closeAsync(descriptor);
    }
  });
}

/** Makes the names in a directory durable: what was created, renamed or removed in it. */
export async function syncDirectory(name: SyncName, path: string): Promise<void> {
  await observed({ kind: 'directory', name, path }, async () => {
    const descriptor = await openAsync(path, 'r');
    try {
      await fsyncAsync(descriptor);
    } finally {
      await closeAsync(descriptor);
    }
  });
}

/** Tells the observer that a commit reached the page cache; nothing is durable by it. */
export function noteCommit(path: string): void {
  observer?.after?.({ kind: 'commit', path });
}
