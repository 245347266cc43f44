/**
 * Goal: targets that somebody uses are refused, missing files are created sparse, and a refusal leaves nothing
 * behind. Method: files in a directory of the test, opened through the real registry; locks are taken by
 * descriptors of the test, which exclude each other as those of two processes do.
 */

import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { tryLock, tryLockRange } from '../base/index.ts';
import { DeviceRegistry, MemoryDevice } from '../device/index.ts';
import type { TargetLayout } from './layout.ts';
import { RemapTable } from './remap-table.ts';
import { openTargets, type OpenTargetsOptions, type TargetRequest } from './targets.ts';

const TRACK = 4096;

function registry(): DeviceRegistry {
  const devices = new DeviceRegistry();
  devices.register(
    'memory',
    async (uri) => new MemoryDevice({ sizeBytes: Number(uri.slice('memory:'.length)) }),
  );
  return devices;
}

interface Refusal {
  readonly name?: string;
  readonly code: string;
  readonly message?: RegExp;
}

const options: OpenTargetsOptions = { registry: registry(), isVolumeHome: async () => false };

function onto(name: string, tracks: number): TargetLayout {
  return { table: RemapTable.identity(name, { offsetBytes: 0, lengthBytes: tracks * TRACK }) };
}

async function refused(
  t: Test,
  requests: readonly TargetRequest[],
  wanted: Refusal,
  more: Partial<OpenTargetsOptions> = {},
): Promise<void> {
  await t.rejects(openTargets(requests, onto('a', 1), { ...options, ...more }), wanted);
}

t.test('an existing file is used as it is, a missing one is created sparse for its owner', async (t) => {
  const directory = t.testdir({ old: Buffer.alloc(3 * TRACK, '-') });
  const [old, fresh] = [join(directory, 'old'), join(directory, 'fresh')];
  const table = RemapTable.of([
    { sourceOffsetBytes: 0, lengthBytes: TRACK, target: 'old', targetOffsetBytes: 0 },
    { sourceOffsetBytes: TRACK, lengthBytes: TRACK, target: 'fresh', targetOffsetBytes: 2 ** 30 },
  ]);
  const opened = await openTargets(
    [
      { name: 'old', uri: old, sizeBytes: TRACK },
      { name: 'fresh', uri: fresh },
      { name: 'unused', uri: join(directory, 'unused') },
    ],
    { table },
    options,
  );
  t.equal(opened.table, table);
  t.match(opened.targets, [
    { name: 'old', knownZero: false, device: { sizeBytes: 3 * TRACK } },
    { name: 'fresh', knownZero: true, createdIn: directory, device: { sizeBytes: 2 ** 30 + TRACK } },
  ]);
  t.equal(opened.targets.length, 2);
  await opened.close();
  const stats = statSync(fresh);
  t.equal(stats.mode & 0o777, 0o600);
  t.ok(stats.blocks * 512 < 2 ** 20, 'sparse');
  t.equal(readFileSync(old).toString('latin1'), '-'.repeat(3 * TRACK));
  t.notOk(existsSync(join(directory, 'unused')));
});

t.test('sizeBytes decides the size of a created file', async (t) => {
  const uri = join(t.testdir({}), 'a');
  const opened = await openTargets([{ name: 'a', uri, sizeBytes: 9 * TRACK }], onto('a', 1), options);
  await opened.close();
  t.equal(statSync(uri).size, 9 * TRACK);
});

t.test('discard removes what was created and nothing else', async (t) => {
  const directory = t.testdir({ old: Buffer.alloc(TRACK) });
  const requests = ['a', 'old'].map((name) => ({ name, uri: join(directory, name) }));
  const opened = await openTargets(requests, onto('a', 1), options);
  t.ok(existsSync(join(directory, 'a')));
  await opened.discard();
  t.notOk(existsSync(join(directory, 'a')));
  t.ok(existsSync(join(directory, 'old')));
});

t.test('in sequence: sizes of existing ones count, the missing one takes the rest', async (t) => {
  const directory = t.testdir({ a: Buffer.alloc(3 * TRACK) });
  const requests: TargetRequest[] = [
    { name: 'a', uri: join(directory, 'a') },
    { name: 'm', uri: `memory:${2 * TRACK}` },
    { name: 'rest', uri: join(directory, 'rest') },
  ];
  const opened = await openTargets(requests, { sequenceBytes: 9 * TRACK }, options);
  t.same(
    opened.table.rows.map((row) => [row.target, row.sourceOffsetBytes / TRACK, row.lengthBytes / TRACK]),
    [
      ['a', 0, 3],
      ['m', 3, 2],
      ['rest', 5, 4],
    ],
  );
  await opened.close();
  t.equal(statSync(join(directory, 'rest')).size, 4 * TRACK);
  await t.rejects(openTargets(requests.slice(0, 2), { sequenceBytes: 9 * TRACK }, options), {
    code: 'target-too-small',
    message: 'Restore needs 36864 bytes, the targets a, m hold 20480 together',
  });
});

