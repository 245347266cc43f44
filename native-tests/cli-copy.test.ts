/**
 * Goal: `copy` as people use it: at rest, with a table, refused where it would do harm, forecast, cancelled and gone on
 * with; a command that is killed ends nothing online, and a server that is killed leaves no target that is
 * taken for what it is not.
 *
 * Method: incompressible content and a low rate, so that a copy takes a while; each case acts at the first progress.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { listening } from './support/listening.ts';
import { cowbell, must, mustCowbell, Running, startCowbell, temporaryDirectory } from './support/process.ts';
import { eventsOf, startServer, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;

async function prepare(t: Test) {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  writeFileSync(at('home.raw'), Buffer.concat([randomBytes(12 * MIB), Buffer.alloc(4 * MIB)]));
  await mustCowbell(['volume', 'create', at('vol'), '--size', String(SIZE), '--home', at('home.raw')]);
  return { at, volume: at('vol') };
}

const copied = (stdout: string) =>
  eventsOf(stdout).find(({ event }) => event === 'copied' || event === 'plan') ?? {};

t.test('at rest', async (t) => {
  const { at, volume } = await prepare(t);
  const run = async (...words: string[]) => copied(await mustCowbell(['--json', 'copy', volume, ...words]));
  t.match(await run(at('copy.raw'), '--dry-run'), { event: 'plan', level: 'full', bytes: SIZE });
  t.notOk(existsSync(at('copy.raw')));
  t.match(await run(at('copy.raw')), { level: 'full', bytesWritten: 12 * MIB, bytesZeroed: 0, base: null });
  await must('cmp', [at('copy.raw'), at('home.raw')]);
  t.ok(statSync(at('copy.raw')).blocks * 512 < 13 * MIB, 'zeroes are holes');
  t.match(await run(at('copy.raw'), '--dry-run'), { event: 'plan', level: 'incremental', tracks: 0 });
  t.match(await run(at('copy.raw')), { level: 'incremental', tracks: 0, reason: null });
  t.match(await run(at('copy.raw'), '--full'), { level: 'full', reason: null });
  writeFileSync(at('copy.raw'), 'x', { flag: 'r+' });
  t.match(await run(at('copy.raw')), {
    level: 'full',
    reason: /was changed or replaced since the last copy/,
  });
  await must('cmp', [at('copy.raw'), at('home.raw')]);

  writeFileSync(
    at('plan.json'),
    JSON.stringify({
      format: 'cowbell-remap',
      version: 0,
      targets: [
        { name: 'a', uri: at('a.raw') },
        { name: 'b', uri: at('b.raw') },
      ],
      rows: [
        { source: '1M', length: '1M', target: 'b', offset: '3M' },
        { source: '4M', length: '2M', target: 'a', offset: 0 },
      ],
    }),
  );
  t.match(await run('--remap', at('plan.json')), {
    level: 'full',
    bytesWritten: 3 * MIB,
    targets: [at('a.raw'), at('b.raw')],
  });
  await must('cmp', ['-n', String(2 * MIB), '-i', `0:${4 * MIB}`, at('a.raw'), at('home.raw')]);
  await must('cmp', ['-n', String(MIB), '-i', `${3 * MIB}:${MIB}`, at('b.raw'), at('home.raw')]);
  t.match(await run('--remap', at('plan.json')), { level: 'incremental', tracks: 0 });
});

t.test('refused', async (t) => {
  const { at, volume } = await prepare(t);
  const refused = async (words: readonly string[], status: number, message: RegExp): Promise<void> => {
    const ended = await cowbell(['copy', ...words]);
    t.equal(ended.status, status, ended.stderr);
    t.match(ended.stderr, message);
  };
  await refused([volume], 2, /No target is given/);
  await refused([volume, at('home.raw')], 1, /is in use/);
  await refused([`${volume}@none`, at('copy.raw')], 1, /none/);
  writeFileSync(at('small.raw'), Buffer.alloc(8 * MIB));
  await refused([volume, at('small.raw')], 1, /hold 8388608 bytes together/);
  t.notOk(existsSync(at('copy.raw')));
  // What is used fits.
  writeFileSync(at('small.raw'), Buffer.alloc(12 * MIB));
  await mustCowbell(['copy', volume, at('small.raw')]);
  await must('cmp', ['-n', String(12 * MIB), at('small.raw'), at('home.raw')]);
});

t.test('online: status shows it, a killed command leaves it, cancel and Ctrl-C end it', async (t) => {
  const { at, volume } = await prepare(t);
  const { server } = await startServer(t, [volume]);
  const start = async (): Promise<Running> => {
    const running = startCowbell(['--json', 'copy', volume, at('copy.raw'), '--rate', '2M']);
    await running.waitForLine(/"event":"progress"/);
    return running;
  };
  const killed = await start();
  t.match(await statusOf(volume), { sessions: [{ kind: 'copy', store: at('copy.raw'), state: 'running' }] });
  const second = await cowbell(['copy', volume, at('copy.raw')]);
  t.match(second.stderr, /already runs copy session/);
  await killed.stop('SIGKILL');
  t.match(await statusOf(volume), { sessions: [{ kind: 'copy' }] }, 'the session runs on');
  t.match(await mustCowbell(['cancel', volume]), /Cancelled session/);

  const interrupted = await (await start()).stop('SIGINT');
  t.equal(interrupted.status, 1, interrupted.stderr);
  t.match(interrupted.stdout, /\{"event":"error","code":"cancelled"[^\n]*\n$/);

  const last = await start();
  const [stopped, ended] = await Promise.all([server.stop(), last.wait()]);
  t.equal(stopped.status, 0, stopped.stderr);
  t.match(ended.stdout, /"code":"cancelled"/);
  t.match(copied(await mustCowbell(['--json', 'copy', volume, at('copy.raw')])), {
    level: 'full',
    reason: /no complete copy to the target is known/,
  });
  await must('cmp', [at('copy.raw'), at('home.raw')]);
});

t.test('killed in its middle: what was half written is never taken for whole', async (t) => {
  if (!requireTools(t, ['nbdkit'])) return;
  const { at, volume } = await prepare(t);
  writeFileSync(at('other.raw'), Buffer.alloc(SIZE, 1));
  const peer = new Running('nbdkit', ['-f', '-U', at('k.sock'), 'file', at('other.raw')]);
  t.teardown(() => peer.stop('SIGKILL'));
  await listening(at('k.sock'), peer);
  const run = async (target: string) => copied(await mustCowbell(['--json', 'copy', volume, target]));
  for (const [target, path, then] of [
    [at('copy.raw'), at('copy.raw'), { level: 'full', reason: /was cut off/ }],
    [`nbd+unix:///?socket=${at('k.sock')}`, at('other.raw'), { level: 'incremental', reason: null }],
  ] as const) {
    await run(target);
    const { server, uri } = await startServer(t, [volume]);
    const client = await NbdClient.connect(uri);
    for (let index = 0; index < 12; index += 1) await client.write(randomBytes(MIB / 2), index * MIB);
    await client.disconnect();
    const copy = startCowbell(['--json', 'copy', volume, target, '--rate', '2M']);
    await copy.waitForLine(/"event":"progress"/);
    await server.stop('SIGKILL');
    const ended = await copy.wait();
    t.equal(ended.status, 1, ended.stderr);
    t.match(await run(target), then);
    await must('cmp', [path, at('home.raw')]);
    t.match(await run(target), { level: 'incremental' });
  }
});
