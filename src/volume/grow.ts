/**
 * Making a volume larger while it is used.
 *
 *     home extended and flushed -> new size and what it changes recorded, one commit -> all parts know, in one go
 *
 * A crash in between leaves the old size or the new one, and a home that is large enough for either. What is new counts
 * as changed in the open epoch. The record says so too, until that epoch's own record or a clean stop does, so that it
 * is known after a crash without naming each of its regions in the intent log.
 *
 * No freeze may be under way: it prepares what has the size of the volume. The gate stays open; writes are either
 * refused beyond the old end or find everything ready beyond it.
 *
 * A home that is a whole file is extended, by zeroes. Any other must be large enough already, and the volume shows what
 * is there.
 */

import type { BlockDevice } from '../device/index.ts';
import type { VolumeIdentity } from './directory.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import type { Points } from './points.ts';
import type { VolumeState } from './state.ts';
import type { WritePath } from './write-path.ts';

export interface GrowingVolume {
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly home: BlockDevice;
  readonly state: VolumeState;
  readonly epochs: EpochHistory;
  readonly writePath: WritePath;
  readonly points: Points;
  /** The new size is recorded, and perhaps not durably: nothing may be recorded on top of that. */
  readonly onUnknown: (error: unknown) => void;
}

/**
 * Gives the volume another size, durably; nothing is done where it has that one.
 *
 * @throws {VolumeError} `shrink-refused`, `invalid-geometry`, `home-unusable`; what extending and flushing the home, and
 *   recording, throw.
 */
export async function growTo(sizeBytes: number, volume: GrowingVolume): Promise<void> {
  const { identity, geometry, state, epochs, writePath, points } = volume;
  const beforeBytes = geometry.sizeBytes;
  if (sizeBytes === beforeBytes) return;
  const { trackCount } = new Geometry(sizeBytes, geometry.trackSizeBytes);
  if (sizeBytes < beforeBytes) {
    const message = `Volume ${identity.name} has ${beforeBytes} bytes; making it smaller, ${sizeBytes} bytes, would lose what lies behind the new end and is not offered`;
    throw new VolumeError('shrink-refused', message, { sizeBytes: beforeBytes, wantedBytes: sizeBytes });
  }
  await extendHome(sizeBytes, volume);
  await writePath.flush();
  // From a short last track on, which becomes another one.
  const first = Math.floor(beforeBytes / geometry.trackSizeBytes);
  const grown = { first, count: trackCount - first };
  try {
    await state.saveSize(sizeBytes, epochs.openNumber, grown);
  } catch (error) {
    if (state.record.sizeBytes !== beforeBytes) volume.onUnknown(error);
    throw error;
  }
  geometry.grow(sizeBytes);
  epochs.grow(trackCount, grown);
  writePath.grow();
  points.grow();
}

async function extendHome(sizeBytes: number, { identity, home }: GrowingVolume): Promise<void> {
  if (home.sizeBytes < sizeBytes) await home.extend?.(sizeBytes);
  if (home.sizeBytes >= sizeBytes) return;
  const message = `Home ${identity.home} of volume ${identity.name} has ${home.sizeBytes} bytes and is none that grows with the volume, wanted ${sizeBytes}; make it larger first`;
  throw new VolumeError('home-unusable', message, { home: identity.home });
}
