/**
 * Which set is latest, and what a set builds on: questions about points, never about clocks or names.
 *
 * Every set names its own point, its base point and the previous point: the own point of the set that was
 * latest when its session began. So `latest` is the point that no other set of the volume names. Sets with
 * one point hold the same content and stand for each other.
 */

import { CorruptionError } from '../base/index.ts';
import { StoreError } from './errors.ts';
import type { Protection } from './protection.ts';
import type { SetCounters, SetHeader } from './set-format.ts';

/** A set of the store, as far as it is known without reading it all. */
export interface StoredSet {
  readonly id: string;
  readonly path: string;
  /** Undefined where the file is damaged and the catalog does not know it either. */
  readonly header: SetHeader | undefined;
  readonly counters: SetCounters | undefined;
  readonly seal: string | undefined;
  /** The files of all lanes, as far as they are known; `path` first. */
  readonly lanePaths: readonly string[];
  /** Bytes of the files of all lanes. */
  readonly lengthBytes: number;
  /** Why the set cannot be used, or undefined where nothing speaks against it. */
  readonly damage: string | undefined;
  /** The points that it comes after: those its header names where left out (ancestry.ts). */
  readonly follows?: readonly string[];
  /** Until when it must not be removed; undefined where nothing forbids that. */
  readonly protection?: Protection | undefined;
}

/** A point of a volume that the store has a complete set for. */
export interface StoredPoint {
  readonly point: string;
  /** Sets with this point; none is damaged. */
  readonly sets: readonly StoredSet[];
  /** Whether one of them is a full set. */
  readonly isFull: boolean;
}

/** A set whose header is known. */
export type KnownSet = StoredSet & { readonly header: SetHeader };

export function isKnown(set: StoredSet): set is KnownSet {
  return set.header !== undefined;
}

/** The points that no other set of the volume names as previous or base. Several, where sessions ran side by side. */
function heads(sets: readonly KnownSet[]): KnownSet[] {
  const named = new Set<string>();
  for (const { header, follows = [header.previous, header.base] } of sets) {
    for (const point of follows) if (point !== null && point !== header.point) named.add(point);
  }
  return sets.filter((set) => !named.has(set.header.point));
}

/** The sets of one volume whose points nothing follows. */
export function latestSets(sets: readonly StoredSet[]): KnownSet[] {
  return heads(sets.filter(isKnown));
}

/** What makes one of several sets with one point the better choice: undamaged, then full, then the newer id. */
export function byPreference(a: KnownSet, b: KnownSet): number {
  const damage = Number(a.damage !== undefined) - Number(b.damage !== undefined);
  if (damage !== 0) return damage;
  const full = Number(a.header.level !== 'full') - Number(b.header.level !== 'full');
  if (full !== 0) return full;
  return a.id < b.id ? 1 : -1;
}

function ofVolume(sets: readonly StoredSet[], volumeId: string): KnownSet[] {
  return sets.filter(isKnown).filter((set) => set.header.volumeId === volumeId);
}

/** The latest set of a volume; of several heads the one that is not `unlessPoint`, then the newest id. */
export function previousPoint(
  sets: readonly StoredSet[],
  volumeId: string,
  unlessPoint: string | null,
): string | null {
  const points = heads(ofVolume(sets, volumeId)).sort((a, b) => (a.id < b.id ? 1 : -1));
  const other = points.find((set) => set.header.point !== unlessPoint) ?? points[0];
  return other?.header.point ?? null;
}

/**
 * The set that a selector names: `latest`, `latest:<volume id or name>`, a set id or a unique prefix of one.
 *
 * @throws {StoreError} `unknown-set` or `ambiguous-set`, with the candidates.
 */
export function selectSet(sets: readonly StoredSet[], selector: string): StoredSet {
  if (selector === 'latest' || selector.startsWith('latest:')) {
    return selectLatest(sets, selector, selector.slice('latest:'.length));
  }
  const wanted = selector.toUpperCase();
  const exact = sets.find((set) => set.id === wanted);
  if (exact !== undefined) return exact;
  const found = wanted === '' ? [] : sets.filter((set) => set.id.startsWith(wanted));
  return oneOf(found, selector, sets);
}

function selectLatest(sets: readonly StoredSet[], selector: string, volume: string): StoredSet {
  const known = sets.filter(isKnown);
  const matching = known.filter(
    ({ header }) => volume === '' || header.volumeId === volume || header.volumeName === volume,
  );
  const best: KnownSet[] = [];
  for (const volumeId of new Set(matching.map((set) => set.header.volumeId))) {
    const latest = heads(known.filter((set) => set.header.volumeId === volumeId));
    for (const point of new Set(latest.map((set) => set.header.point))) {
      best.push(
        ...latest
          .filter((set) => set.header.point === point)
          .sort(byPreference)
          .slice(0, 1),
      );
    }
  }
  return oneOf(best, selector, sets);
}

function oneOf(found: readonly StoredSet[], selector: string, all: readonly StoredSet[]): StoredSet {
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  const describe = (set: StoredSet): string =>
    set.header === undefined ? set.id : `${set.id} (${set.header.volumeName})`;
  if (only === undefined) {
    const candidates = all.map(describe);
    throw new StoreError(
      'unknown-set',
      `No set in the store is ${selector}, it has ${candidates.length} sets`,
      {
        selector,
        candidates,
      },
    );
  }
  const candidates = found.map(describe);
  throw new StoreError('ambiguous-set', `${selector} may be ${candidates.join(', ')}`, {
    selector,
    candidates,
  });
}

/**
 * The volume's points for which the store has undamaged sets, newest first by lineage; points that no lineage
 * orders stand newest id first.
 */
