/**
 * Rolling a volume back: what replaced a snapshot's content is replaced by it.
 *
 * Only tracks that some store holds are written; the others nothing has replaced. What the volume has grown by since
 * the snapshot becomes zeroes; it keeps its size. Each is an ordinary write of the
 * volume, so newer snapshots keep what the rollback replaces. It may be done again from the beginning after a crash:
 * what the snapshot holds does not change by it.
 */

import { allFinished, GIB, LIMITS } from '../base/index.ts';
import type { DeviceExtent } from '../device/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import type { Geometry } from './geometry.ts';
import type { Snapshot } from './snapshot-member.ts';
import type { Snapshots } from './snapshots.ts';

export interface RollbackOptions {
  readonly snapshots: Snapshots;
  readonly snapshot: Snapshot;
  /** The volume's. */
  readonly geometry: Geometry;
  /** All tracks that may differ from the snapshot's. */
  readonly tracks: TrackSet;
  /** Through the volume's write path. */
  readonly write: (content: Buffer, offsetBytes: number) => Promise<void> | void;
  readonly extents: (offsetBytes: number, lengthBytes: number) => Promise<readonly DeviceExtent[]>;
  /** Through the volume's write path. */
  readonly writeZeroes: (offsetBytes: number, lengthBytes: number) => Promise<void> | void;
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
    if (track >= snapshot.geometry.trackCount) continue;
    if (!snapshots.isAtHome(snapshot, track)) batch.push(track);
    if (batch.length < LIMITS.snapshotMoveTracksMax) continue;
    await writeAll(options, batch);
    writtenCount += batch.length;
    batch = [];
    onProgress(doneCount, tracks.size);
  }
  await writeAll(options, batch);
  onProgress(doneCount, tracks.size);
  return writtenCount + batch.length + (await zeroRest(options));
}

/** What one question for extents is about. */
const REST_STEP_BYTES = GIB;

/** @returns how many tracks it wrote to. */
async function zeroRest({ snapshot, geometry, extents, writeZeroes }: RollbackOptions): Promise<number> {
  let count = 0;
  const { sizeBytes } = geometry;
  for (let at = snapshot.geometry.sizeBytes; at < sizeBytes; at += REST_STEP_BYTES) {
    for (const extent of await extents(at, Math.min(REST_STEP_BYTES, sizeBytes - at))) {
      if (extent.zero) continue;
      await writeZeroes(extent.offsetBytes, extent.lengthBytes);
      count += geometry.tracksOf(extent.offsetBytes, extent.lengthBytes).count;
    }
  }
  return count;
}

async function writeAll(options: RollbackOptions, tracks: readonly number[]): Promise<void> {
  const { snapshots, snapshot, write } = options;
  const { geometry } = snapshot;
  const writes = tracks.map(async (track) => {
    const content = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
    await snapshots.read(snapshot, content, geometry.offsetOf(track));
    await write(content, geometry.offsetOf(track));
  });
  await allFinished(writes);
}
