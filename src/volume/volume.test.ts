/**
 * Goal: the volume's own promises, one test each: what is tracked, what a freeze fixes, who may own it, what
 * survives a stop, what a failed home write does. Method: real volumes in real directories over a home that
 * the test holds, fails and cuts; the order of events comes from gates, never from time.
 */

import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { rename } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { deferred, observeSyncs } from '../base/index.ts';
import { DeviceError } from '../device/index.ts';
import { labelled, labelsOf, makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { createVolume, MemoryArea, readVolumeIdentity, Volume, VolumeError } from './index.ts';

const TRACK = TEST_TRACK_BYTES;

const FULL = { consumer: 'store', level: 'full', candidates: [] } as const;

function memory(slots: number): MemoryArea {
  return new MemoryArea({ sizeBytes: slots * TRACK, trackSizeBytes: TRACK });
}

t.test('changedSince holds every written, zeroed and trimmed track, and nothing else', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 16 });
  await writeLabel(volume, 1, 'before');
  const session = await volume.beginSession({ ...FULL, areas: [] });
  const { point } = session.plan;
  session.fail(new Error('only the point is wanted'));
  t.ok(volume.changedSince(point).isEmpty);
  await volume.write(labelled('x', 512), 3 * TRACK - 512);
  await volume.write(labelled('y', 1024), 5 * TRACK - 512);
  await volume.writeZeroes(7 * TRACK, 512);
  await volume.trim(9 * TRACK, 2 * TRACK);
  t.same(volume.changedSince(point).toArray(), [2, 4, 5, 7, 9, 10]);
  t.equal(volume.changedSince('unknown').size, 16, 'an unknown point means everything');
});

t.test('a point and its changes survive a clean stop exactly', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 8 });
  const session = await test.volume.beginSession({ ...FULL, areas: [] });
  const { point } = session.plan;
  session.confirm([{ first: 0, count: 8 }]);
  await session.mayComplete();
  await session.complete('set');
  await writeLabel(test.volume, 6, 'x');
  const volume = await test.reopen();
  t.ok(volume.startedClean);
  t.same(volume.changedSince(point).toArray(), [6]);
  t.match(volume.status().consumers, [{ name: 'store', point, set: 'set', changedTracks: 1 }]);
});

/** A complete backup of everything. @returns its point. */
async function backUp(volume: Volume): Promise<string> {
  const session = await volume.beginSession({ ...FULL, areas: [] });
  session.confirm([{ first: 0, count: volume.geometry.trackCount }]);
  await session.mayComplete();
  await session.complete('set');
  return session.plan.point;
}

t.test('after an unclean stop the regions that were written count as changed, and no others', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 32 });
  await writeLabel(test.volume, 30, 'before');
  const first = await backUp(test.volume);
  await writeLabel(test.volume, 4, 'between');
  const second = await backUp(test.volume);
  await writeLabel(test.volume, 21, 'after');
  // A failed flush at the stop is as unclean as a kill, and needs no second process.
  test.home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(test.volume.close());
  const reopened = await test.reopen();
  t.notOk(reopened.startedClean);
  // Regions of two tracks; that of track 4 was written in the epoch before, so the last one began with it.
  t.same(reopened.changedSince(second).toArray(), [4, 5, 20, 21]);
  t.same(reopened.changedSince(first).toArray(), [4, 5, 20, 21]);
  t.equal(reopened.changedSince('unknown').size, 32);
});

t.test('an unclean stop after another one still counts what the first one left', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 32 });
  const point = await backUp(test.volume);
  for (const track of [3, 17]) {
    await writeLabel(test.volume, track, 'x');
    test.home.fail({ kind: 'flush', nth: 1 });
    await t.rejects(test.volume.close());
    const volume = await test.reopen();
    await volume.check();
    t.equal(volume.changedSince(point).size, 32, 'a check of a poisoned volume trusts nothing');
    await test.reopen();
    t.ok(test.volume.startedClean);
    t.equal(test.volume.changedSince(point).size, 32);
  }
});

t.test('the doubt that a crash leaves ends with the next point', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 32 });
  const stopUncleanly = async (): Promise<void> => {
    // What a kill would leave now.
    const left = `${test.directory}.killed`;
    cpSync(test.directory, left, { recursive: true });
    await test.volume.close();
    cpSync(left, test.directory, { recursive: true });
    rmSync(left, { recursive: true });
    await test.reopen();
    t.notOk(test.volume.startedClean);
  };
  const first = await backUp(test.volume);
  await writeLabel(test.volume, 4, 'x');
  await stopUncleanly();
  t.same(test.volume.changedSince(first).toArray(), [4, 5]);
  const second = await backUp(test.volume);
  await stopUncleanly();
  t.same(test.volume.changedSince(second).toArray(), [], 'what is in doubt is not taken for often written');
});

