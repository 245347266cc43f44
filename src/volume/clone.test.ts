/**
 * Goal: a clone of a snapshot is a volume of its own that holds exactly what the snapshot does, whatever is written to
 * the origin meanwhile; origin and clone do not touch each other; one that fails or is cancelled leaves nothing.
 *
 * Method: labelled tracks. The origin's home is a device that can be held and written while a clone is under way, or
 * a file on a filesystem that shares blocks; syncs and renames are made to fail one at a time.
 */

import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { observeSyncs, type SyncName } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import {
  labelled,
  labelsOf,
  makeTestVolume,
  mountReflinkDisk,
  mountTmpfs,
  TEST_TRACK_BYTES,
  writeLabel,
} from '../sim/index.ts';
import { cloneSnapshot, createVolume, Volume } from './index.ts';
import { labelsInSnapshot } from './kept.fixture.ts';

const TRACKS = 8;
const A = ['a0', 'a1', 'a2', '0', 'a4', '0', 'a6', 'a7'];

function openHere(directory: string): Promise<Volume> {
  return Volume.open(directory, { registry: new DeviceRegistry(), activity: 'testing' });
}

async function fillA(volume: Volume): Promise<void> {
  for (const [track, label] of A.entries()) if (label !== '0') await writeLabel(volume, track, label);
}

/** A volume with its home in a file. */
async function makeFileVolume(
  t: Test,
  parent: string,
  sizeBytes = TRACKS * TEST_TRACK_BYTES,
): Promise<Volume> {
  const directory = join(parent, 'origin');
  await createVolume(directory, { sizeBytes, trackSizeBytes: TEST_TRACK_BYTES, snapshotFull: 'drop' });
  const volume = await openHere(directory);
  t.teardown(() => volume.close());
  return volume;
}

function makeParent(t: Test): string {
  const parent = mkdtempSync(join(tmpdir(), 'cowbell-clone-'));
  t.teardown(() => rmSync(parent, { recursive: true, force: true }));
  return parent;
}

/** The same with homes whose blocks can be shared, and with those whose cannot. */
function onBoth(name: string, body: (t: Test, parent: string, mayShare: boolean) => Promise<void>): void {
  t.test(`${name}, copied`, (t) => body(t, mountTmpfs(t, 64 * 2 ** 20) ?? makeParent(t), false));
  t.test(`${name}, shared`, async (t) => {
    const disk = mountReflinkDisk(t);
    if (disk !== undefined) await body(t, disk, true);
  });
}

onBoth('a clone holds what the snapshot does, and is a volume of its own', async (t, parent, mayShare) => {
  const origin = await makeFileVolume(t, parent);
  await fillA(origin);
  const { point } = await origin.createSnapshot('one');
  // One replaced, one zeroed, one that was zero written, one at home.
  await writeLabel(origin, 1, 'b1');
  await origin.writeZeroes(2 * TEST_TRACK_BYTES, TEST_TRACK_BYTES);
  await writeLabel(origin, 3, 'b3');
  const directory = join(parent, 'clone');
  const progress: number[] = [];
  const made = await cloneSnapshot(origin, 'one', directory, { onProgress: (done) => progress.push(done) });
  t.match(made, { name: 'clone', directory, point, snapshotFull: 'drop', trackSizeBytes: TEST_TRACK_BYTES });
  t.not(made.volumeId, origin.identity.volumeId);
  t.equal(made.copiedBytes, (mayShare ? 2 : 6) * TEST_TRACK_BYTES);
  t.equal(made.sharedBytes, (mayShare ? 5 : 0) * TEST_TRACK_BYTES);
  t.same(progress, [TRACKS]);
  t.ok(statSync(made.home).blocks * 512 <= 6 * TEST_TRACK_BYTES, 'zeroes are holes');

  const clone = await openHere(directory);
  t.teardown(() => clone.close());
  t.equal(clone.startedClean, true);
  t.same(await labelsOf(clone), A);
  t.same(clone.changedSince(point).toArray(), []);
  await writeLabel(clone, 0, 'c0');
  await writeLabel(origin, 4, 'b4');
  await origin.flush();
  t.same(clone.changedSince(point).toArray(), [0]);
  t.same(await labelsOf(clone), ['c0', ...A.slice(1)]);
  t.same(await labelsOf(origin), ['a0', 'b1', '0', 'b3', 'b4', '0', 'a6', 'a7']);
  t.same(await labelsInSnapshot(origin, 'one'), A);
  await origin.deleteSnapshot('one');
  await clone.createSnapshot('own');
  t.same(await labelsOf(clone), ['c0', ...A.slice(1)]);
  t.same(readdirSync(parent).sort(), ['clone', 'origin'].sort());
});

