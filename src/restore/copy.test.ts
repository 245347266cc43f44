/**
 * Goal: a copy holds exactly the bytes of its freeze, or of its snapshot, whatever is written meanwhile; a second one
 * sends only what changed, and everything where the target is not what the first one left.
 *
 * Method: real volumes whose home can be held at a read, so that writes hit tracks at chosen moments; targets that are
 * devices in memory or real files.
 */

import {
  appendFileSync,
  existsSync,
  readFileSync,
  renameSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ManualClock } from '../base/index.ts';
import { MemoryDevice } from '../device/index.ts';
import { createVolume, isVolumeHome } from '../volume/index.ts';
import {
  labelled,
  labelsOf,
  makeTestVolume,
  TEST_TRACK_BYTES,
  type TestVolume,
  writeLabel,
} from '../sim/index.ts';
import { contentOf, copyTo, labelsIn, TestTargets } from './copy.fixture.ts';
import { planCopy } from './copy.ts';
import { RemapTable } from './remap-table.ts';

const TRACK = TEST_TRACK_BYTES;
const A = ['a0', 'a1', '0', 'a3', 'a4', 'a5', '0', 'a7'];

async function start(t: Test): Promise<TestVolume> {
  const test = await makeTestVolume(t, { trackCount: A.length });
  for (const [track, label] of A.entries()) if (label !== '0') await writeLabel(test.volume, track, label);
  return test;
}

t.test('a first copy makes a sparse file, a second one sends what changed', async (t) => {
  const { volume } = await start(t);
  const file = join(t.testdir({}), 'copy.raw');
  const first = await copyTo(volume, [file]);
  t.match(first, { level: 'full', tracks: 8, reason: /not there/, bytesWritten: 6 * TRACK, bytesZeroed: 0 });
  t.equal(first.bytesSkipped, 2 * TRACK);
  t.same(labelsIn(readFileSync(file)), A);
  await writeLabel(volume, 2, 'b2');
  await volume.writeZeroes(3 * TRACK, TRACK, { mayTrim: true });
  const second = await copyTo(volume, [file]);
  t.match(second, {
    level: 'incremental',
    base: first.point,
    tracks: 2,
    bytesWritten: TRACK,
    bytesZeroed: TRACK,
  });
  t.equal(second.reason, undefined);
  t.same(labelsIn(readFileSync(file)), await labelsOf(volume));
  t.match(await copyTo(volume, [file]), { level: 'incremental', tracks: 0, bytesWritten: 0 });
  t.match(await copyTo(volume, [file], { full: true }), { level: 'full', reason: undefined, tracks: 8 });
  t.same(labelsIn(readFileSync(file)), await labelsOf(volume));
});

const MOMENTS = {
  'before anything is read': { kind: 'extents', nth: 1 },
  'while it is read': { kind: 'read', nth: 1 },
} as const;

for (const slots of [0, 1, 8]) {
  for (const [moment, match] of Object.entries(MOMENTS)) {
    t.test(`written ${moment}, with room for ${slots} tracks: the bytes of the freeze`, async (t) => {
      const { volume, home } = await start(t);
      const targets = new TestTargets();
      const target = targets.add('one', A.length * TRACK);
      const gate = home.hold(match);
      const copying = copyTo(volume, ['test:one'], { targets, slots });
      await gate.arrived(1);
      await Promise.all([1, 4, 2, 7].map((track) => writeLabel(volume, track, `b${track}`)));
      gate.remove();
      t.match(await copying, { level: 'full', diverted: 4 });
      t.same(labelsIn(await contentOf(target)), A);
      t.same(await labelsOf(volume), ['a0', 'b1', 'b2', 'a3', 'b4', 'a5', '0', 'b7']);
      const second = await copyTo(volume, ['test:one'], { targets, slots });
      t.match(second, { level: 'incremental', tracks: 4 });
      t.same(labelsIn(await contentOf(target)), await labelsOf(volume));
    });
  }
}

t.test('a target in use before is zeroed where the volume is zero, and not behind its end', async (t) => {
  const { volume } = await start(t);
  const targets = new TestTargets();
  const target = targets.add('old', (A.length + 1) * TRACK);
  await target.write(labelled('-', (A.length + 1) * TRACK), 0);
  await copyTo(volume, ['test:old'], { targets });
  t.same(labelsIn(await contentOf(target)), [...A, '-']);
});

