/**
 * Goal: files and block devices behave as every device, syncs are real and named, errors have their codes.
 * Method: the conformance suite over every way a request can take (at once, pool, without koffi, a piece, a
 * loop device where the machine has one), then cases of their own. Syncs are watched through `observeSyncs`.
 */

import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { geteuid } from 'node:process';
import t, { type Test } from 'tap';
import {
  AssertionError,
  deferred,
  dropCache,
  forcePlainNode,
  KIB,
  LIMITS,
  MIB,
  observeSyncs,
  type SyncEvent,
} from '../base/index.ts';
import type { BlockDevice } from './block-device.ts';
import { conformance } from './conformance.fixture.ts';
import { createSparseFile } from './file-open.ts';
import { type FileDeviceOptions, openFileDevice } from './file.ts';
import { poolSlots } from './thread-pool.ts';

type Extra = Partial<FileDeviceOptions>;

let fileCount = 0;

async function makeFile(t: Test, sizeBytes: number): Promise<string> {
  fileCount += 1;
  const path = join(t.testdirName, `device-${fileCount}`);
  await createSparseFile(path, sizeBytes, 'home-create');
  return path;
}

async function makeDevice(t: Test, sizeBytes: number, extra: Extra = {}): Promise<BlockDevice> {
  const path = await makeFile(t, sizeBytes + (extra.offsetBytes ?? 0));
  return openFileDevice({ path, readOnly: false, syncName: 'home', ...extra });
}

/** Records the syncs of a test. */
function watchSyncs(t: Test): SyncEvent[] {
  const seen: SyncEvent[] = [];
  observeSyncs({ after: (event) => seen.push(event) });
  t.teardown(() => observeSyncs(undefined));
  return seen;
}

const WAYS: Readonly<Record<string, Extra>> = {
  'small requests at once, large ones on the pool': {},
  'everything on the pool': { smallBytesMax: 0 },
  'everything at once': { smallBytesMax: 64 * MIB },
  'a piece of a file': { offsetBytes: 300 * KIB, lengthBytes: 4 * MIB },
};

for (const [name, extra] of Object.entries(WAYS)) {
  t.test(`conformance: ${name}`, async (t) => {
    t.testdir();
    await conformance(t, (sizeBytes) => makeDevice(t, sizeBytes, extra));
  });
}

t.test('conformance: without koffi', async (t) => {
  t.testdir();
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  await conformance(t, (sizeBytes) => makeDevice(t, sizeBytes));
});

t.test('conformance: a loop device', async (t) => {
  t.testdir();
  const path = await makeFile(t, 4 * MIB);
  let loop: string;
  try {
    loop = execFileSync('losetup', ['--find', '--show', path], { encoding: 'utf8', stdio: 'pipe' }).trim();
  } catch (error) {
    t.comment(`SKIPPED: no loop device could be made here: ${String(error)}`);
    return;
  }
  t.teardown(() => execFileSync('losetup', ['--detach', loop]));
  const open = () =>
    openFileDevice({ path: loop, readOnly: false, syncName: 'restore-target', exclusive: true });
  await conformance(t, async () => {
    const device = await open();
    await device.writeZeroes(0, device.sizeBytes);
    return device;
  });
  const device = await open();
  t.equal(device.sizeBytes, 4 * MIB);
  t.equal(device.capabilities.fastZero, true, 'loop devices punch holes into their file');
  t.equal(device.description, `device ${loop}`);
  await t.rejects(open(), { code: 'busy' }, 'an exclusive open excludes another');
  await device.close();
});

t.test('a flush syncs, under its name, after the writes it covers', async (t) => {
  t.testdir();
  const device = await makeDevice(t, MIB);
  const seen = watchSyncs(t);
  await device.write(Buffer.alloc(512, 1), 0);
  t.same(seen, [], 'a plain write does not sync');
  await device.flush();
  t.match(seen, [{ kind: 'file', name: 'home', path: /device-/ }]);
  await device.write(Buffer.alloc(512, 1), 0, { fua: true });
  await device.write(Buffer.alloc(128 * KIB, 1), 0, { fua: true });
  await device.writeZeroes(0, 512, { fua: true });
  await device.trim(0, 512, { fua: true });
  t.equal(seen.length, 5, 'each write with fua syncs');
  await device.close();
});