t.test('what cannot be a target', async (t) => {
  const directory = t.testdir({ file: 'x'.repeat(TRACK), odd: 'odd' });
  const at = (name: string): string => join(directory, name);
  const bad = (uri: string, message: RegExp, sizeBytes?: number): Promise<void> =>
    refused(t, [{ name: 'a', uri, ...(sizeBytes === undefined ? {} : { sizeBytes }) }], {
      name: 'RestoreError',
      code: 'bad-target',
      message,
    });
  await bad(directory, /^Target a \(.*\) is a directory, wanted a file or a device$/);
  await bad('/dev/null', /is neither a regular file nor a block device/);
  await bad(at('no/such'), /cannot be created, because .*no is no directory/);
  await bad(at('file/below'), /ENOTDIR/);
  await bad(at('odd'), /cannot be opened: .* wanted a multiple of 512/);
  await bad('unknown:thing', /cannot be opened: .*scheme unknown/);
  await bad('', /names no device/);
  await bad(at('new@0+4096'), /a piece of a file that does not exist/);
  await bad(at('new'), /would get 1000 bytes, wanted a multiple of 512/, 1000);
  await refused(
    t,
    Array.from({ length: 257 }, (_, index) => ({ name: `t${index}`, uri: at(`t${index}`) })),
    { code: 'bad-target', message: /one of 257 targets, wanted at most 256/ },
  );
  t.notOk(existsSync(at('t0')));
});

t.test('one place under two names, two places under one name', async (t) => {
  const directory = t.testdir({ a: Buffer.alloc(2 * TRACK) });
  const at = (name: string): string => join(directory, name);
  symlinkSync('a', at('link'));
  mkdirSync(at('sub'));
  const pairs: [string, string, Refusal][] = [
    [at('a'), at('link'), { code: 'target-in-use', message: /is in use: target a of the same restore/ }],
    [at('new'), at('sub/../new'), { code: 'target-in-use' }],
    ['memory:4096', 'memory:4096', { code: 'target-in-use' }],
    [`${at('a')}@0+4096`, `${at('a')}@512+512`, { code: 'target-in-use' }],
  ];
  for (const [first, second, wanted] of pairs) {
    await refused(
      t,
      [
        { name: 'a', uri: first },
        { name: 'b', uri: second },
      ],
      wanted,
    );
  }
  await refused(
    t,
    [
      { name: 'a', uri: at('x') },
      { name: 'a', uri: at('y') },
    ],
    {
      code: 'bad-target',
      message: /has the name of another target/,
    },
  );
  t.notOk(existsSync(at('new')));
});

t.test('two pieces of one file are two targets', async (t) => {
  const path = join(t.testdir({ a: Buffer.alloc(4 * TRACK) }), 'a');
  const requests = [
    { name: 'a', uri: `${path}@0+${TRACK}` },
    { name: 'b', uri: `${path}@${2 * TRACK}+${TRACK}` },
  ];
  const opened = await openTargets(requests, { sequenceBytes: 2 * TRACK }, options);
  t.same(
    opened.targets.map(({ device }) => device.sizeBytes),
    [TRACK, TRACK],
  );
  await opened.close();
});

t.test('a target in use is refused, and free again after close', async (t) => {
  const directory = t.testdir({ a: Buffer.alloc(4 * TRACK), swaps: 'Filename\n', sys: {} });
  const path = join(directory, 'a');
  const request = { name: 'a', uri: path };
  const inUse = (by: RegExp) => ({ code: 'target-in-use', message: by });

  const whole = await open(path, 'r');
  t.ok(tryLock(whole.fd, 'shared'));
  await refused(t, [request], inUse(/another process, which holds its lock/));
  await whole.close();

  const part = await open(path, 'r+');
  t.ok(tryLockRange(part.fd, TRACK, 512, 'exclusive'));
  await refused(t, [request], inUse(/which holds all or a part of it/));
  await part.close();

  await refused(t, [request], inUse(/the home of a volume/), {
    isVolumeHome: async (asked) => asked === path,
  });
  writeFileSync(join(directory, 'swaps'), `Filename\n${path}\tfile\n`);
  await refused(t, [request], inUse(/Target a \(.*\) is in use: used as swap/), {
    kernelTables: {
      mountinfoPath: join(directory, 'none'),
      swapsPath: join(directory, 'swaps'),
      sysPath: join(directory, 'sys'),
    },
  });

  const first = await openTargets([request], onto('a', 1), options);
  await refused(t, [request], inUse(/another process, which holds its lock/));
  await first.close();
  const second = await openTargets([request], onto('a', 1), options);
  await second.close();
});

t.test('a refusal after a creation removes what was created', async (t) => {
  const directory = t.testdir({});
  const at = (name: string): string => join(directory, name);
  const table = RemapTable.of([
    { sourceOffsetBytes: 0, lengthBytes: TRACK, target: 'a', targetOffsetBytes: 0 },
    { sourceOffsetBytes: TRACK, lengthBytes: TRACK, target: 'b', targetOffsetBytes: 0 },
  ]);
  const requests = ['a', 'b'].map((name) => ({ name, uri: at(name) }));
  const inner = registry();
  const failing: Pick<DeviceRegistry, 'open'> = {
    open: (uri, wanted) => (uri === at('b') ? Promise.reject(new Error('EMFILE')) : inner.open(uri, wanted)),
  };
  await t.rejects(openTargets(requests, { table }, { ...options, registry: failing }), {
    code: 'bad-target',
    message: /^Target b .* cannot be opened: EMFILE/,
  });
  t.notOk(existsSync(at('a')));
  t.notOk(existsSync(at('b')));
});
