/**
 * From what `recover` was asked for to a volume that can be served: the backup side is opened and looked at, and the
 * volume is made, put in the place of the lost one, marked in part, or found to be under recovery already.
 *
 * Nothing of the volume is changed before the side is open.
 */

import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type Clock, KIB } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { BlockDevice, DeviceRegistry } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import {
  type BackupSide,
  createVolume,
  describeSide,
  Geometry,
  homePathOf,
  lookForLost,
  lookForRecovery,
  loseTracks,
  moveRecovery,
  putLostAside,
  recentRanges,
  type RecoveryLook,
  type RecoveryRecord,
  type SidePlace,
  VolumeError,
} from '../volume/index.ts';
import { openBackupSide } from './backup-side.ts';
import { DaemonError } from './errors.ts';
import type { LogsWish } from './store-reader-messages.ts';
import { openStoreReader, type StoreReader, type StoreReaderOptions } from './store-reader.ts';

/** What one question for extents is about. */
const EXTENTS_STEP_BYTES = 1024 * 1024 * KIB;
const TRACK_BYTES_DEFAULT = 64 * KIB;

export interface ByteRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface RecoverOptions {
  /** A store's directory with one of its sets, or a device that is kept: absolute. */
  readonly from:
    | { readonly storePath: string; readonly set: string; readonly logs?: LogsWish | undefined }
    | { readonly uri: string };
  readonly key?: StoreKey | undefined;
  /** The volume's directory, absolute. */
  readonly directory: string;
  /** Where a volume that is made has its home; where the lost one had it, or in its directory, where left out. */
  readonly home?: string | undefined;
  /** Path or URI of a device that gets every change too. */
  readonly mirror?: string | undefined;
  /** Only these are lost, of a volume that is there; whole tracks. */
  readonly ranges?: readonly ByteRange[] | undefined;
  /** Ranges are recovered though they were before: what was written to them since is lost. */
  readonly again?: boolean;
  /** The volume is to be another one than that which the set is of. */
  readonly isCopy?: boolean;
  /** Of a side that has no tracks of its own. */
  readonly trackSizeBytes?: number | undefined;
  readonly registry: DeviceRegistry;
  readonly clock: Clock;
  readonly readerPath: string;
  /** See `StoreReaderOptions`. */
  readonly started?: StoreReaderOptions['started'];
  readonly warn: (sentence: string) => void;
  readonly signal?: AbortSignal;
}

export interface PreparedRecovery {
  /** `resumed`: it was under recovery already. */
  readonly how: 'created' | 'replaced' | 'in-part' | 'resumed';
  /** What was left of the lost volume. */
  readonly putAside?: string;
  readonly volume: string;
  /** The id of the set that it is filled from. */
  readonly set: string | undefined;
  readonly sizeBytes: number;
  /** What was used of late, the last first; empty where that is not known. */
  readonly recent: readonly ByteRange[];
  /** For the serving process: gives the side that is open already, once. */
  readonly openSide: (record: RecoveryRecord) => Promise<BackupSide>;
  /** For whoever does not get to serving it. */
  readonly close: () => Promise<void>;
}

/** What is known of the side. */
interface SideFacts {
  readonly place: SidePlace;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  /** Of a set. */
  readonly point?: { readonly point: string; readonly createdMs: number };
  readonly volumeId?: string;
  /** The tracks that are not zero. */
  readonly tracks: () => Promise<TrackSet>;
}

/**
 * Prepares the recovery; durable when it resolves.
 *
 * @throws {DaemonError} `not-lost`, `other-recovery`, `bad-range`; {VolumeError} `in-use`, `exists`, `has-snapshots`,
 *   `home-unusable`;
 *   what opening the side throws.
 */
export async function prepareRecovery(options: RecoverOptions): Promise<PreparedRecovery> {
  const reader = 'uri' in options.from ? undefined : await openReader(options, options.from);
  const device = 'uri' in options.from ? await openDevice(options, options.from.uri) : undefined;
  const close = async (): Promise<void> => {
    await device?.close();
    await reader?.close();
  };
  try {
    const facts = factsOf(options, reader, device);
    const record = recordOf(options, facts);
    const prepared = await prepareVolume(options, facts, record);
    // A device is opened anew: perhaps for writing.
    await device?.close();
    return { ...prepared, openSide: sideOpener(options, reader), close: async () => reader?.close() };
  } catch (error) {
    await close();
    throw error;
  }
}

function openReader(
  { key, readerPath: program, started, signal }: RecoverOptions,
  from: { readonly storePath: string; readonly set: string; readonly logs?: LogsWish | undefined },
): Promise<StoreReader> {
  return openStoreReader({
    ...from,
    program,
    started,
    ...(key === undefined ? {} : { key }),
    ...(signal === undefined ? {} : { signal }),
  });
}

function openDevice({ registry }: RecoverOptions, uri: string): Promise<BlockDevice> {
  return registry.open(uri, { readOnly: true, syncName: 'home', lock: 'shared' });
}

