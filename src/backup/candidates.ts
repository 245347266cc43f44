/**
 * Which points a store offers as the base of a set, the newest first. The volume takes the first of the wanted kind
 * that it still knows.
 *
 * Points without a complete chain are not offered. Where the chain of the newest one of the wanted kind turns out
 * to be damaged when it is read, none is: then a full set is taken, and the reason is said.
 */

import { CorruptionError } from '../base/index.ts';
import type { ChainView, Store, StoredPoint } from '../blockset/index.ts';
import type { BaseCandidate } from '../volume/index.ts';
import type { Level } from './messages.ts';

export interface Candidates {
  readonly candidates: readonly BaseCandidate[];
  /** Why there are none, where something stands in the way. */
  readonly reason?: string;
}

export interface Offer {
  readonly offered: Candidates;
  /** The chain of the newest point of the wanted kind, and so leased; the caller closes it. */
  readonly chain: ChainView | undefined;
}

/** @param level what the set is to be: a differential one builds on the newest full one. */
export async function offerBases(store: Store, volumeId: string, level: Level): Promise<Offer> {
  const points = await store.newestPoints(volumeId);
  if (points.length === 0) {
    const hasSets = (await store.list()).some(({ header }) => header?.volumeId === volumeId);
    const reason = 'no set of this volume in the store has a complete, undamaged chain';
    return { offered: { candidates: [], ...(hasSets ? { reason } : {}) }, chain: undefined };
  }
  const wanted = level === 'differential' ? points.find(({ isFull }) => isFull) : points[0];
  const set = wanted?.sets[0];
  let chain: ChainView | undefined;
  try {
    chain = set === undefined ? undefined : await store.chain(set.id);
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    const reason = `the chain of set ${set?.id} is damaged: ${error.message}`;
    return { offered: { candidates: [], reason }, chain: undefined };
  }
  const byPoint = new Map(points.map((point) => [point.point, point]));
  const candidates = points.map((point) => ({
    point: point.point,
    isFull: point.isFull,
    chainSetCount: chainSetCount(point, byPoint),
  }));
  return { offered: { candidates }, chain };
}

/** How many sets the point is read from, each by the one that is preferred for its point. */
function chainSetCount(start: StoredPoint, byPoint: ReadonlyMap<string, StoredPoint>): number {
  let count = 1;
  for (let point: StoredPoint | undefined = start; count < byPoint.size; count += 1) {
    const base: string | null = point?.sets[0]?.header?.base ?? null;
    if (base === null) break;
    point = byPoint.get(base);
  }
  return count;
}
