/**
 * What every change of a volume's bytes passes: order, protection, gate, mark, home (DESIGN section 4, "The
 * gate and the freeze").
 *
 *     outside the gate   wait for earlier overlapping pieces; have the regions in the epoch's intent log, durably;
 *                        have protected content saved
 *     inside the gate    mark the tracks in the open epoch, write the home, leave
 *
 * The short way: where the gate is open, the regions are logged, nothing protected is hit and nothing overlapping
 * is in flight, the call goes straight through and finishes at once if the home does. The long way cuts the range
 * into pieces and takes them one by one. Between a piece's last check and its entering the gate nothing is awaited, so
 * what was checked still holds.
 *
 * A failed home write or flush poisons the volume (promise 10); ENOSPC from a write does not, nor do zeroes that
 * the home refused because they would not be fast.
 */

import { allFinished, assert, LIMITS, type MaybePromise } from '../base/index.ts';
import { type BlockDevice, isRefusal, type WriteOptions } from '../device/index.ts';
import type { TrackRun, TrackSet } from '../tracks/index.ts';
import { DeferredTrims } from './deferred-trims.ts';
import type { Deltas } from './deltas.ts';
import type { DirtyRegions } from './dirty-regions.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import type { FillingDevice } from './filling-device.ts';
import { Gate } from './gate.ts';
import type { Geometry } from './geometry.ts';
import type { IntentLog } from './intent-log.ts';
import { RangeOrder } from './range-order.ts';
import { UnflushedTracks } from './unflushed-tracks.ts';

export type Change =
  | { readonly kind: 'write'; readonly source: Buffer }
  | { readonly kind: 'zeroes'; readonly mayTrim: boolean; readonly fast: boolean }
  | { readonly kind: 'trim' };

export interface WritePathOptions {
  readonly geometry: Geometry;
  readonly home: BlockDevice;
  readonly epochs: EpochHistory;
  /** The open epoch's; undefined where nothing is ever written. */
  readonly intents: IntentLog | undefined;
  /** Throws where the volume refuses writes now. */
  readonly refuse: () => void;
  /** A write or flush of the home failed. */
  readonly onHomeFailed: (error: unknown) => void;
  /** What a change may have to wait for before it passes the gate: a home that is being filled. */
  readonly filling?: Pick<FillingDevice, 'isReadyFor' | 'makeReadyFor'> | undefined;
  /** Of a volume whose changes go to several places. */
  readonly dirty?: DirtyRegions | undefined;
  /** What takes every change beside the home, and may be full. */
  readonly deltas?: Pick<Deltas, 'hasRoomFor' | 'whenRoom' | 'pieceBytesMax'> | undefined;
}

/** What keeps the old content of tracks: a session, or the snapshots. */
export interface Protector {
  /** The lowest track of the run that no write may touch yet. */
  firstProtected(run: TrackRun): number | undefined;
  /**
   * Keeps a track's content, so that a write may go on.
   *
   * @param onWaiting called where the write must wait for a backup.
   * @throws where the content cannot be kept: the write must not be done.
   */
  save(track: number, onWaiting: () => void): Promise<void>;
  /** A write of the run is on its way: what it will need kept may be begun already. */
  saveAhead?(run: TrackRun): void;
}

export class WritePath {
  readonly gate = new Gate();
  readonly #options: WritePathOptions;
  /** That of the open epoch. */
  #intents: IntentLog | undefined;
  readonly #order = new RangeOrder();
  readonly #protectors = new Set<Protector>();
  readonly #trims = new DeferredTrims(LIMITS.deferredTrimCountMax);
  readonly #trimming = new Set<Promise<void>>();
  readonly #unflushed: UnflushedTracks;
  #waitingCount = 0;

  constructor(options: WritePathOptions) {
    this.#options = options;
    this.#intents = options.intents;
    this.#unflushed = new UnflushedTracks(options.geometry);
  }

  /** Calls that wait for a backup at this moment. */
  get waitingCount(): number {
    return this.#waitingCount;
  }

  /** Trims that were dropped because too many were put off. */
  get forgottenTrimCount(): number {
    return this.#trims.forgottenCount;
  }

