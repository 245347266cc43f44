/**
 * A volume's directory: how it is made, who owns it, where its parts lie.
 *
 *     <volume>/lock        flock of the owner; holds its pid and what it is doing
 *     <volume>/state.mdb   identity, points, changed tracks (state.ts, FORMAT.md)
 *     <volume>/home.raw    the home, unless it was put elsewhere
 *     <volume>/snapshots/  what snapshots keep (snapshots.ts)
 *     <volume>/*.sock      sockets of the serving process
 *
 * Ownership is the flock and nothing else: it dies with its process, so a left-over file means nothing.
 */

import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, readFile, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import {
  assert,
  type Clock,
  CorruptionError,
  getAttribute,
  randomId,
  setAttribute,
  syncDirectory,
  systemClock,
  systemCode,
  tryLock,
} from '../base/index.ts';
import { createSparseFile, type DeviceRegistry, parseDeviceAddress } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { RecoveryRecord } from './backup-side.ts';
import type { DeltasRecord } from './delta-places.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import { describeLayout, type HomeLayout, type LayoutRequest } from './layout.ts';
import { makeLayout, type MadeLayout } from './layout-create.ts';
import type { RecoveryStart } from './recovery-state.ts';
import { assertCanClone } from './snapshot-clone.ts';
import type { FullPolicy, SnapshotKind } from './snapshot-info.ts';
import { directoryIdentity, homeStamp } from './file-looks.ts';
import { type StartPoint, type StateBeginning, VolumeState } from './state.ts';

export const STATE_FILE = 'state.mdb';
const LOCK_FILE = 'lock';
const HOME_FILE = 'home.raw';
/** Begins the names of directories with what was left of a volume whose home was lost. */
export const LOST_PREFIX = 'lost-';
/** The extended attribute that a raw home carries, so that nothing takes it for a free file. */
export const HOME_ATTRIBUTE = 'user.cowbell.volume';

export interface VolumeIdentity {
  readonly volumeId: string;
  /** The directory's base name: the export's name. */
  readonly name: string;
  readonly directory: string;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  /** An absolute path or a URI; of a home with a layout what `describeLayout` says, which opens nothing. */
  readonly home: string;
  /** Of a home of several extents or members. */
  readonly layout?: HomeLayout;
  readonly createdMs: number;
  /** What happens to a write that needs its track's old content kept when there is no room. */
  readonly snapshotFull: FullPolicy;
  /** How snapshots keep what is replaced. */
  readonly snapshotBy: SnapshotKind;
  /** Where every change goes a second time; nowhere where it is undefined. */
  readonly deltas: DeltasRecord | undefined;
}

export interface CreateOptions {
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  /** Path or URI; a file in the volume's directory where left out. A missing file is made, sparse. */
  readonly home?: string;
  /** In place of `home`, with what opens its members. Missing files are made, sparse. */
  readonly layout?: LayoutRequest;
  readonly registry?: Pick<DeviceRegistry, 'open'>;
  /** Where the layout is from, to begin messages about it. */
  readonly layoutFrom?: string;
  /** `refuse` where left out. */
  readonly snapshotFull?: FullPolicy;
  /** `copy` where left out. */
  readonly snapshotBy?: SnapshotKind;
  /** Where every change goes a second time: at least one place, or nowhere where left out. */
  readonly deltas?: Omit<DeltasRecord, 'since'>;
  readonly clock?: Clock;
  /** Makes the volume a copy of what another one held. Its home must be a file that is not there yet. */
  readonly copyOf?: VolumeOrigin;
  /** Makes the volume one whose home is yet to be filled; the home may be there already, whatever it holds. */
  readonly recovery?: RecoveryOrigin;
  /** Makes the volume the lost one again that left logs; its home is yet to be rebuilt. */
  readonly again?: LostVolume;
}

/** What is known of a volume of which only logs are left. */
export interface LostVolume {
  readonly volumeId: string;
  /** The newest of its points that anybody knows the content of; undefined where that is the beginning. */
  readonly point?: { readonly point: string; readonly createdMs: number };
  /** The last record that the logs have. */
  readonly upTo: number;
}

