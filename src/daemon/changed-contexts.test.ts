/**
 * Goal: the map of changes that a client reads never leaves out a byte that changed, and says no more than the
 * volume does.
 *
 * Method: the contexts over a volume made of a set of tracks, every range against a byte map as a property;
 * names and points by example.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { TrackSet } from '../tracks/index.ts';
import { Geometry } from '../volume/index.ts';
import { findChangedContext, listChangedContexts, type TrackedVolume } from './changed-contexts.ts';

const TRACK = 4096;
const UNIT = 512;

/** A volume that knows one point, `p1`; since any other everything changed. */
function volumeOf(
  tracks: readonly number[],
  sizeBytes: number,
  consumers: readonly string[] = [],
): TrackedVolume {
  const geometry = new Geometry(sizeBytes, TRACK);
  return {
    geometry,
    changedIn: (point, run) => {
      const asked = TrackSet.ofRun(run);
      return point === 'p1' ? TrackSet.of(tracks).intersection(asked) : asked;
    },
    consumers: () => consumers.map((name) => ({ name, point: 'p1' })),
  };
}

t.test('extents say of every byte whether its track changed', async () => {
  const trackCount = 12;
  const sizeBytes = trackCount * TRACK - 3 * UNIT;
  const unitCount = sizeBytes / UNIT;
  const range = fc.tuple(fc.nat(unitCount - 1), fc.integer({ min: 1, max: unitCount }));
  const tracks = fc.uniqueArray(fc.nat(trackCount - 1));
  await fc.assert(
    fc.asyncProperty(
      tracks,
      range,
      fc.integer({ min: 1, max: 40 }),
      async (changed, [first, count], countMax) => {
        const lengthUnits = Math.min(count, unitCount - first);
        const volume = volumeOf(changed, sizeBytes);
        const context = findChangedContext(volume, 'cowbell:changed-since:p1');
        const extents = (await context?.extents(first * UNIT, lengthUnits * UNIT, countMax)) ?? [];
        ok(extents.length > 0);
        const said = extents.flatMap(({ lengthBytes, flags }) =>
          Array<number>(lengthBytes / UNIT).fill(flags),
        );
        const expected = Array.from({ length: lengthUnits }, (_, index) =>
          Number(changed.includes(Math.floor(((first + index) * UNIT) / TRACK))),
        );
        deepStrictEqual(said, expected.slice(0, said.length));
        ok(
          extents.length >= countMax || said.length === lengthUnits,
          'all of the range, or as many as wanted',
        );
      },
    ),
  );
});

t.test('consumers are listed by both names, any point is found, other names are not', async (t) => {
  const volume = volumeOf([1], 4 * TRACK, ['store-a', 'store-b']);
  const names = listChangedContexts(volume).map(({ name }) => name);
  t.same(names, [
    'qemu:dirty-bitmap:store-a',
    'cowbell:changed-since:p1',
    'qemu:dirty-bitmap:store-b',
    'cowbell:changed-since:p1',
  ]);
  const bitmap = listChangedContexts(volume)[0];
  t.same(await bitmap?.extents(0, 4 * TRACK, 100), [
    { lengthBytes: TRACK, flags: 0 },
    { lengthBytes: TRACK, flags: 1 },
    { lengthBytes: 2 * TRACK, flags: 0 },
  ]);
  const unknown = findChangedContext(volume, 'cowbell:changed-since:nobody-knows');
  t.same(await unknown?.extents(512, TRACK, 100), [{ lengthBytes: TRACK, flags: 1 }], 'everything changed');
  for (const name of ['qemu:allocation-depth', 'cowbell:other', 'x:y']) {
    t.equal(findChangedContext(volume, name), undefined, name);
  }
});

t.test('a very long range is answered in part', async (t) => {
  const volume = volumeOf([], 2 ** 32);
  const context = findChangedContext(volume, 'cowbell:changed-since:p1');
  t.same(await context?.extents(0, 2 ** 32, 100), [{ lengthBytes: 2 ** 30, flags: 0 }]);
});
