/**
 * How a volume is opened for its owner: who it is, its home, what changed since its points, and the intent log of
 * the epoch that begins. Nothing may be written before all of this is durable.
 */

import type { FileHandle } from 'node:fs/promises';
import {
  bootId,
  type Clock,
  closeAll,
  LIMITS,
  messageOf,
  present,
  randomId,
  systemClock,
  systemCode,
  type Timer,
} from '../base/index.ts';
import type { BlockDevice, DeviceRegistry } from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { type BackupSide, describeSide, type RecoveryRecord } from './backup-side.ts';
import { Deltas, type DeltasOptions } from './deltas.ts';
import { DirtyRegions } from './dirty-regions.ts';
import { homePathOf, identityOf, type VolumeIdentity } from './directory.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import { HomeMirrors } from './home-mirrors.ts';
import { findSegments, IntentLog, type IntentPlace, removeSegments } from './intent-log.ts';
import { LoggedDevice } from './logged-device.ts';
import { type LayoutHome, openLayoutHome } from './layout-home.ts';
import { Mirroring } from './mirroring.ts';
import { Recovery } from './recovery.ts';
import { RepairingDevice } from './repairing-device.ts';
import { openRepairSource } from './repair-source.ts';
import { Snapshots, type SnapshotsOptions } from './snapshots.ts';
import { Survival, type SurvivalPlan } from './survival.ts';
import { directoryIdentity, homeStamp } from './file-looks.ts';
import type { LoadedEpochs, VolumeState } from './state.ts';

const HOME_CHANGED = 'its home was changed while no process served the volume';

export interface OpenVolumeOptions {
  /** Opens the home. */
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly readOnly?: boolean;
  readonly clock?: Clock;
  /** What the owner does with the volume, told to whoever is refused: `serving`. */
  readonly activity: string;
  /** The directory was moved, not copied: it keeps its id and its points. */
  readonly moved?: boolean;
  /** Is told what no caller can be told, a sentence each: a snapshot was dropped for want of room. */
  readonly onWarning?: (sentence: string) => void;
  /** A snapshot was dropped; `onWarning` is told why. */
  readonly onSnapshotDropped?: (name: string) => void;
  /** How long a freeze may wait for the gate; LIMITS.freezeWaitMsMax where left out. */
  readonly freezeWaitMsMax?: number;
  /** What measures that; the system's timer where left out. */
  readonly timer?: Timer;
  /** Opens what a volume under recovery is filled from; without it, such a volume is not opened. */
  readonly openSide?: (record: RecoveryRecord) => Promise<BackupSide>;
  /** Opens a device that is to become the volume's equal, and gets every change as long as the volume is open. */
  readonly openMirror?: (() => Promise<BlockDevice>) | undefined;
  /** How the volume goes on when its home is lost; without it, it refuses writes then. It needs a delta store. */
  readonly survive?: SurvivalPlan | undefined;
  /** The home was lost, and the volume goes on in another one, which has to be filled. */
  readonly onTakenOver?: () => void;
  /** Of the segments of delta logs; LIMITS.deltaSegmentBytes where left out. */
  readonly deltaSegmentBytes?: number;
  /** What tells the machine's run from others; the system's where left out. */
  readonly bootId?: () => string | undefined;
  /** Tracks of one region of the intent log; LIMITS.intentRegionTracks where left out. */
  readonly intentRegionTracks?: number;
}

