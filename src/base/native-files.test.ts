/**
 * Goal: each native call does what its comment says, and without koffi what it says for that case.
 * Method: real files in a temporary directory. What a filesystem cannot do is skipped loudly; locks are taken
 * through two opens of one file, which exclude each other within one process too.
 */

import {
  closeSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { AssertionError } from './assert.ts';
import {
  beginWriteBack,
  blockDeviceSize,
  bytesToPage,
  dropCache,
  endWriteBack,
  hasSparseFiles,
  NO_WAIT,
  punchHole,
  readNoWait,
  seekData,
  seekHole,
  shareRange,
  tryLock,
  tryLockRange,
  zeroRange,
} from './native-files.ts';
import { forcePlainNode } from './native.ts';

const MIB = 1024 * 1024;

function openFresh(t: Test, name = 'file'): { path: string; descriptor: number } {
  const path = join(t.testdir(), name);
  const descriptor = openSync(path, 'w+');
  t.teardown(() => closeSync(descriptor));
  return { path, descriptor };
}

t.test('a lock excludes another open of the same file until it is closed', (t) => {
  const { path, descriptor } = openFresh(t);
  const other = openSync(path, 'r+');
  t.equal(tryLock(descriptor, 'exclusive'), true);
  t.equal(tryLock(descriptor, 'exclusive'), true, 'taking it again is no conflict');
  t.equal(tryLock(other, 'exclusive'), false);
  t.equal(tryLock(other, 'shared'), false);
  t.equal(tryLock(descriptor, 'shared'), true);
  t.equal(tryLock(other, 'shared'), true, 'shared locks go together');
  t.equal(tryLock(descriptor, 'exclusive'), false);
  closeSync(other);
  t.equal(tryLock(descriptor, 'exclusive'), true);
  t.end();
});

t.test('range locks exclude only where they overlap', (t) => {
  const { path, descriptor } = openFresh(t);
  const other = openSync(path, 'r+');
  t.teardown(() => closeSync(other));
  const far = 2 ** 40;
  t.equal(tryLockRange(descriptor, far, 4096, 'exclusive'), true);
  t.equal(tryLockRange(other, far + 4095, 1, 'exclusive'), false);
  t.equal(tryLockRange(other, far - 1, 2, 'shared'), false);
  t.equal(tryLockRange(other, far + 4096, 4096, 'exclusive'), true);
  t.equal(tryLockRange(other, 0, far, 'exclusive'), true);
  t.equal(tryLockRange(descriptor, far + 8191, 10, 'shared'), false);
  t.throws(() => tryLockRange(descriptor, 0, 0, 'shared'), AssertionError);
  t.end();
});

t.test('errors are named as Node names them', (t) => {
  t.throws(() => tryLock(4000, 'shared'), { code: 'EBADF', syscall: 'flock', errno: -9 });
  t.throws(() => tryLockRange(4000, 0, 1, 'shared'), { code: 'EBADF', syscall: 'fcntl' });
  t.throws(() => readNoWait(4000, Buffer.alloc(1), 0), { code: 'EBADF' });
  t.throws(() => seekData(4000, 0), { code: 'EBADF' });
  t.rejects(punchHole(4000, 0, 1), { code: 'EBADF', syscall: 'fallocate' });
  t.rejects(dropCache(4000), { code: 'EBADF' });
  const { descriptor } = openFresh(t);
  t.throws(() => blockDeviceSize(descriptor), { code: 'ENOTTY' });
  t.end();
});

t.test('numbers that koffi would cut silently are refused', async (t) => {
  const { descriptor } = openFresh(t);
  for (const wrong of [Number.NaN, 0.5, -1, 2 ** 53]) {
    t.throws(() => readNoWait(descriptor, Buffer.alloc(8), wrong), AssertionError);
    t.throws(() => seekHole(descriptor, wrong), AssertionError);
    await t.rejects(punchHole(descriptor, wrong, 4096), AssertionError);
    await t.rejects(zeroRange(descriptor, 0, wrong), AssertionError);
  }
});

t.test('a warm page is read at once, into the right place only', (t) => {
  const { descriptor } = openFresh(t);
  const content = Buffer.alloc(8192, 7);
  content.fill(9, 4096);
  writeSync(descriptor, content);
  const around = Buffer.alloc(1000, 1);
  const count = readNoWait(descriptor, around.subarray(100, 300), 4000);
  if (count === NO_WAIT.unsupported) {
    t.comment('SKIPPED: this filesystem has no RWF_NOWAIT');
    t.end();
    return;
  }
  t.equal(count, 200);
  t.same(around.subarray(0, 100), Buffer.alloc(100, 1));
  t.same(around.subarray(100, 196), Buffer.alloc(96, 7));
  t.same(around.subarray(196, 300), Buffer.alloc(104, 9));
  t.same(around.subarray(300), Buffer.alloc(700, 1));
  t.equal(readNoWait(descriptor, around, 8000), 192, 'short at the end');
  t.equal(readNoWait(descriptor, around, 9000), 0, 'nothing past the end');
  t.end();
});

t.test('the next page is found from anywhere', (t) => {
  const memory = Buffer.allocUnsafeSlow(64 * 1024);
  const first = bytesToPage(memory);
  t.ok(first >= 0 && first < 4096);
  t.equal(bytesToPage(memory.subarray(first)), 0);
  t.equal(bytesToPage(memory.subarray(first + 1)), 4095);
  t.equal(bytesToPage(memory.subarray(first + 4096)), 0);
  t.end();
});

t.test('a dropped page is not read at once', async (t) => {
  const { descriptor } = openFresh(t);
  writeSync(descriptor, Buffer.alloc(MIB, 3));
  fsyncSync(descriptor);
  t.equal(await dropCache(descriptor), true);
  const count = readNoWait(descriptor, Buffer.alloc(65_536), 512 * 1024);
  // A cold read starts the reading; a filesystem in memory has no cold pages, and perhaps no such reads.
  t.ok(count === NO_WAIT.wouldWait || count === NO_WAIT.unsupported || count > 0);
});

t.test('writing back changes nothing in a file, and bad arguments are refused', (t) => {
  const { path, descriptor } = openFresh(t);
  writeSync(descriptor, Buffer.alloc(MIB, 3));
  t.equal(beginWriteBack(descriptor, 0, MIB), true);
  t.equal(endWriteBack(descriptor, 0, MIB), true);
  t.ok(readFileSync(path).equals(Buffer.alloc(MIB, 3)));
  t.throws(() => beginWriteBack(4000, 0, MIB), { code: 'EBADF' });
  t.throws(() => endWriteBack(4000, 0, MIB), { code: 'EBADF' });
  t.throws(() => beginWriteBack(descriptor, 0, 0), AssertionError, 'a length of 0 would mean to the end');
  t.throws(() => beginWriteBack(descriptor, -1, 1), AssertionError);
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  t.equal(beginWriteBack(descriptor, 0, MIB), false);
  t.equal(endWriteBack(descriptor, 0, MIB), false);
  t.end();
});

t.test('punching frees space, zeroing keeps it, both read as zeroes and keep the size', async (t) => {
  const { path, descriptor } = openFresh(t);
  writeSync(descriptor, Buffer.alloc(4 * MIB, 5));
  const before = statSync(path).blocks;
  if (!(await punchHole(descriptor, MIB, MIB))) {
    t.comment('SKIPPED: this filesystem cannot punch holes');
    return;
  }
  t.ok(statSync(path).blocks < before);
  t.equal(statSync(path).size, 4 * MIB);
  if (await zeroRange(descriptor, 3 * MIB, MIB)) t.ok(statSync(path).blocks >= before - 2048);
  else t.comment('SKIPPED: this filesystem cannot zero a range');
  const content = Buffer.alloc(4 * MIB);
  readSync(descriptor, content, 0, content.length, 0);
  t.same(content.subarray(0, MIB), Buffer.alloc(MIB, 5));
  t.same(content.subarray(MIB, 2 * MIB), Buffer.alloc(MIB));
  t.same(content.subarray(2 * MIB, 3 * MIB), Buffer.alloc(MIB, 5));
});

t.test('long ranges and many callers at once', async (t) => {
  const { path, descriptor } = openFresh(t);
  ftruncateSync(descriptor, 1024 * MIB);
  writeSync(descriptor, Buffer.alloc(4096, 1), 0, 4096, 700 * MIB);
  const many = Array.from({ length: 300 }, (_, index) => punchHole(descriptor, index * 4096, 4096));
  const answers = await Promise.all([...many, punchHole(descriptor, 0, 1024 * MIB)]);
  t.equal(new Set(answers).size, 1);
  if (answers[0]) t.equal(statSync(path).blocks, 0);
});

t.test('holes and data are told apart', (t) => {
  const { descriptor } = openFresh(t);
  ftruncateSync(descriptor, 4 * MIB);
  writeSync(descriptor, Buffer.alloc(65_536, 1), 0, 65_536, MIB);
  t.equal(seekData(descriptor, 0), MIB);
  t.equal(seekHole(descriptor, MIB), MIB + 65_536);
  t.equal(seekHole(descriptor, 100), 100);
  t.equal(seekData(descriptor, 2 * MIB), undefined, 'only a hole follows');
  t.equal(seekHole(descriptor, 5 * MIB), undefined, 'past the end');
  t.end();
});

t.test('without koffi everything is data, zeroes must be written and locks are refused', async (t) => {
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  const { descriptor } = openFresh(t);
  ftruncateSync(descriptor, MIB);
  t.equal(hasSparseFiles(), false);
  t.throws(() => tryLock(descriptor, 'exclusive'), { code: 'ENOSYS', message: /koffi/ });
  t.throws(() => tryLockRange(descriptor, 0, 1, 'exclusive'), { code: 'ENOSYS', message: /koffi/ });
  t.equal(readNoWait(descriptor, Buffer.alloc(16), 0), NO_WAIT.unsupported);
  t.equal(bytesToPage(Buffer.alloc(16)), 0);
  t.equal(await punchHole(descriptor, 0, 4096), false);
  t.equal(await zeroRange(descriptor, 0, 4096), false);
  t.equal(await dropCache(descriptor), false);
  t.equal(seekData(descriptor, 5), 5);
  t.equal(seekHole(descriptor, 5), MIB);
  t.equal(seekData(descriptor, MIB), undefined);
  t.throws(() => blockDeviceSize(descriptor), { code: 'ENOTTY' });
  forcePlainNode(false);
  t.equal(hasSparseFiles(), true);
});

t.test('files share blocks where the filesystem can, and say so where not', async (t) => {
  const { path, descriptor } = openFresh(t);
  const other = openSync(`${path}-other`, 'w+');
  t.teardown(() => closeSync(other));
  const content = Buffer.alloc(MIB, 5);
  writeSync(descriptor, content);
  ftruncateSync(other, 2 * MIB);
  const range = { sourceOffsetBytes: 0, targetOffsetBytes: MIB, lengthBytes: 0 };
  const isShared = await shareRange(descriptor, other, range);
  const found = Buffer.alloc(MIB);
  readSync(other, found, 0, MIB, MIB);
  t.same(found, isShared ? content : Buffer.alloc(MIB), isShared ? 'shared' : 'this filesystem cannot');
  t.equal(await shareRange(descriptor, other, { ...range, sourceOffsetBytes: 1 }), false, 'no whole block');
  await t.rejects(shareRange(4000, other, range), { code: 'EBADF', syscall: 'ioctl' });
  await t.rejects(shareRange(descriptor, other, { ...range, lengthBytes: -1 }), AssertionError);
  forcePlainNode(true);
  t.teardown(() => forcePlainNode(false));
  t.equal(await shareRange(descriptor, other, range), false);
});