onBoth('a volume whose end is not that of a block or a track', async (t, parent) => {
  const origin = await makeFileVolume(t, parent, 3 * TEST_TRACK_BYTES + 512);
  await origin.write(Buffer.alloc(512, 'z'), 3 * TEST_TRACK_BYTES);
  await writeLabel(origin, 0, 'a0');
  await origin.createSnapshot('one');
  await origin.write(Buffer.alloc(512, 'y'), 3 * TEST_TRACK_BYTES);
  const home = join(parent, 'elsewhere.raw');
  const made = await cloneSnapshot(origin, 'one', join(parent, 'clone'), { home });
  t.match(made, { home, sizeBytes: 3 * TEST_TRACK_BYTES + 512 });
  const clone = await openHere(made.directory);
  const last = Buffer.alloc(512);
  await clone.read(last, 3 * TEST_TRACK_BYTES);
  t.same(last, Buffer.alloc(512, 'z'));
  await clone.close();
});

onBoth('a clone is as large as the snapshot, not as the volume has grown since', async (t, parent) => {
  const origin = await makeFileVolume(t, parent, 2 * TEST_TRACK_BYTES + 512);
  await writeLabel(origin, 1, 'a1');
  await origin.write(Buffer.alloc(512, 'z'), 2 * TEST_TRACK_BYTES);
  await origin.createSnapshot('one');
  await origin.grow(5 * TEST_TRACK_BYTES);
  await writeLabel(origin, 2, 'b2');
  const made = await cloneSnapshot(origin, 'one', join(parent, 'clone'));
  t.equal(made.sizeBytes, 2 * TEST_TRACK_BYTES + 512);
  const clone = await openHere(made.directory);
  const whole = Buffer.alloc(made.sizeBytes);
  await clone.read(whole, 0);
  const wanted = [Buffer.alloc(TEST_TRACK_BYTES), labelled('a1'), Buffer.alloc(512, 'z')];
  t.ok(whole.equals(Buffer.concat(wanted)));
  await clone.close();
});

t.test('what is written while the clone is made does not get into it', async (t) => {
  const { volume, home, directory } = await makeTestVolume(t, { trackCount: TRACKS });
  await fillA(volume);
  await volume.createSnapshot('one');
  // The clone's own first read, of tracks that nothing has replaced when it asks for them.
  const held = home.hold({ kind: 'read', nth: 1 });
  const making = cloneSnapshot(volume, 'one', `${directory}-clone`);
  await held.arrived(1);
  await writeLabel(volume, 0, 'b0');
  await writeLabel(volume, 6, 'b6');
  await t.rejects(volume.deleteSnapshot('one'), { code: 'snapshot-in-use' });
  held.open();
  const made = await making;
  const clone = await openHere(made.directory);
  t.same(await labelsOf(clone), A);
  t.same((await labelsOf(volume))[0], 'b0');
  await clone.close();
  await volume.deleteSnapshot('one');
});

