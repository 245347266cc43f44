/** Goal: every way to write a value is read right or refused with the value in the message. Method: tables. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import {
  absolutePath,
  absolutePlace,
  formatTimeMs,
  isUri,
  readCodec,
  readContainer,
  readListen,
  readRestriction,
  readSize,
  readTimeMs,
  readVolumeOrSnapshot,
  several,
  single,
} from './arguments.ts';

t.test('sizes', (t) => {
  t.equal(readSize('--size', '64K'), 65_536);
  t.equal(readSize('--size', '0'), 0);
  for (const bad of ['', 'big', '-1', '1X', '0.3', '1e3', '99999999T']) {
    t.throws(() => readSize('--size', bad), { code: 'usage', message: `--size is '${bad}', wanted` }, bad);
  }
  t.end();
});

t.test('codecs', (t) => {
  t.same(readCodec('none'), { codec: 'none' });
  t.same(readCodec('zstd'), { codec: 'zstd' });
  t.same(readCodec('zstd:19'), { codec: 'zstd', compressionLevel: 19 });
  t.same(readCodec('zstd:-7'), { codec: 'zstd', compressionLevel: -7 });
  t.ok((readCodec('fast').compressionLevel ?? 0) < 0);
  for (const bad of ['', 'gzip', 'zstd:', 'zstd:20', 'zstd:-8', 'zstd:1.5', 'none:1', 'ZSTD']) {
    t.throws(() => readCodec(bad), { code: 'usage', message: `--codec is ${bad}, wanted` }, bad);
  }
  t.end();
});

t.test('times', (t) => {
  const range = { min: 500, max: 120_000 };
  const read = (text: string): number => readTimeMs('--hook-timeout', text, range);
  for (const [text, timeMs] of [
    ['500ms', 500],
    ['1500ms', 1500],
    ['30s', 30_000],
    ['1.5s', 1500],
    ['30', 30_000],
    ['2m', 120_000],
  ] as const) {
    t.equal(read(text), timeMs, text);
  }
  for (const bad of ['', 's', '0', '499ms', '121s', '3m', '-1', '1h', '1 s', '1e1', 'Infinity', '.5s']) {
    const message = `--hook-timeout is '${bad}', wanted from 500ms to 2m, such as`;
    t.throws(() => read(bad), { code: 'usage', message }, bad);
  }
  t.equal(formatTimeMs(0), '0ms');
  t.equal(formatTimeMs(90_000), '90s');
  t.end();
});

t.test('container areas', (t) => {
  t.strictSame(readContainer([], '/d'), [{ kind: 'memory', sizeBytes: 64 * 1024 * 1024 }]);
  t.strictSame(readContainer(['memory:0', '/a:b/c:1M', 'rel:4K'], '/d'), [
    { kind: 'memory', sizeBytes: 0 },
    { kind: 'path', path: '/a:b/c', sizeBytes: 1_048_576 },
    { kind: 'path', path: '/d/rel', sizeBytes: 4096 },
  ]);
  for (const bad of ['memory', '64M', ':64M', '']) {
    t.throws(() => readContainer([bad], '/d'), { code: 'usage', message: `--container is '${bad}'` }, bad);
  }
  t.throws(() => readContainer(['memory:lots'], '/d'), { message: /size of --container memory is 'lots'/ });
  t.throws(
    () =>
      readContainer(
        Array.from({ length: 17 }, () => 'memory:0'),
        '/d',
      ),
    { message: /17 times/ },
  );
  t.end();
});

t.test('listen addresses', (t) => {
  t.strictSame(readListen('127.0.0.1:10809'), { host: '127.0.0.1', port: 10_809 });
  t.strictSame(readListen('[::1]:0'), { host: '::1', port: 0 });
  t.strictSame(readListen('localhost:1'), { host: 'localhost', port: 1 });
  for (const bad of [
    '',
    'host',
    ':1',
    '::1:5',
    'host:',
    'host:x',
    'host:65536',
    '[::1]',
    'a:b:1',
    'host:-1',
  ]) {
    t.throws(() => readListen(bad), { code: 'usage', message: `--listen is '${bad}'` }, bad);
  }
  t.end();
});

t.test('what a listener is restricted to', (t) => {
  const read = (text: string) => readRestriction('--socket', text);
  t.strictSame(read('/run/x'), { place: '/run/x', exports: undefined });
  t.strictSame(read('/run/x=a'), { place: '/run/x', exports: ['a'] });
  t.strictSame(read('[::1]:1=a,b.c'), { place: '[::1]:1', exports: ['a', 'b.c'] });
  t.strictSame(read('/run/x=y=*'), { place: '/run/x=y', exports: undefined });
  t.strictSame(read('/run/x=y=a'), { place: '/run/x=y', exports: ['a'] });
  for (const bad of ['/run/x=', '/run/x=a,', '=,a', '/run/x=,']) {
    t.throws(() => read(bad), { code: 'usage', message: `--socket is '${bad}', wanted export names` }, bad);
  }
  t.end();
});

t.test('places, and options given once or often', (t) => {
  t.ok(isUri('nbd+unix:///x?socket=/s'));
  t.notOk(isUri('/a://b'));
  t.equal(absolutePlace('a/../b', '/d'), '/d/b');
  t.equal(absolutePlace('nbd://h/x', '/d'), 'nbd://h/x');
  t.throws(() => absolutePath('The store', '', '/d'), {
    code: 'usage',
    message: 'The store is empty, wanted a path',
  });
  t.equal(single('--x', 'a'), 'a');
  t.equal(single('--x', undefined), undefined);
  t.throws(() => single('--x', ['a', 'b']), { message: '--x is given 2 times, wanted once' });
  t.strictSame(several(undefined), []);
  t.strictSame(several('a'), ['a']);
  t.strictSame(several(['a', 'b']), ['a', 'b']);
  t.end();
});

t.test('a volume, or a snapshot of one', async (t) => {
  const directory = t.testdir({ vol: {}, 'vol@dir': {}, 'in@side': { vol: {} } });
  const read = (text: string): Promise<unknown> => readVolumeOrSnapshot(text, directory);
  const at = (name: string): string => join(directory, name);
  for (const [text, wanted] of [
    ['vol', { volume: at('vol') }],
    ['vol@monday', { volume: at('vol'), snapshot: 'monday' }],
    ['./vol@a.b-c_1', { volume: at('vol'), snapshot: 'a.b-c_1' }],
    [at('vol@monday'), { volume: at('vol'), snapshot: 'monday' }],
    // A directory that exists wins; one may have a snapshot all the same.
    ['vol@dir', { volume: at('vol@dir') }],
    ['vol@dir/', { volume: at('vol@dir') }],
    ['vol@dir@monday', { volume: at('vol@dir'), snapshot: 'monday' }],
    ['in@side/vol', { volume: at('in@side/vol') }],
    ['in@side/missing', { volume: at('in@side/missing') }],
    ['in@side/vol@monday', { volume: at('in@side/vol'), snapshot: 'monday' }],
    ['missing@monday', { volume: at('missing'), snapshot: 'monday' }],
  ] as const) {
    t.strictSame(await read(text), wanted, text);
  }
  mkdirSync(at('@odd'));
  t.strictSame(await read('@odd'), { volume: at('@odd') });
  writeFileSync(at('vol@file'), '');
  t.strictSame(await read('vol@file'), { volume: at('vol'), snapshot: 'file' }, 'a file is no volume');
  for (const bad of ['', 'vol@', '@monday', 'sub/@monday']) {
    await t.rejects(read(bad), { code: 'usage' }, `'${bad}'`);
  }
});
