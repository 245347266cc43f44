/**
 * Goal: a region that was covered is found again, whatever a crash did to what was being written; a damaged log is never
 * taken for a shorter one; writers share syncs.
 * Method: real segments in a real directory; syncs held and failed by the observer; files cut and harmed by hand.
 */

import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { observeSyncs } from '../base/index.ts';
import { findSegments, IntentLog, type IntentPlace, removeSegments } from './intent-log.ts';

const PATH = 'intent-0000000007.log';

function makePlace(t: Test, trackCount = 1000, regionTracks = 10): IntentPlace {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-intent-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return { directory, volumeId: '0123456789abcdef0123456789abcdef', trackCount, regionTracks };
}

const one = (track: number) => ({ first: track, count: 1 });

async function tracksFound(place: IntentPlace): Promise<number[]> {
  const [segment] = await findSegments(place);
  return segment?.tracks.toArray() ?? [];
}

/** First and last track of each region. */
const regions = (...numbers: readonly number[]): number[] =>
  numbers.flatMap((region) => Array.from({ length: 10 }, (_, index) => region * 10 + index));

t.test('what is covered is found, in whole regions', async (t) => {
  const place = makePlace(t);
  const log = await IntentLog.create(place, 7, [3]);
  t.ok(log.covers({ first: 30, count: 10 }));
  t.notOk(log.covers({ first: 30, count: 11 }));
  await log.cover({ first: 55, count: 20 });
  await log.cover(one(999));
  t.ok(log.covers({ first: 50, count: 30 }));
  await log.close();
  t.same(await tracksFound(place), regions(3, 5, 6, 7, 99));
  t.match(await findSegments(place), [{ epoch: 7 }]);
  await removeSegments(place.directory, (epoch) => epoch === 7);
  t.same(await findSegments(place), []);
});

t.test('a stream is logged ahead', async (t) => {
  const log = await IntentLog.create(makePlace(t), 7, []);
  await log.cover(one(200));
  t.notOk(log.covers(one(210)));
  await log.cover(one(210));
  t.ok(log.covers({ first: 210, count: 40 }), 'the next three regions too');
  t.notOk(log.covers(one(250)));
  await log.close();
});

t.test('writers that come during a sync share the next one', async (t) => {
  const place = makePlace(t);
  const log = await IntentLog.create(place, 7, []);
  let syncCount = 0;
  observeSyncs({
    before: () => {
      syncCount += 1;
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await Promise.all(Array.from({ length: 50 }, (_, index) => log.cover(one(((index * 37) % 100) * 10))));
  t.ok(syncCount <= 2, `${syncCount} syncs for 50 writers`);
  await log.close();
});

t.test('a sync that failed covers nothing, and is not tried again', async (t) => {
  const place = makePlace(t);
  const log = await IntentLog.create(place, 7, []);
  observeSyncs({
    before: () => {
      throw Object.assign(new Error('EIO: injected'), { code: 'EIO' });
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await t.rejects(log.cover(one(5)), /injected/);
  observeSyncs(undefined);
  t.notOk(log.covers(one(5)));
  await t.rejects(log.cover(one(5)), /injected/, 'a later sync would not tell what the failed one lost');
  await log.close();
});

t.test('whatever a crash left of the last batch, the batches before it are found', async (t) => {
  const place = makePlace(t, 10_000);
  const path = join(place.directory, PATH);
  const log = await IntentLog.create(place, 7, []);
  await log.cover(one(400));
  await log.cover({ first: 0, count: 300 });
  await log.cover(one(800));
  const durable = statSync(path).size;
  // Two sectors.
  await log.cover({ first: 5000, count: 1300 });
  await log.close();
  const whole = readFileSync(path);
  const expected = regions(...Array.from({ length: 30 }, (_, index) => index), 40, 80);
  await fc.assert(
    fc.asyncProperty(fc.nat(whole.length - durable - 1), fc.boolean(), async (at, isCut) => {
      writeFileSync(path, whole);
      const sectorAt = durable + at - (at % 512);
      if (isCut) truncateSync(path, durable + at);
      else writeFileSync(path, Buffer.from(whole).fill(0, sectorAt, sectorAt + 512));
      const [found] = await findSegments(place);
      t.equal(found?.condition, at === 0 && isCut ? 'whole' : 'torn');
      t.equal(found?.isBegun, true);
      return (
        expected.every((track) => found?.tracks.has(track)) && (found?.tracks.size ?? 0) < place.trackCount
      );
    }),
    { numRuns: 100 },
  );
});

t.test('a changed byte of any batch means that every track may have been written', async (t) => {
  const place = makePlace(t);
  const path = join(place.directory, PATH);
  const log = await IntentLog.create(place, 7, []);
  for (const track of [10, 400, 800]) await log.cover(one(track));
  await log.close();
  const whole = readFileSync(path);
  // The bytes that count of each batch; the first one has no region.
  for (let at = 0; at < whole.length; at += 1) {
    if (at % 512 >= (at < 512 ? 36 : 40)) continue;
    const harmed = Buffer.from(whole);
    harmed[at] = (harmed[at] ?? 0) ^ 1;
    writeFileSync(path, harmed);
    t.equal((await tracksFound(place)).length, place.trackCount, `byte ${at}`);
  }
});

t.test('a segment of another volume, epoch or place is not believed', async (t) => {
  const place = makePlace(t);
  const log = await IntentLog.create(place, 7, [1]);
  await log.close();
  const foreign = await findSegments({ ...place, volumeId: 'f'.repeat(32) });
  t.match(foreign, [{ condition: 'damaged', isBegun: false, tracks: { size: place.trackCount } }]);
  writeFileSync(join(place.directory, 'intent-0000000008.log'), readFileSync(join(place.directory, PATH)));
  const [, copy] = await findSegments(place);
  t.match(copy, { epoch: 8, condition: 'damaged', isBegun: false, tracks: { size: place.trackCount } });
  t.same(
    await tracksFound({ ...place, regionTracks: 999 }),
    regions(1),
    'it says itself how large its regions are',
  );
});
