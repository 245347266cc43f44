/** Goal: runs of any place and length are added whole, and a set that grows keeps what it has. Method: against a `Set`. */

import fc from 'fast-check';
import t from 'tap';
import { TrackBits } from './index.ts';

const TRACK_COUNT = 3 * 2 ** 16 + 17;

t.test('runs are added whole', async (t) => {
  const run = fc
    .tuple(fc.nat(TRACK_COUNT - 1), fc.oneof(fc.nat(100), fc.nat(2 ** 17)))
    .map(([first, count]) => ({ first, count: Math.min(count, TRACK_COUNT - first) }));
  fc.assert(
    fc.property(fc.array(run, { maxLength: 4 }), fc.array(fc.nat(TRACK_COUNT - 1)), (runs, singles) => {
      const bits = new TrackBits(TRACK_COUNT);
      const model = new Set<number>();
      for (const track of singles) {
        bits.add(track);
        model.add(track);
      }
      for (const { first, count } of runs) {
        bits.addRun({ first, count });
        for (let track = first; track < first + count; track += 1) model.add(track);
      }
      if (bits.size !== model.size) throw new Error(`${bits.size} tracks, wanted ${model.size}`);
      const found = bits.toTrackSet();
      if (found.size !== model.size) throw new Error(`${found.size} tracks listed, wanted ${model.size}`);
      for (const track of model) if (!found.has(track)) throw new Error(`Track ${track} is missing`);
    }),
    { numRuns: 30 },
  );
  t.throws(() => new TrackBits(8).addRun({ first: 4, count: 5 }), /Track 8 is not below 8/);
});

t.test('a set that grows keeps what it has, and has nothing of what is new', (t) => {
  const bits = TrackBits.all(70);
  bits.grow(2 ** 17);
  t.equal(bits.size, 70);
  t.equal(bits.trackCount, 2 ** 17);
  t.equal(bits.firstIn({ first: 70, count: 2 ** 17 - 70 }), undefined);
  bits.add(2 ** 17 - 1);
  t.same(bits.toTrackSet().toArray().slice(-2), [69, 2 ** 17 - 1]);
  t.throws(() => bits.grow(100), /cannot have 100/);
  t.end();
});
