/**
 * Goal: a lane's directory that goes away fails the backup that writes to it, or is made anew, and does no more: the
 * volume takes writes, no set is visible but complete ones, nothing partial stays, a set that has lost a lane is named
 * by `store verify` and never built on, and the next backup is exact.
 *
 * Method: a lane in a directory that is removed, and one on a tmpfs that is unmounted from under its writer, in the
 * middle of a backup; the same between two backups.
 */
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import t, { type Test } from 'tap';
import { cowbell, must, mustCowbell, startCowbell } from './support/process.ts';
import { backUp, eventsOf, type Served, serveVolume, statusOf, visibleSets } from './support/served.ts';
import { SmallDisk } from './support/small-disk.ts';
import { requireTools } from './support/tools.ts';

const SIZE_MIB = 96;

async function prepare(t: Test): Promise<Served> {
  const served = await serveVolume(t, { size: `${SIZE_MIB}M` });
  const { at, uri } = served;
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${SIZE_MIB}`]);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  return served;
}

function write(uri: string, pattern: number): Promise<string> {
  const words = [`write -P ${pattern} 5M 64k`, 'flush', `read -P ${pattern} 5M 64k`];
  return must('qemu-io', ['-f', 'raw', ...words.flatMap((word) => ['-c', word]), uri]);
}

/** The latest set of the store restores to what the volume holds. */
async function assertExact(t: Test, { at, uri }: Served, title: string): Promise<void> {
  await must('nbdcopy', [uri, at('now.raw')]);
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('now.raw'), at('out.raw')]);
  t.pass(`${title} is exact`);
}

function partialFiles(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.partial'),
  );
}

/** Takes the lane away in the middle of a backup; the backup then fails, or completes what it has. */
async function loseInTheMiddle(t: Test, served: Served, lose: () => Promise<void>): Promise<void> {
  const { at, volume, uri, server } = served;
  const words = ['--json', 'backup', '--store', at('store'), '--lane', at('lane'), volume];
  const backup = startCowbell(words);
  await backup.waitForLine(/"event":"progress"/);
  await lose();
  await write(uri, 7);
  const { status, stderr } = await backup.wait();
  t.equal(status, 1, 'a set without one of its lanes is none');
  t.match(stderr, /^cowbell: [^\n]+\n$/);
  t.comment(stderr.trim());
  t.match(await statusOf(volume), { sessions: [], writesWaiting: 0 });
  t.same(await visibleSets(at('store')), []);

  mkdirSync(at('lane'), { recursive: true });
  t.match(await backUp(volume, at('store'), ['--lane', at('lane')]), { level: 'full', lanes: 2 });
  await assertExact(t, served, 'the next backup');
  t.same([...partialFiles(at('store')), ...partialFiles(at('lane'))], [], 'nothing partial is left');
  t.equal((await visibleSets(at('store'))).length, 1);
  await mustCowbell(['store', 'verify', at('store')]);
  await write(uri, 8);
  t.match(await backUp(volume, at('store')), { level: 'incremental', tracks: 1 });
  await assertExact(t, served, 'an incremental on it');
  t.equal((await server.stop()).status, 0);
}

t.test('its directory is removed in the middle of a backup', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const served = await prepare(t);
  mkdirSync(served.at('lane'));
  await loseInTheMiddle(t, served, async () => {
    rmSync(served.at('lane'), { recursive: true });
  });
});

t.test('its disk is unmounted in the middle of a backup', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const served = await prepare(t);
  const disk = await SmallDisk.mount(t, served.at('lane'), '128M');
  if (disk === undefined) return;
  await loseInTheMiddle(t, served, async () => {
    await must('umount', ['--lazy', disk.path]);
  });
});

t.test('it is gone before the next backup', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'qemu-io'])) return;
  const served = await prepare(t);
  const { at, volume, uri, server } = served;
  const disk = await SmallDisk.mount(t, at('lane'), '128M');
  if (disk === undefined) return;
  const lost = String((await backUp(volume, at('store'), ['--lane', at('lane')]))['set']);
  await mustCowbell(['store', 'verify', at('store')]);
  await must('umount', ['--lazy', disk.path]);

  const verified = await cowbell(['--json', 'store', 'verify', at('store')]);
  t.equal(verified.status, 3, verified.stderr);
  t.match(verified.stdout + verified.stderr, lost, 'the set that lost a lane is named');
  const restored = await cowbell(['restore', at('store'), lost, at('out.raw')]);
  t.equal(restored.status, 3, restored.stderr);
  t.match(restored.stderr, /^cowbell: [^\n]+\n$/);

  await write(uri, 9);
  const next = await backUp(volume, at('store'));
  t.match(next, { level: 'full' }, 'what is damaged is not built on');
  t.comment(String(next['reason']));
  await assertExact(t, served, 'the next backup');
  await write(uri, 10);
  t.match(await backUp(volume, at('store')), { level: 'incremental', tracks: 1 });
  await assertExact(t, served, 'an incremental on it');
  const listed = eventsOf(await mustCowbell(['--json', 'store', 'list', at('store')]));
  t.equal(listed.filter(({ event }) => event === 'set').length, 3, 'the damaged set is still listed');
  t.equal((await server.stop()).status, 0);
});
