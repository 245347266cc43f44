/**
 * Goal: clients on a Unix socket and over TCP use one volume at the same time, and each sees what the other
 * wrote as soon as it was answered; a flush through one covers both.
 *
 * Method: one volume on its own socket, a second one and a TCP port; qemu-io and nbdcopy on all three.
 */
import { statSync } from 'node:fs';
import t from 'tap';
import { freePort, must } from './support/process.ts';
import { serveVolume, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';

t.test('three ways to one volume', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy', 'qemu-img'])) return;
  const { at, volume, server } = await serveVolume(t, { size: '8M' });
  await server.stop();
  const port = await freePort();
  const words = [volume, '--socket', at('second.sock'), '--listen', `127.0.0.1:${port}`];
  const { server: several, uri } = await startServer(t, words);
  await several.waitForLine(/^ready nbd:/);
  const second = `nbd+unix:///vol?socket=${at('second.sock')}`;
  const tcp = `nbd://127.0.0.1:${port}/vol`;
  t.match(several.stdout.split('\n'), [`ready ${uri}`, `ready ${second}`, `ready ${tcp}`]);
  t.equal(statSync(at('second.sock')).mode & 0o777, 0o600);

  const io = (target: string, ...commands: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), target]);
  await io(uri, 'write -P 1 0 64k');
  await io(second, 'read -P 1 0 64k', 'write -P 2 64k 64k');
  await io(tcp, 'read -P 1 0 64k', 'read -P 2 64k 64k', 'write -P 3 128k 64k');
  await Promise.all([
    io(uri, 'write -P 4 1M 1M', 'flush'),
    io(second, 'write -P 5 2M 1M', 'flush'),
    io(tcp, 'write -P 6 3M 1M', 'flush'),
  ]);
  await io(uri, 'read -P 3 128k 64k', 'read -P 4 1M 1M', 'read -P 5 2M 1M', 'read -P 6 3M 1M');

  await Promise.all([
    must('nbdcopy', [uri, at('unix.raw')]),
    must('nbdcopy', ['--connections=4', tcp, at('tcp.raw')]),
  ]);
  await must('cmp', [at('unix.raw'), at('tcp.raw')]);
  t.equal((await several.stop()).status, 0);
  await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', at('home.raw'), at('tcp.raw')]);
  t.throws(() => statSync(at('second.sock')), { code: 'ENOENT' }, 'a clean stop takes its sockets with it');
});
