/**
 * Goal: a volume that grows loses nothing and forgets nothing: what is new counts as changed since every older point,
 * also after a crash at any step; sessions and snapshots keep the size of their point; nobody who writes meanwhile
 * notices.
 *
 * Method: labelled tracks on a real volume over a device in memory that the test holds and fails, and over files where
 * the size of the file matters. Crashes are failures of a named sync, and kills. `grow-model.test.ts` does all at random.
 */

import { readFileSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { LIMITS, observeSyncs, type SyncEvent } from '../base/index.ts';
import { DeviceRegistry, FaultyDevice, MemoryDevice, openFileDevice } from '../device/index.ts';
import { labelled, labelOf, labelsOf, makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { backUp, FULL, kill } from './grow.fixture.ts';
import { createVolume, MemoryArea, readVolumeIdentity, Volume } from './index.ts';

const TRACK = TEST_TRACK_BYTES;
function fill(volume: Volume, prefix: string): Promise<unknown> {
  const { trackCount, trackSizeBytes } = volume.geometry;
  const all = Array.from({ length: trackCount }, async (_, track) => {
    const length = volume.geometry.lengthOf({ first: track, count: 1 });
    await volume.write(labelled(`${prefix}${track}`, length), track * trackSizeBytes);
  });
  return Promise.all(all);
}

/** Labels of whole tracks of a snapshot, and of a shorter last one. */
async function labelsIn(volume: Volume, name: string): Promise<string[]> {
  const device = volume.openSnapshot(name);
  try {
    const labels: string[] = [];
    for (let at = 0; at < device.sizeBytes; at += TRACK) {
      const content = Buffer.alloc(Math.min(TRACK, device.sizeBytes - at));
      await device.read(content, at);
      labels.push(labelOf(content));
    }
    return labels;
  } finally {
    await device.close();
  }
}

t.test('what is new reads as zeroes, takes writes, and counts as changed since every point', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  const { volume } = test;
  await fill(volume, 'a');
  const point = await backUp(volume);
  await volume.grow(7 * TRACK);
  t.equal(volume.sizeBytes, 7 * TRACK);
  t.equal(volume.identity.sizeBytes, 7 * TRACK);
  t.same(await labelsOf(volume), ['a0', 'a1', 'a2', 'a3', '0', '0', '0']);
  t.same(volume.changedSince(point).toArray(), [4, 5, 6]);
  t.same(volume.changedIn(point, { first: 3, count: 2 }).toArray(), [4]);
  t.equal(volume.changedSince('unknown').size, 7);
  await writeLabel(volume, 6, 'b6');
  t.equal((await readVolumeIdentity(test.directory)).sizeBytes, 7 * TRACK);
  const reopened = await test.reopen();
  t.ok(reopened.startedClean);
  t.equal(reopened.sizeBytes, 7 * TRACK);
  t.same(await labelsOf(reopened), ['a0', 'a1', 'a2', 'a3', '0', '0', 'b6']);
  t.same(reopened.changedSince(point).toArray(), [4, 5, 6]);
  const later = await backUp(reopened);
  t.ok(reopened.changedSince(later).isEmpty);
  t.same(reopened.changedSince(point).toArray(), [4, 5, 6]);
});

t.test('a short last track becomes another one', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 0, sizeBytes: 2 * TRACK + 512 });
  const { volume } = test;
  await fill(volume, 'a');
  const point = await backUp(volume);
  await volume.grow(2 * TRACK + 1024);
  t.same(volume.changedSince(point).toArray(), [2]);
  await volume.grow(3 * TRACK + 512);
  t.same(volume.changedSince(point).toArray(), [2, 3]);
  await volume.write(labelled('b', 1024), 3 * TRACK - 512);
  t.same(await labelsOf(volume), ['a0', 'a1', '-', 'b']);
  await kill(test);
  const reopened = await test.reopen();
  t.notOk(reopened.startedClean);
  t.same(
    reopened.changedSince(point).toArray(),
    [0, 1, 2, 3],
    'with the regions that were written before the point',
  );
});

t.test('sizes that cannot be', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  const { volume, home } = test;
  await t.rejects(volume.grow(3 * TRACK), {
    code: 'shrink-refused',
    message: /Volume v has 16384 bytes; making it smaller, 12288 bytes, would lose .* is not offered$/,
  });
  await t.rejects(volume.grow(5 * TRACK + 1), { code: 'invalid-geometry' });
  await t.rejects(volume.grow((LIMITS.trackCountMax + 1) * TRACK), { code: 'invalid-geometry' });
  await volume.grow(4 * TRACK);
  t.notOk(
    home.operations.some(({ kind }) => kind === 'extend'),
    'the home was left alone',
  );
  t.equal(volume.sizeBytes, 4 * TRACK);
  await volume.close();
  await t.rejects(volume.grow(5 * TRACK), { code: 'closed' });
});

