/**
 * Reads a whole home, past the page cache as far as the system allows: after a failed writeback the cache shows what
 * the disk does not have. What cannot be read is narrowed down to tracks.
 */

import { open } from 'node:fs/promises';
import { dropCache, LIMITS } from '../base/index.ts';
import { type BlockDevice, parseDeviceAddress } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { VolumeIdentity } from './directory.ts';
import type { Geometry } from './geometry.ts';
import { homePlaces } from './layout.ts';

export interface Unreadable {
  readonly tracks: TrackSet;
  /** What reading the first of them threw. */
  readonly error: unknown;
}

/**
 * @param onProgress called with the bytes read so far; what it throws ends the reading.
 * @returns what cannot be read, if there is anything.
 */
export async function readThrough(
  home: BlockDevice,
  identity: VolumeIdentity,
  geometry: Geometry,
  onProgress?: (bytesRead: number) => void,
): Promise<Unreadable | undefined> {
  await dropCaches(homePlaces(identity));
  const { sizeBytes } = geometry;
  const buffer = Buffer.allocUnsafe(LIMITS.sessionRunBytesMax);
  const tracks = TrackSet.empty();
  const errors: unknown[] = [];
  const read = async (offset: number, lengthBytes: number): Promise<boolean> => {
    try {
      await home.read(buffer.subarray(0, lengthBytes), offset);
      return true;
    } catch (error) {
      errors.push(...(errors.length === 0 ? [error] : []));
      return false;
    }
  };
  for (let offset = 0; offset < sizeBytes; offset += buffer.length) {
    const lengthBytes = Math.min(buffer.length, sizeBytes - offset);
    if (!(await read(offset, lengthBytes))) {
      const run = geometry.tracksOf(offset, lengthBytes);
      for (let track = run.first; track < run.first + run.count; track += 1) {
        const trackBytes = geometry.lengthOf({ first: track, count: 1 });
        if (!(await read(geometry.offsetOf(track), trackBytes))) tracks.add(track);
      }
    }
    onProgress?.(offset + lengthBytes);
  }
  // An error that reading again did not show is none any more.
  return tracks.isEmpty ? undefined : { tracks, error: errors[0] };
}

/** Forgets what the page cache has of places that are files or block devices, so that they are read themselves. */
export async function dropCaches(places: readonly string[]): Promise<void> {
  for (const place of places) {
    const { scheme, target } = parseDeviceAddress(place);
    if (scheme !== 'file') continue;
    // One that cannot be opened has no bytes to be read either.
    const handle = await open(target, 'r').catch(() => undefined);
    if (handle === undefined) continue;
    try {
      await dropCache(handle.fd);
    } finally {
      await handle.close();
    }
  }
}