  /** Of these nobody knows whether they are on the disk: written since the last flush that succeeded. */
  unflushedTracks(): TrackSet {
    return this.#unflushed.tracks();
  }

  /** The log of the open epoch. */
  get intents(): IntentLog | undefined {
    return this.#intents;
  }

  /** The volume has more tracks now. */
  grow(): void {
    this.#intents?.grow();
    this.#options.dirty?.grow();
  }

  /** The next epoch begins. Called with the gate closed. */
  switchIntents(next: IntentLog): void {
    this.#intents = next;
  }

  /** Whether a change of these tracks need not wait for the intent log. */
  isLogged(run: TrackRun): boolean {
    return this.#intents?.covers(run) === true && this.#options.dirty?.covers(run) !== false;
  }

  /** From now on no write passes a protected track unsaved. Called with the gate closed. */
  protect(protector: Protector): void {
    this.#protectors.add(protector);
  }

  unprotect(protector: Protector): void {
    this.#protectors.delete(protector);
  }

  /**
   * Tracks of the run may be written again: does the trims that were put off for them. One whose range
   * something is in flight for is forgotten: that may be a later write, which it must not undo.
   */
  released(run: TrackRun): void {
    for (const { start, end } of this.#trims.release(run)) {
      if (this.#order.conflicts(start, end)) {
        this.#trims.forget();
        continue;
      }
      const trim = this.#trimReleased(start, end).finally(() => this.#trimming.delete(trim));
      this.#trimming.add(trim);
    }
  }

