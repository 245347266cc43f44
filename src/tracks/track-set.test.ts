/**
 * Goal: both forms of a track set behave as a plain Set of numbers, and no damaged serialised set is ever
 * taken for a good one. Method: properties against `Set`; every single-bit flip and every truncation.
 */

import fc from 'fast-check';
import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { TrackBits, TrackSet } from './index.ts';

const TRACK_COUNT = 200_000;
const tracks = fc.array(fc.nat(TRACK_COUNT - 1), { maxLength: 200 });

t.test('property: a track set is a set', async (t) => {
  const property = fc.property(tracks, tracks, (left, right) => {
    const [a, b] = [TrackSet.of(left), TrackSet.of(right)];
    const ascending = (numbers: Iterable<number>): number[] => [...new Set(numbers)].sort((x, y) => x - y);
    t.same([...a], ascending(left));
    t.same(a.difference(b).toArray(), ascending(left.filter((track) => !right.includes(track))));
    t.same(a.intersection(b).toArray(), ascending(left.filter((track) => right.includes(track))));
    t.same(TrackSet.union([a, b]).toArray(), ascending([...left, ...right]));
    const runs = [...a.runs(7)];
    t.ok(runs.every((run) => run.count <= 7));
    t.same(
      runs.flatMap((run) => Array.from({ length: run.count }, (_, index) => run.first + index)),
      a.toArray(),
    );
    t.ok(TrackSet.deserialize(a.serialize(), 'test', TRACK_COUNT).equals(a));
  });
  fc.assert(property, { numRuns: 50 });
});

t.test('property: track bits agree with a Set and become the same track set', async (t) => {
  const steps = fc.array(fc.tuple(fc.boolean(), fc.nat(TRACK_COUNT - 1)), { maxLength: 300 });
  const property = fc.property(steps, (list) => {
    const bits = new TrackBits(TRACK_COUNT);
    const model = new Set<number>();
    for (const [isAdd, track] of list) {
      if (isAdd) t.equal(bits.add(track), !model.has(track));
      else t.equal(bits.delete(track), model.has(track));
      if (isAdd) model.add(track);
      else model.delete(track);
    }
    t.equal(bits.size, model.size);
    t.ok(bits.toTrackSet().equals(TrackSet.of(model)));
    t.ok(TrackBits.from(TrackSet.of(model), TRACK_COUNT).toTrackSet().equals(TrackSet.of(model)));
    const first = [...model].sort((x, y) => x - y)[0];
    t.equal(bits.firstIn({ first: 0, count: TRACK_COUNT }), first);
  });
  fc.assert(property, { numRuns: 50 });
});

t.test('property: what of a run is in the bits', async (t) => {
  // Near the ends of chunks and words, and whole chunks.
  const edges = [0, 1, 30, 31, 32, 33, 65_534, 65_535, 65_536, 65_537, 131_071, 131_072, TRACK_COUNT - 1];
  const place = fc.oneof(fc.constantFrom(...edges), fc.nat(TRACK_COUNT - 1));
  const fill = fc.constantFrom('none', 'first', 'all');
  const property = fc.property(
    place,
    place,
    fc.array(place, { maxLength: 40 }),
    fill,
    (one, other, list, filled) => {
      const run = { first: Math.min(one, other), count: Math.abs(one - other) + 1 };
      const bits =
        filled === 'all' ? TrackBits.all(TRACK_COUNT) : TrackBits.from(TrackSet.of(list), TRACK_COUNT);
      if (filled === 'first') bits.addRun({ first: 0, count: 65_536 });
      t.ok(bits.tracksIn(run).equals(bits.toTrackSet().intersection(TrackSet.ofRun(run))));
      t.equal(bits.firstIn(run), bits.tracksIn(run).toArray()[0]);
      const asked = Array.from({ length: Math.min(run.count, 100) }, (_, index) => run.first + index);
      const head = bits.tracksIn({ first: run.first, count: asked.length });
      t.same(
        head.toArray(),
        asked.filter((track) => bits.has(track)),
      );
    },
  );
  fc.assert(property, { numRuns: 100 });
});

t.test('runs that begin and end anywhere in a word and at the end of a chunk', async (t) => {
  const all = Array.from({ length: 140 }, (_, index) => 65_440 + index);
  const marked = all.filter((track) => track % 3 !== 0);
  const bits = TrackBits.from(TrackSet.of(marked), TRACK_COUNT);
  const wrong: string[] = [];
  for (let first = 65_450; first < 65_500; first += 1) {
    for (let count = 1; count <= 70; count += 1) {
      const wanted = marked.filter((track) => track >= first && track < first + count);
      const found = bits.tracksIn({ first, count }).toArray();
      if (found.join() !== wanted.join()) wrong.push(`${first}+${count}`);
      if (bits.firstIn({ first, count }) !== wanted[0]) wrong.push(`the first of ${first}+${count}`);
    }
  }
  t.same(wrong, []);
});

t.test('property: adding bits to bits is the union', async (t) => {
  const property = fc.property(tracks, tracks, (left, right) => {
    const bits = TrackBits.from(TrackSet.of(left), TRACK_COUNT);
    bits.addAll(TrackBits.from(TrackSet.of(right), TRACK_COUNT));
    const union = TrackSet.of([...left, ...right]);
    t.ok(bits.toTrackSet().equals(union));
    t.equal(bits.size, union.size);
  });
  fc.assert(property, { numRuns: 50 });
});

t.test('all tracks, for counts around the sizes of words and chunks', async (t) => {
  for (const count of [1, 31, 32, 33, 65_535, 65_536, 65_537, 131_072]) {
    const bits = TrackBits.all(count);
    t.equal(bits.size, count);
    t.ok(bits.toTrackSet().equals(TrackSet.all(count)), `${count} tracks`);
    t.notOk(bits.has(count));
  }
});

t.test('every flipped bit and every truncation of the serialised form is refused', async (t) => {
  const good = TrackSet.of([1, 5, 6, 7, 70_000]).serialize();
  let accepted = 0;
  for (let bit = 0; bit < good.length * 8; bit += 1) {
    const bad = Buffer.from(good);
    bad.writeUInt8(bad.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
    accepted += isAccepted(bad) ? 1 : 0;
  }
  for (let length = 0; length < good.length; length += 1)
    accepted += isAccepted(good.subarray(0, length)) ? 1 : 0;
  t.equal(accepted, 0);
  t.throws(() => TrackSet.deserialize(good, 'test', 70_000), CorruptionError, 'a track beyond the volume');
});

function isAccepted(bytes: Buffer): boolean {
  try {
    TrackSet.deserialize(bytes, 'test');
    return true;
  } catch (error) {
    if (error instanceof CorruptionError) return false;
    throw error;
  }
}
