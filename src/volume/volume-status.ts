/** What a volume tells of itself. */

import type { DeltasStatus } from './deltas.ts';
import type { VolumeIdentity } from './directory.ts';
import type { ExtentStatus } from './home-mirrors.ts';
import type { MirroringStatus } from './mirroring.ts';
import type { RecoveryStatus } from './recovery.ts';
import type { SessionStatus } from './session.ts';
import type { SnapshotInfo } from './snapshot-info.ts';
import type { Consumer, PoisonRecord } from './state.ts';

/** A snapshot that was just made. */
export interface CreatedSnapshot {
  readonly name: string;
  readonly point: string;
  readonly createdMs: number;
  /** For how long writes were held up. */
  readonly freezeMs: number;
}

export interface VolumeStatus extends Omit<VolumeIdentity, 'deltas'> {
  readonly readOnly: boolean;
  readonly epoch: number;
  /** Tracks changed in the open epoch. */
  readonly changedTracks: number;
  readonly points: number;
  readonly consumers: readonly (Consumer & { readonly changedTracks: number })[];
  readonly startedClean: boolean;
  readonly poisoned: PoisonRecord | undefined;
  /** Tracks written since the last good flush of a volume that was poisoned then; see `check`. */
  readonly suspectTracks: number;
  /** Where the home is being filled: from where, and how far that is. */
  readonly recovery: RecoveryStatus | undefined;
  /** Where a mirror gets every change: how far it is. */
  readonly mirroring: MirroringStatus | undefined;
  /** Where every change goes a second time. */
  readonly deltas: DeltasStatus | undefined;
  /** Tracks of the home that could not be read and were repaired, since the volume was opened; undefined where none are. */
  readonly repairedTracks: number | undefined;
  /** The parts of a home that has a layout, and the state of their members. */
  readonly parts: readonly ExtentStatus[] | undefined;
  readonly writesWaiting: number;
  readonly trimsForgotten: number;
  /** The backup sessions that run. */
  readonly sessions: readonly SessionStatus[];
  /** Oldest first. */
  readonly snapshots: readonly SnapshotInfo[];
}
