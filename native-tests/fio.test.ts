/**
 * Goal: random writes of mixed sizes at depth, over one connection and over several, read back as written, also
 * by a later run through a restarted server.
 *
 * Method: fio's nbd engine with a checksum in every block; the later run only verifies.
 */
import t from 'tap';
import { must, run } from './support/process.ts';
import { serveVolume, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const JOB = [
  '--ioengine=nbd',
  '--rw=randwrite',
  '--bsrange=4k-128k',
  '--blockalign=4k',
  '--iodepth=32',
  '--verify=crc32c',
  '--verify_fatal=1',
  '--randseed=20',
  '--norandommap=0',
];

t.test('written, verified, and verified again after a restart', async (t) => {
  if (!requireTools(t, ['fio', 'qemu-io'])) return;
  const { at, volume, server, uri } = await serveVolume(t, { size: '64M' });
  const job = (target: string, ...words: string[]): string[] => [
    '--name=vol',
    ...JOB,
    '--size=64M',
    `--uri=${target}`,
    ...words,
  ];
  const cwd = at('.');
  await must('fio', job(uri, '--do_verify=1', '--end_fsync=1'), { cwd });
  t.equal((await server.stop()).status, 0);

  const again = await startServer(t, [volume]);
  await must('fio', job(again.uri, '--verify_only=1'), { cwd });
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 1 20M 4k', again.uri]);
  const damaged = await run('fio', job(again.uri, '--verify_only=1'), { cwd });
  t.not(damaged.status, 0, 'a block that somebody else wrote is seen');
});

t.test('four jobs, each its own connection and part, with fsyncs', async (t) => {
  if (!requireTools(t, ['fio'])) return;
  const { at, uri } = await serveVolume(t, { size: '64M' });
  const words = ['--name=part', ...JOB, '--numjobs=4', '--size=16M', '--offset_increment=16M', '--fsync=32'];
  const output = await must('fio', [...words, '--do_verify=1', `--uri=${uri}`, '--output-format=json'], {
    cwd: at('.'),
  });
  t.equal(output.match(/"jobname" : "part"/g)?.length, 4);
  t.equal(output.match(/"error" : 0,/g)?.length, 4);
});