function sideOpener(
  options: RecoverOptions,
  reader: StoreReader | undefined,
): (record: RecoveryRecord) => Promise<BackupSide> {
  const { registry, clock, readerPath, key, warn } = options;
  let unused = reader;
  return (record) => {
    const opened = unused;
    unused = undefined;
    return openBackupSide(record, { registry, clock, readerPath, key, warn, reader: opened });
  };
}

function factsOf(
  options: RecoverOptions,
  reader: StoreReader | undefined,
  device: BlockDevice | undefined,
): SideFacts {
  if (reader !== undefined && !('uri' in options.from)) {
    const { set, volumeId, point, createdMs, sizeBytes, trackSizeBytes } = reader.set;
    const { logs } = reader;
    const { storePath } = options.from;
    const tracks = async (): Promise<TrackSet> => reader.tracks;
    // With logs it is at no point that anybody knows.
    if (logs !== undefined)
      return { place: { kind: 'store', storePath, set, logs }, sizeBytes, trackSizeBytes, volumeId, tracks };
    const place: SidePlace = { kind: 'store', storePath, set };
    return { place, sizeBytes, trackSizeBytes, volumeId, point: { point, createdMs }, tracks };
  }
  const { trackSizeBytes = TRACK_BYTES_DEFAULT } = options;
  const uri = 'uri' in options.from ? options.from.uri : '';
  const sizeBytes = device?.sizeBytes ?? 0;
  const tracks = async (): Promise<TrackSet> =>
    device === undefined ? TrackSet.empty() : dataTracks(device, new Geometry(sizeBytes, trackSizeBytes));
  return { place: { kind: 'device', uri }, sizeBytes, trackSizeBytes, tracks };
}

/** The tracks of a device that are not known to be zeroes. */
async function dataTracks(device: BlockDevice, geometry: Geometry): Promise<TrackSet> {
  const { sizeBytes, trackCount } = geometry;
  if (!device.capabilities.extents) return TrackSet.all(trackCount);
  const tracks = TrackSet.empty();
  for (let at = 0; at < sizeBytes; at += EXTENTS_STEP_BYTES) {
    for (const extent of await device.extents(at, Math.min(EXTENTS_STEP_BYTES, sizeBytes - at)))
      if (!extent.zero) tracks.addRun(geometry.tracksOf(extent.offsetBytes, extent.lengthBytes));
  }
  return tracks;
}

function recordOf(
  { mirror, ranges = [], clock }: RecoverOptions,
  { place, point }: SideFacts,
): RecoveryRecord {
  return {
    side: place,
    startedMs: clock.now(),
    ...(point === undefined ? {} : { point: point.point }),
    ...(mirror === undefined ? {} : { mirror }),
    ...(ranges.length === 0 ? {} : { ranges }),
  };
}

type Prepared = Omit<PreparedRecovery, 'openSide' | 'close'>;

async function prepareVolume(
  options: RecoverOptions,
  facts: SideFacts,
  record: RecoveryRecord,
): Promise<Prepared> {
  const { directory, ranges } = options;
  const found = await lookForRecovery(directory);
  const recent = found?.recent === undefined ? [] : recentRanges(found.recent, facts.sizeBytes);
  const set = facts.place.kind === 'store' ? facts.place.set : undefined;
  // A home that was lost once more has nothing that could go on.
  if (found?.record !== undefined && !found.isHomeLost) {
    const { identity } = found;
    await resume(identity.directory, found.record, record);
    return { how: 'resumed', volume: identity.name, set, sizeBytes: identity.sizeBytes, recent };
  }
  if (ranges !== undefined && ranges.length > 0) {
    if (options.again !== true) assertNotAgain(found, record);
    const { identity } = await loseRanges(options, facts, record, found);
    return { how: 'in-part', volume: identity.name, set, sizeBytes: identity.sizeBytes, recent };
  }
  if (found !== undefined && !found.isHomeLost) throw notLost(found);
  const lost = found ?? (await lookForLost(directory));
  const home = options.home ?? lostHome(lost);
  if (home !== undefined) await assertHasPlace(directory, home);
  const putAside = found === undefined ? undefined : await putLostAside(found.identity);
  const { isCopy = false } = options;
  const { volumeId, point, sizeBytes, trackSizeBytes } = facts;
  const identity = await createVolume(directory, {
    sizeBytes,
    trackSizeBytes,
    clock: options.clock,
    ...(home === undefined ? {} : { home }),
    ...(lost?.identity.deltas === undefined || isCopy ? {} : { deltas: lost.identity.deltas }),
    recovery: {
      record,
      tracks: await facts.tracks(),
      ...(point === undefined ? {} : { point }),
      ...(volumeId === undefined || isCopy ? {} : { volumeId }),
    },
  });
  const how = putAside === undefined ? 'created' : 'replaced';
  return {
    how,
    volume: identity.name,
    set,
    sizeBytes,
    recent,
    ...(putAside === undefined ? {} : { putAside }),
  };
}

