/**
 * Goal: a command line that cannot work ends with status 2 and a line that names the value, in the form that
 * was asked for; commands are reached with the options that were typed.
 *
 * Method: whole command lines in this process, against a temporary directory; what serves and forks is
 * tested by the native tests.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { PassThrough } from 'node:stream';
import t, { type Test } from 'tap';
import { ManualClock } from '../base/index.ts';
import type { SupervisorOptions } from './attach.ts';
import { runCommandLine } from './command-line.ts';

async function cowbell(directory: string, words: readonly string[]) {
  const stdout = new PassThrough().setEncoding('utf8');
  const stderr = new PassThrough().setEncoding('utf8');
  const attached: SupervisorOptions[] = [];
  const status = await runCommandLine(words, {
    stdout,
    stderr,
    directory,
    clock: new ManualClock(),
    signal: new AbortController().signal,
    version: '9.9.9',
    onHangup: () => () => undefined,
    takeHandedSockets: () => [],
    startSupervisor: async (options) => {
      attached.push(options);
      return { sizeBytes: 1_048_576, isTakenOver: false, pid: 7 };
    },
  });
  const read = (stream: PassThrough): string => String(stream.read() ?? '');
  return { status, stdout: read(stdout), stderr: read(stderr), attached };
}

async function refused(t: Test, words: readonly string[], pattern: RegExp, status = 2): Promise<void> {
  const result = await cowbell(t.testdirName, words);
  t.equal(result.status, status, words.join(' '));
  t.match(result.stderr, /^cowbell: [^\n]+\n$/, 'one line');
  t.match(result.stderr, pattern);
  t.equal(result.stdout, '');
}

t.test('what cannot be parsed is a usage error', async (t) => {
  t.testdir();
  await refused(t, [], /No command is given; see --help/);
  await refused(t, ['frobnicate'], /Unknown command: frobnicate/);
  await refused(t, ['volume'], /No volume command is given/);
  await refused(t, ['store', 'melt', 'x'], /Unknown commands: melt, x/);
  await refused(t, ['backup', '--store', 's'], /An argument is missing/);
  await refused(t, ['backup', 'v'], /Missing required argument: store/);
  await refused(
    t,
    ['backup', '--store', 's', 'v', '--level', 'weekly'],
    /level, Given: "weekly", Choices: "auto"/,
  );
  await refused(t, ['backup', '--store', 's', 'v', '--delta', 'd'], /Unknown argument: delta/);
  await refused(t, ['status', 'v', 'w'], /Unknown/);
});

t.test('values that cannot be are usage errors', async (t) => {
  t.testdir();
  await refused(t, ['volume', 'create', 'v', '--size', 'big'], /--size is 'big', wanted bytes/);
  await refused(t, ['volume', 'create', 'v', '--size', '1M', '--size', '2M'], /--size is given 2 times/);
  await refused(t, ['volume', 'create', 'v', '--size', '1M', '--track-size', '3K'], /3072/);
  await refused(t, ['volume', 'create', '', '--size', '1M'], /The volume is empty/);
  await refused(t, ['volume', 'create', 'v', '--size', '1M', '--home', 'ftp://x/y'], /ftp/, 2);
  await refused(t, ['serve', 'v', '--listen', 'nowhere'], /--listen is 'nowhere'/);
  await refused(t, ['backup', '--store', 's', 'v', '--container', '64M'], /--container is '64M'/);
  await refused(t, ['backup', '--store', 's', '--store', 'z', 'v'], /--store is given 2 times/);
  await refused(t, ['backup', '--store', 's', 'v', './v'], /is named twice/);
  await refused(t, ['backup', '--store', 's', 'v', '--max-wait', '5s'], /wanted --on-full cancel too/);
  await refused(
    t,
    ['backup', '--store', 's', 'v', '--on-full', 'cancel', '--max-wait', '5ms'],
    /--max-wait is '5ms', wanted from 100ms to 60m/,
  );
  await refused(t, ['backup', '--store', 's', 'v', '--full-every', '0'], /--full-every is 0, wanted .* 960/);
  await refused(t, ['restore', 's', 'latest'], /No target is given/);
  await refused(t, ['restore', 's', 'latest', '--remap', 'missing.json'], /missing\.json cannot be read/);
  await refused(t, ['attach', 'nbd://', '/dev/nbd0'], /URI "nbd:\/\/"/);
  await refused(t, ['attach', 'v', 'nbd0'], /The device is 'nbd0'/);
});

t.test('what is not there is an operating error', async (t) => {
  const directory = t.testdir({ plain: { file: '' }, file: 'text' });
  for (const volume of ['missing', 'plain', 'file']) {
    await refused(t, ['volume', 'show', volume], new RegExp(`${directory}/${volume}`), 1);
    await refused(t, ['status', volume], new RegExp(`${directory}/${volume}`), 1);
    await refused(t, ['serve', volume], new RegExp(`${directory}/${volume}`), 1);
    await refused(t, ['backup', '--store', 's', volume], new RegExp(`${directory}/${volume}`), 1);
    await refused(t, ['cancel', volume], /No process serves/, 1);
    await refused(t, ['store', 'list', volume], new RegExp(`${directory}/${volume}`), 1);
    await refused(t, ['restore', volume, 'latest', 'out'], new RegExp(`${directory}/${volume}`), 1);
  }
  await refused(t, ['volume', 'create', 'plain', '--size', '1M'], /not an empty directory/, 1);
  await refused(t, ['store', 'init', 'plain'], /not empty/, 1);
});

t.test('errors come in the form that was asked for', async (t) => {
  const result = await cowbell(t.testdir(), ['volume', 'create', 'v', '--size', 'big', '--json']);
  t.equal(result.status, 2);
  t.match(JSON.parse(result.stdout), { event: 'error', code: 'usage', message: /'big'/ });
  const garbled = await cowbell(t.testdir(), ['--json', 'frobnicate']);
  t.match(JSON.parse(garbled.stdout), { event: 'error', code: 'usage' });
  const debug = await cowbell(t.testdir(), ['volume', 'show', 'v', '--debug']);
  t.match(debug.stderr, /^cowbell: [^]*\n {4}at /);
});

t.test('a volume is created, shown and looked at', async (t) => {
  const directory = t.testdir();
  const created = await cowbell(directory, ['volume', 'create', 'vol', '--size', '1M', '--json']);
  t.equal(created.status, 0);
  const [volume, done] = created.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);
  t.match(volume, {
    event: 'volume',
    name: 'vol',
    directory: `${directory}/vol`,
    sizeBytes: 1_048_576,
    trackSizeBytes: 65_536,
  });
  t.strictSame(done, { event: 'done' });
  t.match((await cowbell(directory, ['volume', 'show', 'vol'])).stdout, /^name: +vol$/m);
  t.match((await cowbell(directory, ['status', 'vol'])).stdout, /^served: +no$/m);
  t.match((await cowbell(directory, ['volume', 'check', 'vol'])).stdout, /it reads through$/m);
});

t.test('a check says what is wrong, mends it, and ends with 3 where it cannot', async (t) => {
  const directory = t.testdir();
  await cowbell(directory, ['volume', 'create', 'vol', '--size', '1M']);
  const state = `${directory}/vol/state.mdb`;
  const sound = readFileSync(state);
  const bytes = Buffer.from(sound);
  bytes[bytes.lastIndexOf('"isClean"') + 1] = 0x49;
  writeFileSync(state, bytes);
  const dry = await cowbell(directory, ['volume', 'check', 'vol', '--dry-run']);
  t.equal(dry.status, 3);
  t.match(dry.stdout, /^state.mdb open epoch: its record is damaged or missing; would be done: every track/m);
  const mended = await cowbell(directory, ['volume', 'check', 'vol', '--json']);
  t.equal(mended.status, 0);
  const events = mended.stdout
    .trim()
    .split('\n')
    .map((line): unknown => JSON.parse(line));
  t.match(
    events.filter((event) => !JSON.stringify(event).includes('"progress"')),
    [
      { event: 'finding', severity: 'damage', where: 'state.mdb open epoch', repaired: true },
      { event: 'check', name: 'vol', startedClean: false, clearedFailure: null, findings: 1, damageLeft: 0 },
      { event: 'done' },
    ],
  );
  writeFileSync(state, Buffer.from(sound).fill(0, 0, 512));
  const lost = await cowbell(directory, ['volume', 'check', 'vol']);
  t.equal(lost.status, 3);
  t.match(lost.stdout, /^state.mdb: .*; the home is untouched: .*--size 1048576 --track-size 65536/m);
  t.match(lost.stderr, /^cowbell: Volume .* is damaged: state.mdb: /m);
});

t.test('a store is made and listed', async (t) => {
  const directory = t.testdir();
  t.equal((await cowbell(directory, ['store', 'init', 'deep'])).status, 0);
  t.match((await cowbell(directory, ['store', 'list', 'deep'])).stdout, /has no sets/);
  t.equal((await cowbell(directory, ['store', 'list', 'deep', '--json'])).stdout, '{"event":"done"}\n');
  t.equal((await cowbell(directory, ['store', 'verify', 'deep'])).status, 0);
  await refused(t, ['store', 'show', 'deep', 'latest'], /No set in the store is latest/, 1);
});

t.test('attach starts what watches the device, or prints what another machine runs', async (t) => {
  const directory = t.testdir();
  await cowbell(directory, ['volume', 'create', 'vol', '--size', '1M']);
  const { attached, stdout } = await cowbell(directory, ['attach', 'vol', '/dev/nbd0', '--timeout', '5']);
  t.strictSame(attached, [
    {
      device: '/dev/nbd0',
      connections: 1,
      timeoutSeconds: 5,
      deadConnectionSeconds: 3600,
      address: { transport: { kind: 'unix', path: `${directory}/vol/nbd.sock` }, exportName: 'vol' },
    },
  ]);
  t.match(stdout, /^Attached \/dev\/nbd0, .* of vol, by process 7\n$/);
  const printed = await cowbell(directory, ['attach', '--print', 'nbd://10.0.2.2:1/vol', '/dev/nbd0']);
  t.match(printed.stdout, /^nbd-client 10\.0\.2\.2 1 \/dev\/nbd0 -name vol /);
  t.strictSame(printed.attached, []);
  await refused(t, ['attach', 'vol', '/dev/nbd0', '--timeout', '0'], /--timeout is 0, wanted/);
  await refused(t, ['attach', 'vol', '/dev/nbd0', '--connections', '1.5'], /--connections is 1.5, wanted/);
  await refused(t, ['detach', '/dev/sda'], /"\/dev\/sda" cannot be attached to/);
});
