/** What is said of snapshots, and what may be chosen about them. */

import type { SnapshotRecord } from './state.ts';

/** What happens to a write that needs its track's old content kept when there is no room for it. */
export const FULL_POLICIES = ['refuse', 'drop'] as const;
/** `refuse`: the write fails. `drop`: the oldest snapshots go until there is room. */
export type FullPolicy = (typeof FULL_POLICIES)[number];

/** How a snapshot keeps what is replaced. */
export const SNAPSHOT_KINDS = ['copy', 'clone'] as const;
/** `copy`: old content is copied before the first write that replaces it. `clone`: the filesystem keeps it. */
export type SnapshotKind = (typeof SNAPSHOT_KINDS)[number];

/** What `list` tells. */
export interface SnapshotInfo {
  /** Its place in the order of points. */
  readonly number: number;
  readonly name: string;
  readonly point: string;
  readonly createdMs: number;
  readonly sizeBytes: number;
  readonly state: SnapshotRecord['state'];
  readonly by: SnapshotKind;
  readonly reason: string | undefined;
  /** Bytes that its own store takes; by clone, at most so many that it shares with the home no more. */
  readonly usedBytes: number;
  /** Tracks that its own store holds; by clone, those that may have been replaced since. */
  readonly tracks: number;
  /** Exports, sessions and the like that read it now. */
  readonly readers: number;
}
