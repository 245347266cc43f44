/**
 * Goal: `docs/examples/fsfreeze-hook` freezes and unfreezes a client's filesystem around a freeze, and leaves
 * nothing frozen, and nothing of others unfrozen, in whatever order things happen.
 *
 * Method: the script itself, with an `ssh` on its path that runs the client's side here, and an `fsfreeze` that
 * refuses what the real one refuses, keeps a file while it is frozen, writes down what it did, and freezes only
 * when the test allows; a `sleep` whose end the test decides.
 */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cowbell, must, mustCowbell, ROOT, Running, run, temporaryDirectory } from './support/process.ts';
import { serveVolume } from './support/served.ts';

const HOOK = join(ROOT, 'docs/examples/fsfreeze-hook');
/** What a careless script would trip over. */
const MOUNT_POINT = `/mnt/it's a "disk" $HOME`;

const FAKE_SSH = `#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "ssh $1" >>"$CLIENT/log"
shift
exec sh -c "$*"
`;

/** The test says when a time is over. What still waits when the test has ended, ends too. */
const FAKE_SLEEP = `#!/bin/sh
until [ -e "$CLIENT/over-$1" ] || [ ! -d "$CLIENT" ]; do /bin/sleep 0.02; done
`;

const FAKE_FSFREEZE = `#!/bin/sh
note() { echo "$*" >>"$CLIENT/log"; }
case $1 in
--freeze)
  until [ -e "$CLIENT/may-freeze" ]; do /bin/sleep 0.02; done
  [ ! -e "$CLIENT/frozen" ] || { note "freeze refused"; echo "fsfreeze: busy" >&2; exit 1; }
  printf %s "$2" >"$CLIENT/frozen"
  note freeze
  ;;
--unfreeze)
  [ "$(cat "$CLIENT/frozen" 2>/dev/null)" = "$2" ] || { note "unfreeze refused"; exit 1; }
  rm "$CLIENT/frozen"
  note unfreeze
  ;;
esac
`;

function prepare(t: Test) {
  const directory = temporaryDirectory(t);
  const client = join(directory, 'client');
  const tokens = join(client, 'tokens');
  const programs = join(directory, 'programs');
  for (const made of [client, tokens, programs]) mkdirSync(made);
  writeFileSync(join(programs, 'ssh'), FAKE_SSH, { mode: 0o755 });
  writeFileSync(join(programs, 'fsfreeze'), FAKE_FSFREEZE, { mode: 0o755 });
  writeFileSync(join(programs, 'sleep'), FAKE_SLEEP, { mode: 0o755 });
  writeFileSync(join(client, 'may-freeze'), '');
  const env = {
    PATH: `${programs}:${process.env['PATH'] ?? ''}`,
    CLIENT: client,
    COWBELL_FREEZE_DIRECTORY: tokens,
  };
  const envOf = (hook: string, freeze: string, result = '') => ({
    env: { ...env, COWBELL_HOOK: hook, COWBELL_FREEZE: freeze, COWBELL_RESULT: result },
  });
  const words = (seconds: string): string[] => ['root@client', MOUNT_POINT, seconds];
  const isFrozen = (): boolean => existsSync(join(client, 'frozen'));
  const log = (): readonly string[] =>
    readFileSync(join(client, 'log'), 'utf8')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('ssh '));
  return {
    client,
    env,
    isFrozen,
    log,
    tokens: () => readdirSync(tokens),
    pre: (freeze: string, seconds = '60') => run(HOOK, words(seconds), envOf('pre', freeze)),
    startPre: (freeze: string) => new Running(HOOK, words('60'), envOf('pre', freeze)),
    post: (freeze: string, result: string) => run(HOOK, words('60'), envOf('post', freeze, result)),
    /** Waits for the end of what runs on the client by itself. */
    until: (condition: string) =>
      must('sh', ['-c', `until ${condition}; do /bin/sleep 0.02; done`], { env, timeoutMs: 20_000 }),
  };
}

