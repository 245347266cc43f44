/**
 * Goal: a pre-hook that fails in any way keeps the freeze from happening; once one was started the post-hook
 * runs, whatever happened; a hook ends within its limit with everything it has started; what goes wrong is told.
 *
 * Method: real shell commands that write what they see into one file. What the test waits for is the end of a
 * hook, or a line that a hook has written; where a hook hangs it is ended by its limit, or by the signal.
 */

import { appendFileSync, existsSync, readFileSync, watch } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { LIMITS, ManualClock } from '../base/index.ts';
import { type FreezeContext, type FreezeHooks, withFreezeHooks } from './freeze-hooks.ts';

/** Long enough for a shell on a busy machine; a test that works does not wait for it. */
const LONG_MS = 60_000;
/** For hooks that are there to run into it. */
const SHORT_MS = 150;

function prepare(t: Test) {
  const directory = t.testdir();
  const log = join(directory, 'log');
  const lines = (): readonly string[] =>
    existsSync(log) ? readFileSync(log, 'utf8').split('\n').slice(0, -1) : [];
  const note = (line: string): void => appendFileSync(log, `${line}\n`);
  const warnings: string[] = [];
  const clock = new ManualClock();
  const context: FreezeContext = { volumes: ['vol'], clock, warn: (sentence) => warnings.push(sentence) };
  const freeze = async (): Promise<string> => {
    clock.advance(5);
    note('freeze');
    return 'point';
  };
  /** Waits until a hook has written the line. */
  const written = (line: string): Promise<void> =>
    new Promise((resolve) => {
      const watcher = watch(directory, () => look());
      const look = (): void => {
        if (!lines().includes(line)) return;
        watcher.close();
        resolve();
      };
      look();
    });
  return { directory, log, lines, note, warnings, context, freeze, clock, written };
}

function hooks(pre: string | undefined, post: string | undefined, timeoutMs = LONG_MS): FreezeHooks {
  return { ...(pre === undefined ? {} : { pre }), ...(post === undefined ? {} : { post }), timeoutMs };
}

/** Whether a process is there and not merely unread by its parent. */
function isAlive(pid: string | undefined): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

t.test('without hooks it just freezes', async (t) => {
  const { context, freeze, lines } = prepare(t);
  t.strictSame(await withFreezeHooks(undefined, context, freeze), { value: 'point', report: undefined });
  t.strictSame(lines(), ['freeze']);
});

t.test(
  'the pre-hook ends before the freeze, the post-hook begins after it, and both know their place',
  async (t) => {
    const { context, freeze, lines, log, warnings } = prepare(t);
    process.env['COWBELL_SNAPSHOT'] = 'inherited';
    t.teardown(() => delete process.env['COWBELL_SNAPSHOT']);
    const say = `echo "$COWBELL_HOOK '$COWBELL_VOLUMES' \${COWBELL_SNAPSHOT-none} \${COWBELL_STORE-none} \${COWBELL_RESULT-none}" >>${log}`;
    const both = hooks(`${say}; sleep 0.05; echo end >>${log}`, say);
    const hooked = await withFreezeHooks(both, { ...context, volumes: ['a', 'b'], store: '/store' }, freeze);
    t.strictSame(hooked, { value: 'point', report: { hookMs: 5 } });
    t.strictSame(lines(), ["pre 'a b' none /store none", 'end', 'freeze', "post 'a b' none /store done"]);

    await withFreezeHooks(hooks(undefined, say), { ...context, snapshot: 'daily' }, freeze);
    t.strictSame(lines().slice(4), ['freeze', "post 'vol' daily none done"], 'a post-hook alone');
    await withFreezeHooks(hooks(say, undefined), context, freeze);
    t.strictSame(lines().slice(6), ["pre 'vol' none none none", 'freeze'], 'a pre-hook alone');
    t.strictSame(warnings, []);
  },
);

t.test('the two hooks of one freeze share an id', async (t) => {
  const { context, freeze, lines, log } = prepare(t);
  const both = hooks(`echo "$COWBELL_FREEZE" >>${log}`, `echo "$COWBELL_FREEZE" >>${log}`);
  await withFreezeHooks(both, context, freeze);
  await withFreezeHooks(both, context, freeze);
  const [first, , second, third, , fourth] = lines();
  t.match(first, /^[0-9a-f]{16,}$/);
  t.equal(second, first);
  t.equal(fourth, third);
  t.not(third, first);
});

