/**
 * Goal: the regions of a volume that were used last come first, within the bounds of the table, and survive a stop, a
 * freeze and growing; of a volume that was lost they are what a recovery begins with.
 *
 * Method: the table by itself; then a volume that is read and written, and looked at as a recovery looks at it.
 */

import t from 'tap';
import { LIMITS, MIB } from '../base/index.ts';
import { makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { lookForRecovery } from './index.ts';
import { recentRanges, RecentUse } from './recent-use.ts';

const REGION = LIMITS.recentRegionBytesMin;

/** Uses a region often enough that what comes after is later. */
function use(recent: RecentUse, offsetBytes: number): void {
  for (let count = 0; count < 1024; count += 1) recent.note(offsetBytes);
}

t.test('What was used last comes first', async (t) => {
  const recent = new RecentUse(100 * REGION);
  t.equal(recent.takeChanged(), undefined, 'nothing was used');
  for (const region of [7, 3, 99, 7]) use(recent, region * REGION + 512);
  t.same(recent.takeChanged(), { regionBytes: REGION, regions: [7, 99, 3] });
  t.equal(recent.takeChanged(), undefined, 'nothing was used since');
  const again = new RecentUse(100 * REGION, { regionBytes: REGION, regions: [7, 99, 3] });
  use(again, 50 * REGION);
  t.same(again.record().regions, [50, 7, 99, 3], 'what was kept is older than what is new');
});

t.test('Large volumes have larger regions, and not more of them', async (t) => {
  const sizeBytes = 2 ** 48;
  const recent = new RecentUse(sizeBytes);
  recent.note(sizeBytes - 512);
  const { regionBytes, regions } = recent.record();
  t.equal(sizeBytes / regionBytes, LIMITS.recentStampCountMax);
  t.same(recentRanges({ regionBytes, regions }, sizeBytes), [
    { offsetBytes: sizeBytes - regionBytes, lengthBytes: regionBytes },
  ]);
  t.same(recentRanges({ regionBytes, regions }, sizeBytes - regionBytes), [], 'not behind the end');
});

t.test('Growing keeps what is known', async (t) => {
  const recent = new RecentUse(LIMITS.recentStampCountMax * REGION);
  use(recent, 9 * REGION);
  use(recent, 4 * REGION);
  recent.grow(2 * LIMITS.recentStampCountMax * REGION);
  t.same(recent.record(), { regionBytes: 2 * REGION, regions: [2, 4] });
});

t.test('A volume keeps it over a stop and at a freeze', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 1, sizeBytes: 8 * MIB });
  const kept = async () => (await lookForRecovery(test.directory))?.recent;
  t.same(await kept(), undefined);
  await writeLabel(test.volume, (5 * MIB) / TEST_TRACK_BYTES, 'a');
  await test.volume.createSnapshot('s');
  t.same(await kept(), { regionBytes: REGION, regions: [(5 * MIB) / REGION] }, 'at a freeze');
  await test.volume.read(Buffer.alloc(512), 2 * MIB);
  await test.reopen();
  t.same(await kept(), { regionBytes: REGION, regions: [2, 5].map((at) => (at * MIB) / REGION) });
});
