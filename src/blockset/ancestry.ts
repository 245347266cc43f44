/**
 * What points that the store no longer holds came after.
 *
 * Sets name the points before them, and `latest` is the point that nobody names (lineage.ts). Once a set in the middle
 * is removed, those before it would be named by nobody, and would seem to be latest. So before a set goes, the store
 * writes down, for each point that remaining sets name, which points it leads to through the sets that go. The record
 * says nothing but the truth of lineage, so what it says too much, or twice, does no harm.
 *
 * Without the record `latest` may become ambiguous, which is refused; it never becomes another set.
 */

import { membersOf, readStateFile } from './state-file.ts';
import type { StoredSet } from './lineage.ts';

/** For a point: points before it. */
export type Ancestry = ReadonlyMap<string, readonly string[]>;

/** @throws {CorruptionError} where the file is damaged. */
export function readAncestry(path: string): Ancestry {
  const found = membersOf(membersOf(readStateFile(path)).get('ancestors'));
  const ancestry = new Map<string, readonly string[]>();
  for (const [point, before] of found) {
    if (Array.isArray(before)) ancestry.set(point, before.map(String));
  }
  return ancestry;
}

/** What `writeStateFile` is to be given. */
export function encodeAncestry(ancestry: Ancestry): unknown {
  return { cowbellAncestry: 0, ancestors: Object.fromEntries(ancestry) };
}

/** The points that a set comes after: those it names, and what they lead to where the store no longer holds them. */
export function followedBy(
  header: { base: string | null; previous: string | null },
  ancestry: Ancestry,
): string[] {
  return [...new Set(namedBy(header).flatMap((point) => [point, ...(ancestry.get(point) ?? [])]))];
}

/**
 * What must be known while `sets` become `remaining`: for each point that one of them names and no remaining set has,
 * the points of `sets` that it leads to. It holds at any moment of the removal.
 */
export function ancestryWithout(
  sets: readonly StoredSet[],
  remaining: ReadonlySet<StoredSet>,
  known: Ancestry,
): Ancestry {
  const before = new Map<string, Set<string>>();
  for (const [point, points] of known) before.set(point, new Set(points));
  const held = new Set<string>();
  for (const { header } of sets) {
    if (header === undefined) continue;
    held.add(header.point);
    const points = before.get(header.point) ?? new Set();
    before.set(header.point, points);
    for (const point of namedBy(header)) points.add(point);
  }
  const kept = new Set([...remaining].map(({ header }) => header?.point));
  const ancestry = new Map<string, readonly string[]>();
  for (const point of sets.flatMap(({ header }) => (header === undefined ? [] : namedBy(header)))) {
    if (kept.has(point) || ancestry.has(point)) continue;
    const reached = reachedFrom(point, before, kept).filter((other) => held.has(other));
    if (reached.length > 0) ancestry.set(point, reached);
  }
  return ancestry;
}

function namedBy(header: { base: string | null; previous: string | null }): string[] {
  return [header.previous, header.base].filter((point) => point !== null);
}

/** The points before a point, down to the first ones that are kept. */
function reachedFrom(
  point: string,
  before: ReadonlyMap<string, ReadonlySet<string>>,
  kept: ReadonlySet<string | undefined>,
): string[] {
  const seen = new Set([point]);
  for (const at of seen) {
    if (kept.has(at)) continue;
    for (const next of before.get(at) ?? []) seen.add(next);
  }
  seen.delete(point);
  return [...seen];
}
