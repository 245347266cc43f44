/**
 * A chain read in threads.
 *
 * Goal: it gives what the chain itself gives, track for track, from all lanes in turn; damage arrives as corruption
 * with its tracks; and it ends, whatever was read of it.
 *
 * Method: a real store with a full set of three lanes and an incremental, real threads.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { CorruptionError, present } from '../base/index.ts';
import { builtProgram } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { ThreadedChain } from './chain-threads.ts';
import { LaneWriter } from './lane-writer.ts';
import { labelled, labelOf, newSet, saveSet, scratch, TRACK_BYTES, withoutSyncs } from './model.fixture.ts';
import { Store } from './store.ts';

const PROGRAM = builtProgram('chain-reader');
const TRACKS = 3 * 256 * 4;

async function makeChain(path: string, codec: 'none' | 'zstd' = 'none'): Promise<Store> {
  const store = await Store.init(path);
  const sizeBytes = TRACKS * TRACK_BYTES;
  const { assembly, lanes } = await store.beginSet(
    newSet({ sizeBytes, point: 'p1', codec }),
    { count: 3, directories: [] },
    async (parts) => parts.map((part) => new LaneWriter({ ...part, compression: { codec } })),
  );
  for (let track = 0; track < TRACKS; track += 1) lanes[track % 3]?.add(track, labelled(`a${track}`));
  await assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await assembly.seal();
  await saveSet(store, { sizeBytes, base: 'p1', point: 'p2' }, [
    [5, 'b5'],
    [6, null],
  ]);
  return store;
}

async function open(store: Store): Promise<ThreadedChain> {
  const chain = await store.chain((await store.find('latest')).id);
  return await ThreadedChain.start(chain, { program: PROGRAM, storePath: store.path });
}

for (const codec of ['none', 'zstd'] as const) {
  t.test(`every track comes once, as the chain has it: ${codec}`, (t) => everyTrack(t, codec, false));
  t.test(`so it does where the memory is given back: ${codec}`, (t) => everyTrack(t, codec, true));
}

async function everyTrack(t: Test, codec: 'none' | 'zstd', isRecycling: boolean): Promise<void> {
  withoutSyncs(t);
  const store = await makeChain(join(scratch(t), 's'), codec);
  const chain = await open(store);
  const labels = new Map<number, string>();
  const lanes: number[] = [];
  for (const entry of chain.readPlan(chain.tracks())) {
    lanes.push(entry.lane);
    const read = await chain.readFrame(entry);
    for (const { track, content } of read) {
      t.notOk(labels.has(track));
      labels.set(track, labelOf(content));
    }
    if (isRecycling) chain.recycle(read);
  }
  await chain.close();
  t.equal(labels.size, TRACKS - 1);
  for (const [track, label] of labels) t.equal(label, track === 5 ? 'b5' : `a${track}`);
  t.same(lanes.slice(1, 7), [0, 1, 2, 0, 1, 2], 'the lanes in turn');
}

t.test('a plan that is given up, and a frame that is asked for by itself', async (t) => {
  withoutSyncs(t);
  const store = await makeChain(join(scratch(t), 's'));
  const chain = await open(store);
  const [entry] = chain.readPlan(TrackSet.of([100, 101]));
  t.ok(entry);
  const read = await chain.readFrame(present(entry, 'A plan of two tracks has a frame'));
  t.equal(labelOf(read[0]?.content), `a${read[0]?.track}`);
  await chain.close();
});

t.test('damage is corruption here as well, and names its tracks', async (t) => {
  withoutSyncs(t);
  const store = await makeChain(join(scratch(t), 's'));
  const chain = await open(store);
  const full = present((await store.list())[0], 'The full set');
  const path = present(full.lanePaths[1], 'A second lane');
  const bytes = readFileSync(path);
  bytes[bytes.indexOf('<a400>') + 100] = 0;
  writeFileSync(path, bytes);
  const damaged: number[] = [];
  for (const entry of chain.readPlan(chain.tracks())) {
    try {
      await chain.readFrame(entry);
    } catch (error) {
      t.ok(error instanceof CorruptionError);
      if (error instanceof CorruptionError) damaged.push(...(error.place.tracks ?? []));
    }
  }
  await chain.close();
  t.ok(damaged.includes(400) && damaged.every((track) => track % 3 === 1), 'tracks of one frame of lane 1');
});

t.test('a chain that is another one in the threads is refused', async (t) => {
  withoutSyncs(t);
  const store = await makeChain(join(scratch(t), 's'));
  const other = await makeChain(join(scratch(t), 's'));
  const chain = await store.chain((await store.find('latest')).id);
  await t.rejects(ThreadedChain.start(chain, { program: PROGRAM, storePath: other.path }));
});
