/**
 * EXAMPLES B6, and what an incremental is where there is no base, on the real volume, container, lane and store.
 */

import t from 'tap';
import { labelsOf, makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { MemoryArea, type Volume } from '../volume/index.ts';
import { backUp } from './index.ts';
import { labelsInStore, LocalSource, makeTestStore, type Step, tracksInSet } from './session.fixture.ts';

const AREAS = (): MemoryArea[] => [
  new MemoryArea({ sizeBytes: 8 * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES }),
];

const OPTIONS = { codec: 'none', runBytesMax: TEST_TRACK_BYTES, drainBytesMax: TEST_TRACK_BYTES } as const;

async function writeLabels(volume: Volume, labels: Readonly<Record<number, string>>): Promise<void> {
  for (const [track, label] of Object.entries(labels)) await writeLabel(volume, Number(track), label);
}

t.test('B6: marked tracks and hits', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 8 });
  const store = await makeTestStore(t);
  await writeLabels(volume, { 0: 'a0', 1: 'a1', 2: 'a2', 3: 'a3', 4: 'a4', 5: 'a5', 6: 'a6', 7: 'a7' });
  const level0 = new LocalSource({ volume, areas: AREAS() });
  await backUp({ ...OPTIONS, source: level0, store, level: 'full' });
  // What is written since the full is marked: 1 3 4 6.
  await writeLabels(volume, { 1: '1', 3: '3', 4: '4', 6: '6' });

  const read: number[] = [];
  home.forgetOperations();
  const source = new LocalSource({
    volume,
    areas: AREAS(),
    before: async (step: Step, tracks) => {
      if (step !== 'read') return;
      read.push(...tracks);
      // The worker has stored 1 and is about to take whatever is next.
      if (read.length === 2) await writeHits(volume);
    },
  });
  const outcome = await backUp({ ...OPTIONS, source, store, level: 'incremental' });

  t.equal(outcome.level, 'incremental');
  t.equal(outcome.diverted, 1, 'only the first write copied anything, once');
  t.same(await tracksInSet(store, outcome.set), [1, 3, 4, 6]);
  const frozen = ['a0', '1', 'a2', '3', '4', 'a5', '6', 'a7'];
  t.same(await labelsInStore(store, outcome.set), frozen);
  t.equal(source.session.status().tracksLeft, 0, 'no mark is left');
  const touched = home.operations
    .filter(({ kind }) => kind === 'read')
    .map((operation) => operation.offsetBytes / TEST_TRACK_BYTES);
  t.same(
    [...new Set(touched)].sort((a, b) => a - b),
    [1, 3, 4, 6],
    'the session never reads 0, 2, 5 and 7',
  );
  t.same(await labelsOf(volume), ["0'", "1'", 'a2', '3', "4''", 'a5', '6', 'a7']);
});

async function writeHits(volume: Volume): Promise<void> {
  await writeLabel(volume, 4, "4'");
  await writeLabel(volume, 4, "4''");
  await writeLabel(volume, 0, "0'");
  await writeLabel(volume, 1, "1'");
}

t.test('an incremental is a full where there is nothing to build on, and says why', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 2 });
  const store = await makeTestStore(t);
  const take = () =>
    backUp({
      ...OPTIONS,
      source: new LocalSource({ volume: test.volume, areas: AREAS() }),
      store,
      level: 'incremental',
    });
  t.match(await take(), { level: 'full', reason: 'the store has no set of this volume yet' });
  const other = await makeTestStore(t);
  t.match(
    await backUp({
      ...OPTIONS,
      source: new LocalSource({ volume: test.volume, areas: AREAS() }),
      store: other,
      level: 'auto',
    }),
    { level: 'full' },
    'another store has points of its own',
  );
  t.match(await take(), { level: 'incremental' });
});

t.test('after an unclean stop the next incremental holds only what differs', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  const store = await makeTestStore(t);
  const take = () =>
    backUp({
      ...OPTIONS,
      source: new LocalSource({ volume: test.volume, areas: AREAS() }),
      store,
      level: 'incremental',
    });
  await writeLabels(test.volume, { 0: 'a0', 1: 'a1', 2: 'a2' });
  await take();
  await writeLabel(test.volume, 1, 'b1');
  await test.volume.writeZeroes(2 * TEST_TRACK_BYTES, TEST_TRACK_BYTES);
  test.home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(test.volume.close());
  await test.reopen();
  // A failed flush, at the stop too, must be looked into before the volume is written or frozen again.
  await test.volume.check();
  const outcome = await take();
  t.equal(outcome.level, 'incremental');
  t.equal(outcome.bytesRead, 4 * TEST_TRACK_BYTES, 'every track counts as changed');
  t.same(await tracksInSet(store, outcome.set), [1, 2], 'and only those that do differ are in the set');
  t.same(await labelsInStore(store, outcome.set), ['a0', 'b1', '0', '0']);
});
