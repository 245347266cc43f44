/**
 * EXAMPLES N2: epochs through a full and an incremental backup, with deltas.
 *
 * Method: the real volume, delta store, backup and store; gates hold a backup between its freeze and its end. After each
 * step what a rebuild would give is put together from the store and the logs alone, the home left out: the newest set that
 * a log begins at, and the logs from there on. What is read of the home is what its device was asked for.
 */

import { rm } from 'node:fs/promises';
import t from 'tap';
import { deferred } from '../base/index.ts';
import type { Store } from '../blockset/index.ts';
import { DeltaReader } from '../delta/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { labelOf, makeTestVolume, TEST_TRACK_BYTES, type TestVolume, writeLabel } from '../sim/index.ts';
import { MemoryArea } from '../volume/index.ts';
import { backUp, type SetOutcome } from './index.ts';
import { labelsInStore, LocalSource, makeTestStore, tracksInSet } from './session.fixture.ts';

const TRACK_COUNT = 8;

interface Example {
  readonly test: TestVolume;
  readonly store: Store;
}

interface RunningBackup {
  readonly outcome: Promise<SetOutcome>;
  /** Lets it go on to its end. */
  readonly release: () => void;
  readonly fail: () => void;
  readonly source: LocalSource;
}

async function begin(t: Parameters<typeof makeTestVolume>[0], deltaCount: number): Promise<Example> {
  const test = await makeTestVolume(t, { trackCount: TRACK_COUNT, deltaCount });
  return { test, store: await makeTestStore(t) };
}

/** A backup that was frozen, and stops before its set is complete. */
async function freeze({ test, store }: Example, level: 'full' | 'incremental'): Promise<RunningBackup> {
  const frozen = deferred();
  const gate = deferred();
  const area = new MemoryArea({ sizeBytes: TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
  const source = new LocalSource({
    volume: test.volume,
    areas: [area],
    before: async (step) => {
      if (step !== 'take') return;
      frozen.resolve();
      await gate.promise;
    },
  });
  const outcome = backUp({ source, store, level, codec: 'none', runBytesMax: TEST_TRACK_BYTES });
  outcome.catch(() => undefined);
  await frozen.promise;
  return {
    outcome,
    source,
    release: () => gate.resolve(),
    fail: () => gate.reject(new Error('The store failed')),
  };
}

/** What the store and the logs give without the home, and what it is made of. */
async function rebuilt({ test, store }: Example): Promise<{ labels: string[]; sets: number; logs: number }> {
  const { volumeId } = test.volume.identity;
  const registry = new DeviceRegistry();
  const reader = await DeltaReader.open(test.deltaPlaces, { registry, volumeId });
  try {
    const begins = new Set(reader.points.map(({ point }) => point));
    const newest = (await store.newestPoints(volumeId)).find(({ point }) => begins.has(point));
    const set = newest?.sets[0];
    const labels = set === undefined ? undefined : await labelsInStore(store, set.id);
    const index = await reader.index(newest?.point ?? '');
    const found: string[] = [];
    for (let track = 0; track < TRACK_COUNT; track += 1) {
      const content = Buffer.alloc(TEST_TRACK_BYTES);
      const isHeld = await index.overlay(track, content);
      found.push(isHeld ? labelOf(content) : (labels?.[track] ?? '0'));
    }
    const sets = set === undefined ? 0 : (await store.list()).length;
    return { labels: found, sets, logs: reader.points.length };
  } finally {
    await reader.close();
  }
}

function only(labels: Readonly<Record<number, string>>): string[] {
  return Array.from({ length: TRACK_COUNT }, (_, track) => labels[track] ?? '0');
}

for (const lost of [undefined, 1, 2, 3, 4, 5, 6, 7, 8]) {
  const members = lost === undefined ? 'one member' : `two members, one lost at step ${lost}`;
  t.test(`N2: ${members}`, async (t) => {
    const example = await begin(t, lost === undefined ? 1 : 2);
    const { test, store } = example;
    const check = async (
      step: number,
      logs: number,
      sets: number,
      labels: Readonly<Record<number, string>>,
    ): Promise<void> => {
      await test.volume.flush();
      if (step === lost) await rm(test.deltaPlaces[0] ?? '', { recursive: true });
      t.same(await rebuilt(example), { labels: only(labels), sets, logs }, `step ${step}`);
    };

    await writeLabel(test.volume, 1, 'a1');
    await writeLabel(test.volume, 2, 'a2');
    await check(1, 1, 0, { 1: 'a1', 2: 'a2' });
    const full = await freeze(example, 'full');
    await check(2, 2, 0, { 1: 'a1', 2: 'a2' });
    await writeLabel(test.volume, 2, 'b2');
    await check(3, 2, 0, { 1: 'a1', 2: 'b2' });
    full.release();
    await full.outcome;
    await check(4, 1, 1, { 1: 'a1', 2: 'b2' });
    await writeLabel(test.volume, 3, 'b3');
    await check(5, 1, 1, { 1: 'a1', 2: 'b2', 3: 'b3' });

    test.home.forgetOperations();
    const incremental = await freeze(example, 'incremental');
    await check(6, 2, 1, { 1: 'a1', 2: 'b2', 3: 'b3' });
    t.equal(incremental.source.session.status().tracksLeft, 0, 'nothing is protected');
    await writeLabel(test.volume, 3, 'c3');
    await writeLabel(test.volume, 5, 'c5');
    await check(7, 2, 1, { 1: 'a1', 2: 'b2', 3: 'c3', 5: 'c5' });
    incremental.release();
    const { set, diverted } = await incremental.outcome;
    t.equal(diverted, 0);
    t.same(
      test.home.operations.filter(({ kind }) => kind === 'read'),
      [],
      'the home was not read',
    );
    t.same(await tracksInSet(store, set), [2, 3]);
    t.same(
      await labelsInStore(store, set),
      only({ 1: 'a1', 2: 'b2', 3: 'b3' }),
      'full and incremental alone',
    );
    await check(8, 1, 2, { 1: 'a1', 2: 'b2', 3: 'c3', 5: 'c5' });
  });
}

t.test('N2: where step 8 fails both logs stay, and the next set has all of it', async (t) => {
  const example = await begin(t, 2);
  const { test, store } = example;
  await writeLabel(test.volume, 1, 'a1');
  await writeLabel(test.volume, 2, 'a2');
  const full = await freeze(example, 'full');
  await writeLabel(test.volume, 2, 'b2');
  full.release();
  await full.outcome;
  await writeLabel(test.volume, 3, 'b3');
  const incremental = await freeze(example, 'incremental');
  await writeLabel(test.volume, 3, 'c3');
  await writeLabel(test.volume, 5, 'c5');
  incremental.fail();
  await t.rejects(incremental.outcome, { message: 'The store failed' });
  incremental.source.session.fail(new Error('The store failed'));
  await incremental.source.session.whenEnded();
  await test.volume.flush();
  t.same(await rebuilt(example), { labels: only({ 1: 'a1', 2: 'b2', 3: 'c3', 5: 'c5' }), sets: 1, logs: 2 });
  const next = await freeze(example, 'incremental');
  next.release();
  t.same(await tracksInSet(store, (await next.outcome).set), [2, 3, 5]);
});
