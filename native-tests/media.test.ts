/**
 * Goal: sets on sequential media through the command line, with the tools that people have: tar lists and takes
 * media apart, pipes carry them both ways, a command loads the wanted one, and a volume comes back from media
 * into a new store and without any store.
 *
 * Method: a volume with two sets is exported to a pipe to tar, to files of a given size, through a FIFO, and to
 * one drive whose media a loader exchanges; the restored files are compared byte by byte.
 */
import { chmodSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import {
  cowbell as runCowbell,
  must,
  mustCowbell,
  ROOT,
  startCowbell,
  temporaryDirectory,
} from './support/process.ts';
import { requireTools } from './support/tools.ts';

const COWBELL_COMMAND = `env -u NODE_OPTIONS ${process.execPath} ${join(ROOT, 'bin/cowbell.cjs')}`;

type Cowbell = (...args: string[]) => Promise<string>;
const cowbell: Cowbell = (...args) => mustCowbell(args);

/** A store with a full and an incremental set, and the volume at both points as files. */
async function twoSets(directory: string): Promise<{ store: string; full: string; latest: string }> {
  const at = (name: string): string => join(directory, name);
  await cowbell('volume', 'create', at('vol'), '--size', '24M');
  await cowbell('store', 'init', at('store'));
  const server = startCowbell(['serve', at('vol')]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  await must('sh', ['-c', `dd if=/dev/urandom of=${at('random')} bs=1M count=8 2>/dev/null`]);
  await must('nbdcopy', [at('random'), uri]);
  await cowbell('backup', '--store', at('store'), at('vol'));
  await must('nbdcopy', [uri, at('full.raw')]);
  await must('qemu-io', [
    '-f',
    'raw',
    '-c',
    'write -P 5 1M 300k',
    '-c',
    'write -z 4M 1M',
    '-c',
    'flush',
    uri,
  ]);
  await cowbell('backup', '--store', at('store'), at('vol'));
  await must('nbdcopy', [uri, at('latest.raw')]);
  await server.stop();
  const listed = await cowbell('--json', 'store', 'list', at('store'));
  const [full = ''] = [...listed.matchAll(/"set":"([0-9A-Z]{26})"/g)].map((match) => match[1] ?? '');
  return { store: at('store'), full, latest: 'latest' };
}

t.test('media with standard tools', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy', 'tar', 'mkfifo', 'cmp'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const { store, full } = await twoSets(directory);
  const shell = (script: string): Promise<string> =>
    must('sh', ['-c', `set -e; cowbell() { ${COWBELL_COMMAND} "$@"; }; ${script}`]);

  await t.test('tar lists what comes through a pipe, and gets all of it', async (t) => {
    const listed = await shell(`cowbell store export ${store} latest --chain --to - | tar -tv`);
    t.match(listed, /cowbell-1\/000000-medium\.json/);
    t.match(listed, new RegExp(`-${full}-piece`));
    t.match(listed, new RegExp(`-${full}-metadata`));
    t.match(listed, /-mark\n[^]*-directory\.json\n[^]*-server\.json\n[^]*-catalog\.json\n[^]*-trailer\.json/);
    const text = await shell(
      `cowbell store export ${store} ${full} --to - | tar -xO --wildcards '*-catalog.json'`,
    );
    t.match(text, /"isLast":true/);
  });

  await t.test('a pipe from one store to another', async (t) => {
    await shell(
      `cowbell store export ${store} latest --chain --to - | cowbell store import ${at('piped')} --from -`,
    );
    await cowbell('store', 'verify', at('piped'));
    await cowbell('restore', at('piped'), 'latest', at('piped.out'));
    await must('cmp', [at('piped.out'), at('latest.raw')]);
    t.pass('the volume is the same');
  });

  await t.test('a FIFO, and a restore that reads it without a store', async (t) => {
    await must('mkfifo', [at('fifo')]);
    const writing = cowbell('store', 'export', store, 'latest', '--chain', '--to', at('fifo'));
    await cowbell('restore', at('fifo'), 'latest', at('fifo.out'));
    await writing;
    await must('cmp', [at('fifo.out'), at('latest.raw')]);
    t.pass('the volume is the same');
  });

  await t.test('files of a given size, in any order, into a store made for them', async (t) => {
    const size = ['--medium-size', '4M', '--label', 'box'];
    await cowbell('store', 'export', store, 'latest', '--chain', '--to', at('box-{n}.tar'), ...size);
    const names = readdirSync(directory).filter((name) => name.startsWith('box-'));
    t.ok(names.length >= 3, `${names.length} media`);
    for (const name of names) t.ok((await must('tar', ['-tf', at(name)])).startsWith('box-'), name);
    const shown = await cowbell('--json', 'store', 'show', store, full);
    t.match(shown, /"media":\[\{.*"label":"box"/, 'the store says which media hold the set');
    const reversed = names.toReversed().flatMap((name) => ['--from', at(name)]);
    await cowbell('store', 'import', at('boxed'), ...reversed);
    await cowbell('store', 'verify', at('boxed'));
    await cowbell('restore', at('boxed'), full, at('boxed.out'));
    await must('cmp', [at('boxed.out'), at('full.raw')]);

    const [first = '', ...others] = names.toReversed();
    const further = others.flatMap((name) => ['--medium', at(name)]);
    await cowbell('restore', at(first), 'latest', at('direct.out'), ...further);
    await must('cmp', [at('direct.out'), at('latest.raw')]);
    const lacking = await runCowbell(['restore', at(first), 'latest', at('lacking.out')]);
    t.equal(lacking.status, 3);
    t.match(lacking.stderr, /The media of box lack track .*; medium 1/);

    const refused = await runCowbell(['store', 'export', store, full, '--to', at('box-1.tar')]);
    t.equal(refused.status, 1);
    t.match(refused.stderr, /exists already/, 'a medium that is there is not replaced');
  });

  await t.test('one drive and a loader, which brings a wrong medium once', async (t) => {
    const loader = (name: string, script: string): string => {
      writeFileSync(at(name), `#!/bin/sh\nset -e\ncd ${directory}\n${script}\n`);
      chmodSync(at(name), 0o700);
      return at(name);
    };
    const save = loader('save', 'if [ -s drive ]; then mv drive shelf-$((COWBELL_NUMBER - 1)); fi');
    const options = ['--medium-size', '5M', '--label', 'tape'];
    await cowbell('store', 'export', store, full, '--to', at('drive'), '--load', save, ...options);
    const count = readdirSync(directory).filter((name) => name.startsWith('shelf-')).length + 1;
    await must('mv', [at('drive'), at(`shelf-${count}`)]);
    t.ok(count >= 2, `${count} media`);
    const bring = loader(
      'bring',
      'echo "$COWBELL_MEDIUM $COWBELL_ACTION" >> asked; if [ $COWBELL_NUMBER = 2 ] && [ ! -e once ]; then touch once; cp shelf-1 drive; else cp shelf-$COWBELL_NUMBER drive; fi',
    );
    await cowbell('store', 'import', at('loaded'), '--from', at('drive'), '--load', bring);
    await cowbell('restore', at('loaded'), full, at('loaded.out'));
    await must('cmp', [at('loaded.out'), at('full.raw')]);
    const asked = readFileSync(at('asked'), 'utf8').split('\n');
    t.same(
      asked.slice(0, 3),
      [' read', 'tape-2 read', 'tape-2 read'],
      'the wanted one is asked for by name, twice',
    );
  });

  await t.test('a cut medium', async (t) => {
    await cowbell('store', 'export', store, full, '--to', at('whole.tar'));
    await shell(`head -c 3000000 ${at('whole.tar')} > ${at('cut.tar')}`);
    const cut = await runCowbell(['store', 'import', at('cut'), '--from', at('cut.tar')]);
    t.equal(cut.status, 3);
    t.match(cut.stderr, /is incomplete on the media: tracks? \d/);
    t.notMatch(await cowbell('store', 'list', at('cut')), full);
    t.ok(existsSync(at('cut')));
  });
});