t.test('a missing or damaged intent log means that everything changed', async (t) => {
  for (const harm of ['remove', 'damage'] as const) {
    const test = await makeTestVolume(t, { trackCount: 32 });
    const point = await backUp(test.volume);
    for (const track of [2, 9, 30]) await writeLabel(test.volume, track, 'x');
    test.home.fail({ kind: 'flush', nth: 1 });
    await t.rejects(test.volume.close());
    for (const name of readdirSync(test.directory).filter((found) => found.startsWith('intent-'))) {
      const path = join(test.directory, name);
      if (harm === 'remove') rmSync(path);
      else writeFileSync(path, readFileSync(path).fill(0, 0, 512));
    }
    const reopened = await test.reopen();
    t.equal(reopened.changedSince(point).size, 32, harm);
  }
});

t.test('a clean stop leaves no intent log, and an opening one empty one', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 32 });
  const logs = (): string[] => readdirSync(test.directory).filter((name) => name.startsWith('intent-'));
  await writeLabel(test.volume, 1, 'x');
  await backUp(test.volume);
  t.equal(logs().length, 1, 'that of the open epoch');
  await test.volume.close();
  t.same(logs(), []);
  await test.reopen();
  t.equal(logs().length, 1);
});

t.test('a write that cannot be logged fails, and the home is not touched', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 32 });
  observeSyncs({
    before: ({ kind }) => {
      if (kind === 'file') throw Object.assign(new Error('EIO: injected'), { code: 'EIO' });
      return 'perform';
    },
  });
  await t.rejects(Promise.resolve(writeLabel(test.volume, 8, 'x')), /injected/);
  observeSyncs(undefined);
  t.equal(test.home.operations.filter(({ kind }) => kind === 'write').length, 0);
  t.match(test.volume.status().poisoned, { reason: /injected/ });
});

t.test('a flush that fails at the stop poisons the volume, as any other does', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  await writeLabel(test.volume, 1, 'lost');
  test.home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(test.volume.close());
  const reopened = await test.reopen();
  // The disk may lack what the page cache has: no later flush may be answered as if it covered that.
  t.match(reopened.status().poisoned, { reason: /Injected failure/ });
  await t.rejects(reopened.flush(), { code: 'poisoned' });
});

t.test('a flush that ran beside one that failed is not answered as a good one', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  await writeLabel(volume, 1, 'lost');
  home.fail({ kind: 'flush', nth: 1 });
  const held = home.hold({ kind: 'flush', nth: 2 });
  const failing = volume.flush();
  const beside = volume.flush();
  await t.rejects(failing, /Injected failure/);
  held.open();
  // The failure was told to the first; the second knows nothing of it, and its writes are lost all the same.
  await t.rejects(beside, { code: 'poisoned' });
});

t.test('points that are recorded out of order leave a volume that opens', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 8 });
  const { volume, home } = test;
  // The first session's point waits for its second flush, the one after the freeze.
  const held = home.hold({ kind: 'flush', nth: 2 });
  const first = await volume.beginSession({ ...FULL, areas: [] });
  await held.arrived(1);
  first.fail(new Error('cancelled'));
  const second = await volume.beginSession({ ...FULL, areas: [] });
  second.confirm([{ first: 0, count: 8 }]);
  await second.mayComplete();
  held.open();
  home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(volume.close(), 'an unclean stop leaves what the points have recorded');
  const reopened = await test.reopen();
  t.equal(reopened.status().epoch, 4, 'the number of the last intent log is not used again');
  t.equal(reopened.status().points, 2);
});

