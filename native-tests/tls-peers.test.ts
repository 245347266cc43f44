/**
 * Goal: the client, and what is made of it, do TLS with servers that were not written here, and never go on
 * without it.
 *
 * Method: nbdkit with certificates and with a pre-shared key, qemu-nbd with certificates (GnuTLS both), over a
 * file that is compared; a restore straight into an encrypted export.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient, openNbdDevice } from '../src/nbd/index.ts';
import { listening } from './support/listening.ts';
import { mustCowbell, Running, temporaryDirectory } from './support/process.ts';
import { backUp, serveVolume } from './support/served.ts';
import { makeCredentials } from './support/tls.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const SIZE_BYTES = 8 * MIB;

const directory = temporaryDirectory(t);
const at = (name: string): string => join(directory, name);

/** nbdkit's words for certificates on both sides. */
const CERTIFICATES = ['--tls=require', `--tls-certificates=${at('server')}`, '--tls-verify-peer'];

interface Peer {
  /** The file that is served. */
  readonly path: string;
  readonly socket: string;
}

async function startPeer(
  t: Test,
  tool: string,
  words: (socket: string, path: string) => string[],
): Promise<Peer> {
  const place = temporaryDirectory(t);
  const [socket, path] = [join(place, 'peer.sock'), join(place, 'disk.raw')];
  writeFileSync(path, randomBytes(SIZE_BYTES));
  const server = new Running(tool, words(socket, path));
  t.teardown(() => server.stop('SIGKILL'));
  await listening(socket, server);
  return { socket, path };
}

/** nbdkit over a file, with these words about TLS. */
async function startNbdkit(t: Test, tls: readonly string[]): Promise<Peer> {
  return await startPeer(t, 'nbdkit', (socket, path) => ['-f', '-U', socket, ...tls, 'file', path]);
}

/** Writes through the device, and reads all of it back. */
async function exercise(t: Test, uri: string, path: string): Promise<void> {
  const device = await openNbdDevice(uri);
  t.equal(device.sizeBytes, SIZE_BYTES);
  const content = randomBytes(3 * MIB);
  await device.write(content, MIB, {});
  await device.flush();
  const back = Buffer.alloc(SIZE_BYTES);
  await device.read(back, 0);
  await device.close();
  t.ok(back.subarray(MIB, 4 * MIB).equals(content), uri);
  t.ok(readFileSync(path).equals(back), `${uri}: the file`);
}

t.test('nbdkit with certificates', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdkit'])) return;
  makeCredentials(directory);
  const { socket, path } = await startNbdkit(t, CERTIFICATES);
  const target = `?socket=${socket}`;
  await exercise(t, `nbds+unix:///${target}&tls-certificates=${at('client')}`, path);
  await exercise(t, `nbds+unix:///${target}&tls-certificates=${at('client')}&tls-hostname=localhost`, path);
  const refused: [string, string][] = [
    [`nbd+unix:///${target}`, 'tls-required'],
    [`nbds+unix:///${target}&tls-certificates=${at('anonymous')}`, 'tls-failed'],
    [`nbds+unix:///${target}&tls-certificates=${at('other')}`, 'tls-failed'],
    [`nbds+unix:///${target}&tls-certificates=${at('other')}&tls-verify-peer=0`, 'tls-failed'],
    [`nbds+unix:///${target}&tls-certificates=${at('client')}&tls-hostname=example.com`, 'tls-failed'],
    [`nbds+unix:///${target}`, 'tls-failed'],
  ];
  for (const [uri, code] of refused) await t.rejects(NbdClient.connect(uri), { code }, uri);
});

t.test('nbdkit with a pre-shared key', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdkit'])) return;
  makeCredentials(directory);
  const { socket, path } = await startNbdkit(t, ['--tls=require', `--tls-psk=${at('server/keys.psk')}`]);
  await exercise(t, `nbds+unix://alice@/?socket=${socket}&tls-psk-file=${at('server/keys.psk')}`, path);
  for (const user of ['alice', 'mallory']) {
    const uri = `nbds+unix://${user}@/?socket=${socket}&tls-psk-file=${at('other.psk')}`;
    await t.rejects(NbdClient.connect(uri), { code: 'tls-failed' }, user);
  }
});

t.test('nbdkit without TLS', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdkit'])) return;
  makeCredentials(directory);
  const { socket } = await startNbdkit(t, []);
  const uri = `nbds+unix:///?socket=${socket}&tls-certificates=${at('client')}`;
  await t.rejects(NbdClient.connect(uri), { code: 'tls-refused' });
});

t.test('qemu-nbd with certificates', async (t) => {
  if (!requireTools(t, ['openssl', 'qemu-nbd'])) return;
  makeCredentials(directory);
  const { socket, path } = await startPeer(t, 'qemu-nbd', (socket, path) => {
    const object = `tls-creds-x509,id=tls,endpoint=server,dir=${at('server')},verify-peer=on`;
    const tls = ['--object', object, '--tls-creds', 'tls'];
    return ['-f', 'raw', '-t', '-e', '4', '-k', socket, ...tls, path];
  });
  await exercise(t, `nbds+unix:///?socket=${socket}&tls-certificates=${at('client')}`, path);
  const target = `nbds+unix:///?socket=${socket}&tls-certificates=`;
  await t.rejects(NbdClient.connect(`nbd+unix:///?socket=${socket}`), { code: 'tls-required' });
  await t.rejects(NbdClient.connect(`${target}${at('anonymous')}`), { code: 'tls-failed' });
});

t.test('a volume is restored into an encrypted export', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdkit'])) return;
  makeCredentials(directory);
  const { socket, path } = await startNbdkit(t, CERTIFICATES);
  const served = await serveVolume(t, { size: String(SIZE_BYTES) });
  const client = await NbdClient.connect(served.uri);
  await client.write(randomBytes(5 * MIB), MIB);
  await client.disconnect();
  const store = served.at('store');
  await mustCowbell(['store', 'init', store]);
  await backUp(served.volume, store);
  const target = `nbds+unix:///?socket=${socket}&tls-certificates=${at('client')}`;
  await mustCowbell(['restore', store, 'latest', target]);
  t.ok(readFileSync(path).equals(readFileSync(served.at('home.raw'))));
});