/**
 * A home that is not there because its filesystem is not mounted is not lost.
 *
 * @throws {VolumeError} `home-unusable`
 */
async function assertHasPlace(directory: string, home: string): Promise<void> {
  const path = homePathOf(directory, home);
  if (path === undefined) return;
  const place = dirname(path);
  const found = await stat(place).catch(() => undefined);
  if (found?.isDirectory() === true) return;
  const message = `Directory ${place} of the home is not there; mount its filesystem, make it, or name another home with --home`;
  throw new VolumeError('home-unusable', message, { home });
}

/**
 * A unit that starts the same command again must not undo what was written since it was over.
 *
 * @throws {DaemonError} `recovered-already`
 */
function assertNotAgain(found: RecoveryLook | undefined, { ranges }: RecoveryRecord): void {
  const before = found?.recovered;
  if (found === undefined || before === undefined) return;
  // Whatever set that was: the latest one changes with each backup.
  if (JSON.stringify(before.ranges) !== JSON.stringify(ranges)) return;
  const { name, directory } = found.identity;
  const began = new Date(before.startedMs).toISOString();
  const message = `These ranges of ${name} were recovered from ${describeSide(before.side)} already, begun at ${began}; what was written to them since would be lost: serve the volume, or say --again`;
  throw new DaemonError('recovered-already', message, { directory });
}

/**
 * The home that the lost volume had, where it did not lie in its directory.
 *
 * @throws {VolumeError} `has-layout`: what is left of its members nobody should take for free without being told.
 */
function lostHome(found: RecoveryLook | undefined): string | undefined {
  if (found === undefined) return undefined;
  const { home, layout, name, directory } = found.identity;
  if (layout !== undefined) {
    const message = `The home of ${name} had several parts or members (${home.replace(/^layout:/, '')}); name one place for the new one with --home`;
    throw new VolumeError('has-layout', message, { home });
  }
  return home.startsWith(`${directory}/`) ? undefined : home;
}

async function resume(directory: string, before: RecoveryRecord, wanted: RecoveryRecord): Promise<void> {
  const isSame =
    before.point === wanted.point &&
    before.side.kind === wanted.side.kind &&
    momentOf(before.side) === momentOf(wanted.side);
  if (!isSame) {
    const what = before.point === undefined ? describeSide(before.side) : `point ${before.point}`;
    const message = `Volume ${directory} is being recovered from ${what}, and goes on from nothing else; serve it, or give what holds that`;
    throw new DaemonError('other-recovery', message, { directory });
  }
  // A mirror that was lost is no equal, and one that comes new is none yet.
  await moveRecovery(directory, { ...before, side: wanted.side });
}

/** Of a side with logs, what it holds: where the logs go on from, and up to when. */
function momentOf(side: SidePlace): string {
  if (side.kind !== 'store' || side.logs === undefined) return '';
  const { startPoint, beforeMs = '', upTo = '' } = side.logs;
  return `${startPoint} ${beforeMs} ${upTo}`;
}

async function loseRanges(
  { directory, ranges = [] }: RecoverOptions,
  facts: SideFacts,
  record: RecoveryRecord,
  found: RecoveryLook | undefined,
): Promise<RecoveryLook> {
  if (found === undefined) {
    const message = `Directory ${directory} holds no volume of which a range could be recovered`;
    throw new VolumeError('not-a-volume', message, { directory });
  }
  const { sizeBytes, trackSizeBytes, volumeId, name, home } = found.identity;
  if (found.isHomeLost) throw badRange(`The home ${home} of ${name} is lost, not a range of it`);
  if (facts.volumeId !== undefined && facts.volumeId !== volumeId)
    throw badRange(`The set is of another volume than ${name}, whose other ranges would not go with it`);
  if (facts.sizeBytes < sizeBytes)
    throw badRange(`The backup side has ${facts.sizeBytes} bytes, wanted the ${sizeBytes} of ${name}`);
  const geometry = new Geometry(sizeBytes, trackSizeBytes);
  const lost = TrackSet.empty();
  for (const { offsetBytes, lengthBytes } of ranges) {
    const end = offsetBytes + lengthBytes;
    const isWhole = offsetBytes % trackSizeBytes === 0 && (end % trackSizeBytes === 0 || end === sizeBytes);
    if (!isWhole || end > sizeBytes) {
      const range = `Range ${offsetBytes}+${lengthBytes}`;
      throw badRange(
        `${range} is not whole tracks of ${name}, wanted multiples of ${trackSizeBytes} bytes below ${sizeBytes}`,
      );
    }
    lost.addRun(geometry.tracksOf(offsetBytes, lengthBytes));
  }
  await loseTracks(directory, record, lost);
  return found;
}

function badRange(message: string): DaemonError {
  return new DaemonError('bad-range', message, {});
}

function notLost({ identity }: RecoveryLook): DaemonError {
  const { directory, home } = identity;
  const message = `Volume ${directory} has its home ${home}, and nothing says that it is lost; name the damaged range with --range, or remove the home`;
  return new DaemonError('not-lost', message, { directory });
}