t.test('writes in flight go on, and those that follow may use what is new', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  await fill(volume, 'a');
  const gate = home.hold({ kind: 'write', range: { offsetBytes: TRACK, lengthBytes: TRACK } });
  const held = writeLabel(volume, 1, 'b1');
  await gate.arrived(1);
  await volume.grow(6 * TRACK);
  await writeLabel(volume, 5, 'b5');
  gate.remove();
  await held;
  t.same(await labelsOf(volume), ['a0', 'b1', 'a2', 'a3', '0', 'b5']);
});

t.test('a freeze and a growth wait for each other', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  const gate = home.hold({ kind: 'flush', nth: 1 });
  const freezing = volume.beginSession({ ...FULL, areas: [] });
  await gate.arrived(1);
  const growing = volume.grow(6 * TRACK);
  for (let count = 0; count < 10; count += 1) await turn();
  t.equal(volume.sizeBytes, 4 * TRACK);
  gate.remove();
  const session = await freezing;
  await growing;
  t.equal(session.plan.sizeBytes, 4 * TRACK);
  t.equal(session.plan.tracks.size, 4);
  t.same(volume.changedSince(session.plan.point).toArray(), [4, 5]);
  session.fail(new Error('only the point is wanted'));
});

t.test('a running session keeps its size and its tracks; what is new is not protected', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 0, sizeBytes: 3 * TRACK + 512 });
  await fill(volume, 'a');
  const areas = [new MemoryArea({ sizeBytes: 4 * TRACK, trackSizeBytes: TRACK })];
  const session = await volume.beginSession({ ...FULL, areas });
  await volume.grow(6 * TRACK);
  await writeLabel(volume, 5, 'b5');
  t.equal(session.status().containerEntries, 0);
  await writeLabel(volume, 3, 'b3');
  const [diverted] = await session.take(4);
  t.match(diverted, { track: 3 });
  t.equal(diverted?.content?.length, 512, 'as long as it was at the point');
  t.equal(labelOf(diverted?.content ?? Buffer.alloc(0)), 'a3');
  session.acknowledge([diverted?.id ?? 0]);
  t.same(session.confirm([{ first: 0, count: 3 }]), []);
  await session.mayComplete();
  await session.complete('set');
  t.same(volume.changedSince(session.plan.point).toArray(), [3, 4, 5]);
  const next = await volume.beginSession({
    consumer: 'store',
    level: 'auto',
    candidates: [{ point: session.plan.point, isFull: true, chainSetCount: 1 }],
    areas: [],
  });
  t.match(next.plan, { level: 'incremental', sizeBytes: 6 * TRACK });
  t.same(next.plan.tracks.toArray(), [3, 4, 5]);
  next.fail(new Error('enough'));
});

t.test('snapshots keep the size of their point', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 0, sizeBytes: 2 * TRACK + 1024 });
  let { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('small');
  await volume.grow(5 * TRACK);
  await fill(volume, 'b');
  await volume.createSnapshot('large');
  await volume.grow(6 * TRACK);
  await fill(volume, 'c');
  const assertExact = async (): Promise<void> => {
    t.same(await labelsIn(volume, 'small'), ['a0', 'a1', 'a2']);
    t.same(await labelsIn(volume, 'large'), ['b0', 'b1', 'b2', 'b3', 'b4']);
    t.same(await labelsOf(volume), ['c0', 'c1', 'c2', 'c3', 'c4', 'c5']);
  };
  await assertExact();
  t.match(volume.snapshots(), [{ sizeBytes: 2 * TRACK + 1024 }, { sizeBytes: 5 * TRACK, tracks: 5 }]);
  volume = await test.reopen();
  await assertExact();
  t.same(volume.changedSinceSnapshot('small', 'large').toArray(), [0, 1, 2, 3, 4]);
  const session = await volume.beginSession({ ...FULL, areas: [], snapshot: 'small' });
  t.equal(session.plan.sizeBytes, 2 * TRACK + 1024);
  t.equal(session.plan.tracks.size, 3);
  t.same(session.confirm([{ first: 0, count: 3 }]), [0, 1, 2], 'all were replaced');
  const taken = await session.take(3);
  t.same(
    taken.map(({ content }) => content?.length),
    [TRACK, TRACK, 1024],
  );
  t.same(
    taken.map(({ content }) => labelOf(content ?? Buffer.alloc(0))),
    ['a0', 'a1', 'a2'],
  );
  session.fail(new Error('enough'));
  await session.whenEnded();
});

