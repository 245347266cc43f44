/**
 * Goal: a mounted filesystem whose writes wait for a backup (promise 8) far longer than a disk ever takes sees no
 * error, only a pause, whichever way the device was attached; meanwhile reads are answered; when the backup goes
 * on, the writes do, and the set holds the bytes of its freeze.
 *
 * Method: the backup's child process is stopped with SIGSTOP, as if its store hung, and its container holds 1 MiB,
 * so the guest's writes over protected tracks soon wait. Attached by nbd-client as `attach --print` says, the
 * stall outlives the 30 s that the kernel's driver waits where nothing is said; attached by `cowbell attach` with
 * a short timeout, the kernel gives its connection up several times and sends the same writes again.
 */
import { statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { GUEST_COWBELL, GUEST_MEMORY_MIB, guestCowbell } from './support/guest-cowbell.ts';
import { childrenOf, must, mustCowbell, run, startCowbell } from './support/process.ts';
import { eventsOf, serveVolume, statusOf } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS, type Vm, type VmOptions } from './support/vm.ts';

const DEVICE = '/dev/nbd0';
const LARGE_MIB = 24;
/** More than the container takes; less than the 128 requests in which the kernel's queue is full, for reads too. */
const CHANGED_MIB = 6;
const RESULT_MS = 60_000;
const tool = (name: string): string => findTool(name) ?? name;

interface Attachment {
  readonly name: string;
  readonly stallMs: number;
  /** Whether the kernel loses patience meanwhile, and its connection with it. */
  readonly timesOut: boolean;
  readonly vm: () => Promise<VmOptions>;
  /** The guest's script that attaches the device. */
  readonly attach: (uri: string) => Promise<string>;
}

const ATTACHMENTS: readonly Attachment[] = [
  {
    name: 'nbd-client with the arguments of attach --print',
    stallMs: 35_000,
    timesOut: false,
    vm: () => Promise.resolve({}),
    attach: async (uri) => `${(await mustCowbell(['attach', '--print', uri, DEVICE])).trim()}
      until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do sleep 0.05; done`,
  },
  {
    name: 'cowbell attach with a timeout of 4 s',
    stallMs: 15_000,
    timesOut: true,
    vm: async () => ({ files: await guestCowbell(), memoryMib: GUEST_MEMORY_MIB }),
    attach: (uri) => Promise.resolve(`${GUEST_COWBELL} attach ${uri} ${DEVICE} --timeout 4`),
  },
];

/** Waits until the volume's status says that writes wait. */
async function writesWait(volume: string): Promise<number> {
  const untilMs = performance.now() + RESULT_MS;
  for (;;) {
    const { writesWaiting } = await statusOf(volume);
    if (Number(writesWaiting) > 0) return Number(writesWaiting);
    if (performance.now() > untilMs) throw new Error('No write came to wait');
    await sleep(100);
  }
}

/** Stalls the backup under the guest's writes, and lets it go on. */
async function stall(t: Test, vm: Vm, volume: string, child: number, stallMs: number): Promise<void> {
  await vm.must(`rm -f /run/done
    (dd if=/dev/urandom of=/mnt/large bs=1M count=${CHANGED_MIB} conv=notrunc,fsync >/run/dd 2>&1
    echo $? >/run/status; touch /run/done) >/dev/null 2>&1 &`);
  t.comment(`${await writesWait(volume)} writes wait`);
  await sleep(stallMs); // The stall itself; nothing is waited for.
  const reading = await vm.run(
    `echo 3 >/proc/sys/vm/drop_caches; timeout 20 sha256sum /mnt/other | cmp - /run/other && ! [ -e /run/done ]`,
  );
  t.same(reading, { status: 0, output: '' }, 'reads are answered, the writes are not done');
  t.ok((await writesWait(volume)) > 0, 'the writes still wait');
  process.kill(child, 'SIGCONT');
}

for (const { name, stallMs, timesOut, vm: options, attach } of ATTACHMENTS) {
  t.test(name, async (t) => {
    if (!requireTools(t, ['e2fsck', 'debugfs'])) return;
    const vm = await bootVm(t, await options());
    if (vm === undefined) return;
    const { at, volume, server } = await serveVolume(t, { size: '128M', serve: ['--listen', '127.0.0.1:0'] });
    const line = await server.waitForLine(/^ready nbd:/);
    await vm.must(await attach(line.slice('ready '.length).replace('127.0.0.1', HOST_ADDRESS)));
    await vm.must(`mkfs.ext4 -q ${DEVICE}; mount -t ext4 ${DEVICE} /mnt
      dd if=/dev/urandom of=/mnt/other bs=1M count=2 2>/dev/null
      dd if=/dev/urandom of=/mnt/large bs=1M count=${LARGE_MIB} 2>/dev/null
      sync; sha256sum /mnt/other >/run/other`);
    const frozen = (await vm.must('sha256sum </mnt/large')).slice(0, 64);

    await mustCowbell(['store', 'init', at('store')]);
    const words = ['--json', 'backup', '--store', at('store'), volume, '--container', 'memory:1M'];
    const backup = startCowbell(words);
    await backup.waitForLine(/"event":"progress"/);
    const [child = 0, ...others] = childrenOf(server.child.pid);
    t.ok(child > 0 && others.length === 0, 'one session, one child');
    process.kill(child, 'SIGSTOP');
    await stall(t, vm, volume, child, stallMs);

    await vm.must('until [ -e /run/done ]; do sleep 0.1; done; cat /run/dd; [ "$(cat /run/status)" = 0 ]');
    const { status, stdout } = await backup.wait();
    if (status !== 0) t.comment(stdout);
    t.equal(status, 0, 'the backup succeeds');
    t.ok(eventsOf(stdout).some(({ event, diverted }) => event === 'set' && Number(diverted) > 0));
    await vm.must(`sync; sha256sum /mnt/large >/run/large; umount /mnt; e2fsck -fn ${DEVICE}
      mount -t ext4 -o ro ${DEVICE} /mnt; sha256sum -c /run/large /run/other; umount /mnt`);
    const lost = Number((await vm.run("dmesg | grep -c 'nbd0: .*timed out'")).output);
    t.comment(`the kernel gave up on ${lost} requests`);
    t.equal(lost > 0, timesOut);
    t.notMatch(vm.console(), /I\/O error|EXT4-fs (error|warning)/);
    await vm.powerOff();
    t.equal((await server.stop()).status, 0);

    await mustCowbell(['restore', at('store'), 'latest', at('out.raw')]);
    await run(tool('e2fsck'), ['-p', at('out.raw')]);
    await must(tool('debugfs'), ['-R', `dump /large ${at('large')}`, at('out.raw')]);
    t.equal(statSync(at('large')).size, LARGE_MIB * 1_048_576);
    t.equal((await must('sha256sum', [at('large')])).slice(0, 64), frozen, 'the set is of its freeze');
  });
}
