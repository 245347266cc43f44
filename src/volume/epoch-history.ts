/**
 * Which tracks changed since any point: one set per epoch, and `changedSince(P)` the union of the epochs from
 * P on (DESIGN section 4, promise 3). So any number of stores, each at its own point, come out of one
 * mechanism.
 *
 * A boundary that nobody needs folds: its epoch's tracks go to the next younger one, and its point becomes an
 * alias that is answered as the next older boundary is, with more tracks and never fewer. An alias is its
 * epoch's number and nothing else; which boundary answers is found when somebody asks, so that one which folds
 * in its turn leaves nothing to be changed. A point older than all boundaries is unknown.
 *
 * In memory this is the truth; `state.ts` keeps what must outlive the process.
 */

import { assert, LIMITS } from '../base/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';

/** The epoch that a point closed. */
export interface ClosedEpoch {
  /** Counts from 1; the order of the points. */
  readonly number: number;
  readonly point: string;
  readonly createdMs: number;
  readonly tracks: TrackSet;
}

/** A point whose boundary has folded. */
export interface FoldedPoint {
  /** Of the epoch that it closed. */
  readonly number: number;
  readonly point: string;
}

/** What a fold changed, to be recorded in one transaction. */
export interface Fold {
  /** Their points are aliases now, their tracks those of a younger epoch. */
  readonly folded: readonly ClosedEpoch[];
  /** Epochs that got tracks of folded ones. */
  readonly grown: readonly ClosedEpoch[];
  /** The epoch of the oldest boundary: all points before it are unknown, and their epochs' tracks needed by nobody. */
  readonly oldest: number;
  /** Epochs whose points are unknown now, for want of room for their aliases. */
  readonly forgotten: readonly number[];
}

/** What was the open set becomes a track set when somebody first asks. */
class HistoryEpoch implements ClosedEpoch {
  readonly number: number;
  readonly point: string;
  readonly createdMs: number;
  #bits: TrackBits | undefined;
  #tracks: TrackSet | undefined;

  constructor(name: Omit<ClosedEpoch, 'tracks'>, tracks: TrackBits | TrackSet) {
    this.number = name.number;
    this.point = name.point;
    this.createdMs = name.createdMs;
    if (tracks instanceof TrackSet) this.#tracks = tracks;
    else this.#bits = tracks;
  }

  get tracks(): TrackSet {
    this.#tracks ??= this.#bits?.toTrackSet() ?? TrackSet.empty();
    this.#bits = undefined;
    return this.#tracks;
  }

  /** More tracks changed in it. A set that was asked for before stays what it was. */
  absorb(older: readonly ClosedEpoch[]): void {
    this.#tracks = TrackSet.union([...older.map(({ tracks }) => tracks), this.tracks]);
  }
}

export class EpochHistory {
  #closed: HistoryEpoch[];
  /** Folded points, and the numbers of the epochs that they closed. */
  readonly #aliases: Map<string, number>;
  #open: TrackBits;
  #openNumber: number;

