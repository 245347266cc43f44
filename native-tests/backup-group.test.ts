/**
 * Goal: `backup --store s a b` and `snapshot create n a b` are of one instant, served or not; and all or none, whoever
 * fails or cancels.
 *
 * Method: one client writes counter i to volume a and flushes it, then i to volume b, and so on. At any one instant a
 * has what b has, or one more; so has whatever was kept of the two.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  must,
  cowbell,
  mustCowbell,
  childrenOf,
  Running,
  startCowbell,
  temporaryDirectory,
} from './support/process.ts';
import { PYTHON, requirePython } from './support/python.ts';
import { eventsOf, startServer, statusOf, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const WRITER = `
import nbd, os, struct, sys
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1])
b.connect_uri(sys.argv[2])
stop, i = sys.argv[3], 0
while not os.path.exists(stop):
    i += 1
    for h in (a, b):
        h.pwrite(struct.pack('<Q', i) + bytes(504), 0)
        h.pwrite(struct.pack('<Q', i) + bytes(504), (i % 64) * 65536 + 65536)
        h.flush()
    if i == 1:
        print('writing', flush=True)
print(i)
`;

interface Pair {
  readonly at: (name: string) => string;
  readonly a: string;
  readonly b: string;
}

async function makePair(t: Test, size: string): Promise<Pair> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  for (const name of ['a', 'b']) await mustCowbell(['volume', 'create', at(name), '--size', size]);
  await mustCowbell(['store', 'init', at('store')]);
  return { at, a: at('a'), b: at('b') };
}

function uriOf(volume: string, name: string): string {
  return `nbd+unix:///${encodeURIComponent(name)}?socket=${volume}/nbd.sock`;
}

function counterIn(path: string): number {
  return Number(readFileSync(path).readBigUInt64LE(0));
}

/** Both kept counters; a may be ahead of b by one. */
function assertOneInstant(t: Test, [a = 0, b = 0]: readonly number[], what: string): void {
  t.ok(a > 0 && a - b >= 0 && a - b <= 1, `${what}: a has ${a}, b has ${b}`);
}

t.test('of one instant under load', async (t) => {
  if (!requireTools(t, ['nbdcopy']) || !(await requirePython(t))) return;
  const { at, a, b } = await makePair(t, '8M');
  const { server } = await startServer(t, [a, b]);
  const writer = new Running(PYTHON, ['-c', WRITER, uriOf(a, 'a'), uriOf(b, 'b'), at('stop')]);
  await writer.waitForLine(/writing/);
  const restored = async (stdout: string): Promise<readonly number[]> => {
    const sets = eventsOf(stdout).filter(({ event }) => event === 'set');
    t.match(sets, [{ volume: 'a' }, { volume: 'b' }]);
    const counters: number[] = [];
    for (const { set } of sets) {
      await mustCowbell(['restore', at('store'), String(set), at(`${String(set)}.raw`)]);
      counters.push(counterIn(at(`${String(set)}.raw`)));
    }
    return counters;
  };
  const backup = ['--json', 'backup', '--store', at('store')];
  for (const round of [1, 2]) {
    const name = `s${round}`;
    const stdout = await mustCowbell([...backup, a, b]);
    assertOneInstant(t, await restored(stdout), `backup ${round}`);
    const made = eventsOf(await mustCowbell(['--json', 'snapshot', 'create', name, a, b]));
    t.match(made, [{ volume: 'a', name }, { volume: 'b', name }, { event: 'done' }]);
    t.equal(made[0]?.['freezeMs'], made[1]?.['freezeMs'], 'one freeze');
    await must('nbdcopy', [uriOf(a, `a@${name}`), at('a.raw')]);
    await must('nbdcopy', [uriOf(b, `b@${name}`), at('b.raw')]);
    assertOneInstant(t, [counterIn(at('a.raw')), counterIn(at('b.raw'))], `snapshot ${round}`);
  }
  // The snapshots' sets, of the instant they were made, while the volumes go on.
  assertOneInstant(
    t,
    await restored(await mustCowbell([...backup, `${a}@s2`, `${b}@s2`])),
    'backup of snapshots',
  );
  t.equal(writer.ended, undefined, 'it still wrote');
  writeFileSync(at('stop'), '');
  t.equal((await writer.wait()).status, 0);
  t.equal((await server.stop()).status, 0);

  assertOneInstant(t, await restored(await mustCowbell([...backup, a, b])), 'offline backup');
  t.match(eventsOf(await mustCowbell(['--json', 'snapshot', 'create', 'rest', b, a])), [
    { volume: 'b', name: 'rest' },
    { volume: 'a', name: 'rest' },
    { event: 'done' },
  ]);
  await mustCowbell(['store', 'verify', at('store')]);
});

