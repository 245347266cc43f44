/**
 * Goal: a filesystem on a device that `cowbell attach` made survives the end of the server, however it ends: the
 * writer on it waits and goes on without an error, nothing that was synced is lost, the filesystem is sound.
 *
 * Method: in the virtual machine a writer writes, syncs and notes the checksum of one file after another, and
 * stops at the first error. Meanwhile the server on this side is killed twice with SIGKILL and once ended with
 * SIGTERM, and started again on the same port; at last it hangs for longer than the kernel waits. Before the
 * SIGTERM the process that watches the device is killed too, and another one takes the device over.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { freePort, mustCowbell, temporaryDirectory } from './support/process.ts';
import { GUEST_COWBELL, GUEST_MEMORY_MIB, guestCowbell } from './support/guest-cowbell.ts';
import { startServer } from './support/served.ts';
import { bootVm, HOST_ADDRESS } from './support/vm.ts';
import { join } from 'node:path';

const DEVICE = '/dev/nbd0';
/** Short, so that what was in flight at a kill is soon sent again. */
const TIMEOUT_SECONDS = 5;
const AWAY_MS = 1500;
/** Longer than the kernel waits for an answer. */
const HANG_MS = 1000 * (TIMEOUT_SECONDS + 3);

/** Notes a file only after its content and its name are synced; the first failure ends it. */
const WRITER = `mkdir /mnt/files
  (count=0
  while [ ! -e /run/stop ]; do
    count=$((count + 1))
    name=$((count % 200)).$count
    dd if=/dev/urandom of=/mnt/files/$name bs=4k count=$((1 + count % 40)) conv=fsync 2>/run/dd || break
    rm -f /mnt/files/$((count % 200)).$((count - 200)) || break
    sync /mnt/files || break
    (cd /mnt/files && sha256sum $name) >>/run/noted || break
  done
  [ -e /run/stop ] || { cat /run/dd; echo "file $count"; } >/run/failed
  echo $count >/run/count
  ) >/dev/null 2>&1 &`;

void t.test('a mounted filesystem survives its server, twice killed and once ended', async (t) => {
  const started = performance.now();
  const since = (): string => `${((performance.now() - started) / 1000).toFixed(1)} s`;
  const vm = await bootVm(t, { files: await guestCowbell(), memoryMib: GUEST_MEMORY_MIB });
  if (vm === undefined) return;
  t.comment(`booted after ${since()}`);
  const volume = join(temporaryDirectory(t), 'vol');
  await mustCowbell(['volume', 'create', volume, '--size', '192M']);
  const port = await freePort();
  const words = [volume, '--listen', `127.0.0.1:${port}`];
  let { server } = await startServer(t, words);

  const uri = `nbd://${HOST_ADDRESS}:${port}/vol`;
  const attach = `${GUEST_COWBELL} attach ${uri} ${DEVICE} --timeout ${TIMEOUT_SECONDS} --connections 2`;
  t.match(await vm.must(attach), /^Attached \/dev\/nbd0/);
  t.comment(`attached after ${since()}`);
  await vm.must(`mkfs.ext4 -q ${DEVICE}; mount -t ext4 ${DEVICE} /mnt; ${WRITER}`);

  const goOn = async (): Promise<void> => {
    await vm.must(`touch /run/noted; wanted=$(($(wc -l </run/noted) + 20))
      until [ "$(wc -l </run/noted)" -ge $wanted ] || [ -e /run/failed ]; do sleep 0.1; done
      ! cat /run/failed 2>/dev/null`);
  };
  await goOn();
  for (const signal of ['SIGKILL', 'SIGKILL', 'SIGTERM'] as const) {
    if (signal === 'SIGTERM') {
      await vm.must("kill -9 $(ps | grep '[a]ttach-supervisor' | awk '{ print $1 }')");
      t.match(await vm.must(attach), /^Watching again \/dev\/nbd0/);
    }
    await server.stop(signal);
    await sleep(AWAY_MS); // The device is without a server this long; nothing is waited for.
    t.match(await vm.run('cat /run/failed'), { status: 1 }, 'the writer waits');
    ({ server } = await startServer(t, words));
    const back = performance.now();
    await goOn();
    t.comment(
      `${signal}: 20 more files ${((performance.now() - back) / 1000).toFixed(1)} s after the server's return`,
    );
  }
  server.child.kill('SIGSTOP');
  await sleep(HANG_MS); // The kernel gives its connections up meanwhile.
  server.child.kill('SIGCONT');
  await goOn();
  t.match(await vm.run(`${GUEST_COWBELL} detach ${DEVICE}`), { status: 1, output: /is mounted/ });
  await vm.must(
    'touch /run/stop; until [ -e /run/count ]; do sleep 0.1; done; ! cat /run/failed 2>/dev/null',
  );
  t.comment((await vm.must('cat /run/count; dmesg | grep -e cowbell: -e nbd0')).trim());
  await vm.must(`umount /mnt; e2fsck -fn ${DEVICE}
    mount -t ext4 -o ro ${DEVICE} /mnt; cd /mnt/files
    ls | while read -r name; do grep " $name$" /run/noted || echo "$name was not noted" >&2; done >/run/left
    sha256sum -c /run/left; cd /; umount /mnt`);
  t.ok(Number(await vm.must('wc -l </run/left')) >= 80, 'enough files to be sure');
  await vm.must(`${GUEST_COWBELL} detach ${DEVICE}
    until ! ps | grep -q '[a]ttach-supervisor'; do sleep 0.1; done`);
  t.notMatch(vm.console(), /I\/O error/);
  t.comment(`done after ${since()}`);
  await vm.powerOff();
});
