/**
 * What one session protects: which tracks still hold content that its point needs and has not saved.
 *
 *     protected --(a write hits it)--> waiting --(a slot)--> copying --(old content in a container)--> saved
 *         |                               |                     |                                        ^
 *         +------(the lane confirms)------+---------------------+----------------------------------------+
 *
 * How a hit track is copied, once for all sessions that protect it, is `protections.ts`'. Here is each session's own:
 * its tracks, what it has to take, and what waits for it.
 *
 * A lane reads the home optimistically, then asks: of these tracks, which were hit meanwhile? Those that were
 * not are saved by that same question. Those that were are thrown away; their old content comes, or came,
 * through the container. So a reader needs no locks and never uses a torn track.
 *
 * With a container of no slots the writer waits while the lane takes its track out of turn.
 *
 * Everything here is in memory: a session that does not survive needs no protection.
 */

import { type Deferred, deferred, systemTimer, type Timer } from '../base/index.ts';
import { DrainQueue, type IntermediateContainer, type Slot } from '../container/index.ts';
import { TrackBits, type TrackRun } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';
import type { Geometry } from './geometry.ts';
import type { Protections } from './protections.ts';
import type { ContainerUse, SessionTracks } from './session.ts';

/** Old content on its way to the lane. */
export interface DivertedTrack {
  /** For `acknowledge`. */
  readonly id: number;
  readonly track: number;
  /**
   * The content at the point, for reading only and until it is acknowledged; undefined where the home still holds it
   * and a writer waits until the lane has it from there.
   */
  readonly content: Buffer | undefined;
}

export interface ProtectionOptions {
  /** Of the volume at the session's point; it may have grown since. */
  readonly geometry: Geometry;
  /** The tracks to protect; the protection's from now on. */
  readonly tracks: TrackBits;
  readonly container: IntermediateContainer;
  /** All sessions of the volume. */
  readonly group: Protections;
  /** For how long a write may wait for this session before the session fails; without end where left out. */
  readonly waitMsMax?: number;
  readonly timer?: Timer;
  /** Saving failed; the session must end. Never the client's failure (DESIGN section 4). */
  readonly onFailed: (error: unknown) => void;
}

/** A write's track that waits for room, or for the lane. */
interface Wait {
  /** Gives its place in the queue up. */
  readonly cancel: () => void;
  readonly stopTimer: () => void;
}

export class Protection implements SessionTracks {
  readonly queue = new DrainQueue();
  readonly #options: ProtectionOptions;
  #protected: TrackBits;
  readonly #waits = new Map<number, Wait>();
  /** Tracks that writers wait for and that only the lane can save: no slots at all. In order of arrival. */
  readonly #outOfTurn: number[] = [];
  /** Out-of-turn tracks that the lane has taken, by their (negative) ids, and these by the tracks. */
  readonly #takenOutOfTurn = new Map<number, number>();
  readonly #readOutOfTurn = new Set<number>();
  #nextOutOfTurnId = -1;
  #divertedCount = 0;
  #hasEnded = false;
  /** Settled whenever there may be something new to take. */
  #pending: Deferred = deferred();

  constructor(options: ProtectionOptions) {
    this.#options = options;
    this.#protected = options.tracks;
  }

  get container(): IntermediateContainer {
    return this.#options.container;
  }

  get containerUse(): ContainerUse {
    const { slotCount, usedCount } = this.container;
    const { entryCount, entryCountMax } = this.queue;
    return { entries: entryCount, entriesMax: entryCountMax, slots: slotCount, slotsUsed: usedCount };
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
    return this.#waits.size - this.#readOutOfTurn.size;
  }

