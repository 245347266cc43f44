/** Goal: every form of address opens the right bytes, and wrong ones say what is wrong. Method: a table and opens. */

import { join } from 'node:path';
import t from 'tap';
import { AssertionError, KIB, MIB } from '../base/index.ts';
import { createSparseFile } from './file-open.ts';
import { MemoryDevice } from './memory.ts';
import { DeviceRegistry, parseDeviceAddress } from './registry.ts';

const OPEN = { readOnly: false, syncName: 'home' } as const;

t.test('addresses are taken apart', (t) => {
  const table = [
    ['/srv/a.raw', { scheme: 'file', target: '/srv/a.raw' }],
    ['a.raw', { scheme: 'file', target: 'a.raw' }],
    ['file:a:b.raw', { scheme: 'file', target: 'a:b.raw' }],
    ['file:///srv/a', { scheme: 'file', target: '/srv/a' }],
    ['./a:b', { scheme: 'file', target: './a:b' }],
    ['/dev/sdb@1G+20G', { scheme: 'file', target: '/dev/sdb', piece: [1024 * MIB, 20 * 1024 * MIB] }],
    ['/a@b@512+1024', { scheme: 'file', target: '/a@b', piece: [512, 1024] }],
    ['/srv/you@example+more', { scheme: 'file', target: '/srv/you@example+more' }],
    ['/srv/a@1.3+5', { scheme: 'file', target: '/srv/a@1.3+5' }],
    ['nbd+unix:///x?socket=/s', { scheme: 'nbd+unix', target: 'nbd+unix:///x?socket=/s' }],
    ['NBD://host/x@0+64M', { scheme: 'nbd', target: 'NBD://host/x', piece: [0, 64 * MIB] }],
  ] as const;
  for (const [uri, { piece, ...wanted }] of table.map(
    ([uri, row]) => [uri, { piece: undefined, ...row }] as const,
  )) {
    const expected =
      piece === undefined ? wanted : { ...wanted, piece: { offsetBytes: piece[0], lengthBytes: piece[1] } };
    t.same(parseDeviceAddress(uri), expected, uri);
  }
  for (const wrong of ['', 'file:', '@0+512', '/a@0+0']) {
    t.throws(() => parseDeviceAddress(wrong), { code: 'bad-uri' }, JSON.stringify(wrong));
  }
  t.end();
});

t.test('paths, pieces and registered schemes open', async (t) => {
  const path = join(t.testdir(), 'a.raw');
  await createSparseFile(path, 4 * MIB, 'home-create');
  const memory = new MemoryDevice({ sizeBytes: MIB });
  const registry = new DeviceRegistry();
  const asked: string[] = [];
  registry.register('memory', async (uri) => {
    asked.push(uri);
    return memory;
  });
  t.same(registry.schemes, ['file', 'memory']);

  const whole = await registry.open(path, OPEN);
  const piece = await registry.open(`file:${path}@1M+64K`, OPEN);
  t.equal(whole.sizeBytes, 4 * MIB);
  t.equal(piece.sizeBytes, 64 * KIB);
  await piece.write(Buffer.alloc(512, 9), 512);
  const found = Buffer.alloc(512);
  await whole.read(found, MIB + 512);
  t.same(found, Buffer.alloc(512, 9));
  await Promise.all([whole.close(), piece.close()]);

  const part = await registry.open('memory://x@64K+128K', OPEN);
  t.same(asked, ['memory://x'], 'the opener sees no piece');
  t.equal(part.sizeBytes, 128 * KIB);
  await part.write(Buffer.alloc(512, 3), 0);
  memory.read(found, 64 * KIB);
  t.same(found, Buffer.alloc(512, 3));
});

t.test('what cannot be opened says why', async (t) => {
  const registry = new DeviceRegistry();
  registry.register('memory', async () => new MemoryDevice({ sizeBytes: MIB }));
  await t.rejects(registry.open('tape:0', OPEN), {
    code: 'unknown-scheme',
    message: /tape.*file, memory.*\.\/tape:0/,
    details: { known: ['file', 'memory'] },
  });
  await t.rejects(registry.open('memory:x@512K+1M', OPEN), { code: 'too-small' });
  await t.rejects(registry.open('memory:x@100+512', OPEN), { code: 'unaligned' });
  await t.rejects(registry.open(join(t.testdir(), 'missing'), OPEN), { code: 'not-found' });
  t.throws(
    () => registry.register('memory', async () => new MemoryDevice({ sizeBytes: MIB })),
    AssertionError,
  );
  t.throws(() => registry.register('file', async () => new MemoryDevice({ sizeBytes: MIB })), AssertionError);
});
