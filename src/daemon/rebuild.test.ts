/**
 * EXAMPLES N2, the rebuilt column, and rebuilds as of any instant.
 *
 * Goal: whatever is lost of a volume's home, at any step, the newest backup and the delta logs give it back, no byte less;
 * tracks that the logs hold whole are not fetched from the store; as of an instant it is what the model says.
 *
 * Method: the real volume, delta store, backup and store. After each step everything but the home is copied away and
 * rebuilt there; at the end the volume itself is, and is opened again.
 */

import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { labelOf, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { type HistoryEvent, readHistory, rebuildVolume } from './index.ts';
import { imageBefore, liveThrough, only, TRACK_COUNT, World } from './rebuild.fixture.ts';

for (const memberCount of [1, 2]) {
  await t.test(`N2: the home is lost after each step, ${memberCount} members`, async (t) => {
    const world = await World.create(t, memberCount);
    const { live } = world;
    const check = async (
      step: number,
      labels: Readonly<Record<number, string>>,
      wanted: { readonly sets: number; readonly fromStore: number },
    ): Promise<void> => {
      await live.flush();
      const { labels: found, blueprint } = await world.rebuild(
        world.copy(memberCount === 2 ? step % 2 : undefined),
      );
      t.same(found, only(labels), `step ${step}`);
      const { store, storeAndDeltas } = blueprint.tracks;
      t.same(
        { sets: blueprint.sets.length, fromStore: store + storeAndDeltas },
        wanted,
        `step ${step}, from the store`,
      );
    };
    await writeLabel(live, 1, 'a1');
    await writeLabel(live, 2, 'a2');
    await check(1, { 1: 'a1', 2: 'a2' }, { sets: 0, fromStore: 0 });
    const full = await world.freeze('full');
    await check(2, { 1: 'a1', 2: 'a2' }, { sets: 0, fromStore: 0 });
    await writeLabel(live, 2, 'b2');
    await check(3, { 1: 'a1', 2: 'b2' }, { sets: 0, fromStore: 0 });
    await full.finish();
    await check(4, { 1: 'a1', 2: 'b2' }, { sets: 1, fromStore: 1 });
    await writeLabel(live, 3, 'b3');
    await check(5, { 1: 'a1', 2: 'b2', 3: 'b3' }, { sets: 1, fromStore: 1 });
    const incremental = await world.freeze('incremental');
    await check(6, { 1: 'a1', 2: 'b2', 3: 'b3' }, { sets: 1, fromStore: 1 });
    await writeLabel(live, 3, 'c3');
    await writeLabel(live, 5, 'c5');
    await check(7, { 1: 'a1', 2: 'b2', 3: 'c3', 5: 'c5' }, { sets: 1, fromStore: 1 });
    await incremental.finish();
    await check(8, { 1: 'a1', 2: 'b2', 3: 'c3', 5: 'c5' }, { sets: 2, fromStore: 2 });
  });
}

await t.test('a rebuilt volume is the one that it was, and is backed up as before', async (t) => {
  const world = await World.create(t, 2);
  await writeLabel(world.live, 1, 'a1');
  await writeLabel(world.live, 2, 'a2');
  await world.backUp('full');
  await writeLabel(world.live, 2, 'b2');
  await world.live.write(Buffer.alloc(512, 7), 4 * TEST_TRACK_BYTES);
  await world.live.flush();
  const { volumeId, home } = world.live.identity;
  const { directory, storePath } = world;
  await world.live.close();
  const before = readFileSync(home);
  rmSync(home);
  const dry = await rebuildVolume({
    directory,
    storePath,
    registry: createDeviceRegistry(),
    clock: world.clock,
    warn: () => undefined,
    onBlueprint: () => undefined,
    dryRun: true,
  });
  t.match(dry.blueprint.tracks, { deltas: 2, store: 1, storeAndDeltas: 0, home: 0, zero: TRACK_COUNT - 3 });
  t.notOk(existsSync(home), 'a dry run makes nothing');
  t.ok((await world.rebuild({ directory, storePath })).content.equals(before));
  const volume = await world.open();
  t.equal(volume.identity.volumeId, volumeId);
  t.ok(volume.startedClean, 'it opens as after a clean stop');
  await writeLabel(volume, 6, 'd6');
  await world.backUp('incremental');
  const newest = await world.store?.find('latest');
  t.equal(newest?.header?.level, 'incremental');
  const reader = world.store?.openSet(newest ?? (await world.store.find('latest')));
  t.same(reader?.present.toArray(), [2, 4, 6]);
  await reader?.close();
});

await t.test('what is left of the home is used where it is what the set has', async (t) => {
  const world = await World.create(t);
  for (let track = 0; track < 6; track += 1) await writeLabel(world.live, track, `a${track}`);
  await world.backUp('full');
  await writeLabel(world.live, 5, 'b5');
  await world.live.flush();
  const { home } = world.live.identity;
  await world.live.close();
  const wanted = readFileSync(home);
  const harmed = Buffer.from(wanted);
  harmed[TEST_TRACK_BYTES + 1] = 0xee;
  harmed[7 * TEST_TRACK_BYTES] = 1;
  harmed.fill(0x55, 5 * TEST_TRACK_BYTES, 6 * TEST_TRACK_BYTES);
  for (const place of [undefined, join(world.root, 'elsewhere.raw')]) {
    writeFileSync(home, harmed);
    const { directory, storePath } = world;
    const { content, blueprint } = await world.rebuild({ directory, storePath, home: place });
    t.ok(content.equals(wanted), `in ${place ?? 'its place'}`);
    t.match(blueprint.tracks, { deltas: 1, home: 4, store: 1, storeAndDeltas: 0 });
    t.equal(blueprint.isInPlace, place === undefined);
  }
  t.equal((await world.open()).identity.home, join(world.root, 'elsewhere.raw'));
});

await t.test('an interrupted rebuild is run again, and nobody opens the volume before', async (t) => {
  const world = await World.create(t);
  for (let track = 0; track < 6; track += 1) await writeLabel(world.live, track, `a${track}`);
  await world.live.flush();
  const { home } = world.live.identity;
  await world.live.close();
  const wanted = readFileSync(home);
  rmSync(home);
  const abort = new AbortController();
  const { directory } = world;
  const onProgress = (): void => abort.abort(new Error('Ctrl-C'));
  await t.rejects(world.rebuild({ directory, signal: abort.signal, onProgress }), /Ctrl-C/);
  await t.rejects(world.open(), /is being rebuilt in .*: run cowbell volume rebuild .* again/);
  t.ok((await world.rebuild({ directory })).content.equals(wanted));
  await writeLabel(await world.open(), 0, 'b0');
});

await t.test('a volume whose directory is lost is made again from its logs and the store', async (t) => {
  const world = await World.create(t, 2);
  await writeLabel(world.live, 1, 'a1');
  await world.backUp('full');
  await writeLabel(world.live, 2, 'b2');
  await world.live.flush();
  const { volumeId } = world.live.identity;
  await world.live.close();
  rmSync(world.directory, { recursive: true });
  const { directory, storePath, deltas } = world;
  await t.rejects(world.rebuild({ directory, storePath }), /wanted --delta/);
  t.same((await world.rebuild({ directory, storePath, deltas })).labels, only({ 1: 'a1', 2: 'b2' }));
  const volume = await world.open();
  t.equal(volume.identity.volumeId, volumeId);
  await writeLabel(volume, 3, 'c3');
  await world.backUp('incremental');
  await volume.flush();
  const newest = await world.store?.find('latest');
  t.equal(newest?.header?.level, 'incremental', 'the point of its last backup is known');
  t.same((await world.rebuild(world.copy())).labels, only({ 1: 'a1', 2: 'b2', 3: 'c3' }));
});

await t.test('a home of several parts is rebuilt as one device, where it is told to', async (t) => {
  const world = await World.create(t, 2, undefined, true);
  await writeLabel(world.live, 1, 'a1');
  await world.backUp('full');
  await writeLabel(world.live, 2, 'b2');
  await world.live.flush();
  await world.live.close();
  for (const name of ['m1', 'm2']) rmSync(join(world.root, name));
  const { directory, storePath } = world;
  await t.rejects(world.open(), 'without a member nobody opens it');
  await t.rejects(world.rebuild({ directory, storePath }), /several parts, wanted --home/);
  const home = join(world.root, 'one.raw');
  t.same((await world.rebuild({ directory, storePath, home })).labels, only({ 1: 'a1', 2: 'b2' }));
  const volume = await world.open();
  t.match(volume.identity, { home, layout: undefined });
  t.equal(volume.mirrors, undefined);
  await writeLabel(volume, 3, 'c3');
  await world.backUp('incremental');
  const newest = await world.store?.find('latest');
  t.equal(newest?.header?.level, 'incremental');
  await volume.close();
  const again = await world.open();
  t.ok(again.startedClean);
  const content = Buffer.alloc(TEST_TRACK_BYTES);
  await again.read(content, 3 * TEST_TRACK_BYTES);
  t.equal(labelOf(content), 'c3');
});

await t.test('nothing that joins the logs is an error that says so', async (t) => {
  const world = await World.create(t);
  await writeLabel(world.live, 1, 'a1');
  await world.backUp('full');
  await world.live.flush();
  const { directory, deltas } = world.copy();
  await t.rejects(
    world.rebuild({ directory, deltas }),
    /Nothing joins the delta logs of volume v: .* no store was named/,
  );
  const other = join(world.root, 'other');
  await Store.init(other);
  await t.rejects(world.rebuild({ directory, deltas, storePath: other }), /has no complete set at a point/);
});

for (const seed of [1, 2, 3]) {
  await t.test(`as of random instants it is what the model says, seed ${seed}`, async (t) => {
    const random = new SeededRandom(seed);
    const world = await World.create(t, 1, 1e9);
    const model = await liveThrough(world, random);
    for (let count = 0; count < 8; count += 1) {
      const beforeMs = (random.pick(model).timeMs ?? 0) + random.below(2);
      const wanted = imageBefore(model, beforeMs);
      const place = world.copy();
      const { content, blueprint } = await world.rebuild({ ...place, beforeMs });
      t.ok(content.equals(wanted), `before ${beforeMs}, from set ${blueprint.set}`);
    }
    const instant = random.pick(model);
    const { directory, storePath } = world;
    await world.live.close();
    const { content } = await world.rebuild({ directory, storePath, beforeMs: instant.timeMs + 1 });
    t.ok(content.equals(instant.image), 'in its place');
    await writeLabel(await world.open(), 0, 'zz');
    await world.live.flush();
    const now = await world.rebuild(world.copy());
    const wanted = Buffer.from(instant.image);
    now.content.copy(wanted, 0, 0, TEST_TRACK_BYTES);
    t.equal(labelOf(now.content.subarray(0, TEST_TRACK_BYTES)), 'zz');
    t.ok(now.content.equals(wanted), 'what was undone stays undone in the logs');
  });
}

await t.test('history tells bursts, flushes and points', async (t) => {
  const world = await World.create(t);
  const startMs = world.clock.now();
  await writeLabel(world.live, 1, 'a1');
  await writeLabel(world.live, 2, 'a2');
  await world.live.flush();
  world.clock.advance(60_000);
  await writeLabel(world.live, 2, 'b2');
  await world.live.flush();
  const events: HistoryEvent[] = [];
  const options = { directory: world.directory, registry: createDeviceRegistry(), warn: () => undefined };
  for await (const event of readHistory(options)) events.push(event);
  t.match(
    events.filter(({ kind }) => kind !== 'flush'),
    [
      { kind: 'point', point: '' },
      { kind: 'writes', timeMs: startMs, writes: 2, bytes: 2 * TEST_TRACK_BYTES, tracks: 2 },
      { kind: 'writes', timeMs: startMs + 60_000, writes: 1, bytes: TEST_TRACK_BYTES, tracks: 1 },
    ],
  );
  t.ok(events.some(({ kind, timeMs }) => kind === 'flush' && timeMs === startMs + 60_000));
  const later: HistoryEvent[] = [];
  for await (const event of readHistory({ ...options, fromMs: startMs + 1 })) later.push(event);
  t.same(
    later.map(({ kind }) => kind),
    ['writes', 'flush'],
  );
  await world.live.close();
  world.clock.advance(60_000);
  await writeLabel(await world.open(), 3, 'c3');
  await world.live.flush();
  const reopened: string[] = [];
  for await (const { kind } of readHistory({ ...options, fromMs: startMs + 1 })) reopened.push(kind);
  t.notOk(reopened.includes('point'), 'the log of the next opening begins at a point that was told before');
});
