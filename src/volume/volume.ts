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

import type { FileHandle } from 'node:fs/promises';
import { resolve } from 'node:path';
import { type Clock, closeAll, LIMITS, messageOf, present, Slots, systemClock } from '../base/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import type { Deltas } from './deltas.ts';
import type { DirtyRegions } from './dirty-regions.ts';
import { lockVolume, openState, type VolumeIdentity } from './directory.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import { Fills } from './fills.ts';
import type { FreezePart, PointUse } from './freeze.ts';
import { beginSessions, createSnapshots } from './group.ts';
import { growTo } from './grow.ts';
import type { HomeMirrors } from './home-mirrors.ts';
import { removeSegments } from './intent-log.ts';
import { lookOfHome, openParts, type OpenParts, openSnapshots, type OpenVolumeOptions } from './opening.ts';
import { Points } from './points.ts';
import { Poison } from './poison.ts';
import { readThrough } from './read-through.ts';
import type { BackupSession } from './session.ts';
import { type SessionPreview, type SessionRequest, Sessions } from './sessions.ts';
import type { Consumer, VolumeState } from './state.ts';
import type { Mirroring } from './mirroring.ts';
import { RecentUse } from './recent-use.ts';
import type { Recovery, RecoveryOwner } from './recovery.ts';
import type { RepairingDevice } from './repairing-device.ts';
import { Rollbacks } from './rollbacks.ts';
import { SnapshotDevice } from './snapshot-device.ts';
import type { SnapshotInfo } from './snapshot-info.ts';
import { SnapshotTaking } from './snapshot-taking.ts';
import type { Snapshots } from './snapshots.ts';
import type { Survival } from './survival.ts';
import { Tending } from './tending.ts';
import type { CreatedSnapshot, VolumeStatus } from './volume-status.ts';
import { WritePath } from './write-path.ts';

export class Volume implements BlockDevice {
  readonly blockSizeBytes = LIMITS.blockSizeBytesMin;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  /** Its size changes by `grow`. */
  readonly geometry: Geometry;
  /** Whether the stop before this opening was a clean one, with the home untouched since. */
  readonly startedClean: boolean;
  #identity: VolumeIdentity;
  readonly #options: OpenVolumeOptions;
  readonly #clock: Clock;
  readonly #lock: FileHandle;
  readonly #state: VolumeState;
  readonly #home: BlockDevice;
  readonly #epochs: EpochHistory;
  readonly #recent: RecentUse;
  readonly #dirty: DirtyRegions | undefined;
  readonly #deltas: Deltas | undefined;
  readonly #repairing: RepairingDevice | undefined;
  readonly #tending: Tending;
  readonly #writePath: WritePath;
  readonly #points: Points;
  readonly #snapshots: Snapshots;
  /** One freeze at a time. */
  readonly #freezeTurn = new Slots(1);
  readonly #sessions: Sessions;
  readonly #rollbacks: Rollbacks;
  readonly #fills: Fills;
  readonly #snapshotTaking: SnapshotTaking;
  /** From its beginning no session begins any more. */
  #closing: Promise<void> | undefined;
  readonly #poison: Poison;
  #isClosed = false;

