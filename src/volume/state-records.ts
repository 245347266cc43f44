/** Records of a volume's state that others make and look at too; what they are kept as is JSON (FORMAT.md). */

import type { DeltasUse } from './delta-places.ts';
import type { HomeStamp } from './file-looks.ts';
import type { RecoveryStart } from './recovery-state.ts';

export interface Consumer {
  /** The store's id; of a copy's targets a name made from them. */
  readonly name: string;
  /** The point of its last complete set. */
  readonly point: string;
  /** The point of its last full set, where that is known: what a differential one builds on. */
  readonly full?: string;
  readonly set: string;
  readonly atMs: number;
  /** There where it is the targets of a copy, which has no sets: what is sent is written over what was there. */
  readonly copy?: CopyRecord;
}

/** What a copy left its targets as. */
export interface CopyRecord {
  /** In the order of the copy. */
  readonly targets: readonly CopiedTarget[];
  /**
   * A later copy began to write there and did not complete: tracks that changed since the point may hold anything.
   */
  readonly isIncomplete?: true;
}

export interface CopiedTarget {
  /** A path without links, or a URI. */
  readonly place: string;
  readonly sizeBytes: number;
  /** How the file looked when the copy ended; missing where there is no regular file, or nobody looked. */
  readonly stamp?: HomeStamp;
}

export interface PoisonRecord {
  readonly reason: string;
  readonly atMs: number;
}

/** The point that a volume which is a copy of another one's begins at. */
export interface StartPoint {
  readonly point: string;
  readonly createdMs: number;
  /** Of the home, which holds what it did at the point, durably. */
  readonly stamp: HomeStamp | undefined;
}

/** What a state begins with besides the record. */
export interface StateBeginning {
  /** The first boundary, where there is one: nothing has changed since. */
  readonly start?: StartPoint | undefined;
  /** Where the home is yet to be filled. */
  readonly recovery?: RecoveryStart | undefined;
  /** Where it is yet to be rebuilt. */
  readonly rebuild?: RebuildRecord;
  /** Of a delta store that is there already. */
  readonly deltasUse?: DeltasUse;
}

/** A home that is being made again, and holds a part of the volume only. */
export interface RebuildRecord {
  readonly home: string;
  /** What the logs had when it began; what a rebuild itself appends comes after. */
  readonly upTo: number;
  readonly startedMs: number;
}

/** What is known of a snapshot besides its content. */
export interface SnapshotRecord {
  /** Counts from 1 in the order of their points; not used again while one with a higher number is there. */
  readonly number: number;
  readonly name: string;
  /** Names its file. */
  readonly storeId: string;
  /** Empty until it is fixed. */
  readonly point: string;
  readonly createdMs: number;
  /** Of the volume at that point. */
  readonly sizeBytes: number;
  /**
   * `creating` and `deleting`: no longer, or not yet, anybody's; an older snapshot may need what its store holds.
   * `damaged`: no reader gets anything of it, and nothing is kept for it any more.
   */
  readonly state: 'creating' | 'ready' | 'deleting' | 'damaged';
  /** How it keeps what is replaced; `copy` where left out. */
  readonly by?: 'copy' | 'clone';
  /** How long its store was, durably, when it was last closed: it never gets shorter. */
  readonly endBytes?: number;
  /** Why it is damaged. */
  readonly reason?: string;
}
