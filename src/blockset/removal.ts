/**
 * Removes sets from a store. It is asked to remove, and itself decides what may go: never what is protected, leased, or
 * needed by a set that stays.
 *
 * Sets go one by one, those first that others do not build on, so that a removal that is cut leaves no set without
 * its base. For each, with the store's lock and its own lock held:
 *
 *     what its points come after is written down     sync `store-directory`  (ancestry.ts)
 *     lane 0 is renamed to `<id>-0.cbs.removed`      sync `set-directory`
 *     its entry leaves the catalog                   sync `catalog`
 *     the files of all lanes are unlinked, lane 0 last
 *
 * Where several sets go, what is to go is written down first (`removing`), and forgotten last: the next opening goes on
 * where a cut came between two of them.
 *
 * The rename decides. Cut before it, the set is as it was; cut after it, the set is gone, and the next opening of the
 * store for writing finishes the rest. While only some of it was done, the catalog may name the set still: whoever reads
 * the catalog leaves out what has a `.removed` file.
 */

import { renameSync } from 'node:fs';
import { dirname } from 'node:path';
import { LIMITS, syncDirectory } from '../base/index.ts';
import { type Lease, shutOutLeases } from './leases.ts';
import {
  baseKey,
  completeSets,
  dependentsFirst,
  isKnown,
  type KnownSet,
  ownKey,
  setsByPoint,
  type StoredSet,
} from './lineage.ts';
import { removedPath } from './set-files.ts';
import { membersOf } from './state-file.ts';

export interface RefusedSet {
  readonly set: StoredSet;
  readonly reason: 'protected' | 'leased' | 'needed' | 'refused';
  /** One sentence naming the set and what stands in the way. */
  readonly message: string;
}

export interface RemovalOptions {
  /** Points that the store must still hold afterwards, where it holds them now. */
  readonly keepPoints?: readonly string[];
  /** Asked for each set before the first one goes: a sentence says why it must stay. */
  readonly mayRemove?: (set: StoredSet) => string | undefined;
}

/** What is to go; kept in the store until it has. */
export interface RemovalWish {
  /** Ids; those that the store does not have are left out. */
  readonly ids: readonly string[];
  readonly keepPoints: readonly string[];
}

export interface RemovalResult {
  /** In the order in which they went. */
  readonly removed: readonly StoredSet[];
  readonly refused: readonly RefusedSet[];
}

export interface RemovalParts {
  /** All sets of the store, as listed under its lock, protections in force included. */
  readonly sets: readonly StoredSet[];
  readonly wish: RemovalWish;
  /** Makes durable what must be known before the first of these sets goes. */
  readonly prepare: (going: ReadonlySet<StoredSet>) => Promise<void>;
  /** Takes the sets out of the catalog, durably. */
  readonly forget: (ids: readonly string[]) => Promise<void>;
  /** Unlinks the files of a set, given lane 0's path as it was. */
  readonly unlink: (path: string) => Promise<void>;
}

/**
 * Removes what may be removed; under the store's exclusive lock.
 *
 * @returns what went and what was refused, with the reason; neither is an error.
 */
export async function removeSets(parts: RemovalParts): Promise<RemovalResult> {
  const wanted = new Set(parts.wish.ids);
  const going = dependentsFirst(parts.sets).filter((set) => wanted.has(set.id));
  if (going.length > 0) await parts.prepare(new Set(going));
  const judge = new Judge(parts.sets, parts.wish.keepPoints);
  const removed: StoredSet[] = [];
  const refused: RefusedSet[] = [];
  for (let start = 0; start < going.length; start += LIMITS.removalSetCountMax) {
    const batch = going.slice(start, start + LIMITS.removalSetCountMax);
    removed.push(...(await removeBatch(batch, judge, refused, parts)));
  }
  return { removed, refused };
}

