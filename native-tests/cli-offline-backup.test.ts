/**
 * Goal: the same backup command works on a volume that nobody serves, and its point counts for a later
 * incremental through the server.
 *
 * Method: a backup at rest, a write through the server, an incremental, and a restore of it.
 */
import { join } from 'node:path';
import t from 'tap';
import { must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { requireTools } from './support/tools.ts';

t.test('a backup at rest is the base of one through the server', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('vol'), '--size', '8M', '--home', at('home.raw')]);
  await mustCowbell(['store', 'init', at('store')]);
  const first = await mustCowbell(['backup', '--store', at('store'), at('vol')]);
  t.match(first, /A full backup of vol is taken: the store has no set/);

  const server = startCowbell(['serve', at('vol')]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 64k', uri]);
  const second = await mustCowbell(['backup', '--store', at('store'), at('vol'), '--container', 'memory:0']);
  t.match(second, /incremental backup of vol, 1 tracks/);
  await server.stop();

  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('home.raw'), at('out.raw')]);
});