export interface OpenParts {
  readonly lock: FileHandle;
  readonly state: VolumeState;
  readonly home: BlockDevice;
  /** Of a home with a layout: what it consists of. */
  readonly mirrors: HomeMirrors | undefined;
  readonly epochs: EpochHistory;
  readonly intentPlace: IntentPlace;
  /** The open epoch's; undefined where the volume is open for reading only. */
  readonly intents: IntentLog | undefined;
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly startedClean: boolean;
  /** Of a volume whose home is being filled; `home` is its device then. */
  readonly recovery: Recovery | undefined;
  /** Of a volume that a mirror is brought up from; `home` is its device then. */
  readonly mirroring: Mirroring | undefined;
  /** Of a volume that goes on when its home is lost; `home` is its device then, or above that. */
  readonly survival: Survival | undefined;
  /** Of a home whose tracks are repaired from the deltas when they cannot be read. */
  readonly repairing: RepairingDevice | undefined;
  /** Where every change goes beside the home; `home` is the device that sees to it then. */
  readonly deltas: Deltas | undefined;
  /** Of a volume whose changes go to several places. */
  readonly dirty: DirtyRegions | undefined;
  /** Why the home may not hold what it did at the last stop; undefined where it does. */
  readonly homeDamage: string | undefined;
}

/**
 * Opens what a volume consists of. The lock is held and the state is open; both are the caller's to close on failure.
 *
 * @throws {VolumeError} `home-unusable`
 */
export async function openParts(
  directory: string,
  lock: FileHandle,
  state: VolumeState,
  options: OpenVolumeOptions,
): Promise<OpenParts> {
  const readOnly = options.readOnly ?? false;
  if (!readOnly) await settleIdentity(directory, state, options.moved ?? false);
  const identity = identityOf(directory, state);
  assertRebuilt(identity, state);
  const geometry = new Geometry(identity.sizeBytes, identity.trackSizeBytes);
  const intentPlace = intentPlaceOf(identity, geometry, options);
  const loaded = state.load(geometry.trackCount, await findSegments(intentPlace));
  const { history, isClean } = loaded;
  const doubtful = isClean ? TrackSet.empty() : await whatIsInDoubt(intentPlace, history);
  const laidOut = await openLayout(identity, state, { ...loaded, doubtful }, options);
  const opened = laidOut?.device ?? (await openHome(identity, readOnly, options));
  const parts = { identity, geometry, state };
  let stack: Stack | undefined;
  let intents: IntentLog | undefined;
  let copies: Copies = { deltas: undefined, dirty: undefined };
  try {
    stack = await openStack(opened, { ...parts, deltas: () => copies.deltas }, options);
    const { unlogged } = stack;
    const isUntouched = laidOut?.isTouched === true ? false : await looksUntouched(identity, state);
    if ((isClean || laidOut !== undefined) && !isUntouched) history.markAll();
    if (laidOut !== undefined && !readOnly) state.members.follow(() => laidOut.record(history.openNumber));
    const bootBefore = state.boot;
    const boot = (options.bootId ?? bootId)();
    // From here on the last owner's records of what is in doubt are not all there any more.
    if (!readOnly) copies = await beginCopies(laidOut, { identity, place: intentPlace, doubtful }, options);
    intents = readOnly ? undefined : await beginWriting(intentPlace, state, loaded, boot);
    if (!readOnly) {
      // What was written last may be in one of several places only.
      if (!isClean) await laidOut?.reconcile(doubtful);
      if (!isClean) await stack.recovery?.reconcile(history.openTracks());
      const deltas = await openDeltas(
        { ...parts, home: unlogged, knows: (point) => history.knows(point) },
        options,
      );
      copies = { ...copies, deltas };
      if (isUntouched) await deltas?.reconcile(doubtful, boot !== undefined && boot === bootBefore);
      else await deltas?.breakOff(HOME_CHANGED);
      await copies.dirty?.settled();
    }
    return {
      lock,
      state,
      home: copies.deltas === undefined ? unlogged : new LoggedDevice(unlogged, copies.deltas),
      mirrors: laidOut && new HomeMirrors({ identity, geometry, laidOut, registry: options.registry }),
      epochs: history,
      intentPlace,
      intents,
      identity,
      geometry,
      startedClean: isClean && isUntouched,
      ...stack,
      ...copies,
      homeDamage: isUntouched ? undefined : HOME_CHANGED,
    };
  } catch (error) {
    await stack?.recovery?.closeSide();
    await closeAll([opened, stack?.mirroring, copies.deltas, copies.dirty, intents]);
    throw error;
  }
}

