/**
 * Goal: a container that is too small by far makes writers wait and nothing else: under a load of random writes the
 * backup ends, holds exactly the bytes of its freeze, no write fails, and the next one is exact.
 *
 * Method: fio writes 4 KiB anywhere, 32 at once, from right after the freeze until the backup has ended, with a
 * container that has not even room for one track, room for one, and room for one each in memory and in a file. The
 * volume's bytes are copied before, so that they are known.
 */
import { existsSync, mkdirSync } from 'node:fs';
import t from 'tap';
import { must, mustCowbell, Running, startCowbell } from './support/process.ts';
import { backUp, eventsOf, serveVolume, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const SIZE_MIB = 96;
const CONTAINERS = [['memory:4K'], ['memory:64K'], ['memory:64K', 'area:64K']] as const;

/** Requests of one fio job, and how many of them failed. */
function fioCounts(output: string): { writes: number; errors: number } {
  const report: unknown = JSON.parse(output.slice(output.indexOf('{')));
  const pick = (...path: readonly string[]): unknown =>
    path.reduce<unknown>(
      (found, key) => (typeof found === 'object' && found !== null ? Reflect.get(found, key) : undefined),
      report,
    );
  return {
    writes: Number(pick('jobs', '0', 'write', 'total_ios')),
    errors: Number(pick('jobs', '0', 'error')),
  };
}

t.test('a backup under load with hardly any container', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'fio'])) return;
  const { at, volume, uri, server } = await serveVolume(t, { size: `${SIZE_MIB}M` });
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${SIZE_MIB}`]);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  mkdirSync(at('area'));
  mkdirSync(at('lane'));
  const load = ['--name=load', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bs=4k', '--iodepth=32'];
  const endless = [`--size=${SIZE_MIB}M`, '--time_based', '--runtime=120', '--output-format=json'];

  for (const [turn, areas] of CONTAINERS.entries()) {
    await must('nbdcopy', [uri, at('frozen.raw')]);
    const container = areas.flatMap((area) => ['--container', area.replace('area', at('area'))]);
    const lanes = turn === 1 ? [] : ['--lane', at('lane')];
    // Held back, so that the load has the time to hit what is not saved yet.
    const words = ['--json', 'backup', '--store', at('store'), '--level', 'full', '--rate', '16M', volume];
    const backup = startCowbell([...words, ...container, ...lanes]);
    await backup.waitForLine(/"event":"progress"/);
    const fio = new Running('fio', [...load, ...endless, `--randseed=${turn + 1}`], { cwd: at('.') });
    const { status, stdout, stderr } = await backup.wait();
    t.equal(status, 0, stderr);
    const { writes, errors } = fioCounts((await fio.stop('SIGINT')).stdout);
    t.equal(errors, 0, 'no write failed');
    const set = eventsOf(stdout).find(({ event }) => event === 'set');
    const diverted = Number(set?.['diverted']);
    t.ok(diverted > 0, `${areas.join(' and ')}: ${writes} writes, ${diverted} tracks diverted`);
    t.match(await statusOf(volume), { served: true, sessions: [], writesWaiting: 0 });
    await mustCowbell(['restore', at('store'), String(set?.['set']), at('out.raw')]);
    await must('cmp', [at('frozen.raw'), at('out.raw')]);
  }

  t.match(await backUp(volume, at('store')), { level: 'incremental' });
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
  t.ok(existsSync(at('area')), 'the directory of an area stays');
  t.equal((await server.stop()).status, 0);
});
