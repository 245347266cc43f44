/**
 * How many copies of a volume's data there are, and where: of what is backed up, and of what is not yet, which is the
 * data most at risk. Pure, from what the volume tells.
 *
 *     not backed up yet   copies of the home that are in sync, a mirror that equals it, healthy members of the delta store
 *     backed up           the same without the delta store, and every store or writing of media with a complete set
 *
 * Where the home has several parts, the part with the fewest copies counts. Under recovery the home holds what was
 * written since, and so does a mirror that gets every write; what is backed up it does not hold yet.
 */

import type { VolumeStatus } from '../volume/index.ts';

export interface CopyCount {
  readonly count: number;
  /** Places of the home and of members; `store <id>` for a store. */
  readonly where: readonly string[];
}

export interface Copies {
  readonly backedUp: CopyCount;
  readonly notBackedUp: CopyCount;
}

/** What of a volume is looked at. */
export type CopiesInput = Pick<VolumeStatus, 'home' | 'consumers'> &
  Partial<Pick<VolumeStatus, 'parts' | 'mirroring' | 'recovery' | 'deltas'>>;

export function copiesOf({ home, parts, consumers, mirroring, recovery, deltas }: CopiesInput): Copies {
  const own = homeCopies(home, parts);
  const isEqual = mirroring !== undefined && mirroring.missingTracks === 0 && mirroring.lost === undefined;
  const held = plus(own, isEqual ? [mirroring.mirror] : []);
  const written =
    recovery?.mirror === undefined || recovery.mirrorLost !== undefined
      ? held
      : plus(held, [recovery.mirror]);
  // Logs that begin anew lack what was not backed up before.
  const joined = deltas?.brokenOff === undefined ? (deltas?.members ?? []) : [];
  const healthy = joined.filter(({ state }) => state === 'healthy');
  const whole = recovery === undefined || recovery.missingTracks === 0 ? held : { count: 0, where: [] };
  // What a copy wrote to its targets is no set: the next one writes over it.
  const stores = consumers.filter(({ copy }) => copy === undefined).map(({ name }) => storeName(name));
  return {
    backedUp: plus(whole, stores),
    notBackedUp: plus(
      written,
      healthy.map(({ place }) => place),
    ),
  };
}

function homeCopies(home: string, parts: VolumeStatus['parts']): CopyCount {
  if (parts === undefined) return { count: 1, where: [home] };
  const each = parts.map(({ kind, members }) => {
    const inSync = members.filter((member) => !('state' in member) || member.state === 'in-sync');
    // Of anything but a mirror each member holds a piece of its own.
    return { count: kind === 'mirror' ? inSync.length : 1, where: inSync.map(({ place }) => place) };
  });
  return {
    count: Math.min(...each.map(({ count }) => count)),
    where: [...new Set(each.flatMap(({ where }) => where))],
  };
}

/** Sets on media have a consumer that says so; of a store it is its id. */
function storeName(consumer: string): string {
  return consumer.startsWith('medium ') ? consumer : `store ${consumer}`;
}

function plus({ count, where }: CopyCount, further: readonly string[]): CopyCount {
  return { count: count + further.length, where: [...where, ...further] };
}
