/**
 * What a restore needs of the thing it restores from: the members of the block set room's chain view that
 * this room uses, so that a medium or a remote store can stand in its place.
 */

import type { MaybePromise } from '../base/index.ts';
import type { TrackSet } from '../tracks/index.ts';

/** One track as it was at the set's point, decompressed and checked. */
export interface RestoredTrack {
  readonly track: number;
  /**
   * The track's bytes; the last track of a volume may be shorter. Not changed after it was handed out. Undefined for
   * zeroes, where the source learnt of them only while it was read.
   */
  readonly content: Buffer | undefined;
}

/** Tracks that lie together in the store and are read in one go. */
export interface ReadPlanEntry {
  readonly tracks: readonly number[];
  /** The id of the set that they are in, where that is known. */
  readonly set?: string;
}

export interface RestoreSource<Entry extends ReadPlanEntry = ReadPlanEntry> {
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  /** The tracks whose effective content is not known to be zero. Every other track of the volume is zero. */
  tracks(): TrackSet;
  /** The tracks that are known not to be had, none of them among `tracks`; none when absent. They count as missing. */
  lost?(): TrackSet;
  /**
   * The BLAKE3 of a track as the set has it; undefined for a track of zeroes. Absent where the source is read once,
   * from its beginning to its end, so that `readPlan` can be called once only and tells nothing before it is read.
   */
  hashOf?(track: number): Buffer | undefined;
  /** Where the tracks are stored, each once, in storage order. */
  readPlan(tracks: TrackSet): Iterable<Entry>;
  /**
   * Reads one entry. Every track is checked against its hash before it is handed out (promise 7).
   *
   * @throws {CorruptionError} when a track is damaged or missing.
   */
  readFrame(entry: Entry): MaybePromise<readonly RestoredTrack[]>;
  /** Takes back all of what `readFrame` gave, which nobody uses any more; absent where that is of no use. */
  recycle?(read: readonly RestoredTrack[]): void;
}
