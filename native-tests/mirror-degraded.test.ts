/**
 * Goal: a volume that is mirrored onto a file and another server's export goes on when that server is killed, says so,
 * and brings it what it missed when it is back; both hold the same then. A scrub finds what somebody changed behind the
 * volume's back, and repairs it.
 *
 * Method: nbdkit is the other server. qemu-io writes patterns and looks at them, nbdcopy moves random content; the files
 * of both members are compared in the end.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, openSync, closeSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cowbell, must, mustCowbell, Running, temporaryDirectory } from './support/process.ts';
import { until } from './support/recovering.ts';
import { startServer, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const SIZE_MIB = 32;

interface Member {
  readonly state?: string;
  readonly missingTracks?: number;
}

async function membersOf(volume: string): Promise<readonly Member[]> {
  const { parts } = await statusOf(volume);
  const [part] = Array.isArray(parts) ? parts : [];
  return part?.members ?? [];
}

async function statesOf(volume: string): Promise<string> {
  return (await membersOf(volume)).map(({ state }) => state).join(' ');
}

/** Starts nbdkit and waits for its socket. */
async function startPeer(t: Test, socket: string, path: string): Promise<Running> {
  const peer = new Running('nbdkit', ['-f', '-U', socket, 'file', path]);
  t.teardown(async () => {
    if (peer.ended === undefined) await peer.stop('SIGKILL');
  });
  await until('listening', () => existsSync(socket));
  return peer;
}

function qemuIo(uri: string, ...commands: readonly string[]): Promise<string> {
  return must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
}

t.test('a member is killed and comes back', async (t) => {
  if (!requireTools(t, ['nbdkit', 'qemu-io', 'nbdcopy'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const [volume, local, remote, socket] = [at('vol'), at('local.raw'), at('remote.raw'), at('k.sock')];
  await must('truncate', ['-s', `${SIZE_MIB}M`, remote]);
  const first = await startPeer(t, socket, remote);
  const uri = `nbd+unix:///?socket=${socket}`;
  const homes = ['--home', uri, '--home', local];
  await mustCowbell(['volume', 'create', volume, '--size', `${SIZE_MIB}M`, '--layout', 'mirror', ...homes]);
  const { server, uri: disk } = await startServer(t, [volume]);
  await until('equal', async () => (await statesOf(volume)) === 'in-sync in-sync');

  writeFileSync(at('in.raw'), randomBytes(16 * MIB));
  await must('nbdcopy', ['--flush', at('in.raw'), disk]);
  first.child.kill('SIGKILL');
  await first.wait();
  await qemuIo(disk, 'write -P 0x5a 1M 64k', 'write -P 0x5b 20M 1M', 'flush', 'read -P 0x5a 1M 64k');
  t.equal(await statesOf(volume), 'away in-sync');
  t.match(server.stderr, /Volume vol goes on without nbd\+unix:.*, with 1 of 2 copies/);
  const [gone] = await membersOf(volume);
  t.ok(
    Number(gone?.missingTracks) >= 17 && Number(gone?.missingTracks) < 100,
    `${gone?.missingTracks} missing`,
  );
  const degraded = await cowbell(['volume', 'scrub', volume]);
  t.equal(degraded.status, 0);
  t.match(degraded.stderr, /one current member, and were not compared/);

  const second = await startPeer(t, at('k2.sock'), remote);
  await must('mv', [at('k2.sock'), socket]);
  await until('rebuilt', async () => (await statesOf(volume)) === 'in-sync in-sync');
  await until('told', () => server.stderr.includes('All copies of volume vol are current again'));
  await qemuIo(disk, 'write -P 0x5c 2M 4k', 'flush', 'read -P 0x5a 1M 64k', 'read -P 0x5b 20M 1M');
  t.match(await mustCowbell(['volume', 'scrub', volume]), /all copies are equal/);

  const descriptor = openSync(remote, 'r+');
  writeSync(descriptor, Buffer.alloc(512, 1), 0, 512, 3 * MIB);
  closeSync(descriptor);
  const found = await cowbell(['--json', 'volume', 'scrub', volume]);
  t.equal(found.status, 3);
  t.match(found.stdout, /"event":"difference","first":48/);
  // The first member counts, and that is the one which was changed.
  t.match(await mustCowbell(['volume', 'scrub', '--repair', volume]), /1 tracks differed, 1 are repaired/);
  t.match(await mustCowbell(['volume', 'scrub', volume]), /all copies are equal/);
  t.equal((await server.stop()).status, 0);
  await second.stop();
  await must('cmp', [local, remote]);
});

t.test('another device takes the place of a member that was lost', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const volume = at('vol');
  const homes = ['--home', at('a.raw'), '--home', at('b.raw')];
  await mustCowbell(['volume', 'create', volume, '--size', `${SIZE_MIB}M`, '--layout', 'mirror', ...homes]);
  const { server, uri } = await startServer(t, [volume]);
  await qemuIo(uri, 'write -P 0x11 0 8M', 'flush');
  t.equal((await server.stop()).status, 0);
  await must('rm', [at('b.raw')]);
  const again = await startServer(t, [volume]);
  t.equal(await statesOf(volume), 'in-sync away');
  await qemuIo(again.uri, 'write -P 0x12 4M 1M');
  const replaced = await mustCowbell(['volume', 'replace', volume, at('b.raw'), at('c.raw')]);
  t.match(replaced, /Replaced .*b\.raw of volume vol by .*c\.raw, 32 MiB copied/);
  t.equal(await statesOf(volume), 'in-sync in-sync');
  t.match(await mustCowbell(['volume', 'show', volume]), /c\.raw/);
  const wrong = await cowbell(['volume', 'replace', volume, at('b.raw'), at('d.raw')]);
  t.equal(wrong.status, 1);
  t.match(wrong.stderr, /No mirror of volume vol has the member .*b\.raw, wanted one of/);
  t.equal((await again.server.stop()).status, 0);
  await must('cmp', [at('a.raw'), at('c.raw')]);
});
