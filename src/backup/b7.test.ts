/**
 * EXAMPLES B7: levels, on the real volume, container, lane and store. Six segments, level zero; then 1 and 3 change
 * before the first further backup, 5 before the second.
 *
 * Method: what a set holds is read from the set by itself, what restores is read through its chain, and what was read
 * of the home is what the home's device was asked for.
 */

import { rename } from 'node:fs/promises';
import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { makeTestVolume, TEST_TRACK_BYTES, type TestVolume, writeLabel } from '../sim/index.ts';
import { MemoryArea } from '../volume/index.ts';
import { backUp, type SetOutcome } from './index.ts';
import type { Level } from './messages.ts';
import { labelsInStore, LocalSource, makeTestStore, tracksInSet } from './session.fixture.ts';

interface LevelsExample {
  readonly test: TestVolume;
  readonly store: Awaited<ReturnType<typeof makeTestStore>>;
  /** Takes a backup after these segments were written. */
  readonly take: (level: Level, labels?: Readonly<Record<number, string>>) => Promise<SetOutcome>;
  /** Tracks of the home that were read since the last backup began. */
  readonly readTracks: () => number[];
}

async function begin(t: Parameters<typeof makeTestVolume>[0]): Promise<LevelsExample> {
  const test = await makeTestVolume(t, { trackCount: 6 });
  const store = await makeTestStore(t);
  const take: LevelsExample['take'] = async (level, labels = {}) => {
    for (const [track, label] of Object.entries(labels)) await writeLabel(test.volume, Number(track), label);
    test.home.forgetOperations();
    const area = new MemoryArea({ sizeBytes: 8 * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
    const source = new LocalSource({ volume: test.volume, areas: [area] });
    return backUp({ source, store, level, codec: 'none', runBytesMax: TEST_TRACK_BYTES });
  };
  const readTracks = (): number[] =>
    test.home.operations
      .filter(({ kind }) => kind === 'read')
      .map(({ offsetBytes }) => offsetBytes / TEST_TRACK_BYTES);
  return { test, store, take, readTracks };
}

const LEVEL_ZERO = { 0: 'a0', 1: 'a1', 2: 'a2', 3: 'a3', 4: 'a4', 5: 'a5' };
const AT_THE_END = ['a0', 'b1', 'a2', 'b3', 'a4', 'c5'];

/** Hides a set's file from the store while the body runs. */
async function without(example: LevelsExample, set: string, body: () => Promise<unknown>): Promise<void> {
  const { path } = await example.store.find(set);
  await rename(path, `${path}.away`);
  await body();
  await rename(`${path}.away`, path);
}

t.test('B7: differential', async (t) => {
  const example = await begin(t);
  const { store, take, readTracks } = example;
  const level0 = await take('full', LEVEL_ZERO);
  t.same(await tracksInSet(store, level0.set), [0, 1, 2, 3, 4, 5]);
  const first = await take('differential', { 1: 'b1', 3: 'b3' });
  t.match(first, { level: 'differential', base: level0.point, reason: undefined });
  t.same(await tracksInSet(store, first.set), [1, 3]);
  t.same(readTracks(), [1, 3], 'no other track is read to find out what changed');
  const second = await take('differential', { 5: 'c5' });
  t.match(second, { level: 'differential', base: level0.point });
  t.same(await tracksInSet(store, second.set), [1, 3, 5], 'all since level zero');
  t.same(readTracks(), [1, 3, 5]);
  await without(example, first.set, async () => {
    t.same(await labelsInStore(store, second.set), AT_THE_END, 'level zero and the last one are enough');
  });
  await without(example, level0.set, async () => {
    await t.rejects(labelsInStore(store, second.set), new RegExp(level0.set), 'level zero is named');
  });
  await take('full');
  const nothing = await take('differential');
  t.same(await tracksInSet(store, nothing.set), [], 'after a new level zero, with nothing written, nothing');
  t.same(readTracks(), []);
});

t.test('B7: incremental', async (t) => {
  const example = await begin(t);
  const { store, take, readTracks } = example;
  const level0 = await take('full', LEVEL_ZERO);
  const first = await take('incremental', { 1: 'b1', 3: 'b3' });
  t.match(first, { level: 'incremental', base: level0.point });
  t.same(await tracksInSet(store, first.set), [1, 3]);
  t.same(readTracks(), [1, 3], 'no other track is read to find out what changed');
  const second = await take('incremental', { 5: 'c5' });
  t.match(second, { level: 'incremental', base: first.point });
  t.same(await tracksInSet(store, second.set), [5]);
  t.same(await labelsInStore(store, second.set), AT_THE_END);
  for (const needed of [level0, first]) {
    await without(example, needed.set, async () => {
      await t.rejects(labelsInStore(store, second.set), new RegExp(needed.set), 'the missing one is named');
    });
  }
  const again = await take('full');
  const nothing = await take('incremental');
  t.equal(nothing.base, again.point);
  t.same(await tracksInSet(store, nothing.set), []);
  t.same(readTracks(), [], 'nothing is read');
});

t.test('B7: both kinds in one store, after a clean stop and many points in between', async (t) => {
  const { test, store, take, readTracks } = await begin(t);
  const level0 = await take('full', LEVEL_ZERO);
  await take('incremental', { 1: 'b1' });
  // Neither of the store's boundaries is among the newest points any more.
  for (let index = 0; index <= LIMITS.pointRecentCount; index += 1) {
    await test.volume.createSnapshot('other');
    await test.volume.deleteSnapshot('other');
  }
  await test.reopen();
  const differential = await take('differential', { 3: 'b3' });
  t.match(differential, { level: 'differential', base: level0.point });
  t.same(readTracks(), [1, 3], 'exactly what changed since level zero');
  const incremental = await take('incremental', { 5: 'c5' });
  t.match(incremental, { level: 'incremental', base: differential.point });
  t.same(readTracks(), [5]);
  t.same(await labelsInStore(store, incremental.set), AT_THE_END);
});

t.test('a differential is a full where the store has none, and says why', async (t) => {
  const { take, store } = await begin(t);
  t.match(await take('differential'), { level: 'full', reason: 'the store has no set of this volume yet' });
  const [full] = await store.list();
  await take('incremental');
  t.ok(full);
  t.match(await take('differential'), { level: 'differential', base: full?.header?.point });
});

t.test('auto takes a full when the chain has the sets that were asked for', async (t) => {
  const { test, store } = await begin(t);
  const levels: string[] = [];
  for (let count = 0; count < 5; count += 1) {
    const source = new LocalSource({ volume: test.volume, areas: [] });
    const begin = source.begin.bind(source);
    source.begin = (request) => begin({ ...request, fullEvery: 2 });
    levels.push((await backUp({ source, store, level: 'auto', codec: 'none' })).level);
  }
  t.same(levels, ['full', 'incremental', 'full', 'incremental', 'full']);
});
