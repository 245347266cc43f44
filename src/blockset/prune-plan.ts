/**
 * What pruning a store would do: which points stay, which sets are merged so that those can stay without the ones
 * between them, which sets go. Pure: sets and a policy in, a plan out.
 *
 *     F <- a <- b <- C <- d <- E        kept: C, E
 *     C' = C + b + a + F                the oldest kept one becomes a synthetic full
 *     E' = E + d                        an incremental on the point of C
 *
 * Kept besides what the policy keeps: points that nothing follows (the latest, several where sessions ran side by side);
 * sets that must not be touched, protected, leased or damaged, and the points they build on; and a set that several kept
 * ones need, since merging it into each of them would cost more than it saves.
 */

import {
  baseKey,
  completeSets,
  isKnown,
  type KnownSet,
  latestSets,
  ownKey,
  pointsOf,
  type StoredSet,
} from './lineage.ts';
import { retain, type RetentionPolicy } from './retention.ts';

export interface KeptPoint {
  /** The set that holds it now. */
  readonly set: StoredSet;
  /** Rules that keep it, or `protected`, `leased`, `damaged`, `base`, `needed`. */
  readonly reasons: readonly string[];
}

export interface PrunePlan {
  /** Newest first, volume by volume. */
  readonly kept: readonly KeptPoint[];
  readonly keepPoints: readonly string[];
  /** Ids of sets to be merged, newest first; the result takes the place of the first. */
  readonly merges: readonly (readonly string[])[];
  /** Sets that stand for others that go: the others must first be seen to hold the same. */
  readonly comparisons: readonly { readonly set: string; readonly other: string }[];
  /** Ids of all sets that go, those that are merged included. */
  readonly going: readonly string[];
}

export interface PruneWish {
  readonly policy: RetentionPolicy;
  /** Volume id or name; all volumes where left out. */
  readonly volume?: string;
  /** Ids of sets that are being read now. */
  readonly leased: ReadonlySet<string>;
}

export function planPrune(sets: readonly StoredSet[], wish: PruneWish): PrunePlan {
  const complete = completeSets(sets);
  const known = sets.filter(isKnown).filter(({ header }) => {
    return wish.volume === undefined || header.volumeId === wish.volume || header.volumeName === wish.volume;
  });
  const plans = [...new Set(known.map(({ header }) => header.volumeId))].map((volumeId) => {
    const own = known.filter(({ header }) => header.volumeId === volumeId);
    return new VolumePlan(own, complete, wish).plan(volumeId);
  });
  return {
    kept: plans.flatMap((plan) => plan.kept),
    keepPoints: plans.flatMap((plan) => plan.keepPoints),
    merges: plans.flatMap((plan) => plan.merges),
    comparisons: plans.flatMap((plan) => plan.comparisons),
    going: plans.flatMap((plan) => plan.going),
  };
}

class VolumePlan {
  readonly #sets: readonly KnownSet[];
  readonly #complete: ReadonlySet<StoredSet>;
  readonly #wish: PruneWish;
  /** By `ownKey`: why the point stays. */
  readonly #reasons = new Map<string, string[]>();
  /** By `ownKey`: the set that stays for the point. */
  readonly #holders = new Map<string, KnownSet>();
  /** Sets that stay as they are. */
  readonly #pinned = new Set<StoredSet>();

  constructor(sets: readonly KnownSet[], complete: ReadonlySet<StoredSet>, wish: PruneWish) {
    this.#sets = sets;
    this.#complete = complete;
    this.#wish = wish;
  }

  plan(volumeId: string): PrunePlan {
    const points = pointsOf(this.#sets, volumeId).flatMap(({ sets }) => {
      const holder = sets.find((set) => this.#complete.has(set));
      return holder === undefined || !isKnown(holder) ? [] : [holder];
    });
    for (const holder of points) this.#holders.set(ownKey(holder), holder);
    const rules = retain(
      points.map(({ header }) => header.createdMs),
      this.#wish.policy,
    );
    for (const [index, holder] of points.entries()) {
      for (const rule of rules[index] ?? []) this.#keep(ownKey(holder), rule);
    }
    for (const set of latestSets(this.#sets)) this.#keep(ownKey(set), 'latest');
    for (const set of this.#sets) this.#pin(set);
    this.#keepBranches(points);
    return this.#result(points);
  }

  #keep(key: string, reason: string): void {
    const reasons = this.#reasons.get(key) ?? [];
    this.#reasons.set(key, reasons);
    if (!reasons.includes(reason)) reasons.push(reason);
  }

  #pin(set: KnownSet): void {
    const reason = this.#pinReason(set);
    if (reason === undefined) return;
    this.#pinned.add(set);
    this.#keep(ownKey(set), reason);
    if (set.header.base !== null) this.#keep(baseKey(set), 'base');
  }

  #pinReason(set: KnownSet): string | undefined {
    if (set.protection !== undefined) return 'protected';
    if (this.#wish.leased.has(set.id)) return 'leased';
    return this.#complete.has(set) ? undefined : 'damaged';
  }

  /** The sets below a kept one that it needs and that are not kept, newest first. */
  #gap(holder: KnownSet): KnownSet[] {
    const gap: KnownSet[] = [];
    for (let at: KnownSet | undefined = holder; at.header.base !== null;) {
      const key = baseKey(at);
      at = this.#reasons.has(key) ? undefined : this.#holders.get(key);
      if (at === undefined) break;
      gap.push(at);
    }
    return gap;
  }

  #keepBranches(points: readonly KnownSet[]): void {
    const needing = new Map<string, Set<string>>();
    for (const holder of points.filter((set) => this.#reasons.has(ownKey(set)))) {
      let above = ownKey(holder);
      for (const set of this.#gap(holder)) {
        const key = ownKey(set);
        needing.set(key, (needing.get(key) ?? new Set()).add(above));
        above = key;
      }
    }
    for (const [key, above] of needing) if (above.size > 1) this.#keep(key, 'needed');
  }

  #result(points: readonly KnownSet[]): PrunePlan {
    const kept: KeptPoint[] = [];
    const merges: string[][] = [];
    const staying = new Set<StoredSet>(this.#pinned);
    for (const set of points) {
      const reasons = this.#reasons.get(ownKey(set));
      if (reasons === undefined) continue;
      kept.push({ set, reasons });
      const gap = this.#gap(set);
      if (gap.length > 0) merges.push([set, ...gap].map(({ id }) => id));
      else staying.add(set);
    }
    const going = this.#sets.filter((set) => !staying.has(set));
    const comparisons = going.flatMap((other) => {
      const key = ownKey(other);
      const set = this.#reasons.has(key) ? this.#holders.get(key) : undefined;
      return set === undefined || set === other ? [] : [{ set: set.id, other: other.id }];
    });
    const keepPoints = kept.map(({ set }) => set.header?.point ?? '');
    return { kept, keepPoints, merges, comparisons, going: going.map(({ id }) => id) };
  }
}
