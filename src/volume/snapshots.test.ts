/**
 * Goal: a snapshot is exact for ever, whatever is written, in whatever order others are made and deleted, and however
 * the volume is stopped and opened again.
 *
 * Method: labelled tracks on a real volume; a model keeps the labels of each snapshot. Random runs of writes, trims,
 * zeroes, snapshots, deletions, rollbacks and reopenings; after each step every snapshot must read as the model says.
 */

import { readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  labelOf,
  labelsOf,
  makeTestVolume,
  mountReflinkDisk,
  mountTmpfs,
  TEST_TRACK_BYTES,
  type TestVolume,
  type TestVolumeOptions,
  writeLabel,
} from '../sim/index.ts';
import { observeSyncs } from '../base/index.ts';
import { createVolume, openState } from './directory.ts';
import { createSnapshots, Volume } from './index.ts';

const TRACKS = 8;

type MakeVolume = typeof makeTestVolume;
const disk = mountReflinkDisk(t);

/** Snapshots by copy and by clone promise the same. */
function onBoth(name: string, body: (t: Test, make: MakeVolume) => Promise<void>): void {
  t.test(name, (t) => body(t, makeTestVolume));
  if (disk === undefined) return;
  t.test(`${name}, by clone`, (t) =>
    body(t, (teardown, options: TestVolumeOptions) =>
      makeTestVolume(teardown, { ...options, cloneOn: disk }),
    ),
  );
}

async function labelsIn(volume: Volume, name: string): Promise<string[]> {
  const device = volume.openSnapshot(name);
  try {
    const whole = Buffer.alloc(device.sizeBytes);
    await device.read(whole, 0);
    return Array.from({ length: TRACKS }, (_, track) =>
      labelOf(whole.subarray(track * TEST_TRACK_BYTES, (track + 1) * TEST_TRACK_BYTES)),
    );
  } finally {
    await device.close();
  }
}

async function fill(volume: Volume, prefix: string): Promise<void> {
  for (let track = 0; track < TRACKS; track += 1) await writeLabel(volume, track, `${prefix}${track}`);
}