t.test(
  'a remap table: several targets, another order, parts of tracks, and nothing else is touched',
  async (t) => {
    const { volume } = await start(t);
    const targets = new TestTargets();
    const one = targets.add('one', 4 * TRACK);
    const two = targets.add('two', 2 * TRACK);
    const table = RemapTable.of([
      { sourceOffsetBytes: 4 * TRACK, lengthBytes: 2 * TRACK, target: 'test:one', targetOffsetBytes: TRACK },
      { sourceOffsetBytes: 0, lengthBytes: 1024, target: 'test:two', targetOffsetBytes: 512 },
      { sourceOffsetBytes: 2 * TRACK, lengthBytes: TRACK, target: 'test:two', targetOffsetBytes: TRACK },
    ]);
    for (const device of [one, two]) await device.write(Buffer.alloc(device.sizeBytes, '-'), 0);
    const uris = ['test:one', 'test:two'];
    t.match(await copyTo(volume, uris, { targets, table }), {
      bytesWritten: 2 * TRACK + 1024,
      bytesZeroed: TRACK,
    });
    const fill = Buffer.alloc(TRACK, '-');
    t.ok((await contentOf(one)).equals(Buffer.concat([fill, labelled('a4'), labelled('a5'), fill])));
    const twoWanted = Buffer.concat([fill, Buffer.alloc(TRACK)]);
    labelled('a0').copy(twoWanted, 512, 0, 1024);
    t.ok((await contentOf(two)).equals(twoWanted));
    await writeLabel(volume, 1, 'b1');
    await writeLabel(volume, 5, 'b5');
    t.match(await copyTo(volume, uris, { targets, table }), {
      level: 'incremental',
      tracks: 2,
      bytesRead: TRACK,
      bytesWritten: TRACK,
    });
    t.ok((await contentOf(one)).equals(Buffer.concat([fill, labelled('a4'), labelled('b5'), fill])));
    // Another table is another copy, and what it wrote there ends the first one's.
    t.match(
      await copyTo(volume, ['test:one', 'test:two', 'test:one@12K+4K'].slice(0, 1), {
        targets,
        table: RemapTable.identity('test:one', { offsetBytes: 0, lengthBytes: TRACK }),
      }),
      { level: 'full' },
    );
    t.match(await copyTo(volume, uris, { targets, table }), { level: 'full' });
  },
);

t.test('in sequence over two targets', async (t) => {
  const { volume } = await start(t);
  const targets = new TestTargets();
  const one = targets.add('one', 5 * TRACK);
  const two = targets.add('two', 4 * TRACK);
  const uris = ['test:one', 'test:two'];
  await copyTo(volume, uris, { targets });
  t.same(labelsIn(Buffer.concat([await contentOf(one), await contentOf(two)])), [...A, '0']);
});

t.test('a snapshot, and later ones; an older one means everything', async (t) => {
  const { volume, home } = await start(t);
  const targets = new TestTargets();
  const target = targets.add('one', A.length * TRACK);
  await volume.createSnapshot('monday');
  await writeLabel(volume, 0, 'b0');
  const reads = home.hold({ kind: 'read' });
  const copying = copyTo(volume, ['test:one'], { targets, snapshot: 'monday' });
  await reads.arrived(1);
  const write = writeLabel(volume, 5, 'b5');
  reads.remove();
  await write;
  await copying;
  t.same(labelsIn(await contentOf(target)), A);
  t.match(await copyTo(volume, ['test:one'], { targets, snapshot: 'monday' }), {
    tracks: 0,
    bytesWritten: 0,
  });
  await volume.createSnapshot('tuesday');
  const tuesday = await labelsOf(volume);
  await writeLabel(volume, 7, 'c7');
  t.match(await copyTo(volume, ['test:one'], { targets, snapshot: 'tuesday' }), {
    level: 'incremental',
    tracks: 2,
  });
  t.same(labelsIn(await contentOf(target)), tuesday);
  t.match(await copyTo(volume, ['test:one'], { targets }), { level: 'incremental', tracks: 1 });
  t.same(labelsIn(await contentOf(target)), await labelsOf(volume));
  t.match(await copyTo(volume, ['test:one'], { targets, snapshot: 'monday' }), {
    level: 'full',
    reason: /later point/,
  });
  t.same(labelsIn(await contentOf(target)), A);
  await t.rejects(copyTo(volume, ['test:one'], { targets, snapshot: 'sunday' }), {
    code: 'unknown-snapshot',
  });
});