t.test('what a deleted larger snapshot leaves to a smaller one is cut at its end', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 0, sizeBytes: 2 * TRACK + 1024 });
  const { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('small');
  await volume.grow(4 * TRACK);
  await volume.write(labelled('b', 512), 3 * TRACK - 512);
  await volume.createSnapshot('large');
  await fill(volume, 'c');
  t.same(await labelsIn(volume, 'small'), ['a0', 'a1', 'a2']);
  await volume.deleteSnapshot('large');
  t.same(await labelsIn(volume, 'small'), ['a0', 'a1', 'a2']);
  t.match(volume.snapshots(), [{ name: 'small', tracks: 3 }], 'nothing beyond its end was moved');
  const reopened = await test.reopen();
  await writeLabel(reopened, 3, 'd3');
  t.match(reopened.snapshots(), [{ name: 'small', tracks: 3 }], 'nor is anything kept for it');
  t.same(await labelsIn(reopened, 'small'), ['a0', 'a1', 'a2']);
});

t.test('a copy that was read before a growth does for a snapshot made after it', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 0, sizeBytes: TRACK + 512 });
  // As on a block device, what the volume grows into need not be zero.
  await home.extend(2 * TRACK);
  await home.write(labelled('left', TRACK - 512), TRACK + 512);
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  const gate = home.hold({ kind: 'read', range: { offsetBytes: TRACK, lengthBytes: TRACK } });
  const writing = volume.write(labelled('b', 512), TRACK);
  await gate.arrived(1);
  await volume.grow(2 * TRACK);
  await volume.createSnapshot('two');
  gate.remove();
  await writing;
  t.same(await labelsIn(volume, 'one'), ['a0', 'a1']);
  const two = volume.openSnapshot('two');
  const [old, grown] = [Buffer.alloc(512), Buffer.alloc(TRACK - 512)];
  await two.read(old, TRACK);
  await two.read(grown, TRACK + 512);
  t.same([labelOf(old), labelOf(grown)], ['a1', 'left']);
  await two.close();
});

t.test('a rollback to a smaller snapshot zeroes the rest, and keeps the size', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 0, sizeBytes: 2 * TRACK + 512 });
  let { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('small');
  await volume.grow(5 * TRACK);
  await fill(volume, 'b');
  await volume.createSnapshot('large');
  const point = await backUp(volume);
  await volume.rollBack('small');
  const rest = Buffer.alloc(5 * TRACK - (2 * TRACK + 512));
  await volume.read(rest, 2 * TRACK + 512);
  t.equal(labelOf(rest), '0');
  const old = Buffer.alloc(512);
  await volume.read(old, 2 * TRACK);
  t.equal(labelOf(old), 'a2');
  t.equal(volume.sizeBytes, 5 * TRACK);
  t.same(volume.changedSince(point).toArray(), [0, 1, 2, 3, 4], 'these are writes');
  t.same(await labelsIn(volume, 'large'), ['b0', 'b1', 'b2', 'b3', 'b4']);
  volume = await test.reopen();
  await volume.rollBack('large');
  t.same(await labelsOf(volume), ['b0', 'b1', 'b2', 'b3', 'b4']);
});

t.test('a rollback that was interrupted zeroes the rest at the next opening', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 2 });
  const { home } = test;
  await fill(test.volume, 'a');
  await test.volume.createSnapshot('small');
  await test.volume.grow(4 * TRACK);
  await fill(test.volume, 'b');
  const gate = home.hold({ kind: 'write' });
  const rolling = test.volume.rollBack('small');
  await gate.arrived(1);
  const state = readFileSync(join(test.directory, 'state.mdb'));
  const failing = home.fail({ kind: ['write', 'writeZeroes'] });
  gate.remove();
  await t.rejects(rolling);
  await kill(test, state);
  failing.remove();
  const reopened = await test.reopen();
  t.same(await labelsOf(reopened), ['a0', 'a1', '0', '0']);
});