  constructor(options: {
    readonly trackCount: number;
    readonly openNumber: number;
    readonly open: TrackBits;
    /** Oldest first. */
    readonly closed: readonly ClosedEpoch[];
    readonly aliases?: readonly FoldedPoint[];
  }) {
    assert(
      options.open.trackCount === options.trackCount,
      'The open epoch is of another size than the volume',
    );
    this.#open = options.open;
    this.#openNumber = options.openNumber;
    this.#closed = options.closed.map((epoch) => new HistoryEpoch(epoch, epoch.tracks));
    this.#aliases = new Map(options.aliases?.map(({ point, number }) => [point, number]));
    for (const epoch of this.#closed)
      assert(epoch.number < options.openNumber, `Epoch ${epoch.number} is not closed`);
  }

  get trackCount(): number {
    return this.#open.trackCount;
  }

  get openNumber(): number {
    return this.#openNumber;
  }

  get openCount(): number {
    return this.#open.size;
  }

  /** The boundaries, oldest first. */
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

  /** The volume has `trackCount` tracks from now on. The run, up to the new end, counts as changed. */
  grow(trackCount: number, run: TrackRun): void {
    this.#open.grow(trackCount);
    this.#open.addRun(run);
  }

  /** The home can no longer be compared with any point: every track counts as changed. */
  markAll(): void {
    this.#open = TrackBits.all(this.trackCount);
  }

  knows(point: string): boolean {
    return this.#placeOf(point) >= 0;
  }

  /** The epoch closed by the boundary that answers for the point: its own, or the next older one's. */
  boundaryOf(point: string): number | undefined {
    return this.#closed[this.#placeOf(point)]?.number;
  }

  /** Whether one known point is older than another. Exact for folded ones too. */
  isBefore(point: string, other: string): boolean {
    return this.#numberOf(point) < this.#numberOf(other);
  }

  /**
   * Fixes a point: the open epoch is closed by it and the next one begins, empty. Called with the gate closed,
   * so it does no work that grows with the volume.
   *
   * @param planned gets the closed epoch's tracks added.
   */
  close(point: string, createdMs: number, planned?: TrackBits): ClosedEpoch {
    planned?.addAll(this.#open);
    const closed = new HistoryEpoch({ number: this.#openNumber, point, createdMs }, this.#open);
    this.#closed.push(closed);
    this.#openNumber += 1;
    this.#open = new TrackBits(this.trackCount);
    return closed;
  }

  /** The tracks of the closed epochs since the point: what `changedSince` gives without the open epoch. */
  closedSince(point: string): TrackSet {
    const place = this.#placeOf(point);
    if (place < 0) return TrackSet.all(this.trackCount);
    return TrackSet.union(this.#closed.slice(place + 1).map((epoch) => epoch.tracks));
  }

  /**
   * The tracks that changed between two points; for an older point that is unknown, every track.
   *
   * @param to a known point, after `from`.
   */
  changedBetween(from: string, to: string): TrackSet {
    const end = this.#numberOf(to);
    // Of a folded one, the next younger: what is between the two is in the answer.
    const last = this.#closed.findIndex(({ number }) => number >= end);
    assert(this.knows(to) && last >= 0, `Point ${to} is unknown`);
    const first = this.#placeOf(from);
    if (first < 0) return TrackSet.all(this.trackCount);
    return TrackSet.union(this.#closed.slice(first + 1, last + 1).map((epoch) => epoch.tracks));
  }

  /**
   * Folds every boundary but those to keep and the newest. The answers for what is kept, and for aliases that a
   * kept one answers for, stay what they are. It takes time by the size of the sets that are folded.
   *
   * @param kept numbers of the epochs whose points stay boundaries.
   */
  fold(kept: ReadonlySet<number>): Fold {
    const folded: HistoryEpoch[] = [];
    const grown: HistoryEpoch[] = [];
    const staying: HistoryEpoch[] = [];
    let going: HistoryEpoch[] = [];
    const newest = this.#closed.at(-1);
    for (const epoch of this.#closed) {
      if (epoch !== newest && !kept.has(epoch.number)) {
        going.push(epoch);
        continue;
      }
      // Where no older one stays, nobody is left who could ask for their tracks.
      if (staying.length > 0 && going.length > 0) {
        epoch.absorb(going);
        grown.push(epoch);
        folded.push(...going);
      }
      going = [];
      staying.push(epoch);
    }
    this.#closed = staying;
    for (const { point, number } of folded) this.#aliases.set(point, number);
    const oldest = staying[0]?.number ?? this.#openNumber;
    return { folded, grown, oldest, forgotten: this.#forgetAliases(oldest) };
  }

  /** Aliases that no boundary answers for, and the oldest beyond the limit. @returns the epochs of the latter. */
  #forgetAliases(oldest: number): number[] {
    for (const [point, number] of this.#aliases) if (number < oldest) this.#aliases.delete(point);
    const excessCount = this.#aliases.size - LIMITS.pointAliasCountMax;
    if (excessCount <= 0) return [];
    const excess = [...this.#aliases].toSorted(([, a], [, b]) => a - b).slice(0, excessCount);
    for (const [point] of excess) this.#aliases.delete(point);
    return excess.map(([, number]) => number);
  }

  /**
   * Takes a point back that could not be recorded. Its tracks count as changed in the next epoch, so that no
   * older point loses them; the point itself is unknown.
   */
  withdraw({ number }: ClosedEpoch): void {
    const place = this.#closed.findIndex((epoch) => epoch.number === number);
    const [epoch] = place < 0 ? [] : this.#closed.splice(place, 1);
    if (epoch === undefined) return;
    const younger = this.#closed[place];
    if (younger === undefined) this.#open.addAll(TrackBits.from(epoch.tracks, this.trackCount));
    else younger.absorb([epoch]);
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
    const place = this.#placeOf(point);
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

  /** Of the boundary that answers for the point; -1 where none does. */
  #placeOf(point: string): number {
    const place = this.#closed.findIndex((epoch) => epoch.point === point);
    if (place >= 0) return place;
    const alias = this.#aliases.get(point);
    return alias === undefined ? -1 : this.#closed.findLastIndex(({ number }) => number < alias);
  }

  /** Of the epoch that the point closed; 0 where it is unknown. */
  #numberOf(point: string): number {
    return this.#closed.find((epoch) => epoch.point === point)?.number ?? this.#aliases.get(point) ?? 0;
  }
}
