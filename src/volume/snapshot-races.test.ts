/**
 * Goal: what happens to snapshots at the same time does not make them wrong: deletions of neighbours, copies that are
 * under way while snapshots come and go, readers that come while one is being deleted.
 *
 * Method: named cases, each an order of events that the test forces with gates on the home and on syncs.
 */

import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { deferred, observeSyncs, type SyncName } from '../base/index.ts';
import { labelled, labelsOf, makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { openState } from './directory.ts';
import { labelsInSnapshot, snapshotFiles } from './kept.fixture.ts';
import type { Volume } from './index.ts';

const TRACKS = 4;

async function fill(volume: Volume, prefix: string): Promise<void> {
  for (let track = 0; track < TRACKS; track += 1) await writeLabel(volume, track, `${prefix}${track}`);
}

/** Finishes when nothing is being made or deleted any more. */
async function whenSettled(volume: Volume): Promise<void> {
  while (volume.snapshots().some(({ state }) => state !== 'ready')) await turn();
}

/** Calls `body` each time a sync of that name is about to begin. */
function onSync(
  t: { teardown(body: () => void): void },
  name: SyncName,
  body: () => void,
): { readonly end: () => void } {
  observeSyncs({
    before: (event) => {
      if (event.kind !== 'commit' && event.name === name) body();
      return 'perform';
    },
  });
  const end = (): void => observeSyncs(undefined);
  t.teardown(end);
  return { end };
}

t.test('neighbours are deleted at once, and the older one keeps what it held', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  for (const name of ['one', 'two', 'three', 'four']) {
    await volume.createSnapshot(name);
    // Each holds track 0 as it was then; so does each newer one, with other content.
    if (name !== 'one') await fill(volume, name);
  }
  const one = await labelsInSnapshot(volume, 'one');
  await Promise.all([
    volume.deleteSnapshot('four'),
    volume.deleteSnapshot('three'),
    volume.deleteSnapshot('two'),
  ]);
  t.same(await labelsInSnapshot(volume, 'one'), one);
  t.equal(snapshotFiles(test).length, 1);
  await test.reopen();
  t.same(await labelsInSnapshot(test.volume, 'one'), one);
});

t.test('neighbours whose deletion a crash interrupted', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  await fill(test.volume, 'a');
  for (const name of ['one', 'two', 'three']) {
    await test.volume.createSnapshot(name);
    await fill(test.volume, name);
  }
  const directory = test.directory;
  await test.volume.close();
  const state = await openState(directory, { readOnly: false });
  for (const record of state.snapshots().slice(1)) await state.saveSnapshot({ ...record, state: 'deleting' });
  await state.close();
  const volume = await test.reopen();
  await whenSettled(volume);
  t.same(await labelsInSnapshot(volume, 'one'), ['a0', 'a1', 'a2', 'a3']);
  await test.reopen();
  t.equal(snapshotFiles(test).length, 1);
});

t.test('a copy that was read before another snapshot is made is no copy for that one', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await writeLabel(volume, 0, 'b0');
  await volume.createSnapshot('two');
  // The copy of track 0 for `two` has been read, and the reply is late.
  const arrived = deferred();
  const late = deferred();
  const read = home.read.bind(home);
  home.read = async (target, offsetBytes) => {
    await read(target, offsetBytes);
    arrived.resolve();
    await late.promise;
  };
  const first = volume.write(Buffer.alloc(512, 'x'), 0);
  await arrived.promise;
  home.read = read;
  // Without `two`, track 0 is kept already in `one`, and may be written.
  await volume.deleteSnapshot('two');
  await volume.write(labelled('c0', TEST_TRACK_BYTES - 512), 512);
  const frozen = Buffer.alloc(TEST_TRACK_BYTES);
  await volume.read(frozen, 0);
  await volume.createSnapshot('three');
  late.resolve();
  await first;
  const content = Buffer.alloc(TEST_TRACK_BYTES);
  const device = volume.openSnapshot('three');
  await device.read(content, 0);
  await device.close();
  t.ok(content.equals(frozen), `three holds ${content.toString('latin1', 510, 520)}`);
  t.same((await labelsInSnapshot(volume, 'one'))[0], 'a0');
});

