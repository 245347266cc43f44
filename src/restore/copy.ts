/**
 * A copy from device to device, from top to bottom: what a volume holds at a freeze, or held at a snapshot, goes onto
 * other devices, with no store between.
 *
 *     targets, table -> what do they hold? -> freeze -> mark -> read, confirm, write -> flush -> consumer's point
 *
 * It is a session of the volume, as a backup is, whose consumer is the targets: so it holds exactly the bytes of the
 * freeze whatever is written meanwhile, and the next copy to the same targets sends what changed since.
 *
 * Unlike a set, a target is written over. Where a copy ends in its middle the target is of no one time, and must never
 * be taken for current. Hence the write order:
 *
 *     mark         durable in the volume before the first write: the targets are incomplete
 *     writes       then a flush of each target, and the names of those that were made
 *     look         how the files look, by which it is told later whether somebody else has written to them
 *     point        one record has the new point, the look, and the mark no longer; durable after all of that
 *
 * Cut anywhere, the record says `incomplete`, and its point is what the targets held before: all that the copy has
 * written since is among what changed since that point, and so among what the next copy sends (`copy-record.ts`).
 *
 * It runs in the process that owns the volume: neither a store nor a file under a memory map takes part.
 */

import { type Clock, messageOf, systemClock } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import {
  type BackupSession,
  type ContainerArea,
  Geometry,
  homePlaces,
  isZero,
  type SessionRequest,
  type SetLevel,
  type Volume,
  VolumeError,
  ZeroRuns,
} from '../volume/index.ts';
import {
  baseOf,
  type CopyBase,
  type CopyPlace,
  consumerOf,
  lookAfterWriting,
  lookAt,
  othersOn,
  placeOf,
  shareBytes,
} from './copy-record.ts';
import { type CopyCounters, type CopyProgress, CopyRun, tooSmall } from './copy-run.ts';
import { incompleteNote, isRestoreError, RestoreError } from './errors.ts';
import { planRestore } from './planner.ts';
import type { RemapTable } from './remap-table.ts';
import { type OpenTargets, openTargets, type OpenTargetsOptions, type TargetRequest } from './targets.ts';

export interface CopyPlanOptions extends OpenTargetsOptions {
  readonly volume: Volume;
  readonly targets: readonly TargetRequest[];
  /** What goes where; the volume over the targets in sequence where left out. */
  readonly table?: RemapTable;
  /** Copies what this snapshot holds, instead of what the volume does at a freeze. */
  readonly snapshot?: string;
  /** Everything, whatever the targets hold. */
  readonly full?: boolean;
}

export interface CopyOptions extends CopyPlanOptions {
  /** The session's id, where its owner has one for it. */
  readonly session?: string;
  /** Room for diverted content, opened when the targets are; closed by the session. */
  readonly openAreas: () => Promise<readonly ContainerArea[]>;
  /** See `SessionRequest`. */
  readonly waitMsMax?: number;
  /** See `CopyRunOptions`. */
  readonly rate?: { take(bytes: number): Promise<void> };
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: CopyProgress) => void;
  readonly clock?: Clock;
}

export interface CopyResult extends CopyCounters {
  /** The volume's name. */
  readonly volume: string;
  readonly level: SetLevel;
  /** The point that the targets held. */
  readonly base: string | undefined;
  /** Why everything was sent, where that was not asked for. */
  readonly reason: string | undefined;
  /** The point that they hold now. */
  readonly point: string;
  readonly tracks: number;
  readonly freezeMs: number;
}

/** What a copy that began now would do. */
export interface CopyPlan {
  readonly volume: string;
  readonly level: SetLevel;
  readonly base: string | undefined;
  readonly reason: string | undefined;
  /** Tracks that it would look at. */
  readonly tracks: number;
  /** Of these, tracks that are known to be zero without reading them. */
  readonly zeroTracks: number;
  /** Bytes that it would read, and write at most. */
  readonly bytes: number;
}

