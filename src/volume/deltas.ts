/**
 * The delta store of an open volume: what of it is known to the volume's state, what is done at the opening so that logs
 * and home agree, and until when logs are kept (DESIGN section 4, "Deltas"; promise 6).
 *
 *     write path -> logged device -> home
 *                        |
 *                     logs, one for each epoch, N copies of each
 *
 * The home is authoritative. After an unclean stop it may hold what no log has, or no longer what a log has, of the
 * changes that were never flushed; before anybody uses the volume, the content of every track in doubt is appended. What
 * is in doubt is told by the logs themselves where only the process ended, since it appends before it writes; otherwise
 * by the regions written of late (`dirty-regions.ts`), or by the open epoch.
 *
 * A member that fails is left out, which is on record before anything is acknowledged that it lacks. Where the last one
 * fails the volume goes on with the home alone, and says so. A member that was lost is made again from another.
 */

import {
  type Clock,
  CorruptionError,
  LIMITS,
  type MaybePromise,
  messageOf,
  randomId,
} from '../base/index.ts';
import {
  type DeltaChange,
  DeltaError,
  type DeltaIndex,
  DeltaReader,
  DeltaStore,
  type DeltaStatus,
} from '../delta/index.ts';
import { type BlockDevice, type DeviceRegistry, parseDeviceAddress } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { DeltasRecord, DeltasUse } from './delta-places.ts';
import { VolumeError } from './errors.ts';
import type { VolumeIdentity } from './directory.ts';
import type { Geometry } from './geometry.ts';
import type { ChangeLog } from './logged-device.ts';
import type { PlannedDeltas } from './session.ts';
import type { VolumeState } from './state.ts';

export interface DeltasOptions {
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly state: Pick<VolumeState, 'deltasUse' | 'saveDeltasUse' | 'recovery'>;
  /** The home as the volume has it, without the logs. */
  readonly home: Pick<BlockDevice, 'read'>;
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly clock: Clock;
  /** Whether the volume has a point. */
  readonly knows: (point: string) => boolean;
  /** See `DeltaStoreOptions`. */
  readonly segmentBytes?: number | undefined;
  readonly onWarning?: ((sentence: string) => void) | undefined;
}

export interface DeltasStatus extends DeltaStatus {
  /** For how long what is backed up stays, in milliseconds. */
  readonly keepLogMs: number;
  /** Why the logs of this opening do not join those before; what is not backed up is in the home only, before a backup. */
  readonly brokenOff?: string;
}

/** Logs that do not go away, and have everything. */
export interface HeldLogs {
  readonly places: readonly string[];
  readonly release: () => void;
}

export class Deltas implements ChangeLog {
  readonly #options: DeltasOptions;
  readonly #record: DeltasRecord;
  readonly #store: DeltaStore;
  #use: DeltasUse;
  /** One change of the record after the other. */
  #saving: Promise<void> = Promise.resolve();
  /** Sessions that read logs. */
  #holdCount = 0;
  #distrusted: string | undefined;
  #brokenOff: string | undefined;
  /** It has begun with this opening: what was before is not its business. */
  readonly #isNew: boolean;

  private constructor(options: DeltasOptions, record: DeltasRecord, store: DeltaStore, use?: DeltasUse) {
    this.#options = options;
    this.#record = record;
    this.#store = store;
    this.#use = use ?? { lost: [], readable: [] };
    this.#isNew = use === undefined;
  }