onBoth('a snapshot keeps what is overwritten, trimmed and zeroed, and no more', async (t, make) => {
  const test = await make(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  const { point } = await volume.createSnapshot('one');
  t.same(await labelsIn(volume, 'one'), await labelsOf(volume));
  await writeLabel(volume, 2, 'b2');
  await writeLabel(volume, 2, 'c2');
  await volume.writeZeroes(5 * TEST_TRACK_BYTES, 2 * TEST_TRACK_BYTES);
  t.same(await labelsIn(volume, 'one'), ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7']);
  t.same(await labelsOf(volume), ['a0', 'a1', 'c2', 'a3', 'a4', '0', '0', 'a7']);
  t.match(volume.snapshots(), [{ name: 'one', state: 'ready', tracks: 3, readers: 0, point }]);
  t.same(volume.changedSinceSnapshot('one').toArray(), [2, 5, 6]);
  const reopened = await test.reopen();
  t.same(await labelsIn(reopened, 'one'), ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7']);
  await reopened.deleteSnapshot('one');
  t.same(reopened.snapshots(), []);
  t.same(readdirSync(join(test.directory, 'snapshots')), []);
});

onBoth('a part of a track is kept with the rest of it', async (t, make) => {
  const { volume } = await make(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await volume.write(Buffer.alloc(512, 'x'), 3 * TEST_TRACK_BYTES + 512);
  t.equal((await labelsIn(volume, 'one'))[3], 'a3');
  const device = volume.openSnapshot('one');
  const middle = Buffer.alloc(1024);
  await device.read(middle, 3 * TEST_TRACK_BYTES);
  t.match(middle.toString(), /^a3;/);
  await device.close();
});

t.test('old content is durable before it is overwritten', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume, home } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  let seen: string | undefined;
  observeSyncs({
    after: (event) => {
      if (event.kind !== 'file' || event.name !== 'snapshot-store') return;
      const content = Buffer.alloc(TEST_TRACK_BYTES);
      void home.read(content, 0);
      seen = labelOf(content);
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await writeLabel(volume, 0, 'b0');
  observeSyncs(undefined);
  t.equal(seen, 'a0');
});

t.test('writers of many tracks share syncs', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 64 });
  await volume.createSnapshot('one');
  let syncCount = 0;
  observeSyncs({
    after: (event) => {
      if (event.kind === 'file' && event.name === 'snapshot-store') syncCount += 1;
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await Promise.all(Array.from({ length: 64 }, (_, track) => writeLabel(volume, track, `b${track}`)));
  observeSyncs(undefined);
  t.ok(syncCount <= 4, `64 writes took ${syncCount} syncs`);
});

t.test('a snapshot that cannot be kept refuses the write and loses nothing', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  observeSyncs({
    before: (event) => {
      if (event.kind === 'file' && event.name === 'snapshot-store') throw new Error('the disk is gone');
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await t.rejects(writeLabel(volume, 1, 'b1'), { code: 'snapshot-failed' });
  observeSyncs(undefined);
  t.equal((await labelsOf(volume))[1], 'a1');
  t.equal((await labelsIn(volume, 'one'))[1], 'a1');
  t.equal(volume.status().poisoned, undefined);
  await t.rejects(
    writeLabel(volume, 1, 'b1'),
    { code: 'snapshot-failed' },
    'a failed sync is not tried again',
  );
});

onBoth('a trim that was put off is not done after a rollback undid it', async (t, make) => {
  const { volume } = await make(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await volume.trim(TEST_TRACK_BYTES, TEST_TRACK_BYTES);
  await volume.rollBack('one');
  await volume.deleteSnapshot('one');
  await volume.flush();
  t.equal((await labelsOf(volume))[1], 'a1');
});

onBoth('a snapshot is kept while the volume is rolled back to it', async (t, make) => {
  const { volume } = await make(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await fill(volume, 'b');
  const rolling = volume.rollBack('one');
  await t.rejects(volume.deleteSnapshot('one'), { code: 'snapshot-in-use' });
  await rolling;
  t.equal((await labelsOf(volume))[1], 'a1');
});

onBoth('names', async (t, make) => {
  const { volume } = await make(t, { trackCount: TRACKS });
  for (const name of ['', '.x', '-x', 'a/b', 'a@b', 'x'.repeat(65)]) {
    await t.rejects(volume.createSnapshot(name), { code: 'invalid-name' }, name);
  }
  await volume.createSnapshot('one');
  await t.rejects(volume.createSnapshot('one'), { code: 'snapshot-exists' });
  t.throws(() => volume.openSnapshot('two'), { code: 'unknown-snapshot' });
  await t.rejects(volume.deleteSnapshot('two'), { code: 'unknown-snapshot' });
  await t.rejects(volume.rollBack('two'), { code: 'unknown-snapshot' });
});

onBoth('a snapshot that is read is not deleted', async (t, make) => {
  const { volume } = await make(t, { trackCount: TRACKS });
  await volume.createSnapshot('one');
  const device = volume.openSnapshot('one');
  await t.rejects(volume.deleteSnapshot('one'), { code: 'snapshot-in-use' });
  await device.close();
  await volume.deleteSnapshot('one');
});

t.test(
  'a store that lost something is noticed, with all snapshots that need it; the volume is none the worse',
  async (t) => {
    const test = await makeTestVolume(t, { trackCount: TRACKS });
    const { volume } = test;
    await fill(volume, 'a');
    for (const [index, name] of ['one', 'two', 'three'].entries()) {
      await volume.createSnapshot(name);
      await writeLabel(volume, index, `b${index}`);
    }
    await volume.close();
    const state = await openState(test.directory, { readOnly: true });
    const storeId = state.snapshots()[1]?.storeId ?? '';
    await state.close();
    const folder = join(test.directory, 'snapshots');
    truncateSync(join(folder, `${storeId}.tracks`), 4096 + 100);
    writeFileSync(join(folder, `${'0'.repeat(32)}.tracks`), 'a stray');
    const reopened = await test.reopen();
    t.match(reopened.snapshots(), [
      { name: 'one', state: 'damaged', reason: /is whole for 4096 bytes only/ },
      { name: 'two', state: 'damaged' },
      { name: 'three', state: 'ready' },
    ]);
    t.equal(readdirSync(folder).length, 3, 'strays are gone');
    t.throws(() => reopened.openSnapshot('one'), { code: 'snapshot-damaged' });
    t.same((await labelsIn(reopened, 'three')).slice(0, 4), ['b0', 'b1', 'a2', 'a3']);
    for (const name of ['two', 'one', 'three']) await reopened.deleteSnapshot(name);
    t.same(readdirSync(folder), []);
  },
);

onBoth('a rollback brings everything back, is tracked, and newer snapshots stay exact', async (t, make) => {
  const test = await make(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await writeLabel(volume, 1, 'b1');
  await writeLabel(volume, 2, 'b2');
  const { point } = await volume.createSnapshot('two');
  await writeLabel(volume, 2, 'c2');
  await writeLabel(volume, 3, 'c3');
  const before = await labelsIn(volume, 'two');
  t.equal(await volume.rollBack('one'), 3);
  t.same(await labelsOf(volume), ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7']);
  t.same(await labelsIn(volume, 'two'), before);
  t.same(volume.changedSince(point).toArray(), [1, 2, 3]);
});

t.test('a volume in the middle of a rollback is not opened for reading only', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  await fill(test.volume, 'a');
  await test.volume.createSnapshot('one');
  await writeLabel(test.volume, 1, 'b1');
  await test.volume.close();
  const state = await openState(test.directory, { readOnly: false });
  await state.saveRollback(1);
  await state.close();
  const registry = { open: async () => test.home };
  const reading = Volume.open(test.directory, { registry, activity: 'test', readOnly: true });
  await t.rejects(reading, { code: 'rollback-unfinished' });
  t.equal((await labelsOf(await test.reopen()))[1], 'a1');
});

onBoth('several volumes, one instant, all or none', async (t, make) => {
  const a = await make(t, { trackCount: TRACKS, freezeWaitMsMax: 50 });
  const b = await make(t, { trackCount: TRACKS, freezeWaitMsMax: 50 });
  const made = await createSnapshots('both', [a.volume, b.volume]);
  t.equal(made.length, 2);
  await b.volume.createSnapshot('taken');
  await t.rejects(createSnapshots('taken', [a.volume, b.volume]), { code: 'snapshot-exists' });
  t.same(
    a.volume.snapshots().map(({ name }) => name),
    ['both'],
  );
  // A write that never leaves the gate of one: neither is frozen, and both go on.
  const held = b.home.hold({ kind: 'write' });
  const stuck = writeLabel(b.volume, 0, 'x');
  await t.rejects(createSnapshots('late', [a.volume, b.volume]), { code: 'freeze-timeout' });
  held.open();
  await stuck;
  await writeLabel(a.volume, 0, 'y');
  t.notOk(a.volume.snapshots().some(({ name }) => name === 'late'));
  t.notOk(b.volume.snapshots().some(({ name }) => name === 'late'));
});

/** What the model knows: the labels of the volume and of each snapshot. */
class Model {
  current = Array.from({ length: TRACKS }, () => '0');
  readonly snapshots = new Map<string, string[]>();
}

const step = fc.oneof(
  { weight: 8, arbitrary: fc.record({ kind: fc.constant('write' as const), track: fc.nat(TRACKS - 1) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('zero' as const), track: fc.nat(TRACKS - 1) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('create' as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('delete' as const), which: fc.nat(7) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('rollback' as const), which: fc.nat(7) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('reopen' as const) }) },
);

type Step = typeof step extends fc.Arbitrary<infer S> ? S : never;

async function take(test: TestVolume, model: Model, count: number, next: Step): Promise<void> {
  const { volume } = test;
  const names = [...model.snapshots.keys()];
  if (next.kind === 'write') {
    await writeLabel(volume, next.track, `w${count}`);
    model.current[next.track] = `w${count}`;
  } else if (next.kind === 'zero') {
    await volume.writeZeroes(next.track * TEST_TRACK_BYTES, TEST_TRACK_BYTES);
    model.current[next.track] = '0';
  } else if (next.kind === 'create') {
    await volume.createSnapshot(`s${count}`);
    model.snapshots.set(`s${count}`, [...model.current]);
  } else if (next.kind === 'reopen') {
    await test.reopen();
  } else {
    const name = names[next.which % Math.max(1, names.length)];
    if (name === undefined) return;
    if (next.kind === 'delete') {
      await volume.deleteSnapshot(name);
      model.snapshots.delete(name);
    } else {
      await volume.rollBack(name);
      model.current = [...(model.snapshots.get(name) ?? [])];
    }
  }
}

onBoth('property: every snapshot is what the volume was', async (t, make) => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
      const endings: (() => Promise<void>)[] = [];
      const test = await make({ teardown: (body) => endings.push(body) }, { trackCount: TRACKS });
      const model = new Model();
      try {
        for (const [count, next] of steps.entries()) {
          await take(test, model, count, next);
          for (const [name, labels] of model.snapshots) {
            const found = await labelsIn(test.volume, name);
            if (found.join() !== labels.join())
              throw new Error(`${name}: ${found.join()}, not ${labels.join()}`);
          }
          if ((await labelsOf(test.volume)).join() !== model.current.join()) throw new Error('the volume');
        }
      } finally {
        for (const end of endings) await end();
      }
    }),
    { numRuns: 60 },
  );
  t.end();
});

t.test(
  'a snapshot that a crash left unfinished is gone, and what its store kept for older ones is not',
  async (t) => {
    const test = await makeTestVolume(t, { trackCount: TRACKS });
    const { volume, directory } = test;
    await fill(volume, 'a');
    await volume.createSnapshot('one');
    await volume.createSnapshot('half');
    await writeLabel(volume, 3, 'b3');
    await volume.close();
    const state = await openState(directory, { readOnly: false });
    const half = state.snapshots()[1];
    if (half === undefined) throw new Error('there are two snapshots');
    await state.saveSnapshot({ ...half, state: 'creating' });
    await state.close();
    const reopened = await test.reopen();
    await writeLabel(reopened, 4, 'b4');
    t.same(await labelsIn(reopened, 'one'), ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7']);
    t.throws(() => reopened.openSnapshot('half'), { code: 'unknown-snapshot' });
    const again = await test.reopen();
    // Its remains are cleared away while the volume is used.
    while (again.snapshots().length > 1 || readdirSync(join(directory, 'snapshots')).length > 1) await turn();
    t.match(again.snapshots(), [{ name: 'one', tracks: 2 }]);
  },
);

t.test('by clone: what one file lost is noticed, and is nothing to the others', async (t) => {
  if (disk === undefined) return;
  const test = await makeTestVolume(t, { trackCount: TRACKS, cloneOn: disk });
  const { volume } = test;
  await fill(volume, 'a');
  for (const [index, name] of ['one', 'two', 'three', 'half', 'leaving'].entries()) {
    await volume.createSnapshot(name);
    await writeLabel(volume, index, `b${index}`);
  }
  const now = await labelsOf(volume);
  await volume.close();
  const folder = join(test.directory, 'snapshots');
  const state = await openState(test.directory, { readOnly: false });
  const [one, two, , half, leaving] = state.snapshots();
  if (one === undefined || two === undefined || half === undefined || leaving === undefined)
    throw new Error();
  await state.saveSnapshot({ ...half, state: 'creating' });
  await state.saveSnapshot({ ...leaving, state: 'deleting' });
  await state.close();
  truncateSync(join(folder, `${one.storeId}.clone`), 4096);
  rmSync(join(folder, `${two.storeId}.clone`));
  writeFileSync(join(folder, `${'0'.repeat(32)}.clone`), 'a stray');
  const reopened = await test.reopen();
  while (reopened.snapshots().length > 3 || readdirSync(folder).length > 2) await turn();
  t.match(reopened.snapshots(), [
    { name: 'one', state: 'damaged', by: 'clone', reason: /ends after 4096 bytes/ },
    { name: 'two', state: 'damaged', reason: /No such file|ENOENT|not exist/i },
    { name: 'three', state: 'ready' },
  ]);
  t.throws(() => reopened.openSnapshot('one'), { code: 'snapshot-damaged' });
  t.same((await labelsIn(reopened, 'three')).slice(0, 4), ['b0', 'b1', 'a2', 'a3']);
  t.same(await labelsOf(reopened), now);
  for (const name of ['two', 'one', 'three']) await reopened.deleteSnapshot(name);
  t.same(readdirSync(folder), []);
});

t.test('by clone: a group of which one cannot is none, and its gates are open again', async (t) => {
  if (disk === undefined) return;
  const a = await makeTestVolume(t, { trackCount: TRACKS, cloneOn: disk });
  const b = await makeTestVolume(t, { trackCount: TRACKS, cloneOn: disk });
  const epochs = [a, b].map(({ volume }) => volume.status().epoch);
  b.home.share = async () => false;
  await t.rejects(createSnapshots('both', [a.volume, b.volume]), { code: 'cannot-clone' });
  for (const { volume, directory } of [a, b]) {
    t.same(volume.snapshots(), []);
    t.same(readdirSync(join(directory, 'snapshots')), []);
    await writeLabel(volume, 0, 'x');
  }
  t.same(
    [a, b].map(({ volume }) => volume.status().epoch),
    epochs,
    'nothing was fixed',
  );
});

t.test('by clone: a snapshot is ready only after its file is durable', async (t) => {
  if (disk === undefined) return;
  const { volume, directory } = await makeTestVolume(t, { trackCount: TRACKS, cloneOn: disk });
  await fill(volume, 'a');
  observeSyncs({
    before: (event) => {
      const isTaken = volume.snapshots().length > 0;
      if (isTaken && event.kind === 'file' && event.name === 'snapshot-store')
        throw new Error('the disk is gone');
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await t.rejects(volume.createSnapshot('one'), /the disk is gone/);
  observeSyncs(undefined);
  t.same(volume.snapshots(), []);
  t.same(readdirSync(join(directory, 'snapshots')), []);
  await writeLabel(volume, 0, 'b0');
  await volume.createSnapshot('two');
});

t.test('by clone: refused at creation where the filesystem cannot, and nothing is left', async (t) => {
  const parent = mountTmpfs(t, 2 ** 20);
  if (parent === undefined) return;
  const options = { sizeBytes: TRACKS * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES } as const;
  const directory = join(parent, 'v');
  await t.rejects(createVolume(directory, { ...options, snapshotBy: 'clone' }), { code: 'cannot-clone' });
  if (disk !== undefined) {
    const home = join(disk, 'elsewhere.raw');
    await t.rejects(createVolume(directory, { ...options, snapshotBy: 'clone', home }), {
      code: 'cannot-clone',
    });
    t.notOk(readdirSync(disk).includes('elsewhere.raw'));
  }
  t.same(readdirSync(parent), []);
});