/**
 * Copies a volume, or one of its snapshots, onto targets. They are durable when it resolves, and the volume remembers
 * their point. Targets that were made stay where a copy fails after its first write.
 *
 * Everything that it writes lies on the targets: one that is on a filesystem of the volume itself would wait for itself.
 *
 * @throws {RestoreError} with any of its codes but those of remap files; only `target-failed`, `target-too-small` and
 *   `cancelled` can come after the first write, and `target-too-small` only where the volume is used meanwhile beyond
 *   what the targets hold.
 * @throws {VolumeError} where the session cannot begin, or is ended: `container-full`, `poisoned`.
 */
export async function copyVolume(options: CopyOptions): Promise<CopyResult> {
  options.signal?.throwIfAborted();
  const opened = await open(options);
  let hasBegun = false;
  try {
    if (opened.held.isCurrent === true) return nothingToSend(options, opened.held.base ?? '');
    const session = await begin(options, opened);
    return await send(options, { ...opened, session }, () => {
      hasBegun = true;
    });
  } finally {
    if (hasBegun) await opened.targets.close();
    else await opened.targets.discard();
  }
}

/**
 * What `copyVolume` would send. Nothing is frozen or written; a target that is not there is made for a moment, to see
 * that it can be.
 *
 * @throws as `copyVolume` before its first write.
 */
export async function planCopy(options: CopyPlanOptions): Promise<CopyPlan> {
  const opened = await open(options);
  try {
    const { volume } = options;
    const { name } = volume.identity;
    const { held, targets } = opened;
    if (held.isCurrent === true) {
      const { base } = held;
      return {
        volume: name,
        level: 'incremental',
        base,
        reason: undefined,
        tracks: 0,
        zeroTracks: 0,
        bytes: 0,
      };
    }
    const { level, base, reason, tracks, sizeBytes } = volume.previewSession(requestOf(options, opened));
    const geometry = new Geometry(sizeBytes, volume.geometry.trackSizeBytes);
    let zeroTracks = 0;
    let bytes = 0;
    for await (const run of new ZeroRuns(geometry, volume).split(tracks)) {
      if (run.isZero) {
        zeroTracks += run.count;
        continue;
      }
      const range = { offsetBytes: geometry.offsetOf(run.first), lengthBytes: geometry.lengthOf(run) };
      for (const { lengthBytes } of targets.table.rowsIn(range)) bytes += lengthBytes;
    }
    return { volume: name, level, base, reason, tracks: tracks.size, zeroTracks, bytes };
  } finally {
    await opened.targets.discard();
  }
}

interface Opened {
  readonly targets: OpenTargets;
  /** Those that get anything, in the order of the table. */
  readonly places: readonly CopyPlace[];
  readonly consumer: string;
  readonly held: CopyBase;
  /** See `CopyRunOptions`. */
  readonly roomBytes: number;
}

/** Opens and claims the targets, refuses what cannot work, and finds out what they hold. */
async function open(options: CopyPlanOptions): Promise<Opened> {
  const { volume, table } = options;
  const { trackSizeBytes } = volume.geometry;
  const point = options.snapshot === undefined ? undefined : pointOf(volume, options.snapshot);
  const { sizeBytes } = volume.previewSession({
    consumer: '',
    level: 'full',
    candidates: [],
    ...(options.snapshot === undefined ? {} : { snapshot: options.snapshot }),
  });
  const { targets, roomBytes } = await openWithRoom(options, sizeBytes);
  try {
    const source = {
      sizeBytes,
      trackSizeBytes,
      tracks: () => TrackSet.all(Math.ceil(sizeBytes / trackSizeBytes)),
      readPlan: () => [],
      readFrame: () => [],
    };
    const used = planRestore(source, targets.table, targets.targets).targets;
    const uris = new Map(options.targets.map(({ name, uri }) => [name, uri]));
    const places = await Promise.all(used.map((one) => placeOf(one, uris.get(one.name) ?? one.name)));
    for (const place of places) refuseUnsuited(place, volume);
    const consumer = consumerOf(places, table);
    const held = await whatIsHeld(options, { places, consumer, point });
    return { targets, places, consumer, held, roomBytes };
  } catch (error) {
    await targets.discard();
    throw error;
  }
}

