/**
 * Goal: hooks run around the freeze of a backup, served or not: the pre-hook before it, with writes going on, the
 * post-hook after it; a pre-hook that fails means no backup; the post-hook runs although the command, or the
 * server, is told to end meanwhile; a post-hook that fails is told and the set is there.
 *
 * Method: hooks that write to the volume itself, so that the set shows on which side of the freeze they were;
 * hooks that wait for a file, to act while they run.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  cowbell,
  must,
  mustCowbell,
  type Running,
  startCowbell,
  temporaryDirectory,
} from './support/process.ts';
import { eventsOf, type Served, serveVolume, statusOf, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';

async function serve(t: Test): Promise<Served & { log: string; lines: () => readonly string[] }> {
  const served = await serveVolume(t, { size: '8M' });
  await mustCowbell(['store', 'init', served.at('store')]);
  const log = served.at('log');
  const lines = (): readonly string[] =>
    existsSync(log) ? readFileSync(log, 'utf8').split('\n').slice(0, -1) : [];
  return { ...served, log, lines };
}

/** Waits until a hook has written a line. */
async function written(log: string, line: string): Promise<void> {
  await must('sh', ['-c', `until grep -qsx '${line}' '${log}'; do sleep 0.02; done`], { timeoutMs: 30_000 });
}

function qemuIo(uri: string, command: string): string {
  return `qemu-io -f raw -c '${command}' '${uri}' >/dev/null`;
}

t.test('online: the pre-hook can write, what the post-hook writes comes too late', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { at, volume, uri, log, lines } = await serve(t);
  const pre = `echo "$COWBELL_HOOK $COWBELL_VOLUMES $COWBELL_STORE" >>${log}; ${qemuIo(uri, 'write -P 1 0 1M')}; ${qemuIo(uri, 'flush')}`;
  const post = `echo "$COWBELL_HOOK $COWBELL_RESULT" >>${log}; ${qemuIo(uri, 'write -P 2 0 2M')}`;
  const stdout = await mustCowbell([
    '--json',
    'backup',
    '--store',
    at('store'),
    volume,
    '--container',
    'memory:0',
    '--pre-freeze',
    pre,
    '--post-freeze',
    post,
    '--hook-timeout',
    '60s',
  ]);
  t.match(eventsOf(stdout).at(-2), { event: 'set', hookMs: Number, hookWarning: undefined });
  t.strictSame(lines(), [`pre vol ${at('store')}`, 'post done']);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('qemu-io', ['-f', 'raw', '-r', '-c', 'read -P 1 0 1M', '-c', 'read -P 0 1M 7M', at('out.raw')]);
  await must('qemu-io', ['-f', 'raw', '-r', '-c', 'read -P 2 0 2M', uri]);
});

t.test('online: hooks that fail', async (t) => {
  const { at, volume, server, lines, log } = await serve(t);
  const backup = ['backup', '--store', at('store'), volume];
  const say = `echo "$COWBELL_HOOK $COWBELL_RESULT" >>${log}`;
  const refused = await cowbell([
    ...backup,
    '--json',
    '--pre-freeze',
    'echo no >&2; exit 7',
    '--post-freeze',
    say,
  ]);
  const message = "Pre-freeze hook 'echo no >&2; exit 7' of vol failed with exit status 7: no";
  t.match(refused, { status: 1, stderr: `cowbell: ${message}\n` });
  t.match(eventsOf(refused.stdout).at(-1), { event: 'error', code: 'hook-failed', message });
  t.strictSame(lines(), ['post failed']);
  const late = await cowbell([...backup, '--pre-freeze', 'sleep 100', '--hook-timeout', '1s']);
  t.match(late, { status: 1, stderr: /was ended after its time limit of 1000 ms\n$/ });
  t.strictSame(await visibleSets(at('store')), []);
  t.match(await statusOf(volume), { sessions: [], epoch: 1 }, 'nothing was frozen');

  const warned = await cowbell([...backup, '--json', '--post-freeze', 'echo stuck >&2; exit 1']);
  const warning = /^cowbell: Post-freeze hook .* exit status 1: stuck; what .* may still be frozen\n$/;
  t.match(warned, { status: 0, stderr: warning });
  t.match(eventsOf(warned.stdout).at(-2), { event: 'set', hookWarning: /: stuck; what/ });
  t.equal((await visibleSets(at('store'))).length, 1);
  t.match((await server.stop()).stderr, warning, 'the server tells too');
});

