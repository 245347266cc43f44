/**
 * Makes the home of a volume again from the newest set that its delta logs go on from and from the logs (DESIGN section
 * 4, "Deltas"; seeds/1, para 27 and 87).
 *
 *     logs -> what set do they go on from? -> blueprint: what comes from where -> marked -> written -> one commit
 *
 * Each track comes from the cheapest place where it is sure to be right: the logs where they hold all of it, the old home
 * where what it holds has the hash that the set says, the set otherwise; with what the logs hold of it laid over. Nothing is
 * written that was not checked. The volume keeps its id, its points and what changed since them.
 *
 * As of an earlier instant it is the same with fewer records. What was written since is undone then, and as that is a
 * change like any other, it is logged, and counts as changed.
 *
 * A rebuild that was interrupted is run again; until then nobody opens the volume. Where the volume's directory is lost
 * too, it is made from what the logs know. The store is read in this process, so a serving one must not do this.
 */

import { stat } from 'node:fs/promises';
import { type Clock, messageOf } from '../base/index.ts';
import { type ChainPlanEntry, type ChainView, Store, type StoreKey } from '../blockset/index.ts';
import { type DeltaIndex, DeltaReader, DeltaStore } from '../delta/index.ts';
import type { BlockDevice, DeviceRegistry } from '../device/index.ts';
import { joinLogs, LoggedSource } from '../restore/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { createVolume, isVolumeDirectory, Rebuilding } from '../volume/index.ts';
import { DaemonError } from './errors.ts';
import { type Blueprint, drawBlueprint, sureTracks } from './rebuild-blueprint.ts';
import { RebuildWriter } from './rebuild-writer.ts';

export interface RebuildOptions {
  /** The volume's directory, absolute. */
  readonly directory: string;
  /** Absolute; none where the logs reach back to the beginning of the volume. */
  readonly storePath?: string | undefined;
  /** Of an encrypted store. */
  readonly key?: StoreKey | undefined;
  /** Where the new home goes: a path or URI; where the old one was where left out. */
  readonly home?: string | undefined;
  /** Places of the logs; those of the volume where left out. */
  readonly deltas?: readonly string[] | undefined;
  /** As it was after the last write before this time. */
  readonly beforeMs?: number | undefined;
  readonly dryRun?: boolean;
  readonly registry: DeviceRegistry;
  readonly clock: Clock;
  readonly signal?: AbortSignal;
  readonly warn: (sentence: string) => void;
  /** Told before the first write; a throw refuses it. */
  readonly onBlueprint: (blueprint: Blueprint) => void;
  readonly onProgress?: (progress: { readonly bytesDone: number; readonly bytesTotal: number }) => void;
}

export interface RebuildOutcome {
  readonly blueprint: Blueprint;
  readonly bytesWritten: number;
  /** Tracks of which later changes were undone. */
  readonly tracksUndone: number;
}

type Source = LoggedSource<ChainPlanEntry>;

/** What the volume is made from. */
interface Content {
  readonly reader: DeltaReader;
  readonly chain: ChainView | undefined;
  readonly source: Source;
  readonly index: DeltaIndex;
  readonly startPoint: string;
  /** Tracks that were changed later, and are to be as they were. */
  readonly undone: TrackSet;
  /** The last record that there is. */
  readonly lastSequence: number;
}

/**
 * Rebuilds the home; the volume can be served when it resolves.
 *
 * @throws {VolumeError} `in-use`, `recovering`, `has-snapshots`; {DaemonError} `no-deltas`, `no-home`; {RestoreError}
 *   `no-base`; {DeltaError}, {StoreError}, {DeviceError}; {CorruptionError} where what is needed is damaged.
 */
export async function rebuildVolume(options: RebuildOptions): Promise<RebuildOutcome> {
  const found = (await isVolumeDirectory(options.directory))
    ? await Rebuilding.open(options.directory)
    : undefined;
  const open: { volume: Rebuilding | undefined; content: Content | undefined } = {
    volume: found,
    content: undefined,
  };
  try {
    open.content = await openContent(options, found);
    return await rebuild(options, open, open.content);
  } finally {
    await open.content?.chain?.close();
    await open.content?.reader.close();
    await open.volume?.close();
  }
}

