/**
 * Which points a store offers as the base of an incremental set, the newest first. The volume takes the first
 * that it still knows.
 *
 * Points without a complete chain are not offered. Where the newest one's chain turns out to be damaged when it
 * is read, none is: then a full set is taken, and the reason is said.
 */

import { CorruptionError } from '../base/index.ts';
import type { Store } from '../blockset/index.ts';

export interface Candidates {
  readonly candidates: readonly string[];
  /** Why there are none, where something stands in the way. */
  readonly reason?: string;
}

export async function baseCandidates(store: Store, volumeId: string): Promise<Candidates> {
  const points = await store.newestPoints(volumeId);
  const newest = points[0]?.sets[0];
  if (newest === undefined) {
    const hasSets = (await store.list()).some(({ header }) => header?.volumeId === volumeId);
    return hasSets
      ? { candidates: [], reason: 'no set of this volume in the store has a complete, undamaged chain' }
      : { candidates: [] };
  }
  try {
    const chain = await store.chain(newest.id);
    await chain.close();
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    return { candidates: [], reason: `the chain of set ${newest.id} is damaged: ${error.message}` };
  }
  return { candidates: points.map(({ point }) => point) };
}
