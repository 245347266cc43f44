/**
 * Goal: `snapshot clone` makes a volume of its own while the origin is written: its filesystem is sound and it holds
 * what the snapshot's export does; writing to it leaves origin and snapshot alone, and it outlives the snapshot.
 * Interrupted, nothing is left of it.
 *
 * Method: an ext4 made by mkfs.ext4 is copied into the volume; fio overwrites the volume during the clone; nbdcopy,
 * cmp and e2fsck judge. The command is interrupted when it reports its first progress.
 */
import { readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, Running, startCowbell, temporaryDirectory } from './support/process.ts';
import { eventsOf, serveVolume, startServer } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';

const tool = (name: string): string => findTool(name) ?? name;
const ofSnapshot = (uri: string, name: string): string => uri.replace('/vol?', `/vol@${name}?`);

t.test('a clone of a served volume that is written meanwhile', async (t) => {
  if (!requireTools(t, ['fio', 'nbdcopy', 'qemu-io', 'mkfs.ext4', 'e2fsck', 'debugfs'])) return;
  const { at, uri, volume, server } = await serveVolume(t, { size: '96M' });
  writeFileSync(at('disk'), '');
  truncateSync(at('disk'), 96 * 2 ** 20);
  await must(tool('mkfs.ext4'), ['-q', '-d', import.meta.dirname, at('disk')]);
  await must('nbdcopy', ['--destination-is-zero', at('disk'), uri]);
  await must('nbdcopy', ['--flush', at('disk'), uri]);
  await mustCowbell(['snapshot', 'create', 'one', volume]);
  const snapshot = ofSnapshot(uri, 'one');

  const load = `--name=w --ioengine=nbd --uri=${uri} --rw=randwrite --bs=16k --iodepth=8 --size=96M --io_size=24M`;
  const writer = new Running('fio', load.split(' '));
  const stdout = await mustCowbell(['--json', 'snapshot', 'clone', volume, 'one', at('clone')]);
  const [first] = eventsOf(stdout).filter(({ event }) => event === 'volume');
  t.match(first, { name: 'clone', directory: at('clone'), sizeBytes: 96 * 2 ** 20 });
  t.equal((await writer.wait()).status, 0);
  await must('nbdcopy', [snapshot, at('snapshot.raw')]);
  await must('cmp', [at('disk'), at('snapshot.raw')]);
  await must('cmp', [at('snapshot.raw'), at('clone/home.raw')]);
  await must(tool('e2fsck'), ['-fn', at('clone/home.raw')]);
  t.match(await must(tool('debugfs'), ['-R', 'ls', at('clone/home.raw')]), /snapshot-clone.test.ts/);

  const other = await startServer(t, [at('clone')]);
  await must('nbdcopy', [uri, at('origin.raw')]);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 5M 3M', '-c', 'flush', other.uri]);
  for (const [source, wanted] of [
    [uri, 'origin.raw'],
    [snapshot, 'snapshot.raw'],
  ] as const) {
    await must('nbdcopy', [source, at('now.raw')]);
    await must('cmp', [at('now.raw'), at(wanted)]);
  }
  await mustCowbell(['snapshot', 'delete', volume, 'one']);
  t.equal((await server.stop()).status, 0);
  await must('nbdcopy', [other.uri, at('now.raw')]);
  await must('qemu-io', ['-f', 'raw', '-c', 'read -P 7 5M 3M', at('now.raw')]);
  await must('cmp', ['-n', String(5 * 2 ** 20), at('now.raw'), at('snapshot.raw')]);
  const after = 8 * 2 ** 20;
  await must('cmp', ['-i', String(after), at('now.raw'), at('snapshot.raw')]);
});

t.test('a clone is interrupted, served or not', async (t) => {
  const at = (name: string): string => join(directory, name);
  const directory = temporaryDirectory(t);
  const volume = at('vol');
  const size = String(384 * 2 ** 20);
  await mustCowbell(['volume', 'create', volume, '--size', size]);
  await must('dd', [
    'if=/dev/urandom',
    `of=${join(volume, 'home.raw')}`,
    'bs=1M',
    'count=384',
    'conv=notrunc',
  ]);
  await mustCowbell(['snapshot', 'create', 'one', volume]);
  const interrupt = async (): Promise<void> => {
    const before = readdirSync(directory);
    const home = ['--home', at('clone.raw')];
    const command = startCowbell(['--json', 'snapshot', 'clone', volume, 'one', at('clone'), ...home]);
    await command.waitForLine(/"event":"progress"/);
    const { status, stderr } = await command.stop('SIGINT');
    t.equal(status, 1, stderr);
    t.match(stderr, /cancelled/);
    t.same(readdirSync(directory), before);
  };
  await interrupt();
  await startServer(t, [volume]);
  await interrupt();
  await mustCowbell(['snapshot', 'clone', volume, 'one', at('clone')]);
  await must('cmp', [join(volume, 'home.raw'), at('clone/home.raw')]);
  const again = await cowbell(['snapshot', 'clone', volume, 'one', at('clone')]);
  t.equal(again.status, 1);
  t.match(again.stderr, /clone exists, wanted a new directory/);
  const twice = await cowbell(['snapshot', 'clone', volume, 'one', at('other'), '--home', 'nbd://h/x']);
  t.equal(twice.status, 2);
});