async function rebuild(
  options: RebuildOptions,
  open: { volume: Rebuilding | undefined },
  content: Content,
): Promise<RebuildOutcome> {
  const { registry, directory, warn } = options;
  const { source, chain, reader, index, undone } = content;
  if (!undone.isEmpty) open.volume?.assertNoSnapshots();
  const home = homeOf(options, open.volume);
  await assertFree(home, open.volume);
  const oldHome = await openOld(options, open.volume);
  try {
    const sure = await sureTracks({ source, index, chain, home: oldHome, signal: options.signal });
    const sizeBytes = open.volume?.identity.sizeBytes ?? reader.volume.sizeBytes;
    const isInPlace = oldHome !== undefined && home === open.volume?.identity.home;
    const blueprint = drawBlueprint({
      ...content,
      ...reader.volume,
      sizeBytes,
      home,
      sure,
      isInPlace,
      beforeMs: options.beforeMs,
    });
    options.onBlueprint(blueprint);
    if (options.dryRun === true) return { blueprint, bytesWritten: 0, tracksUndone: undone.size };
    const isMade = open.volume === undefined;
    open.volume ??= await makeVolume(options, content);
    const { volume } = open;
    const startedMs = options.clock.now();
    await volume.begin({ home, upTo: content.lastSequence, startedMs });
    const isBlank = (await volume.makeHome(home)) || isMade;
    const target = await registry.open(home, { readOnly: false, syncName: 'home', lock: 'exclusive' });
    try {
      const writer = new RebuildWriter({ ...options, geometry: volume.geometry, target, source, isBlank });
      await writer.write(sure, isInPlace ? undefined : { device: oldHome, chain });
      await target.flush();
      await logUndone(options, volume, target, undone);
      await target.close();
      const changed = isMade ? TrackSet.union([index.touched(), undone]) : undone;
      await volume.finish(home, changed.intersection(TrackSet.all(volume.geometry.trackCount)));
      return { blueprint, bytesWritten: writer.bytesWritten, tracksUndone: undone.size };
    } catch (error) {
      await target.close().catch(() => undefined);
      throw error;
    }
  } catch (error) {
    if (open.volume?.unfinished !== undefined)
      warn(`Volume ${directory} is rebuilt in part, and refused until it is whole`);
    throw error;
  } finally {
    await oldHome?.close();
  }
}

async function openContent(options: RebuildOptions, volume: Rebuilding | undefined): Promise<Content> {
  const { storePath, key, registry, warn, beforeMs } = options;
  const lost = new Set(volume?.lostDeltas);
  const known = volume?.identity.deltas?.places.map(({ place }) => place).filter((place) => !lost.has(place));
  const places = options.deltas ?? known ?? [];
  if (places.length === 0) {
    const message = `Volume ${options.directory} has no delta logs that can be used, wanted --delta <place>`;
    throw new DaemonError('no-deltas', message, { directory: options.directory });
  }
  for (const place of places)
    if (lost.has(place)) warn(`Delta place ${place} was lost before, and may lack what others have`);
  const reader = await DeltaReader.open(places, {
    registry,
    volumeId: volume?.identity.volumeId,
    onDamage: warn,
  });
  let chain: ChainView | undefined;
  try {
    const keyOption = key === undefined ? {} : { key };
    const store =
      storePath === undefined ? undefined : await Store.open(storePath, { readOnly: true, ...keyOption });
    const { set, startPoint } = await joinLogs(store, reader, { beforeMs });
    chain = set === undefined ? undefined : await store?.chain(set.id);
    const upTo = volume?.unfinished?.upTo;
    const index = await reader.index(startPoint, { beforeMs, upTo });
    const later = await changedLater(reader, startPoint, { beforeMs, upTo });
    const lastSequence = Math.max(index.lastSequence, later.lastSequence);
    const source = new LoggedSource(chain, index);
    return { reader, chain, source, index, startPoint, undone: later.tracks, lastSequence };
  } catch (error) {
    await chain?.close();
    await reader.close();
    throw error;
  }
}

