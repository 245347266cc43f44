/**
 * Goal: the Linux kernel with four connections to one volume finds it as consistent as with one: writers in
 * parallel, each syncing its files, on ext4 and on xfs; what was synced is there after a remount, both checkers
 * are content, and tools on this side read the same bytes.
 *
 * Method: nbd-client -C 4 in the virtual machine, as `attach --print --connections 4` says it. Each writer's fsync
 * covers writes that went over any of the connections. At the end the home is compared with what qemu-img and
 * nbdcopy read.
 *
 * A slow guest can lose a connection inside its own kernel: each connection has a work item that receives for as
 * long as it lives, and when the kernel is late in making a worker thread for each, the queue's one rescuer thread
 * takes several items and runs only the first; replies to the others stay in the guest's sockets for ever. It shows
 * by the rescuer's name, `nbd0-recv+...`; then the guest attaches again.
 */
import t from 'tap';
import { must, mustCowbell } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
const CONNECTION_COUNT = 4;
const tool = (name: string): string => findTool(name) ?? name;

/** Attaches, as often as it takes to have a worker for each connection; says how often. */
const attachWith = (command: string): string => `attachments=0
  while attachments=$((attachments + 1)); do
    ${command} >/dev/null
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done
    sleep 0.5
    grep -q '^nbd0-recv+' /proc/[0-9]*/comm 2>/dev/null || break
    nbd-client -d ${DEVICE} >/dev/null
    while [ -e /sys/block/nbd0/pid ]; do sleep 0.05; done
  done
  echo $attachments`;

/** Six writers at once; each syncs every file it writes, and rewrites some of its own in place. */
const WRITERS = `cd /mnt
  for writer in 1 2 3 4 5 6; do
    (mkdir $writer
    for i in $(seq 1 8); do
      dd if=/dev/urandom of=$writer/$i bs=$((i * 3))k count=9 conv=fsync 2>/dev/null || exit 1
      dd if=/dev/urandom of=$writer/1 bs=4k count=1 seek=$((i % 6)) conv=notrunc,fsync 2>/dev/null || exit 1
      [ $((i % 5)) -ne 0 ] || rm $writer/$((i - 1))
    done
    touch /run/written-$writer) &
  done
  wait
  for writer in 1 2 3 4 5 6; do [ -e /run/written-$writer ]; rm /run/written-$writer; done
  find . -type f | sort | xargs sha256sum >/run/sums
  cd /`;

for (const [filesystem, size, check] of [
  ['ext4', '192M', `e2fsck -fn ${DEVICE}`],
  ['xfs', '384M', `xfs_repair -n ${DEVICE}`],
] as const) {
  t.test(`${filesystem} over four connections`, async (t) => {
    if (!requireTools(t, ['qemu-img', 'nbdcopy', 'e2fsck', 'xfs_repair'])) return;
    const vm = await bootVm(t, { processorCount: CONNECTION_COUNT });
    if (vm === undefined) return;
    const { at, uri, server } = await serveVolume(t, { size, serve: ['--listen', '127.0.0.1:0'] });
    const line = await server.waitForLine(/^ready nbd:/);
    const guestUri = line.slice('ready '.length).replace('127.0.0.1', HOST_ADDRESS);
    const words = ['attach', '--print', '--connections', String(CONNECTION_COUNT), guestUri, DEVICE];
    const command = (await mustCowbell(words)).trim();
    t.match(command, / -connections 4 /);
    const attachments = await vm.must(attachWith(command));
    t.comment(`attached ${attachments.trim()} times`);
    const established = await vm.must('netstat -tn | grep -c ESTABLISHED');
    t.equal(Number(established), CONNECTION_COUNT, 'the guest has as many connections');

    await vm.must(`mkfs.${filesystem} -q ${DEVICE}; mount -t ${filesystem} ${DEVICE} /mnt
      ${WRITERS}
      umount /mnt`);
    const runs = await vm.must(`mount -t debugfs debugfs /sys/kernel/debug
      cat /sys/kernel/debug/block/nbd0/hctx?/run`);
    t.comment(`runs of each connection's queue: ${runs.trim().split('\n').join(', ')}`);
    t.equal(runs.split('\n').filter((count) => Number(count) > 10).length, CONNECTION_COUNT, 'all are used');
    await vm.must(check);
    // The page cache knows nothing of the device any more: what is read now comes from the server.
    await vm.must(`echo 3 >/proc/sys/vm/drop_caches
      mount -t ${filesystem} -o ro ${DEVICE} /mnt
      cd /mnt; [ $(wc -l </run/sums) -gt 40 ]; sha256sum -c /run/sums
      cd /; umount /mnt; nbd-client -d ${DEVICE}`);
    t.notMatch(vm.console(), /I\/O error|nbd0: .*(timed out|failed)/);
    await vm.powerOff();

    await must('nbdcopy', [uri, at('copy.raw')]);
    await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, at('copy.raw')]);
    t.equal((await server.stop()).status, 0);
    await must('cmp', [at('home.raw'), at('copy.raw')]);
    const judge = filesystem === 'ext4' ? ['e2fsck', '-fn'] : ['xfs_repair', '-n', '-f'];
    await must(tool(judge[0] ?? ''), [...judge.slice(1), at('copy.raw')]);
  });
}
