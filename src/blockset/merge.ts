/**
 * Merges sets that follow each other in a chain into one that stands for the newest of them: it has its point, its place
 * in the lineage and its time, and builds on what the oldest of them builds on. Merged down to the full set it is a
 * synthetic full; the volume is never opened (MISSION M13; seeds/2, Fig. 25-26).
 *
 *     sets are taken newest first; of each, in the order of arrival, the tracks that the result has not yet
 *     the result is finished and sealed as any set is
 *     then every byte of it is read, and its tracks and hashes are compared with those of the sources
 *
 * Only what was compared may replace its sources: removing them is the caller's next step (`Store.remove`). Since sets
 * name their base by point, those that built on the newest source then build on the result.
 *
 * Cut anywhere, the sources are as before; an unsealed result is removed at the next opening of the store. Where a
 * sealed one is found, it is compared and used again, so that the same call, made again, goes on from there.
 *
 * The sources are leased meanwhile. LMDB works synchronously: merging belongs into a process of its own.
 */

import { CorruptionError, LIMITS, present } from '../base/index.ts';
import { digest } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { StoreError } from './errors.ts';
import { chainOf, completeSets, isKnown, type KnownSet, ownKey, type StoredSet } from './lineage.ts';
import type { RemovalOptions, RemovalResult } from './removal.ts';
import type { FramePlan } from './lane-reader.ts';
import { type SealedSet, trackBytesOf, trackCountOf } from './set-format.ts';
import type { SetReader } from './set-reader.ts';
import type { SetWriter } from './set-writer.ts';
import type { Store } from './store.ts';

/** Frames from this size on are copied as they are; smaller ones, as many incrementals leave them, are gathered. */
const PACKED_BYTES_MIN = LIMITS.frameBytesMax / 2;

export interface MergeOptions {
  /** Looked at between frames; an aborted merge leaves the sources and no result. */
  readonly signal?: AbortSignal;
  /** Called with the bytes of content written, and again with those compared, since the last call. */
  readonly onProgress?: (bytes: number) => void;
}

export interface MergedSet {
  /** The id of the result. */
  readonly set: string;
  readonly point: string;
  /** The point that the result builds on; null for a synthetic full. */
  readonly base: string | null;
  /** The sets that it stands for, newest first. */
  readonly sources: readonly string[];
  /** Whether the store had it already, made by a merge that was interrupted, or that kept its sources. */
  readonly isReused: boolean;
  /** Bytes of its frames as stored. */
  readonly bytesStored: number;
}

/** What one source gives to the result. */
interface Part {
  readonly reader: SetReader;
  /** Tracks with content. */
  readonly content: TrackSet;
  /** Tracks that it records as zeroes. */
  readonly zeroes: TrackSet;
}

/**
 * Merges sets into one, compared with them when this returns.
 *
 * @param ids whole ids, newest first, each building on the point of the next; at least two.
 * @throws {StoreError} `no-chain`, `removed`, `read-only`, `no-space`, `io` or `locked`.
 * @throws {CorruptionError} where a source is damaged, or the result is not what the sources hold; such a result is
 *   removed again.
 */
export async function mergeSets(
  store: Store,
  ids: readonly string[],
  options: MergeOptions = {},
): Promise<MergedSet> {
  const sets = await store.list();
  const sources = consecutive(sets, ids);
  const readers: SetReader[] = [];
  try {
    for (const source of sources) readers.push(store.openSet(source));
    const parts = partsOf(readers);
    const made = findResult(sets, sources) ?? (await write(store, sources, parts, options));
    await compareOrRemove(store, made.set, parts, options);
    const { point } = present(sources[0], 'There are two sources').header;
    const { base } = present(sources.at(-1), 'There are two sources').header;
    return { ...made, point, base, sources: ids };
  } finally {
    for (const reader of readers) await reader.close();
  }
}

export interface MergeChainOptions extends MergeOptions, Pick<RemovalOptions, 'mayRemove'> {
  /** Leave the sources where they are. */
  readonly keepSources?: boolean;
}

/**
 * Merges a set and all it builds on into a synthetic full, then removes the sources that nothing else needs.
 *
 * @param setId a whole id, as `find` gives it.
 * @returns without `merged` where the set is full already and stands for no other; what was not removed, and why.
 * @throws what `mergeSets` and `Store.remove` throw.
 */