t.test('a write waits while the gate is closed and belongs to the next epoch', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  const held = home.hold({ kind: 'write', nth: 1 });
  const inside = writeLabel(volume, 0, 'inside');
  await held.arrived(1);
  const prepared = deferred();
  observeSyncs({ after: ({ kind }) => (kind === 'directory' ? prepared.resolve() : undefined) });
  const freezing = volume.beginSession({ ...FULL, areas: [memory(4)] });
  // The next epoch's log is there; then the gate closes.
  await prepared.promise;
  observeSyncs(undefined);
  await turn();
  await turn();
  const outside = Promise.resolve(writeLabel(volume, 1, 'outside'));
  await turn();
  t.equal(
    home.operations.filter(({ kind }) => kind === 'write').length,
    1,
    'the second write is held at the gate',
  );
  held.open();
  const session = await freezing;
  await Promise.all([inside, outside]);
  t.same(volume.changedSince(session.plan.point).toArray(), [1]);
  session.fail(new Error('enough'));
});

t.test('a freeze that cannot empty the gate fails, reopens it and changes nothing', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4, freezeWaitMsMax: 5 });
  const held = home.hold({ kind: 'write', nth: 1 });
  const inside = writeLabel(volume, 0, 'inside');
  await held.arrived(1);
  await t.rejects(volume.beginSession({ ...FULL, areas: [] }), { code: 'freeze-timeout' });
  await writeLabel(volume, 1, 'x');
  t.equal(volume.status().epoch, 1);
  held.open();
  await inside;
});

t.test('a stop in the middle of a freeze ends the freeze and loses no change', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  await writeLabel(test.volume, 2, 'x');
  const held = test.home.hold({ kind: 'flush', nth: 1 });
  const freezing = test.volume.beginSession({ ...FULL, areas: [memory(1)] });
  await held.arrived(1);
  const reopening = test.reopen();
  held.open();
  await t.rejects(freezing, { code: 'closed' });
  const volume = await reopening;
  t.ok(volume.startedClean);
  t.match(volume.status(), { points: 0, changedTracks: 1 });
});

t.test('overlapping writes reach the home in the order of their arrival', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  const held = home.hold({ kind: 'write', nth: 1 });
  const first = writeLabel(volume, 0, 'first');
  await held.arrived(1);
  const second = writeLabel(volume, 0, 'second');
  const apart = writeLabel(volume, 2, 'apart');
  await apart;
  t.equal(held.waitingCount, 1, 'the overlapping write has not been sent');
  held.open();
  await Promise.all([first, second]);
  t.same(await labelsOf(volume), ['second', '0', 'apart', '0']);
});

t.test('a second owner is refused and told who has it', async (t) => {
  const { directory } = await makeTestVolume(t, { trackCount: 4 });
  const registry = { open: () => Promise.reject(new Error('never opened')) };
  await t.rejects(Volume.open(directory, { registry, activity: 'stealing' }), {
    code: 'in-use',
    details: { pid: process.pid, activity: 'testing' },
  });
  t.equal((await readVolumeIdentity(directory)).name, 'v', 'looking needs no lock');
});

t.test('a second session is refused while one runs, and allowed after it', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 4 });
  const session = await volume.beginSession({ ...FULL, areas: [] });
  await t.rejects(volume.beginSession({ ...FULL, areas: [] }), { code: 'session-running' });
  session.fail(new Error('done with it'));
  await session.whenEnded();
  const next = await volume.beginSession({ ...FULL, areas: [] });
  next.fail(new Error('done with it'));
});

t.test(
  'a directory that was copied has an id of its own and knows no point; moved, it keeps both',
  async (t) => {
    const test = await makeTestVolume(t, { trackCount: 4 });
    const session = await test.volume.beginSession({ ...FULL, areas: [] });
    session.confirm([{ first: 0, count: 4 }]);
    await session.mayComplete();
    await session.complete('set');
    const { volumeId } = test.volume.identity;
    await test.volume.close();
    const { cp } = await import('node:fs/promises');
    const copied = `${test.directory}-copy`;
    await cp(test.directory, copied, { recursive: true });
    const { DeviceRegistry } = await import('../device/index.ts');
    const copy = await Volume.open(copied, { registry: new DeviceRegistry(), activity: 'testing' });
    t.not(copy.identity.volumeId, volumeId);
    t.equal(copy.status().points, 0);
    await copy.close();
    // The copy's own directory, moved back under the old name, is a different directory too.
    const away = `${test.directory}-away`;
    await rename(test.directory, away);
    await cp(away, test.directory, { recursive: true });
    const moved = await Volume.open(test.directory, {
      registry: new DeviceRegistry(),
      activity: 'testing',
      moved: true,
    });
    t.equal(moved.identity.volumeId, volumeId);
    t.equal(moved.status().points, 1);
    await moved.close();
  },
);