t.test('nothing is left of a clone that fails, wherever it does', async (t) => {
  const { volume, directory } = await makeTestVolume(t, { trackCount: TRACKS });
  await fillA(volume);
  await volume.createSnapshot('one');
  const parent = dirname(directory);
  const home = join(parent, 'clone.raw');
  const target = join(parent, 'clone');
  const before = readdirSync(parent);
  let seen = 0;
  let failAt = 0;
  observeSyncs({
    before: () => {
      seen += 1;
      if (seen === failAt) throw new Error('the disk is gone');
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  const cloned = (): Promise<boolean> =>
    cloneSnapshot(volume, 'one', target, { home }).then(
      () => true,
      () => false,
    );
  for (failAt = 1; failAt < 100 && !(await cloned()); failAt += 1) {
    t.same(readdirSync(parent), before, `sync ${failAt} failed`);
    seen = 0;
  }
  t.ok(failAt > 6 && failAt < 100, `${failAt - 1} syncs failed`);
  t.same(readdirSync(parent).sort(), [...before, 'clone', 'clone.raw'].sort());
  t.match(volume.snapshots(), [{ name: 'one', readers: 0 }]);
});

t.test('the directory is no volume before all of the content is durable', async (t) => {
  const { volume, directory } = await makeTestVolume(t, { trackCount: TRACKS });
  await fillA(volume);
  await volume.createSnapshot('one');
  const parent = dirname(directory);
  const names: SyncName[] = [];
  const volumesAt = (): string[] =>
    readdirSync(parent).filter((name) => name !== 'v' && existsSync(join(parent, name, 'state.mdb')));
  observeSyncs({
    before: (event) => {
      if (event.kind !== 'commit') names.push(event.name);
      if (event.kind === 'file' && event.name === 'home-create') t.same(volumesAt(), []);
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await cloneSnapshot(volume, 'one', join(parent, 'clone'));
  const lastOfHome = names.lastIndexOf('home-create');
  t.ok(lastOfHome > 0 && lastOfHome < names.indexOf('volume-state'), names.join());
  t.same(names.slice(-1), ['volume-directory']);
});

t.test('a clone is cancelled between its steps, and leaves nothing', async (t) => {
  const { volume, home, directory } = await makeTestVolume(t, { trackCount: TRACKS });
  await fillA(volume);
  await volume.createSnapshot('one');
  const before = readdirSync(dirname(directory));
  const abort = new AbortController();
  const held = home.hold({ kind: 'read' });
  const making = cloneSnapshot(volume, 'one', `${directory}-clone`, { signal: abort.signal });
  await held.arrived(1);
  abort.abort(new Error('enough'));
  held.open();
  await t.rejects(making, { message: 'enough' });
  t.same(readdirSync(dirname(directory)), before);
  await volume.deleteSnapshot('one');
});

t.test('a clone without room leaves nothing', async (t) => {
  const small = mountTmpfs(t, 64 * 2 ** 10);
  if (small === undefined) return;
  const { volume } = await makeTestVolume(t, { trackCount: 64 });
  for (let track = 0; track < 64; track += 1) await writeLabel(volume, track, `a${track}`);
  await volume.createSnapshot('one');
  await t.rejects(cloneSnapshot(volume, 'one', join(small, 'clone')), { code: 'no-space' });
  t.same(readdirSync(small), []);
});

t.test('what is there already is left alone', async (t) => {
  const { volume, directory } = await makeTestVolume(t, { trackCount: TRACKS });
  await volume.createSnapshot('one');
  const parent = dirname(directory);
  mkdirSync(join(parent, 'empty'));
  writeFileSync(join(parent, 'file'), 'mine');
  const before = readdirSync(parent);
  for (const taken of ['empty', 'file', 'v'])
    await t.rejects(cloneSnapshot(volume, 'one', join(parent, taken)), { code: 'exists' }, taken);
  for (const home of [join(parent, 'file'), `${join(parent, 'new')}@0+4096`, 'nbd://localhost/x'])
    await t.rejects(cloneSnapshot(volume, 'one', join(parent, 'new'), { home }), { code: 'home-unusable' });
  await t.rejects(cloneSnapshot(volume, 'two', join(parent, 'new')), { code: 'unknown-snapshot' });
  t.same(readdirSync(parent), before);
});