export function pointsOf(sets: readonly StoredSet[], volumeId: string): StoredPoint[] {
  const known = ofVolume(sets, volumeId);
  const byPoint = new Map<string, KnownSet[]>();
  for (const set of known) byPoint.set(set.header.point, [...(byPoint.get(set.header.point) ?? []), set]);
  const ordered: StoredPoint[] = [];
  const remaining = new Map(byPoint);
  while (remaining.size > 0) {
    const rest = [...remaining.values()].flat();
    // A ring of names cannot come from sessions; it is cut at the newest id rather than followed for ever.
    const free = heads(rest);
    const next = (free.length > 0 ? free : rest).sort((a, b) => (a.id < b.id ? 1 : -1))[0];
    if (next === undefined) break;
    const { point } = next.header;
    const whole = (remaining.get(point) ?? []).filter((set) => set.damage === undefined).sort(byPreference);
    remaining.delete(point);
    if (whole.length === 0) continue;
    ordered.push({ point, sets: whole, isFull: whole.some((set) => set.header.level === 'full') });
  }
  return ordered;
}

/**
 * The sets that a set's content needs, newest first: the set, what it builds on, down to a full one.
 *
 * @throws {StoreError} `missing-base` naming the point, or `wrong-volume`.
 * @throws {CorruptionError} where a needed set is damaged and no other holds its point.
 */
export function chainOf(sets: readonly StoredSet[], id: string): KnownSet[] {
  const start = sets.find((set) => set.id === id);
  if (start === undefined)
    throw new StoreError('unknown-set', `No set in the store is ${id}`, { selector: id, candidates: [] });
  if (!isKnown(start) || start.damage !== undefined) throw damaged(start);
  return completed(sets, start, new Set());
}

/** Depth first over all sets that hold the base point, so that one incomplete candidate does not hide a complete one. */
function completed(sets: readonly StoredSet[], set: KnownSet, seen: Set<string>): KnownSet[] {
  const { base } = set.header;
  if (base === null) return [set];
  seen.add(set.id);
  const holding = sets.filter(isKnown).filter((other) => other.header.point === base && !seen.has(other.id));
  const fitting = holding.filter((other) => isSameVolume(set, other)).sort(byPreference);
  let failure: unknown;
  for (const candidate of fitting) {
    try {
      if (candidate.damage !== undefined) throw damaged(candidate);
      return [set, ...completed(sets, candidate, seen)];
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
  if (holding.length > 0) {
    const message = `Set ${set.id} builds on point ${base} of another volume or track size`;
    throw new StoreError('wrong-volume', message, { set: set.id, base });
  }
  throw new StoreError(
    'missing-base',
    `Set ${set.id} builds on point ${base}, which no set in the store holds`,
    {
      set: set.id,
      base,
    },
  );
}

/**
 * The sets that are undamaged, as far as can be seen without reading them, and whose chain is complete. The same answer
 * as `chainOf` gives, for all sets at once.
 */
export function completeSets(sets: readonly StoredSet[]): Set<StoredSet> {
  const byPoint = setsByPoint(sets);
  const complete = new Map<StoredSet, boolean>();
  const judge = (set: KnownSet): boolean => {
    const known = complete.get(set);
    if (known !== undefined) return known;
    // A ring of points is not complete: whoever comes back here finds no.
    complete.set(set, false);
    const holding = set.header.base === null ? undefined : (byPoint.get(baseKey(set)) ?? []);
    const verdict = set.damage === undefined && (holding === undefined || holding.some(judge));
    complete.set(set, verdict);
    return verdict;
  };
  return new Set(sets.filter(isKnown).filter(judge));
}

/** Sets by what `baseKey` gives for those that build on them. */
export function setsByPoint(sets: Iterable<StoredSet>): Map<string, KnownSet[]> {
  const byPoint = new Map<string, KnownSet[]>();
  for (const set of sets) {
    if (!isKnown(set)) continue;
    const key = pointKey(set.header, set.header.point);
    byPoint.set(key, [...(byPoint.get(key) ?? []), set]);
  }
  return byPoint;
}

/** Under which `setsByPoint` has the sets that this one can build on. */
export function baseKey(set: KnownSet): string {
  return pointKey(set.header, set.header.base ?? '');
}

/** Under which `setsByPoint` has the sets that hold the same content as this one. */
export function ownKey(set: KnownSet): string {
  return pointKey(set.header, set.header.point);
}

/** The sets so that each comes before those it builds on. */
export function dependentsFirst(sets: readonly StoredSet[]): StoredSet[] {
  const byPoint = setsByPoint(sets);
  const depths = new Map<StoredSet, number>();
  const depthOf = (set: KnownSet): number => {
    const known = depths.get(set);
    if (known !== undefined) return known;
    depths.set(set, 0);
    const bases = set.header.base === null ? [] : (byPoint.get(baseKey(set)) ?? []);
    const depth = bases.reduce((deepest, base) => Math.max(deepest, 1 + depthOf(base)), 0);
    depths.set(set, depth);
    return depth;
  };
  for (const set of sets.filter(isKnown)) depthOf(set);
  return sets.toSorted((a, b) => (depths.get(b) ?? 0) - (depths.get(a) ?? 0));
}

function pointKey(header: SetHeader, point: string): string {
  return `${header.volumeId} ${header.trackSizeBytes} ${point}`;
}

function isSameVolume(a: KnownSet, b: KnownSet): boolean {
  return a.header.volumeId === b.header.volumeId && a.header.trackSizeBytes === b.header.trackSizeBytes;
}

function damaged(set: StoredSet): CorruptionError {
  return new CorruptionError(`Block set ${set.id} is damaged: ${set.damage ?? 'its header cannot be read'}`, {
    where: set.path,
  });
}
