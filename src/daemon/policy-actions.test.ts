/**
 * Goal: a snapshot policy keeps as many as it says of its own and touches no other; conditions get what the volume
 * knows, and everything where it does not know since when; retention gets the command's words.
 *
 * Method: a real volume without a server; statuses as the volume gives them; a program that says what it was given.
 * Backups, and the real command, are in native-tests/serve-config.test.ts.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ManualClock } from '../base/index.ts';
import { createVolume } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { factsOf, isNamed, performPolicy } from './policy-actions.ts';
import type { VolumePolicy } from './policy-config.ts';
import { pruneStore } from './store-prune.ts';
import { VolumeHost } from './volume-host.ts';

const SNAPSHOTS: VolumePolicy = {
  name: 'p',
  conditions: [{ kind: 'changed', bytes: 1 }],
  jitterMs: 0,
  graceMs: 0,
  catchUp: true,
  action: { kind: 'snapshot', prefix: 'auto-', suffix: '.x', keep: 2 },
};

t.test('snapshots: so many stay, others are not touched, and changes count since the last', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const place = join(directory, 'vol');
  await createVolume(place, { sizeBytes: 2 ** 20, trackSizeBytes: 65_536 });
  const clock = new ManualClock(Date.parse('2026-05-01T00:00:00Z'));
  const registry = createDeviceRegistry();
  const options = { activity: 'test', registry, readOnly: false, clock, workerPath: '', peers: new Map() };
  const host = await VolumeHost.open(place, options);
  const perform = () =>
    performPolicy(host, SNAPSHOTS, new AbortController().signal, {
      readKey: () => {
        throw new Error('A snapshot needs no key');
      },
      prune: async () => Promise.reject(new Error('A snapshot prunes no store')),
    });
  await host.volume.createSnapshot('auto-by-hand.x');
  const names = [];
  for (let turn = 0; turn < 4; turn += 1) {
    names.push(await perform());
    clock.advance(1000);
  }
  t.match(names, [
    { snapshot: 'auto-20260501T000000Z.x', removed: 0 },
    { snapshot: 'auto-20260501T000001Z.x', removed: 0 },
    { snapshot: 'auto-20260501T000002Z.x', removed: 1 },
    { snapshot: 'auto-20260501T000003Z.x', removed: 1 },
  ]);
  t.strictSame(
    host.volume.snapshots().map(({ name }) => name),
    ['auto-by-hand.x', 'auto-20260501T000002Z.x', 'auto-20260501T000003Z.x'],
  );
  const done = { dueMs: 0, startedMs: 0, endedMs: 0, cause: 'changed', state: 'done' } as const;
  t.equal(factsOf(host, SNAPSHOTS, undefined).changedBytes, Number.POSITIVE_INFINITY);
  const since = { ...done, snapshot: 'auto-20260501T000003Z.x' };
  t.equal(factsOf(host, SNAPSHOTS, since).changedBytes, 0);
  await host.volume.write(Buffer.alloc(4096, 1), 0, { fua: false });
  t.equal(factsOf(host, SNAPSHOTS, since).changedBytes, 65_536);
  t.equal(factsOf(host, SNAPSHOTS, { ...since, snapshot: 'gone' }).changedBytes, Number.POSITIVE_INFINITY);
  clock.advance(-1000);
  await t.rejects(perform(), { code: 'snapshot-exists' }, 'what fails is the outcome of the run');
  await host.close();
});

t.test('only names that the policy gives are its own', async (t) => {
  const named = (name: string): boolean => isNamed(name, { prefix: 'a-', suffix: '' });
  t.ok(named('a-20260501T000000Z'));
  for (const name of [
    'a-20260501T000000',
    'b-20260501T000000Z',
    'a-20260501T000000Z1',
    'a-x20260501T000000Z',
    'a-',
  ])
    t.notOk(named(name), name);
});

t.test('a backup policy counts what changed since the set of its store', async (t) => {
  const status = {
    trackSizeBytes: 4096,
    consumers: [{ name: 'feed', changedTracks: 3 }],
    deltas: { bytesUsed: 70, bytesMax: 100 },
  };
  const action = {
    kind: 'backup',
    params: { store: '/s', level: 'auto', style: { codec: 'none' }, container: [] },
  } as const;
  // Only these members are looked at.
  const volume = {
    status: () => Object.assign(Object.create(null), status),
    changedSinceSnapshot: () => t.fail(),
  };
  const facts = (consumer?: string) =>
    factsOf(
      Object.assign(Object.create(null), { volume }),
      { ...SNAPSHOTS, action },
      {
        dueMs: 0,
        startedMs: 0,
        endedMs: 0,
        cause: 'every',
        state: 'done',
        consumer,
      },
    );
  t.strictSame(facts('feed'), { changedBytes: 3 * 4096, deltaFill: 0.7 });
  t.equal(facts('dead').changedBytes, Number.POSITIVE_INFINITY);
  t.equal(facts().changedBytes, Number.POSITIVE_INFINITY);
});

t.test('retention is the command, with its words', async (t) => {
  const program = (body: string): string =>
    join(
      t.testdir({ 'p.mjs': `const say = (event) => console.log(JSON.stringify(event));\n${body}` }),
      'p.mjs',
    );
  const request = {
    store: '/backup/store',
    key: { passphraseFile: '/etc/pass' },
    volume: 'feed',
    retention: { keepLast: 3, keepDaily: 0 },
    signal: new AbortController().signal,
  };
  const words = program(`
    const words = 'store prune /backup/store --json --keep-last=3 --keep-daily=0 --volume=feed --passphrase-file=/etc/pass';
    if (process.argv.slice(2).join(' ') !== words) process.exit(9);
    say({ event: 'plan' });
    say({ event: 'pruned', removed: ['a', 'b'], bytesFreed: 7 });
    say({ event: 'done' });`);
  t.strictSame(await pruneStore(words, request), { removed: 2, bytesFreed: 7 });
  const failing = program(
    `say({ event: 'error', code: 'store-locked', message: 'Busy' }); process.exitCode = 1;`,
  );
  await t.rejects(pruneStore(failing, request), { code: 'store-locked', message: 'Busy' });
  const dying = program(`console.error('out of memory'); process.kill(process.pid, 'SIGKILL');`);
  await t.rejects(pruneStore(dying, request), { message: /ended with signal SIGKILL: out of memory/ });
  await t.rejects(pruneStore(program(''), request), { message: /exit status 0: it said nothing/ });
  const abort = new AbortController();
  const endless = program(`setInterval(() => {}, 1000); process.on('SIGTERM', () => process.exit(3));`);
  const ended = pruneStore(endless, { ...request, signal: abort.signal });
  abort.abort(new Error('stop'));
  await t.rejects(ended, { message: /ended with (signal SIGTERM|exit status 3)/ });
});