t.test('a track that is overwritten while it is read from the home is read again', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  const gate = home.hold({ kind: 'read', nth: 1 });
  const reading = labelsInSnapshot(volume, 'one');
  await gate.arrived(1);
  await writeLabel(volume, 1, 'b1');
  await volume.write(Buffer.alloc(512, 'x'), 2 * TEST_TRACK_BYTES + 512);
  gate.open();
  t.same(await reading, ['a0', 'a1', 'a2', 'a3']);
  gate.remove();
});

t.test('who opens a snapshot that is being deleted is refused, or may read it', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: TRACKS });
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  const observed = onSync(t, 'volume-state', () => {
    observed.end();
    t.throws(() => volume.openSnapshot('one'), { code: 'unknown-snapshot' });
  });
  await volume.deleteSnapshot('one');
  t.same(volume.snapshots(), []);
});

t.test('a deletion that could not be recorded leaves the snapshot as it was', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  const observed = onSync(t, 'volume-state', () => {
    observed.end();
    throw new Error('the disk is gone');
  });
  await t.rejects(volume.deleteSnapshot('one'), { message: 'the disk is gone' });
  await writeLabel(volume, 0, 'b0');
  t.same(await labelsInSnapshot(volume, 'one'), ['a0', 'a1', 'a2', 'a3']);
  await test.reopen();
  t.same(await labelsInSnapshot(test.volume, 'one'), ['a0', 'a1', 'a2', 'a3']);
  await test.volume.deleteSnapshot('one');
  t.same(snapshotFiles(test), []);
});

t.test('a snapshot that is deleted while a rollback to it begins: one of the two is refused', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await fill(volume, 'b');
  const outcomes = await Promise.allSettled([volume.rollBack('one'), volume.deleteSnapshot('one')]);
  t.same(
    outcomes.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  t.same(await labelsOf(volume), ['a0', 'a1', 'a2', 'a3']);
  await fill(volume, 'c');
  await volume.rollBack('one');
  await volume.deleteSnapshot('one');
  await t.resolves(test.reopen(), 'no rollback is left to be finished');
  t.same(await labelsOf(test.volume), ['a0', 'a1', 'a2', 'a3']);
});

t.test('a deletion and a rollback begun in the other order', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await fill(volume, 'b');
  const outcomes = await Promise.allSettled([volume.deleteSnapshot('one'), volume.rollBack('one')]);
  t.same(
    outcomes.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  await t.resolves(test.reopen(), 'no rollback is left to be finished');
  t.same(await labelsOf(test.volume), ['b0', 'b1', 'b2', 'b3']);
});

t.test('a rollback that cannot be recorded does not come later', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  await fill(volume, 'b');
  const observed = onSync(t, 'volume-state', () => {
    observed.end();
    throw new Error('the disk is gone');
  });
  await t.rejects(volume.rollBack('one'), { message: 'the disk is gone' });
  await fill(volume, 'c');
  await test.reopen();
  t.same(await labelsOf(test.volume), ['c0', 'c1', 'c2', 'c3']);
});

t.test('a snapshot is deleted twice at once', async (t) => {
  const test = await makeTestVolume(t, { trackCount: TRACKS });
  const { volume } = test;
  await fill(volume, 'a');
  for (const name of ['one', 'two', 'three']) {
    await volume.createSnapshot(name);
    await fill(volume, name);
  }
  const outcomes = await Promise.allSettled([volume.deleteSnapshot('two'), volume.deleteSnapshot('two')]);
  t.equal(outcomes[0]?.status, 'fulfilled');
  t.same(
    volume.snapshots().map(({ name }) => name),
    ['one', 'three'],
  );
  t.same(await labelsInSnapshot(volume, 'one'), ['a0', 'a1', 'a2', 'a3']);
});
