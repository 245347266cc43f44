/**
 * Goal: the virtual machine that other native tests build on can be trusted: its kernel attaches a block
 * device over NBD, and scripts come back whole, in order and with their exit status, also when they print
 * much, print what looks like the protocol, or leave a background process behind.
 *
 * Method: nbdkit's memory disk stands in for the server, so that a failure here is never Cowbell's.
 */
import t from 'tap';
import { freePort, Running } from './support/process.ts';
import { requireTools } from './support/tools.ts';
import { bootVm, HOST_ADDRESS } from './support/vm.ts';

void t.test('the guest attaches a device, makes ext4 on it and finds its file again', async (t) => {
  if (!requireTools(t, ['nbdkit'])) return;
  const vm = await bootVm(t, { files: { '/data/sent.ts': import.meta.filename } });
  if (vm === undefined) return;
  const port = await freePort();
  const server = new Running('nbdkit', [
    '--foreground',
    '--ipaddr=127.0.0.1',
    `--port=${port}`,
    'memory',
    '256M',
  ]);
  t.teardown(async () => await server.stop());

  const attach = `until nbd-client ${HOST_ADDRESS} ${port} /dev/nbd0 -b 4096; do sleep 0.1; done`;
  await vm.must(`${attach}
    mkfs.ext4 -q /dev/nbd0
    mount -t ext4 /dev/nbd0 /mnt
    cp /data/sent.ts /mnt/kept.ts
    umount /mnt`);
  const check = await vm.run('e2fsck -fn /dev/nbd0');
  t.equal(check.status, 0, check.output);
  await vm.must('mount -t ext4 -o ro /dev/nbd0 /mnt; cmp /data/sent.ts /mnt/kept.ts; umount /mnt');
  await vm.must('nbd-client -d /dev/nbd0');
  await vm.powerOff();
  t.equal(server.ended, undefined, 'the server outlives its client');
});

void t.test('scripts answer whole, in order and with their status', async (t) => {
  const vm = await bootVm(t);
  if (vm === undefined) return;
  t.same(await vm.run('echo out; echo err >&2; exit 7'), { status: 7, output: 'out\nerr\n' });
  t.same(await vm.run('printf "ready\\ndone 2 0 5\\nno line end"'), {
    status: 0,
    output: 'ready\ndone 2 0 5\nno line end',
  });
  const long = await vm.run('seq 1 200000');
  t.equal(long.output, Array.from({ length: 200_000 }, (_, index) => `${index + 1}\n`).join(''));

  await vm.must('(while true; do echo x; echo y >>/run/ticks; sleep 0.01; done) & echo $! >/run/pid');
  t.same(await vm.run('true'), { status: 0, output: '' }, 'a background writer does not mix in');
  await vm.must('until [ "$(wc -l </run/ticks)" -gt 20 ]; do sleep 0.01; done; kill $(cat /run/pid)');
  await t.rejects(vm.must('false\necho not reached'), /status 1/);
  await vm.powerOff();
  await t.rejects(vm.run('true'), /has stopped/);
});

void t.test('a script that takes too long fails and stops the machine', async (t) => {
  const vm = await bootVm(t);
  if (vm === undefined) return;
  await t.rejects(vm.run('sleep 1000', { timeoutMs: 200 }), /sleep 1000\nwithin 200 ms/);
  await vm.kill();
});