  /** Undefined where the volume has no delta store. */
  static async open(options: DeltasOptions): Promise<Deltas | undefined> {
    const { identity, geometry, state, registry, clock } = options;
    const record = identity.deltas;
    if (record === undefined) return undefined;
    const use = state.deltasUse;
    let deltas: Deltas | undefined;
    // What fails while it is opened is in the status, and is recorded below.
    const onMemberLost = async (place: string, error: unknown): Promise<void> => deltas?.lost(place, error);
    const store = await DeltaStore.open({
      volumeId: identity.volumeId,
      volumeName: identity.name,
      trackSizeBytes: geometry.trackSizeBytes,
      sizeBytes: () => geometry.sizeBytes,
      startPoint: record.since,
      isNew: use === undefined,
      members: record.places,
      lostMembers: use?.lost.map(({ place }) => place) ?? [],
      registry,
      clock,
      onMemberLost,
      segmentBytes: options.segmentBytes,
    });
    try {
      deltas = new Deltas(options, record, store, use);
      await deltas.#recordLost();
      deltas.#brokenOff = deltas.#whyNotJoined();
      if (store.hasGap) await deltas.breakOff('its logs are not there');
      // They are of what the volume was before it was lost: it need not have become that again.
      else if (use === undefined && store.status().logs > 1)
        await deltas.breakOff('its places have logs of an earlier life of the volume');
      return deltas;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  get isLocal(): boolean {
    return this.#record.places.every(({ place }) => isLocal(place));
  }

  status(): DeltasStatus {
    const brokenOff = this.#brokenOff;
    const status = { ...this.#store.status(), keepLogMs: this.#keepLogMs };
    return brokenOff === undefined ? status : { ...status, brokenOff };
  }

  get #keepLogMs(): number {
    return this.#record.keepLogMs ?? 0;
  }

  // --- Of changes ---

  /** Whether a change with that many bytes of content can be logged at once. */
  hasRoomFor(contentBytes: number): boolean {
    return this.#store.hasRoomFor(contentBytes);
  }

  /** Finishes when there may be room. What may go, goes first. */
  async whenRoom(contentBytes: number): Promise<void> {
    const room = this.#store.whenRoom(contentBytes);
    this.#makeRoom();
    await room;
  }

  /** Whoever waits for room fails: the volume is being closed. */
  stopWaiting(): void {
    this.#store.stopWaiting();
  }

  /** The most that one change may write. */
  get pieceBytesMax(): number {
    return this.#store.pieceBytesMax;
  }

  append(change: DeltaChange, offsetBytes: number, lengthBytes: number): MaybePromise<void> {
    if (!this.#store.hasMembers) return undefined;
    return this.#store.append(change, offsetBytes, lengthBytes)?.catch(goOnWithout);
  }

  async flush(): Promise<void> {
    if (this.#store.hasMembers) await this.#store.flush().catch(goOnWithout);
  }

  /** What the next epoch needs is made. */
  async prepareSwitch(): Promise<void> {
    if (this.#store.hasMembers) await this.#store.prepareSwitch().catch(goOnWithout);
  }

  /** Called with the gate closed. */
  switchTo(point: string, createdMs: number): void {
    this.#store.switchTo(point, createdMs);
  }

  /** Where the oldest log begins. */
  get startPoint(): string {
    return this.#store.startPoint;
  }

  // --- Of sessions ---

  /** Until it is released, no log goes away. */
  hold(): () => void {
    this.#holdCount += 1;
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      this.#holdCount -= 1;
      this.#quietly(this.#release());
    };
  }

  /** What a session of the point that was just fixed has to do with the logs. */
  plan(base: string | undefined): PlannedDeltas {
    const { startPoint } = this.#store;
    const held = this.#distrusted === undefined ? this.#store.wholeTracks(startPoint, 'closed') : undefined;
    return {
      tracks: held ?? TrackSet.empty(),
      places: this.#healthyPlaces(),
      startPoint,
      isBaseReadable: base === undefined || this.#use.readable.includes(base),
    };
  }

  /** A readable chain has the volume at that point: logs before it may go (promise 6). */
  async covered(point: string): Promise<void> {
    await this.#save((use) => {
      const readable = [...use.readable.filter((one) => one !== point), point];
      return { ...use, readable: readable.slice(-LIMITS.deltaReadablePointsMax) };
    });
    // A set has it all, and the logs join that.
    this.#brokenOff = undefined;
    await this.#release();
  }

  /** Logs cannot be read: until the volume is opened again sessions take nothing from there. */
  distrust(reason: string): void {
    if (this.#distrusted !== undefined) return;
    this.#distrusted = reason;
    const { name } = this.#options.identity;
    this.#options.onWarning?.(`Backups of ${name} read the home only from now on: ${reason}`);
  }

  /**
   * The members that have all that is not backed up, everything included that was appended before this call. Until
   * `release` no log goes away.
   *
   * @throws {VolumeError} 'home-lost' where there are none: what was acknowledged would be missing.
   */
  async holdWhole(): Promise<HeldLogs> {
    const release = this.hold();
    try {
      // Where a member is remote, the home may have a change before the log has.
      await this.#store.whenAppended();
      return { places: this.#wholePlaces(), release };
    } catch (error) {
      release();
      throw error;
    }
  }

  #wholePlaces(): readonly string[] {
    const { name, directory } = this.#options.identity;
    const places = this.#healthyPlaces();
    const reason = places.length === 0 ? 'no member of its delta store is left' : this.#brokenOff;
    if (reason === undefined) return places;
    const message = `Volume ${name} has lost its home, and the deltas do not make up for it: ${reason}`;
    throw new VolumeError('home-lost', message, { directory });
  }

  async #release(): Promise<void> {
    const point = this.#use.readable.at(-1);
    if (this.#isSide || this.#holdCount > 0 || point === undefined) return;
    const keepLogMs = this.#keepLogMs;
    await this.#store.release(point, keepLogMs);
    if (!this.#store.isFull || keepLogMs === 0) return;
    // Somebody waits, and what is in the window is in a set too.
    this.#options.onWarning?.(
      `Deltas of ${this.#options.identity.name} are full: logs that were to be kept for a while have gone before their time`,
    );
    await this.#store.release(point, 0);
  }

  /** Not while a session reads: what it has found in a log must stay where it is. */
  #makeRoom(): void {
    this.#quietly(this.#release().then(() => this.#compact()));
  }

  /** A recovery of this volume reads them. */
  get #isSide(): boolean {
    const side = this.#options.state.recovery.record?.side;
    return side?.kind === 'store' && side.logs !== undefined;
  }

  async #compact(): Promise<void> {
    if (this.#holdCount === 0 && !this.#isSide) await this.#store.compact(this.#keepLogMs);
  }

  /** Who waits for it is told by what it brings; what fails is that of a member, which is lost then. */
  #quietly(work: Promise<unknown>): void {
    work.catch((error: unknown) => {
      this.#options.onWarning?.(
        `Deltas of ${this.#options.identity.name} take more room than they need: ${messageOf(error)}`,
      );
    });
  }

  // --- Of an opening ---

  /**
   * Makes the logs agree with the home after an unclean stop; durable when it resolves. Nobody uses the volume yet.
   *
   * @param doubtful what may have been written since the last flush.
   * @param isSameBoot only the process has ended: what it had written is all there.
   */
  async reconcile(doubtful: TrackSet, isSameBoot: boolean): Promise<void> {
    if (this.#isNew) return;
    const isExact = isSameBoot && this.isLocal && isLocal(this.#options.identity.home);
    const tracks = isExact ? doubtful.intersection(this.#store.unflushed) : doubtful;
    if (tracks.isEmpty || this.#healthyPlaces().length === 0) return;
    if (!(await this.#appendDiffering(tracks, isExact)))
      await this.breakOff('after the unclean stop there is no room for all that is in doubt');
    await this.flush();
  }

  /** From here on the logs tell what changes; how the volume came to be what it is now, they do not. */
  async breakOff(reason: string): Promise<void> {
    const { identity, onWarning, clock } = this.#options;
    // There is nothing to begin; that is on record.
    if (!this.#store.hasMembers) return;
    this.#brokenOff = reason;
    onWarning?.(
      `Deltas of ${identity.name} begin anew, and what is not backed up is in the home only, before the next backup: ${reason}`,
    );
    await this.#store.prepareSwitch();
    this.#store.breakOff(randomId(), clock.now());
    await this.flush();
  }

  /** @returns false where there is no room for it. */
  async #appendDiffering(tracks: TrackSet, isExact: boolean): Promise<boolean> {
    const { geometry, home } = this.#options;
    const reader = await this.openReader();
    try {
      const index = await reader.index(this.#store.startPoint);
      const whole = index.whole();
      for (const track of tracks.toArray()) {
        const lengthBytes = geometry.lengthOf({ first: track, count: 1 });
        const source = Buffer.allocUnsafe(lengthBytes);
        await home.read(source, geometry.offsetOf(track));
        // Where only the process ended, the log has all that was written, and what it does not have was not.
        if ((isExact || whole.has(track)) && (await isAsLogged(index, track, source))) continue;
        if (!this.hasRoomFor(lengthBytes)) return false;
        await this.append({ kind: 'write', source }, geometry.offsetOf(track), lengthBytes);
      }
      return true;
    } finally {
      await reader.close();
    }
  }

  /** Reads what the logs have now, the open one too; the caller closes it. */
  openReader(): Promise<DeltaReader> {
    const { registry, identity } = this.#options;
    return DeltaReader.open(this.#healthyPlaces(), { registry, volumeId: identity.volumeId });
  }

  #healthyPlaces(): string[] {
    return this.#store
      .status()
      .members.filter(({ state }) => state === 'healthy')
      .map(({ place }) => place);
  }

  // --- Of members ---

  /** Durable before anything is acknowledged that the member lacks. */
  async lost(place: string, error: unknown): Promise<void> {
    const { identity, onWarning, clock } = this.#options;
    const reason = messageOf(error);
    const left = this.#healthyPlaces().length;
    const rest = left === 0 ? 'new data of it is in the home only' : `${left} of its members go on`;
    onWarning?.(`Volume ${identity.name} has lost the deltas in ${place}, and ${rest}: ${reason}`);
    await this.#save((use) => ({
      ...use,
      lost: [...use.lost.filter((one) => one.place !== place), { place, reason, atMs: clock.now() }],
    }));
  }

  /** Finds members that are gone, makes lost ones again, and lets logs go that were kept for a while. Does not throw. */
  async tend(signal: AbortSignal): Promise<void> {
    // A loss that cannot be recorded is told by the next change.
    await this.#store.look().catch(() => undefined);
    for (const { place } of this.#use.lost) {
      if (signal.aborted) return;
      try {
        await this.#recreate(place, signal);
      } catch {
        // Why it was lost is known; it is tried again.
      }
    }
    this.#quietly(this.#release());
  }

  async #recreate(place: string, signal: AbortSignal): Promise<void> {
    const { identity, onWarning } = this.#options;
    const isFirst = this.#healthyPlaces().length === 0;
    await this.#store.recreate(place, signal);
    await this.#save((use) => ({ ...use, lost: use.lost.filter((one) => one.place !== place) }));
    onWarning?.(`Volume ${identity.name} has the deltas in ${place} again`);
    if (isFirst) await this.breakOff('no member was left');
  }

  /** Why no set, and no beginning of the volume, is there that the logs go on from; undefined where they do. */
  #whyNotJoined(): string | undefined {
    const { since } = this.#record;
    const isOfVolume = since === '' || this.#options.knows(since);
    const joined = [...(isOfVolume ? [since] : []), ...this.#use.readable];
    if (!this.#store.hasMembers || joined.some((point) => this.#store.reaches(point))) return undefined;
    return 'the logs go on from no backup, nor from the beginning of the volume';
  }

  async #recordLost(): Promise<void> {
    const { clock, identity, onWarning } = this.#options;
    const known = new Map(this.#use.lost.map((one) => [one.place, one]));
    const lost = this.#store
      .status()
      .members.filter(({ state }) => state !== 'healthy')
      .map(({ place, reason = 'it was not made again yet' }) => {
        if (!known.has(place))
          onWarning?.(`Volume ${identity.name} has lost the deltas in ${place}: ${reason}`);
        return known.get(place) ?? { place, reason, atMs: clock.now() };
      });
    await this.#save((use) => ({ ...use, lost }));
  }

  #save(change: (use: DeltasUse) => DeltasUse): Promise<void> {
    const saved = this.#saving.then(async () => {
      const use = change(this.#use);
      await this.#options.state.saveDeltasUse(use);
      this.#use = use;
    });
    this.#saving = saved.catch(() => undefined);
    return saved;
  }

  /** Nothing may be in flight. Does not flush. */
  async close(): Promise<void> {
    await this.#saving;
    await this.#store.close();
  }
}

/** On this machine: what was written there is there as long as the machine runs. */
function isLocal(place: string): boolean {
  return parseDeviceAddress(place).scheme === 'file';
}

/** The last member was lost, which is on record: the volume goes on with the home alone. */
function goOnWithout(error: unknown): void {
  if (!(error instanceof DeltaError && error.code === 'no-members')) throw error;
}

async function isAsLogged(index: DeltaIndex, track: number, content: Buffer): Promise<boolean> {
  const overlaid = Buffer.from(content);
  try {
    await index.overlay(track, overlaid);
    return overlaid.equals(content);
  } catch (error) {
    if (error instanceof CorruptionError) return false;
    throw error;
  }
}
