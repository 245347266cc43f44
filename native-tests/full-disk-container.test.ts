/**
 * Goal: a full disk under the intermediate container fails the backup, never a client's write: one line and
 * status 1, every write is answered, no set is visible, and the next incremental is exact. A container that is
 * merely full makes writers wait, and the backup is exact.
 *
 * Method: a container file on a tmpfs that has less room than the file's size says; a client rewrites the
 * volume while a backup of incompressible content runs.
 */
import { randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { must, mustCowbell, startCowbell } from './support/process.ts';
import { backUp, eventsOf, type Served, serveVolume, statusOf, visibleSets } from './support/served.ts';
import { SmallDisk } from './support/small-disk.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const SIZE_MIB = 128;
const WRITE_BYTES = 65_536;

/** A served volume with random content and an incremental's base. */
async function prepare(t: Test): Promise<Served> {
  const served = await serveVolume(t, { size: `${SIZE_MIB}M` });
  const { at, uri } = served;
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${SIZE_MIB}`]);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  return served;
}

/**
 * Rewrites 48 MiB of the volume from its end, where the backup comes last, so that writes are diverted.
 * Rejects when one is refused.
 */
async function rewrite(client: NbdClient): Promise<void> {
  let offset = SIZE_MIB * MIB;
  const end = offset - 48 * MIB;
  const lane = async (): Promise<void> => {
    while (offset > end) {
      offset -= WRITE_BYTES;
      await client.write(randomBytes(WRITE_BYTES), offset);
    }
  };
  await Promise.all(Array.from({ length: 8 }, lane));
}

async function assertExact(t: Test, { at, volume, uri }: Served, level: string): Promise<void> {
  const set = await backUp(volume, at('store'));
  t.match(set, { level });
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), String(set['set']), at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
}

t.test('the disk of the container is full', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const served = await prepare(t);
  const { at, volume, uri, server } = served;
  const disk = await SmallDisk.mount(t, at('disk'), '16M');
  if (disk === undefined) return;
  await backUp(volume, at('store'));
  disk.fill(256 * 1024);
  const words = ['--json', 'backup', '--store', at('store'), '--level', 'full', volume];
  const client = await NbdClient.connect(uri);
  const backup = startCowbell([...words, '--container', `${at('disk')}:16M`]);
  await backup.waitForLine(/"event":"progress"/);
  const written = rewrite(client);
  const { status, stdout, stderr } = await backup.wait();
  t.equal(status, 1, stdout);
  t.match(stderr, /^cowbell: [^\n]+\n$/);
  t.match(stderr, /space/i);
  t.match(eventsOf(stdout).at(-1), { event: 'error' });
  await written;
  await client.disconnect();
  t.equal((await visibleSets(at('store'))).length, 1);
  t.match(await statusOf(volume), { sessions: [], writesWaiting: 0 });
  t.equal((await statusOf(volume))['poisoned'], undefined);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 5 0 64k', '-c', 'flush', uri]);
  await assertExact(t, served, 'incremental');
  t.equal((await server.stop()).status, 0);
});

t.test('the container is full and its disk is not', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const served = await prepare(t);
  const { at, volume, uri, server } = served;
  const words = ['--json', 'backup', '--store', at('store'), volume];
  const container = ['--container', 'memory:256K', '--container', `${at('.')}:512K`];
  await must('nbdcopy', [uri, at('frozen.raw')]);
  const client = await NbdClient.connect(uri);
  const backup = startCowbell([...words, ...container]);
  await backup.waitForLine(/"event":"progress"/);
  const written = rewrite(client);
  const { status, stdout, stderr } = await backup.wait();
  t.equal(status, 0, stderr);
  const set = eventsOf(stdout).find((event) => event['event'] === 'set');
  t.ok(Number(set?.['diverted']) > 0, `${String(set?.['diverted'])} tracks were diverted`);
  await written;
  await client.disconnect();
  await mustCowbell(['restore', at('store'), String(set?.['set']), at('out.raw')]);
  await must('cmp', [at('frozen.raw'), at('out.raw')]);
  await assertExact(t, served, 'incremental');
  t.equal((await server.stop()).status, 0);
});
