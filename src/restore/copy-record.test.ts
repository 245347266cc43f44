/**
 * Goal: a target is taken for what the last copy left only where nothing says otherwise.
 *
 * Method: records and looks by example; real files.
 */

import { symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { ManualClock } from '../base/index.ts';
import { MemoryDevice } from '../device/index.ts';
import type { Consumer, CopiedTarget, CopyRecord } from '../volume/index.ts';
import {
  baseOf,
  consumerOf,
  type CopyPlace,
  lookAfterWriting,
  lookAt,
  othersOn,
  placeOf,
  shareBytes,
} from './copy-record.ts';
import { RemapTable } from './remap-table.ts';

const STAMP = { sizeBytes: '8192', inode: '7', modifiedNs: '5' };
const FILE: CopiedTarget = { place: '/copy.raw', sizeBytes: 8192, stamp: STAMP };
const DISK: CopiedTarget = { place: '/dev/sdb', sizeBytes: 8192 };

function record(copy: CopyRecord, name = 'copy 1'): Consumer {
  return { name, point: 'p1', set: 's', atMs: 0, copy };
}

function target(name: string) {
  return { name, device: new MemoryDevice({ sizeBytes: 8192 }), knownZero: false };
}

function place(text: string): CopyPlace {
  return { target: target(text), place: text, path: undefined };
}

t.test('what a copy may build on', (t) => {
  const complete = record({ targets: [FILE, DISK] });
  t.same(baseOf(complete, [FILE, DISK], undefined), { base: 'p1' });
  t.same(baseOf(complete, [FILE, DISK], 'p2'), { base: 'p1' });
  t.same(baseOf(complete, [FILE, DISK], 'p1'), { base: 'p1', isCurrent: true });
  const incomplete = record({ targets: [FILE, DISK], isIncomplete: true });
  t.same(baseOf(incomplete, [FILE, DISK], undefined), { base: 'p1' });
  for (const point of ['p1', 'p2'])
    t.match(baseOf(incomplete, [FILE, DISK], point), { base: undefined, reason: /not completed/ });
  t.match(baseOf(undefined, [FILE], undefined), { base: undefined, reason: /no complete copy/ });
  t.match(baseOf({ name: 'store', point: 'p1', set: 's', atMs: 0 }, [FILE], undefined), { base: undefined });
  t.end();
});

t.test('what says that a target is not what it was', (t) => {
  const { stamp: _, ...unwatched } = FILE;
  const cases: readonly (readonly [CopiedTarget, CopiedTarget, RegExp])[] = [
    [FILE, { ...FILE, stamp: { ...STAMP, inode: '8' } }, /changed or replaced/],
    [FILE, { ...FILE, stamp: { ...STAMP, modifiedNs: '6' } }, /changed or replaced/],
    [FILE, { ...FILE, stamp: { ...STAMP, sizeBytes: '9' } }, /changed or replaced/],
    [FILE, { ...FILE, sizeBytes: 4096 }, /has 4096 bytes, and had 8192/],
    [FILE, unwatched, /no regular file any more/],
    [unwatched, FILE, /cut off/],
    [DISK, { ...DISK, sizeBytes: 4096 }, /has 4096 bytes/],
    [DISK, { ...DISK, place: '/dev/sdc' }, /other targets/],
  ];
  for (const [then, now, reason] of cases) {
    for (const isIncomplete of [false, true]) {
      const before = record({ targets: [then], ...(isIncomplete ? { isIncomplete } : {}) });
      t.match(baseOf(before, [now], undefined), { base: undefined, reason });
    }
  }
  t.match(baseOf(record({ targets: [FILE] }), [FILE, DISK], undefined), { reason: /other targets/ });
  t.end();
});

t.test('names: of the targets in their order, and of the table', (t) => {
  const [a, b] = [place('/a'), place('/b')];
  const table = (targetOffsetBytes: number): RemapTable =>
    RemapTable.of([{ sourceOffsetBytes: 0, lengthBytes: 512, target: '/a', targetOffsetBytes }]);
  t.match(consumerOf([a, b], undefined), /^copy [0-9a-f]{32}$/);
  t.equal(consumerOf([a, b], table(0)), consumerOf([a, b], table(0)));
  const names = [
    consumerOf([a, b], undefined),
    consumerOf([b, a], undefined),
    consumerOf([a], undefined),
    consumerOf([a, b], table(0)),
    consumerOf([a, b], table(512)),
  ];
  t.equal(new Set(names).size, names.length);
  t.end();
});

t.test('other copies in the same place', (t) => {
  const on = (text: string, name: string): Consumer =>
    record({ targets: [{ place: text, sizeBytes: 1 }] }, name);
  const consumers = [
    on('/dev/sdb', 'own'),
    on('/dev/sdb', 'whole'),
    on('/dev/sdb@0+4096', 'front'),
    on('/dev/sdb@8192+4096', 'back'),
    on('/dev/sdc', 'elsewhere'),
    { name: 'store', point: 'p', set: 's', atMs: 0 },
  ];
  t.same(othersOn(consumers, 'own', [place('/dev/sdb')]), ['whole', 'front', 'back']);
  t.same(othersOn(consumers, 'own', [place('/dev/sdb@4096+4096')]), ['whole']);
  t.same(othersOn(consumers, 'own', [place('/dev/sdb@4096+4608')]), ['whole', 'back']);
  t.end();
});

t.test('places that share bytes', (t) => {
  t.ok(shareBytes('nbd://host/disk', 'nbd://host/disk@0+4K'));
  t.notOk(shareBytes('nbd://host/disk', 'nbd://host/other'));
  t.notOk(shareBytes('nbd://host/disk@4K+4K', 'nbd://host/disk@0+4K'));
  t.end();
});

t.test('one place has one name, whatever links lead there', async (t) => {
  const directory = t.testdir({ 'copy.raw': Buffer.alloc(8192) });
  const file = join(directory, 'copy.raw');
  symlinkSync(file, join(directory, 'link'));
  const one = target('x');
  t.equal((await placeOf(one, join(directory, 'link'))).place, (await placeOf(one, file)).place);
  t.match(await placeOf(one, `${join(directory, 'link')}@4K+4K`), { place: `${file}@4096+4096`, path: file });
  t.match(await placeOf(one, 'nbd://host/disk'), { place: 'nbd://host/disk', path: undefined });
});

t.test('a file gets a time that no write of another can have by chance', async (t) => {
  const file = join(t.testdir({ 'copy.raw': Buffer.alloc(8192) }), 'copy.raw');
  const places = [await placeOf(target('x'), file), place('nbd://host/disk')];
  const left = await lookAfterWriting(places, new ManualClock());
  t.match(left[0]?.stamp?.modifiedNs, /^1700000000000(?!000)/);
  t.equal(left[1]?.stamp, undefined);
  t.same(await lookAt(places), left);
  writeFileSync(file, 'b', { flag: 'r+' });
  t.match(baseOf(record({ targets: left }), await lookAt(places), undefined), {
    reason: /changed or replaced/,
  });
});
