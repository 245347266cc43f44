/**
 * Goal: a session's states are seen while it runs and in its store's log when it has ended; somebody is told how it
 * ended, also where the command that began it has gone; --rate holds it back, and --lane writes to another disk.
 *
 * Method: a served volume and the real command, held back by --rate so that there is time to look. The command of
 * --notify writes its environment to a file.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { eventsOf, statusOf } from './support/served.ts';

const SIZE_BYTES = 8 * 1_048_576;

t.test('states, log, notification, rate and lanes', async (t) => {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const volume = at('vol');
  const store = at('store');
  const lane = at('lane');
  const told = at('told');
  await mkdir(lane);
  await mustCowbell(['volume', 'create', volume, '--size', String(SIZE_BYTES)]);
  await mustCowbell(['store', 'init', store]);
  const server = startCowbell(['serve', volume]);
  await server.waitForLine(/^ready /);
  t.teardown(() => server.stop());
  const data = at('data');
  writeFileSync(data, Buffer.alloc(SIZE_BYTES, 'content of a backup'));
  await must('nbdcopy', [data, `nbd+unix:///vol?socket=${volume}/nbd.sock`]);
  const notify = `env | grep ^COWBELL_ | sort > ${told}.$COWBELL_EVENT`;
  const backup = ['--json', 'backup', '--store', store, '--notify', notify, volume];

  // The command goes away; its session does not, and somebody is told of its end.
  const held = startCowbell([...backup, '--rate', '1M', '--codec', 'none']);
  await held.waitForLine(/"event":"progress"/);
  const running = await statusOf(volume);
  t.match(running, {
    sessions: [
      { steps: [{ state: 'opened' }, { state: 'beginning-of-medium', medium: 1 }, { state: 'write' }] },
    ],
  });
  await held.stop('SIGKILL');
  await mustCowbell(['cancel', volume]);
  const cancelled = readFileSync(`${told}.backup-cancelled`, 'utf8');
  t.match(cancelled, /^COWBELL_VOLUME=vol$/m);
  t.match(cancelled, new RegExp(`^COWBELL_STORE=${store}$`, 'm'));
  t.match(cancelled, /^COWBELL_MESSAGE=.*cancelled/m);

  const started = performance.now();
  const done = await mustCowbell([...backup, '--rate', '4M', '--codec', 'none', '--lane', lane]);
  const set = eventsOf(done).find(({ event }) => event === 'set');
  t.ok(performance.now() - started > 900, 'eight MiB at four a second, the first second being free');
  t.match(set, { event: 'set', level: 'full', lanes: 2 });
  const [ofStore] = await readdir(lane);
  t.match(await readdir(join(lane, ofStore ?? '')), [/-1\.cbs$/]);
  t.match(
    readFileSync(`${told}.backup-done`, 'utf8'),
    new RegExp(`^COWBELL_SET=${String(set?.['set'])}$`, 'm'),
  );
  await mustCowbell(['store', 'verify', store]);

  const failed = await cowbell(['backup', '--store', store, volume, '--lane', join(data, 'no-directory')]);
  t.equal(failed.status, 1);
  const log = eventsOf(await mustCowbell(['--json', 'store', 'log', store]));
  t.match(log, [
    { event: 'session', outcome: 'cancelled', volume: 'vol', error: { message: /cancelled/ } },
    {
      outcome: 'done',
      set: set?.['set'],
      steps: ['opened', 'beginning-of-medium', 'write', 'end-of-medium', 'opened'].map((state) => ({
        state,
      })),
    },
    { outcome: 'failed', steps: [{ state: 'opened' }] },
  ]);
  t.match(await mustCowbell(['store', 'log', store]), /OUTCOME/);
});