/** What is not known of a target before it is open, and concerns no restore. */
function refuseUnsuited({ target, place, path }: CopyPlace, { identity, mirrors, geometry }: Volume): void {
  const { name, device } = target;
  // Where it is a file or a device it is locked.
  const homes = homePlaces(mirrors?.home() ?? identity);
  if (path === undefined && homes.some((home) => shareBytes(place, home))) {
    const details = { target: name, path: place, by: 'the home of the volume' };
    throw new RestoreError('target-in-use', `Target ${place} is in use: the home of the volume`, details);
  }
  // Tracks are written one by one.
  if (device.blockSizeBytes <= geometry.trackSizeBytes) return;
  const reason = `has blocks of ${device.blockSizeBytes} bytes, wanted at most a track of ${geometry.trackSizeBytes}`;
  throw new RestoreError('bad-target', `Target ${place} ${reason}`, { target: name, path: place, reason });
}

/** A snapshot's point. @throws {VolumeError} `unknown-snapshot`, `snapshot-damaged` */
function pointOf(volume: Volume, snapshot: string): string | undefined {
  // The preview that follows says what is wrong where there is none.
  return volume.snapshots().find(({ name, state }) => name === snapshot && state === 'ready')?.point;
}

/** Targets in sequence may be smaller than the volume where what lies behind their end is zero. */
async function openWithRoom(
  options: CopyPlanOptions,
  sizeBytes: number,
): Promise<{ readonly targets: OpenTargets; readonly roomBytes: number }> {
  const { targets: requests, table, volume, snapshot } = options;
  if (table !== undefined) {
    return { targets: await openTargets(requests, { table }, options), roomBytes: Number.MAX_SAFE_INTEGER };
  }
  try {
    const targets = await openTargets(requests, { sequenceBytes: sizeBytes }, options);
    // The volume may grow before the freeze.
    return { targets, roomBytes: sizeBytes };
  } catch (error) {
    if (!isRestoreError(error, 'target-too-small') || error.details.sizeBytes === 0) throw error;
    const roomBytes = error.details.sizeBytes;
    const device = snapshot === undefined ? volume : volume.openSnapshot(snapshot);
    try {
      const used = await firstUsed(device, roomBytes, sizeBytes);
      if (used !== undefined) throw tooSmall(error.details.target, roomBytes, used + 1);
    } finally {
      if (device !== volume) await device.close();
    }
    return { targets: await openTargets(requests, { sequenceBytes: roomBytes }, options), roomBytes };
  }
}

/** A byte in the range, or near it, that is not zero. */
async function firstUsed(device: BlockDevice, from: number, end: number): Promise<number | undefined> {
  const buffer = Buffer.allocUnsafe(PROBE_BYTES);
  for (const { offsetBytes, lengthBytes, zero } of await device.extents(from, end - from)) {
    if (zero) continue;
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += PROBE_BYTES) {
      const part = buffer.subarray(0, Math.min(PROBE_BYTES, offsetBytes + lengthBytes - at));
      await device.read(part, at);
      if (!isZero(part)) return at + part.findIndex((byte) => byte !== 0);
    }
  }
  return undefined;
}

const PROBE_BYTES = 256 * 1024;

async function whatIsHeld(
  { volume, full, snapshot }: CopyPlanOptions,
  of: {
    readonly places: readonly CopyPlace[];
    readonly consumer: string;
    readonly point: string | undefined;
  },
): Promise<CopyBase> {
  const { places, consumer, point } = of;
  if (full === true) return { base: undefined };
  // What is there now was made a moment ago.
  if (places.some(({ target }) => target.knownZero)) {
    return { base: undefined, reason: 'the target was not there yet' };
  }
  const record = volume.consumers().find(({ name }) => name === consumer);
  const held = baseOf(record, await lookAt(places), point);
  if (held.base === undefined || held.isCurrent === true || snapshot === undefined) return held;
  try {
    volume.previewSession({ consumer, level: 'incremental', candidates: [candidateOf(held.base)], snapshot });
    return held;
  } catch (error) {
    if (!(error instanceof VolumeError) || error.code !== 'snapshot-behind') throw error;
    return { base: undefined, reason: 'the target holds a later point than the snapshot' };
  }
}

