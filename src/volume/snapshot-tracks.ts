/**
 * What a backup of a snapshot saves, in the place of `Protection`: nothing needs protecting, since the snapshot keeps
 * its content. The lane reads the home as it does for a live volume; tracks that were replaced since the snapshot,
 * before or while it read, are given to it from the snapshot's stores.
 */

import { type Deferred, deferred } from '../base/index.ts';
import type { TrackBits, TrackRun } from '../tracks/index.ts';
import type { DivertedTrack } from './protection.ts';
import type { ContainerUse, SessionTracks } from './session.ts';
import type { Snapshot } from './snapshot-member.ts';
import type { Snapshots } from './snapshots.ts';

export interface SnapshotTracksOptions {
  readonly snapshots: Snapshots;
  readonly snapshot: Snapshot;
  /** The tracks to save; this object's from now on. */
  readonly tracks: TrackBits;
  /** The session no longer reads the snapshot. */
  readonly release: () => void;
}

export class SnapshotTracks implements SessionTracks {
  readonly waitingCount = 0;
  /** Nothing is diverted: the snapshot keeps it. */
  readonly containerUse: ContainerUse = { entries: 0, entriesMax: 0, slots: 0, slotsUsed: 0 };
  readonly #options: SnapshotTracksOptions;
  /** Tracks that the lane must have from the stores. */
  readonly #replaced: number[] = [];
  /** Taken by the lane and not acknowledged; the id is the track. */
  readonly #taken = new Set<number>();
  #replacedCount = 0;
  #hasEnded = false;
  /** Settled whenever there may be something new to take. */
  #pending: Deferred = deferred();

  constructor(options: SnapshotTracksOptions) {
    this.#options = options;
  }

  get protectedCount(): number {
    return this.#options.tracks.size;
  }

  get divertedCount(): number {
    return this.#replacedCount;
  }

  confirm(runs: readonly TrackRun[]): number[] {
    const { snapshots, snapshot, tracks } = this.#options;
    const replaced: number[] = [];
    for (const run of runs) {
      for (let track = run.first; track < run.first + run.count; track += 1) {
        if (snapshots.isAtHome(snapshot, track)) tracks.delete(track);
        else replaced.push(track);
      }
    }
    this.#replaced.push(...replaced);
    this.#pending.resolve();
    return replaced;
  }

  async take(countMax: number): Promise<DivertedTrack[]> {
    while (this.#replaced.length === 0 && this.protectedCount > 0 && !this.#hasEnded) {
      this.#pending = deferred();
      await this.#pending.promise;
    }
    const { snapshots, snapshot } = this.#options;
    const { geometry } = snapshot;
    const taken = this.#replaced.splice(0, countMax);
    return Promise.all(
      taken.map(async (track): Promise<DivertedTrack> => {
        const content = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
        await snapshots.read(snapshot, content, geometry.offsetOf(track));
        this.#taken.add(track);
        return { id: track, track, content };
      }),
    );
  }

  acknowledge(ids: readonly number[]): void {
    for (const id of ids) {
      if (!this.#taken.delete(id)) continue;
      this.#options.tracks.delete(id);
      this.#replacedCount += 1;
    }
    this.#pending.resolve();
  }

  resend(): void {
    this.#replaced.push(...this.#taken);
    this.#taken.clear();
    this.#pending.resolve();
  }

  async end(): Promise<void> {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.#pending.resolve();
    this.#options.release();
  }
}