/** What a volume is made from that begins with a recovery. */
export interface RecoveryOrigin {
  readonly record: RecoveryRecord;
  /** Of the side's content: nothing counts as changed since. Everything always does where left out. */
  readonly point?: { readonly point: string; readonly createdMs: number };
  /** The tracks that are not zero there. */
  readonly tracks: TrackSet;
  /** Of the volume that was lost, to be it again; a new one where left out. */
  readonly volumeId?: string;
}

/** Where the content of a volume comes from. */
export interface VolumeOrigin {
  readonly point: string;
  readonly createdMs: number;
  /** Writes the content, durably, into the home, which is one hole. The directory is no volume before that is done. */
  readonly fill: (homePath: string) => Promise<void>;
}

/**
 * Makes a volume, durable when the promise resolves. On failure whatever was made is removed again.
 *
 * @throws {VolumeError} `exists`, `invalid-geometry`; with a layout `bad-layout`, `home-unusable`; by clone also `cannot-clone`; with `copyOf` also `home-unusable` and what filling throws
 */
export async function createVolume(path: string, options: CreateOptions): Promise<VolumeIdentity> {
  const directory = resolve(path);
  const geometry = new Geometry(options.sizeBytes, options.trackSizeBytes);
  const isNew = await makeDirectory(directory);
  const laidOut = await layOut(options, isNew ? directory : undefined);
  const home =
    laidOut === undefined
      ? options.home === undefined
        ? HOME_FILE
        : absoluteHome(options.home)
      : describeLayout(laidOut.layout);
  const volumeId = options.recovery?.volumeId ?? options.again?.volumeId ?? randomId();
  const homePath = homePathOf(directory, home);
  const makesHome = homePath !== undefined && !(await exists(homePath));
  try {
    if (options.copyOf !== undefined && !makesHome) throw unusableHome(home, homePath);
    if (makesHome) await createSparseFile(homePath, geometry.sizeBytes, 'home-create');
    if (options.snapshotBy === 'clone')
      await assertCanClone({ home, homePath, directory, sizeBytes: geometry.sizeBytes });
    const filled = makesHome ? await fillHome(homePath, options.copyOf) : undefined;
    const start = filled ?? (await startOf(options.recovery ?? options.again, homePath));
    const record = {
      volumeId,
      sizeBytes: geometry.sizeBytes,
      trackSizeBytes: geometry.trackSizeBytes,
      home,
      ...(laidOut === undefined ? {} : { layout: laidOut.layout }),
      createdMs: (options.clock ?? systemClock).now(),
      directory: await directoryIdentity(directory),
      ...(options.snapshotFull === undefined ? {} : { snapshotFull: options.snapshotFull }),
      ...(options.snapshotBy === undefined ? {} : { snapshotBy: options.snapshotBy }),
      ...deltasOf(options, start, makesHome && options.recovery === undefined),
    };
    if (record.deltas !== undefined) await makeDeltaPlaces(record.deltas);
    const recovery = options.recovery && recoveryStart(options.recovery, geometry.trackCount, makesHome);
    await VolumeState.create(join(directory, STATE_FILE), record, {
      start,
      recovery,
      ...againOf(options, homePath ?? home),
    });
    if (homePath !== undefined) setAttribute(homePath, HOME_ATTRIBUTE, volumeId);
    await laidOut?.finish(HOME_ATTRIBUTE, volumeId);
    if (makesHome) await syncDirectory('volume-directory', dirname(homePath));
    await syncDirectory('volume-directory', directory);
    await syncDirectory('volume-directory', dirname(directory));
  } catch (error) {
    await rm(join(directory, STATE_FILE), { force: true });
    if (makesHome) await rm(homePath, { force: true });
    await laidOut?.undo();
    if (isNew) await rm(directory, { recursive: true, force: true });
    throw error;
  }
  return readVolumeIdentity(directory);
}

/** @param made the volume's directory, where it goes again if this fails. */
async function layOut(options: CreateOptions, made: string | undefined): Promise<MadeLayout | undefined> {
  const { layout, registry, sizeBytes, layoutFrom } = options;
  if (layout === undefined) return undefined;
  assert(
    registry !== undefined && options.home === undefined,
    'A layout needs a registry, and no other home',
  );
  const nowMs = (options.clock ?? systemClock).now();
  const from = layoutFrom === undefined ? {} : { from: layoutFrom };
  try {
    return await makeLayout(layout, { sizeBytes, registry, nowMs, ...from });
  } catch (error) {
    if (made !== undefined) await rm(made, { recursive: true, force: true });
    throw error;
  }
}