t.test('a flush is not answered by a sync that was issued before it came', async (t) => {
  t.testdir();
  const device = await makeDevice(t, MIB);
  let issued = 0;
  const second = deferred();
  observeSyncs({
    before: () => {
      issued += 1;
      if (issued === 2) second.resolve();
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  const first = device.flush();
  const late = [device.flush(), device.flush()];
  t.equal(issued, 1);
  await first;
  await second.promise;
  await Promise.all(late);
  t.equal(issued, 2, 'those that came meanwhile share one more');
  await device.close();
});

t.test('after a failed flush the device keeps refusing to call anything durable', async (t) => {
  t.testdir();
  const device = await makeDevice(t, MIB);
  let fails = true;
  observeSyncs({
    before: () => {
      if (fails) throw Object.assign(new Error('injected'), { code: 'ENOSPC' });
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  await t.rejects(device.flush(), {
    code: 'flush-failed',
    details: { errno: 'ENOSPC' },
    message: /injected/,
  });
  fails = false;
  await t.rejects(device.flush(), { code: 'flush-failed' });
  await t.rejects(async () => device.write(Buffer.alloc(512), 0, { fua: true }), { code: 'flush-failed' });
  await device.read(Buffer.alloc(512), 0);
  await device.close();
});

t.test('a warm small read finishes at once, a cold one does not block', async (t) => {
  t.testdir();
  const device = await makeDevice(t, 2 * MIB);
  await device.write(Buffer.alloc(2 * MIB, 6), 0);
  await device.flush();
  const target = Buffer.alloc(4096);
  const warm = device.read(target, 0);
  if (warm !== undefined) t.comment('SKIPPED: this filesystem has no RWF_NOWAIT');
  await warm;
  t.same(target, Buffer.alloc(4096, 6));
  t.equal(device.write(target, 4096), undefined, 'a small write finishes at once');
  const large = device.read(Buffer.alloc(2 * MIB), 0);
  t.ok(large instanceof Promise, 'a large read goes to the pool');
  await large;
  await device.close();
});

/** Time in which every call takes `callMs`, on a processor that is always free. */
class CallClock {
  callMs = 0;
  #nowMs = 0;
  readonly runDelayMs = (): number => 0;
  readonly clock = {
    monotonicMs: (): number => {
      this.#nowMs += this.callMs;
      return this.#nowMs;
    },
  };
}

t.test('small calls that turn slow move to the pool and come back, reads and writes apart', async (t) => {
  t.testdir();
  // Without koffi a read cannot know whether it would wait, as on a network filesystem.
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  const timing = new CallClock();
  const device = await makeDevice(t, MIB, { timing });
  const target = Buffer.alloc(4096);
  const write = (value: number) => device.write(Buffer.alloc(4096, value), 4096);
  const read = () => device.read(target, 4096);
  t.equal(write(1), undefined, 'a fast write is made at once');
  t.equal(read(), undefined, 'and so is a fast read');
  t.same(target, Buffer.alloc(4096, 1));
  timing.callMs = 2 * LIMITS.paceBlockedMsMax;
  t.equal(write(2), undefined, 'nobody knew that this one would be slow');
  timing.callMs = 0;
  const moved = write(3);
  t.ok(moved instanceof Promise, 'the next write goes to the pool');
  t.equal(read(), undefined, 'reads are not slow');
  await moved;
  read();
  t.same(target, Buffer.alloc(4096, 3), 'the write on the pool has written');
  await device.write(Buffer.alloc(512, 4), 0, { fua: true });
  timing.callMs = 2 * LIMITS.paceBlockedMsMax;
  t.equal(read(), undefined);
  t.ok(read() instanceof Promise, 'now reads are');
  timing.callMs = LIMITS.paceSlowCallMs / 2;
  const pooledCountMax = LIMITS.paceRestMsMin / timing.callMs;
  let pooled = read();
  for (let count = 0; pooled !== undefined && count < pooledCountMax; count += 1) {
    await pooled;
    pooled = read();
  }
  t.equal(pooled, undefined, 'and they come back');
  t.equal(read(), undefined);
  t.same(target, Buffer.alloc(4096, 3));
  await device.close();
});

t.test('conformance: every small call is slow', async (t) => {
  t.testdir();
  const timing = new CallClock();
  timing.callMs = 2 * LIMITS.paceBlockedMsMax;
  await conformance(t, (sizeBytes) => makeDevice(t, sizeBytes, { timing }));
});

t.test('on a filesystem in memory small reads finish at once', async (t) => {
  t.testdir();
  const path = join(t.testdirName, 'memory');
  mkdirSync(path);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'cowbell-test', path], { stdio: 'pipe' });
  } catch (error) {
    t.comment(`SKIPPED: no filesystem in memory could be mounted here: ${String(error)}`);
    return;
  }
  try {
    await createSparseFile(join(path, 'home'), MIB, 'home-create');
    const device = await openFileDevice({ path: join(path, 'home'), readOnly: false, syncName: 'home' });
    await device.write(Buffer.alloc(4096, 5), 0);
    const target = Buffer.alloc(8192);
    t.equal(device.read(target, 0), undefined);
    t.same(target.subarray(0, 4096), Buffer.alloc(4096, 5));
    truncateSync(join(path, 'home'), 4096);
    await t.rejects(async () => device.read(target, 0), { code: 'io', message: /ends at 4096/ });
    await device.close();
  } finally {
    execFileSync('umount', [path]);
  }
});

t.test('reads that the cache has in part are completed', async (t) => {
  t.testdir();
  const path = await makeFile(t, MIB);
  writeFileSync(path, Buffer.alloc(MIB, 4));
  const device = await openFileDevice({ path, readOnly: false, syncName: 'home' });
  await device.flush();
  await device.close();
  const { openSync, closeSync, readSync } = await import('node:fs');
  const descriptor = openSync(path, 'r');
  await dropCache(descriptor);
  readSync(descriptor, Buffer.alloc(4096), 0, 4096, 0);
  const reader = await openFileDevice({ path, readOnly: true, syncName: 'home' });
  for (let offset = 0; offset < MIB; offset += 64 * KIB) {
    const target = Buffer.alloc(64 * KIB);
    await reader.read(target, offset);
    t.ok(target.equals(Buffer.alloc(64 * KIB, 4)));
  }
  closeSync(descriptor);
  await reader.close();
});

t.test('reads and writes leave threads of the pool to syncs', async (t) => {
  t.testdir();
  const device = await makeDevice(t, 64 * MIB);
  const writes = Array.from({ length: 32 }, async (_, index) =>
    device.write(Buffer.alloc(2 * MIB, index), index * 2 * MIB),
  );
  t.ok(poolSlots.usedCount <= 2, `${poolSlots.usedCount} of 4 threads`);
  t.ok(poolSlots.waitingCount >= 30);
  await Promise.all(writes);
  t.equal(poolSlots.usedCount, 0);
  await device.close();
});

t.test('trim gives space back, zeroes that may not trim keep it', async (t) => {
  t.testdir();
  const path = await makeFile(t, 4 * MIB);
  const device = await openFileDevice({ path, readOnly: false, syncName: 'home' });
  await device.write(Buffer.alloc(4 * MIB, 1), 0);
  await device.flush();
  const full = statSync(path).blocks;
  await device.writeZeroes(0, MIB, { mayTrim: false });
  await device.flush();
  t.ok(statSync(path).blocks >= full);
  await device.trim(MIB, 2 * MIB);
  t.ok(statSync(path).blocks <= full - 4096);
  t.equal(device.capabilities.extents, true);
  const extents = await device.extents(MIB, 3 * MIB);
  t.same(extents[0], { offsetBytes: MIB, lengthBytes: 2 * MIB, hole: true, zero: true });
  await device.close();
});

t.test(
  'fast zeroes are there where the filesystem punches holes, which is found out without a trace',
  async (t) => {
    t.testdir();
    const path = await makeFile(t, 4 * MIB);
    utimesSync(path, 1, 1);
    const before = statSync(path);
    const device = await openFileDevice({ path, readOnly: false, syncName: 'home' });
    const after = statSync(path);
    t.same([after.mtimeMs, after.ctimeMs, after.blocks], [before.mtimeMs, before.ctimeMs, before.blocks]);
    t.same(readdirSync(t.testdirName), [basename(path)], 'nothing lies beside it');
    if (device.capabilities.fastZero !== true) t.comment('SKIPPED: this filesystem has no holes to tell of');
    else {
      await device.write(Buffer.alloc(4 * MIB, 1), 0);
      await device.flush();
      const full = statSync(path).blocks;
      await device.writeZeroes(0, 2 * MIB, { fast: true, mayTrim: true });
      t.ok(statSync(path).blocks <= full - 4096, 'they give the space back');
    }
    await device.close();
    const reader = await openFileDevice({ path, readOnly: true, syncName: 'home' });
    t.equal(reader.capabilities.fastZero, false, 'nothing is zeroed in what is open for reading');
    await reader.close();
    forcePlainNode(true);
    t.teardown(() => forcePlainNode(false));
    const plain = await openFileDevice({ path, readOnly: false, syncName: 'home' });
    t.equal(plain.capabilities.fastZero, false, 'without koffi zeroes are written');
    await plain.close();
  },
);

t.test('a filesystem without holes has no fast zeroes, and zeroes all the same', async (t) => {
  t.testdir();
  const directory = join(t.testdirName, 'plain');
  mkdirSync(directory);
  try {
    execFileSync('mount', ['-t', 'ramfs', 'cowbell-test', directory], { stdio: 'pipe' });
  } catch (error) {
    t.comment(`SKIPPED: no filesystem without holes could be mounted here: ${String(error)}`);
    return;
  }
  try {
    await conformance(t, async (sizeBytes) => {
      const path = join(directory, 'home');
      rmSync(path, { force: true });
      await createSparseFile(path, sizeBytes, 'home-create');
      const device = await openFileDevice({ path, readOnly: false, syncName: 'home' });
      t.equal(device.capabilities.fastZero, false);
      return device;
    });
  } finally {
    execFileSync('umount', [directory]);
  }
});

t.test('a disk that finds out late that it cannot zero refuses fast zeroes', async (t) => {
  t.testdir();
  const device = await makeDevice(t, MIB);
  if (device.capabilities.fastZero !== true) t.comment('SKIPPED: this filesystem has no holes to tell of');
  else {
    await device.write(Buffer.alloc(MIB, 1), 0);
    forcePlainNode(true);
    t.teardown(() => forcePlainNode(false));
    await t.rejects(async () => device.writeZeroes(0, 4096, { fast: true, mayTrim: true }), {
      code: 'not-fast',
    });
    const target = Buffer.alloc(4096);
    await device.read(target, 0);
    t.same(target, Buffer.alloc(4096, 1));
  }
  await device.close();
});

t.test('a piece stays inside its piece', async (t) => {
  t.testdir();
  const path = await makeFile(t, 3 * MIB);
  writeFileSync(path, Buffer.alloc(3 * MIB, 1));
  const piece = await openFileDevice({
    path,
    readOnly: false,
    syncName: 'home',
    offsetBytes: MIB,
    lengthBytes: MIB,
  });
  t.equal(piece.description, `file ${path}@${MIB}+${MIB}`);
  await piece.write(Buffer.alloc(MIB, 2), 0);
  await piece.trim(512, 1024);
  await t.rejects(async () => piece.write(Buffer.alloc(512), MIB), AssertionError);
  await piece.close();
  const content = readFileSync(path);
  t.ok(content.subarray(0, MIB).equals(Buffer.alloc(MIB, 1)));
  t.ok(content.subarray(2 * MIB).equals(Buffer.alloc(MIB, 1)));
  t.same(content.subarray(MIB + 512, MIB + 1536), Buffer.alloc(1024));
});

t.test('pieces are locked apart, one piece only once', async (t) => {
  t.testdir();
  const path = await makeFile(t, 2 * MIB);
  const open = (offsetBytes: number, extra: Extra = {}) =>
    openFileDevice({
      path,
      readOnly: false,
      syncName: 'home',
      offsetBytes,
      lengthBytes: MIB,
      lock: 'exclusive',
      ...extra,
    });
  const first = await open(0);
  const second = await open(MIB);
  await t.rejects(open(512 * KIB), { code: 'busy', message: /locked/ });
  await t.rejects(open(0, { readOnly: true, lock: 'shared' }), { code: 'busy' });
  await first.close();
  const again = await open(0);
  await Promise.all([again.close(), second.close()]);
  await t.rejects(open(0, { readOnly: true }), AssertionError);
});

t.test('every way an open can fail has its code', async (t) => {
  t.testdir({ short: 'x'.repeat(1024), odd: 'x'.repeat(1000), empty: '' });
  const open = (path: string, extra: Extra = {}) =>
    openFileDevice({ path, readOnly: true, syncName: 'home', ...extra });
  const at = (name: string) => join(t.testdirName, name);
  await t.rejects(open(at('missing')), { code: 'not-found', details: { errno: 'ENOENT' } });
  await t.rejects(open(at('short/below')), { code: 'not-found' });
  await t.rejects(open(t.testdirName), { code: 'not-a-device' });
  await t.rejects(open('/dev/null'), { code: 'not-a-device' });
  await t.rejects(open(at('odd')), { code: 'unaligned', details: { valueBytes: 1000 } });
  await t.rejects(open(at('short'), { offsetBytes: 100 }), { code: 'unaligned' });
  await t.rejects(open(at('empty')), { code: 'too-small' });
  await t.rejects(open(at('short'), { offsetBytes: 1024 }), { code: 'too-small' });
  await t.rejects(open(at('short'), { offsetBytes: 512, lengthBytes: 1024 }), {
    code: 'too-small',
    details: { sizeBytes: 1024, wantedBytes: 1536 },
  });
  if (geteuid?.() === 0) t.comment('SKIPPED: root may read everything');
  else {
    chmodSync(at('short'), 0);
    await t.rejects(open(at('short')), { code: 'denied' });
  }
});

t.test('a full disk is told by its code', async (t) => {
  t.testdir();
  const small = join(t.testdirName, 'small');
  mkdirSync(small);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'cowbell-test', small], { stdio: 'pipe' });
  } catch (error) {
    t.comment(`SKIPPED: no small filesystem could be mounted here: ${String(error)}`);
    return;
  }
  try {
    await fillDisk(t, join(small, 'home'));
  } finally {
    execFileSync('umount', [small]);
  }
});

