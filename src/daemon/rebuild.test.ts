/**
 * EXAMPLES N2, the rebuilt column, and rebuilds as of any instant.
 *
 * Goal: whatever is lost of a volume's home, at any step, the newest backup and the delta logs give it back, no byte less;
 * tracks that the logs hold whole are not fetched from the store; as of an instant it is what the model says.
 *
 * Method: the real volume, delta store, backup and store. After each step everything but the home is copied away and
 * rebuilt there; at the end the volume itself is, and is opened again.
 */

import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { AssertionError, deferred, ManualClock, SeededRandom } from '../base/index.ts';
import { backUp } from '../backup/index.ts';
import { LocalSource } from '../backup/session.fixture.ts';
import { Store } from '../blockset/index.ts';
import { labelOf, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { createVolume, MemoryArea, Volume } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import {
  type Blueprint,
  type HistoryEvent,
  readHistory,
  rebuildVolume,
  type RebuildOptions,
} from './index.ts';

const TRACK_COUNT = 8;

class World {
  readonly root = mkdtempSync(join(tmpdir(), 'cowbell-rebuild-'));
  readonly clock = new ManualClock();
  readonly directory = join(this.root, 'v');
  readonly storePath = join(this.root, 's');
  readonly deltas: readonly string[];
  volume: Volume | undefined;
  store: Store | undefined;
  #copies = 0;

  constructor(deltaCount: number) {
    this.deltas = Array.from({ length: deltaCount }, (_, index) => join(this.root, `d${index + 1}`));
  }

  static async create(t: Test, deltaCount = 1, keepLogMs?: number): Promise<World> {
    const world = new World(deltaCount);
    t.teardown(async () => {
      await world.volume?.close();
      rmSync(world.root, { recursive: true, force: true });
    });
    await createVolume(world.directory, {
      sizeBytes: TRACK_COUNT * TEST_TRACK_BYTES,
      trackSizeBytes: TEST_TRACK_BYTES,
      clock: world.clock,
      deltas: {
        places: world.deltas.map((place) => ({ place, bytesMax: 4 * 1024 * 1024 })),
        ...(keepLogMs === undefined ? {} : { keepLogMs }),
      },
    });
    world.store = await Store.init(world.storePath);
    await world.open();
    return world;
  }

  async open(): Promise<Volume> {
    const { clock } = this;
    this.volume = await Volume.open(this.directory, {
      registry: createDeviceRegistry(),
      clock,
      activity: 'test',
    });
    return this.volume;
  }

  get live(): Volume {
    if (this.volume === undefined) throw new AssertionError('The volume is open');
    return this.volume;
  }

  /** A backup that stops between its freeze and its end until it is released. */
  async freeze(level: 'full' | 'incremental'): Promise<{ readonly finish: () => Promise<unknown> }> {
    const frozen = deferred();
    const gate = deferred();
    const source = new LocalSource({
      volume: this.live,
      areas: [new MemoryArea({ sizeBytes: TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES })],
      before: async (step) => {
        if (step !== 'take') return;
        frozen.resolve();
        await gate.promise;
      },
    });
    if (this.store === undefined) throw new AssertionError('There is a store');
    const outcome = backUp({
      source,
      store: this.store,
      level,
      codec: 'none',
      runBytesMax: TEST_TRACK_BYTES,
    });
    outcome.catch(() => undefined);
    await frozen.promise;
    return {
      finish: () => {
        gate.resolve();
        return outcome;
      },
    };
  }

  async backUp(level: 'full' | 'incremental'): Promise<void> {
    await (await this.freeze(level)).finish();
  }

  /** Everything but the home, elsewhere. @param lost a member that is not there. */
  copy(lost?: number): Pick<RebuildOptions, 'directory' | 'storePath' | 'deltas'> {
    this.#copies += 1;
    const target = join(this.root, `copy-${this.#copies}`);
    const isWanted = (path: string): boolean => !/\.sock$|home\.raw$|state\.mdb-lock$/.test(path);
    for (const name of ['v', 's', 'd1', 'd2'])
      if (existsSync(join(this.root, name)))
        cpSync(join(this.root, name), join(target, name), { recursive: true, filter: isWanted });
    const deltas = this.deltas.map((_, index) => join(target, `d${index + 1}`));
    const left = deltas.filter((_, index) => index !== lost);
    return { directory: join(target, 'v'), storePath: join(target, 's'), deltas: left };
  }

  async rebuild(
    options: Pick<RebuildOptions, 'directory'> & Partial<RebuildOptions>,
  ): Promise<{ readonly labels: string[]; readonly content: Buffer; readonly blueprint: Blueprint }> {
    const { blueprint } = await rebuildVolume({
      registry: createDeviceRegistry(),
      clock: this.clock,
      warn: () => undefined,
      onBlueprint: () => undefined,
      ...options,
    });
    const content = readFileSync(blueprint.home);
    return { labels: labelsOf(content), content, blueprint };
  }
}

function labelsOf(content: Buffer): string[] {
  return Array.from({ length: TRACK_COUNT }, (_, track) =>
    labelOf(content.subarray(track * TEST_TRACK_BYTES, (track + 1) * TEST_TRACK_BYTES)),
  );
}

function only(labels: Readonly<Record<number, string>>): string[] {
  return Array.from({ length: TRACK_COUNT }, (_, track) => labels[track] ?? '0');
}

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
    const model: { readonly timeMs: number; readonly image: Buffer }[] = [];
    const image = Buffer.alloc(TRACK_COUNT * TEST_TRACK_BYTES);
    for (let step = 0; step < 60; step += 1) {
      world.clock.advance(1 + random.below(3) * 1000);
      if (step % 20 === 15) {
        await world.backUp(step < 20 ? 'full' : 'incremental');
        continue;
      }
      const offset = random.below((TRACK_COUNT * TEST_TRACK_BYTES) / 512) * 512;
      const content = Buffer.alloc(Math.min(random.pick([512, 4096, 8192]), image.length - offset), step + 1);
      await world.live.write(content, offset);
      content.copy(image, offset);
      model.push({ timeMs: world.clock.now(), image: Buffer.from(image) });
      if (random.chance(0.3)) await world.live.flush();
    }
    await world.live.flush();
    for (let count = 0; count < 8; count += 1) {
      const beforeMs = (random.pick(model).timeMs ?? 0) + random.below(2);
      const wanted = model.findLast(({ timeMs }) => timeMs < beforeMs)?.image ?? Buffer.alloc(image.length);
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
});
