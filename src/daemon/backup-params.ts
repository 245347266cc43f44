/** What a backup is asked for: the same words on the command line, in the control protocol and offline. */

import type { Codec, MediumTarget, SetOutcome, WriteStyle } from '../backup/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { FreezeHookReport, FreezeHooks } from './freeze-hooks.ts';

export const LEVELS = ['auto', 'full', 'differential', 'incremental'] as const;
export type Level = (typeof LEVELS)[number];

export const CODECS: readonly Codec[] = ['zstd', 'none'];

/** What is done when a write waits for room in the container: it waits on, or the backup is given up for it. */
export const ON_FULL = ['wait', 'cancel'] as const;
export type OnFull = (typeof ON_FULL)[number];

/** One area of the intermediate container, as asked for. A path is absolute. */
export type ContainerSpec =
  | { readonly kind: 'memory'; readonly sizeBytes: number }
  | { readonly kind: 'path'; readonly path: string; readonly sizeBytes: number };

export interface BackupMember {
  /** The volume's directory, absolute. */
  readonly volume: string;
  readonly snapshot?: string;
}

export interface BackupParams {
  /** The store's directory, absolute; the place of the media where there are some. */
  readonly store: string;
  /** Media that get a full set in the place of a store; of one volume, and with neither key nor lanes. */
  readonly medium?: MediumTarget;
  /** Of an encrypted store; the path of a key file is absolute. Never in a status, a message or a log. */
  readonly key?: StoreKey;
  readonly level: Level;
  /** `auto` is full where the chain has so many sets. */
  readonly fullEvery?: number;
  readonly style: WriteStyle;
  readonly container: readonly ContainerSpec[];
  /** The backup fails where a write has waited this long for room; left out, writes wait. */
  readonly maxWaitMs?: number;
  /** Saves this snapshot of the volume instead of what it holds now. */
  readonly snapshot?: string;
  /** Further volumes, served by the same process, of the same instant: all or none. */
  readonly others?: readonly BackupMember[];
  /** What runs around the freeze. */
  readonly hooks?: FreezeHooks;
  /** A shell command that tells somebody how each session has ended. */
  readonly notify?: string;
}

export interface SnapshotParams {
  readonly name: string;
  /** Directories of further volumes, served by the same process: a snapshot of that name each, of one instant. */
  readonly others?: readonly string[];
  readonly hooks?: FreezeHooks;
}

/** The set, and what the hooks of its freeze came to where there were some. */
export interface BackupOutcome extends SetOutcome, Partial<FreezeHookReport> {}
