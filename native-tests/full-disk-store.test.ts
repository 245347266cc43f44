/**
 * Goal: a full disk under the store fails the backup and nothing else: one line and status 1, no set but complete
 * ones, the volume takes writes all the time, and once there is room the next incremental is exact.
 *
 * Method: a tmpfs filled up to more or less room than a set needs, from none at all, so that the disk is full
 * at the first page, among the frames, at the metadata, the seal and the catalog.
 */
import t from 'tap';
import { cowbell, must, mustCowbell } from './support/process.ts';
import { backUp, serveVolume, visibleSets } from './support/served.ts';
import { SmallDisk } from './support/small-disk.ts';
import { requireTools } from './support/tools.ts';

const KIB = 1024;

t.test('the store runs out of room', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const { at, volume, uri, server } = await serveVolume(t, { size: '16M' });
  const disk = await SmallDisk.mount(t, at('disk'), '40M');
  if (disk === undefined) return;
  const store = at('disk/store');
  const write = (...words: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...words.flatMap((word) => ['-c', word]), uri]);
  const assertExact = async (set: string, level: string): Promise<void> => {
    disk.free();
    await must('nbdcopy', [uri, at('now.raw')]);
    t.equal((await mustCowbell(['store', 'verify', store])).includes('damaged'), false);
    await mustCowbell(['restore', store, set, at('out.raw')]);
    await must('cmp', [at('now.raw'), at('out.raw')]);
    t.pass(`${level} ${set} is exact`);
  };
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', 'count=16']);
  await mustCowbell(['store', 'init', store]);
  await must('nbdcopy', [at('in.raw'), uri]);
  await backUp(volume, store);

  // A large set: the disk is full among its frames.
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', 'count=16']);
  await must('nbdcopy', [at('in.raw'), uri]);
  disk.fill(5 * KIB * KIB);
  const failed = await cowbell(['backup', '--json', '--store', store, volume]);
  t.equal(failed.status, 1, failed.stderr);
  t.match(failed.stderr, /^cowbell: [^\n]+\n$/);
  await write('write -P 1 0 1M', 'flush');
  t.equal((await visibleSets(store)).length, 1);
  t.ok(disk.freeBytes >= 5 * KIB * KIB - 64 * KIB, 'what was written of the set is gone');

  // Small sets, and room for less or more than all of one.
  const messages: string[] = [];
  for (let room = 0; room <= 320 * KIB; room += 32 * KIB) {
    await write(`write -P ${room / 32 / KIB + 2} ${room} 512`);
    disk.free();
    if (room === 0) await backUp(volume, store);
    await write(`write -P ${room / 32 / KIB + 2} 8M 64k`);
    disk.fill(room);
    const backup = await cowbell(['backup', '--json', '--store', store, volume]);
    if (backup.status !== 0) {
      messages.push(backup.stderr);
      t.comment(`${room} bytes of room: ${backup.stderr.trim()}`);
      t.equal(backup.status, 1, `${room} bytes of room: ${backup.stderr}`);
      t.match(backup.stderr, /^cowbell: [^\n]+\n$/);
    }
    await write('write -P 99 9M 64k', 'flush', 'read -P 99 9M 64k');
  }
  t.ok(messages.length > 1 && messages.length < 11, `${messages.length} of 11 failed`);
  t.notMatch(messages.join('\n'), /died|signal|defect/, 'each says what is wrong');

  // Without one free block even reading needs room for LMDB's table of readers, and says so.
  disk.fill(0);
  for (const words of [
    ['store', 'verify', store],
    ['restore', store, 'latest', at('out.raw')],
    ['store', 'show', store, 'latest'],
  ]) {
    const { status, stderr } = await cowbell(words);
    t.equal(status, 1, `${words.join(' ')}: ${stderr}`);
    t.match(stderr, /^cowbell: [^\n]+no space is left\n$/);
  }
  disk.free();
  const last = await backUp(volume, store);
  t.match(last, { level: 'incremental' });
  await assertExact(String(last['set']), 'incremental');
  t.equal((await server.stop()).status, 0);
});
