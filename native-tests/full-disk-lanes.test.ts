/**
 * Goal: a full disk under any lane of a set, or under the store beside it, fails the backup and nothing else, at
 * whichever stage: one line and status 1, no set but complete ones on either disk, nothing partial once the next backup
 * has run, writes go on all the time, and that backup is exact.
 *
 * Method: a store and a lane on a tmpfs each. A backup that succeeds tells how much room one takes; then one disk is
 * filled up to none, parts and almost all of that, up to the last page before it is enough, so that it is full when the
 * lanes are begun, among frames and at the metadata, while the other has room; then the other way round. LMDB's tables
 * of readers give back what the catalog takes, so full-disk-store.test.ts has to reach that one.
 */
import { readdirSync } from 'node:fs';
import t from 'tap';
import { LIMITS } from '../src/base/index.ts';
import { cowbell, must, mustCowbell } from './support/process.ts';
import { backUp, serveVolume, statusOf, visibleSets } from './support/served.ts';
import { SmallDisk } from './support/small-disk.ts';
import { requireTools } from './support/tools.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
/** Two runs for each of two lanes, which they take in turn: every backup spreads the set the same way. */
const DATA_MIB = (4 * LIMITS.sessionRunBytesMax) / MIB;

/** Room that is left, of what a backup needs, on the store's disk and on the lane's. */
const ROOMS: readonly ((needBytes: number) => number)[][] = [
  [
    () => 0,
    () => 24 * KIB,
    (need) => need / 2,
    (need) => need - 96 * KIB,
    ...[-12, 16, 28, 32].map((moreKib) => (need: number) => need + moreKib * KIB),
  ],
  [() => 24 * KIB, (need) => need / 2, (need) => need - 12 * KIB, (need) => need + 48 * KIB],
];

/** Files of sets below a directory, by whether they are complete. */
function filesOf(directory: string): { complete: number; partial: string[] } {
  const names = readdirSync(directory, { recursive: true, encoding: 'utf8' });
  return {
    complete: names.filter((name) => name.endsWith('.cbs')).length,
    partial: names.filter((name) => name.endsWith('.partial')),
  };
}

t.test('one of two disks runs out of room', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const { at, volume, uri, server } = await serveVolume(t, { size: '64M' });
  const disks = [
    await SmallDisk.mount(t, at('first'), '80M'),
    await SmallDisk.mount(t, at('second'), '80M'),
  ].filter((disk) => disk !== undefined);
  if (disks.length < 2) return;
  const store = at('first/store');
  const words = ['--lane', at('second'), '--level', 'full'];
  const write = (...commands: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((word) => ['-c', word]), uri]);

  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${DATA_MIB}`]);
  await must('truncate', ['-s', '64M', at('in.raw')]);
  await must('nbdcopy', [at('in.raw'), uri]);
  await mustCowbell(['store', 'init', store]);
  // The first makes the lane's directory and the catalog, the second tells what each further one takes.
  await backUp(volume, store, words);
  const before = disks.map(({ freeBytes }) => freeBytes);
  t.match(await backUp(volume, store, words), { lanes: 2 });
  const needs = disks.map(({ freeBytes }, index) => (before[index] ?? 0) - freeBytes);
  t.ok(Math.min(...needs) > MIB, `a backup takes ${needs.join(' and ')} bytes`);

  let setCount = 2;
  const messages: string[] = [];
  for (const [index, disk] of disks.entries()) {
    for (const [turn, roomOf] of (ROOMS[index] ?? []).entries()) {
      const room = roomOf(needs[index] ?? 0);
      const title = `disk ${index}, ${room} of ${needs[index]} bytes of room`;
      await write(`write -P ${turn + 1} ${turn * 64}k 4k`);
      disk.fill(room);
      const { status, stderr } = await cowbell(['--json', 'backup', '--store', store, volume, ...words]);
      if (status === 0) setCount += 1;
      else {
        t.equal(status, 1, `${title}: ${stderr}`);
        t.match(stderr, /^cowbell: [^\n]+\n$/);
        messages.push(stderr);
      }
      t.comment(`${title}: ${status === 0 ? 'enough' : stderr.trim()}`);
      disk.free();
    }
  }
  t.ok(messages.length > 6, `${messages.length} failed`);
  t.notMatch(messages.join(''), /died|signal|defect/, 'each says what is wrong');
  t.match(await statusOf(volume), { sessions: [], writesWaiting: 0 });

  await write('write -P 99 9M 64k', 'flush', 'read -P 99 9M 64k');
  const last = await backUp(volume, store, ['--lane', at('second')]);
  t.match(last, { level: 'incremental' });
  // A set whose seal was durable before the failure is complete, though its backup failed.
  const visible = await visibleSets(store);
  t.ok(visible.length > setCount && visible.length <= setCount + 2, `${visible.length} sets`);
  for (const disk of disks) {
    const { complete, partial } = filesOf(disk.path);
    t.equal(complete, visible.length, 'a lane of each set');
    t.same(partial, [], 'nothing partial is left');
  }
  t.equal((await mustCowbell(['store', 'verify', store])).includes('damaged'), false);
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', store, String(last['set']), at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
  t.equal((await server.stop()).status, 0);
});