t.test('a file that somebody else wrote to, replaced, or made longer is copied whole again', async (t) => {
  const { volume } = await start(t);
  const directory = t.testdir({});
  const file = join(directory, 'copy.raw');
  await copyTo(volume, [file]);
  const cases: readonly (readonly [string, () => void, RegExp])[] = [
    ['written', () => writeFileSync(file, labelled('x'), { flag: 'r+' }), /was changed or replaced/],
    [
      'replaced',
      () => {
        const { atime, mtime } = statSync(file);
        writeFileSync(join(directory, 'other'), labelled('y', 8 * TRACK));
        utimesSync(join(directory, 'other'), atime, mtime);
        renameSync(join(directory, 'other'), file);
      },
      /was changed or replaced/,
    ],
    ['longer', () => appendFileSync(file, labelled('z')), /has 36864 bytes, and had 32768/],
  ];
  for (const [name, change, reason] of cases) {
    change();
    t.match(await copyTo(volume, [file]), { level: 'full', reason }, name);
    t.same(labelsIn(readFileSync(file)).slice(0, 8), A, name);
    t.match(await copyTo(volume, [file]), { level: 'incremental' }, name);
  }
});

t.test('a smaller target does where the rest is zero, and is refused where it is used', async (t) => {
  const { volume, home } = await start(t);
  await volume.writeZeroes(7 * TRACK, TRACK);
  const targets = new TestTargets();
  const target = targets.add('small', 6 * TRACK);
  await copyTo(volume, ['test:small'], { targets });
  t.same(labelsIn(await contentOf(target)), A.slice(0, 6));
  await writeLabel(volume, 1, 'b1');
  t.match(await copyTo(volume, ['test:small'], { targets }), { level: 'incremental', tracks: 1 });
  await writeLabel(volume, 6, 'b6');
  target.forgetOperations();
  await t.rejects(copyTo(volume, ['test:small'], { targets }), { code: 'target-too-small' });
  t.same(target.operations, [], 'refused before anything was written');
  // Used only after it was looked at, and before the freeze.
  await volume.writeZeroes(6 * TRACK, TRACK);
  const flush = home.hold({ kind: 'flush' });
  const copying = copyTo(volume, ['test:small'], { targets });
  await flush.arrived(1);
  await writeLabel(volume, 7, 'c7');
  flush.remove();
  await t.rejects(copying, { code: 'target-too-small' });
});

t.test('what is refused beforehand leaves no file and no session', async (t) => {
  const { volume } = await start(t);
  const file = join(t.testdir({}), 'new.raw');
  const table = RemapTable.identity(file, { offsetBytes: 0, lengthBytes: 9 * TRACK });
  await t.rejects(copyTo(volume, [file], { table }), { code: 'outside-source' });
  await t.rejects(copyTo(volume, [file], { openAreas: async () => Promise.reject(new Error('no areas')) }), {
    message: 'no areas',
  });
  await t.rejects(copyTo(volume, [file], { signal: AbortSignal.abort(new Error('early')) }), {
    message: 'early',
  });
  t.notOk(existsSync(file));
  t.same(volume.sessions, []);
  t.same(volume.consumers(), []);
});

t.test('a target of larger blocks than tracks is refused', async (t) => {
  const { volume } = await start(t);
  const device = new MemoryDevice({ sizeBytes: A.length * TRACK, blockSizeBytes: 2 * TRACK });
  const registry = { open: async () => device };
  await t.rejects(copyTo(volume, ['test:large'], { registry }), { code: 'bad-target' });
});

t.test('the home of a volume is refused', async (t) => {
  const directory = t.testdir({});
  const { home } = await createVolume(join(directory, 'v'), { sizeBytes: 8 * TRACK, trackSizeBytes: TRACK });
  const { volume } = await start(t);
  await t.rejects(copyTo(volume, [home], { isVolumeHome }), {
    code: 'target-in-use',
  });
});

t.test(
  'cancelled: the waiting writer goes on, the target is incomplete, and the next copy sends the rest',
  async (t) => {
    const { volume } = await start(t);
    const targets = new TestTargets();
    const target = targets.add('one', A.length * TRACK);
    await copyTo(volume, ['test:one'], { targets });
    for (const track of [0, 2, 5]) await writeLabel(volume, track, `b${track}`);
    const abort = new AbortController();
    const held = target.hold({ kind: 'write' });
    const copying = copyTo(volume, ['test:one'], { targets, signal: abort.signal });
    await held.arrived(1);
    t.match(volume.consumers(), [{ copy: { isIncomplete: true } }], 'marked before the first write');
    abort.abort();
    held.remove();
    await t.rejects(copying, { code: 'cancelled', message: /target test:one is incomplete/ });
    t.same(volume.sessions, []);
    await writeLabel(volume, 7, 'b7');
    await t.resolves(volume.createSnapshot('s'));
    t.match(await copyTo(volume, ['test:one'], { targets }), { level: 'incremental', tracks: 4 });
    t.same(labelsIn(await contentOf(target)), await labelsOf(volume));
  },
);