/** @throws {VolumeError} `rebuild-unfinished` */
function assertRebuilt({ name, directory }: VolumeIdentity, { rebuild }: VolumeState): void {
  if (rebuild === undefined) return;
  const message = `Volume ${name} is being rebuilt in ${rebuild.home}, which holds a part of it only: run cowbell volume rebuild ${directory} again`;
  throw new VolumeError('rebuild-unfinished', message, { directory });
}

/** Opens what the snapshots keep; see `Snapshots.open`. @param onReleased tracks may be written without a copy. */
export function openSnapshots(
  { identity, geometry, state, home, epochs, homeDamage }: OpenParts,
  { readOnly = false, onWarning, onSnapshotDropped }: OpenVolumeOptions,
  onReleased: (run: TrackRun) => void,
): Promise<Snapshots> {
  const options: SnapshotsOptions = {
    identity,
    geometry,
    state,
    home,
    epochs,
    readOnly,
    onReleased,
    onDropped: (name, reason) => {
      onWarning?.(`Snapshot ${name} of ${identity.name} was dropped: ${reason}`);
      onSnapshotDropped?.(name);
    },
  };
  return Snapshots.open(options, homeDamage);
}

function intentPlaceOf(
  { directory, volumeId }: VolumeIdentity,
  geometry: Geometry,
  options: OpenVolumeOptions,
): IntentPlace {
  const regionTracks = options.intentRegionTracks ?? LIMITS.intentRegionTracks;
  return {
    directory,
    volumeId,
    get trackCount() {
      return geometry.trackCount;
    },
    regionTracks,
  };
}

/** What the last owner's segments told is recorded before they go; the new one is there before that. */
async function beginWriting(
  place: IntentPlace,
  state: VolumeState,
  loaded: LoadedEpochs,
  boot: string | undefined,
): Promise<IntentLog> {
  const { openNumber } = loaded.history;
  const intents = await IntentLog.create(place, openNumber, []);
  try {
    await state.saveOpened(loaded, boot);
    await removeSegments(place.directory, (epoch) => epoch < openNumber);
    return intents;
  } catch (error) {
    await intents.close();
    throw error;
  }
}

/** A directory that is not where it was is a copy, with an id of its own, unless it is said to be moved. */
async function settleIdentity(directory: string, state: VolumeState, moved: boolean): Promise<void> {
  const now = await directoryIdentity(directory);
  const before = state.record.directory;
  if (now.device === before.device && now.inode === before.inode) return;
  await state.saveIdentity(moved ? state.record.volumeId : randomId(), now);
}

/** Opens a home that has a layout. @throws {VolumeError} `home-unusable` */
async function openLayout(
  identity: VolumeIdentity,
  state: VolumeState,
  { history, isClean, doubtful }: LoadedEpochs & { readonly doubtful: TrackSet },
  { registry, readOnly = false, clock = systemClock, onWarning }: OpenVolumeOptions,
): Promise<LayoutHome | undefined> {
  const { layout } = identity;
  if (layout === undefined) return undefined;
  return openLayoutHome({
    identity,
    layout,
    readOnly,
    registry,
    clock,
    onWarning,
    isClean,
    stamps: state.stamps,
    history,
    doubtful,
    missed: (member) => state.members.missed(member, history.trackCount),
    save: () => state.saveMembers(),
  });
}

async function openHome(
  identity: VolumeIdentity,
  readOnly: boolean,
  options: OpenVolumeOptions,
): Promise<BlockDevice> {
  const home = await openHomeDevice(identity, readOnly, options);
  if (home.sizeBytes >= identity.sizeBytes) return home;
  await home.close();
  throw new VolumeError(
    'home-unusable',
    `Home ${identity.home} of volume ${identity.name} has ${home.sizeBytes} bytes, wanted ${identity.sizeBytes}`,
    { home: identity.home },
  );
}

