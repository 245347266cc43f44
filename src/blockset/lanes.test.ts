/**
 * Sets of several lanes.
 *
 * Goal: whatever lanes a set has and wherever they lie, it reads as one set; it is complete or invisible; and a
 * lane that is missing, foreign or damaged is named and never passed over.
 *
 * Method: real stores in temporary directories. Sets with random tracks, aliases and packed frames are spread over
 * lanes and read back against a map. A writer is cut before each of its syncs, as a kill would, and the store
 * opened again.
 */

import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { CorruptionError, observeSyncs, present } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { LaneWriter } from './lane-writer.ts';
import { labelled, labelOf, newSet, scratch, TRACK_BYTES, withoutSyncs } from './model.fixture.ts';
import type { SetAssembly } from './set-assembly.ts';
import type { SetReader } from './set-reader.ts';
import { Store } from './store.ts';
import { verify } from './verify.ts';

const TRACKS = 64;
const COUNTERS = { bytesRead: 0, diverted: 0, unchanged: 0 };

interface Begun {
  readonly assembly: SetAssembly;
  readonly lanes: readonly LaneWriter[];
}

function begin(
  store: Store,
  count: number,
  directories: readonly string[] = [],
  point = 'p1',
): Promise<Begun> {
  return store.beginSet(
    newSet({ sizeBytes: TRACKS * TRACK_BYTES, point }),
    { count, directories },
    async (parts) => parts.map((part) => new LaneWriter(part)),
  );
}

async function complete({ assembly }: Begun): Promise<void> {
  await assembly.finish(COUNTERS);
  await assembly.seal();
}

/** All tracks of a set with content, by its own plan; each must come once. */
function labelsOf(reader: SetReader): Map<number, string> {
  const labels = new Map<number, string>();
  for (const plan of reader.readPlan(TrackSet.all(TRACKS))) {
    for (const { track, content } of reader.readFrame(plan)) {
      t.notOk(labels.has(track), `track ${track} comes once`);
      labels.set(track, labelOf(content));
    }
  }
  return labels;
}

async function openLatest(store: Store): Promise<SetReader> {
  return store.openSet(await store.find('latest'));
}

t.test('sets of any lanes read as one', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  let number = 0;
  const track = fc.integer({ min: 0, max: TRACKS - 1 });
  const entry = fc.record({
    track,
    lane: fc.nat(4),
    label: fc.integer({ min: 0, max: 12 }),
    zero: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(entry, { selector: (one) => one.track, maxLength: TRACKS }),
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 0, max: 2 }),
      async (entries, laneCount, elsewhere) => {
        number += 1;
        const store = await Store.init(join(directory, `s${number}`));
        const directories = Array.from({ length: elsewhere }, (_, index) =>
          join(directory, `d${number}-${index}`),
        );
        const begun = await begin(store, laneCount, directories);
        const wanted = new Map<number, string>();
        const first = new Map<string, number>();
        let aliases = 0;
        for (const { track: at, lane, label, zero } of entries) {
          const writer = begun.lanes[lane % laneCount];
          if (writer === undefined) continue;
          if (zero) {
            writer.addZero(at);
            continue;
          }
          const text = `${lane % laneCount}.${label}`;
          const of = first.get(text);
          if (of === undefined) writer.add(at, labelled(text));
          else writer.addAlias(at, of);
          aliases += of === undefined ? 0 : 1;
          first.set(text, of ?? at);
          wanted.set(at, text);
        }
        await complete(begun);
        const reader = await openLatest(store);
        t.same(labelsOf(reader), wanted);
        t.equal(reader.counters.aliases, aliases);
        t.equal(reader.present.size, entries.length);
        t.equal(reader.zeroes.size, entries.filter(({ zero }) => zero).length);
        for (const at of wanted.keys()) {
          t.equal(labelOf(reader.readTrack(at)), wanted.get(at));
          t.ok(reader.tracksOfLane(reader.placeOf(at)?.lane ?? 99).has(at), 'each lane names its tracks');
        }
        await reader.close();
        for await (const verified of verify(store)) t.ok(verified.sound);
      },
    ),
    { numRuns: 25 },
  );
});

t.test('frames are copied as they are stored', async (t) => {
  withoutSyncs(t);
  const from = await Store.init(join(scratch(t), 's'));
  const source = await from.createSet(newSet({ sizeBytes: TRACKS * TRACK_BYTES, codec: 'zstd' }));
  for (let track = 0; track < 20; track += 1) source.add(track, labelled(`t${track % 7}`));
  source.addAlias(40, 3);
  source.addZero(50);
  await source.finish(COUNTERS);
  await source.seal();
  const to = await Store.init(join(scratch(t), 's'));
  const copy = await to.createSet(newSet({ sizeBytes: TRACKS * TRACK_BYTES }));
  copy.add(63, labelled('before'));
  const reader = await openLatest(from);
  const wanted = labelsOf(reader);
  for (const plan of reader.readPlan(reader.present)) copy.addPacked(reader.packedFrame(plan));
  copy.addZero(50);
  await reader.close();
  await copy.finish(COUNTERS);
  await copy.seal();
  const copied = await openLatest(to);
  t.same(labelsOf(copied), wanted.set(63, 'before'));
  t.equal(copied.counters.aliases, 1);
  t.ok(copied.counters.bytesStored < 3 * TRACK_BYTES, 'and stay compressed');
  await copied.close();
});

