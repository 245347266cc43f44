/**
 * Goal: clients that were not written here do TLS with `cowbell serve`, with certificates and with pre-shared
 * keys, move data through it both ways, and are refused where they should be.
 *
 * Method: libnbd and QEMU (GnuTLS both) against one served volume with required TLS on a Unix socket and TCP;
 * certificates made by openssl, keys as psktool writes them. What is written through one client is read through
 * another and compared.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, run, temporaryDirectory } from './support/process.ts';
import { type Served, serveVolume } from './support/served.ts';
import { makeCredentials } from './support/tls.ts';
import { requireTools } from './support/tools.ts';

const MIB = 1_048_576;
const SIZE_BYTES = 24 * MIB;

const directory = temporaryDirectory(t);
const at = (name: string): string => join(directory, name);

interface SecureServer {
  readonly served: Served;
  readonly socket: string;
  readonly port: string;
}

async function start(
  t: Parameters<typeof serveVolume>[0],
  words: readonly string[] = [],
): Promise<SecureServer> {
  const socket = join(temporaryDirectory(t), 'tls.sock');
  const listeners = ['--socket', socket, '--listen', '127.0.0.1:0', '--tls', at('server'), ...words];
  const served = await serveVolume(t, { size: String(SIZE_BYTES), serve: listeners });
  const line = await served.server.waitForLine(/^ready nbds?:\/\//);
  return { served, socket, port: /:(\d+)\//.exec(line)?.[1] ?? '' };
}

t.test('libnbd, with certificates and with a key', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdinfo', 'nbdcopy'])) return;
  makeCredentials(directory);
  const { served, socket, port } = await start(t);
  const certificates = `tls-certificates=${at('client')}`;
  const uris = [
    `nbds+unix:///vol?socket=${socket}&${certificates}`,
    `nbds://localhost:${port}/vol?${certificates}`,
    `nbds+unix:///vol?socket=${join(served.volume, 'nbd.sock')}&${certificates}`,
    `nbds+unix://alice@/vol?socket=${socket}&tls-psk-file=${at('server/keys.psk')}`,
    `nbds://alice@localhost:${port}/vol?tls-psk-file=${at('server/keys.psk')}`,
  ];
  const [source, back] = [at('source.raw'), at('back.raw')];
  for (const uri of uris) {
    t.match(await must('nbdinfo', [uri]), /newstyle-fixed with TLS/, uri);
    writeFileSync(source, randomBytes(SIZE_BYTES));
    await must('nbdcopy', [source, uri]);
    await must('nbdcopy', [uri, back]);
    t.ok(readFileSync(back).equals(readFileSync(source)), `${uri}: nbdcopy in and out`);
    t.ok(readFileSync(served.at('home.raw')).equals(readFileSync(source)), `${uri}: the home`);
  }
});

t.test('libnbd, where it has the wrong things', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdinfo'])) return;
  makeCredentials(directory);
  const { served, socket, port } = await start(t);
  const refused: [string, RegExp][] = [
    [`nbd+unix:///vol?socket=${socket}`, /requires TLS/],
    [`nbd://localhost:${port}/vol`, /requires TLS/],
    [`nbds://localhost:${port}/vol?tls-certificates=${at('other')}`, /certificate verification/],
    [`nbds://localhost:${port}/vol?tls-certificates=${at('anonymous')}`, /alert/],
    [`nbds+unix://mallory@/vol?socket=${socket}&tls-psk-file=${at('other.psk')}`, /gnutls_handshake/],
  ];
  for (const [uri, message] of refused) {
    const { status, stderr } = await run('nbdinfo', ['--size', uri]);
    t.equal(status, 1, uri);
    t.match(stderr, message, uri);
  }
  t.match(served.server.stderr, /peer did not return a certificate \(tcp 127\.0\.0\.1:\d+\)/);
  const own = join(served.volume, 'nbd.sock');
  t.equal(await must('nbdinfo', ['--size', `nbd+unix:///vol?socket=${own}`]), `${SIZE_BYTES}\n`);
});

t.test('optional TLS, and certificates that are not looked at', async (t) => {
  if (!requireTools(t, ['openssl', 'nbdinfo'])) return;
  makeCredentials(directory);
  const { socket } = await start(t, ['--tls-mode', 'optional', '--tls-verify-peer', 'no']);
  const anonymous = `nbds+unix:///vol?socket=${socket}&tls-certificates=${at('anonymous')}`;
  t.match(await must('nbdinfo', [anonymous]), /with TLS/);
  t.match(await must('nbdinfo', [`nbd+unix:///vol?socket=${socket}`]), /without TLS/);
});

t.test('QEMU, with certificates and with a key', async (t) => {
  if (!requireTools(t, ['openssl', 'qemu-img'])) return;
  makeCredentials(directory);
  const { served, socket, port } = await start(t);
  const secret = 'id=tls,endpoint=client';
  const ways: [string, string][] = [
    [`tls-creds-x509,${secret},dir=${at('client')}`, `host=localhost,port=${port}`],
    [`tls-creds-psk,${secret},dir=${at('server')},username=alice`, `host=127.0.0.1,port=${port}`],
    [`tls-creds-psk,${secret},dir=${at('server')},username=alice`, `path=${socket}`],
  ];
  const [source, back] = [at('source.raw'), at('back.raw')];
  for (const [credentials, place] of ways) {
    const image = `driver=nbd,${place},export=vol,tls-creds=tls`;
    const info = await must('qemu-img', ['info', '--object', credentials, '--image-opts', image]);
    t.match(info, /virtual size: 24 MiB/, credentials);
    writeFileSync(source, randomBytes(SIZE_BYTES));
    const convert = ['convert', '--object', credentials, '-n'];
    await must('qemu-img', [...convert, '-f', 'raw', '--target-image-opts', source, image]);
    t.ok(readFileSync(served.at('home.raw')).equals(readFileSync(source)), `${credentials}: the home`);
    await must('qemu-img', ['convert', '--object', credentials, '--image-opts', '-O', 'raw', image, back]);
    t.ok(readFileSync(back).equals(readFileSync(source)), `${credentials}: in and out`);
  }
  const other = `tls-creds-x509,${secret},dir=${at('other')}`;
  const image = `driver=nbd,host=localhost,port=${port},export=vol,tls-creds=tls`;
  t.equal((await run('qemu-img', ['info', '--object', other, '--image-opts', image])).status, 1);
  const plain = await run('qemu-img', ['info', `nbd://localhost:${port}/vol`]);
  t.match(plain.stderr, /TLS negotiation required/);
});

t.test('serve says at once what is wrong with the files', async (t) => {
  if (!requireTools(t, ['openssl'])) return;
  makeCredentials(directory);
  await must('mkdir', ['-p', at('empty')]);
  const { served } = await start(t);
  await served.server.stop();
  const bad = await cowbell(['serve', served.volume, '--tls', at('empty')]);
  t.match(bad, {
    status: 1,
    stdout: '',
    stderr: /^cowbell: TLS directory .*empty cannot be used: wanted .*\n$/,
  });
  const lonely = await cowbell(['serve', served.volume, '--tls-mode', 'optional']);
  t.match(lonely, { status: 2, stderr: /tls/ });
});
