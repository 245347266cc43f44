/**
 * Goal: two stores at once on one volume, through the real engine: each set is complete and exact at its own point,
 * and each store goes on from its own. Method: two backups side by side, with writes before, between and after the
 * freezes, and the store of the first held until the second has finished.
 */

import t from 'tap';
import { deferred } from '../base/index.ts';
import { makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { MemoryArea } from '../volume/index.ts';
import { backUp, type SetOutcome } from './index.ts';
import { labelsInStore, LocalSource, makeTestStore, tracksInSet } from './session.fixture.ts';

const OPTIONS = { level: 'auto', codec: 'zstd', runBytesMax: TEST_TRACK_BYTES } as const;

function memory(slots: number): MemoryArea[] {
  return [new MemoryArea({ sizeBytes: slots * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES })];
}

t.test('two stores at once, each exact at its own point', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 6 });
  for (let track = 0; track < 6; track += 1) await writeLabel(volume, track, `o${track}`);
  const stores = [await makeTestStore(t), await makeTestStore(t)] as const;
  const held = deferred();
  const begun = deferred();
  const first = backUp({
    ...OPTIONS,
    source: new LocalSource({
      volume,
      areas: memory(6),
      before: async (step) => {
        if (step !== 'read' && step !== 'take') return;
        begun.resolve();
        await held.promise;
      },
    }),
    store: stores[0],
  });
  await begun.promise;
  await writeLabel(volume, 0, 'n0');
  const between = deferred<SetOutcome>();
  const second = backUp({
    ...OPTIONS,
    source: new LocalSource({
      volume,
      areas: memory(1),
      before: async (step) => {
        // Both sessions protect track 5.
        if (step === 'confirm') await writeLabel(volume, 5, 'n5');
      },
    }),
    store: stores[1],
  });
  second.then(between.resolve, between.reject);
  const later = await between.promise;
  t.same(await labelsInStore(stores[1], later.set), ['n0', 'o1', 'o2', 'o3', 'o4', 'o5']);
  t.match(volume.status().sessions, [{ consumer: stores[0].id, containerEntries: 2 }]);
  held.resolve();
  const earlier = await first;
  t.same(await labelsInStore(stores[0], earlier.set), ['o0', 'o1', 'o2', 'o3', 'o4', 'o5']);

  for (const [index, tracks] of [
    [0, [0, 5]],
    [1, [5]],
  ] as const) {
    const source = new LocalSource({ volume, areas: memory(1) });
    const next = await backUp({ ...OPTIONS, source, store: stores[index] });
    t.equal(next.level, 'incremental');
    t.same(await tracksInSet(stores[index], next.set), tracks, 'each store goes on from its own point');
    t.same(await labelsInStore(stores[index], next.set), ['n0', 'o1', 'o2', 'o3', 'o4', 'n5']);
  }
});
