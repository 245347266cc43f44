/**
 * Goal: a mounted and written ext4 does not notice that its home is lost, where the volume is served with `--survive`: no
 * error reaches it, nothing is remounted, the new home is filled, and holds all that was written.
 *
 * Method: in the virtual machine a writer makes one file after another, some of them synced, and overwrites parts of an
 * older one. The home file is deleted beneath it, once after a backup, onto a spare directory, and once where the deltas
 * alone reach back. The content of a file is made in the guest's memory, and its checksum taken there. The judges: what the
 * guest's programs and kernel say, and on this side e2fsck and the checksums of what debugfs reads from the new home.
 */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import t, { type Test } from 'tap';
import { freePort, must, mustCowbell, run, temporaryDirectory } from './support/process.ts';
import { backUp, eventsOf, startServer, statusOf } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS, type Vm } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
/** Files to be written before something else happens. */
const FILES = 10;
const tool = (name: string): string => findTool(name) ?? name;

/** Goes on until `/run/stop` is there or something fails. A file is noted once it is written. */
const LOAD = `rm -f /run/stop /run/ended /run/failed /run/noted; touch /run/noted
  ( count=0
    until [ -e /run/stop ]; do
      count=$((count + 1))
      dd if=/dev/urandom of=/run/new bs=4k count=$((1 + count * 7 % 40)) || break
      [ $((count % 3)) -eq 0 ] && synced=conv=fsync || synced=
      dd if=/run/new of=/mnt/files/$count bs=64k $synced || break
      dd if=/run/new of=/mnt/files/changing bs=4k seek=$((count * 37 % 500)) conv=notrunc || break
      dd if=/run/new of=/run/changing bs=4k seek=$((count * 37 % 500)) conv=notrunc || break
      (cd /run; sha256sum new) | sed "s/new/$count/" >>/run/noted
    done
    [ -e /run/stop ] || touch /run/failed
    touch /run/ended ) >/run/load 2>&1 &`;

const STOP_LOAD = `touch /run/stop; until [ -e /run/ended ]; do sleep 0.1; done
  [ ! -e /run/failed ] || { tail /run/load; exit 1; }
  (cd /run; sha256sum changing) >>/run/noted; (cd /run/old; sha256sum *) >>/run/noted`;

/** Waits until the load has written some more files. */
async function moreFiles(vm: Vm): Promise<void> {
  await vm.must(`wanted=$(($(wc -l </run/noted) + ${FILES}))
    until [ "$(wc -l </run/noted)" -ge $wanted ] || [ -e /run/failed ]; do sleep 0.1; done
    [ ! -e /run/failed ] || { tail /run/load; exit 1; }`);
}

/** Makes the filesystem, mounts it and begins to write. */
async function startLoad(vm: Vm, port: number): Promise<void> {
  await vm.must(
    `nbd-client ${HOST_ADDRESS} ${port} ${DEVICE} -N vol -b 4096 >/dev/null
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 ${DEVICE}; mount -t ext4 ${DEVICE} /mnt; mkdir /mnt/files
    rm -rf /run/old; mkdir /run/old
    for name in a b c d e f; do dd if=/dev/urandom of=/run/old/$name bs=64k count=16 2>/dev/null; done
    dd if=/dev/urandom of=/run/changing bs=4k count=500 2>/dev/null
    cp /run/old/* /run/changing /mnt/files; sync; ${LOAD}`,
  );
}

/** Holds the new home against what the guest noted, without the guest. */
async function assertHome(t: Test, home: string, files: string, noted: string): Promise<void> {
  const check = await run(tool('e2fsck'), ['-f', '-n', home]);
  if (check.status !== 0) t.comment(check.stdout + check.stderr);
  t.equal(check.status, 0, 'the filesystem in the new home is sound');
  mkdirSync(files);
  await must(tool('debugfs'), ['-R', `rdump /files ${files}`, home]);
  const sums = await run('sha256sum', ['--check', '--strict', '--quiet', '-'], {
    cwd: `${files}/files`,
    input: noted,
  });
  if (sums.status !== 0) t.comment(sums.stdout + sums.stderr);
  t.equal(sums.status, 0, `all ${noted.trim().split('\n').length} files are there`);
}

