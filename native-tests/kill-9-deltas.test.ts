/**
 * Goal: a server that is killed under writes and loses its home in the same moment loses nothing that was flushed: the
 * newest set and the delta logs have it, whichever member they are read from.
 *
 * Method: a writer that knows what was flushed (flush-checker.ts), SIGKILL after a random number of answers, and the home
 * deleted at once. What `serve --store --delta` serves is held against the writer, and is what the volume has after
 * `volume rebuild`, with which the next round begins. There is a backup before every other round, and the logs are read from
 * one member, the other or both. The seed is printed; COWBELL_SEED repeats it.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom } from '../src/base/index.ts';
import { FlushChecker } from './support/flush-checker.ts';
import { must, mustCowbell, type Running, temporaryDirectory } from './support/process.ts';
import { backUp, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const SIZE_BYTES = 24 * 1_048_576;
const ROUNDS = 5;
const ROUNDS_MIN = 3;
/** No new round begins after this time, apart from the fewest. */
const LIMIT_MS = 12_000;

/** Writes until `after` requests were answered, and kills the server then. */
async function writeAndKill(options: {
  readonly server: Running;
  readonly uri: string;
  readonly checker: FlushChecker;
  readonly after: number;
}) {
  const { server, uri, checker, after } = options;
  await checker.writeUntilLost(uri, (count) => {
    if (count === after) server.child.kill('SIGKILL');
  });
  return await server.wait();
}

/** A name for each choice of members to read the logs from. */
const CHOICES = [['d1'], ['d1', 'd2'], ['d2']] as const;

void t.test('killed at random moments, with the home gone', async (t) => {
  if (!requireTools(t, ['nbdcopy'])) return;
  const seed = Number(process.env['COWBELL_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
  t.comment(`COWBELL_SEED=${seed}`);
  const random = new SeededRandom(seed);
  const started = performance.now();
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const [volume, store, home] = [at('vol'), at('store'), at('home.raw')];
  const deltas = ['--delta', at('d1'), '--delta', at('d2')];
  await mustCowbell(['volume', 'create', volume, '--size', String(SIZE_BYTES), '--home', home, ...deltas]);
  await mustCowbell(['store', 'init', store]);
  const checker = new FlushChecker({ sizeBytes: SIZE_BYTES, random });

  let { server, uri } = await startServer(t, [volume]);
  await backUp(volume, store);
  let round = 0;
  while (round < ROUNDS_MIN || (round < ROUNDS && performance.now() - started < LIMIT_MS)) {
    if (round % 2 === 1) t.match(await backUp(volume, store), { level: 'incremental' });
    const flushedBefore = checker.flushedCount;
    const killed = await writeAndKill({ server, uri, checker, after: 100 + random.below(1500) });
    t.equal(killed.signal, 'SIGKILL', killed.stderr);
    rmSync(home);
    const members = CHOICES[round % CHOICES.length] ?? [];
    const logs = members.flatMap((name) => ['--delta', at(name)]);
    const title = `round ${round}, ${checker.flushedCount - flushedBefore} flushed writes, from ${members.join(' and ')}`;

    const then = at('then.sock');
    const served = await startServer(t, ['--store', store, '--set', 'latest', '--socket', then, ...logs]);
    await must('nbdcopy', [served.uri, at('then.raw')]);
    t.equal((await served.server.stop()).status, 0);
    t.same(checker.judge(readFileSync(at('then.raw'))), [], title);

    await mustCowbell(['volume', 'rebuild', volume, '--store', store, ...logs]);
    await must('cmp', [at('then.raw'), home]);
    ({ server, uri } = await startServer(t, [volume]));
    await must('nbdcopy', [uri, at('now.raw')]);
    await must('cmp', [at('then.raw'), at('now.raw')]);
    round += 1;
  }
  t.ok(checker.flushedCount > 0, `${round} rounds, ${checker.flushedCount} flushed writes`);
  await backUp(volume, store);
  t.equal((await server.stop()).status, 0);
  await mustCowbell(['restore', store, 'latest', at('out.raw')]);
  await must('cmp', [home, at('out.raw')]);
});
