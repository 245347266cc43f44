/**
 * Copy-before-write for one session: which tracks still hold content that the session's point needs and has
 * not saved, and how a write that hits one gets past.
 *
 *     protected --(a write hits it)--> waiting --(a slot)--> copying --(old content in the container)--> saved
 *         |                               |                                                               ^
 *         +------(the lane confirms)------+---------------------------------------------------------------+
 *
 * A lane reads the home optimistically, then asks: of these tracks, which were hit meanwhile? Those that were
 * not are saved by that same question. Those that were are thrown away; their old content comes, or came,
 * through the container. So a reader needs no locks and never uses a torn track.
 *
 * With a container of no slots the writer waits while the lane takes its track out of turn.
 *
 * Everything here is in memory: a session that does not survive needs no protection.
 */

import { assert, type Deferred, deferred } from '../base/index.ts';
import type { IntermediateContainer, SlotWaiter } from '../container/index.ts';
import { TrackBits, type TrackRun } from '../tracks/index.ts';
import type { Geometry } from './geometry.ts';
import type { SessionTracks } from './session.ts';
import type { Protector } from './write-path.ts';

/** Old content on its way to the lane. */
export interface DivertedTrack {
  /** For `acknowledge`. */
  readonly id: number;
  readonly track: number;
  /**
   * The content at the point, the receiver's until it acknowledges; undefined where the home still holds it
   * and a writer waits until the lane has it from there.
   */
  readonly content: Buffer | undefined;
}

/** One track on its way from protected to saved because a write hit it. */
interface Copy {
  readonly saved: Deferred;
  stage: 'waiting' | 'copying';
  waiter?: SlotWaiter;
}

export interface ProtectionOptions {
  /** Of the volume at the session's point; it may have grown since. */
  readonly geometry: Geometry;
  /** The tracks to protect; the protection's from now on. */
  readonly tracks: TrackBits;
  readonly container: IntermediateContainer;
  /** Reads one whole track, as far as it lies in the volume, from the home. */
  readonly readHome: (target: Buffer, track: number) => Promise<void> | void;
  /** Tracks have become free to be written. */
  readonly onReleased: (run: TrackRun) => void;
  /** Saving failed; the session must end. Never the client's failure (DESIGN section 4). */
  readonly onFailed: (error: unknown) => void;
}

export class Protection implements Protector, SessionTracks {
  readonly #options: ProtectionOptions;
  #protected: TrackBits;
  readonly #copies = new Map<number, Copy>();
  /** Tracks that writers wait for and that only the lane can save: no slots at all. In order of arrival. */
  readonly #outOfTurn: number[] = [];
  /** Out-of-turn tracks that the lane has taken, by their (negative) ids. */
  readonly #takenOutOfTurn = new Map<number, number>();
  #nextOutOfTurnId = -1;
  #divertedCount = 0;
  #hasEnded = false;
  /** Settled whenever there may be something new to take. */
  #pending: Deferred = deferred();

  constructor(options: ProtectionOptions) {
    this.#options = options;
    this.#protected = options.tracks;
  }

  /** Tracks that were hit and copied out of turn. */
  get divertedCount(): number {
    return this.#divertedCount;
  }

  get protectedCount(): number {
    return this.#protected.size;
  }

  /** Writers' tracks that wait for room. */
  get waitingCount(): number {
    let count = 0;
    for (const copy of this.#copies.values()) count += copy.stage === 'waiting' ? 1 : 0;
    return count;
  }

  /** Entries that the lane could take now. */
  get #pendingCount(): number {
    return this.#options.container.untakenCount + this.#outOfTurn.length;
  }

