/**
 * Goal: a filesystem of a point in time is mounted straight from a store, with the files it had then, while the volume
 * has long gone on; and with an overlay it is mounted for writing, sound afterwards, the store as it was.
 *
 * Method: in the virtual machine ext4 is made on a volume and saved unmounted, changed and saved again. Then nobody
 * serves the volume any more, and its directory is gone.
 */
import { rmSync } from 'node:fs';
import t from 'tap';
import { freePort, mustCowbell } from './support/process.ts';
import { backUp, serveVolume, startServer } from './support/served.ts';
import { bootVm, HOST_ADDRESS, type Vm } from './support/vm.ts';

const DEVICE = '/dev/nbd0';

/** Attaches an export while `script` runs. */
async function attached(vm: Vm, port: number, script: string): Promise<string> {
  return await vm.must(
    `nbd-client ${HOST_ADDRESS} ${port} ${DEVICE} -N vol -b 4096 >/dev/null
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done
    ${script}
    nbd-client -d ${DEVICE} >/dev/null`,
  );
}

void t.test('ext4 of two points in time is mounted from a store', async (t) => {
  const vm = await bootVm(t);
  if (vm === undefined) return;
  const port = await freePort();
  const listen = ['--listen', `127.0.0.1:${port}`];
  const { at, volume, server } = await serveVolume(t, { size: '128M', serve: listen });
  await mustCowbell(['store', 'init', at('store')]);
  await attached(
    vm,
    port,
    `mkfs.ext4 -q ${DEVICE}; mount -t ext4 ${DEVICE} /mnt
    mkdir /mnt/files
    for name in $(seq 1 40); do dd if=/dev/urandom of=/mnt/files/$name bs=50k count=$((name % 8)) 2>/dev/null; done
    (cd /mnt/files && sha256sum *) >/run/then
    umount /mnt`,
  );
  const full = await backUp(volume, at('store'));
  await attached(
    vm,
    port,
    `mount -t ext4 ${DEVICE} /mnt
    rm /mnt/files/3 /mnt/files/20; echo changed >/mnt/files/5; cp /mnt/files/7 /mnt/files/new
    (cd /mnt/files && sha256sum *) >/run/later
    umount /mnt`,
  );
  t.match(await backUp(volume, at('store')), { level: 'incremental' });
  t.equal((await server.stop()).status, 0);
  rmSync(volume, { recursive: true });

  const check = (list: string): string => `[ "$(cd /mnt/files && sha256sum *)" = "$(cat ${list})" ]`;
  for (const [set, list] of [
    [String(full['set']), '/run/then'],
    ['latest:vol', '/run/later'],
  ] as const) {
    const serving = await startServer(t, ['--store', at('store'), '--set', set, ...listen]);
    await attached(
      vm,
      port,
      `mount -t ext4 -o ro ${DEVICE} /mnt; ${check(list)}
      ! touch /mnt/files/x 2>/dev/null
      umount /mnt; e2fsck -fn ${DEVICE} >/dev/null`,
    );
    t.equal((await serving.server.stop()).status, 0, `the files of ${set}`);
  }

  const words = ['--store', at('store'), '--set', String(full['set']), '--writable', ...listen];
  const trying = await startServer(t, words);
  await attached(
    vm,
    port,
    `mount -t ext4 ${DEVICE} /mnt; ${check('/run/then')}
    rm -r /mnt/files; for name in $(seq 1 30); do dd if=/dev/urandom of=/mnt/$name bs=64k count=8 2>/dev/null; done
    (cd /mnt && sha256sum [0-9]*) >/run/tried; sync; fstrim /mnt || true; umount /mnt
    e2fsck -fn ${DEVICE} >/dev/null
    mount -t ext4 ${DEVICE} /mnt; (cd /mnt && sha256sum -c /run/tried >/dev/null); umount /mnt`,
  );
  t.equal((await trying.server.stop()).status, 0, 'writes went to the overlay');
  const again = await startServer(t, ['--store', at('store'), '--set', String(full['set']), ...listen]);
  await attached(vm, port, `mount -t ext4 -o ro ${DEVICE} /mnt; ${check('/run/then')}; umount /mnt`);
  t.equal((await again.server.stop()).status, 0, 'and the store is as it was');
  await mustCowbell(['store', 'verify', at('store')]);
  await vm.powerOff();
});
