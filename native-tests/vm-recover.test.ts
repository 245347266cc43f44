/**
 * Goal: a filesystem whose volume was lost is mounted at once and used while the volume is restored behind it; what is
 * written meanwhile stays, every file is the one it was, and the filesystem is sound in the end.
 *
 * Method: in the virtual machine ext4 is made and filled with files, unmounted, and backed up; the server is stopped and
 * the home deleted. `recover` runs with `--rate`, so that it is far from its end when the filesystem is mounted, and
 * while files are read, removed, changed and made. The judges are on this side: `status` for what was missing when,
 * e2fsck on the home, and the checksums of the files that debugfs reads from it.
 */
import { rmSync } from 'node:fs';
import t from 'tap';
import { freePort, must, mustCowbell } from './support/process.ts';
import { recoveryOf, startRecovery, until } from './support/recovering.ts';
import { backUp, serveVolume } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS, type Vm } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
const tool = (name: string): string => findTool(name) ?? name;

async function attach(vm: Vm, port: number): Promise<void> {
  await vm.must(
    `nbd-client ${HOST_ADDRESS} ${port} ${DEVICE} -N vol -b 4096 >/dev/null
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done`,
  );
}

async function missing(volume: string): Promise<number> {
  return Number((await recoveryOf(volume))?.['missingTracks'] ?? 0);
}

void t.test('ext4 is mounted and used while its volume is restored', async (t) => {
  if (!requireTools(t, ['e2fsck', 'debugfs'])) return;
  const vm = await bootVm(t);
  if (vm === undefined) return;
  const port = await freePort();
  const listen = ['--listen', `127.0.0.1:${port}`];
  const { at, volume, server } = await serveVolume(t, { size: '192M', serve: listen });
  await mustCowbell(['store', 'init', at('store')]);
  await attach(vm, port);
  await vm.must(
    `mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 ${DEVICE}; mount -t ext4 ${DEVICE} /mnt; mkdir /mnt/files
    for name in $(seq 1 60); do dd if=/dev/urandom of=/mnt/files/$name bs=64k count=$((8 + name % 24)) 2>/dev/null; done
    (cd /mnt/files && sha256sum *) >/run/then
    umount /mnt; nbd-client -d ${DEVICE} >/dev/null`,
  );
  await backUp(volume, at('store'));
  t.equal((await server.stop()).status, 0);
  rmSync(at('home.raw'));

  const startedMs = performance.now();
  const since = (): string => `${((performance.now() - startedMs) / 1000).toFixed(1)} s`;
  const recovering = await startRecovery(t, [at('store'), 'latest', volume, ...listen, '--rate', '1M']);
  await attach(vm, port);
  await vm.must(`mount -t ext4 ${DEVICE} /mnt; ls /mnt/files | wc -l | grep -qx 60`);
  const mounted = await missing(volume);
  t.comment(`mounted after ${since()}, ${mounted} tracks missing`);
  t.ok(mounted > 0, 'mounted before it was restored');
  await vm.must(
    `cd /mnt/files
    grep -E ' (7|33|52)$' /run/then >/run/some; sha256sum -c /run/some >/dev/null
    rm 3 20; echo changed >>5; dd if=/dev/urandom of=9 bs=4k count=3 seek=20 conv=notrunc 2>/dev/null; cp 11 copied
    for name in $(seq 1 20); do dd if=/dev/urandom of=new-$name bs=16k count=$name 2>/dev/null; done
    sync; (cd /mnt/files && sha256sum 5 9 copied new-*) >/run/changed
    cd /; umount /mnt`,
  );
  const used = await missing(volume);
  t.comment(`used and unmounted after ${since()}, ${used} tracks missing`);
  t.ok(used > 0, 'and used before it was restored');
  await vm.must(`nbd-client -d ${DEVICE} >/dev/null`);
  t.equal((await recovering.server.stop()).status, 0);

  const again = await startRecovery(t, [at('store'), 'latest', volume, ...listen]);
  t.match(again.begun, { how: 'resumed' });
  await again.server.waitForLine(/"event":"recovered"/);
  await until('over', async () => (await recoveryOf(volume)) === undefined);
  await attach(vm, port);
  const files = await vm.must(
    `mount -t ext4 -o ro ${DEVICE} /mnt; cd /mnt/files
    sha256sum -c /run/changed >/dev/null
    grep -vE ' (3|20|5|9)$' /run/then >/run/kept; sha256sum -c /run/kept >/dev/null
    ls | wc -l; sha256sum *; cd /; umount /mnt; nbd-client -d ${DEVICE} >/dev/null`,
  );
  const [count, ...sums] = files.trim().split('\n');
  t.equal(Number(count), 60 - 2 + 1 + 20);
  t.match(await backUp(volume, at('store')), { level: 'incremental' });
  t.equal((await again.server.stop()).status, 0);
  await vm.powerOff();

  await must(tool('e2fsck'), ['-fn', at('home.raw')]);
  await must(tool('debugfs'), ['-R', `rdump /files ${at('.')}`, at('home.raw')]);
  const found = (await must('sh', ['-c', `cd ${at('files')} && sha256sum *`])).trim().split('\n');
  t.same(found.toSorted(), sums.toSorted(), 'the files in the home are those that the guest read');
  await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
  await must('cmp', [at('home.raw'), at('out.raw')]);
});
