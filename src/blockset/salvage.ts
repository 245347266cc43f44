/**
 * A chain to be salvaged: sets that are damaged take their place in it with what can be read of them, and where a set
 * is missing altogether the chain ends before it.
 *
 * Of several sets that hold one point the one is taken that lost least: they hold the same content. No set of another
 * point ever stands in.
 */

import { CorruptionError, messageOf } from '../base/index.ts';
import { ChainView } from './chain-view.ts';
import { StoreError } from './errors.ts';
import { byPreference, isKnown, type StoredSet } from './lineage.ts';
import { isUnreadable, type SalvagedSet } from './salvaged-set.ts';

/**
 * The volume at a set's point, as far as the sets allow; the caller closes it.
 *
 * @param sets all of the store.
 * @param open opens a set as far as it goes.
 * @throws {StoreError} `unknown-set`.
 * @throws {CorruptionError} where nothing of the set itself can be read.
 */
export async function salvageChain(
  sets: readonly StoredSet[],
  id: string,
  open: (set: StoredSet) => SalvagedSet,
): Promise<ChainView> {
  const start = sets.find((set) => set.id === id);
  if (start === undefined) {
    throw new StoreError('unknown-set', `No set in the store is ${id}`, { selector: id, candidates: [] });
  }
  const chain = [open(start)];
  const findings: string[] = [];
  let isCut = false;
  try {
    for (let newest = chain[0]; newest !== undefined && newest.header.base !== null;) {
      const next = await openBase(sets, newest, { open, seen: chain, findings });
      if (next === undefined) {
        findings.push(
          `Set ${newest.id} builds on point ${newest.header.base}, of which nothing can be read: what it had is lost`,
        );
        isCut = true;
      } else chain.push(next);
      newest = next;
    }
  } catch (error) {
    for (const set of chain) await set.close();
    throw error;
  }
  return new ChainView(chain, { isCut, findings: [...chain.flatMap((set) => set.findings), ...findings] });
}

/** Of the sets that hold the base point, the one that lost least. */
async function openBase(
  sets: readonly StoredSet[],
  { header }: SalvagedSet,
  of: {
    readonly open: (set: StoredSet) => SalvagedSet;
    readonly seen: readonly SalvagedSet[];
    readonly findings: string[];
  },
): Promise<SalvagedSet | undefined> {
  const candidates = sets
    .filter(isKnown)
    .filter(
      (set) =>
        set.header.point === header.base &&
        set.header.volumeId === header.volumeId &&
        set.header.trackSizeBytes === header.trackSizeBytes &&
        of.seen.every(({ id }) => id !== set.id),
    )
    .sort(byPreference);
  let best: SalvagedSet | undefined;
  for (const candidate of candidates) {
    if (best?.lost.isEmpty === true) break;
    let opened: SalvagedSet;
    try {
      opened = of.open(candidate);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      of.findings.push(error instanceof CorruptionError ? error.message : messageOf(error));
      continue;
    }
    const isBetter = best === undefined || opened.lost.size < best.lost.size;
    await (isBetter ? best : opened)?.close();
    if (isBetter) best = opened;
  }
  return best;
}
