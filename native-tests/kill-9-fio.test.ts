/**
 * Goal: a server killed at any moment under writes loses nothing that was flushed, opens again by itself and
 * says that it did not stop cleanly, and the next incremental backup restores exactly what the volume holds.
 *
 * Method: a writer of our own knows what was flushed in the first half of the volume (flush-checker.ts); fio
 * writes with fsyncs into the second half. The server gets SIGKILL after a random number of answers, in every
 * other round while a backup runs. The seed is printed; COWBELL_SEED repeats it.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import t, { type Test } from 'tap';
import { SeededRandom } from '../src/base/index.ts';
import { must, mustCowbell, Running, startCowbell } from './support/process.ts';
import { FlushChecker } from './support/flush-checker.ts';
import { backUp, serveVolume, startServer, statusOf, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const HALF_BYTES = 24 * MIB;
const ROUNDS = 5;
/** No new round begins after this time. */
const LIMIT_MS = 18_000;

function startFio(uri: string, seed: number, cwd: string): Running {
  const words = [
    ['--name=load', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bsrange=4k-64k'],
    [`--offset=${HALF_BYTES}`, `--size=${HALF_BYTES}`, '--iodepth=16', '--fsync=16', '--verify=crc32c'],
    ['--do_verify=0', '--time_based', '--runtime=60', `--randseed=${seed}`],
  ];
  return new Running('fio', words.flat(), { cwd });
}

/** Writes until `after` requests were answered since the backup, if any, has begun; kills the server then. */
async function writeAndKill(options: {
  readonly server: Running;
  readonly uri: string;
  readonly checker: FlushChecker;
  readonly after: number;
  readonly backup: Running | undefined;
}) {
  const { server, uri, checker, after, backup } = options;
  let killAt = backup === undefined ? after : Infinity;
  let answered = 0;
  const armed = backup?.waitForLine(/"event":"progress"/).then(() => {
    killAt = answered + after;
  });
  const written = checker.writeUntilLost(uri, (count) => {
    answered = count;
    if (count === killAt) server.child.kill('SIGKILL');
  });
  await Promise.all([written, armed]);
  return await server.wait();
}

function readFirstHalf(path: string): Buffer {
  const content = Buffer.alloc(HALF_BYTES);
  const descriptor = openSync(path, 'r');
  readSync(descriptor, content, 0, HALF_BYTES, 0);
  closeSync(descriptor);
  return content;
}

async function assertSurvived(t: Test, at: (name: string) => string, uri: string, checker: FlushChecker) {
  t.match(await statusOf(at('vol')), { served: true, startedClean: false });
  await must('nbdcopy', ['--flush', uri, at('now.raw')]);
  t.same(checker.judge(readFirstHalf(at('now.raw'))), [], 'what was flushed is there');
  t.match(await backUp(at('vol'), at('store')), { level: 'incremental' });
  await mustCowbell(['restore', at('store'), 'latest', at('restored.raw')]);
  await must('cmp', [at('now.raw'), at('restored.raw')]);
}

t.test('killed at random moments under writes', async (t) => {
  if (!requireTools(t, ['fio', 'nbdcopy'])) return;
  const seed = Number(process.env['COWBELL_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
  t.comment(`COWBELL_SEED=${seed}`);
  const random = new SeededRandom(seed);
  const started = performance.now();
  const { at, volume, ...first } = await serveVolume(t, { size: String(2 * HALF_BYTES) });
  await mustCowbell(['store', 'init', at('store')]);
  await backUp(volume, at('store'), ['--level', 'full']);
  const checker = new FlushChecker({ sizeBytes: HALF_BYTES, random });

  let { server, uri } = first;
  let round = 0;
  let failedCount = 0;
  while (round < ROUNDS && performance.now() - started < LIMIT_MS) {
    const load = startFio(uri, random.below(2 ** 31), at('.'));
    const setCount = (await visibleSets(at('store'))).length;
    const withBackup = round % 2 === 1;
    const backup = withBackup
      ? startCowbell(['--json', 'backup', '--store', at('store'), '--level', 'full', volume])
      : undefined;
    const after = 1 + random.below(withBackup ? 300 : 3000);
    const killed = await writeAndKill({ server, uri, checker, after, backup });
    t.equal(killed.signal, 'SIGKILL', killed.stderr);
    t.not((await load.wait()).status, 0, 'fio loses its server too');
    const ended = await backup?.wait();
    if (ended !== undefined && ended.status !== 0) {
      failedCount += 1;
      t.equal(ended.status, 1);
      t.match(ended.stderr, /^cowbell: [^\n]+\n$/);
    }
    ({ server, uri } = await startServer(t, [volume]));
    await assertSurvived(t, at, uri, checker);
    const finished = (await visibleSets(at('store'))).length - setCount - 1;
    t.ok(finished === 0 || (finished === 1 && backup !== undefined), 'no set but complete ones');
    round += 1;
  }
  t.comment(`${round} rounds, ${failedCount} backups cut off, ${checker.flushedCount} flushed writes`);
  t.ok(round > 1 && checker.flushedCount > 0);
  t.equal((await server.stop()).status, 0);
  await mustCowbell(['store', 'verify', at('store')]);
});
