/**
 * EXAMPLES B13, and lanes in threads.
 *
 * Goal: lanes write side by side, none waits for another, every track lands in exactly one lane, and equal tracks
 * are stored once; in this process and in threads alike. A lane that dies or cannot write fails the session and
 * leaves no set. Where a lane's file goes missing, the tracks of the others can still be salvaged.
 *
 * Method: the real volume, store and lanes. A slow lane is one whose reads are answered only after so many reads of
 * the other, so nothing depends on the time.
 */

import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { deferred, present } from '../base/index.ts';
import type { LaneParts, Store } from '../blockset/index.ts';
import {
  labelled,
  labelOf,
  makeTestVolume,
  TEST_TRACK_BYTES,
  builtProgram,
  writeLabel,
} from '../sim/index.ts';
import { type ContainerArea, MemoryArea } from '../volume/index.ts';
import type { LaneStart } from './backup.ts';
import { backUp } from './index.ts';
import { ThreadLane } from './lane-thread.ts';
import { type LaneWorker, LocalLane } from './lane-worker.ts';
import { labelsInStore, LocalSource, makeTestStore } from './session.fixture.ts';

const LANE_PROGRAM = builtProgram('lane-worker');
const OPTIONS = { codec: 'none', runBytesMax: TEST_TRACK_BYTES, drainBytesMax: TEST_TRACK_BYTES } as const;
const SLOWNESS = 100;
const TRACKS = 300;

const areas = (): ContainerArea[] => [
  new MemoryArea({ sizeBytes: 64 * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES }),
];

function lanesHere(begin: (part: LaneParts, lane: number) => LaneWorker, count = 2): LaneStart {
  return {
    wish: () => ({ count, directories: [] }),
    begin: async (parts) => parts.map(begin),
    loopsPerLane: 2,
  };
}

async function tracksOfLanes(store: Store, set: string): Promise<number[][]> {
  const reader = store.openSet(await store.find(set));
  try {
    return Array.from({ length: reader.header.lanes }, (_, lane) => reader.tracksOfLane(lane).toArray());
  } finally {
    await reader.close();
  }
}

t.test('B13: lanes in parallel', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: TRACKS });
  const store = await makeTestStore(t);
  for (let track = 0; track < TRACKS; track += 1) await writeLabel(volume, track, `a${track}`);
  const source = new LocalSource({ volume, areas: areas() });
  let fastReads = 0;
  const slow: { after: number; go: () => void }[] = [];
  const lanes = lanesHere((part, lane) => {
    const home = {
      ...source.home,
      read: async (target: Buffer, offsetBytes: number): Promise<void> => {
        if (lane === 0) {
          fastReads += 1;
          for (const one of slow.splice(0)) {
            if (fastReads >= one.after || fastReads >= TRACKS - 8) one.go();
            else slow.push(one);
          }
        } else {
          const { promise, resolve } = deferred();
          slow.push({ after: fastReads + SLOWNESS, go: resolve });
          await promise;
        }
        await source.home.read(target, offsetBytes);
      },
    };
    return new LocalLane(part, home);
  });
  const outcome = await backUp({ ...OPTIONS, source, store, level: 'full', lanes });

  const [first = [], second = []] = await tracksOfLanes(store, outcome.set);
  t.equal(first.length + second.length, TRACKS, 'every track is in exactly one lane');
  t.ok(second.length > 0 && second.length <= 10, `the slow lane took ${second.length} of ${TRACKS} tracks`);
  t.same(
    await labelsInStore(store, outcome.set),
    Array.from({ length: TRACKS }, (_, track) => `a${track}`),
  );
  const set = await store.find(outcome.set);
  await rm(present(set.lanePaths[1], 'A second lane'));
  await t.rejects(store.chain(outcome.set), /lane 1: its file is missing/, 'a lane that is missing is named');
  const salvaged = await store.salvage(outcome.set);
  t.match(salvaged.findings, [/lacks lane 1: there is no /]);
  t.same(salvaged.tracks().toArray(), first, 'a salvage gives exactly the tracks of the other');
  t.same(salvaged.lost().toArray(), second, 'and names those that are missing');
  for (const track of first) t.equal(labelOf(present(salvaged.readTrack(track), 'Content')), `a${track}`);
  await salvaged.close();
});

