/**
 * Goal: a store is looked after through the command line alone: sets are protected, merged, pruned, copied, verified, and
 * every set that is kept restores what the volume held.
 *
 * Method: one volume, a backup after each of several writes, a copy of the export at each; each step of the care is
 * followed by restores that are compared byte by byte. The volume is not served, and moved away, while sets are merged.
 */
import { readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { requireTools } from './support/tools.ts';

const BACKUPS = 6;

function events(lines: string): Record<string, unknown>[] {
  return lines
    .trim()
    .split('\n')
    .map((line) => {
      const value: unknown = JSON.parse(line);
      return typeof value === 'object' && value !== null ? { ...value } : {};
    });
}

t.test('protect, merge, prune, copy, verify', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const store = at('store');
  await mustCowbell(['volume', 'create', at('vol'), '--size', '16M']);
  await mustCowbell(['store', 'init', store]);
  await mustCowbell(['store', 'init', at('other')]);
  const server = startCowbell(['serve', at('vol')]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  const ids: string[] = [];
  for (let index = 0; index < BACKUPS; index += 1) {
    const writes = [`write -P ${index + 1} ${index}M 2M`, `write -z ${index * 2}M 64k`, 'flush'];
    await must('qemu-io', ['-f', 'raw', ...writes.flatMap((write) => ['-c', write]), uri]);
    await must('nbdcopy', [uri, at(`${index}.raw`)]);
    const [set] = events(
      await mustCowbell(['--json', 'backup', '--codec', 'none', '--store', store, at('vol')]),
    ).slice(-2);
    ids.push(String(set?.['set']));
  }
  await server.stop();
  renameSync(at('vol'), at('gone'));
  const isExact = async (place: string, index: number, set: string): Promise<void> => {
    const name = at(`restored-${Math.random()}`);
    await mustCowbell(['restore', place, set, name]);
    await must('cmp', [at(`${index}.raw`), name]);
  };
  const id = (index: number): string => ids[index] ?? '';

  await mustCowbell(['store', 'protect', store, id(1), '--until', 'forever']);
  t.match(await mustCowbell(['store', 'list', store]), /↳ .*protected for ever/);
  t.equal((await cowbell(['store', 'protect', store, id(1)])).status, 2);

  const dry = events(await mustCowbell(['--json', 'store', 'prune', store, '--keep-last', '2', '--dry-run']));
  t.equal([dry[0]?.['going']].flat().length, 3, 'between the protected and the kept ones');
  await mustCowbell(['store', 'prune', store, '--keep-last', '2']);
  t.equal((await cowbell(['store', 'prune', store])).status, 2, 'a policy that keeps nothing is refused');
  await isExact(store, 5, 'latest');
  await isExact(store, 1, id(1));

  await mustCowbell(['store', 'protect', store, id(1), '--release']);
  const [merged] = events(await mustCowbell(['--json', 'store', 'merge', store])).slice(-2);
  t.match(merged, { event: 'merged', base: null, isReused: false });
  t.equal(readdirSync(join(store, 'sets')).length, 1);
  await isExact(store, 5, 'latest');

  await mustCowbell(['store', 'copy', store, 'latest', '--to', at('other'), '--chain']);
  await mustCowbell(['store', 'rebuild-catalog', at('other')]);
  await isExact(at('other'), 5, 'latest:vol');
  const shown = events(await mustCowbell(['--json', 'store', 'show', at('other'), 'latest']))[0];
  t.match(shown, { level: 'full', lanes: [{ lane: 0 }], chain: [merged?.['set']] });

  await mustCowbell(['store', 'verify', store, '--structure']);
  await mustCowbell(['store', 'verify', store, '--sample', '50%']);
  const [name = ''] = readdirSync(join(store, 'sets'));
  const bytes = readFileSync(join(store, 'sets', name));
  bytes.fill(0x5a, bytes.length / 2, bytes.length / 2 + 64);
  writeFileSync(join(store, 'sets', name), bytes);
  const damaged = await cowbell(['store', 'verify', store]);
  t.equal(damaged.status, 3, damaged.stderr);
  await isExact(at('other'), 5, 'latest');
});