  async #trimReleased(start: number, end: number): Promise<void> {
    try {
      await this.change({ kind: 'trim' }, start, end - start);
    } catch {
      // A trim is a hint. A home that failed it has poisoned the volume by now.
      this.#trims.forget();
    }
  }

  /** Finishes when nothing that was under way when it was called still is. */
  async whenIdle(): Promise<void> {
    await Promise.all(this.#trimming);
    await this.#order.whenIdle();
  }

  /** What was put off must not be done any more: the volume becomes what it was before. Nobody may be writing. */
  async voidTrims(): Promise<void> {
    await this.whenIdle();
    const { trackCount, sizeBytes } = this.#options.geometry;
    this.#trims.overwritten({ first: 0, count: trackCount }, { start: 0, end: sizeBytes });
  }

  /** Carries one change out; the range was checked by the caller. The source buffer is the caller's. */
  change(
    change: Change,
    offsetBytes: number,
    lengthBytes: number,
    options?: WriteOptions,
  ): MaybePromise<void> {
    this.#options.refuse();
    const run = this.#options.geometry.tracksOf(offsetBytes, lengthBytes);
    if (change.kind === 'zeroes' && change.fast) this.#refuseCopies(run, offsetBytes, lengthBytes);
    const done = this.#mayPass(change, run, offsetBytes, lengthBytes)
      ? this.#passAtOnce(change, run, offsetBytes, lengthBytes)
      : this.#passInPieces(change, offsetBytes, lengthBytes, options);
    if (options?.fua !== true) return done;
    return done === undefined ? this.flush() : done.then(() => this.flush());
  }

  /** Covers every change that had finished when it was called. */
  async flush(): Promise<void> {
    this.#options.refuse();
    const ticket = this.#unflushed.beginFlush(this.#runsInFlight());
    const dirtyTicket = this.#options.dirty?.flushBegins();
    try {
      await this.#options.home.flush();
    } catch (error) {
      this.#options.onHomeFailed(error);
      throw error;
    }
    // One that failed beside it may have been told of what this one's writes have lost, and this one not.
    this.#options.refuse();
    this.#unflushed.flushed(ticket);
    if (dirtyTicket !== undefined) this.#options.dirty?.flushed(dirtyTicket);
  }

  *#runsInFlight(): Generator<TrackRun> {
    for (const { start, end } of this.#order.ranges())
      yield this.#options.geometry.tracksOf(start, end - start);
  }

  #mayPass(change: Change, run: TrackRun, offsetBytes: number, lengthBytes: number): boolean {
    if (!this.gate.isOpen) return false;
    if (change.kind !== 'write' && lengthBytes > LIMITS.zeroPieceBytesMax) return false;
    if (this.#order.size > 0 && this.#order.conflicts(offsetBytes, offsetBytes + lengthBytes)) return false;
    if (!this.isLogged(run) || !this.#hasRoomFor(change)) return false;
    if (this.#options.filling?.isReadyFor(offsetBytes, lengthBytes) === false) return false;
    return this.#protectors.size === 0 || this.#hit(run) === undefined;
  }

  #hasRoomFor(change: Change): boolean {
    return this.#options.deltas?.hasRoomFor(change.kind === 'write' ? change.source.length : 0) !== false;
  }

  /** @throws where the log cannot be written: then neither may the home be. */
  async #log(run: TrackRun): Promise<void> {
    assert(this.#intents !== undefined, 'A volume without an intent log is written to');
    try {
      await allFinished([this.#intents.cover(run), this.#options.dirty?.cover(run) ?? Promise.resolve()]);
    } catch (error) {
      throw this.failed(error);
    }
  }

  /**
   * Fast zeroes are refused where a track is protected: its content would have to be copied, and perhaps wait
   * for the backup. (A write would too; but who asks for fast zeroes wants to know whether to zero a whole
   * volume before filling it, and that would pour all of it into the container.) Decided once, at the start: a
   * freeze that comes while a long range is on its way does not stop it halfway.
   */
  #refuseCopies(run: TrackRun, offsetBytes: number, lengthBytes: number): void {
    const hit = this.#hit(run);
    if (hit === undefined) return;
    const { track } = hit;
    const message = `Zeroing of ${lengthBytes} bytes at ${offsetBytes} cannot be fast: the content of track ${track} must be kept`;
    throw new VolumeError('not-fast', message, { track });
  }

  /** The first track of the run that some point protects, with who does. */
  #hit(run: TrackRun): { readonly track: number; readonly protector: Protector } | undefined {
    for (const protector of this.#protectors) {
      const track = protector.firstProtected(run);
      if (track !== undefined) return { track, protector };
    }
    return undefined;
  }

  #passAtOnce(change: Change, run: TrackRun, offsetBytes: number, lengthBytes: number): MaybePromise<void> {
    const end = offsetBytes + lengthBytes;
    if (change.kind !== 'trim') this.#trims.overwritten(run, { start: offsetBytes, end });
    const done = this.#pass(change, run, offsetBytes, lengthBytes);
    if (done === undefined) return undefined;
    const turn = this.#order.acquire(offsetBytes, end);
    return done.finally(turn.release);
  }

  /** Inside the gate: marks and writes. Everything was checked in the same breath. */
  #pass(change: Change, run: TrackRun, offsetBytes: number, lengthBytes: number): MaybePromise<void> {
    this.gate.enter();
    let done: MaybePromise<void>;
    try {
      this.#options.epochs.mark(run);
      this.#unflushed.mark(run);
      this.#options.dirty?.note(run);
      done = this.#perform(change, offsetBytes, lengthBytes);
    } catch (error) {
      this.gate.leave();
      throw this.failed(error);
    }
    if (done === undefined) {
      this.gate.leave();
      return undefined;
    }
    return this.#finish(done);
  }

  async #finish(done: Promise<void>): Promise<void> {
    try {
      await done;
    } catch (error) {
      throw this.failed(error);
    } finally {
      this.gate.leave();
    }
  }

  #perform(change: Change, offsetBytes: number, lengthBytes: number): MaybePromise<void> {
    const { home } = this.#options;
    if (change.kind === 'write') return home.write(change.source, offsetBytes);
    if (change.kind === 'trim' && home.capabilities.trim) return home.trim(offsetBytes, lengthBytes);
    if (change.kind === 'trim') return home.writeZeroes(offsetBytes, lengthBytes, { mayTrim: true });
    const { mayTrim, fast } = change;
    return home.writeZeroes(offsetBytes, lengthBytes, fast ? { mayTrim, fast } : { mayTrim });
  }

  /** Judges what writing the home threw. @returns it. */
  failed(error: unknown): unknown {
    if (!isRefusal(error)) this.#options.onHomeFailed(error);
    return error;
  }

  async #passInPieces(
    change: Change,
    offsetBytes: number,
    lengthBytes: number,
    options: WriteOptions | undefined,
  ): Promise<void> {
    let hasWaited = false;
    const onWaiting = (): void => {
      if (hasWaited) return;
      hasWaited = true;
      this.#waitingCount += 1;
      options?.onWaiting?.();
    };
    try {
      if (change.kind !== 'trim') this.#saveAhead(offsetBytes, lengthBytes);
      const end = offsetBytes + lengthBytes;
      for (let start = offsetBytes; start < end;) {
        const pieceBytes = this.#pieceBytes(change, start, end);
        const from = start - offsetBytes;
        const piece: Change =
          change.kind === 'write'
            ? { kind: 'write', source: change.source.subarray(from, from + pieceBytes) }
            : change;
        await this.#passPiece(piece, start, pieceBytes, onWaiting);
        start += pieceBytes;
      }
    } finally {
      if (hasWaited) {
        this.#waitingCount -= 1;
        options?.onResumed?.();
      }
    }
  }

  /** The copies that the pieces will need share a sync, where they would come one after the other. */
  #saveAhead(offsetBytes: number, lengthBytes: number): void {
    const run = this.#options.geometry.tracksOf(offsetBytes, lengthBytes);
    for (const protector of this.#protectors) protector.saveAhead?.(run);
  }

  /** Up to the next track boundary where the track is protected, else as far as nothing is. */
  #pieceBytes(change: Change, start: number, end: number): number {
    const { geometry } = this.#options;
    const { zeroPieceBytesMax } = LIMITS;
    const pieceBytesMax = change.kind === 'write' ? this.#options.deltas?.pieceBytesMax : zeroPieceBytesMax;
    const lengthMax = Math.min(end - start, pieceBytesMax ?? end - start);
    const run = geometry.tracksOf(start, lengthMax);
    let stop = start + lengthMax;
    for (const protector of this.#protectors) {
      const track = protector.firstProtected(run);
      if (track === undefined) continue;
      const boundary = geometry.offsetOf(track === run.first ? track + 1 : track);
      stop = Math.min(stop, boundary);
    }
    return stop - start;
  }

  async #passPiece(
    change: Change,
    offsetBytes: number,
    lengthBytes: number,
    onWaiting: () => void,
  ): Promise<void> {
    const run = this.#options.geometry.tracksOf(offsetBytes, lengthBytes);
    const end = offsetBytes + lengthBytes;
    const turn = this.#order.acquire(offsetBytes, end);
    if (change.kind !== 'trim') this.#trims.overwritten(run, { start: offsetBytes, end });
    try {
      if (turn.ready !== undefined) {
        onWaiting();
        await turn.ready;
      }
      for (;;) {
        this.#options.refuse();
        if (!this.gate.isOpen) {
          await this.gate.whenOpen();
          continue;
        }
        const hit = this.#hit(run);
        if (hit !== undefined && change.kind === 'trim') {
          this.#putOff(run, offsetBytes, lengthBytes);
          return;
        }
        if (hit !== undefined) await hit.protector.save(hit.track, onWaiting);
        else if (this.#options.filling?.isReadyFor(offsetBytes, end - offsetBytes) === false)
          await this.#options.filling.makeReadyFor(offsetBytes, end - offsetBytes);
        else if (!this.isLogged(run)) await this.#log(run);
        else if (this.#hasRoomFor(change)) break;
        else {
          // Outside of the gate: the backup that is to make room needs it.
          onWaiting();
          await this.#options.deltas?.whenRoom(change.kind === 'write' ? lengthBytes : 0);
        }
      }
      // Nothing is awaited between the last check and the gate.
      await this.#pass(change, run, offsetBytes, lengthBytes);
    } finally {
      turn.release();
    }
  }

  /** Remembers a trim, track by track, for when the tracks are released. */
  #putOff(run: TrackRun, offsetBytes: number, lengthBytes: number): void {
    const { geometry } = this.#options;
    for (let track = run.first; track < run.first + run.count; track += 1) {
      const start = Math.max(offsetBytes, geometry.offsetOf(track));
      const end = Math.min(offsetBytes + lengthBytes, geometry.offsetOf(track + 1));
      this.#trims.remember(track, { start, end });
    }
  }
}