/** @throws {VolumeError} `home-unusable` where it is not there: what to do then is for this volume to say. */
async function openHomeDevice(
  { name, home, directory }: VolumeIdentity,
  readOnly: boolean,
  { registry }: OpenVolumeOptions,
): Promise<BlockDevice> {
  try {
    return await registry.open(home, { readOnly, syncName: 'home', lock: readOnly ? 'shared' : 'exclusive' });
  } catch (error) {
    if (systemCode(error) !== 'not-found') throw error;
    const message = `Home ${home} of volume ${name} is gone; make it again with cowbell volume rebuild ${directory}, or with recover`;
    throw new VolumeError('home-unusable', message, { home }, { cause: error });
  }
}

/** What may have been written since the last flush. */
async function whatIsInDoubt(place: IntentPlace, history: EpochHistory): Promise<TrackSet> {
  return (await DirtyRegions.find(place)) ?? history.openTracks();
}

/** The devices on top of the home. */
interface Stack extends Pick<OpenParts, 'recovery' | 'mirroring' | 'survival' | 'repairing'> {
  /** The topmost of them; the deltas are above it. */
  readonly unlogged: BlockDevice;
}

async function openStack(
  opened: BlockDevice,
  parts: Pick<OpenParts, 'identity' | 'geometry' | 'state'> & { readonly deltas: () => Deltas | undefined },
  options: OpenVolumeOptions,
): Promise<Stack> {
  const recovery = await openRecovery(opened, parts, options);
  try {
    const { identity, geometry } = parts;
    const mirroring = await openMirroring(recovery?.device ?? opened, identity, geometry, options);
    const filled = mirroring?.device ?? recovery?.device;
    // What is being filled has somewhere to be filled from already.
    if (filled !== undefined)
      return { recovery, mirroring, survival: undefined, repairing: undefined, unlogged: filled };
    const repairing = openRepairing(opened, parts, options);
    const survival = openSurvival(repairing ?? opened, parts, options);
    return { recovery, mirroring, survival, repairing, unlogged: survival?.device ?? repairing ?? opened };
  } catch (error) {
    await recovery?.closeSide();
    throw error;
  }
}

/** What a volume has whose changes go to several places. */
type Copies = Pick<OpenParts, 'deltas' | 'dirty'>;

async function beginCopies(
  laidOut: LayoutHome | undefined,
  at: { readonly identity: VolumeIdentity; readonly place: IntentPlace; readonly doubtful: TrackSet },
  { clock = systemClock }: OpenVolumeOptions,
): Promise<Copies> {
  const hasCopies = at.identity.deltas !== undefined || (laidOut?.mirrors.length ?? 0) > 0;
  const dirty = hasCopies ? await DirtyRegions.begin(at.place, clock, at.doubtful) : undefined;
  return { deltas: undefined, dirty };
}

function openDeltas(
  parts: Pick<DeltasOptions, 'identity' | 'geometry' | 'state' | 'home' | 'knows'>,
  { registry, clock = systemClock, onWarning, deltaSegmentBytes: segmentBytes }: OpenVolumeOptions,
): Promise<Deltas | undefined> {
  return Deltas.open({ ...parts, registry, clock, onWarning, segmentBytes });
}

function openRepairing(
  device: BlockDevice,
  at: Pick<OpenParts, 'identity' | 'geometry'> & { readonly deltas: () => Deltas | undefined },
  { survive: plan, onWarning, readOnly }: OpenVolumeOptions,
): RepairingDevice | undefined {
  const { identity, geometry } = at;
  if (readOnly === true || identity.deltas === undefined) return undefined;
  return new RepairingDevice({
    device,
    geometry,
    openSource: async () => {
      const deltas = present(at.deltas(), 'A home is read that has deltas');
      return openRepairSource({ identity, geometry, deltas, plan });
    },
    onRepaired: (track, reason, source) =>
      onWarning?.(
        `Track ${track} of volume ${identity.name} could not be read, and was written again from ${source}: ${messageOf(reason)}`,
      ),
  });
}

