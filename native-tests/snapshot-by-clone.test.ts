/**
 * Goal: snapshots that the filesystem makes (`--snapshot-by clone`) hold what the volume did, while it is written, for
 * whoever reads them: the export, a backup, a clone, a rollback.
 *
 * Method: volume, home and snapshots on an xfs with shared blocks; nbdcopy, fio and cmp.
 */
import { join } from 'node:path';
import t from 'tap';
import { mountReflinkDisk } from '../src/sim/index.ts';
import { must, mustCowbell } from './support/process.ts';
import { backUp, eventsOf, startServer } from './support/served.ts';
import { requireTools, skipOrFail } from './support/tools.ts';

t.test('snapshots by clone', async (t) => {
  if (!requireTools(t, ['fio', 'nbdcopy', 'mkfs.xfs'])) return;
  const disk = mountReflinkDisk(t);
  if (disk === undefined) {
    skipOrFail(t, 'missing the right to mount an xfs');
    return;
  }
  const at = (name: string): string => join(disk, name);
  const volume = at('vol');
  await mustCowbell(['volume', 'create', volume, '--size', '32M', '--snapshot-by', 'clone']);
  await mustCowbell(['store', 'init', at('store')]);
  const { server, uri } = await startServer(t, [volume]);
  const load = (seed: number): Promise<string> => {
    const words = `--name=w --ioengine=nbd --uri=${uri} --rw=randwrite --bs=16k --size=32M --io_size=8M`;
    return must('fio', [...words.split(' '), `--randseed=${seed}`]);
  };
  await load(1);
  await must('nbdcopy', [uri, at('one.raw')]);
  await mustCowbell(['snapshot', 'create', 'one', volume]);
  const set = (await Promise.all([backUp(`${volume}@one`, at('store')), load(2)]))[0];
  await must('nbdcopy', [uri.replace('/vol?', '/vol@one?'), at('read.raw')]);
  await must('cmp', [at('one.raw'), at('read.raw')]);
  await mustCowbell(['restore', at('store'), String(set['set']), at('restored.raw')]);
  await must('cmp', [at('one.raw'), at('restored.raw')]);
  const cloned = await mustCowbell(['--json', 'snapshot', 'clone', volume, 'one', at('copy')]);
  t.match(eventsOf(cloned).at(-2), { copiedBytes: 0, sharedBytes: 32 * 2 ** 20 });
  await must('cmp', [at('one.raw'), at('copy/home.raw')]);
  await mustCowbell(['snapshot', 'rollback', volume, 'one']);
  await must('nbdcopy', [uri, at('rolled.raw')]);
  await must('cmp', [at('one.raw'), at('rolled.raw')]);
  await mustCowbell(['snapshot', 'delete', volume, 'one']);
  t.equal((await server.stop()).status, 0);
});