/** On a filesystem of 1 MiB. */
async function fillDisk(t: Test, path: string): Promise<void> {
  await createSparseFile(path, 4 * MIB, 'home-create');
  const device = await openFileDevice({ path, readOnly: false, syncName: 'home' });
  try {
    await t.rejects(async () => device.write(Buffer.alloc(2 * MIB, 1), 0), {
      code: 'no-space',
      details: { errno: 'ENOSPC' },
    });
    t.throws(() => device.write(Buffer.alloc(64 * KIB, 1), 3 * MIB), { code: 'no-space' });
    await device.trim(0, 2 * MIB);
    await device.write(Buffer.alloc(64 * KIB, 1), 3 * MIB);
    await device.flush();
  } finally {
    await device.close();
  }
}

t.test('a file that was cut short fails its reads and nothing else', async (t) => {
  t.testdir();
  const path = await makeFile(t, MIB);
  const device = await openFileDevice({ path, readOnly: false, syncName: 'home' });
  truncateSync(path, 4096);
  await t.rejects(async () => device.read(Buffer.alloc(8192), 0), { code: 'io', message: /ends at 4096/ });
  await t.rejects(async () => device.read(Buffer.alloc(512 * KIB), 0), { code: 'io' });
  await device.read(Buffer.alloc(4096), 0);
  await device.close();
});

t.test('a new file is sparse, durable and never replaces another', async (t) => {
  t.testdir();
  const seen = watchSyncs(t);
  const path = await makeFile(t, 1024 * MIB);
  t.equal(statSync(path).size, 1024 * MIB);
  t.ok(statSync(path).blocks < 64);
  t.same(seen, [{ kind: 'file', name: 'home-create', path }]);
  await t.rejects(createSparseFile(path, MIB, 'home-create'), { code: 'exists' });
  t.equal(statSync(path).size, 1024 * MIB);
  await t.rejects(createSparseFile(join(path, 'below'), MIB, 'home-create'), { code: 'not-found' });
  observeSyncs({
    before: () => {
      throw Object.assign(new Error('injected'), { code: 'EIO' });
    },
  });
  const failed = join(t.testdirName, 'failed');
  await t.rejects(createSparseFile(failed, MIB, 'home-create'), { code: 'io' });
  t.throws(() => statSync(failed), { code: 'ENOENT' }, 'nothing is left of a failed creation');
});