async function fillHome(homePath: string, origin: VolumeOrigin | undefined): Promise<StartPoint | undefined> {
  if (origin === undefined) return undefined;
  const { point, createdMs, fill } = origin;
  await fill(homePath);
  return { point, createdMs, stamp: await homeStamp(homePath) };
}

/** A directory that is not there yet is made; one that is may hold other volumes' deltas. Nothing is put in there yet. */
export async function makeDeltaPlaces({ places }: Pick<DeltasRecord, 'places'>): Promise<void> {
  for (const { place } of places) {
    const { scheme, target } = parseDeviceAddress(place);
    if (scheme !== 'file' || (await exists(target))) continue;
    await mkdir(target, { mode: 0o700 });
    await syncDirectory('volume-directory', dirname(target));
  }
}

/** The volume is refused until its home is rebuilt, and the logs that are there are its own. */
function againOf(
  { again, clock = systemClock }: CreateOptions,
  home: string,
): Pick<StateBeginning, 'rebuild' | 'deltasUse'> {
  if (again === undefined) return {};
  const readable = again.point === undefined ? [] : [again.point.point];
  const rebuild = { home, upTo: again.upTo, startedMs: clock.now() };
  return { rebuild, deltasUse: { lost: [], readable } };
}

/** What the volume is where its first log begins. */
function deltasOf(
  { deltas }: CreateOptions,
  start: StartPoint | undefined,
  isZero: boolean,
): { readonly deltas?: DeltasRecord } {
  if (deltas === undefined) return {};
  const places = deltas.places.map((one) => ({ ...one, place: absoluteHome(one.place) }));
  return { deltas: { ...deltas, places, since: start?.point ?? (isZero ? '' : randomId()) } };
}

/** A home that was made just now is zeroes throughout, and so needs only what is none. */
function recoveryStart(
  { record, tracks }: RecoveryOrigin,
  trackCount: number,
  isZero: boolean,
): RecoveryStart {
  const current = isZero ? TrackSet.all(trackCount).difference(tracks) : TrackSet.empty();
  return { record, current, trackCount };
}

async function startOf(
  origin: Pick<RecoveryOrigin, 'point'> | undefined,
  homePath: string | undefined,
): Promise<StartPoint | undefined> {
  if (origin?.point === undefined) return undefined;
  const stamp = homePath === undefined ? undefined : await homeStamp(homePath);
  return { ...origin.point, stamp };
}

function unusableHome(home: string, homePath: string | undefined): VolumeError {
  const why = homePath === undefined ? 'is no plain path' : 'exists already';
  return new VolumeError('home-unusable', `Home ${home} of a copy ${why}, wanted a new file`, { home });
}

/** Looks at a state file that its owner may be writing; see `readVolumeIdentity`. */
const LOOK_COUNT_MAX = 3;

/**
 * Reads who a volume is, whoever owns it. The owner may commit while this looks, so that the pages read do not
 * fit together; damage counts only when it is seen every time.
 *
 * @throws {VolumeError} `not-a-volume`
 */
export async function readVolumeIdentity(path: string): Promise<VolumeIdentity> {
  const directory = resolve(path);
  for (let lookCount = 1; ; lookCount += 1) {
    let state: VolumeState | undefined;
    try {
      state = await openState(directory, { readOnly: true });
      return identityOf(directory, state);
    } catch (error) {
      if (!(error instanceof CorruptionError) || lookCount === LOOK_COUNT_MAX) throw error;
    } finally {
      await state?.close();
    }
  }
}

/** @throws {VolumeError} `not-a-volume` */
export async function openState(
  directory: string,
  options: { readonly readOnly: boolean },
): Promise<VolumeState> {
  const path = join(directory, STATE_FILE);
  if (!(await exists(path))) {
    throw new VolumeError(
      'not-a-volume',
      `Directory ${directory} holds no volume: ${STATE_FILE} is missing`,
      {
        directory,
      },
    );
  }
  return VolumeState.open(path, options);
}