t.test('a failing pre-hook aborts, and the post-hook runs', async (t) => {
  const cases: [command: string, message: RegExp, details: object][] = [
    [
      'echo half >>LOG; echo one >&2; echo two >&2; exit 3',
      /^Pre-freeze hook 'echo half .* of vol failed with exit status 3: two$/,
      { cause: 'exit', status: 3, signal: null, stderr: 'one\ntwo\n' },
    ],
    [
      'echo half >>LOG; kill -KILL $$',
      /of vol was ended by signal SIGKILL$/,
      { cause: 'exit', status: null, signal: 'SIGKILL' },
    ],
    [
      'echo half >>LOG; /nowhere/program',
      /exit status 127: .*\/nowhere\/program/,
      { cause: 'exit', status: 127 },
    ],
  ];
  for (const [command, message, details] of cases) {
    const { context, freeze, lines, log, warnings } = prepare(t);
    const both = hooks(command.replace('LOG', log), `echo "$COWBELL_HOOK $COWBELL_RESULT" >>${log}`);
    await t.rejects(withFreezeHooks(both, context, freeze), {
      name: 'DaemonError',
      code: 'hook-failed',
      message,
      details: { hook: 'pre', command: both.pre, ...details },
    });
    t.strictSame(lines(), ['half', 'post failed'], command);
    t.strictSame(warnings, []);
  }
});

t.test('a command that the kernel refuses could not be started', async (t) => {
  const { context, freeze, lines } = prepare(t);
  const tooLong = `: ${'x'.repeat(200_000)}`;
  await t.rejects(withFreezeHooks(hooks(tooLong, undefined), context, freeze), {
    code: 'hook-failed',
    message: /could not be started: .*E2BIG/,
    details: { cause: 'not-started' },
  });
  t.strictSame(lines(), []);
});

t.test('a hook that takes too long is ended', async (t) => {
  const { context, freeze, lines, log, warnings } = prepare(t);
  const post = `echo "post $COWBELL_RESULT" >>${log}`;
  const before = performance.now();
  await t.rejects(withFreezeHooks(hooks('exec sleep 1000', undefined, SHORT_MS), context, freeze), {
    code: 'hook-failed',
    message: /^Pre-freeze hook 'exec sleep 1000' of vol was ended after its time limit of 150 ms$/,
    details: { cause: 'time-limit', status: null, signal: 'SIGTERM' },
  });
  t.ok(performance.now() - before >= SHORT_MS - 1);
  t.strictSame(lines(), []);

  const { value, report } = await withFreezeHooks(
    hooks(undefined, `${post}; sleep 1000`, 3000),
    context,
    freeze,
  );
  t.equal(value, 'point', 'the freeze is good');
  t.match(
    report?.hookWarning,
    /^Post-freeze hook .* was ended after its time limit of 3000 ms; what .* frozen$/,
  );
  t.strictSame(warnings, [report?.hookWarning]);
  t.strictSame(lines(), ['freeze', 'post done']);
});

t.test('a hook is ended with all it started, by force where it does not listen', async (t) => {
  for (const trap of ['', "trap '' TERM; "]) {
    const { context, freeze, lines, log, written, directory } = prepare(t);
    const pids = join(directory, 'pids');
    const abort = new AbortController();
    const pre = `${trap}sleep 1000 & echo "$$ $!" >${pids}; echo ready >>${log}; wait; sleep 1000`;
    // A dead process that nobody has buried has no command line.
    const post = `for pid in $(cat ${pids}); do echo "left [$(cat /proc/$pid/cmdline 2>/dev/null)]" >>${log}; done`;
    const graceMs = 1000;
    const refused = t.rejects(
      withFreezeHooks(hooks(pre, post), { ...context, signal: abort.signal, graceMs }, freeze),
      { message: 'enough' },
      'the reason of the signal',
    );
    await written('ready');
    for (const pid of readFileSync(pids, 'utf8').split(/\s/).filter(Boolean)) t.ok(isAlive(pid));
    abort.abort(new Error('enough'));
    await refused;
    t.strictSame(lines(), ['ready', 'left []', 'left []']);
    for (const pid of readFileSync(pids, 'utf8').split(/\s/).filter(Boolean)) t.notOk(isAlive(pid));
  }
});

