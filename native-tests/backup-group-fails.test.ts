/**
 * Goal: a group is all or none: whichever volume fails or is cancelled, whenever, no set and no snapshot of any is
 * left; and volumes that cannot freeze together are refused.
 *
 * Method: one cause after the other on two volumes whose backup takes a while.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { childrenOf, cowbell, must, mustCowbell, type Running, startCowbell } from './support/process.ts';
import { startServer, statusOf, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';
import { makePair, uriOf } from './support/volume-pair.ts';

t.test('all or none', async (t) => {
  if (!requireTools(t, ['nbdcopy'])) return;
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
    // Held back, so that it is still running when something happens to it.
    const running = startCowbell(['--json', ...backup, a, b, '--rate', '20M', ...words]);
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