function openSurvival(
  home: BlockDevice,
  parts: Pick<OpenParts, 'identity' | 'geometry' | 'state'>,
  { survive: plan, registry, onWarning, readOnly, clock = systemClock }: OpenVolumeOptions,
): Survival | undefined {
  const { deltas, layout } = parts.identity;
  if (plan === undefined || readOnly === true || deltas === undefined || layout !== undefined)
    return undefined;
  return new Survival({ ...parts, plan, home, registry, onWarning, nowMs: () => clock.now() });
}

/** @throws {VolumeError} `side-unavailable` */
async function openRecovery(
  home: BlockDevice,
  parts: Pick<OpenParts, 'identity' | 'geometry' | 'state'>,
  options: OpenVolumeOptions,
): Promise<Recovery | undefined> {
  const { identity, geometry, state } = parts;
  const { record } = state.recovery;
  if (record === undefined) return undefined;
  const side = await openSide(record, identity, options);
  try {
    if (side.device.sizeBytes < geometry.sizeBytes)
      throw sideUnavailable(
        identity,
        record,
        `it has ${side.device.sizeBytes} bytes, wanted ${geometry.sizeBytes}`,
      );
    const { onWarning } = options;
    return new Recovery({
      home,
      geometry,
      side,
      state: state.recovery,
      record,
      name: identity.name,
      onWarning,
    });
  } catch (error) {
    await side.close();
    throw error;
  }
}

async function openSide(
  record: RecoveryRecord,
  identity: VolumeIdentity,
  options: OpenVolumeOptions,
): Promise<BackupSide> {
  if (options.openSide === undefined)
    throw sideUnavailable(identity, record, 'this command does not reach it; serve the volume');
  try {
    return await options.openSide(record);
  } catch (error) {
    throw sideUnavailable(identity, record, messageOf(error), error);
  }
}

function sideUnavailable(
  { name, directory }: VolumeIdentity,
  { side }: RecoveryRecord,
  why: string,
  cause?: unknown,
): VolumeError {
  const place = describeSide(side);
  const message = `Volume ${name} is being recovered from ${place}, which cannot be used: ${why}`;
  return new VolumeError('side-unavailable', message, { directory, side: place }, { cause });
}

/** @throws {VolumeError} `mirror-unusable` */
async function openMirroring(
  home: BlockDevice,
  { name, directory }: VolumeIdentity,
  geometry: Geometry,
  { openMirror, clock = systemClock, onWarning }: OpenVolumeOptions,
): Promise<Mirroring | undefined> {
  const mirror = await openMirror?.();
  if (mirror === undefined) return undefined;
  if (mirror.sizeBytes >= geometry.sizeBytes)
    return new Mirroring({ home, mirror, geometry, startedMs: clock.now(), name, onWarning });
  await mirror.close();
  const { description, sizeBytes } = mirror;
  const message = `Mirror ${description} of volume ${name} has ${sizeBytes} bytes, wanted ${geometry.sizeBytes}`;
  throw new VolumeError('mirror-unusable', message, { directory });
}

/** Whether the home looks as it did at the clean stop. A home that cannot be watched is believed. */
async function looksUntouched(identity: VolumeIdentity, state: VolumeState): Promise<boolean> {
  const before = state.stamp;
  const path = homePathOf(identity.directory, identity.home);
  if (before === undefined || path === undefined) return true;
  const now = await homeStamp(path);
  return (
    now?.sizeBytes === before.sizeBytes && now.inode === before.inode && now.modifiedNs === before.modifiedNs
  );
}

/** How a home looks that nothing writes to any more, for the record of the clean stop. */
export async function lookOfHome(
  { directory, home }: VolumeIdentity,
  mirrors: HomeMirrors | undefined,
): Promise<Parameters<VolumeState['saveClean']>[1]> {
  if (mirrors !== undefined) return { stamps: await mirrors.stamps() };
  const path = homePathOf(directory, home);
  const stamp = path === undefined ? undefined : await homeStamp(path);
  return stamp === undefined ? {} : { stamp };
}