/** A session of three lanes in two directories, killed before its sync number `cutAt`, counting from 0. */
async function runCut(
  directory: string,
  cutAt: number,
): Promise<{ store: Store; elsewhere: string; syncs: string[] }> {
  const store = await Store.init(join(directory, 's'));
  const elsewhere = join(directory, 'other');
  const begun = await begin(store, 3, [elsewhere]);
  for (const [index, lane] of begun.lanes.entries()) lane.add(index, labelled(`${index}`));
  const syncs: string[] = [];
  observeSyncs({
    before: (event) => {
      if (event.kind === 'commit') return 'perform';
      if (syncs.length === cutAt) throw new Error(`killed before ${event.name}`);
      syncs.push(event.name);
      return 'perform';
    },
  });
  await complete(begun).catch(() => undefined);
  observeSyncs(undefined);
  // A kill lets go of the files and removes nothing.
  for (const lane of begun.lanes) await lane.release();
  return { store, elsewhere, syncs };
}

t.test('a writer that is cut anywhere leaves a complete set or none, in every directory', async (t) => {
  const { syncs: all } = await runCut(scratch(t), Infinity);
  const threeOf = (name: string): string[] => Array<string>(3).fill(name);
  t.same(all, [...threeOf('set-data'), 'set-seal', ...threeOf('set-directory'), 'catalog']);
  for (let cutAt = 0; cutAt < all.length; cutAt += 1) {
    const { store, elsewhere, syncs } = await runCut(scratch(t), cutAt);
    const sets = await (await Store.open(store.path)).list();
    // The seal is in the page cache before its sync: a kill, unlike a power cut, then leaves a complete set.
    const isComplete = syncs.length >= 3;
    t.equal(sets.length, isComplete ? 1 : 0, `cut before ${all[cutAt]} ${cutAt}`);
    if (isComplete) {
      const reader = await openLatest(store);
      t.same([...labelsOf(reader).values()].sort(), ['0', '1', '2']);
      await reader.close();
    }
    const names = [...readdirSync(join(store.path, 'sets')), ...readdirSync(join(elsewhere, store.id))];
    t.equal(names.filter((name) => name.endsWith('.cbs')).length, isComplete ? 3 : 0);
    t.notOk(
      names.some((name) => name.includes('partial')),
      'nothing partial stays',
    );
  }
});

t.test('a sealed set whose lane is away is invisible until it is back', async (t) => {
  // Cut after the seal and before the names.
  const { store, elsewhere, syncs } = await runCut(scratch(t), 4);
  t.equal(syncs.at(-1), 'set-seal');
  renameSync(elsewhere, `${elsewhere}.away`);
  t.same(await (await Store.open(store.path)).list(), []);
  renameSync(`${elsewhere}.away`, elsewhere);
  t.equal((await (await Store.open(store.path)).list()).length, 1);
  const reader = await openLatest(store);
  t.same([...labelsOf(reader).values()].sort(), ['0', '1', '2']);
  await reader.close();
});

t.test('a lane that has gone before the seal fails the set, by name', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const elsewhere = join(directory, 'other');
  const store = await Store.init(join(directory, 's'));
  const { assembly } = await begin(store, 2, [elsewhere]);
  await assembly.finish(COUNTERS);
  rmSync(elsewhere, { recursive: true });
  await t.rejects(assembly.seal(), { code: 'io', message: /Lane 1 of the set has gone/ });
  await assembly.abort();
  t.same(readdirSync(join(store.path, 'sets')), []);
});

t.test('lanes without their lane 0 are removed, where the store writes next', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const elsewhere = join(directory, 'other');
  const store = await Store.init(join(directory, 's'));
  const begun = await begin(store, 2, [elsewhere]);
  for (const lane of begun.lanes) await lane.release();
  rmSync(join(store.path, 'sets', `${begun.assembly.id}-0.cbs.partial`));
  const orphan = join(elsewhere, store.id, `${begun.assembly.id}-1.cbs.partial`);
  t.ok(existsSync(orphan));
  const next = await begin(store, 2, [elsewhere]);
  t.notOk(existsSync(orphan));
  await next.assembly.abort();
  t.same(readdirSync(join(elsewhere, store.id)), []);
});

t.test('a lane that is missing, moved, exchanged or damaged', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const elsewhere = join(directory, 'other');
  const store = await Store.init(join(directory, 's'));
  for (const point of ['p1', 'p2']) {
    const begun = await begin(store, 2, [elsewhere], point);
    for (const [index, lane] of begun.lanes.entries()) lane.add(index, labelled(`${point}.${index}`));
    await complete(begun);
  }
  const [set, other] = await store.list();
  const path = set?.lanePaths[1] ?? '';
  t.equal(path, join(elsewhere, store.id, `${set?.id}-1.cbs`));

  const beside = join(store.path, 'sets', `${set?.id}-1.cbs`);
  renameSync(path, beside);
  const moved = present((await store.list())[0], 'The set');
  t.equal(moved.damage, undefined, 'beside lane 0 it is found as well');
  await store.openSet(moved).close();
  renameSync(beside, `${path}.away`);
  const missing = present((await store.list())[0], 'The set');
  t.match(missing.damage, /lane 1: its file is missing/);
  t.throws(() => store.openSet(missing), CorruptionError);
  t.throws(() => store.openSet(moved), /lacks lane 1/);

  renameSync(other?.lanePaths[1] ?? '', path);
  t.throws(() => store.openSet(moved), /not what was sealed/, 'the lane of another set');
});
