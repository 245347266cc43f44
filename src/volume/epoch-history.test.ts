/**
 * Goal: what is said of one range is what the whole answer says of it, at every instant, freezes between two
 * questions included. Method: random histories of writes, points and forgotten points, asked for every point and
 * for ones nobody knows; the answers held against sets of numbers kept beside.
 */

import { deepStrictEqual } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { SeededRandom } from '../base/index.ts';
import { TrackBits } from '../tracks/index.ts';
import { EpochHistory } from './epoch-history.ts';

const TRACK_COUNT = 70_000;

type Step =
  | { readonly kind: 'mark'; readonly first: number; readonly count: number }
  | { readonly kind: 'close' }
  | { readonly kind: 'drop' }
  | { readonly kind: 'markAll' };

const place = fc.oneof(
  fc.nat(TRACK_COUNT - 1),
  fc.integer({ min: 65_500, max: 65_570 }),
  fc.integer({ min: 0, max: 70 }),
);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.tuple(place, fc.integer({ min: 1, max: 40 })).map(([first, count]) => ({
      kind: 'mark' as const,
      first,
      count: Math.min(count, TRACK_COUNT - first),
    })),
  },
  { weight: 3, arbitrary: fc.constant({ kind: 'close' as const }) },
  { weight: 1, arbitrary: fc.constantFrom({ kind: 'drop' as const }, { kind: 'markAll' as const }) },
);

/** A history beside sets of numbers: of every point, what changed since. */
class Model {
  readonly history = new EpochHistory({
    trackCount: TRACK_COUNT,
    openNumber: 1,
    open: new TrackBits(TRACK_COUNT),
    closed: [],
  });
  readonly since = new Map<string, Set<number> | 'all'>();
  #pointCount = 0;

  take(taken: Step): void {
    if (taken.kind === 'close') {
      const point = `p${this.#pointCount}`;
      this.#pointCount += 1;
      this.history.close(point, 0);
      this.since.set(point, new Set());
    } else if (taken.kind === 'drop') {
      const kept = this.history.closed.slice(-3);
      for (const { point } of this.history.closed.slice(0, -3)) this.since.set(point, 'all');
      this.history.fold(new Set(kept.map(({ number }) => number)));
    } else if (taken.kind === 'markAll') {
      this.history.markAll();
      for (const point of this.since.keys()) this.since.set(point, 'all');
    } else {
      this.history.mark(taken);
      for (const changed of this.since.values()) {
        if (changed === 'all') continue;
        for (let track = taken.first; track < taken.first + taken.count; track += 1) changed.add(track);
      }
    }
  }

  /** Asks for a run of every point and compares with both the numbers and the whole answer. */
  check(first: number, count: number): void {
    const asked = Array.from({ length: count }, (_, index) => first + index);
    for (const point of [...this.since.keys(), 'nobody knows']) {
      const changed = this.since.get(point) ?? 'all';
      const wanted = changed === 'all' ? asked : asked.filter((track) => changed.has(track));
      deepStrictEqual(this.history.changedIn(point, { first, count }).toArray(), wanted, point);
      const whole = this.history.changedSince(point);
      deepStrictEqual(
        asked.filter((track) => whole.has(track)),
        wanted,
        `${point} as a whole`,
      );
    }
  }
}

t.test('property: a range is answered as the whole is, at every instant', async (t) => {
  const seed = Date.now() % 2 ** 31;
  t.comment(`seed ${seed}`);
  const property = fc.property(fc.array(step, { minLength: 5, maxLength: 25 }), fc.nat(), (steps, salt) => {
    const model = new Model();
    const random = new SeededRandom(salt);
    for (const taken of steps) {
      model.take(taken);
      const around = taken.kind === 'mark' ? taken.first : random.below(TRACK_COUNT);
      const first = Math.max(0, around - random.below(50));
      model.check(first, Math.min(1 + random.below(100), TRACK_COUNT - first));
    }
    model.check(0, TRACK_COUNT);
  });
  fc.assert(property, { seed, numRuns: 30 });
});

t.test('what changed is not changed by asking, and stays what it was when more changes', async (t) => {
  const model = new Model();
  for (const taken of [{ kind: 'close' }, { kind: 'mark', first: 5, count: 2 }, { kind: 'close' }] as const) {
    model.take(taken);
  }
  const run = { first: 0, count: 10 };
  const before = model.history.changedIn('p0', run);
  model.take({ kind: 'mark', first: 8, count: 1 });
  t.same(before.toArray(), [5, 6]);
  before.add(1);
  t.same(model.history.changedIn('p0', run).toArray(), [5, 6, 8]);
  t.same(model.history.closed[1]?.tracks.toArray(), [5, 6]);
});
