/**
 * The tracks written since the last flush of the home that succeeded: what a failed flush or write leaves suspect
 * (DESIGN section 4, promise 10).
 *
 *     written -> current -> (a flush begins) -> one of `#flushing` -> (it succeeds) -> forgotten
 *
 * A flush covers what had finished when it began, so what is written is put aside at its beginning; what is still in
 * flight then is marked again. It is not the open epoch's set itself: an epoch may last for weeks, and a list of
 * everything written in it would not help anybody.
 *
 * Every write passes here and every flush starts anew, so it is a plain list of numbers: a bitset of a volume of 1 TiB
 * that is made new for each flush cost 0.6 us a write where a flush came with every thousandth. What does not fit
 * is known by whole regions of tracks, a set small enough to stay in the processor's cache.
 *
 * In memory only: it is recorded when the volume is poisoned, and of no use before.
 */

import { LIMITS } from '../base/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';

const REGION_TRACKS = LIMITS.intentRegionTracks;

/** Whose tracks they are; it may get more. */
interface Tracked {
  readonly trackCount: number;
}

/** What was written between two beginnings of a flush. */
class Written {
  readonly #volume: Tracked;
  readonly #list = new Uint32Array(LIMITS.unflushedTrackCountMax);
  #count = 0;
  #last = -1;
  /** Regions of what did not fit. */
  #regions: TrackBits | undefined;

  constructor(volume: Tracked) {
    this.#volume = volume;
  }

  get isEmpty(): boolean {
    return this.#count === 0 && this.#regions === undefined;
  }

  add(track: number): void {
    if (track === this.#last) return;
    if (this.#count === this.#list.length) this.#makeRoom();
    this.#list[this.#count] = track;
    this.#count += 1;
    this.#last = track;
  }

  #makeRoom(): void {
    const regionCount = Math.ceil(this.#volume.trackCount / REGION_TRACKS);
    this.#regions ??= new TrackBits(regionCount);
    this.#regions.grow(regionCount);
    for (let index = 0; index < this.#count; index += 1)
      this.#regions.add(Math.floor((this.#list[index] ?? 0) / REGION_TRACKS));
    this.#count = 0;
  }

  tracks(): TrackSet {
    const tracks = TrackSet.of(this.#list.subarray(0, this.#count));
    for (const region of this.#regions?.toTrackSet() ?? []) {
      const first = region * REGION_TRACKS;
      tracks.addRun({ first, count: Math.min(REGION_TRACKS, this.#volume.trackCount - first) });
    }
    return tracks;
  }

  clear(): void {
    this.#count = 0;
    this.#last = -1;
    this.#regions = undefined;
  }
}

/** A flush under way. */
export type FlushTicket = number;

export class UnflushedTracks {
  readonly #volume: Tracked;
  #current: Written;
  /** One to use again. */
  #spare: Written | undefined;
  /** What had been written when a flush began, by its ticket; the oldest first. */
  readonly #flushing = new Map<FlushTicket, Written>();
  #lastTicket: FlushTicket = 0;

  constructor(volume: Tracked) {
    this.#volume = volume;
    this.#current = new Written(volume);
  }

  /** The tracks are about to be written. */
  mark(run: TrackRun): void {
    for (let track = run.first; track < run.first + run.count; track += 1) this.#current.add(track);
  }

  /** @param inFlight what a flush that begins now does not cover. */
  beginFlush(inFlight: Iterable<TrackRun>): FlushTicket {
    this.#lastTicket += 1;
    if (this.#current.isEmpty) return this.#lastTicket;
    this.#flushing.set(this.#lastTicket, this.#current);
    this.#current = this.#spare ?? new Written(this.#volume);
    this.#spare = undefined;
    for (const run of inFlight) this.mark(run);
    return this.#lastTicket;
  }

  /** The flush succeeded. It covers what those that began before it were to cover. */
  flushed(ticket: FlushTicket): void {
    for (const [earlier, written] of this.#flushing) {
      if (earlier > ticket) return;
      this.#flushing.delete(earlier);
      written.clear();
      this.#spare = written;
    }
  }

  /** Every track of which no flush has said that it is on the disk; perhaps others in their regions. */
  tracks(): TrackSet {
    return TrackSet.union([this.#current, ...this.#flushing.values()].map((written) => written.tracks()));
  }
}
