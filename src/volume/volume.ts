/**
 * A volume: a block device with a memory of what changed, points to compare with, and copy-before-write.
 *
 *     client -> write path (order, protection, gate, mark) -> home
 *                     |                 |
 *               backup session    epochs -> state.mdb
 *
 * It is opened by one owner at a time, who serves it, backs it up, or both. Reads go straight to the home.
 * See DESIGN section 4 for the promises; each has its test in this folder or in `backup/`.
 */

import { type FileHandle, open } from 'node:fs/promises';
import { resolve } from 'node:path';
import { type Clock, dropCache, LIMITS, messageOf, randomId, systemClock } from '../base/index.ts';
import { type ContainerArea, IntermediateContainer } from '../container/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';
import { homePathOf, lockVolume, openState, type VolumeIdentity } from './directory.ts';
import type { ClosedEpoch, EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import { IntentLog, type IntentPlace, regionOf, removeSegments } from './intent-log.ts';
import { openParts, type OpenParts, type OpenVolumeOptions } from './opening.ts';
import { Protection } from './protection.ts';
import { BackupSession, type SessionPlan, type SessionStatus } from './session.ts';
import { type Consumer, homeStamp, type PoisonRecord, type VolumeState } from './state.ts';
import { WritePath } from './write-path.ts';

export interface SessionRequest {
  /** The consumer: the store's id. */
  readonly consumer: string;
  readonly level: 'auto' | 'full' | 'incremental';
  /** Points the consumer has complete sets of, the best base first. */
  readonly candidates: readonly string[];
  /** Why no candidate could be used, where the consumer knows. */
  readonly reason?: string;
  /** Room for diverted content; none at all is allowed. The session closes the areas. */
  readonly areas: readonly ContainerArea[];
}

export interface VolumeStatus extends VolumeIdentity {
  readonly readOnly: boolean;
  readonly epoch: number;
  /** Tracks changed in the open epoch. */
  readonly changedTracks: number;
  readonly points: number;
  readonly consumers: readonly (Consumer & { readonly changedTracks: number })[];
  readonly startedClean: boolean;
  readonly poisoned: PoisonRecord | undefined;
  readonly writesWaiting: number;
  readonly trimsForgotten: number;
  readonly session: SessionStatus | undefined;
}

export class Volume implements BlockDevice {
  readonly blockSizeBytes = LIMITS.blockSizeBytesMin;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  /** Whether the stop before this opening was a clean one, with the home untouched since. */
  readonly startedClean: boolean;
  readonly #options: OpenVolumeOptions;
  readonly #clock: Clock;
  readonly #lock: FileHandle;
  readonly #state: VolumeState;
  readonly #home: BlockDevice;
  readonly #epochs: EpochHistory;
  readonly #writePath: WritePath;
  readonly #intentPlace: IntentPlace;
  /** The next epoch's intent log, where a freeze has prepared it. */
  #nextIntents: IntentLog | undefined;
  #session: BackupSession | undefined;
  #freezing: Promise<BackupSession> | undefined;
  /** From its beginning no session begins any more. */
  #closing: Promise<void> | undefined;
  #poison: PoisonRecord | undefined;
  #poisoning: Promise<void> | undefined;
  /** Points on their way to the disk. */
  readonly #recording = new Set<Promise<void>>();
  /** False once something that a clean stop would have to know was not recorded. */
  #mayStopClean = true;
  #isClosed = false;

  private constructor(parts: OpenParts, options: OpenVolumeOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#lock = parts.lock;
    this.#state = parts.state;
    this.#home = parts.home;
    this.#epochs = parts.epochs;
    this.#intentPlace = parts.intentPlace;
    this.#poison = parts.state.poison;
    this.identity = parts.identity;
    this.geometry = parts.geometry;
    this.startedClean = parts.startedClean;
    this.description = `volume ${parts.identity.name}`;
    const readOnly = options.readOnly ?? false;
    const fastZero = !readOnly && parts.home.capabilities.fastZero === true;
    this.capabilities = { readOnly, trim: true, extents: true, fastZero };
    this.#writePath = new WritePath({
      geometry: parts.geometry,
      home: parts.home,
      epochs: parts.epochs,
      intents: parts.intents,
      refuse: () => this.#refuse(),
      onHomeFailed: (error) => this.#poisonBy(error),
    });
  }

  /**
   * Opens a volume and becomes its owner. The clean mark is durably cleared before this resolves, so before
   * the first write.
   *
   * @throws {VolumeError} `not-a-volume`, `in-use`, `home-unusable`
   */
  static async open(path: string, options: OpenVolumeOptions): Promise<Volume> {
    const directory = resolve(path);
    const lock = await lockVolume(directory, options.activity);
    let state: VolumeState | undefined;
    try {
      state = await openState(directory, { readOnly: false });
      return new Volume(await openParts(directory, lock, state, options), options);
    } catch (error) {
      await state?.close();
      await lock.close();
      throw error;
    }
  }

  get sizeBytes(): number {
    return this.geometry.sizeBytes;
  }

  get session(): BackupSession | undefined {
    return this.#session;
  }

  read(target: Buffer, offsetBytes: number): void | Promise<void> {
    assertRange(this, offsetBytes, target.length);
    return this.#home.read(target, offsetBytes);
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): void | Promise<void> {
    assertRange(this, offsetBytes, source.length);
    return this.#writePath.change({ kind: 'write', source }, offsetBytes, source.length, options);
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): void | Promise<void> {
    assertRange(this, offsetBytes, lengthBytes);
    assertZeroOptions(this, options);
    const { mayTrim = false, fast = false } = options ?? {};
    return this.#writePath.change({ kind: 'zeroes', mayTrim, fast }, offsetBytes, lengthBytes, options);
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): void | Promise<void> {
    assertRange(this, offsetBytes, lengthBytes);
    return this.#writePath.change({ kind: 'trim' }, offsetBytes, lengthBytes, options);
  }

  flush(): Promise<void> {
    return this.#writePath.flush();
  }

  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    return this.#home.extents(offsetBytes, lengthBytes);
  }

  /** Every track whose content may differ from what it was at the point (promise 3). */
  changedSince(point: string): TrackSet {
    return this.#epochs.changedSince(point);
  }

  /** The part of `changedSince` that lies in the run, at the cost of the run. The run lies in the volume. */
  changedIn(point: string, run: TrackRun): TrackSet {
    return this.#epochs.changedIn(point, run);
  }

  /** Whether a change of these tracks need not wait for the intent log. */
  isLogged(run: TrackRun): boolean {
    return this.#writePath.isLogged(run);
  }

  /** Who keeps a point of this volume as what was last backed up. */
  consumers(): readonly Consumer[] {
    return this.#state.consumers();
  }

  status(): VolumeStatus {
    return {
      ...this.identity,
      readOnly: this.capabilities.readOnly,
      epoch: this.#epochs.openNumber,
      changedTracks: this.#epochs.openCount,
      points: this.#epochs.closed.length,
      consumers: this.#state
        .consumers()
        .map((consumer) => ({ ...consumer, changedTracks: this.changedSince(consumer.point).size })),
      startedClean: this.startedClean,
      poisoned: this.#poison,
      writesWaiting: this.#writePath.waitingCount,
      trimsForgotten: this.#writePath.forgottenTrimCount,
      session: this.#session?.status(),
    };
  }

  /**
   * Freezes the volume and begins a backup session of the new point: from the instant of the freeze every
   * track of the plan is protected.
   *
   * @throws {VolumeError} `session-running`, `freeze-timeout`, `poisoned`, `read-only`
   */
  async beginSession(request: SessionRequest): Promise<BackupSession> {
    const container = new IntermediateContainer(request.areas);
    try {
      this.#refuse();
      this.#refuseClosing();
      this.#refuseSecondSession();
      this.#freezing = this.#freezeInto(request, container);
      return await this.#freezing.finally(() => {
        this.#freezing = undefined;
      });
    } catch (error) {
      await container.close();
      throw error;
    }
  }

  /**
   * Reads the whole home past the page cache, as far as the system allows, and clears the poisoned state. All
   * tracks count as changed afterwards. Nothing may be writing. To be called on a fresh opening: a device whose
   * flush has failed goes on failing it.
   *
   * @param onProgress called with the bytes read so far.
   * @throws what reading the home throws; the volume then stays as it was.
   */
  async check(onProgress?: (bytesRead: number) => void): Promise<void> {
    await this.#dropHomeCache();
    const buffer = Buffer.allocUnsafe(LIMITS.sessionRunBytesMax);
    for (let offset = 0; offset < this.sizeBytes; offset += buffer.length) {
      await this.#home.read(buffer.subarray(0, Math.min(buffer.length, this.sizeBytes - offset)), offset);
      onProgress?.(Math.min(offset + buffer.length, this.sizeBytes));
    }
    await this.#poisoning;
    if (this.#poison === undefined) return;
    this.#epochs.markAll();
    await this.#state.saveChecked(this.#epochs);
    this.#poison = undefined;
  }

  /**
   * Stops cleanly: ends a session, waits for what is in flight, flushes the home and sets the clean mark. On a
   * poisoned volume, or where the flush fails, the mark is not set and the next opening is an unclean one. A second call waits for the first.
   */
  async close(): Promise<void> {
    if (this.#closing === undefined) {
      this.#closing = this.#close();
      await this.#closing;
    } else {
      await Promise.allSettled([this.#closing]);
    }
  }

  async #close(): Promise<void> {
    await Promise.allSettled([this.#freezing]);
    this.#session?.fail(
      new VolumeError('closed', `Volume ${this.identity.name} is being closed`, this.#place),
    );
    await this.#session?.whenEnded();
    await this.#writePath.whenIdle();
    await Promise.allSettled(this.#recording);
    this.#isClosed = true;
    try {
      if (!this.capabilities.readOnly && this.#poison === undefined && this.#mayStopClean) {
        await this.#saveClean();
      }
    } finally {
      await this.#poisoning;
      await this.#writePath.intents?.close();
      await this.#nextIntents?.close();
      await this.#home.close();
      await this.#state.close();
      await this.#lock.close();
    }
  }

  get #place(): { readonly directory: string } {
    return { directory: this.identity.directory };
  }

  async #saveClean(): Promise<void> {
    try {
      await this.#home.flush();
    } catch (error) {
      // Promise 10: after reopening, a flush that succeeds would not cover what this one has lost.
      this.#poisonBy(error);
      throw error;
    }
    const path = homePathOf(this.identity.directory, this.identity.home);
    await this.#state.saveClean(this.#epochs, path === undefined ? undefined : await homeStamp(path));
    await removeSegments(this.identity.directory, () => true);
  }

  /** The next epoch's log, made while writes go on. It begins with the regions that are written now. */
  async #prepareIntents(): Promise<IntentLog> {
    this.#nextIntents ??= await IntentLog.create(
      this.#intentPlace,
      this.#epochs.openNumber + 1,
      this.#hotRegions(),
    );
    return this.#nextIntents;
  }

  #hotRegions(): number[] {
    const { trackCount, regionTracks } = this.#intentPlace;
    const regions: number[] = [];
    for (let first = 0; first < trackCount;) {
      const track = this.#epochs.firstOpenIn({ first, count: trackCount - first });
      if (track === undefined) break;
      if (regions.length === LIMITS.intentHotRegionsMax) return [];
      const region = regionOf(track, regionTracks);
      regions.push(region);
      first = (region + 1) * regionTracks;
    }
    return regions;
  }

  /** Called with the gate closed. */
  #switchIntents(next: IntentLog): void {
    const last = this.#writePath.intents;
    this.#writePath.switchIntents(next);
    this.#nextIntents = undefined;
    // Its regions are on the disk; whoever still waits for it finds the next one then.
    const closing = last?.close().finally(() => this.#recording.delete(closing)) ?? Promise.resolve();
    this.#recording.add(closing);
  }

  /** After a failed writeback the page cache shows what the disk does not have. */
  async #dropHomeCache(): Promise<void> {
    const path = homePathOf(this.identity.directory, this.identity.home);
    if (path === undefined) return;
    const handle = await open(path, 'r');
    try {
      await dropCache(handle.fd);
    } finally {
      await handle.close();
    }
  }

  /** DESIGN section 4, "The gate and the freeze". What can be prepared is, before the gate closes. */
  async #freezeInto(request: SessionRequest, container: IntermediateContainer): Promise<BackupSession> {
    await this.flush();
    const { trackCount } = this.geometry;
    const { base, reason } = this.#chooseBase(request);
    const planned =
      base === undefined
        ? TrackBits.all(trackCount)
        : TrackBits.from(this.#epochs.closedSince(base), trackCount);
    const nextIntents = await this.#prepareIntents();
    const closedAtMs = this.#clock.monotonicMs();
    await this.#closeGate();
    // The gate is closed and empty: what is switched here is switched at one instant.
    let closed: ClosedEpoch;
    let protection: Protection;
    try {
      this.#refuse();
      this.#refuseClosing();
      closed = this.#epochs.close(randomId(), this.#clock.now(), planned);
      this.#switchIntents(nextIntents);
      protection = this.#protect(planned, container);
    } finally {
      this.#writePath.gate.reopen();
    }
    const freezeMs = this.#clock.monotonicMs() - closedAtMs;
    // Taken before anything can be saved: nothing was awaited since the switch.
    const tracks = base === undefined ? TrackSet.all(trackCount) : planned.toTrackSet();
    const { point } = closed;
    const level = base === undefined ? 'full' : 'incremental';
    const plan = { session: randomId().slice(0, 8), level, point, base, reason, tracks, freezeMs } as const;
    return this.#begin(plan, request.consumer, protection, container, closed);
  }

  async #closeGate(): Promise<void> {
    const waitMsMax = this.#options.freezeWaitMsMax ?? LIMITS.freezeWaitMsMax;
    if (await this.#writePath.gate.closeAndEmpty(waitMsMax)) return;
    throw new VolumeError(
      'freeze-timeout',
      `Freeze of ${this.identity.name} gave up after ${waitMsMax} ms: writes are still running`,
      { waitedMs: waitMsMax },
    );
  }

  /** From here on no write passes one of these tracks unsaved. */
  #protect(tracks: TrackBits, container: IntermediateContainer): Protection {
    const protection = new Protection({
      geometry: this.geometry,
      tracks,
      container,
      readHome: (target, track) => this.#home.read(target, this.geometry.offsetOf(track)),
      onReleased: (run: TrackRun) => this.#writePath.released(run),
      onFailed: (error) => this.#session?.fail(error),
    });
    this.#writePath.protect(protection);
    return protection;
  }

  #begin(
    plan: SessionPlan,
    consumer: string,
    protection: Protection,
    container: IntermediateContainer,
    closed: ClosedEpoch,
  ): BackupSession {
    const { point } = plan;
    const session: BackupSession = new BackupSession({
      plan,
      protection,
      container,
      durable: this.#makeDurable(closed),
      saveConsumer: (set) =>
        this.#state.saveConsumer({ name: consumer, point, set, atMs: this.#clock.now() }),
      onEnded: () => {
        this.#writePath.unprotect(protection);
        if (this.#session === session) this.#session = undefined;
      },
    });
    this.#session = session;
    return session;
  }

  #chooseBase(request: SessionRequest): {
    readonly base: string | undefined;
    readonly reason: string | undefined;
  } {
    if (request.level === 'full') return { base: undefined, reason: undefined };
    const base = request.candidates.find((point) => this.#epochs.knows(point));
    if (base !== undefined) return { base, reason: undefined };
    const isFirst = request.candidates.length === 0;
    const reason =
      request.reason ??
      (isFirst
        ? 'the store has no set of this volume yet'
        : 'the volume knows no point that the store has a set of');
    return { base: undefined, reason };
  }

  /** The second flush, begun after the switch, and the durable record of the point. */
  #makeDurable(closed: ClosedEpoch): Promise<void> {
    const recording = this.#record(closed).finally(() => this.#recording.delete(recording));
    this.#recording.add(recording);
    return recording;
  }

  async #record(closed: ClosedEpoch): Promise<void> {
    try {
      await this.flush();
      await this.#state.savePoint(closed, this.#epochs.drop(LIMITS.pointCountMax));
      await removeSegments(this.identity.directory, (epoch) => epoch === closed.number);
    } catch (error) {
      // The closed epoch's tracks are in memory only: after a stop everything must count as changed.
      this.#mayStopClean = false;
      throw error;
    }
  }

  #refuseSecondSession(): void {
    if (this.#session === undefined && this.#freezing === undefined) return;
    const session = this.#session?.plan.session ?? 'starting';
    throw new VolumeError(
      'session-running',
      `Volume ${this.identity.name} has session ${session} running; one at a time, cancel it or wait`,
      { session },
    );
  }

  #refuseClosing(): void {
    if (this.#closing !== undefined) {
      throw new VolumeError('closed', `Volume ${this.identity.name} is being closed`, this.#place);
    }
  }

  #refuse(): void {
    const { name } = this.identity;
    if (this.#isClosed) throw new VolumeError('closed', `Volume ${name} is closed`, this.#place);
    if (this.capabilities.readOnly) {
      throw new VolumeError('read-only', `Volume ${name} is open for reading only`, this.#place);
    }
    if (this.#poison !== undefined) {
      const { reason } = this.#poison;
      throw new VolumeError(
        'poisoned',
        `Volume ${name} refuses writes since a write or flush of its home failed (${reason}); run volume check`,
        { ...this.#place, reason },
      );
    }
  }

  /** Promise 10: no write and no flush is accepted any more; whatever runs fails; the state is recorded. */
  #poisonBy(error: unknown): void {
    if (this.#poison !== undefined) return;
    const poison: PoisonRecord = { reason: messageOf(error), atMs: this.#clock.now() };
    this.#poison = poison;
    this.#session?.fail(error);
    // Where it cannot be recorded the process stays poisoned, and the next opening is an unclean one.
    this.#poisoning = this.#recordPoison(poison);
  }

  async #recordPoison(poison: PoisonRecord): Promise<void> {
    try {
      await this.#state.savePoison(poison);
    } catch {
      this.#mayStopClean = false;
    }
  }
}