export async function mergeChain(
  store: Store,
  setId: string,
  options: MergeChainOptions = {},
): Promise<RemovalResult & { readonly merged?: MergedSet }> {
  const sets = await store.list();
  const chain = chainOf(sets, startFor(sets, setId)).map(({ id }) => id);
  if (chain.length === 1) return { removed: [], refused: [] };
  const merged = await mergeSets(store, chain, options);
  if (options.keepSources === true) return { merged, removed: [], refused: [] };
  const { mayRemove } = options;
  const keepPoints = [merged.point];
  const removal = await store.remove(chain, {
    keepPoints,
    ...(mayRemove === undefined ? {} : { mayRemove }),
  });
  return { merged, ...removal };
}

/** A merge that was cut may have left its sources beside the result: it is they that are to be merged then. */
function startFor(sets: readonly StoredSet[], setId: string): string {
  const set = sets.find(({ id }) => id === setId);
  if (set === undefined || !isKnown(set) || set.header.level !== 'full') return setId;
  const key = ownKey(set);
  const sources = [...completeSets(sets)].filter(isKnown);
  return sources.find((other) => other.header.base !== null && ownKey(other) === key)?.id ?? setId;
}

/** The sets themselves, checked to follow each other. */
function consecutive(sets: readonly StoredSet[], ids: readonly string[]): KnownSet[] {
  const byId = new Map(sets.map((set) => [set.id, set]));
  const sources = ids.flatMap((id) => byId.get(id) ?? []).filter(isKnown);
  const isChain = sources.every((set, index) => {
    const next = sources[index + 1];
    if (set.damage !== undefined) return false;
    if (next === undefined) return true;
    const { volumeId, trackSizeBytes, base } = set.header;
    return (
      next.header.point === base &&
      next.header.volumeId === volumeId &&
      next.header.trackSizeBytes === trackSizeBytes
    );
  });
  if (isChain && sources.length === ids.length && ids.length >= 2) return sources;
  throw new StoreError(
    'no-chain',
    `Sets ${ids.join(', ')} cannot be merged: they are not two or more undamaged sets, each building on the next`,
    { sets: ids },
  );
}

/** A set that stands for the sources already: the same point on the same base, whole to look at. */
function findResult(
  sets: readonly StoredSet[],
  sources: readonly KnownSet[],
): { set: string; isReused: boolean; bytesStored: number } | undefined {
  const newest = present(sources[0], 'There are two sources').header;
  const { base } = present(sources.at(-1), 'There are two sources').header;
  const found = sets.find(
    ({ header, damage }) =>
      damage === undefined &&
      header?.volumeId === newest.volumeId &&
      header.trackSizeBytes === newest.trackSizeBytes &&
      header.point === newest.point &&
      header.base === base,
  );
  if (found === undefined) return undefined;
  return { set: found.id, isReused: true, bytesStored: found.counters?.bytesStored ?? 0 };
}

/** Newest first, each track from the first that has it. */
function partsOf(readers: readonly SetReader[]): Part[] {
  const open = TrackSet.all(trackCountOf(present(readers[0], 'There are two sources').header));
  return readers.map((reader) => {
    const own = reader.present.intersection(open);
    open.deleteAll(own);
    return { reader, content: own.difference(reader.zeroes), zeroes: own.intersection(reader.zeroes) };
  });
}

async function write(
  store: Store,
  sources: readonly KnownSet[],
  parts: readonly Part[],
  options: MergeOptions,
): Promise<{ set: string; isReused: boolean; bytesStored: number }> {
  const { header } = present(sources[0], 'There are two sources');
  const { level, base } = present(sources.at(-1), 'There are two sources').header;
  const { volumeId, volumeName, point, previous, createdMs, sizeBytes, trackSizeBytes, codec } = header;
  const writer = await store.createSet({
    volumeId,
    volumeName,
    level,
    base,
    point,
    previous,
    createdMs,
    sizeBytes,
    trackSizeBytes,
    codec,
  });
  let sealed: SealedSet;
  try {
    for (const part of parts) {
      copyPart(part, writer, options);
      // Under a full set there is nothing that its zeroes would hide.
      if (base !== null) for (const track of part.zeroes) writer.addZero(track);
    }
    await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
    options.signal?.throwIfAborted();
    sealed = await writer.seal();
  } finally {
    await writer.abort();
  }
  return { set: sealed.header.id, isReused: false, bytesStored: sealed.counters.bytesStored };
}