t.test(
  'promise 10: a failed home write refuses writes and flushes, also after reopening, until a check',
  async (t) => {
    const test = await makeTestVolume(t, { trackCount: 4 });
    await writeLabel(test.volume, 1, 'kept');
    test.home.fail({ kind: 'write', nth: 1 });
    const session = await test.volume.beginSession({ ...FULL, areas: [memory(4)] });
    await t.rejects(writeLabel(test.volume, 0, 'lost'));
    t.equal(session.state, 'failed', 'poison fails the running session');
    await t.rejects(async () => writeLabel(test.volume, 2, 'x'), { code: 'poisoned' });
    await t.rejects(async () => test.volume.flush(), { code: 'poisoned' });
    t.equal((await labelsOf(test.volume))[1], 'kept', 'reads go on');
    const volume = await test.reopen();
    t.notOk(volume.startedClean);
    await t.rejects(async () => writeLabel(volume, 2, 'x'), { code: 'poisoned' });
    await t.rejects(volume.beginSession({ ...FULL, areas: [] }), { code: 'poisoned' });
    await volume.check();
    await writeLabel(volume, 2, 'x');
    t.equal(volume.status().changedTracks, 4, 'everything counts as changed');
  },
);

t.test('what was written since the last good flush is suspect until a check', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 16 });
  await writeLabel(test.volume, 1, 'flushed');
  await test.volume.flush();
  t.equal(test.volume.status().suspectTracks, 0);
  await writeLabel(test.volume, 2, 'x');
  const gate = test.home.hold({ kind: 'write' });
  const inFlight = writeLabel(test.volume, 3, 'x');
  await gate.arrived(1);
  await test.volume.flush();
  gate.remove();
  await inFlight;
  await writeLabel(test.volume, 9, 'x');
  test.home.fail({ kind: 'flush', nth: 1 });
  await t.rejects(test.volume.flush());
  t.equal(
    test.volume.status().suspectTracks,
    2,
    'the one after the good flush, and the one that ran beside it',
  );
  const volume = await test.reopen();
  t.equal(volume.status().suspectTracks, 2);
  await volume.check();
  t.equal(volume.status().suspectTracks, 0);
  t.equal((await test.reopen()).status().suspectTracks, 0);
});

t.test('ENOSPC from a write poisons nothing', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  home.fail({ kind: 'write', nth: 1 }, Object.assign(new Error('No space left'), { code: 'ENOSPC' }));
  await t.rejects(writeLabel(volume, 0, 'x'), { code: 'ENOSPC' });
  await writeLabel(volume, 0, 'y');
  t.equal((await labelsOf(volume))[0], 'y');
});

t.test('a write with FUA and a flush sync the home; a plain write does not', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 4 });
  home.forgetOperations();
  await writeLabel(volume, 0, 'x');
  t.equal(home.operations.filter(({ kind }) => kind === 'flush').length, 0);
  await volume.write(labelled('y'), 0, { fua: true });
  t.same(
    home.operations.map(({ kind }) => kind),
    ['write', 'write', 'flush'],
  );
  await volume.flush();
  t.equal(home.operations.at(-1)?.kind, 'flush');
});

t.test('fast zeroes are refused where a track is protected, and only there', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 4 });
  t.equal(volume.capabilities.fastZero, true, 'as its home has them');
  const fast = { fast: true, mayTrim: true } as const;
  for (const track of [0, 1, 2, 3]) await writeLabel(volume, track, `o${track}`);
  const session = await volume.beginSession({ ...FULL, areas: [memory(4)] });
  session.confirm([{ first: 0, count: 2 }]);
  await volume.writeZeroes(0, TRACK, fast);
  await t.rejects(async () => volume.writeZeroes(TRACK, 2 * TRACK, fast), {
    code: 'not-fast',
    details: { track: 2 },
  });
  t.same(await labelsOf(volume), ['0', 'o1', 'o2', 'o3'], 'the refused one changed nothing');
  t.match(session.status(), { diverted: 0 }, 'and copied nothing');
  t.same(volume.changedSince(session.plan.point).toArray(), [0]);
  await volume.writeZeroes(TRACK, 2 * TRACK, { mayTrim: true });
  session.fail(new Error('enough'));
  await session.whenEnded();
  await volume.writeZeroes(3 * TRACK, TRACK, fast);
  t.same(await labelsOf(volume), ['0', '0', '0', '0']);
  await t.rejects(async () => volume.writeZeroes(0, TRACK, { fast: true }), /may not become a hole/);
});

