/** A snapshot as the volume's chain of snapshots has it: what is recorded, its file, and who holds it. */

import type { TrackBits } from '../tracks/index.ts';
import type { EpochHistory } from './epoch-history.ts';
import { Geometry } from './geometry.ts';
import type { SnapshotClone } from './snapshot-clone.ts';
import type { SnapshotInfo } from './snapshot-info.ts';
import type { SnapshotStore } from './snapshot-store.ts';
import type { SnapshotRecord } from './state.ts';

/** A snapshot as its readers hold it. */
export interface Snapshot {
  readonly name: string;
  readonly point: string;
  readonly createdMs: number;
  /** Its place in the order of points. */
  readonly number: number;
  /** The volume's size at its point, and the tracks that it has. */
  readonly geometry: Geometry;
}

/** A snapshot between `prepare` and `finish`. */
export interface PreparedSnapshot {
  readonly record: SnapshotRecord;
  /** One of the two. */
  readonly store: SnapshotStore | undefined;
  readonly clone: SnapshotClone | undefined;
  readonly unsaved: TrackBits;
}

/** One snapshot of the chain. */
export interface Member extends Snapshot {
  record: SnapshotRecord;
  /** Undefined where it is damaged, or a clone. */
  readonly store: SnapshotStore | undefined;
  /** Its file, where it is by clone and not damaged: such a one is in no chain, and nothing is copied for it. */
  readonly clone: SnapshotClone | undefined;
  readerCount: number;
  /** It is about to be recorded as deleted: nobody may begin to read it. */
  isLeaving: boolean;
  /** Holders without whom it must not go even where the disk is full. */
  pinCount: number;
}

/** A snapshot that nobody reads yet. */
export function memberOf(
  record: SnapshotRecord,
  files: Pick<Member, 'store' | 'clone'>,
  trackSizeBytes: number,
): Member {
  const { name, point, createdMs, number, sizeBytes } = record;
  const geometry = new Geometry(sizeBytes, trackSizeBytes);
  const unused = { readerCount: 0, isLeaving: false, pinCount: 0 };
  return { name, point, createdMs, number, geometry, record, ...files, ...unused };
}

/** What `list` tells of a snapshot. */
export function infoOf(
  { record, geometry, store, clone, readerCount }: Member,
  epochs: Pick<EpochHistory, 'changedIn'>,
): SnapshotInfo {
  const { number, name, point, createdMs, sizeBytes, state, by = 'copy', reason } = record;
  const { trackCount, trackSizeBytes } = geometry;
  const sizes =
    clone === undefined
      ? { usedBytes: store?.usedBytes ?? 0, tracks: store?.trackCount ?? 0 }
      : sizesOfClone(epochs.changedIn(point, { first: 0, count: trackCount }).size, trackSizeBytes);
  return { number, name, point, createdMs, sizeBytes, state, by, reason, ...sizes, readers: readerCount };
}

/** The filesystem does not tell what is shared; what may have been replaced since is the most that is not. */
function sizesOfClone(tracks: number, trackSizeBytes: number): Pick<SnapshotInfo, 'usedBytes' | 'tracks'> {
  return { usedBytes: tracks * trackSizeBytes, tracks };
}

/** Whether copies are made for it, and its content can be read. */
export function isLive({ state }: SnapshotRecord): boolean {
  return state === 'creating' || state === 'ready';
}
