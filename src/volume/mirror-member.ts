/**
 * One member of a mirror (`mirror-set.ts`): the device, and what it lacks.
 *
 *     in sync     it has everything, and readers are sent to it
 *     away        it has no device; what is written meanwhile is missed
 *     rebuilding  it has a device again, gets every change, and what it missed is brought in
 *
 * What was written to it since its last good flush counts as missed when it goes away: nobody knows what of it is on its
 * disk. So does what was brought in.
 */

import type { MaybePromise } from '../base/index.ts';
import { type BlockDevice, WrittenFlush } from '../device/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';
import { UnflushedTracks } from './unflushed-tracks.ts';

/** Why a member has not everything, and since when. */
export interface Absence {
  readonly sinceMs: number;
  readonly reason: string;
}

/** A member as it begins. */
export interface MirrorMemberStart {
  /** A path or URI, perhaps with a piece. */
  readonly place: string;
  /** Undefined where it cannot be used now. */
  readonly device: BlockDevice | undefined;
  /** Undefined where it is in sync, which it can only be with a device. */
  readonly absence?: (Absence & { readonly missing: TrackSet }) | undefined;
}

export interface MirrorMemberStatus {
  readonly place: string;
  readonly state: 'in-sync' | 'away' | 'rebuilding';
  readonly sinceMs?: number;
  readonly reason?: string;
  readonly missingTracks?: number;
  /** Reads that it failed, and that another member answered. */
  readonly readErrors: number;
}

/** The tracks that a mirror lies on; they may get more. */
export interface MirrorTracks {
  /** Up to the mirror's end, from the beginning of the volume. */
  readonly trackCount: number;
  /** Those that the mirror has a part of. */
  readonly ownTracks: TrackRun;
}

export class MirrorMember {
  readonly index: number;
  #place: string;
  readonly #tracks: MirrorTracks;
  #device: BlockDevice | undefined;
  #flushes: WrittenFlush | undefined;
  #missing: TrackBits | undefined;
  #absence: Absence | undefined;
  #unflushed: UnflushedTracks;
  #readErrorCount = 0;
  /** Calls of the device that have not ended. */
  #runningCount = 0;
  #whenIdle: (() => void) | undefined;
  /** The end of a device that was given up. */
  #retired: Promise<void> = Promise.resolve();

  constructor(index: number, start: MirrorMemberStart, tracks: MirrorTracks) {
    this.index = index;
    this.#place = start.place;
    this.#tracks = tracks;
    this.#unflushed = new UnflushedTracks(tracks);
    if (start.device !== undefined) this.#take(start.device);
    if (start.absence === undefined) return;
    const { missing, sinceMs, reason } = start.absence;
    this.#missing = this.#bitsOf(missing.intersection(TrackSet.ofRun(tracks.ownTracks)));
    this.#absence = { sinceMs, reason };
  }

  get place(): string {
    return this.#place;
  }

  /** Undefined where it is away. */
  get device(): BlockDevice | undefined {
    return this.#device;
  }

  get isInSync(): boolean {
    return this.#device !== undefined && this.#missing === undefined;
  }

  get isRebuilding(): boolean {
    return this.#device !== undefined && this.#missing !== undefined;
  }

  get absence(): Absence | undefined {
    return this.#absence;
  }

  get missingCount(): number {
    return this.#missing?.size ?? 0;
  }

  /** Whether any track of the run is missing. */
  lacks(run: TrackRun): boolean {
    return this.#missing?.firstIn(run) !== undefined;
  }

  missing(): TrackSet {
    return this.#missing?.toTrackSet() ?? TrackSet.empty();
  }