  /** Entries that the lane could take now. */
  get #pendingCount(): number {
    return this.queue.untakenCount + this.#outOfTurn.length;
  }

  /** Nothing is protected any more and nothing is on its way. */
  get #isDrained(): boolean {
    return this.#protected.size === 0 && this.queue.entryCount === 0;
  }

  // --- What all sessions' copies ask of each ---

  /** The lowest track of the run that no write may touch yet. */
  firstProtected(run: TrackRun): number | undefined {
    return this.#protected.firstIn(run);
  }

  protects(track: number): boolean {
    return this.#protected.has(track);
  }

  /** It protects the track, and its lane is not just reading it out of turn. */
  needsCopy(track: number): boolean {
    return this.#protected.has(track) && !this.#readOutOfTurn.has(track);
  }

  /** Bytes of the track at the session's point. */
  lengthOf(track: number): number {
    return this.#options.geometry.lengthOf({ first: track, count: 1 });
  }

  /** A write waits for room here, or for the lane where there can be none. */
  wait(track: number, onGranted: (slot: Slot) => void): void {
    this.#waits.set(track, { cancel: this.#queueUp(track, onGranted), stopTimer: this.#startTimer(track) });
    this.#pending.resolve();
  }

  /** There is room elsewhere. What the lane is reading out of turn is waited for all the same. */
  stopWaiting(track: number): void {
    if (!this.#readOutOfTurn.has(track)) this.#endWait(track);
  }

  /** The track's content is in the queue. */
  diverted(track: number): void {
    this.#divertedCount += 1;
    this.#saved(track);
    this.#pending.resolve();
  }

  fail(error: unknown): void {
    if (!this.#hasEnded) this.#options.onFailed(error);
  }

  // --- What the session asks ---

  /**
   * The lane has read these tracks from the home. Those that were not hit meanwhile are saved now, and free.
   *
   * @returns the tracks that were hit: their content as read must be thrown away.
   */
  confirm(runs: readonly TrackRun[]): number[] {
    const { group } = this.#options;
    const hits: number[] = [];
    for (const run of runs) {
      for (let track = run.first; track < run.first + run.count; track += 1) {
        // Until a copy is complete no write has passed: what the lane read is good.
        if (!this.needsCopy(track)) {
          hits.push(track);
          continue;
        }
        this.#protected.delete(track);
        this.#endWait(track);
        group.unneeded(track);
      }
      group.released(run);
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
      if (id > 0) this.queue.acknowledge(id);
      else this.#acknowledgeOutOfTurn(id);
    }
    this.#pending.resolve();
  }

  /** What was taken and not acknowledged is to be taken again: the receiver was lost and has come back. */
  resend(): void {
    if (this.#hasEnded) return;
    this.queue.putBack();
    this.#outOfTurn.unshift(...this.#readOutOfTurn);
    this.#readOutOfTurn.clear();
    this.#takenOutOfTurn.clear();
    this.#pending.resolve();
  }

  /** Ends the protection: every track is free and every waiting write goes on. Idempotent. */
  async end(): Promise<void> {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    const { geometry, group, container } = this.#options;
    this.#protected = new TrackBits(geometry.trackCount);
    this.#readOutOfTurn.clear();
    for (const track of this.#waits.keys()) this.#endWait(track);
    const closed = container.close();
    this.queue.drop();
    group.leave(this);
    this.#pending.resolve();
    group.released({ first: 0, count: geometry.trackCount });
    group.closeLater(closed);
    // What others need of it, this session does not wait for.
    if (container.entryCount === 0) await closed;
  }

  #queueUp(track: number, onGranted: (slot: Slot) => void): () => void {
    if (this.container.slotCount > 0) return this.container.waitForSlot(onGranted);
    this.#outOfTurn.push(track);
    return () => {
      const place = this.#outOfTurn.indexOf(track);
      if (place >= 0) this.#outOfTurn.splice(place, 1);
    };
  }

  #startTimer(track: number): () => void {
    const { waitMsMax, timer = systemTimer } = this.#options;
    if (waitMsMax === undefined) return () => undefined;
    return timer(waitMsMax, () => {
      const message = `A write to track ${track} has waited ${waitMsMax} ms for room in the container of the backup, which is full; give it more areas, or let writes wait`;
      this.fail(new VolumeError('container-full', message, { track, waitedMs: waitMsMax }));
    });
  }

  #endWait(track: number): void {
    const wait = this.#waits.get(track);
    if (wait === undefined) return;
    this.#waits.delete(track);
    wait.cancel();
    wait.stopTimer();
  }

  #acknowledgeOutOfTurn(id: number): void {
    const track = this.#takenOutOfTurn.get(id);
    if (track === undefined) return;
    this.#takenOutOfTurn.delete(id);
    this.#readOutOfTurn.delete(track);
    this.#divertedCount += 1;
    this.#endWait(track);
    this.#saved(track);
  }

  /** The track's content at the point is safe elsewhere: as far as this session is concerned it may be written. */
  #saved(track: number): void {
    const { group } = this.#options;
    this.#protected.delete(track);
    group.unneeded(track);
    group.released({ first: track, count: 1 });
  }

  async #takeNow(countMax: number): Promise<DivertedTrack[]> {
    const taken: DivertedTrack[] = [];
    while (taken.length < countMax) {
      const track = this.#outOfTurn.shift();
      if (track === undefined) break;
      const id = this.#nextOutOfTurnId;
      this.#nextOutOfTurnId -= 1;
      this.#takenOutOfTurn.set(id, track);
      this.#readOutOfTurn.add(track);
      taken.push({ id, track, content: undefined });
    }
    for (const { id, track } of this.queue.take(countMax - taken.length)) {
      const content = await this.queue.content(id);
      // Acknowledged meanwhile, or the session has ended.
      if (content !== undefined)
        taken.push({ id, track, content: content.subarray(0, this.lengthOf(track)) });
    }
    return taken;
  }
}
