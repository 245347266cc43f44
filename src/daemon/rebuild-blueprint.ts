/** What a rebuild takes from where, before it is begun. */

import type { ChainPlanEntry, ChainView } from '../blockset/index.ts';
import type { DeltaIndex } from '../delta/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { digest } from '../records/index.ts';
import type { LoggedSource } from '../restore/index.ts';
import { TrackSet } from '../tracks/index.ts';

/** Tracks, or their bytes, by where they come from. */
export interface BlueprintShares {
  /** From the logs alone. */
  readonly deltas: number;
  /** From the old home, as the set has them. */
  readonly home: number;
  /** From the set. */
  readonly store: number;
  /** From the set, with a part from the logs. */
  readonly storeAndDeltas: number;
  readonly zero: number;
}

export interface Blueprint {
  readonly volume: string;
  readonly volumeId: string;
  readonly sizeBytes: number;
  readonly home: string;
  /** The old home is written over where it is wrong. */
  readonly isInPlace: boolean;
  /** The set that the logs go on from; null where they reach back to the beginning of the volume. */
  readonly set: string | null;
  /** The point that they go on from. */
  readonly point: string;
  /** Records of an earlier time only; null for all there are. */
  readonly beforeMs: number | null;
  readonly tracks: BlueprintShares;
  readonly bytes: BlueprintShares;
  /** Sets that are read. */
  readonly sets: readonly string[];
  /** Tracks of which later changes are undone. */
  readonly tracksUndone: number;
}

export interface BlueprintParts {
  readonly source: LoggedSource<ChainPlanEntry>;
  readonly index: Pick<DeltaIndex, 'touched'>;
  readonly chain: ChainView | undefined;
  readonly startPoint: string;
  readonly undone: TrackSet;
  readonly name: string;
  readonly volumeId: string;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly home: string;
  readonly isInPlace: boolean;
  /** Tracks that the old home is sure to hold. */
  readonly sure: TrackSet;
  readonly beforeMs: number | undefined;
}

export function drawBlueprint(parts: BlueprintParts): Blueprint {
  const { source, index, chain, sure, sizeBytes, trackSizeBytes } = parts;
  const trackCount = Math.ceil(sizeBytes / trackSizeBytes);
  const all = TrackSet.all(trackCount);
  const content = source.tracks().intersection(all);
  const fromSet = source.fromSet(content).difference(sure);
  const mixed = fromSet.intersection(index.touched());
  const shares: Record<keyof BlueprintShares, TrackSet> = {
    deltas: content.difference(fromSet).difference(sure),
    home: sure,
    store: fromSet.difference(mixed),
    storeAndDeltas: mixed,
    zero: all.difference(content),
  };
  const sets = new Set<string>();
  if (chain !== undefined && !fromSet.isEmpty)
    for (const { set } of chain.readPlan(fromSet)) if (set !== undefined) sets.add(set);
  const bytesOf = (tracks: TrackSet): number => {
    const missing = tracks.last === trackCount - 1 ? trackCount * trackSizeBytes - sizeBytes : 0;
    return tracks.size * trackSizeBytes - missing;
  };
  const each = (measure: (tracks: TrackSet) => number): BlueprintShares => ({
    deltas: measure(shares.deltas),
    home: measure(shares.home),
    store: measure(shares.store),
    storeAndDeltas: measure(shares.storeAndDeltas),
    zero: measure(shares.zero),
  });
  return {
    volume: parts.name,
    volumeId: parts.volumeId,
    sizeBytes,
    home: parts.home,
    isInPlace: parts.isInPlace,
    set: chain?.header.id ?? null,
    point: parts.startPoint,
    beforeMs: parts.beforeMs ?? null,
    tracks: each((tracks) => tracks.size),
    bytes: each(bytesOf),
    sets: [...sets],
    tracksUndone: parts.undone.size,
  };
}

/**
 * The tracks that what is left of the home is sure to hold: as the set has them, by their hash, and not changed since by
 * any record that counts.
 */
export async function sureTracks(parts: {
  readonly source: LoggedSource<ChainPlanEntry>;
  readonly index: Pick<DeltaIndex, 'touched'>;
  readonly chain: ChainView | undefined;
  readonly home: BlockDevice | undefined;
  readonly signal?: AbortSignal | undefined;
}): Promise<TrackSet> {
  const { source, index, chain, home, signal } = parts;
  const sure = TrackSet.empty();
  if (chain === undefined || home === undefined) return sure;
  for (const track of source.fromSet(source.tracks()).difference(index.touched())) {
    signal?.throwIfAborted();
    if ((await readSure(home, chain, track)) !== undefined) sure.add(track);
  }
  return sure;
}

/** A track of the home where it is what the set has; a fresh buffer. */
export async function readSure(
  home: BlockDevice,
  chain: ChainView,
  track: number,
): Promise<Buffer | undefined> {
  const { trackSizeBytes, sizeBytes } = chain;
  const content = Buffer.allocUnsafe(Math.min(trackSizeBytes, sizeBytes - track * trackSizeBytes));
  try {
    await home.read(content, track * trackSizeBytes);
  } catch {
    // It is lost there, and comes from the set.
    return undefined;
  }
  return chain.hashOf(track)?.equals(digest(content)) === true ? content : undefined;
}
