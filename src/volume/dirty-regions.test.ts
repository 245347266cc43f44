/**
 * Goal: after an unclean stop the regions in doubt contain everything that was written since the last flush, and no
 * longer what was written long ago and flushed.
 *
 * Method: regions of two tracks, a clock of our own, and files looked at as the next owner finds them. A random run
 * compares them with what was written and not flushed.
 */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { LIMITS, ManualClock } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { DirtyRegions } from './dirty-regions.ts';
import type { IntentPlace } from './intent-log.ts';

function newPlace(): IntentPlace {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-dirty-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return { directory, volumeId: 'a'.repeat(32), trackCount: 16, regionTracks: 2 };
}

async function found(place: IntentPlace): Promise<number[] | undefined> {
  return (await DirtyRegions.find(place))?.toArray();
}

/** As the write path does it. */
async function write(dirty: DirtyRegions, track: number): Promise<void> {
  const run = { first: track, count: 1 };
  while (!dirty.covers(run)) await dirty.cover(run);
  dirty.note(run);
}

function segmentCount({ directory }: IntentPlace): number {
  return readdirSync(join(directory, 'dirty')).length;
}

/** Flushes again and again: what a flush begins takes a few turns of the disk. */
async function flushedUntil(dirty: DirtyRegions, isSo: () => boolean): Promise<void> {
  while (!isSo()) {
    dirty.flushed(dirty.flushBegins());
    await new Promise((resolve) => setImmediate(resolve));
  }
}

t.test('what was written is in doubt, by whole regions, until a clean stop', async (t) => {
  const place = newPlace();
  t.equal(await found(place), undefined, 'nothing is kept of a new volume');
  const dirty = await DirtyRegions.begin(place, new ManualClock(), TrackSet.empty());
  t.same(await found(place), []);
  await write(dirty, 5);
  t.same(await found(place), [4, 5]);
  await dirty.close();
  const next = await DirtyRegions.begin(place, new ManualClock(), TrackSet.empty());
  t.same(await found(place), [4, 5], 'the next owner has not settled it yet');
  await write(next, 0);
  await next.settled();
  t.same(await found(place), [0, 1]);
  await next.clear();
  await next.close();
  t.equal(await found(place), undefined);
});

t.test('what is in doubt when there are no segments yet gets one', async (t) => {
  const place = newPlace();
  const dirty = await DirtyRegions.begin(place, new ManualClock(), TrackSet.of([2, 9]));
  t.same(await found(place), [2, 3, 8, 9]);
  await dirty.settled();
  t.same(await found(place), []);
  await dirty.close();
});

t.test('a region that is not written any more goes with the flush after the turn', async (t) => {
  const place = newPlace();
  const clock = new ManualClock();
  const dirty = await DirtyRegions.begin(place, clock, TrackSet.empty());
  await write(dirty, 0);
  await write(dirty, 8);
  clock.advance(LIMITS.dirtyTurnMs);
  await flushedUntil(dirty, () => dirty.flushBegins().segment === 2);
  t.ok(dirty.covers({ first: 0, count: 1 }), 'carried over once: it was written since the last turn');
  await write(dirty, 8);
  clock.advance(LIMITS.dirtyTurnMs);
  await flushedUntil(dirty, () => dirty.flushBegins().segment === 3);
  t.notOk(dirty.covers({ first: 0, count: 1 }));
  await flushedUntil(dirty, () => segmentCount(place) === 1);
  await dirty.close();
  t.same(await found(place), [8, 9], 'region 0 has gone');
});

t.test('a flush that began before the turn takes nothing away', async (t) => {
  const place = newPlace();
  const clock = new ManualClock();
  const dirty = await DirtyRegions.begin(place, clock, TrackSet.empty());
  await write(dirty, 0);
  const before = dirty.flushBegins();
  clock.advance(LIMITS.dirtyTurnMs);
  await flushedUntil(dirty, () => segmentCount(place) === 2);
  dirty.flushed(before);
  t.equal(segmentCount(place), 2);
  await dirty.close();
});

t.test('whatever order of writes, flushes and turns: nothing that was not flushed is missing', async () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('write' as const), track: fc.integer({ min: 0, max: 15 }) }),
    fc.record({ kind: fc.constantFrom('flush-begins' as const, 'flush-ends' as const, 'time' as const) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const place = newPlace();
      const clock = new ManualClock();
      const dirty = await DirtyRegions.begin(place, clock, TrackSet.empty());
      const unflushed = new Set<number>();
      let flushing: { ticket: ReturnType<DirtyRegions['flushBegins']>; covers: Set<number> } | undefined;
      for (const one of steps) {
        if (one.kind === 'write') {
          await write(dirty, one.track);
          unflushed.add(one.track);
          flushing?.covers.delete(one.track);
        } else if (one.kind === 'time') clock.advance(LIMITS.dirtyTurnMs);
        else if (one.kind === 'flush-begins')
          flushing ??= { ticket: dirty.flushBegins(), covers: new Set(unflushed) };
        else if (flushing !== undefined) {
          const { ticket, covers } = flushing;
          dirty.flushed(ticket);
          for (const track of covers) unflushed.delete(track);
          flushing = undefined;
        }
        const known = new Set(await found(place));
        for (const track of unflushed)
          if (!known.has(track)) throw new Error(`Track ${track} was written, and is not in doubt`);
      }
      await dirty.close();
    }),
    { numRuns: 60 },
  );
});
