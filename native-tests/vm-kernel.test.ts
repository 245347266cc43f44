/**
 * Goal: the Linux kernel uses a volume as its disk: it attaches with the arguments that `attach --print` gives,
 * makes ext4 on it, mounts, writes, trims and unmounts, and the filesystem is sound. Backed up in full and then
 * incrementally while mounted, with a writer that never rests, each set restores to a filesystem that its
 * journal alone makes sound, with every file that was synced before the freeze.
 *
 * Method: the guest writes checksums of its files and syncs before each backup; e2fsck, debugfs and sha256sum on
 * this side judge what was restored.
 */
import { mkdirSync, statSync } from 'node:fs';
import t, { type Test } from 'tap';
import { must, mustCowbell, run } from './support/process.ts';
import { backUp, type Served, serveVolume } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS, type Vm } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
const tool = (name: string): string => findTool(name) ?? name;

async function serveToGuest(t: Test, vm: Vm): Promise<Served> {
  const served = await serveVolume(t, { size: '192M', serve: ['--listen', '127.0.0.1:0'] });
  const line = await served.server.waitForLine(/^ready nbd:/);
  const uri = line.slice('ready '.length).replace('127.0.0.1', HOST_ADDRESS);
  const command = (await mustCowbell(['attach', '--print', uri, DEVICE])).trim();
  await vm.must(`${command}
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done`);
  return served;
}

t.test('the kernel makes, uses, trims and checks a filesystem', async (t) => {
  if (!requireTools(t, ['e2fsck'])) return;
  const vm = await bootVm(t, { files: { '/data': import.meta.dirname } });
  if (vm === undefined) return;
  const { at, server } = await serveToGuest(t, vm);
  t.match(await vm.must('cat /sys/block/nbd0/queue/logical_block_size'), /^4096$/m);
  await vm.must(`mkfs.ext4 -q ${DEVICE}
    mount -t ext4 ${DEVICE} /mnt
    cp -r /data /mnt/data
    dd if=/dev/urandom of=/mnt/large bs=1M count=40 2>/dev/null
    (cd /mnt && find . -type f | xargs sha256sum) >/run/manifest
    sync
    dd if=/dev/zero of=/mnt/gone bs=1M count=40 2>/dev/null
    sync; rm /mnt/gone; sync
    fstrim /mnt
    umount /mnt`);
  await vm.must(`e2fsck -fn ${DEVICE}
    mount -t ext4 -o ro ${DEVICE} /mnt
    cd /mnt; sha256sum -c /run/manifest
    cd /; umount /mnt; nbd-client -d ${DEVICE}`);
  t.notMatch(vm.console(), /I\/O error|nbd0: .*(timed out|failed)/);
  t.equal((await server.stop()).status, 0);
  await must(tool('e2fsck'), ['-fn', at('home.raw')]);
  t.ok(statSync(at('home.raw')).blocks * 512 < 70 * 1_048_576, 'what was trimmed takes no room');
  await vm.powerOff();
});

/** Creates, overwrites, appends, renames and removes files until it is stopped. */
const WRITER = `mkdir /mnt/busy
  (count=0
  while [ ! -e /run/stop ]; do
    count=$((count + 1))
    file=/mnt/busy/$((count % 23))
    dd if=/dev/urandom of=$file bs=16k count=$((count % 9 + 1)) conv=notrunc 2>/dev/null
    echo "line $count" >>/mnt/busy/log
    [ $((count % 5)) -ne 0 ] || mv $file $file.old
    [ $((count % 11)) -ne 0 ] || rm -f /mnt/busy/*.old
    [ $((count % 7)) -ne 0 ] || sync
    echo $count >/run/count
  done; touch /run/stopped) &
  until [ -s /run/count ]; do sleep 0.05; done`;

/** Adds files, then writes and syncs the checksums of all but the writer's. */
async function addFiles(vm: Vm, name: string): Promise<string> {
  return await vm.must(`mkdir -p /mnt/files
    for i in $(seq 1 40); do
      dd if=/dev/urandom of=/mnt/files/${name}$i bs=1k count=$((i * 7 + 1)) 2>/dev/null
    done
    ln -sf ${name}1 /mnt/files/link
    cd /mnt; find files -type f | sort | xargs sha256sum >/mnt/manifest
    sync; cat /mnt/manifest`);
}

/** Restores a set and holds the filesystem in it against the manifest of its time. */
async function assertRestores(t: Test, served: Served, set: string, manifest: string): Promise<void> {
  const { at } = served;
  const image = at(`${set}.raw`);
  const files = at(`${set}.files`);
  await mustCowbell(['restore', at('store'), set, image]);
  const replay = await run(tool('e2fsck'), ['-p', image]);
  t.ok(replay.status === 0 || replay.status === 1, `e2fsck -p: ${replay.stdout}`);
  const check = await run(tool('e2fsck'), ['-fn', image]);
  t.equal(check.status, 0, check.stdout);
  mkdirSync(files);
  await must(tool('debugfs'), ['-R', `rdump /files ${files}`, image]);
  const sums = await run('sha256sum', ['--check', '--strict', '--quiet', '-'], {
    cwd: files,
    input: manifest,
  });
  t.equal(sums.status, 0, sums.stdout);
}

t.test('backed up in full and incrementally while mounted and written', async (t) => {
  if (!requireTools(t, ['e2fsck', 'debugfs', 'sha256sum'])) return;
  const vm = await bootVm(t);
  if (vm === undefined) return;
  const served = await serveToGuest(t, vm);
  const { at, volume, server } = served;
  await mustCowbell(['store', 'init', at('store')]);
  await vm.must(`mkfs.ext4 -q ${DEVICE}; mount -t ext4 ${DEVICE} /mnt
    dd if=/dev/urandom of=/mnt/large bs=1M count=40 2>/dev/null
    ${WRITER}`);

  const first = await addFiles(vm, 'first');
  const full = await backUp(volume, at('store'), [
    '--container',
    'memory:1M',
    '--container',
    `${at('.')}:8M`,
  ]);
  const second = await addFiles(vm, 'second');
  const incremental = await backUp(volume, at('store'));
  t.match(full, { level: 'full' });
  t.match(incremental, { level: 'incremental' });
  t.ok(Number(incremental['tracks']) < Number(full['tracks']), 'the incremental one is smaller');

  await vm.must(`touch /run/stop
    until [ -e /run/stopped ]; do sleep 0.05; done
    umount /mnt; e2fsck -fn ${DEVICE} >/dev/null; nbd-client -d ${DEVICE}`);
  t.notMatch(vm.console(), /I\/O error|nbd0: .*(timed out|failed)/);
  await vm.powerOff();
  t.equal((await server.stop()).status, 0);

  t.equal(first.trim().split('\n').length, 40);
  t.equal(second.trim().split('\n').length, 80);
  await assertRestores(t, served, String(full['set']), first);
  await assertRestores(t, served, String(incremental['set']), second);
});