t.test('a home that refuses fast zeroes poisons nothing', async (t) => {
  const { volume, home } = await makeTestVolume(t, { trackCount: 2 });
  await writeLabel(volume, 0, 'kept');
  const fast = { fast: true, mayTrim: true } as const;
  const refusal = new DeviceError('not-fast', 'Would have to be written', { device: 'home' });
  home.fail({ kind: 'writeZeroes', nth: 1 }, refusal);
  await t.rejects(async () => volume.writeZeroes(0, TRACK, fast), { code: 'not-fast' });
  t.same(await labelsOf(volume), ['kept', '0']);
  t.equal(volume.status().poisoned, undefined);
  await volume.writeZeroes(0, TRACK);
  await volume.flush();
  t.same(await labelsOf(volume), ['0', '0']);
});

t.test('a trim of a protected track is put off, and is void where a write came between', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 4 });
  for (const track of [0, 1, 2]) await writeLabel(volume, track, `o${track}`);
  const session = await volume.beginSession({ ...FULL, areas: [memory(4)] });
  await volume.trim(0, 3 * TRACK);
  t.same(await labelsOf(volume), ['o0', 'o1', 'o2', '0'], 'protected blocks stay as they are');
  await writeLabel(volume, 1, 'n1');
  session.confirm([{ first: 0, count: 1 }]);
  // Overlaps the trim that the release has started, so it finishes behind it.
  await volume.trim(0, 512);
  t.same(await labelsOf(volume), ['0', 'n1', 'o2', '0'], 'released and trimmed; the written one is not');
  session.fail(new Error('enough'));
  await session.whenEnded();
  t.same(await labelsOf(volume), ['0', 'n1', '0', '0'], 'the end releases the rest');
  t.same(volume.changedSince(session.plan.point).toArray(), [0, 1, 2]);
});

t.test(
  'a trim that is released while a write to the same blocks is under way does not undo the write',
  async (t) => {
    const { volume, home } = await makeTestVolume(t, { trackCount: 2 });
    await writeLabel(volume, 0, 'o0');
    const session = await volume.beginSession({ ...FULL, areas: [memory(2)] });
    await volume.trim(0, TRACK);
    const held = home.hold({ kind: 'read', nth: 1 });
    const writing = writeLabel(volume, 0, 'n0');
    await held.arrived(1);
    held.open();
    await writing;
    session.fail(new Error('enough'));
    await session.whenEnded();
    t.same(await labelsOf(volume), ['n0', '0']);
  },
);

t.test('an odd size: the last track is shorter and everything still works', async (t) => {
  const { volume } = await makeTestVolume(t, { trackCount: 3, sizeBytes: 2 * TRACK + 512 });
  await volume.write(labelled('end', 512), 2 * TRACK);
  await t.rejects(async () => volume.write(labelled('end', 1024), 2 * TRACK), /outside/);
  const session = await volume.beginSession({ ...FULL, areas: [memory(1)] });
  await volume.write(labelled('new', 512), 2 * TRACK);
  const [diverted] = await session.take(1);
  t.same(diverted?.content, labelled('end', 512));
  session.fail(new Error('enough'));
});

t.test('create refuses what is there, and what cannot be', async (t) => {
  const { directory } = await makeTestVolume(t, { trackCount: 3 });
  const sizes = { sizeBytes: 4 * TRACK, trackSizeBytes: TRACK };
  await t.rejects(createVolume(directory, sizes), { code: 'exists' });
  await t.rejects(createVolume(`${directory}-x`, { ...sizes, trackSizeBytes: 3000 }), {
    code: 'invalid-geometry',
  });
  await t.rejects(createVolume(`${directory}-x`, { ...sizes, sizeBytes: 511 }), { code: 'invalid-geometry' });
  await t.rejects(readVolumeIdentity(`${directory}-x`), VolumeError);
});

t.test('a session whose point cannot be made durable fails, and the stop is not a clean one', async (t) => {
  const test = await makeTestVolume(t, { trackCount: 4 });
  const ended = deferred();
  // The first flush is the one before the switch, the second the one after it.
  test.home.fail({ kind: 'flush', nth: 2 });
  const session = await test.volume.beginSession({ ...FULL, areas: [] });
  session.signal.addEventListener('abort', () => ended.resolve());
  if (!session.signal.aborted) await ended.promise;
  t.equal(session.state, 'failed');
  const volume = await test.reopen();
  t.notOk(volume.startedClean);
});