/** Tracks with changes that are left out. */
async function changedLater(
  reader: DeltaReader,
  startPoint: string,
  {
    beforeMs = Infinity,
    upTo = Infinity,
  }: { readonly beforeMs?: number | undefined; readonly upTo?: number | undefined },
): Promise<{ readonly tracks: TrackSet; readonly lastSequence: number }> {
  const tracks = TrackSet.empty();
  let lastSequence = 0;
  if (beforeMs === Infinity && upTo === Infinity) return { tracks, lastSequence };
  const { trackSizeBytes } = reader.volume;
  for await (const { kind, sequence, timeMs, offsetBytes, lengthBytes } of reader.records(startPoint)) {
    lastSequence = sequence;
    if (timeMs < beforeMs && sequence <= upTo) continue;
    if (kind !== 'write' && kind !== 'zeroes') continue;
    const first = Math.floor(offsetBytes / trackSizeBytes);
    const last = Math.floor((offsetBytes + lengthBytes - 1) / trackSizeBytes);
    tracks.addRun({ first, count: last - first + 1 });
  }
  return { tracks, lastSequence };
}

/** @throws {DaemonError} `no-home` */
function homeOf({ home, directory }: RebuildOptions, volume: Rebuilding | undefined): string {
  const place = home ?? volume?.unfinished?.home;
  if (place !== undefined) return place;
  if (volume === undefined) return `${directory}/home.raw`;
  if (volume.identity.layout === undefined) return volume.identity.home;
  const message = `Volume ${directory} has a home of several parts, wanted --home <place> for all of it`;
  throw new DaemonError('no-home', message, { directory });
}

/**
 * A file that is none of this volume's is not written over.
 *
 * @throws {DaemonError} `no-home`
 */
async function assertFree(home: string, volume: Rebuilding | undefined): Promise<void> {
  if (home === volume?.identity.home || home === volume?.unfinished?.home) return;
  const found = await stat(home).catch(() => undefined);
  if (found?.isFile() !== true) return;
  const message = `File ${home} is there already, wanted the name of a new one for the home`;
  throw new DaemonError('no-home', message, { directory: home });
}

/** What is left of the old home, for reading. */
async function openOld(
  { registry, warn }: RebuildOptions,
  volume: Rebuilding | undefined,
): Promise<BlockDevice | undefined> {
  if (volume === undefined || volume.identity.layout !== undefined) return undefined;
  try {
    const device = await registry.open(volume.identity.home, { readOnly: true, syncName: 'home' });
    if (device.sizeBytes >= volume.geometry.sizeBytes) return device;
    await device.close();
  } catch (error) {
    warn(`Nothing is taken from the old home: ${messageOf(error)}`);
  }
  return undefined;
}

async function makeVolume(
  options: RebuildOptions,
  { reader, chain, startPoint, lastSequence }: Content,
): Promise<Rebuilding> {
  const { volumeId, sizeBytes, trackSizeBytes } = reader.volume;
  const { directory, clock, home, deltas = [] } = options;
  const createdMs = chain?.header.createdMs ?? 0;
  await createVolume(directory, {
    sizeBytes,
    trackSizeBytes,
    clock,
    ...(home === undefined ? {} : { home }),
    deltas: { places: deltas.map((place) => ({ place })) },
    again: {
      volumeId,
      upTo: lastSequence,
      ...(startPoint === '' ? {} : { point: { point: startPoint, createdMs } }),
    },
  });
  return await Rebuilding.open(directory);
}

/** What is undone is a change, and the logs have to tell it. */
async function logUndone(
  { registry, clock }: RebuildOptions,
  volume: Rebuilding,
  target: BlockDevice,
  undone: TrackSet,
): Promise<void> {
  const { identity, geometry } = volume;
  if (undone.isEmpty || identity.deltas === undefined) return;
  const store = await DeltaStore.open({
    volumeId: identity.volumeId,
    volumeName: identity.name,
    trackSizeBytes: geometry.trackSizeBytes,
    sizeBytes: () => geometry.sizeBytes,
    startPoint: volume.lastPoint,
    isNew: false,
    members: identity.deltas.places,
    lostMembers: volume.lostDeltas,
    registry,
    clock,
    onMemberLost: (place, error) => volume.deltaLost(place, error, clock.now()),
  });
  try {
    for (const track of undone) {
      if (track >= geometry.trackCount) continue;
      const source = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
      await target.read(source, geometry.offsetOf(track));
      await store.append({ kind: 'write', source }, geometry.offsetOf(track), source.length);
    }
    await store.flush();
  } finally {
    await store.close();
  }
}