t.test('all or none', async (t) => {
  const { at, a, b } = await makePair(t, '48M');
  for (const name of ['a', 'b']) {
    await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', 'count=48', 'status=none']);
    const { server } = await startServer(t, [at(name)]);
    await must('nbdcopy', ['--flush', at('in.raw'), uriOf(at(name), name)]);
    await server.stop();
  }
  const { server } = await startServer(t, [a, b]);
  const backup = ['backup', '--store', at('store')];
  const nothing = async (what: string): Promise<void> => {
    t.strictSame(await visibleSets(at('store')), [], what);
    for (const volume of [a, b]) t.match(await statusOf(volume), { sessions: [], writesWaiting: 0 });
  };
  const area = await cowbell([...backup, a, b, '--container', `${at('nowhere')}/x:1M`]);
  t.match(area, { status: 1, stderr: /^cowbell: [^\n]*nowhere[^\n]*\n$/ });
  await nothing('an area that cannot be');
  const hook = await cowbell([...backup, a, b, '--pre-freeze', 'exit 3']);
  t.match(hook, {
    status: 1,
    stderr: /^cowbell: Pre-freeze hook 'exit 3' of a, b failed with exit status 3\n$/,
  });
  await nothing('a hook that fails');
  t.match(await cowbell(['snapshot', 'create', 'x', a, b, '--pre-freeze', 'exit 3']), { status: 1 });
  await mustCowbell(['snapshot', 'create', 'taken', b]);
  t.match(await cowbell(['snapshot', 'create', 'taken', a, b]), {
    status: 1,
    stderr: /taken exists already/,
  });
  t.match(await mustCowbell(['snapshot', 'list', a]), /No snapshots/, 'neither is made where one cannot');
  await mustCowbell(['snapshot', 'delete', b, 'taken']);

  const begun = async (...words: readonly string[]): Promise<Running> => {
    const running = startCowbell(['--json', ...backup, a, b, ...words]);
    await running.waitForLine(/"event":"progress"/);
    return running;
  };
  const interrupted = await begun();
  t.match(await interrupted.stop('SIGINT'), { status: 1, stdout: /"code":"cancelled"/ });
  await nothing('Ctrl-C');
  const cancelled = await begun();
  await mustCowbell(['cancel', b]);
  t.match(await cancelled.wait(), { status: 1, stdout: /"code":"cancelled"/ });
  await nothing('the session of one is cancelled');
  const robbed = await begun();
  const [child] = childrenOf(server.child.pid);
  if (child !== undefined) process.kill(child, 'SIGKILL');
  t.match(await robbed.wait(), { status: 1, stderr: /^cowbell: [^\n]*died[^\n]*\n$/ });
  await nothing('the process of one dies');

  const wait = `touch ${at('held')}; until [ -e ${at('go')} ]; do sleep 0.02; done`;
  const other = startCowbell([...backup, b, '--pre-freeze', wait]);
  await must('sh', ['-c', `until [ -e ${at('held')} ]; do sleep 0.02; done`]);
  t.match(await cowbell([...backup, a, b]), { status: 1, stderr: /already runs backup session/ });
  writeFileSync(at('go'), '');
  t.equal((await other.wait()).status, 0);
  t.equal((await visibleSets(at('store'))).length, 1, 'that of the other session alone');
  const last = await cowbell([...backup, a, b]);
  t.equal(last.status, 0, last.stderr);
  t.equal((await visibleSets(at('store'))).length, 3);
  t.equal((await server.stop()).status, 0);
});

t.test('served by one process, or by none', async (t) => {
  const { at, a, b } = await makePair(t, '1M');
  const { server } = await startServer(t, [a]);
  const refused = async (): Promise<void> => {
    for (const pair of [
      [a, b],
      [b, a],
    ]) {
      for (const words of [
        ['backup', '--store', at('store')],
        ['snapshot', 'create', 'x'],
      ]) {
        const ended = await cowbell([...words, ...pair]);
        t.match(ended, {
          status: 1,
          stderr: /^cowbell: [^\n]*cannot freeze together, wanted both served by one[^\n]*\n$/,
        });
      }
    }
  };
  await refused();
  const second = await startServer(t, [b]);
  await refused();
  t.equal((await server.stop()).status, 0);
  t.equal((await second.server.stop()).status, 0);
  t.strictSame(await visibleSets(at('store')), []);
  t.notOk(existsSync(join(a, 'snapshots')));
});
