/**
 * Rolling a volume back: what replaced a snapshot's content is replaced by it.
 *
 * Only tracks that some store holds are written; the others nothing has replaced. Each is an ordinary write of the
 * volume, so newer snapshots keep what the rollback replaces. It may be done again from the beginning after a crash:
 * what the snapshot holds does not change by it.
 */

import { LIMITS } from '../base/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import type { Geometry } from './geometry.ts';
import type { Snapshot, Snapshots } from './snapshots.ts';

export interface RollbackOptions {
  readonly snapshots: Snapshots;
  readonly snapshot: Snapshot;
  readonly geometry: Geometry;
  /** All tracks that may differ from the snapshot's. */
  readonly tracks: TrackSet;
  /** Through the volume's write path. */
  readonly write: (content: Buffer, offsetBytes: number) => Promise<void> | void;
  readonly onProgress: (done: number, total: number) => void;
}

/** @returns how many tracks were written; they are not flushed. */
export async function rollBack(options: RollbackOptions): Promise<number> {
  const { snapshots, snapshot, tracks, onProgress } = options;
  let doneCount = 0;
  let writtenCount = 0;
  let batch: number[] = [];
  for (const track of tracks) {
    doneCount += 1;
    if (!snapshots.isAtHome(snapshot, track)) batch.push(track);
    if (batch.length < LIMITS.snapshotMoveTracksMax) continue;
    await writeAll(options, batch);
    writtenCount += batch.length;
    batch = [];
    onProgress(doneCount, tracks.size);
  }
  await writeAll(options, batch);
  onProgress(doneCount, tracks.size);
  return writtenCount + batch.length;
}

async function writeAll(options: RollbackOptions, tracks: readonly number[]): Promise<void> {
  const { snapshots, snapshot, geometry, write } = options;
  const writes = tracks.map(async (track) => {
    const content = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
    await snapshots.read(snapshot, content, geometry.offsetOf(track));
    await write(content, geometry.offsetOf(track));
  });
  for (const outcome of await Promise.allSettled(writes))
    if (outcome.status === 'rejected') throw outcome.reason;
}