t.test('who cancels during the post-hook, or the freeze, does not cut the post-hook short', async (t) => {
  const { context, freeze, lines, log, written, directory } = prepare(t);
  const abort = new AbortController();
  const go = join(directory, 'go');
  const post = `echo begin >>${log}; until [ -e ${go} ]; do sleep 0.01; done; echo "end $COWBELL_RESULT" >>${log}`;
  const hooked = withFreezeHooks(hooks(undefined, post), { ...context, signal: abort.signal }, freeze);
  await written('begin');
  abort.abort(new Error('too late'));
  appendFileSync(go, '');
  t.equal((await hooked).value, 'point', 'the freeze was made');
  t.strictSame(lines(), ['freeze', 'begin', 'end done']);
});

t.test('a signal that fired keeps everything from happening', async (t) => {
  const { context, freeze, lines, log } = prepare(t);
  const say = `echo "$COWBELL_HOOK" >>${log}`;
  const signal = AbortSignal.abort(new Error('too early'));
  await t.rejects(withFreezeHooks(hooks(say, say), { ...context, signal }, freeze), { message: 'too early' });
  t.strictSame(lines(), []);
});

t.test('the post-hook runs where the freeze fails, and where it fails too both are told', async (t) => {
  const { context, lines, log, warnings } = prepare(t);
  const failing = async (): Promise<never> => {
    throw new Error('the gate did not empty');
  };
  const say = `echo "$COWBELL_HOOK $COWBELL_RESULT" >>${log}`;
  await t.rejects(withFreezeHooks(hooks(say, say), context, failing), { message: 'the gate did not empty' });
  t.strictSame(lines(), ['pre ', 'post failed']);
  t.strictSame(warnings, []);
  await t.rejects(withFreezeHooks(hooks(undefined, 'exit 9'), context, failing), { message: /gate/ });
  await t.rejects(withFreezeHooks(hooks('exit 8', 'exit 9'), context, failing), {
    message: /exit status 8$/,
  });
  const warning =
    "Post-freeze hook 'exit 9' of vol failed with exit status 9; what the pre-freeze hook froze may still be frozen";
  t.strictSame(warnings, [warning, warning]);
});

t.test('a post-hook that fails after a good freeze is told, and the freeze is good', async (t) => {
  const { context, freeze, warnings } = prepare(t);
  const hooked = await withFreezeHooks(
    hooks(undefined, 'echo "no\\033[2J way" >&2; exit 1'),
    context,
    freeze,
  );
  t.equal(hooked.value, 'point');
  t.match(hooked.report?.hookWarning, /exit status 1: no \[2J way; what/, 'no control characters');
  t.strictSame(warnings, [hooked.report?.hookWarning]);
});

t.test('what a hook says is bounded, and what it leaves behind is not waited for', async (t) => {
  const { context, freeze, log, directory } = prepare(t);
  const much = 'head -c 100000 /dev/zero | tr "\\0" x >&2; echo >&2; echo the end >&2; exit 1';
  await t.rejects(withFreezeHooks(hooks(much, undefined), context, freeze), {
    message: /exit status 1: the end$/,
    details: { stderr: new RegExp(`^x{${LIMITS.hookErrorBytesMax - 9}}\nthe end\n$`) },
  });

  // It holds the hook's error output open until the test lets it go.
  const go = join(directory, 'go');
  const pid = join(directory, 'pid');
  const leaving = `(until [ -e ${go} ]; do sleep 0.05; done) & echo $! >${pid}; echo left >>${log}`;
  t.equal((await withFreezeHooks(hooks(leaving, undefined), context, freeze)).value, 'point');
  const left = readFileSync(pid, 'utf8').trim();
  t.ok(isAlive(left), 'it is none of our business');
  // The file might be gone with its directory before it is looked for again.
  process.kill(Number(left));
});
