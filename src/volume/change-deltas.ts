/**
 * Giving a volume other members of its delta store, or its first ones, while nobody has it open.
 *
 * A member that is new to a store that has begun is lost from the beginning: the next owner makes it from the others, as one
 * that was away. What a member holds that leaves the store stays where it is, and is no longer needed.
 */

import { randomId, type Clock } from '../base/index.ts';
import type { DeltaPlace } from '../delta/index.ts';
import type { DeltasRecord, DeltasUse } from './delta-places.ts';
import { absoluteHome, lockVolume, makeDeltaPlaces, openState } from './directory.ts';
import { VolumeError } from './errors.ts';

export interface DeltasChange {
  readonly add: readonly DeltaPlace[];
  /** Places, as they were given or as they are listed. */
  readonly remove: readonly string[];
  /** As it was where left out. */
  readonly keepLogMs?: number;
}

/**
 * Changes the members; durable when it resolves.
 *
 * @returns what the volume has now; undefined where that is no delta store.
 * @throws {VolumeError} `in-use`, `not-a-volume`, `unknown-member`, `member-lost` where none would have what the others have
 */
export async function changeDeltas(
  directory: string,
  change: DeltasChange,
  clock: Clock,
): Promise<DeltasRecord | undefined> {
  const lock = await lockVolume(directory, 'volume deltas');
  try {
    const state = await openState(directory, { readOnly: false });
    try {
      const before = state.record.deltas;
      const places = placesAfter(before?.places ?? [], change);
      const keepLogMs = change.keepLogMs ?? before?.keepLogMs;
      // What a volume is that had none is in no log.
      const since = before?.since ?? randomId();
      const after: DeltasRecord | undefined =
        places.length === 0
          ? undefined
          : { places, since, ...(keepLogMs === undefined ? {} : { keepLogMs }) };
      const use = after && before && useAfter(state.deltasUse, before, after, clock.now());
      assertSense(before, after, use);
      if (after !== undefined) await makeDeltaPlaces(after);
      await state.saveDeltas(after, use);
      return after;
    } finally {
      await state.close();
    }
  } finally {
    await lock.close();
  }
}

function assertSense(
  before: DeltasRecord | undefined,
  after: DeltasRecord | undefined,
  use: DeltasUse | undefined,
): void {
  if (before === undefined && after === undefined) {
    const message = 'The volume has no deltas, wanted a place to be added';
    throw new VolumeError('unknown-member', message, { place: '' });
  }
  const [lost] = use?.lost ?? [];
  if (lost === undefined || (use?.lost.length ?? 0) < (after?.places.length ?? 0)) return;
  const { place, reason } = lost;
  const message = `No place would be left that has the deltas (${place}: ${reason}); add others, serve the volume until they are made, then remove these`;
  throw new VolumeError('member-lost', message, { place, reason });
}

function placesAfter(before: readonly DeltaPlace[], { add, remove }: DeltasChange): DeltaPlace[] {
  const gone = remove.map(absoluteHome);
  const unknown = gone.find((place) => !before.some((one) => one.place === place));
  if (unknown !== undefined) {
    const known = before.map(({ place }) => place).join(', ');
    const message = `The volume has no deltas in ${unknown}, wanted one of ${known === '' ? 'none' : known}`;
    throw new VolumeError('unknown-member', message, { place: unknown });
  }
  const added = add.map((one) => ({ ...one, place: absoluteHome(one.place) }));
  const kept = before.filter(({ place }) => !gone.includes(place));
  // One that is there already may get another size.
  return [...kept.filter(({ place }) => !added.some((one) => one.place === place)), ...added];
}

/** Undefined where the store has not begun: then all of it begins together. */
function useAfter(
  use: DeltasUse | undefined,
  before: DeltasRecord,
  after: DeltasRecord,
  atMs: number,
): DeltasUse | undefined {
  if (use === undefined) return undefined;
  const known = new Set(before.places.map(({ place }) => place));
  const isIn = new Set(after.places.map(({ place }) => place));
  const fresh = after.places.filter(({ place }) => !known.has(place));
  return {
    ...use,
    lost: [
      ...use.lost.filter(({ place }) => isIn.has(place)),
      ...fresh.map(({ place }) => ({ place, reason: 'it is new', atMs })),
    ],
  };
}
