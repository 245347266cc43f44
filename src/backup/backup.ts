/**
 * One backup from freeze to sealed set, on the side of the store. The flow reads top to bottom:
 *
 *     freeze -> plan -> lane: read, hash, compress -> block set -> seal -> catalog -> consumer's point
 *
 * Write order (DESIGN section 5): the set's data and metadata are durable, then the volume confirms that the
 * point is, then the seal, the names and the catalog; the consumer's point moves last. Cut anywhere, the set is
 * complete or invisible and the changes are still known.
 */

import { type Clock, systemClock } from '../base/index.ts';
import { type ChainView, type Store, StoreError } from '../blockset/index.ts';
import { Geometry } from '../volume/index.ts';
import { baseCandidates } from './candidates.ts';
import { Lane, type LaneOptions } from './lane.ts';
import type { Codec, Level, SetOutcome } from './messages.ts';
import type { SessionSource } from './source.ts';

export interface BackUpOptions extends Pick<
  LaneOptions,
  'signal' | 'onProgress' | 'runBytesMax' | 'drainBytesMax'
> {
  readonly source: SessionSource;
  readonly store: Store;
  readonly level: Level;
  readonly codec: Codec;
  readonly clock?: Clock;
}

/**
 * Takes a backup of the source's volume into the store.
 *
 * @throws what the source and the store throw; no set is visible then, unless its seal was durable already.
 */
export async function backUp(options: BackUpOptions): Promise<SetOutcome> {
  const { source, store, level } = options;
  const clock = options.clock ?? systemClock;
  const startedMs = clock.monotonicMs();
  const { volumeId, name, trackSizeBytes } = source.volume;
  // A full set builds on none of them, but must not be of an older point than they are.
  const offered = await baseCandidates(store, volumeId);
  const plan = await source.begin({ consumer: store.id, level, ...offered });
  const { sizeBytes } = plan;
  const base = plan.base === undefined ? undefined : await openBase(store, volumeId, plan.base);
  const set = await store.createSet({
    volumeId,
    volumeName: name,
    level: plan.level,
    base: plan.base ?? null,
    point: plan.point,
    sizeBytes,
    trackSizeBytes,
    codec: options.codec,
  });
  try {
    const lane = new Lane({ ...options, plan, geometry: new Geometry(sizeBytes, trackSizeBytes), set, base });
    const { bytesRead, divertedCount } = await lane.run();
    const counters = await set.finish({ bytesRead, diverted: divertedCount, unchanged: 0 });
    await source.mayComplete();
    await set.seal();
    await source.complete(set.id);
    return {
      set: set.id,
      volume: name,
      level: plan.level,
      reason: plan.reason,
      point: plan.point,
      base: plan.base,
      tracks: counters.tracks,
      bytesRead,
      bytesStored: counters.bytesStored,
      diverted: divertedCount,
      freezeMs: plan.freezeMs,
      durationMs: clock.monotonicMs() - startedMs,
    };
  } finally {
    await closeAll(set, base);
  }
}

/** The effective content at the base point: what the new set may leave out against. */
async function openBase(store: Store, volumeId: string, point: string): Promise<ChainView> {
  const set = await store.setWithPoint(volumeId, point);
  if (set === undefined) {
    throw new StoreError('missing-base', `Store ${store.path} no longer has a set with point ${point}`, {
      set: '',
      base: point,
    });
  }
  return store.chain(set.id);
}

/** Without effect on a set that was sealed. */
async function closeAll(set: { abort(): Promise<void> }, base: ChainView | undefined): Promise<void> {
  try {
    await set.abort();
  } finally {
    await base?.close();
  }
}
