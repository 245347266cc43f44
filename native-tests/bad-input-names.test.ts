/**
 * Goal: what was named wrongly is refused in one line that says what was wanted, with the right exit status, and
 * nothing is changed by it.
 *
 * Method: a wrong store, volume and set, a base that is gone, a target that is too small, before and while the
 * volume is served.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { cowbell, must, mustCowbell } from './support/process.ts';
import { backUp, serveVolume, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';

t.test('one line and the right status', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { at, volume, uri, server } = await serveVolume(t, { size: '4M' });
  const write = (...words: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...words.flatMap((word) => ['-c', word]), uri]);
  const refused = async (status: number, pattern: RegExp, ...words: string[]): Promise<void> => {
    const ended = await cowbell(words);
    t.equal(ended.status, status, `${words.join(' ')}: ${ended.stderr}`);
    t.match(ended.stderr, /^cowbell: [^\n]+[^.\n]\n$/, 'one line without a stop');
    t.match(ended.stderr, pattern);
  };
  await write('write -P 1 0 4M');
  await mustCowbell(['store', 'init', at('store')]);
  const full = String((await backUp(volume, at('store')))['set']);
  await write('write -P 2 1M 64k');
  const incremental = String((await backUp(volume, at('store')))['set']);

  mkdirSync(at('empty'));
  writeFileSync(at('file'), 'no store');
  for (const place of [at('missing'), at('empty'), at('file'), volume]) {
    await refused(1, new RegExp(place), 'store', 'list', place);
    await refused(1, new RegExp(place), 'backup', '--store', place, volume);
  }
  await refused(1, /empty/, 'store', 'verify', at('empty'));
  await refused(1, /missing/, 'restore', at('missing'), 'latest', at('out.raw'));
  for (const place of [at('missing'), at('empty'), at('store')]) {
    await refused(1, new RegExp(place), 'serve', place);
  }
  await refused(1, /empty/, 'status', at('empty'));
  await refused(1, /missing/, 'backup', '--store', at('store'), at('missing'));
  await refused(1, /01ZZZ/, 'restore', at('store'), '01ZZZ', at('out.raw'));
  await refused(1, /other/, 'restore', at('store'), 'latest:other', at('out.raw'));
  await refused(1, /01ZZZ/, 'store', 'show', at('store'), '01ZZZ');

  const small = randomBytes(4 * 1_048_576 - 512);
  writeFileSync(at('small.raw'), small);
  await refused(1, /small\.raw/, 'restore', at('store'), full, at('small.raw'));
  t.ok(readFileSync(at('small.raw')).equals(small), 'a target that is too small stays as it was');
  await refused(1, /home\.raw/, 'restore', at('store'), full, at('home.raw'));

  renameSync(at(`store/sets/${full}-0.cbs`), at('away.cbs'));
  await refused(3, new RegExp(full), 'restore', at('store'), incremental, at('out.raw'));
  t.throws(() => readFileSync(at('out.raw')), { code: 'ENOENT' });
  t.match(await backUp(volume, at('store')), { level: 'full', reason: /complete, undamaged chain/ });
  renameSync(at('away.cbs'), at(`store/sets/${full}-0.cbs`));
  await mustCowbell(['store', 'verify', at('store')]);
  t.equal((await visibleSets(at('store'))).length, 3);
  await write('read -P 1 0 1M', 'read -P 2 1M 64k');
  t.equal((await server.stop()).status, 0);
});