t.test('a failure at any step leaves a volume that knows what changed', async (t) => {
  const steps: readonly [string, (event: SyncEvent) => boolean, RegExp | undefined][] = [
    ['state', (event) => event.kind === 'file' && event.name === 'volume-state', /no sync/],
    ['nothing', () => false, undefined],
  ];
  for (const [name, fails, message] of steps) {
    await t.test(name, async (t) => {
      const test = await makeTestVolume(t, { trackCount: 32 });
      const point = await backUp(test.volume);
      await writeLabel(test.volume, 8, 'x');
      observeSyncs({
        before: (event) => {
          if (fails(event)) throw new Error('no sync');
          return 'perform';
        },
      });
      t.teardown(() => observeSyncs(undefined));
      const growing = test.volume.grow(40 * TRACK);
      if (message === undefined) await growing;
      else await t.rejects(growing, { message });
      observeSyncs(undefined);
      if (message !== undefined) {
        t.equal(test.volume.sizeBytes, 32 * TRACK);
        // Whether the record reached the disk is not known, so nothing may be recorded on top of it.
        t.throws(() => test.volume.write(labelled('y'), 0), { code: 'poisoned' });
      }
      await kill(test);
      const reopened = await test.reopen();
      t.notOk(reopened.startedClean);
      t.equal(reopened.sizeBytes, 40 * TRACK);
      t.same(reopened.changedSince(point).toArray(), [8, 9, 32, 33, 34, 35, 36, 37, 38, 39]);
    });
  }
});

t.test('a home that cannot be extended leaves everything as it was', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  const point = await backUp(volume);
  const rule = home.fail({ kind: 'extend' });
  await t.rejects(volume.grow(6 * TRACK), { message: 'Injected failure' });
  t.equal(volume.sizeBytes, 4 * TRACK);
  t.ok(volume.changedSince(point).isEmpty);
  await writeLabel(volume, 3, 'x');
  rule.remove();
  await volume.grow(6 * TRACK);
  t.same(volume.changedSince(point).toArray(), [3, 4, 5]);
});

t.test('a log that was made for a freeze which failed covers what is new', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4, freezeWaitMsMax: 1 });
  const gate = home.hold({ kind: 'write' });
  const held = writeLabel(volume, 0, 'a0');
  await gate.arrived(1);
  await t.rejects(volume.createSnapshot('one'), { code: 'freeze-timeout' });
  gate.remove();
  await held;
  await volume.grow(64 * TRACK);
  await volume.createSnapshot('two');
  await writeLabel(volume, 63, 'b');
  t.ok(volume.isLogged({ first: 63, count: 1 }));
});

t.test('a home that cannot be flushed poisons the volume, which keeps its size', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  test.home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(test.volume.grow(6 * TRACK), { message: 'Injected failure' });
  t.equal(test.volume.sizeBytes, 4 * TRACK);
  t.throws(() => test.volume.write(labelled('y'), 0), { code: 'poisoned' });
  await t.rejects(test.volume.grow(6 * TRACK), { code: 'poisoned' });
  const reopened = await test.reopen();
  t.equal(reopened.sizeBytes, 4 * TRACK);
  await reopened.check();
  await reopened.grow(6 * TRACK);
  t.equal(reopened.sizeBytes, 6 * TRACK);
});

t.test('what several growths changed is known after a crash, whatever points came between', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 8, intentRegionTracks: 1 });
  const first = await backUp(test.volume);
  await test.volume.grow(10 * TRACK);
  await test.volume.grow(11 * TRACK);
  await backUp(test.volume);
  // The log of the first epoch after a growth begins with what is new; that of this one does not.
  const second = await backUp(test.volume);
  await test.volume.grow(12 * TRACK);
  await writeLabel(test.volume, 0, 'x');
  await kill(test);
  const reopened = await test.reopen();
  t.same(reopened.changedSince(second).toArray(), [0, 11]);
  t.same(reopened.changedSince(first).toArray(), [0, 8, 9, 10, 11]);
  const again = await test.reopen();
  t.same(again.changedSince(second).toArray(), [0, 11], 'and it is in the ordinary record from then on');
});

t.test('what a volume grew by before a point that was not recorded is known after a crash', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 8, intentRegionTracks: 1 });
  const first = await backUp(test.volume);
  // After a crash no log begins with what the epoch before has, which would hide what is missing here.
  await kill(test);
  const volume = await test.reopen();
  await volume.grow(10 * TRACK);
  // The second is that of the point's record, which must not come to be, nor take the log of its epoch away.
  const gate = test.home.hold({ kind: 'flush', nth: 2 });
  test.home.fail({ kind: 'flush', nth: 2 });
  await volume.beginSession({ ...FULL, areas: [] });
  await gate.arrived(1);
  await volume.grow(12 * TRACK);
  const state = readFileSync(join(test.directory, 'state.mdb'));
  gate.remove();
  await kill(test, state);
  const reopened = await test.reopen();
  const changed = reopened.changedSince(first);
  t.same(
    [8, 9, 10, 11].filter((track) => !changed.has(track)),
    [],
  );
  t.notOk(changed.has(3));
});