  private constructor(parts: OpenParts, snapshots: Snapshots, options: OpenVolumeOptions) {
    this.#options = options;
    this.#snapshots = snapshots;
    this.#clock = options.clock ?? systemClock;
    this.#lock = parts.lock;
    this.#state = parts.state;
    this.#home = parts.home;
    this.#epochs = parts.epochs;
    this.#dirty = parts.dirty;
    this.#deltas = parts.deltas;
    this.#repairing = parts.repairing;
    const { state, geometry } = parts;
    this.#poison = new Poison({ state, trackCount: geometry.trackCount, clock: this.#clock });
    this.#identity = parts.identity;
    this.geometry = parts.geometry;
    this.#recent = new RecentUse(parts.geometry.sizeBytes, parts.state.recent);
    this.startedClean = parts.startedClean;
    this.description = `volume ${parts.identity.name}`;
    const readOnly = options.readOnly ?? false;
    const fastZero = !readOnly && parts.home.capabilities.fastZero === true;
    this.capabilities = { readOnly, trim: true, extents: true, fastZero };
    this.#fills = new Fills({
      ...parts,
      refuse: () => this.#refuse(),
      flush: () => this.#writePath.flush(),
    });
    this.#writePath = new WritePath({
      geometry: parts.geometry,
      home: parts.home,
      epochs: parts.epochs,
      intents: parts.intents,
      refuse: () => this.#refuse(),
      onHomeFailed: (error) => this.#poisonBy(error),
      filling: this.#fills,
      dirty: parts.dirty,
      deltas: parts.deltas,
    });
    parts.recovery?.attach(this.#recoveryOwner);
    this.#tending = this.#surviving(parts);
    // First: a copy that is durable is made before a container's slot is taken.
    this.#writePath.protect(snapshots);
    this.#points = new Points({ ...parts, snapshots, writePath: this.#writePath, clock: this.#clock });
    this.#snapshotTaking = new SnapshotTaking({ snapshots, points: this.#points, clock: this.#clock });
    this.#rollbacks = new Rollbacks({ ...parts, snapshots, writePath: this.#writePath, volume: this });
    this.#sessions = new Sessions({
      ...parts,
      snapshots,
      writePath: this.#writePath,
      points: this.#points,
      clock: this.#clock,
      ...(options.timer === undefined ? {} : { timer: options.timer }),
      refuse: () => this.#refuseBeginning(),
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
      const parts = await openParts(directory, lock, state, options);
      return await Volume.#assemble(parts, options);
    } catch (error) {
      await state?.close();
      await lock.close();
      throw error;
    }
  }

  static async #assemble(parts: OpenParts, options: OpenVolumeOptions): Promise<Volume> {
    let volume: Volume | undefined;
    let snapshots: Snapshots | undefined;
    try {
      snapshots = await openSnapshots(parts, options, (run) => {
        if (volume !== undefined) volume.#writePath.released(run);
      });
      volume = new Volume(parts, snapshots, options);
      if (options.readOnly === true) {
        volume.#rollbacks.refuseUnfinished();
        return volume;
      }
      // Poisoned, it writes nothing: the check that clears that finishes the rollback.
      if (volume.#poison.record === undefined) await volume.#rollbacks.finish();
      snapshots.resume().catch((error: unknown) => options.onWarning?.(messageOf(error)));
      return volume;
    } catch (error) {
      await snapshots?.close();
      await parts.intents?.close();
      await parts.home.close();
      await parts.recovery?.closeSide();
      await parts.deltas?.close();
      await parts.dirty?.close();
      throw error;
    }
  }

  get identity(): VolumeIdentity {
    return this.#identity;
  }

  get sizeBytes(): number {
    return this.geometry.sizeBytes;
  }

  /** The backup sessions that run, in the order in which they began. */
  get sessions(): readonly BackupSession[] {
    return this.#sessions.running;
  }

  read(target: Buffer, offsetBytes: number): void | Promise<void> {
    assertRange(this, offsetBytes, target.length);
    this.#recent.note(offsetBytes);
    return this.#home.read(target, offsetBytes);
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): void | Promise<void> {
    assertRange(this, offsetBytes, source.length);
    this.#recent.note(offsetBytes);
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
      poisoned: this.#poison.record,
      suspectTracks: this.#poison.suspects.size,
      ...this.#fills.status(),
      deltas: this.#deltas?.status(),
      repairedTracks: this.#repairing?.repairedCount,
      writesWaiting: this.#writePath.waitingCount,
      trimsForgotten: this.#writePath.forgottenTrimCount,
      sessions: this.#sessions.running.map((session) => session.status()),
      snapshots: this.#snapshots.list(),
    };
  }

  /**
   * Freezes the volume and begins a backup session of the new point: from the instant of the freeze every
   * track of the plan is protected. One session runs for each consumer. A session of a snapshot needs no freeze and protects nothing.
   *
   * @throws {VolumeError} `session-running`, `freeze-timeout`, `poisoned`, `read-only`; of a snapshot also
   *   `unknown-snapshot`, `snapshot-damaged`, `snapshot-behind`
   */
  async beginSession(request: SessionRequest): Promise<BackupSession> {
    if (request.snapshot !== undefined) return this.#sessions.beginOfSnapshot(request.snapshot, request);
    const [session] = await beginSessions([{ volume: this, request }]);
    return present(session, 'A freeze of one session began none');
  }

  /**
   * What a session would save that began now. Nothing is frozen, and nothing begins; writes may make it more.
   *
   * @throws {VolumeError} of a snapshot: `unknown-snapshot`, `snapshot-damaged`, `snapshot-behind`
   */
  previewSession(request: Omit<SessionRequest, 'areas'>): SessionPreview {
    return this.#sessions.preview(request);
  }

  /** This volume's part in `beginSessions`, which is what to call. */
  sessionPart(request: SessionRequest): FreezePart<BackupSession> {
    return this.#freezePart(this.#sessions.prepare(request));
  }

  // --- Recovery ---

  /** What the volume is being filled from; undefined where everything is in its home. */
  get recovery(): Recovery | undefined {
    return this.#fills.recovery;
  }

  /**
   * To be called now and then: looks whether the home is where it was, and makes lost members of the delta store again.
   * Does not throw.
   */
  async tend(signal: AbortSignal): Promise<void> {
    if (!this.capabilities.readOnly && this.#closing === undefined) await this.#tending.tend(signal);
  }

  get #recoveryOwner(): RecoveryOwner {
    return {
      onHomeFailed: (error) => this.#writePath.failed(error),
      mayWrite: () => !this.capabilities.readOnly && this.#poison.record === undefined,
    };
  }

  /** What happens when the home is lost, and who looks whether it is. */
  #surviving({ survival, deltas, geometry }: OpenParts): Tending {
    survival?.attach({
      holdLogs: () => present(deltas, 'A volume that survives has deltas').holdWhole(),
      takeOver: (recovery, home) => this.#takeOver(recovery, home),
    });
    const onHomeLost = (reason: VolumeError): Promise<void> => this.#loseHome(reason, survival);
    return new Tending({ identity: () => this.#identity, geometry, deltas, onHomeLost });
  }

  /** The home is gone. Where nothing takes over, the volume stops taking writes rather than lie. */
  async #loseHome(reason: VolumeError, survival: Survival | undefined): Promise<void> {
    try {
      if (survival === undefined) throw reason;
      await survival.device.replace(reason);
    } catch {
      this.#options.onWarning?.(reason.message);
      this.#poisonBy(reason);
    }
  }

  /** The home was lost, and another one is being filled. */
  #takeOver(recovery: Recovery, home: string): void {
    recovery.attach(this.#recoveryOwner);
    this.#fills.begin(recovery);
    this.#identity = { ...this.#identity, home };
    // They read a home that is not the volume's any more.
    const message = `Volume ${this.identity.name} has lost its home`;
    this.#sessions.fail(new VolumeError('home-lost', message, this.#place));
    this.#options.onTakenOver?.();
  }

  /**
   * Brings in everything that is missing, and ends the recovery when nothing is any more. Several may run at once.
   *
   * @param body fills; its own where left out. It ends early when the signal fires.
   * @throws what filling throws; the recovery goes on, and this may be called again.
   */
  async fill(body: (recovery: Recovery, signal: AbortSignal) => Promise<void>): Promise<void> {
    if (this.recovery === undefined) return;
    this.#refuseBeginning();
    await this.#fills.run(body);
  }

  /** The mirror that is brought up, or is the volume's equal, as long as it is open. */
  get mirroring(): Mirroring | undefined {
    return this.#fills.mirroring;
  }

  /** Fills the mirror, in whatever way the body does; it ends early when the signal fires. */
  async fillMirror(body: (mirroring: Mirroring, signal: AbortSignal) => Promise<void>): Promise<void> {
    this.#refuseBeginning();
    await this.#fills.runMirror(body);
  }

  // --- The mirrors of its home ---

  /** Undefined where the home is one file or device. */
  get mirrors(): HomeMirrors | undefined {
    return this.#fills.mirrors;
  }

  /**
   * Looks after the mirrors of the home, in whatever way the body does; it ends early when the signal fires. Several may.
   *
   * @throws {VolumeError} `unknown-member` where the home is one file or device; what the body throws.
   */
  async careForMirrors<T>(body: (mirrors: HomeMirrors, signal: AbortSignal) => Promise<T>): Promise<T> {
    this.#refuseBeginning();
    return this.#fills.care(body);
  }

  // --- Snapshots ---

  /**
   * Freezes the volume and keeps its content as it is at that instant, under a name; durable when the promise
   * resolves.
   *
   * @throws {VolumeError} `invalid-name`, `snapshot-exists`, `too-many-snapshots`, `freeze-timeout`, `poisoned`,
   *   `read-only`
   */
  async createSnapshot(name: string): Promise<CreatedSnapshot> {
    const [created] = await createSnapshots(name, [this]);
    return present(created, 'A freeze of one volume made no snapshot');
  }

  /** This volume's part in `createSnapshots`, which is what to call. */
  snapshotPart(name: string): FreezePart<Promise<CreatedSnapshot>> {
    return this.#freezePart(
      this.#snapshotTaking.part(name, () => {
        if (this.identity.snapshotBy === 'clone') this.#fills.refuseAny('cannot be cloned');
      }),
    );
  }

  /** Oldest first. */
  snapshots(): readonly SnapshotInfo[] {
    return this.#snapshots.list();
  }

  /**
   * A snapshot as a read-only device, which holds it until it is closed.
   *
   * @throws {VolumeError} `unknown-snapshot`, `snapshot-damaged`
   */
  openSnapshot(name: string): SnapshotDevice {
    const { name: volumeName } = this.identity;
    return new SnapshotDevice({ snapshots: this.#snapshots, name, home: this.#home, volumeName });
  }

  /** See `Snapshots.delete`. */
  async deleteSnapshot(name: string): Promise<void> {
    this.#refuseReadOnly();
    this.#refuseClosing();
    await this.#snapshots.delete(name);
  }

  /** Every track that may differ between two snapshots; between one and the volume as it is where `to` is left out. */
  changedSinceSnapshot(from: string, to?: string): TrackSet {
    const older = this.#snapshots.find(from);
    if (to === undefined) return this.#epochs.changedSince(older.point);
    const newer = this.#snapshots.find(to);
    if (newer.number < older.number) return this.changedSinceSnapshot(to, from);
    if (newer.number === older.number) return TrackSet.empty();
    return this.#epochs.changedBetween(older.point, newer.point);
  }

  /**
   * Makes the volume what the snapshot holds. These are writes like any other, tracked, and kept for newer snapshots;
   * a crash in between is made good at the next opening. Nobody else may be writing.
   *
   * @param onProgress called with the tracks looked at so far, and their number.
   * @returns how many tracks were written.
   * @throws {VolumeError} `unknown-snapshot`, `snapshot-damaged`, `poisoned`, `read-only`, `snapshot-full`
   */
  async rollBack(name: string, onProgress?: (done: number, total: number) => void): Promise<number> {
    this.#refuse();
    const { snapshot, release } = this.#snapshots.hold(name, { isPinned: true });
    try {
      // No point is fixed meanwhile: it would have something of both.
      return await this.#freezeTurn.run(async () => {
        this.#refuseBeginning();
        return this.#rollbacks.begin(snapshot, onProgress);
      });
    } finally {
      release();
    }
  }

  /** The number of the snapshot that the volume is being rolled back to, or was in part. */
  get unfinishedRollback(): number | undefined {
    return this.#rollbacks.unfinished;
  }

  /**
   * Makes the volume larger while it is used; durable when the promise resolves. Sessions and snapshots go on with the
   * size of their point; what is new counts as changed. See `grow.ts`.
   *
   * @param sizeBytes the new size; nothing is done where it is the present one.
   * @throws {VolumeError} `shrink-refused`, `invalid-geometry`, `home-unusable`, `poisoned`, `read-only`; what extending
   *   the home throws. The size is the old one then.
   */
  async grow(sizeBytes: number): Promise<void> {
    await this.#freezeTurn.run(async () => {
      this.#refuseBeginning();
      this.#fills.refuseAny('cannot grow');
      await growTo(sizeBytes, {
        identity: this.#identity,
        geometry: this.geometry,
        home: this.#home,
        state: this.#state,
        epochs: this.#epochs,
        writePath: this.#writePath,
        points: this.#points,
        onUnknown: (error) => this.#poisonBy(error),
      });
      this.#recent.grow(sizeBytes);
      this.#identity = { ...this.#identity, sizeBytes };
    });
  }

  /**
   * Reads the whole home past the page cache and clears the poisoned state. All tracks count as changed afterwards.
   * Nothing may be writing. To be called on a fresh opening: a device whose flush has failed goes on failing it. For
   * everything else that may be wrong with a volume see `checkVolume`.
   *
   * @param onProgress called with the bytes read so far.
   * @throws what reading the home throws; the volume then stays as it was.
   */
  async check(onProgress?: (bytesRead: number) => void): Promise<void> {
    const unreadable = await readThrough(this.#home, this.identity, this.geometry, onProgress);
    if (unreadable !== undefined) throw unreadable.error;
    await this.#poison.whenRecorded();
    if (this.#poison.record === undefined) return;
    this.#epochs.markAll();
    await this.#state.saveChecked(this.#epochs);
    this.#poison.end();
    await this.#rollbacks.finish();
  }

  /**
   * Writes that wait for room in the delta store, and those that would have to, fail with `closed` from now on: whoever is
   * about to close the volume, and waits for its clients before, would wait for a backup that nobody takes.
   */
  stopWaiting(): void {
    this.#deltas?.stopWaiting();
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
    const reason = new VolumeError('closed', `Volume ${this.identity.name} is being closed`, this.#place);
    await this.#fills.stop(reason);
    // A freeze that is under way ends first; the next one is refused.
    await this.#freezeTurn.run(async () => undefined);
    await this.#sessions.end(reason);
    await this.#snapshotTaking.whenFinished();
    this.stopWaiting();
    await this.#writePath.whenIdle();
    await this.#points.whenRecorded();
    await this.#snapshots.close();
    this.#isClosed = true;
    try {
      if (
        !this.capabilities.readOnly &&
        this.#poison.record === undefined &&
        this.#poison.isRecorded &&
        this.#points.isRecorded
      ) {
        await this.#saveClean();
      }
    } finally {
      await this.#poison.whenRecorded();
      const parts = [this.#writePath.intents, this.#points, this.#home, this.#deltas, this.#dirty];
      // In this order; one that fails keeps nobody else from being closed, the lock above all.
      await closeAll([...parts, this.#fills, this.#state, this.#lock]);
    }
  }

  get #place(): { readonly directory: string } {
    return { directory: this.identity.directory };
  }

  async #saveClean(): Promise<void> {
    await this.#recent.saveChanged(this.#state);
    try {
      await this.#home.flush();
    } catch (error) {
      // Promise 10: after reopening, a flush that succeeds would not cover what this one has lost.
      this.#poisonBy(error);
      throw error;
    }
    await this.#state.saveClean(this.#epochs, await lookOfHome(this.identity, this.mirrors));
    await removeSegments(this.identity.directory, () => true);
    await this.#dirty?.clear();
  }

  /** This volume's part in a freeze, around what the point is for. */
  #freezePart<T>(use: PointUse<T>): FreezePart<T> {
    return {
      ...use,
      key: this.identity.directory,
      turn: this.#freezeTurn,
      admit: () => {
        this.#refuseBeginning();
        use.admit?.();
      },
      prepare: async () => {
        await use.prepare();
        await this.#recent.saveChanged(this.#state);
        await this.flush();
        await this.#points.prepare();
      },
      closeGate: () => this.#closeGate(),
      assertMayFix: () => this.#refuseBeginning(),
      reopenGate: () => this.#writePath.gate.reopen(),
    };
  }

  async #closeGate(): Promise<void> {
    const waitMsMax = this.#options.freezeWaitMsMax ?? LIMITS.freezeWaitMsMax;
    if (await this.#writePath.gate.closeAndEmpty(waitMsMax, this.#options.timer)) return;
    throw new VolumeError(
      'freeze-timeout',
      `Freeze of ${this.identity.name} gave up after ${waitMsMax} ms: writes are still running`,
      { waitedMs: waitMsMax },
    );
  }

  /** Of what takes a while: nothing is begun that the volume's end would have to wait for. */
  #refuseBeginning(): void {
    this.#refuse();
    this.#refuseClosing();
  }

  #refuseClosing(): void {
    if (this.#closing !== undefined) {
      throw new VolumeError('closed', `Volume ${this.identity.name} is being closed`, this.#place);
    }
  }

  #refuseReadOnly(): void {
    const { name } = this.identity;
    if (this.capabilities.readOnly) {
      throw new VolumeError('read-only', `Volume ${name} is open for reading only`, this.#place);
    }
  }

  #refuse(): void {
    const { name } = this.identity;
    if (this.#isClosed) throw new VolumeError('closed', `Volume ${name} is closed`, this.#place);
    this.#refuseReadOnly();
    if (this.#poison.record !== undefined) {
      const { reason } = this.#poison.record;
      throw new VolumeError(
        'poisoned',
        `Volume ${name} refuses writes since a write or flush of its home failed (${reason}); run volume check`,
        { ...this.#place, reason },
      );
    }
  }

  /** Promise 10: no write and no flush is accepted any more; whatever runs fails; the state is recorded. */
  #poisonBy(error: unknown): void {
    if (this.#poison.record !== undefined) return;
    this.#poison.begin(error, this.#writePath.unflushedTracks());
    this.#sessions.fail(error);
  }
}