t.test('frozen before, unfrozen after', async (t) => {
  const { pre, post, isFrozen, log, tokens, client } = prepare(t);
  t.match(await pre('a'), { status: 0, stdout: '', stderr: '' });
  t.ok(isFrozen());
  t.match(await post('a', 'done'), { status: 0, stdout: '', stderr: '' });
  t.notOk(isFrozen());
  t.strictSame(log(), ['freeze', 'unfreeze']);
  t.strictSame(tokens(), []);
  t.match(readFileSync(join(client, 'log'), 'utf8'), /^ssh root@client$/m);
  t.match(await pre('b'), { status: 0 }, 'and again, whatever timers are left');
  t.match(await post('b', 'done'), { status: 0 });
});

t.test('where the post-hook does not come, the timer unfreezes', async (t) => {
  const { pre, post, until, log, isFrozen, client } = prepare(t);
  t.match(await pre('a', '7'), { status: 0 });
  writeFileSync(join(client, 'over-7'), '');
  await until('grep -qx unfreeze "$CLIENT/log"');
  t.match(await post('a', 'done'), {
    status: 1,
    stderr: /was unfrozen by its timer before the freeze was over\n$/,
  });
  t.match(await post('a', 'failed'), { status: 0 });
  t.strictSame(log(), ['freeze', 'unfreeze']);

  // A timer of an earlier freeze leaves a later one alone.
  t.match(await pre('earlier', '8'), { status: 0 });
  t.match(await post('earlier', 'done'), { status: 0 });
  t.match(await pre('c'), { status: 0 });
  writeFileSync(join(client, 'over-8'), '');
  await until('! grep -qszx "earlie[r]" /proc/[0-9]*/cmdline');
  t.ok(isFrozen());
  t.match(await post('c', 'done'), { status: 0 });
});

t.test('a slow freeze that the end has overtaken is undone', async (t) => {
  const { startPre, post, until, log, client, isFrozen, tokens } = prepare(t);
  rmSync(join(client, 'may-freeze'));
  const pre = startPre('a');
  await until('ls "$COWBELL_FREEZE_DIRECTORY" | grep -q "[0-9]$"');
  t.match(await post('a', 'failed'), { status: 0 });
  appendFileSync(join(client, 'may-freeze'), '');
  t.match(await pre.wait(), { status: 1, stderr: /took too long to freeze and was unfrozen again\n$/ });
  t.notOk(isFrozen());
  t.strictSame(log(), ['unfreeze refused', 'freeze', 'unfreeze']);
  t.strictSame(tokens(), []);
});

t.test('what somebody else has frozen stays so', async (t) => {
  const { pre, post, log, client, isFrozen, tokens } = prepare(t);
  t.match(await pre('a'), { status: 0 });
  t.match(await pre('b'), { status: 1, stderr: /is frozen for another backup, says .*cowbell-freeze-/ });
  t.match(await post('b', 'failed'), { status: 0 });
  t.ok(isFrozen(), 'another backup');
  t.match(await post('a', 'done'), { status: 0 });

  writeFileSync(join(client, 'frozen'), MOUNT_POINT);
  t.match(await pre('c'), { status: 1, stderr: 'fsfreeze: busy\n' });
  t.match(await post('c', 'failed'), { status: 0 });
  t.ok(isFrozen(), 'an administrator');
  t.strictSame(log(), ['freeze', 'unfreeze', 'freeze refused']);
  t.strictSame(tokens(), []);
});

t.test('run by hand it says what it is for', async (t) => {
  const { env } = prepare(t);
  t.match(await run(HOOK, ['client'], { env }), { status: 2, stderr: /^usage: / });
  t.match(await run(HOOK, ['client', '/mnt'], { env }), { status: 2, stderr: /wanted pre or post/ });
});

t.test('as the hook of a backup at rest', async (t) => {
  const { env, log, isFrozen, client } = prepare(t);
  const { at, volume, server } = await serveVolume(t, { size: '1M' });
  await server.stop();
  await mustCowbell(['store', 'init', at('store')]);
  const hook = `${HOOK} root@client /mnt`;
  const words = ['backup', '--store', at('store'), volume, '--pre-freeze', hook, '--post-freeze', hook];
  await mustCowbell(words, { env });
  t.strictSame(log(), ['freeze', 'unfreeze']);
  writeFileSync(join(client, 'frozen'), '/mnt');
  const refused = await cowbell(words, { env });
  t.match(refused, {
    status: 1,
    stderr: /^cowbell: Pre-freeze hook .* failed with exit status 1: fsfreeze: busy\n$/,
  });
  t.ok(isFrozen());
});