async function homeOf(volume: string): Promise<string> {
  const [shown] = eventsOf(await mustCowbell(['volume', 'show', '--json', volume]));
  return String(shown?.['home']);
}

async function survive(t: Test, vm: Vm, isBackedUp: boolean): Promise<void> {
  const started = performance.now();
  const comment = (text: string): void =>
    t.comment(`${((performance.now() - started) / 1000).toFixed(1)} s: ${text}`);
  const directory = temporaryDirectory(t);
  const at = (name: string): string => `${directory}/${name}`;
  const [volume, store, home, spare] = [at('vol'), at('store'), at('home.raw'), at('spare')];
  const deltas = ['--delta', at('d1'), '--delta', at('d2')];
  await mustCowbell(['volume', 'create', volume, '--size', '128M', '--home', home, ...deltas]);
  await mustCowbell(['store', 'init', store]);
  mkdirSync(spare);
  const port = await freePort();
  const survival = ['--survive', store, ...(isBackedUp ? ['--spare', spare] : [])];
  const { server } = await startServer(t, [volume, '--listen', `127.0.0.1:${port}`, ...survival]);
  await startLoad(vm, port);
  await moreFiles(vm);
  if (isBackedUp) {
    t.match(await backUp(volume, store), { level: 'full' });
    await moreFiles(vm);
  }

  comment('the home is deleted');
  rmSync(home);
  await moreFiles(vm);
  await server.waitForLine(/has all of its home again/);
  comment('the new home is filled');
  const newHome = await homeOf(volume);
  t.equal(dirname(newHome), isBackedUp ? spare : volume, 'the new home is where it was to be');
  t.notOk(existsSync(home), 'and the old one stays gone');
  await moreFiles(vm);
  // What the guest still has in memory is read from the device.
  await vm.must(`${STOP_LOAD}; sync; echo 3 >/proc/sys/vm/drop_caches
    cd /mnt/files; sha256sum -c /run/noted >/run/checked || { grep -v ': OK$' /run/checked; exit 1; }
    cd /; grep -q '^${DEVICE} /mnt ext4 rw' /proc/mounts; umount /mnt; nbd-client -d ${DEVICE} >/dev/null
    while [ -e /sys/block/nbd0/pid ]; do sleep 0.05; done`);
  comment('unmounted');
  t.notMatch(vm.console(), /error|remount/i, 'the kernel complains of nothing');
  t.notMatch(await vm.must('dmesg'), /I\/O error|EXT4-fs error|Remounting/i);
  const noted = await vm.must('cat /run/noted');
  const status = await statusOf(volume);
  t.match(status, { copies: { notBackedUp: { count: 3, where: [newHome, at('d1'), at('d2')] } } });
  t.equal(status['recovery'], undefined);
  if (isBackedUp) t.match(await backUp(volume, store), { level: 'incremental' });
  t.equal((await server.stop()).status, 0);
  await assertHome(t, newHome, at('files'), noted);
  if (!isBackedUp) return;
  await mustCowbell(['restore', store, 'latest', at('out.raw')]);
  await must('cmp', [newHome, at('out.raw')]);
}

void t.test('the home of a mounted ext4 is deleted under load', async (t) => {
  if (!requireTools(t, ['e2fsck', 'debugfs', 'sha256sum', 'cmp'])) return;
  const vm = await bootVm(t);
  if (vm === undefined) return;
  await t.test('after a backup, onto a spare directory', async (t) => survive(t, vm, true));
  await t.test('without any backup, from the deltas alone', async (t) => survive(t, vm, false));
  await vm.powerOff();
});