t.test('a write into the grown part of a logged region is known after a crash', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 5, intentRegionTracks: 4 });
  await writeLabel(test.volume, 4, 'a');
  await test.volume.grow(16 * TRACK);
  t.ok(test.volume.isLogged({ first: 4, count: 4 }));
  t.notOk(test.volume.isLogged({ first: 8, count: 1 }));
  const point = await backUp(test.volume);
  await writeLabel(test.volume, 7, 'b');
  await writeLabel(test.volume, 13, 'c');
  await kill(test);
  const reopened = await test.reopen();
  const changed = reopened.changedSince(point);
  t.ok(changed.has(7));
  t.ok(changed.has(13));
});

// --- Homes ---

function makeRegistry(open: (path: string) => Promise<FaultyDevice | MemoryDevice>) {
  return { open: async (uri: string) => open(uri) };
}

t.test('a home that is a file grows with the volume, and only upwards', async (t) => {
  const directory = join(t.testdir(), 'v');
  await createVolume(directory, { sizeBytes: 4 * TRACK, trackSizeBytes: TRACK });
  const home = join(directory, 'home.raw');
  const open = (): Promise<Volume> =>
    Volume.open(directory, { registry: new DeviceRegistry(), activity: 'testing' });
  let volume = await open();
  await volume.grow(9 * TRACK);
  t.equal(statSync(home).size, 9 * TRACK);
  await writeLabel(volume, 8, 'x');
  // As after a crash between the home and the record, or a home that somebody made longer.
  truncateSync(home, 20 * TRACK);
  await volume.grow(10 * TRACK);
  t.equal(statSync(home).size, 20 * TRACK);
  t.equal(labelOf(await readAll(volume, 8)), 'x');
  await volume.close();
  volume = await open();
  t.ok(volume.startedClean);
  t.equal(volume.sizeBytes, 10 * TRACK);
  await volume.close();
});

async function readAll(volume: Volume, track: number): Promise<Buffer> {
  const content = Buffer.alloc(TRACK);
  await volume.read(content, track * TRACK);
  return content;
}

t.test('a piece of a file does not grow, and is told from one that is large enough', async (t) => {
  const directory = join(t.testdir({ disk: '' }), 'v');
  const disk = join(t.testdirName, 'disk');
  truncateSync(disk, 100 * TRACK);
  await createVolume(directory, {
    sizeBytes: 4 * TRACK,
    trackSizeBytes: TRACK,
    home: `${disk}@${2 * TRACK}+${8 * TRACK}`,
  });
  const volume = await Volume.open(directory, { registry: new DeviceRegistry(), activity: 'testing' });
  await volume.grow(8 * TRACK);
  t.equal(volume.sizeBytes, 8 * TRACK);
  await t.rejects(volume.grow(9 * TRACK), {
    code: 'home-unusable',
    message: /disk@8192\+32768 of volume v has 32768 bytes .* wanted 36864; make it larger first/,
  });
  t.equal(volume.sizeBytes, 8 * TRACK);
  t.equal(statSync(disk).size, 100 * TRACK);
  await volume.close();
});

t.test('the lock of a home grows with it', async (t) => {
  const directory = join(t.testdir(), 'v');
  await createVolume(directory, { sizeBytes: 4 * TRACK, trackSizeBytes: TRACK });
  const path = join(directory, 'home.raw');
  const volume = await Volume.open(directory, { registry: new DeviceRegistry(), activity: 'testing' });
  await volume.grow(8 * TRACK);
  const piece = { path, readOnly: false, syncName: 'home', lock: 'exclusive', lengthBytes: TRACK } as const;
  await t.rejects(openFileDevice({ ...piece, offsetBytes: 6 * TRACK }), { code: 'busy' });
  // Somebody else has what lies beyond.
  truncateSync(path, 12 * TRACK);
  const other = await openFileDevice({ ...piece, offsetBytes: 10 * TRACK });
  await t.rejects(volume.grow(12 * TRACK), { code: 'busy' });
  t.equal(volume.sizeBytes, 8 * TRACK);
  await other.close();
  await volume.grow(12 * TRACK);
  await volume.close();
});

t.test('a home that cannot grow at all', async (t) => {
  const directory = join(t.testdir(), 'v');
  await createVolume(directory, { sizeBytes: 4 * TRACK, trackSizeBytes: TRACK });
  const memory = new MemoryDevice({ sizeBytes: 4 * TRACK });
  const fixed = new Proxy(memory, {
    get: (target, name) => {
      if (name === 'extend') return undefined;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const registry = makeRegistry(async () => fixed);
  const volume = await Volume.open(directory, { registry, activity: 'testing' });
  await t.rejects(volume.grow(5 * TRACK), { code: 'home-unusable' });
  await volume.close();
});
