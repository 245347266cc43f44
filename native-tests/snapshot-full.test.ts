/**
 * Goal: no room for what snapshots keep. With `--snapshot-full refuse` the client's write fails with ENOSPC, nothing
 * else is the worse, and a deleted snapshot makes room again; with `drop` the write succeeds, the oldest snapshot is
 * gone with its export, and the server says so.
 *
 * Method: the volume's directory on a small tmpfs, which is filled up; its home elsewhere.
 */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cowbell, must, mustCowbell, run, temporaryDirectory } from './support/process.ts';
import { startServer, statusOf } from './support/served.ts';
import { SmallDisk } from './support/small-disk.ts';
import { requireTools } from './support/tools.ts';

async function prepare(t: Test, policy: 'refuse' | 'drop') {
  const directory = temporaryDirectory(t);
  const disk = await SmallDisk.mount(t, join(directory, 'disk'), '24M');
  if (disk === undefined) return undefined;
  const volume = join(disk.path, 'vol');
  const words = ['--size', '16M', '--home', join(directory, 'home.raw'), '--snapshot-full', policy];
  await mustCowbell(['volume', 'create', volume, ...words]);
  const { server, uri } = await startServer(t, [volume]);
  const io = (...commands: readonly string[]) =>
    run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  const snapshotUri = (name: string): string => `nbd+unix:///vol%40${name}?socket=${volume}/nbd.sock`;
  const holds = async (target: string, ...commands: readonly string[]): Promise<void> => {
    const reads = commands.flatMap((command) => ['-c', `read ${command}`]);
    await must('qemu-io', ['-f', 'raw', '-r', ...reads, target]);
  };
  t.equal((await io('write -P 1 0 16M', 'flush')).status, 0);
  await mustCowbell(['snapshot', 'create', 'one', volume]);
  return { disk, volume, server, uri, io, snapshotUri, holds };
}

t.test('refuse', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const prepared = await prepare(t, 'refuse');
  if (prepared === undefined) return;
  const { disk, volume, server, uri, io, snapshotUri, holds } = prepared;
  disk.fill(3 * 1024 * 1024);
  const refused = await io('write -P 2 0 8M');
  t.not(refused.status, 0);
  t.match(refused.stdout + refused.stderr, /No space left on device/);
  t.equal((await statusOf(volume))['poisoned'], undefined);
  await holds(snapshotUri('one'), '-P 1 0 16M');
  await holds(uri, '-P 1 8M 8M');
  const again = await io('write -P 2 12M 3M');
  t.match(again.stdout + again.stderr, /No space left on device/);
  await holds(snapshotUri('one'), '-P 1 0 16M');

  // What is kept already needs no room.
  const kept = Number((await must('du', ['-sb', join(volume, 'snapshots')])).split('\t')[0]);
  t.ok(kept > 65_536, `${kept} bytes were kept`);
  await mustCowbell(['snapshot', 'delete', volume, 'one']);
  t.equal((await io('write -P 3 0 16M', 'flush')).status, 0);
  await holds(uri, '-P 3 0 16M');
  disk.free();
  await mustCowbell(['snapshot', 'create', 'two', volume]);
  t.equal((await io('write -P 4 0 1M', 'flush')).status, 0);
  await holds(snapshotUri('two'), '-P 3 0 16M');
  t.match(await server.stop(), { status: 0, stderr: /^(cowbell: Command 1 on [^\n]*no space[^\n]*\n){2}$/i });
});

t.test('drop', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo'])) return;
  const prepared = await prepare(t, 'drop');
  if (prepared === undefined) return;
  const { disk, volume, server, uri, io, snapshotUri, holds } = prepared;
  t.equal((await io('write -P 2 0 4M', 'flush')).status, 0);
  await mustCowbell(['snapshot', 'create', 'two', volume]);
  disk.fill(2 * 1024 * 1024);
  t.equal((await io('write -P 3 0 5M', 'flush')).status, 0, 'no write fails');
  await holds(uri, '-P 3 0 5M', '-P 1 5M 11M');
  t.match(server.stderr, /^cowbell: Snapshot one of vol was dropped: [^\n]*no space[^\n]*\n$/i);
  t.not((await run('nbdinfo', [snapshotUri('one')])).status, 0);
  await holds(snapshotUri('two'), '-P 2 0 4M', '-P 1 4M 12M');
  t.match(await cowbell(['--json', 'snapshot', 'list', volume]), {
    status: 0,
    stdout: /^[^\n]*"name":"two"[^\n]*\n[^\n]*done/,
  });
  t.equal((await statusOf(volume))['poisoned'], undefined);
  t.equal((await server.stop()).status, 0);
});

t.test('a rollback that finds no room can be done again', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdinfo'])) return;
  const prepared = await prepare(t, 'refuse');
  if (prepared === undefined) return;
  const { disk, volume, server, uri, io, holds } = prepared;
  t.equal((await io('write -P 2 0 6M', 'flush')).status, 0);
  await mustCowbell(['snapshot', 'create', 'two', volume]);
  disk.fill(2 * 1024 * 1024);
  t.match(await cowbell(['snapshot', 'rollback', volume, 'one']), { status: 1, stderr: /no space/i });
  t.not((await run('nbdinfo', [uri])).status, 0, 'what is neither the one nor the other is not exported');
  t.match(await cowbell(['snapshot', 'create', 'three', volume]), { status: 1, stderr: /in part only/ });
  t.match(await cowbell(['snapshot', 'delete', volume, 'one']), { status: 1, stderr: /in part only/ });
  disk.free();
  await mustCowbell(['snapshot', 'rollback', volume, 'one']);
  await holds(uri, '-P 1 0 16M');
  t.equal((await server.stop()).status, 0);
});