/** Starts a backup whose hook of that name waits until the function that is returned is called. */
async function startHeld(
  { at, volume, log }: { at: (name: string) => string; volume: string; log: string },
  held: 'pre' | 'post',
): Promise<{ backup: Running; letGo: () => void }> {
  const go = at(`go-${held}`);
  const hook = `echo "begin $COWBELL_HOOK" >>${log}; [ $COWBELL_HOOK != ${held} ] || until [ -e ${go} ]; do sleep 0.02; done; echo "end $COWBELL_HOOK $COWBELL_RESULT" >>${log}`;
  const words = [
    '--json',
    'backup',
    '--store',
    at('store'),
    volume,
    '--pre-freeze',
    hook,
    '--post-freeze',
    hook,
  ];
  const backup = startCowbell(words);
  await written(log, `begin ${held}`);
  return { backup, letGo: () => writeFileSync(go, '') };
}

t.test('the command is killed while the pre-hook runs: the server goes on', async (t) => {
  const served = await serve(t);
  const { backup, letGo } = await startHeld(served, 'pre');
  await backup.stop('SIGKILL');
  letGo();
  await written(served.log, 'end post done');
  t.strictSame(served.lines(), ['begin pre', 'end pre ', 'begin post', 'end post done']);
});

t.test('the server is told to end while the pre-hook runs: the post-hook runs', async (t) => {
  const served = await serve(t);
  const { backup } = await startHeld(served, 'pre');
  t.match(await served.server.stop(), { status: 0, stderr: '' });
  t.match(await backup.wait(), { status: 1, stdout: /"code":"cancelled"/ });
  t.strictSame(served.lines(), ['begin pre', 'begin post', 'end post failed']);
  t.strictSame(await visibleSets(served.at('store')), []);
});

t.test('the server is told to end while the post-hook runs: it waits for it', async (t) => {
  const served = await serve(t);
  const { backup, letGo } = await startHeld(served, 'post');
  served.server.child.kill('SIGTERM');
  // Nobody is let in any more: it is stopping.
  await must('sh', ['-c', `while [ -e '${served.volume}/nbd.sock' ]; do sleep 0.02; done`], {
    timeoutMs: 30_000,
  });
  t.equal(served.server.ended, undefined);
  letGo();
  t.match(await served.server.wait(), { status: 0, stderr: '' });
  await backup.wait();
  t.equal(served.lines().at(-1), 'end post done');
});

t.test('offline: the same, and Ctrl-C', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const [volume, log] = [at('vol'), at('log')];
  const lines = (): readonly string[] => readFileSync(log, 'utf8').split('\n').slice(0, -1);
  await mustCowbell(['volume', 'create', volume, '--size', '8M']);
  await mustCowbell(['store', 'init', at('store')]);
  const say = `echo "$COWBELL_HOOK $COWBELL_RESULT" >>${log}`;
  const words = ['backup', '--store', at('store'), volume, '--pre-freeze', say, '--post-freeze', say];
  t.match(await mustCowbell(words), /writes paused [\d.]+ ms, hooks around it \d+ ms\n$/);
  t.strictSame(lines(), ['pre ', 'post done']);
  writeFileSync(log, '');

  const { backup } = await startHeld({ at, volume, log }, 'pre');
  t.match(await backup.stop('SIGINT'), { status: 1, stdout: /"code":"cancelled"/ });
  t.strictSame(lines(), ['begin pre', 'begin post', 'end post failed']);
  t.equal((await visibleSets(at('store'))).length, 1);
  const failed = await cowbell([...words, '--pre-freeze', 'x']);
  t.match(failed, { status: 2, stderr: /--pre-freeze is given 2 times/ });
});
