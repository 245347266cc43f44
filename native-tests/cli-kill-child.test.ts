/**
 * Goal: a session's child that dies is a failed session and nothing else: the command ends with status 1 and one
 * line, the volume takes writes, no set is visible, the next backup is exact and clears away what was left.
 *
 * Method: SIGKILL, and SIGBUS as a store file cut under its reader would send, to the server's child at the first
 * progress and a little later; its pid is found among the server's children in /proc.
 */
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import t from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { childrenOf, must, mustCowbell, startCowbell } from './support/process.ts';
import { backUp, serveVolume, statusOf, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const SIZE_MIB = 128;

t.test('the child of an online backup is killed', async (t) => {
  if (!requireTools(t, ['nbdcopy'])) return;
  const { at, volume, uri, server } = await serveVolume(t, { size: `${SIZE_MIB}M` });
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${SIZE_MIB}`]);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  const client = await NbdClient.connect(uri);

  for (const [signal, after] of [
    ['SIGKILL', 0],
    ['SIGKILL', 24],
    ['SIGBUS', 8],
  ] as const) {
    const backup = startCowbell(['--json', 'backup', '--store', at('store'), '--rate', '32M', volume]);
    await backup.waitForLine(/"event":"progress"/);
    for (let write = 0; write < after; write += 1) {
      await client.write(randomBytes(65_536), (SIZE_MIB - 1 - write) * MIB);
    }
    const children = childrenOf(server.child.pid);
    t.equal(children.length, 1, 'one session, one child');
    for (const child of children) process.kill(child, signal);
    const { status, stdout, stderr } = await backup.wait();
    t.equal(status, 1, stdout);
    t.match(stderr, new RegExp(`^cowbell: Backup process of volume vol died \\(signal ${signal}\\)\n$`));
    await client.write(randomBytes(65_536), 3 * MIB, { fua: true });
    t.match(await statusOf(volume), { served: true, sessions: [], writesWaiting: 0 });
    t.same(await visibleSets(at('store')), []);
  }

  const set = await backUp(volume, at('store'));
  t.match(set, { level: 'full' });
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
  const lanes = Array.from({ length: Number(set['lanes']) }, (_, lane) => lane);
  t.same(
    readdirSync(at('store/sets')),
    lanes.map((lane) => `${String(set['set'])}-${lane}.cbs`),
    'nothing partial is left',
  );

  // And with a base: the changes since it are still known after another death.
  await client.write(randomBytes(MIB), 64 * MIB);
  const second = startCowbell([
    '--json',
    'backup',
    '--store',
    at('store'),
    '--level',
    'full',
    '--rate',
    '32M',
    volume,
  ]);
  await second.waitForLine(/"event":"progress"/);
  for (const child of childrenOf(server.child.pid)) process.kill(child, 'SIGKILL');
  t.equal((await second.wait()).status, 1);
  await client.write(randomBytes(MIB), 16 * MIB);
  t.match(await backUp(volume, at('store')), { level: 'incremental', tracks: 32 });
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
  t.equal(readdirSync(at('store/sets')).length, lanes.length + 1);
  await client.disconnect();
  t.equal((await server.stop()).status, 0);
});
