/**
 * Goal: a delta store that fills up starts a backup by policy, which gives its room back before a writer has to wait;
 * and the loss of a copy of what is not backed up yet is loud.
 *
 * Method: a volume with two small delta directories, a policy by fill, a minimum of three copies, and one of the
 * directories taken away.
 */
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { eventsOf, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const CONFIG = `stores: {near: {path: store}}
volumes:
  - path: vol
    minimumCopies: 3
    policies:
      - {name: filled, when: {deltas: 50%}, do: backup, store: near}
`;

t.test('the fill of the delta store starts a backup, and a lost copy is told', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const deltas = ['--delta', at('d1'), '--delta', at('d2'), '--delta-size', '16M'];
  await mustCowbell(['volume', 'create', at('vol'), '--size', '64M', ...deltas]);
  await mustCowbell(['store', 'init', at('store')]);
  writeFileSync(at('cowbell.yaml'), CONFIG);
  const server = startCowbell(['serve', '--json', '--config', at('cowbell.yaml')]);
  const [ready] = eventsOf(await server.waitForLine(/"event":"ready"/));
  const write = async (words: string): Promise<string> =>
    must('qemu-io', ['-f', 'raw', '-c', words, '-c', 'flush', String(ready?.['uri'])]);

  await write('write -P 5 0 12M');
  const [begun] = eventsOf(await server.waitForLine(/"policy":"filled".*"state":"running"/));
  t.match(begun, { cause: 'deltas' });
  await server.waitForLine(/"policy":"filled".*"state":"done"/);
  const status = await statusOf(at('vol'));
  t.match(status, { copies: { notBackedUp: { count: 3, where: [at('vol/home.raw'), at('d1'), at('d2')] } } });
  t.match(
    JSON.stringify(status['deltas']),
    /"bytesUsed":\d{1,7},/,
    'what is backed up has left the delta store',
  );
  t.match(await cowbell(['status', '--check', at('vol')]), { status: 0 });

  rmSync(at('d2'), { recursive: true });
  // More than what a log that is open may still take.
  await write('write -P 6 0 8M');
  const [told] = eventsOf(await server.waitForLine(/"event":"copies"/));
  t.match(told, { isBelow: true, minimum: 3 });
  const check = await cowbell(['status', '--check', at('vol')]);
  t.equal(check.status, 1);
  t.match(check.stdout, /^problem: Member of the delta store \S+d2 is lost/m);
  t.match(check.stdout, /^problem: What is not backed up yet.* wanted 3 copies$/m);
  t.equal((await server.stop()).status, 0);
});
