/**
 * How many copies of a volume's data there are, and where: of what is backed up, and of what is not yet, which is the
 * data most at risk. Pure, from what `status` tells.
 *
 *     not backed up yet   copies of the home that are in sync, a mirror that equals it, healthy members of the delta store
 *     backed up           the same without the delta store, and every store or writing of media with a complete set
 *
 * Where the home is laid out of several parts, the part with the fewest copies counts.
 */

export interface CopyCount {
  readonly count: number;
  /** Places of the home and of members; `store <id>` for a store. */
  readonly where: readonly string[];
}

export interface Copies {
  readonly backedUp: CopyCount;
  readonly notBackedUp: CopyCount;
}

/** What of a status is looked at. Each member may be missing or null. */
export type CopiesInput = Readonly<Record<string, unknown>>;

export function copiesOf(status: CopiesInput): Copies {
  const home = homeCopies(status);
  const deltas = listOf(recordOf(status['deltas'])['members'])
    .filter((member) => member['state'] === 'healthy')
    .map(placeOf);
  const stores = listOf(status['consumers']).flatMap((consumer) => {
    // What a copy wrote to its targets is no set: the next one writes over it.
    if (consumer['copy'] !== undefined || typeof consumer['set'] !== 'string') return [];
    const name = String(consumer['name']);
    return [name.startsWith('medium ') ? name : `store ${name}`];
  });
  // Of a home that is being filled only what was written since is sure to be there.
  const recovery = recordOf(status['recovery']);
  const isWhole = recovery['missingTracks'] === undefined || recovery['missingTracks'] === 0;
  const wholeHome = isWhole ? home : { count: 0, where: [] };
  return {
    backedUp: plus(wholeHome, stores),
    notBackedUp: plus(home, deltas),
  };
}

/** The home, whatever it is laid out of, and what equals it. */
function homeCopies(status: CopiesInput): CopyCount {
  const laidOut = [status['home'], status['layout']].find((one) => Object.keys(recordOf(one)).length > 0);
  const own = laidOut === undefined ? plainHome(status['home']) : layoutCopies(recordOf(laidOut));
  const mirrors = ['mirroring', 'recovery'].flatMap((name) => {
    const { mirror, lost, mirrorLost, missingTracks } = recordOf(status[name]);
    const isEqual = missingTracks === 0 && lost === undefined && mirrorLost === undefined;
    return typeof mirror === 'string' && isEqual ? [mirror] : [];
  });
  return plus(own, mirrors);
}

function plainHome(home: unknown): CopyCount {
  return { count: 1, where: [typeof home === 'string' ? home : 'home'] };
}

/** A layout has extents with members, or members alone. */
function layoutCopies(layout: CopiesInput): CopyCount {
  const extents = listOf(layout['extents']);
  const parts = (extents.length === 0 ? [layout] : extents).map((extent) => {
    const members = listOf(extent['members']);
    const inSync = members.filter(({ state }) => state === undefined || state === 'in-sync');
    // Of anything but a mirror each member holds a part of its own.
    const isMirror = extent['kind'] === 'mirror' || members.some(({ state }) => state !== undefined);
    return { count: isMirror ? inSync.length : 1, where: inSync.map(placeOf) };
  });
  return {
    count: Math.min(...parts.map(({ count }) => count)),
    where: [...new Set(parts.flatMap(({ where }) => where))],
  };
}

function plus({ count, where }: CopyCount, further: readonly string[]): CopyCount {
  return { count: count + further.length, where: [...where, ...further] };
}

function placeOf({ place }: CopiesInput): string {
  return typeof place === 'string' ? place : '?';
}

/** The members of an object; none of anything else. */
export function recordOf(value: unknown): CopiesInput {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : {};
}

/** The objects of a list; none of anything else. */
export function listOf(value: unknown): readonly CopiesInput[] {
  return Array.isArray(value) ? value.map(recordOf) : [];
}
