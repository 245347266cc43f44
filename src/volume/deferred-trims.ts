/**
 * Trims of tracks that a point still protects. Saving content only to throw it away would be waste, so the
 * blocks stay as they are; the trim is remembered and done when the track is released, unless a write came
 * between. The memory is bounded: what does not fit is forgotten, which a trim allows, and counted.
 */

import type { TrackRun } from '../tracks/index.ts';

export interface TrimRange {
  readonly start: number;
  readonly end: number;
}

export class DeferredTrims {
  readonly #ranges = new Map<number, TrimRange[]>();
  readonly #countMax: number;
  #count = 0;
  #forgottenCount = 0;

  constructor(countMax: number) {
    this.#countMax = countMax;
  }

  get forgottenCount(): number {
    return this.#forgottenCount;
  }

  /** Bytes `start` to `end - 1` of one track are to be trimmed once it is released. */
  remember(track: number, range: TrimRange): void {
    if (this.#count >= this.#countMax) {
      this.#forgottenCount += 1;
      return;
    }
    const ranges = this.#ranges.get(track);
    if (ranges === undefined) this.#ranges.set(track, [range]);
    else ranges.push(range);
    this.#count += 1;
  }

  /** A trim was handed out and could not be done. */
  forget(): void {
    this.#forgottenCount += 1;
  }

  /** The bytes of the track were written: what a trim of them remembered is void. */
  overwritten(tracks: TrackRun, range: TrimRange): void {
    if (this.#count === 0) return;
    for (const [track, ranges] of this.#within(tracks)) {
      const kept = ranges.flatMap((old) => without(old, range));
      this.#count += kept.length - ranges.length;
      if (kept.length === 0) this.#ranges.delete(track);
      else this.#ranges.set(track, kept);
    }
  }

  /** Hands out, and drops, what was remembered for the tracks of a run. */
  release(run: TrackRun): TrimRange[] {
    if (this.#count === 0) return [];
    const released: TrimRange[] = [];
    for (const [track, ranges] of this.#within(run)) {
      released.push(...ranges);
      this.#count -= ranges.length;
      this.#ranges.delete(track);
    }
    return released;
  }

  #within(run: TrackRun): [number, TrimRange[]][] {
    if (run.count === 1) {
      const ranges = this.#ranges.get(run.first);
      return ranges === undefined ? [] : [[run.first, ranges]];
    }
    return [...this.#ranges].filter(([track]) => track >= run.first && track < run.first + run.count);
  }
}

/** What is left of `range` without `removed`. */
function without(range: TrimRange, removed: TrimRange): TrimRange[] {
  if (removed.end <= range.start || range.end <= removed.start) return [range];
  const left = { start: range.start, end: removed.start };
  const right = { start: removed.end, end: range.end };
  return [left, right].filter((part) => part.start < part.end);
}
