/**
 * Which tracks changed since any point: one set per epoch, and `changedSince(P)` the union of the epochs from
 * P on (DESIGN section 4, promise 3). So any number of stores, each at its own point, come out of one
 * mechanism.
 *
 * In memory this is the truth; `state.ts` keeps what must outlive the process.
 */

import { assert } from '../base/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';

/** The epoch that a point closed. */
export interface ClosedEpoch {
  /** Counts from 1; the order of the points. */
  readonly number: number;
  readonly point: string;
  readonly createdMs: number;
  readonly tracks: TrackSet;
}

/** An epoch closed by this process: what was the open set becomes a track set when somebody first asks. */
class JustClosedEpoch implements ClosedEpoch {
  readonly number: number;
  readonly point: string;
  readonly createdMs: number;
  #bits: TrackBits | undefined;
  #tracks: TrackSet | undefined;

  constructor(number: number, point: string, createdMs: number, bits: TrackBits) {
    this.number = number;
    this.point = point;
    this.createdMs = createdMs;
    this.#bits = bits;
  }

  get tracks(): TrackSet {
    this.#tracks ??= this.#bits?.toTrackSet() ?? TrackSet.empty();
    this.#bits = undefined;
    return this.#tracks;
  }
}

export class EpochHistory {
  readonly trackCount: number;
  readonly #closed: ClosedEpoch[];
  #open: TrackBits;
  #openNumber: number;

  constructor(options: {
    readonly trackCount: number;
    readonly openNumber: number;
    readonly open: TrackBits;
    /** Oldest first. */
    readonly closed: readonly ClosedEpoch[];
  }) {
    this.trackCount = options.trackCount;
    this.#open = options.open;
    this.#openNumber = options.openNumber;
    this.#closed = [...options.closed];
    for (const epoch of this.#closed)
      assert(epoch.number < options.openNumber, `Epoch ${epoch.number} is not closed`);
  }

  get openNumber(): number {
    return this.#openNumber;
  }

  get openCount(): number {
    return this.#open.size;
  }

  /** Oldest first. */
  get closed(): readonly ClosedEpoch[] {
    return this.#closed;
  }

  openTracks(): TrackSet {
    return this.#open.toTrackSet();
  }

  /** The lowest track of the run that changed in the open epoch. */
  firstOpenIn(run: TrackRun): number | undefined {
    return this.#open.firstIn(run);
  }

  /** The tracks of the run are about to be written. */
  mark(run: TrackRun): void {
    if (run.count === 1) this.#open.add(run.first);
    else this.#open.addRun(run);
  }

  /** The home can no longer be compared with any point: every track counts as changed. */
  markAll(): void {
    this.#open = TrackBits.all(this.trackCount);
  }

  knows(point: string): boolean {
    return this.#closed.some((epoch) => epoch.point === point);
  }

  /** Whether one known point is older than another. */
  isBefore(point: string, other: string): boolean {
    const place = (one: string): number => this.#closed.findIndex((epoch) => epoch.point === one);
    return place(point) < place(other);
  }

  /**
   * Fixes a point: the open epoch is closed by it and the next one begins, empty. Called with the gate closed,
   * so it does no work that grows with the volume.
   *
   * @param planned gets the closed epoch's tracks added.
   */
  close(point: string, createdMs: number, planned?: TrackBits): ClosedEpoch {
    planned?.addAll(this.#open);
    const closed = new JustClosedEpoch(this.#openNumber, point, createdMs, this.#open);
    this.#closed.push(closed);
    this.#openNumber += 1;
    this.#open = new TrackBits(this.trackCount);
    return closed;
  }

  /** The tracks of the closed epochs since the point: what `changedSince` gives without the open epoch. */
  closedSince(point: string): TrackSet {
    const place = this.#closed.findIndex((epoch) => epoch.point === point);
    if (place < 0) return TrackSet.all(this.trackCount);
    return TrackSet.union(this.#closed.slice(place + 1).map((epoch) => epoch.tracks));
  }

  /**
   * The tracks that changed between two points; for an older point that is unknown, every track.
   *
   * @param to a known point, after `from`.
   */
  changedBetween(from: string, to: string): TrackSet {
    const last = this.#closed.findIndex((epoch) => epoch.point === to);
    assert(last >= 0, `Point ${to} is unknown`);
    const first = this.#closed.findIndex((epoch) => epoch.point === from);
    if (first < 0) return TrackSet.all(this.trackCount);
    return TrackSet.union(this.#closed.slice(first + 1, last + 1).map((epoch) => epoch.tracks));
  }

  /** Drops the oldest boundaries beyond `countMax`: their points become unknown. @returns what was dropped. */
  drop(countMax: number): ClosedEpoch[] {
    return this.#closed.splice(0, Math.max(0, this.#closed.length - countMax));
  }

  /** Every track whose content may differ from what it was at the point; for an unknown point, every track. */
  changedSince(point: string): TrackSet {
    const changed = this.closedSince(point);
    changed.addAll(this.#open.toTrackSet());
    return changed;
  }

  /**
   * Those of the run's tracks that are in `changedSince`; for an unknown point, all of them. Takes time by the
   * length of the run and the number of epochs since the point, not by the volume. The answer is that of this
   * instant: a freeze before or after it only moves tracks from the open epoch into a closed one.
   */
  changedIn(point: string, run: TrackRun): TrackSet {
    const asked = TrackSet.ofRun(run);
    const place = this.#closed.findIndex((epoch) => epoch.point === point);
    if (place < 0) return asked;
    const changed = this.#open.tracksIn(run);
    for (let index = place + 1; index < this.#closed.length; index += 1) {
      const epoch = this.#closed[index];
      // Nothing can be added to all of it.
      if (epoch === undefined || changed.size === run.count) break;
      changed.addAll(epoch.tracks.intersection(asked));
    }
    return changed;
  }
}