t.test('tracks of equal content are stored once, whichever lane has them', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 60 });
  const store = await makeTestStore(t);
  for (let track = 0; track < 60; track += 1) await writeLabel(volume, track, `same${track % 4}`);
  const source = new LocalSource({ volume, areas: areas() });
  const lanes = lanesHere((part) => new LocalLane(part, source.home), 3);
  const outcome = await backUp({ ...OPTIONS, source, store, level: 'full', lanes });
  t.equal(outcome.aliases, 56);
  t.equal(outcome.tracks, 60);
  t.same(
    await labelsInStore(store, outcome.set),
    Array.from({ length: 60 }, (_, track) => `same${track % 4}`),
  );
});

t.test('lanes that are brought the content', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 20 });
  const store = await makeTestStore(t);
  for (let track = 0; track < 20; track += 1) await writeLabel(volume, track, `a${track}`);
  const source = Object.assign(new LocalSource({ volume, areas: areas() }), { isHomeWhole: false });
  const noHome = { ...source.home, read: () => Promise.reject(new Error('A lane has read the home')) };
  const lanes = lanesHere((part) => new LocalLane(part, noHome));
  const outcome = await backUp({ ...OPTIONS, source, store, level: 'full', lanes });
  t.same(
    await labelsInStore(store, outcome.set),
    Array.from({ length: 20 }, (_, track) => `a${track}`),
  );
});

t.test('lanes in threads', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'cowbell-lanes-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const homePath = join(directory, 'home');
  const trackCount = 200;
  const { volume } = await makeTestVolume(t, { trackCount });
  const contents: Buffer[] = [];
  const labels = Array.from({ length: trackCount }, (_, track) => (track % 5 === 0 ? 'same' : `t${track}`));
  for (const [track, label] of labels.entries()) {
    await writeLabel(volume, track, label);
    contents.push(labelled(label));
  }
  await writeFile(homePath, Buffer.concat(contents));

  await t.test('read the home', async (t) => {
    const store = await makeTestStore(t);
    const source = new LocalSource({ volume, areas: areas() });
    const lanes: LaneStart = {
      wish: () => ({ count: 2, directories: [join(directory, 'elsewhere')] }),
      begin: (parts) => ThreadLane.startAll(LANE_PROGRAM, parts, homePath),
      loopsPerLane: 2,
    };
    const outcome = await backUp({ ...OPTIONS, codec: 'zstd', source, store, level: 'full', lanes });
    t.same(await labelsInStore(store, outcome.set), labels);
    t.equal(outcome.lanes, 2);
    t.equal(outcome.aliases, trackCount / 5 - 1);
  });

  await t.test('that cannot begin leave nothing', async (t) => {
    const store = await makeTestStore(t);
    const source = new LocalSource({ volume, areas: areas() });
    const lanes: LaneStart = {
      wish: () => ({ count: 2, directories: [] }),
      begin: (parts) => {
        const [first, second] = parts;
        if (first === undefined || second === undefined) throw new Error('Two lanes were asked for');
        return ThreadLane.startAll(
          LANE_PROGRAM,
          [first, { ...second, partialPath: '/nowhere/at/all' }],
          homePath,
        );
      },
      loopsPerLane: 1,
    };
    await t.rejects(backUp({ ...OPTIONS, source, store, level: 'full', lanes }), { code: 'io' });
    source.session.fail(new Error('as the host does'));
    t.same(await readdir(join(store.path, 'sets')), []);
  });

  await t.test('that fail in the middle leave nothing', async (t) => {
    const store = await makeTestStore(t);
    const source = new LocalSource({ volume, areas: areas() });
    const lanes: LaneStart = {
      wish: () => ({ count: 1, directories: [] }),
      // A home that ends early: the read behind its end is refused.
      begin: async (parts) => {
        const short = join(directory, 'short');
        await writeFile(short, Buffer.concat(contents.slice(0, 20)));
        return ThreadLane.startAll(LANE_PROGRAM, parts, short);
      },
      loopsPerLane: 2,
    };
    await t.rejects(backUp({ ...OPTIONS, source, store, level: 'full', lanes }));
    source.session.fail(new Error('as the host does'));
    t.same(await readdir(join(store.path, 'sets')), []);
  });
});