function candidateOf(point: string): SessionRequest['candidates'][number] {
  return { point, isFull: false, chainSetCount: 1 };
}

function requestOf(
  { snapshot }: CopyPlanOptions,
  { consumer, held }: Opened,
): Omit<SessionRequest, 'areas' | 'session'> {
  const { base, reason = 'the volume no longer knows the point of the last copy' } = held;
  return {
    consumer,
    // A full one that was asked for has neither a base nor a reason.
    level: base === undefined && held.reason === undefined ? 'full' : 'incremental',
    candidates: base === undefined ? [] : [candidateOf(base)],
    reason,
    ...(snapshot === undefined ? {} : { snapshot }),
  };
}

async function begin(options: CopyOptions, opened: Opened): Promise<BackupSession> {
  const { volume, session, waitMsMax } = options;
  const request = requestOf(options, opened);
  const areas = await options.openAreas();
  try {
    options.signal?.throwIfAborted();
  } catch (error) {
    for (const area of areas) await area.close();
    throw error;
  }
  return volume.beginSession({
    ...request,
    areas,
    ...(session === undefined ? {} : { session }),
    ...(waitMsMax === undefined ? {} : { waitMsMax }),
  });
}

/** From the freeze on. @param onBegun is called before the first write. */
async function send(
  options: CopyOptions,
  { session, targets, places, consumer, roomBytes }: Opened & { readonly session: BackupSession },
  onBegun: () => void,
): Promise<CopyResult> {
  const { volume, clock = systemClock } = options;
  // Once it completes, it is complete.
  const cancelled = (): void => {
    if (session.state === 'running') session.fail(options.signal?.reason);
  };
  options.signal?.addEventListener('abort', cancelled);
  if (options.signal?.aborted === true) cancelled();
  const run = new CopyRun({
    volume,
    session,
    table: targets.table,
    targets: places.map(({ target }) => target),
    roomBytes,
    rate: options.rate,
    signal: session.signal,
    onProgress: options.onProgress,
  });
  try {
    await session.beginReplacing(othersOn(volume.consumers(), consumer, places));
    onBegun();
    await run.run();
    await run.makeDurable();
    const look = await lookAfterWriting(places, clock);
    await session.mayComplete();
    await session.complete(session.plan.session, { targets: look });
  } catch (error) {
    session.fail(error);
    // Where that cannot be recorded, the mark says all the same that they are incomplete.
    await leaveIncomplete(session, places, clock).catch(() => undefined);
    throw explain(options, session, { error, incompleteTargets: run.touched });
  } finally {
    options.signal?.removeEventListener('abort', cancelled);
    await session.whenEnded();
  }
  const { level, base, reason, point, tracks, freezeMs } = session.plan;
  return {
    volume: volume.identity.name,
    level,
    base,
    reason,
    point,
    tracks: tracks.size,
    freezeMs,
    ...run.counters(),
  };
}

async function leaveIncomplete(
  session: BackupSession,
  places: readonly CopyPlace[],
  clock: Clock,
): Promise<void> {
  await session.leaveIncomplete(await lookAfterWriting(places, clock));
}

/** What ended the session first is why; the rest follows from it. */
function explain(
  { signal, volume }: CopyOptions,
  session: BackupSession,
  { error, incompleteTargets }: { readonly error: unknown; readonly incompleteTargets: readonly string[] },
): unknown {
  const first: unknown = session.signal.reason ?? error;
  const note = incompleteNote(incompleteTargets);
  if (signal?.aborted === true && first === signal.reason) {
    return new RestoreError(
      'cancelled',
      `Copy of volume ${volume.identity.name} was cancelled${note}`,
      { incompleteTargets },
      { cause: error },
    );
  }
  return first instanceof Error ? first : new Error(messageOf(first));
}

function nothingToSend({ volume }: CopyOptions, point: string): CopyResult {
  return {
    volume: volume.identity.name,
    level: 'incremental',
    base: point,
    reason: undefined,
    point,
    tracks: 0,
    freezeMs: 0,
    bytesRead: 0,
    bytesWritten: 0,
    bytesZeroed: 0,
    bytesSkipped: 0,
    diverted: 0,
  };
}
