/**
 * Goal: a running backup is cancelled by `cancel`, by Ctrl-C and by the server's stop; no set appears, and the
 * next backup works. A command that is killed ends nothing online.
 *
 * Method: incompressible content, large enough that a backup takes a while; each case acts at the first
 * progress, when the session surely runs.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cowbell, mustCowbell, type Running, startCowbell, temporaryDirectory } from './support/process.ts';

const SIZE_BYTES = 512 * 1_048_576;

async function prepare(t: Test) {
  const directory = temporaryDirectory(t);
  const volume = join(directory, 'vol');
  const store = join(directory, 'store');
  const home = join(directory, 'home.raw');
  const descriptor = openSync(home, 'w');
  const piece = randomBytes(1_048_576);
  for (let offset = 0; offset < SIZE_BYTES; offset += piece.length) {
    piece.writeUInt32LE(offset / piece.length, 0);
    writeSync(descriptor, piece, 0, piece.length, offset);
  }
  closeSync(descriptor);
  await mustCowbell(['volume', 'create', volume, '--size', String(SIZE_BYTES), '--home', home]);
  await mustCowbell(['store', 'init', store]);
  const startBackup = async (): Promise<Running> => {
    const backup = startCowbell([
      '--json',
      'backup',
      '--store',
      store,
      '--level',
      'full',
      '--rate',
      '64M',
      volume,
    ]);
    await backup.waitForLine(/"event":"progress"/);
    return backup;
  };
  const setCount = async (): Promise<number> =>
    (await mustCowbell(['--json', 'store', 'list', store]))
      .split('\n')
      .filter((line) => line.includes('"set"')).length;
  return { volume, startBackup, setCount };
}

async function serve(volume: string): Promise<Running> {
  const server = startCowbell(['serve', volume]);
  await server.waitForLine(/^ready /);
  return server;
}

function assertCancelled(t: Test, ended: { status: number | null; stdout: string; stderr: string }): void {
  t.equal(ended.status, 1, ended.stderr);
  t.match(ended.stdout, /\{"event":"error","code":"cancelled"[^\n]*\n$/);
}

t.test('online', async (t) => {
  const { volume, startBackup, setCount } = await prepare(t);
  const server = await serve(volume);

  const first = await startBackup();
  const second = await cowbell(['backup', '--store', join(volume, '../store'), volume]);
  t.match(second.stderr, /already runs backup session/);
  const status = JSON.parse(
    (await mustCowbell(['--json', 'status', volume])).split('\n')[0] ?? '',
  ) as unknown;
  t.match(status, { event: 'status', served: true, sessions: [{ kind: 'backup', level: 'full' }] });
  t.match(await mustCowbell(['cancel', volume]), /Cancelled session/);
  assertCancelled(t, await first.wait());

  const interrupted = await startBackup();
  assertCancelled(t, await interrupted.stop('SIGINT'));
  t.equal(await setCount(), 0);

  const killed = await startBackup();
  await killed.stop('SIGKILL');
  t.match(await mustCowbell(['status', volume]), /kind: +backup/, 'the session runs on');
  await mustCowbell(['cancel', volume]);

  const last = await startBackup();
  const [stopped, ended] = await Promise.all([server.stop(), last.wait()]);
  t.equal(stopped.status, 0, stopped.stderr);
  assertCancelled(t, ended);
  t.equal(await setCount(), 0);
});

t.test('offline', async (t) => {
  const { volume, startBackup, setCount } = await prepare(t);
  const interrupted = await startBackup();
  assertCancelled(t, await interrupted.stop('SIGINT'));
  t.equal(await setCount(), 0);
  const refused = await cowbell(['cancel', volume]);
  t.match(refused.stderr, /No process serves/);

  const backup = await startBackup();
  t.equal((await backup.wait()).status, 0);
  t.equal(await setCount(), 1);
});