  /** What it would have to be brought were it to go away now. */
  lacking(): TrackSet {
    return TrackSet.union([this.missing(), this.#unflushed.tracks()]);
  }

  status(): MirrorMemberStatus {
    const { isInSync, isRebuilding } = this;
    const base = { place: this.#place, readErrors: this.#readErrorCount };
    if (isInSync || this.#absence === undefined) return { ...base, state: 'in-sync' };
    const state = isRebuilding ? 'rebuilding' : 'away';
    return { ...base, ...this.#absence, state, missingTracks: this.missingCount };
  }

  /** A change that it does not get. */
  miss(run: TrackRun): void {
    this.#missing ??= new TrackBits(this.#tracks.trackCount);
    this.#missing.addRun(run);
  }

  /** The tracks of the run are there now; they count as missed again where it goes away before they are flushed. */
  brought(run: TrackRun): void {
    for (let track = run.first; track < run.first + run.count; track += 1) this.#missing?.delete(track);
  }

  /** It has everything, durably. */
  whole(): void {
    this.#missing = undefined;
    this.#absence = undefined;
  }

  /** There are more tracks. */
  grow(): void {
    this.#missing?.grow(this.#tracks.trackCount);
  }

  /**
   * Carries a change of the device out. Whatever becomes of it, the tracks count as not flushed.
   *
   * @throws, or fails with, what the device does.
   */
  change(run: TrackRun, perform: (device: BlockDevice) => MaybePromise<void>): MaybePromise<void> {
    const flushes = this.#flushes;
    this.#unflushed.mark(run);
    let done: MaybePromise<void>;
    try {
      done = this.use(perform);
    } catch (error) {
      flushes?.written();
      throw error;
    }
    if (done !== undefined) return done.finally(() => flushes?.written());
    flushes?.written();
    return undefined;
  }

  /** A call of the device, which must be there. */
  use(perform: (device: BlockDevice) => MaybePromise<void>): MaybePromise<void> {
    const device = this.#device;
    if (device === undefined) throw new Error(`Member ${this.#place} is away`);
    const done = perform(device);
    if (done === undefined) return undefined;
    this.#runningCount += 1;
    return done.finally(() => {
      this.#runningCount -= 1;
      if (this.#runningCount === 0) this.#whenIdle?.();
    });
  }

  noteReadError(): void {
    this.#readErrorCount += 1;
  }

  /** Makes durable what had been written. @param inFlight tracks of changes that have not ended. */
  async flush(inFlight: Iterable<TrackRun>): Promise<void> {
    const flushes = this.#flushes;
    if (flushes === undefined) return;
    const unflushed = this.#unflushed;
    const ticket = unflushed.beginFlush(inFlight);
    await this.use(() => flushes.flush());
    unflushed.flushed(ticket);
  }

  /** Gives the device up, which is closed when nothing uses it any more. @param isUnknown nothing there can be relied on. */
  leave(absence: Absence, isUnknown: boolean): void {
    const device = this.#device;
    const lacking = this.lacking();
    this.#absence = absence;
    this.#missing = this.#bitsOf(isUnknown ? TrackSet.ofRun(this.#tracks.ownTracks) : lacking);
    this.#device = undefined;
    this.#flushes = undefined;
    this.#unflushed = new UnflushedTracks(this.#tracks);
    if (device !== undefined) this.#retired = this.#retire(device);
  }

  async #retire(device: BlockDevice): Promise<void> {
    if (this.#runningCount > 0) await new Promise<void>((resolve) => (this.#whenIdle = resolve));
    this.#whenIdle = undefined;
    // It was given up for worse than a close that fails.
    await device.close().catch(() => undefined);
  }

  /** Finishes when a device that was given up is closed, and its lock free. */
  whenRetired(): Promise<void> {
    return this.#retired;
  }

  /** It has a device again. @param isUnknown another one, or one that was changed: everything is missing. */
  join(place: string, device: BlockDevice, isUnknown: boolean): void {
    this.#place = place;
    this.#take(device);
    if (isUnknown) this.#missing = this.#bitsOf(TrackSet.ofRun(this.#tracks.ownTracks));
  }

  #bitsOf(tracks: TrackSet): TrackBits {
    return TrackBits.from(tracks, this.#tracks.trackCount);
  }

  #take(device: BlockDevice): void {
    this.#device = device;
    this.#flushes = new WrittenFlush(device);
  }

  async close(): Promise<void> {
    await this.#retired;
    await this.#device?.close();
  }
}
