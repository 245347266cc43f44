/**
 * Goal: snapshots made under load are exact, and stay so while more is written, after a kill, a deletion and a clean
 * stop.
 *
 * Method: fio writes all the time; each snapshot is copied at once and again after each step, and a backup of one is
 * restored; all must be equal.
 */
import t from 'tap';
import { must, mustCowbell, Running } from './support/process.ts';
import { backUp, serveVolume, startServer } from './support/served.ts';
import { exported, snapshot, uriOf } from './support/snapshot.ts';
import { requireTools } from './support/tools.ts';

t.test('made under load, exact for ever, over a kill and a restart too', async (t) => {
  if (!requireTools(t, ['fio', 'nbdcopy', 'nbdinfo'])) return;
  const served = await serveVolume(t, { size: '32M' });
  const { at, volume } = served;
  await mustCowbell(['store', 'init', at('store')]);
  const load = (uri: string): Running =>
    new Running(
      'fio',
      [
        ['--name=load', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bsrange=4k-64k', '--size=32M'],
        ['--iodepth=8', '--fsync=64', '--time_based', '--runtime=60', '--refill_buffers'],
      ].flat(),
      { cwd: at('.') },
    );
  const names = ['one', 'two', 'three'];
  const assertSame = async (server: string): Promise<void> => {
    for (const name of names) {
      await must('nbdcopy', [uriOf(volume, name), at('again.raw')]);
      await must('cmp', [at(`${name}.raw`), at('again.raw')]);
      t.pass(`${name} ${server}`);
    }
  };
  const writer = load(served.uri);
  for (const name of names) {
    await snapshot('create', name, volume);
    await must('nbdcopy', [uriOf(volume, name), at(`${name}.raw`)]);
  }
  t.equal(writer.ended, undefined, 'fio still writes');
  await assertSame('after more writes');
  await backUp(`${volume}@two`, at('store'));
  await mustCowbell(['restore', at('store'), 'latest', at('two-restored.raw')]);
  await must('cmp', [at('two.raw'), at('two-restored.raw')]);

  t.equal((await served.server.stop('SIGKILL')).signal, 'SIGKILL');
  await writer.stop('SIGKILL');
  const second = await startServer(t, [volume]);
  t.strictSame(await exported(volume), ['vol', 'vol@one', 'vol@three', 'vol@two']);
  await assertSame('after a kill');
  await snapshot('delete', volume, 'two');
  names.splice(1, 1);
  t.equal((await second.server.stop()).status, 0);
  const third = await startServer(t, [volume]);
  t.strictSame(await exported(volume), ['vol', 'vol@one', 'vol@three']);
  await assertSame('after a clean stop');
  t.equal((await third.server.stop()).status, 0);
});
