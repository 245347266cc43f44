/**
 * Goal: whatever was written and not covered by a flush that succeeded is told, in any order of writes and flushes.
 * Method: random histories against a set of tracks per write; a history longer than the list by whole regions.
 */

import fc from 'fast-check';
import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { UnflushedTracks } from './unflushed-tracks.ts';

const one = (track: number) => ({ first: track, count: 1 });

t.test('what a flush covers is forgotten when it succeeds, and only then', async (t) => {
  const unflushed = new UnflushedTracks({ trackCount: 100 });
  unflushed.mark(one(3));
  const first = unflushed.beginFlush([]);
  unflushed.mark({ first: 10, count: 2 });
  const second = unflushed.beginFlush([one(11)]);
  unflushed.mark(one(4));
  t.same(unflushed.tracks().toArray(), [3, 4, 10, 11]);
  unflushed.flushed(second);
  t.same(unflushed.tracks().toArray(), [4, 11], 'it covers the first as well; what was in flight stays');
  unflushed.flushed(first);
  t.same(unflushed.tracks().toArray(), [4, 11]);
  unflushed.flushed(unflushed.beginFlush([]));
  t.ok(unflushed.tracks().isEmpty);
});

t.test('any history of writes and flushes', async (t) => {
  const step = fc.oneof(
    fc.record({
      kind: fc.constant('write' as const),
      first: fc.nat(50),
      count: fc.integer({ min: 1, max: 5 }),
    }),
    fc.record({ kind: fc.constant('begin' as const) }),
    fc.record({ kind: fc.constant('end' as const), which: fc.nat(3) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const unflushed = new UnflushedTracks({ trackCount: 60 });
      let loose: { track: number; age: number }[] = [];
      const running: { ticket: number; age: number }[] = [];
      steps.forEach((next, age) => {
        if (next.kind === 'write') {
          unflushed.mark(next);
          for (let index = 0; index < next.count; index += 1) loose.push({ track: next.first + index, age });
        } else if (next.kind === 'begin') running.push({ ticket: unflushed.beginFlush([]), age });
        else {
          const [ended] = running.splice(next.which, 1);
          if (ended === undefined) return;
          unflushed.flushed(ended.ticket);
          loose = loose.filter((write) => write.age > ended.age);
        }
      });
      const expected = [...new Set(loose.map(({ track }) => track))].sort((a, b) => a - b);
      t.same(unflushed.tracks().toArray(), expected);
    }),
    { numRuns: 200 },
  );
});

t.test('tracks that a volume has grown by are told, too', async (t) => {
  const volume = { trackCount: 100 };
  const unflushed = new UnflushedTracks(volume);
  const markMore = (first: number): void => {
    for (let count = 0; count <= LIMITS.unflushedTrackCountMax; count += 1)
      unflushed.mark(one(first + (count % 50)));
  };
  markMore(0);
  volume.trackCount = 1_000_000;
  unflushed.mark(one(999_999));
  markMore(100);
  t.ok(unflushed.tracks().has(999_999));
  t.ok(unflushed.tracks().has(149));
});

t.test('more than the list takes is told by whole regions', async (t) => {
  const trackCount = LIMITS.unflushedTrackCountMax * 3 + 5;
  const unflushed = new UnflushedTracks({ trackCount });
  for (let track = 0; track <= LIMITS.unflushedTrackCountMax; track += 1) unflushed.mark(one(track * 2));
  unflushed.mark(one(trackCount - 1));
  const tracks = unflushed.tracks();
  for (let track = 0; track <= LIMITS.unflushedTrackCountMax; track += 1) {
    if (!tracks.has(track * 2)) t.fail(`track ${track * 2} is forgotten`);
  }
  t.ok(tracks.has(trackCount - 1));
  t.equal(tracks.size, LIMITS.unflushedTrackCountMax * 2 + 2, 'the regions, and the two that came last');
  unflushed.flushed(unflushed.beginFlush([]));
  t.ok(unflushed.tracks().isEmpty);
});