function copyPart({ reader, content }: Part, writer: SetWriter, options: MergeOptions): void {
  for (const plan of reader.readPlan(content)) {
    options.signal?.throwIfAborted();
    if (!copyPacked(reader, plan, writer)) copyTracks(reader, plan, writer);
    options.onProgress?.(plan.tracks.length * reader.header.trackSizeBytes);
  }
}

/** Copies a frame as it is stored, where all of it is wanted and it is not one of the small ones that gather better. */
function copyPacked(reader: SetReader, plan: FramePlan, writer: SetWriter): boolean {
  const { trackSizeBytes } = reader.header;
  if (plan.tracks.length * trackSizeBytes < PACKED_BYTES_MIN) return false;
  const isResized = plan.tracks.some(
    (track) => trackBytesOf(reader.header, track) !== trackBytesOf(writer.header, track),
  );
  if (isResized) return false;
  const packed = reader.packedFrame(plan);
  const wanted = new Set(packed.places.map(({ position }) => position));
  if (wanted.size < packed.trackCount || packed.rawBytes < PACKED_BYTES_MIN) return false;
  writer.addPacked(packed);
  return true;
}

function copyTracks(reader: SetReader, plan: FramePlan, writer: SetWriter): void {
  const firstAt = new Map<number, number>();
  for (const { track, content } of reader.readFrame(plan)) {
    const wanted = trackBytesOf(writer.header, track);
    if (content.length !== wanted) {
      // The last track of a set that was taken before the volume grew is shorter than the track is now.
      writer.add(track, Buffer.concat([content], wanted));
      continue;
    }
    const { position } = present(reader.placeOf(track), 'A track that was read has a place');
    const same = firstAt.get(position);
    if (same !== undefined) writer.addAlias(track, same);
    else writer.add(track, content, reader.hashOf(track));
    firstAt.set(position, same ?? track);
  }
}

async function compareOrRemove(
  store: Store,
  id: string,
  parts: readonly Part[],
  options: MergeOptions,
): Promise<void> {
  const result = store.openSet(await store.find(id));
  let isSame = false;
  try {
    compare(result, parts, options);
    isSame = true;
  } catch (error) {
    // An interruption says nothing about the result.
    if (!(error instanceof CorruptionError)) isSame = true;
    throw error;
  } finally {
    await result.close();
    if (!isSame) await store.remove([id]);
  }
}

/** Every byte against the result's own hashes, and these and the tracks against the sources'. */
function compare(result: SetReader, parts: readonly Part[], options: MergeOptions): void {
  const { header } = result;
  const content = TrackSet.union(parts.map((part) => part.content));
  const zeroes = TrackSet.union(parts.map((part) => part.zeroes));
  const stored = result.present.difference(result.zeroes);
  const differing = symmetricDifference(content, stored);
  if (header.base !== null) differing.addAll(symmetricDifference(zeroes, result.zeroes));
  for (const { reader, content: tracks } of parts) {
    for (const track of tracks.intersection(stored)) {
      if (!isSameTrack(result, reader, track)) differing.add(track);
    }
  }
  if (!differing.isEmpty) {
    const message = `Merged set ${result.id} differs from its sources in ${differing.size} tracks`;
    throw new CorruptionError(message, { where: result.path, tracks: differing.toArray() });
  }
  for (const plan of result.readPlan(stored)) {
    options.signal?.throwIfAborted();
    result.readFrame(plan);
    options.onProgress?.(plan.tracks.length * header.trackSizeBytes);
  }
}

function symmetricDifference(one: TrackSet, other: TrackSet): TrackSet {
  return TrackSet.union([one.difference(other), other.difference(one)]);
}

function isSameTrack(result: SetReader, source: SetReader, track: number): boolean {
  const found = present(result.hashOf(track), 'A stored track has a hash');
  const wanted = trackBytesOf(result.header, track);
  if (trackBytesOf(source.header, track) === wanted) {
    return source.hashOf(track)?.equals(found) === true;
  }
  // Lengthened since: another length, another hash.
  const content = present(source.readTrack(track), 'A track with content');
  return digest(Buffer.concat([content], wanted)).equals(found);
}