/** What remains of a wish once those have been asked who may object. */
export function withObjections(
  sets: readonly StoredSet[],
  ids: readonly string[],
  { keepPoints = [], mayRemove }: RemovalOptions,
): { wish: RemovalWish; refused: RefusedSet[] } {
  const refused: RefusedSet[] = [];
  for (const set of sets.filter(({ id }) => ids.includes(id))) {
    const message = mayRemove?.(set);
    if (message !== undefined) refused.push({ set, reason: 'refused', message });
  }
  const staying = new Set(refused.map(({ set }) => set.id));
  return { wish: { ids: ids.filter((id) => !staying.has(id)), keepPoints }, refused };
}

/** A wish as `readStateFile` gives it; undefined where there is none. */
export function decodeWish(value: unknown): RemovalWish | undefined {
  if (value === undefined) return undefined;
  const members = membersOf(value);
  const texts = (name: string): string[] => {
    const list = members.get(name);
    return Array.isArray(list) ? list.map(String) : [];
  };
  return { ids: texts('ids'), keepPoints: texts('keepPoints') };
}

async function removeBatch(
  batch: readonly StoredSet[],
  judge: Judge,
  refused: RefusedSet[],
  parts: RemovalParts,
): Promise<StoredSet[]> {
  const locks: Lease[] = [];
  const gone: StoredSet[] = [];
  try {
    for (const set of batch) {
      const objection = judge.objection(set);
      if (objection !== undefined) {
        refused.push(objection);
        continue;
      }
      const lock = shutOutLeases(set.path);
      if (lock === undefined) {
        refused.push({ set, reason: 'leased', message: `Set ${set.id} is being read` });
        continue;
      }
      locks.push(lock);
      renameSync(set.path, removedPath(set.path));
      await syncDirectory('set-directory', dirname(set.path));
      judge.remove(set);
      gone.push(set);
    }
    if (gone.length > 0) await parts.forget(gone.map(({ id }) => id));
    for (const set of gone) await parts.unlink(set.path);
  } finally {
    for (const lock of locks) lock.release();
  }
  return gone;
}

/** Knows which sets others build on, while sets go. */
class Judge {
  readonly #complete: Set<StoredSet>;
  readonly #keepPoints: ReadonlySet<string>;
  /** The complete sets that are still there, by their point; and those that build on a point. */
  readonly #holders: Map<string, KnownSet[]>;
  readonly #dependents = new Map<string, Set<StoredSet>>();

  constructor(sets: readonly StoredSet[], keepPoints: readonly string[]) {
    this.#keepPoints = new Set(keepPoints);
    this.#complete = completeSets(sets);
    this.#holders = setsByPoint(this.#complete);
    for (const set of [...this.#complete].filter(isKnown)) {
      const key = baseKey(set);
      this.#dependents.set(key, (this.#dependents.get(key) ?? new Set()).add(set));
    }
  }

  objection(set: StoredSet): RefusedSet | undefined {
    if (set.protection !== undefined) {
      const { untilMs } = set.protection;
      const until = untilMs === null ? 'for ever' : `until ${new Date(untilMs).toISOString()}`;
      return { set, reason: 'protected', message: `Set ${set.id} is protected ${until}` };
    }
    const need = this.#need(set);
    if (need === undefined) return undefined;
    return { set, reason: 'needed', message: `Set ${set.id} is needed: ${need}` };
  }

  /** What would be lost with the set; nothing is where another complete set holds its point. */
  #need(set: StoredSet): string | undefined {
    if (!isKnown(set) || !this.#complete.has(set)) return undefined;
    const others = (this.#holders.get(ownKey(set)) ?? []).filter((other) => other !== set);
    if (others.length > 0) return undefined;
    if (this.#keepPoints.has(set.header.point)) return `no other set holds point ${set.header.point}`;
    const [dependent] = this.#dependents.get(ownKey(set)) ?? [];
    return dependent === undefined ? undefined : `set ${dependent.id} builds on it`;
  }

  remove(set: StoredSet): void {
    if (!isKnown(set)) return;
    const holders = (this.#holders.get(ownKey(set)) ?? []).filter((other) => other !== set);
    this.#holders.set(ownKey(set), holders);
    this.#dependents.get(baseKey(set))?.delete(set);
  }
}
