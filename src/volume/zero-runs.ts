/**
 * Tells which tracks of the home are known to be zero without reading them: those wholly in holes.
 *
 * The home is asked a window at a time, ahead of the reading. A hole that is filled meanwhile was hit, and
 * `confirm` says so.
 */

import { GIB } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import type { TrackRun, TrackSet } from '../tracks/index.ts';
import type { Geometry } from './geometry.ts';

const WINDOW_BYTES = GIB;

/** Tracks in a row of which all are known to be zero, or none. */
export interface AlikeRun extends TrackRun {
  readonly isZero: boolean;
}

export class ZeroRuns {
  readonly #geometry: Geometry;
  readonly #home: Pick<BlockDevice, 'extents'>;
  /** What is known of the current window, ascending. */
  #parts: AlikeRun[] = [];

  constructor(geometry: Geometry, home: Pick<BlockDevice, 'extents'>) {
    this.#geometry = geometry;
    this.#home = home;
  }

  /** The tracks in runs that are alike, in their order. */
  async *split(tracks: TrackSet): AsyncGenerator<AlikeRun> {
    for (const run of tracks.runs()) {
      const end = run.first + run.count;
      for (let first = run.first; first < end;) {
        const { isZero, count } = await this.#at(first, end - first);
        yield { first, count, isZero };
        first += count;
      }
    }
  }

  /** How many tracks from `first` on, at most `countMax`, are alike. Called with ascending tracks. */
  async #at(first: number, countMax: number): Promise<{ readonly isZero: boolean; readonly count: number }> {
    let part = this.#find(first);
    if (part === undefined) {
      await this.#load(first);
      part = this.#find(first);
    }
    if (part === undefined) return { isZero: false, count: 1 };
    return { isZero: part.isZero, count: Math.min(countMax, part.first + part.count - first) };
  }

  #find(track: number): AlikeRun | undefined {
    while (this.#parts[0] !== undefined && this.#parts[0].first + this.#parts[0].count <= track)
      this.#parts.shift();
    const part = this.#parts[0];
    return part !== undefined && part.first <= track ? part : undefined;
  }

  async #load(first: number): Promise<void> {
    const { trackSizeBytes, trackCount } = this.#geometry;
    const count = Math.min(trackCount - first, Math.max(1, Math.floor(WINDOW_BYTES / trackSizeBytes)));
    const extents = await this.#home.extents(
      this.#geometry.offsetOf(first),
      this.#geometry.lengthOf({ first, count }),
    );
    this.#parts = [];
    let at = first;
    for (const extent of extents) {
      if (!extent.zero) continue;
      const zeroFirst = Math.ceil(extent.offsetBytes / trackSizeBytes);
      const end = extent.offsetBytes + extent.lengthBytes;
      // The last track ends with the volume.
      const zeroEnd = end >= this.#geometry.sizeBytes ? trackCount : Math.floor(end / trackSizeBytes);
      if (zeroEnd <= zeroFirst) continue;
      if (zeroFirst > at) this.#parts.push({ first: at, count: zeroFirst - at, isZero: false });
      this.#parts.push({ first: zeroFirst, count: zeroEnd - zeroFirst, isZero: true });
      at = zeroEnd;
    }
    if (at < first + count) this.#parts.push({ first: at, count: first + count - at, isZero: false });
  }
}
