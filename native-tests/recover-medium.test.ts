/**
 * Goal: EXAMPLES R1 through the command line, with processes of their own for both sides: a volume is recovered from a
 * live backup side that mirrors it, a snapshot of that side goes out on a medium, and the medium fills what is missing
 * and nothing else. A medium that may hold older content is refused.
 *
 * Method: tracks of 64 KiB filled with one byte each. The fill from the side is held by its rate, so that what is missing
 * is known to be so. At the end home and backup side are compared byte by byte.
 */

import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { eventsOf, statusOf } from './support/served.ts';
import { expectContent, snapshot, uriOf, write } from './support/snapshot.ts';
import { requireTools } from './support/tools.ts';

const MIB_COUNT = 24;

t.test('a medium that arrives fills what is missing', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy', 'cmp', 'dd'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('side'), '--size', `${MIB_COUNT}M`]);
  const side = startCowbell(['serve', at('side')]);
  const sideUri = (await side.waitForLine(/^ready /)).slice('ready '.length);
  await must('dd', ['if=/dev/urandom', `of=${at('t0.raw')}`, 'bs=1M', `count=${MIB_COUNT}`, 'status=none']);
  await must('nbdcopy', [at('t0.raw'), sideUri]);
  await mustCowbell(['backup', '--store', at('early.tar'), at('side')]);

  const args = ['recover', sideUri, 'live', at('vol'), '--mirror', sideUri, '--rate', '1', '--json'];
  const server = startCowbell(args);
  await server.waitForLine(/"event":"ready"/);
  const uri = uriOf(at('vol'));
  await must('qemu-io', ['-r', '-f', 'raw', '-c', 'read 20M 64k', uri]);
  await write(uri, '-P 3 8M 64k', '-P 4 12M 64k');
  await snapshot('create', 't1', at('side'));
  await mustCowbell(['backup', '--store', at('t1.tar'), `${at('side')}@t1`]);
  await write(uri, '-P 5 8M 64k', '-P 6 16M 512');
  await expectContent(sideUri, '-P 5 8M 64k', '-P 6 16M 512');
  const before = await statusOf(at('vol'));
  t.match(before['recovery'], { side: { kind: 'device', uri: sideUri }, mirror: sideUri });

  const early = await cowbell(['fill', at('vol'), at('early.tar')]);
  t.equal(early.status, 1);
  t.match(early.stderr, /cannot fill volume vol: it was fixed at .*, before the recovery began/);

  const filled = eventsOf(await mustCowbell(['fill', at('vol'), at('t1.tar'), '--json']));
  const outcome = filled.find(({ event }) => event === 'filled');
  t.match(outcome, { volume: 'vol', missingTracks: 0 });
  t.ok(Number(outcome?.['tracks']) > 300, 'most tracks came from the medium');
  await server.waitForLine(/"event":"recovered"/);
  await expectContent(uri, '-P 5 8M 64k', '-P 4 12M 64k', '-P 6 16M 512');
  t.equal((await statusOf(at('vol')))['recovery'], undefined);
  const again = await cowbell(['fill', at('vol'), at('t1.tar')]);
  t.equal(again.status, 1);
  t.match(again.stderr, /is not being recovered/);
  await server.stop();
  await side.stop();
  await must('cmp', [at('vol/home.raw'), at('side/home.raw')]);
});

t.test('a medium fills a new backup side, beside writes to both (EXAMPLES R3)', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy', 'cmp', 'dd', 'truncate'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('vol'), '--size', `${MIB_COUNT}M`]);
  const first = startCowbell(['serve', at('vol')]);
  await first.waitForLine(/^ready /);
  await must('dd', ['if=/dev/urandom', `of=${at('t0.raw')}`, 'bs=1M', `count=${MIB_COUNT}`, 'status=none']);
  await must('nbdcopy', [at('t0.raw'), uriOf(at('vol'))]);
  await first.stop();

  await must('dd', [
    'if=/dev/urandom',
    `of=${at('mirror.raw')}`,
    'bs=1M',
    `count=${MIB_COUNT}`,
    'status=none',
  ]);
  const words = ['serve', at('vol'), '--mirror', at('mirror.raw'), '--mirror-rate', '1', '--json'];
  const server = startCowbell(words);
  await server.waitForLine(/"event":"ready"/);
  const uri = uriOf(at('vol'));
  await mustCowbell(['backup', '--store', at('snap.tar'), at('vol')]);
  await write(uri, '-P 2 4M 64k', '-P 5 20M 512');
  t.match((await statusOf(at('vol')))['mirroring'], { trackCount: MIB_COUNT * 16 });
  const filled = eventsOf(await mustCowbell(['fill', at('vol'), at('snap.tar'), '--json']));
  t.match(
    filled.find(({ event }) => event === 'filled'),
    { volume: 'vol', missingTracks: 0 },
  );
  await write(uri, '-P 7 8M 64k');
  await server.stop();
  await must('cmp', [at('vol/home.raw'), at('mirror.raw')]);

  await must('truncate', ['-s', '1M', at('small.raw')]);
  const small = await cowbell(['serve', at('vol'), '--mirror', at('small.raw')]);
  t.equal(small.status, 1);
  t.match(small.stderr, /Mirror file .*small\.raw of volume vol has 1048576 bytes, wanted 25165824/);
});

t.test('a mirror is brought up from the volume behind its clients', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy', 'cmp', 'dd', 'truncate'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('vol'), '--size', `${MIB_COUNT}M`]);
  await must('truncate', ['-s', `${MIB_COUNT}M`, at('mirror.raw')]);
  const server = startCowbell(['serve', at('vol'), '--mirror', at('mirror.raw')]);
  await server.waitForLine(/^ready /);
  const uri = uriOf(at('vol'));
  await must('dd', ['if=/dev/urandom', `of=${at('t0.raw')}`, 'bs=1M', `count=${MIB_COUNT}`, 'status=none']);
  await must('nbdcopy', [at('t0.raw'), uri]);
  await server.waitForLine(/^Mirror .* equals vol/);
  await write(uri, '-P 7 8M 512', '-z 12M 1M');
  await server.stop();
  await must('cmp', [at('vol/home.raw'), at('mirror.raw')]);
});