t.test('a file that was left incomplete is gone on with, unless somebody else touched it', async (t) => {
  const { volume } = await start(t);
  const file = join(t.testdir({}), 'copy.raw');
  await copyTo(volume, [file]);
  const interrupt = async (): Promise<void> => {
    await writeLabel(volume, 0, 'b0');
    const abort = new AbortController();
    const onProgress = (): void => abort.abort();
    await t.rejects(copyTo(volume, [file], { signal: abort.signal, onProgress }), { code: 'cancelled' });
  };
  await interrupt();
  t.match(await copyTo(volume, [file]), { level: 'incremental', tracks: 1 });
  await interrupt();
  await volume.createSnapshot('s');
  t.match(await copyTo(volume, [file], { snapshot: 's' }), { level: 'full', reason: /not completed/ });
  await interrupt();
  writeFileSync(file, labelled('x'), { flag: 'r+' });
  t.match(await copyTo(volume, [file]), { level: 'full', reason: /was changed/ });
  t.same(labelsIn(readFileSync(file)), await labelsOf(volume));
});

t.test('what a copy that failed wrote is not missed by one of an older snapshot', async (t) => {
  const { volume } = await start(t);
  const targets = new TestTargets();
  const target = targets.add('one', A.length * TRACK);
  await copyTo(volume, ['test:one'], { targets });
  await writeLabel(volume, 1, 'b1');
  await volume.createSnapshot('s');
  const snapshot = await labelsOf(volume);
  // Not among what changed up to the snapshot.
  await writeLabel(volume, 5, 'c5');
  const rule = target.fail({ kind: 'flush' });
  await t.rejects(copyTo(volume, ['test:one'], { targets }), { code: 'target-failed' });
  rule.remove();
  t.same(labelsIn(await contentOf(target)), await labelsOf(volume), 'it had come that far');
  const options = { targets, snapshot: 's' };
  t.match(await copyTo(volume, ['test:one'], options), { level: 'full', reason: /was not completed/ });
  t.same(labelsIn(await contentOf(target)), snapshot);
});

t.test('a full copy that fails forgets what the targets held', async (t) => {
  const { volume } = await start(t);
  const targets = new TestTargets();
  const target = targets.add('one', A.length * TRACK);
  await copyTo(volume, ['test:one'], { targets });
  const rule = target.fail({ kind: 'write', nth: 1 });
  await t.rejects(copyTo(volume, ['test:one'], { targets, full: true }), {
    code: 'target-failed',
    message: /^Writing to target test:one .* failed: .*; target test:one is incomplete$/,
  });
  rule.remove();
  t.same(volume.consumers(), []);
  t.match(await copyTo(volume, ['test:one'], { targets }), { level: 'full', reason: /no complete copy/ });
  t.same(labelsIn(await contentOf(target)), A);
});

t.test('a dry run says what would be sent, and changes nothing', async (t) => {
  const { volume } = await start(t);
  const file = join(t.testdir({}), 'copy.raw');
  const options = {
    volume,
    registry: new TestTargets().registry,
    isVolumeHome: async () => false,
    targets: [{ name: file, uri: file }],
  };
  t.match(await planCopy(options), { level: 'full', tracks: 8, reason: /not there/ });
  t.notOk(existsSync(file));
  await copyTo(volume, [file]);
  await writeLabel(volume, 1, 'b1');
  t.match(await planCopy(options), { level: 'incremental', tracks: 1, zeroTracks: 0, bytes: TRACK });
  t.match(await copyTo(volume, [file]), { level: 'incremental', tracks: 1 });
});

t.test('the records of copies are bounded: those of longest ago go', async (t) => {
  const { volume, clock } = await start(t);
  const targets = new TestTargets();
  for (let index = 0; index < 66; index += 1) {
    targets.add(`d${index}`, A.length * TRACK);
    await copyTo(volume, [`test:d${index}`], { targets });
    if (clock instanceof ManualClock) clock.advance(1);
  }
  t.equal(volume.consumers().length, 64);
  t.match(await copyTo(volume, ['test:d65'], { targets }), { level: 'incremental' });
  t.match(await copyTo(volume, ['test:d0'], { targets }), { level: 'full' });
});
