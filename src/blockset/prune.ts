/**
 * Prunes a store: merges what kept sets need of others, then removes what a plan (prune-plan.ts) says may go. A merge is
 * compared with its sources before one of them goes, and each removal asks again, under the store's lock, whether the set
 * is leased, protected or needed by then (removal.ts): between plan and removal readers and sessions come and go. What
 * has to stay is reported, and the next run tries again.
 *
 * Cut anywhere, every kept point can be read: each step leaves the points of the plan, and a later run goes on.
 */

import { CorruptionError } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { mergeSets, type MergeOptions } from './merge.ts';
import { planPrune, type PrunePlan, type PruneWish } from './prune-plan.ts';
import type { RefusedSet, RemovalOptions } from './removal.ts';
import type { StoredSet } from './lineage.ts';
import type { Store } from './store.ts';

export interface PruneOptions
  extends Omit<PruneWish, 'leased'>, MergeOptions, Pick<RemovalOptions, 'mayRemove'> {
  /** Make the plan and do nothing. */
  readonly dryRun?: boolean;
}

export interface PruneResult {
  readonly plan: PrunePlan;
  /** Merged sets, by the ids of their sources joined as in the plan. */
  readonly merged: readonly { readonly set: string; readonly sources: readonly string[] }[];
  readonly removed: readonly StoredSet[];
  readonly refused: readonly RefusedSet[];
}

/**
 * Prunes a store, or tells what it would do.
 *
 * @throws {StoreError} `read-only`, `no-space`, `io` or `locked`.
 * @throws {CorruptionError} where a set that is to be merged is damaged; what was done until then stays done.
 */
export async function prune(store: Store, options: PruneOptions): Promise<PruneResult> {
  const plan = planPrune(await store.list(), { ...options, leased: await store.leasedSets() });
  if (options.dryRun === true) return { plan, merged: [], removed: [], refused: [] };
  const { keepPoints } = plan;
  const { mayRemove } = options;
  const removal = { keepPoints, ...(mayRemove === undefined ? {} : { mayRemove }) };
  const removed: StoredSet[] = [];
  const refused: RefusedSet[] = [];
  const remove = async (ids: readonly string[]): Promise<void> => {
    if (ids.length === 0) return;
    const result = await store.remove(ids, removal);
    removed.push(...result.removed);
    refused.push(...result.refused);
  };
  for (const { set, other } of plan.comparisons) await compareSets(store, set, other, options);
  // First what nobody needs, so that its room is there for the merges.
  const merging = new Set(plan.merges.flat());
  await remove(plan.going.filter((id) => !merging.has(id)));
  const merged: { set: string; sources: readonly string[] }[] = [];
  for (const sources of plan.merges) {
    options.signal?.throwIfAborted();
    const { set } = await mergeSets(store, sources, options);
    merged.push({ set, sources });
    await remove(sources);
  }
  return { plan, merged, removed, refused };
}

/** Compares a set that is to stand for another, through their chains, and reads every byte of it. */
async function compareSets(store: Store, id: string, other: string, options: MergeOptions): Promise<void> {
  const [one, two] = [await store.chain(id), await store.chain(other)];
  const reader = store.openSet(await store.find(id));
  try {
    const tracks = one.tracks();
    const differing = TrackSet.union([tracks.difference(two.tracks()), two.tracks().difference(tracks)]);
    for (const track of tracks.difference(differing)) {
      if (one.hashOf(track)?.equals(two.hashOf(track) ?? Buffer.alloc(0)) !== true) differing.add(track);
    }
    if (!differing.isEmpty) {
      const message = `Set ${id} differs from set ${other} of the same point in ${differing.size} tracks`;
      throw new CorruptionError(message, { where: reader.path, tracks: differing.toArray() });
    }
    for (const plan of reader.readPlan(reader.present)) {
      options.signal?.throwIfAborted();
      reader.readFrame(plan);
      options.onProgress?.(plan.tracks.length * reader.header.trackSizeBytes);
    }
  } finally {
    await reader.close();
    await two.close();
    await one.close();
  }
}