  /** Nothing is protected any more and nothing is on its way. */
  get #isDrained(): boolean {
    return this.#protected.size === 0 && this.#copies.size === 0 && this.#options.container.entryCount === 0;
  }

  /** The lowest track of the run that no write may touch yet. */
  firstProtected(run: TrackRun): number | undefined {
    return this.#protected.firstIn(run);
  }

  /**
   * Saves a protected track's content so that a write may replace it. Every write to the track shares one
   * copy. Never rejects: where the session ends or fails, the track is free to be written.
   *
   * @param onWaiting called where there is no room and the write must wait for the backup.
   */
  save(track: number, onWaiting: () => void): Promise<void> {
    const running = this.#copies.get(track);
    const copy: Copy = running ?? { saved: deferred(), stage: 'waiting' };
    if (running === undefined) {
      this.#copies.set(track, copy);
      void this.#divert(track, copy);
    }
    if (copy.stage === 'waiting') onWaiting();
    return copy.saved.promise;
  }

  /**
   * The lane has read these tracks from the home. Those that were not hit meanwhile are saved now, and free.
   *
   * @returns the tracks that were hit: their content as read must be thrown away.
   */
  confirm(runs: readonly TrackRun[]): number[] {
    const hits: number[] = [];
    for (const run of runs) {
      for (let track = run.first; track < run.first + run.count; track += 1) {
        if (!this.#release(track)) hits.push(track);
      }
      this.#options.onReleased(run);
    }
    if (this.#isDrained) this.#pending.resolve();
    return hits;
  }

  /**
   * Diverted tracks for the lane, newest first while in memory, at most `countMax`. Waits while there are none
   * and more may come.
   *
   * @returns an empty list once every track is saved and nothing is on its way: the end.
   */
  async take(countMax: number): Promise<DivertedTrack[]> {
    while (this.#pendingCount === 0 && !this.#isDrained && !this.#hasEnded) {
      this.#pending = deferred();
      await this.#pending.promise;
    }
    return this.#takeNow(countMax);
  }

  /** The store has the content of these diverted tracks; their room is free. */
  acknowledge(ids: readonly number[]): void {
    if (this.#hasEnded) return;
    for (const id of ids) {
      const outOfTurn = this.#takenOutOfTurn.get(id);
      if (outOfTurn === undefined) {
        this.#options.container.acknowledge(id);
      } else {
        this.#takenOutOfTurn.delete(id);
        this.#finish(outOfTurn);
      }
    }
    this.#pending.resolve();
  }

  /** Ends the protection: every track is free and every waiting write goes on. Idempotent. */
  async end(): Promise<void> {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    const { geometry, container } = this.#options;
    this.#protected = new TrackBits(geometry.trackCount);
    const copies = [...this.#copies.values()];
    this.#copies.clear();
    for (const copy of copies) {
      copy.waiter?.cancel();
      copy.saved.resolve();
    }
    this.#pending.resolve();
    this.#options.onReleased({ first: 0, count: geometry.trackCount });
    await container.close();
  }

  async #divert(track: number, copy: Copy): Promise<void> {
    const { container, geometry } = this.#options;
    if (container.slotCount === 0) {
      this.#outOfTurn.push(track);
      this.#pending.resolve();
      return;
    }
    let slot = container.tryReserve();
    if (slot === undefined) {
      copy.waiter = container.waitForSlot();
      slot = await copy.waiter.slot;
      if (slot === undefined) return;
    }
    if (this.#copies.get(track) !== copy) {
      // The lane saved the track, or the session ended, while the slot was on its way.
      container.unreserve(slot);
      return;
    }
    copy.stage = 'copying';
    try {
      const content = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
      await this.#options.readHome(content, track);
      if (this.#hasEnded) return;
      await container.put(slot, track, content);
    } catch (error) {
      if (!this.#hasEnded) this.#options.onFailed(error);
      return;
    }
    if (this.#hasEnded) return;
    this.#finish(track);
    this.#pending.resolve();
  }

  /** A track's content at the point is safe elsewhere: writes to it go on. */
  #finish(track: number): void {
    const copy = this.#copies.get(track);
    assert(copy !== undefined, `Track ${track} was saved without a copy`);
    this.#copies.delete(track);
    this.#protected.delete(track);
    this.#divertedCount += 1;
    copy.saved.resolve();
    this.#options.onReleased({ first: track, count: 1 });
  }

  /** @returns whether the lane's own reading of the track is good and the track now saved. */
  #release(track: number): boolean {
    if (!this.#protected.has(track)) return false;
    const copy = this.#copies.size === 0 ? undefined : this.#copies.get(track);
    if (copy?.stage === 'copying') return false;
    this.#protected.delete(track);
    if (copy !== undefined) {
      this.#copies.delete(track);
      copy.waiter?.cancel();
      const place = this.#outOfTurn.indexOf(track);
      if (place >= 0) this.#outOfTurn.splice(place, 1);
      copy.saved.resolve();
    }
    return true;
  }

  async #takeNow(countMax: number): Promise<DivertedTrack[]> {
    const { container, geometry } = this.#options;
    const taken: DivertedTrack[] = [];
    while (taken.length < countMax) {
      const track = this.#outOfTurn.shift();
      if (track === undefined) break;
      const copy = this.#copies.get(track);
      assert(copy !== undefined, `Track ${track} waits out of turn without a copy`);
      copy.stage = 'copying';
      const id = this.#nextOutOfTurnId;
      this.#nextOutOfTurnId -= 1;
      this.#takenOutOfTurn.set(id, track);
      taken.push({ id, track, content: undefined });
    }
    for (const { id, track } of container.take(countMax - taken.length)) {
      const content = await container.content(id);
      taken.push({ id, track, content: content.subarray(0, geometry.lengthOf({ first: track, count: 1 })) });
    }
    return taken;
  }
}