export function identityOf(directory: string, state: Pick<VolumeState, 'record'>): VolumeIdentity {
  const { volumeId, sizeBytes, trackSizeBytes, home, layout, createdMs } = state.record;
  const { snapshotFull = 'refuse', snapshotBy = 'copy', deltas } = state.record;
  return {
    volumeId,
    name: basename(directory),
    directory,
    sizeBytes,
    trackSizeBytes,
    home: homePathOf(directory, home) ?? home,
    ...(layout === undefined ? {} : { layout }),
    createdMs,
    snapshotFull,
    snapshotBy,
    deltas,
  };
}

/** Whether the file at `path` is, or was, the raw home of a volume. */
export async function isVolumeHome(path: string): Promise<boolean> {
  return (await exists(path)) && getAttribute(path, HOME_ATTRIBUTE) !== undefined;
}

/** The path of a home that is a whole file or block device; undefined for a piece or anything else. */
export function homePathOf(directory: string, home: string): string | undefined {
  const address = parseDeviceAddress(home);
  if (address.scheme !== 'file' || address.piece !== undefined) return undefined;
  return resolve(directory, address.target);
}

/** Who holds a volume's lock, as far as the lock file tells. */
interface Owner {
  readonly pid?: number;
  readonly activity?: string;
}

/**
 * Takes the ownership of a volume until the handle is closed.
 *
 * @param activity what the owner is doing, for whoever is refused: `serving`.
 * @throws {VolumeError} `in-use`, `not-a-volume`
 */
export async function lockVolume(directory: string, activity: string): Promise<FileHandle> {
  const path = join(directory, LOCK_FILE);
  let handle: FileHandle;
  try {
    handle = await open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  } catch (error) {
    if (systemCode(error) !== 'ENOENT' && systemCode(error) !== 'ENOTDIR') throw error;
    throw new VolumeError(
      'not-a-volume',
      `Directory ${directory} does not exist`,
      { directory },
      { cause: error },
    );
  }
  try {
    if (!tryLock(handle.fd, 'exclusive')) throw await inUse(directory, path);
    const owner = Buffer.from(`${JSON.stringify({ pid: process.pid, activity })}\n`);
    await handle.truncate(0);
    await handle.write(owner, 0, owner.length, 0);
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function inUse(directory: string, path: string): Promise<VolumeError> {
  let owner: Owner = {};
  try {
    owner = JSON.parse(await readFile(path, 'utf8'));
  } catch {
    // The owner is just writing it; the lock is what counts.
  }
  const who =
    owner.pid === undefined ? 'another process' : `process ${owner.pid} (${owner.activity ?? 'unknown'})`;
  return new VolumeError('in-use', `Volume ${directory} is in use by ${who}`, { directory, ...owner });
}

/** The home as it is kept: paths absolute, so that it does not depend on where a command was given. */
export function absoluteHome(home: string): string {
  const { scheme, target, piece } = parseDeviceAddress(home);
  const base = scheme === 'file' ? resolve(target) : target;
  return piece === undefined ? base : `${base}@${piece.offsetBytes}+${piece.lengthBytes}`;
}

/** @returns whether the directory was made here. */
async function makeDirectory(directory: string): Promise<boolean> {
  try {
    await mkdir(directory, { mode: 0o700 });
    return true;
  } catch (error) {
    if (systemCode(error) !== 'EEXIST') throw error;
  }
  if (!(await stat(directory)).isDirectory() || !(await readdir(directory)).every(isLeftOver)) {
    throw new VolumeError(
      'exists',
      `Cannot create volume ${directory}: it exists and is not an empty directory`,
      {
        directory,
      },
    );
  }
  return false;
}

/** What may lie in a directory that is to become a volume: what a lost one has left there. */
function isLeftOver(name: string): boolean {
  const isOfState = name.startsWith(`${STATE_FILE}-lock`);
  return name === LOCK_FILE || isOfState || name.endsWith('.sock') || name.startsWith(LOST_PREFIX);
}

/** Whether a directory holds a volume, whatever is left of it. */
export function isVolumeDirectory(directory: string): Promise<boolean> {
  return exists(join(directory, STATE_FILE));
}

/** Whether something is at a path. */
export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ENOTDIR') return false;
    throw error;
  }
}
