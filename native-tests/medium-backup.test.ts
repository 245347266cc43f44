/**
 * Goal: a backup straight to media through the command line: tar lists them, they come through a FIFO and a loader,
 * restore and import take them back, and what fails on the second medium is one entry in the volume's log and costs
 * none of the volume's changes. The session goes on when its command has gone away (EXAMPLES B10).
 *
 * Method: a served volume with random content; the restored files are compared byte by byte. The second medium
 * is a device without room.
 */
import { chmodSync, existsSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  cowbell as runCowbell,
  must,
  mustCowbell,
  type Running,
  startCowbell,
  temporaryDirectory,
} from './support/process.ts';
import { requireTools } from './support/tools.ts';

interface Served {
  readonly at: (name: string) => string;
  readonly uri: string;
  readonly server: Running;
}

async function serve(t: Test, megabytes: number): Promise<Served> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('vol'), '--size', '48M']);
  const server = startCowbell(['serve', at('vol')]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  await must('sh', ['-c', `dd if=/dev/urandom of=${at('random')} bs=1M count=${megabytes} 2>/dev/null`]);
  await must('nbdcopy', [at('random'), uri]);
  await must('nbdcopy', [uri, at('wanted.raw')]);
  return { at, uri, server };
}

function logOf(at: Served['at']): { outcome: string; steps: { state: string; medium: number }[] }[] {
  if (!existsSync(at('vol/sessions.log'))) return [];
  const lines = readFileSync(at('vol/sessions.log'), 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line));
}

t.test('a served volume to media of a given size', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io', 'tar', 'cmp', 'mkfifo'])) return;
  const { at, uri, server } = await serve(t, 9);
  const size = ['--medium-size', '4M', '--label', 'box'];
  const said = await mustCowbell(['backup', '--store', at('m-{n}.tar'), at('vol'), ...size]);
  t.match(said, /full backup of vol, .* on 3 media of box/);
  for (const medium of [1, 2, 3]) {
    t.match(await must('tar', ['-tf', at(`m-${medium}.tar`)]), /^box-.\/000000-medium\.json\n/);
  }
  const [first, second, third] = [at('m-1.tar'), at('m-2.tar'), at('m-3.tar')];
  await mustCowbell(['restore', second, 'latest:vol', at('out.raw'), '--medium', third, '--medium', first]);
  await must('cmp', [at('out.raw'), at('wanted.raw')]);
  const cut = await runCowbell(['restore', first, 'latest', at('cut.raw'), '--medium', third]);
  t.equal(cut.status, 3);
  t.match(cut.stderr, /The media of box lack track .*; medium 2 was not read/);

  await mustCowbell(['store', 'import', at('store'), '--from', third, '--from', first, '--from', second]);
  await mustCowbell(['store', 'verify', at('store')]);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 5 1M 64k', '-c', 'flush', uri]);
  const next = await mustCowbell(['backup', '--store', at('store'), at('vol')]);
  t.match(next, /incremental backup of vol, 1 tracks/, 'what was imported is a base');
  await mustCowbell(['restore', at('store'), 'latest', at('next.raw')]);
  await must('nbdcopy', [uri, at('now.raw')]);
  await must('cmp', [at('next.raw'), at('now.raw')]);

  await must('mkfifo', [at('fifo')]);
  const writing = mustCowbell(['backup', '--store', at('fifo'), at('vol')]);
  await mustCowbell(['restore', at('fifo'), 'latest', at('fifo.raw')]);
  await writing;
  await must('cmp', [at('fifo.raw'), at('now.raw')]);

  writeFileSync(
    at('load'),
    `#!/bin/sh\ncd ${at('.')}\nif [ -s drive ]; then mv drive shelf-$((COWBELL_NUMBER - 1)); fi\n`,
  );
  chmodSync(at('load'), 0o700);
  const loading = ['--load', at('load'), '--label', 'tape', '--medium-size', '5M'];
  await mustCowbell(['backup', '--store', at('drive'), at('vol'), ...loading]);
  const shelved = readdirSync(at('.')).filter((name) => name.startsWith('shelf-'));
  const further = shelved.flatMap((name) => ['--medium', at(name)]);
  await mustCowbell(['restore', at('drive'), 'latest', at('loaded.raw'), ...further]);
  await must('cmp', [at('loaded.raw'), at('now.raw')]);
  t.same(
    logOf(at).map(({ outcome }) => outcome),
    ['done', 'done', 'done'],
  );
  await server.stop();
});

t.test('a second medium that fails, and what takes a store', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io', 'cmp'])) return;
  const { at, uri, server } = await serve(t, 9);
  await mustCowbell(['store', 'init', at('store')]);
  await mustCowbell(['backup', '--store', at('store'), at('vol')]);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 5 1M 64k', '-c', 'flush', uri]);
  symlinkSync('/dev/full', at('m-2.tar'));
  const size = ['--medium-size', '4M'];
  const failed = await runCowbell(['backup', '--store', at('m-{n}.tar'), at('vol'), ...size]);
  t.equal(failed.status, 1);
  t.match(failed.stderr, /Medium .*m-2\.tar has 0 bytes, wanted at least/);
  const [entry, ...others] = logOf(at);
  t.match(entry, { outcome: 'failed' });
  t.same(others, [], 'one entry');
  const walk = (entry?.steps ?? []).map(({ state, medium }) => `${state} ${medium}`);
  t.same(walk.slice(-4), ['beginning-of-medium 2', 'write 2', 'error 2', 'opened 2']);
  const lacking = await runCowbell(['store', 'import', at('none'), '--from', at('m-1.tar')]);
  t.equal(lacking.status, 1);
  t.match(lacking.stderr, /it lacks the end of the backup that wrote it.*medium 2 was not read/);
  t.notMatch(await mustCowbell(['store', 'list', at('none')]), /01[0-9A-Z]{24}/, 'no visible set');
  const next = await mustCowbell(['backup', '--store', at('store'), at('vol')]);
  t.match(next, /incremental backup of vol, 1 tracks/, 'the change is not lost');
  for (const [options, refusal] of [
    [['--level', 'incremental'], /Level incremental takes a store/],
    [['--level', 'differential'], /Level differential takes a store/],
    [['--lane', at('.')], /--lane takes a store/],
    [['--dry-run'], /--dry-run takes a store/],
  ] as const) {
    const refused = await runCowbell(['backup', '--store', at('x.tar'), at('vol'), ...options]);
    t.equal(refused.status, 2);
    t.match(refused.stderr, refusal);
    t.notOk(existsSync(at('x.tar')));
  }
  await server.stop();
});

t.test('the session goes on when its command has gone away', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'cmp'])) return;
  const { at, server } = await serve(t, 40);
  const media = ['--store', at('m-{n}.tar'), '--medium-size', '12M', '--codec', 'none', '--rate', '20M'];
  const backup = startCowbell(['--json', 'backup', ...media, at('vol')]);
  await backup.waitForLine(/"event":"progress"/);
  await backup.stop('SIGKILL');
  const deadline = Date.now() + 60_000;
  while (logOf(at).length === 0 && Date.now() < deadline) {
    await mustCowbell(['status', at('vol')]);
  }
  t.match(logOf(at), [{ outcome: 'done' }]);
  const names = readdirSync(at('.')).filter((name) => name.startsWith('m-'));
  t.equal(names.length, 4);
  const [first = '', ...others] = names;
  const further = others.flatMap((name) => ['--medium', at(name)]);
  await mustCowbell(['restore', at(first), 'latest', at('out.raw'), ...further]);
  await must('cmp', [at('out.raw'), at('wanted.raw')]);
  await server.stop();
});
