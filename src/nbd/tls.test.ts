/**
 * Goal: an encrypted session does what a plain one does, only those who may get one, and nobody gets in by
 * sending something else.
 * Method: the room's server and client over real sockets, with certificates made by openssl; and plain sockets
 * that say the right things up to a point and then the wrong ones.
 */

import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { connect as connectSecurely, type ConnectionOptions, type TLSSocket } from 'node:tls';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { NbdClient } from './client.ts';
import {
  COMMAND,
  encodeClientFlags,
  encodeInfoRequest,
  encodeOption,
  encodeRequest,
  OPTION,
} from './codec.ts';
import { openNbdDevice } from './device.ts';
import type { NbdLimits } from './limits.ts';
import { attachKernelDevice } from './kernel.ts';
import type { NbdLogEvent } from './log.ts';
import { NbdServer } from './server.ts';
import { TestAuthority, writeKeyFile } from './test-certificates.ts';
import { TestDevice, type TestDeviceOptions } from './test-device.ts';
import {
  loadTlsClientCredentials,
  loadTlsServerCredentials,
  type NbdServerCredentials,
} from './tls-credentials.ts';
import type { NbdListenerTls } from './tls-server.ts';

const MIB = 1_048_576;

function temporary(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const root = temporary(t);
const at = (name: string): string => join(root, name);
const authority = new TestAuthority(at('authority'));
const stranger = new TestAuthority(at('stranger'));
authority.issue(at('server'), 'server');
authority.issue(at('client'), 'client', { commonName: 'alice' });
authority.trustIn(at('anonymous'));
authority.issue(at('elsewhere'), 'server', { names: 'DNS:elsewhere' });
stranger.issue(at('other'), 'client');
stranger.issue(at('impostor'), 'client');
authority.trustIn(at('impostor'));
writeKeyFile(at('server/keys.psk'), ['alice', '#623a62']);
writeKeyFile(at('wrong.psk'), ['alice', 'mallory']);

interface Served {
  readonly device: TestDevice;
  readonly server: NbdServer;
  readonly socket: string;
  readonly port: number;
  readonly log: readonly NbdLogEvent[];
}

interface ServeOptions {
  readonly policy?: NbdListenerTls['policy'] | 'off';
  readonly credentials?: NbdServerCredentials;
  readonly limits?: Partial<NbdLimits>;
  readonly device?: TestDeviceOptions;
}

async function serve(t: Test, options: ServeOptions = {}): Promise<Served> {
  const { policy = 'required', limits = {} } = options;
  const device = new TestDevice(options.device);
  const log: NbdLogEvent[] = [];
  const exports = [{ name: 'disk', description: '', device, readOnly: false, multiConn: true }];
  const server = new NbdServer({ exports, limits, log: (event) => void log.push(event) });
  t.teardown(() => server.close());
  const credentials = options.credentials ?? (await loadTlsServerCredentials(at('server')));
  const tls = policy === 'off' ? {} : { tls: { policy, credentials } };
  const socket = join(temporary(t), 'nbd.sock');
  await server.listen({ kind: 'unix', path: socket }, tls);
  const tcp = await server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, tls);
  return { device, server, socket, port: tcp.kind === 'tcp' ? tcp.port : 0, log };
}

async function connected(t: Test, uri: string): Promise<NbdClient> {
  const client = await NbdClient.connect(uri, { timeoutMs: 5000 });
  t.teardown(() => client.disconnect());
  return client;
}

const withCertificate = `tls-certificates=${at('client')}`;
const withKey = `tls-psk-file=${at('server/keys.psk')}`;

t.test('data goes both ways, with certificates and with a key, over Unix and TCP', async (t) => {
  const { device, socket, port, log } = await serve(t, { device: { sizeBytes: 16 * MIB } });
  const uris = [
    `nbds+unix:///disk?socket=${socket}&${withCertificate}`,
    `nbds+unix:///disk?socket=${socket}&${withCertificate}&tls-hostname=localhost`,
    `nbds://localhost:${port}/disk?${withCertificate}`,
    `nbds://127.0.0.1:${port}/disk?${withCertificate}`,
    `nbds+unix://alice@/disk?socket=${socket}&${withKey}`,
    `nbds://b%3Ab@localhost:${port}/disk?${withKey}`,
  ];
  for (const [index, uri] of uris.entries()) {
    const client = await connected(t, uri);
    t.equal(client.replies, 'extended');
    const content = Buffer.alloc(5 * MIB + 512, index + 1);
    await client.write(content, 512);
    t.ok(device.bytes.subarray(512, 512 + content.length).equals(content));
    const reads = Array.from({ length: 16 }, () => Buffer.alloc(MIB));
    await Promise.all(reads.map((target, piece) => client.read(target, piece * MIB)));
    t.ok(Buffer.concat(reads).equals(device.bytes), uri);
    await client.disconnect();
  }
  const said = log.filter(({ message }) => message.startsWith('TLSv1.3 ')).map(({ message }) => message);
  t.equal(said.length, uris.length);
  t.match(said[0], /client "alice"/);
  t.notMatch(said[4], /client/, 'a key has no certificate');
});

t.test('optional TLS serves both kinds of client, and a device may be encrypted', async (t) => {
  const { device, socket } = await serve(t, { policy: 'optional' });
  const plain = await connected(t, `nbd+unix:///disk?socket=${socket}`);
  const secured = await openNbdDevice(`nbds+unix:///disk?socket=${socket}&${withCertificate}`);
  await plain.write(Buffer.alloc(512, 'a'), 0);
  await secured.write(Buffer.alloc(512, 'b'), 512, {});
  t.equal(device.bytes.toString('latin1', 511, 513), 'ab');
  t.equal((await NbdClient.info(`nbds+unix:///disk?socket=${socket}&${withCertificate}`)).name, 'disk');
  t.equal((await NbdClient.list(`nbds+unix:///?socket=${socket}&${withCertificate}`)).length, 1);
  await secured.close();
});

t.test('who does not show the right thing does not get in, and is told so', async (t) => {
  authority.revokeIn(at('server'), []);
  authority.issue(at('revoked'), 'client');
  authority.revokeIn(at('server'), [at('revoked')]);
  const { socket, port, device, log } = await serve(t);
  const tls = `nbds+unix:///disk?socket=${socket}&tls-certificates=`;
  const refused: [string, string, RegExp][] = [
    [`nbd+unix:///disk?socket=${socket}`, 'tls-required', /wanted an address that begins with nbds/],
    [`nbd://localhost:${port}/disk`, 'tls-required', /insists on TLS/],
    [`${tls}${at('anonymous')}`, 'tls-failed', /certificate required/],
    [`${tls}${at('other')}`, 'tls-failed', /self-signed certificate in certificate chain/],
    [`${tls}${at('impostor')}`, 'tls-failed', /may not accept/],
    [`${tls}${at('revoked')}`, 'tls-failed', /may not accept/],
    [`${tls}${at('client')}&tls-hostname=elsewhere`, 'tls-failed', /altnames/],
    [`nbds://127.0.0.2:${port}/disk?${withCertificate}`, 'connect-failed', /ECONNREFUSED/],
    [`nbds://localhost:${port}/disk`, 'tls-failed', /self-signed/],
    [`nbds+unix://mallory@/disk?socket=${socket}&tls-psk-file=${at('wrong.psk')}`, 'tls-failed', /the user/],
    [`nbds+unix://alice@/disk?socket=${socket}&tls-psk-file=${at('wrong.psk')}`, 'tls-failed', /alert/],
    [`nbds+unix://eve@/disk?socket=${socket}&${withKey}`, 'tls-user-unknown', /no key for the user eve/],
    [`${tls}${at('missing')}`, 'tls-file-missing', /does not exist/],
    [`${tls}${at('client')}`.replace('/disk', '/none'), 'export-unknown', /no export "none"/],
  ];
  for (const [uri, code, message] of refused) {
    await t.rejects(NbdClient.connect(uri, { timeoutMs: 5000 }), { code, message }, uri);
  }
  t.same(device.calls, []);
  const reasons = log.filter(({ level }) => level === 'warning').map(({ message }) => message);
  t.match(reasons.join('\n'), /peer did not return a certificate/);
  t.match(reasons.join('\n'), /certificate is not accepted \(UNABLE_TO_VERIFY_LEAF_SIGNATURE\)/);
  t.match(reasons.join('\n'), /certificate is not accepted \(CERT_REVOKED\)/);
  rmSync(at('server/ca-crl.pem'));
});

t.test('either side may be told not to look', async (t) => {
  const credentials = await loadTlsServerCredentials(at('server'), { verifyPeer: false });
  const { socket } = await serve(t, { credentials });
  const target = `nbds+unix:///disk?socket=${socket}&tls-certificates=`;
  await connected(t, `${target}${at('anonymous')}`);
  await connected(t, `nbds+unix:///disk?socket=${socket}&tls-verify-peer=0`);
  await connected(t, `${target}${at('client')}&tls-hostname=elsewhere&tls-verify-peer=0`);
});

t.test('a server without TLS is not talked to by a client with it', async (t) => {
  const { socket, device } = await serve(t, { policy: 'off' });
  const uri = `nbds+unix:///disk?socket=${socket}&${withCertificate}`;
  await t.rejects(NbdClient.connect(uri), { code: 'tls-refused', message: /TLS is not offered here/ });
  await t.rejects(NbdClient.list(uri), { code: 'tls-refused' });
  t.same(device.calls, []);
  await t.rejects(attachKernelDevice({ device: '/dev/nbd0', address: uri }), {
    code: 'export-unusable',
    message: /speaks no TLS/,
  });
});

// ---------------------------------------------------------------------------------------------------

const HELLO = Buffer.concat([encodeClientFlags(3), encodeOption(OPTION.startTls, Buffer.alloc(0))]);
const GO = encodeOption(OPTION.go, encodeInfoRequest({ name: Buffer.from('disk'), infos: [] }));

/** A plain socket that has asked for TLS and got it, and has not begun. */
async function consented(t: Test, path: string): Promise<Socket> {
  const socket = connect(path);
  t.teardown(() => socket.destroy());
  socket.on('error', () => {});
  socket.write(HELLO);
  let heard = Buffer.alloc(0);
  while (heard.length < 18 + 20) {
    const [chunk]: unknown[] = await once(socket, 'data');
    heard = Buffer.concat([heard, Buffer.isBuffer(chunk) ? chunk : Buffer.alloc(0)]);
  }
  t.equal(heard.toString('hex', 18 + 12), '0000000100000000', 'NBD_REP_ACK and nothing else');
  return socket;
}

async function whenClosed(socket: Socket): Promise<void> {
  socket.resume();
  if (!socket.closed) await once(socket, 'close');
}

/** A client sees the end before the server's own socket has closed. */
async function noneLeft(server: NbdServer): Promise<void> {
  while (server.connectionCount > 0) await setImmediate();
}

async function secured(t: Test, path: string, options: ConnectionOptions = {}): Promise<TLSSocket> {
  const { cert, key, ca } = await loadTlsClientCredentials({ certificates: at('client') });
  const socket = connectSecurely({
    socket: await consented(t, path),
    servername: 'localhost',
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
    ...options,
  });
  t.teardown(() => socket.destroy());
  return socket;
}

t.test('whatever comes instead of a TLS hello ends the connection', async (t) => {
  const { socket: path, server, device } = await serve(t);
  const garbage = fc.oneof(
    fc.constant(GO),
    fc.uint8Array({ minLength: 6, maxLength: 400 }),
    // What begins like a record of TLS.
    fc
      .uint8Array({ minLength: 1, maxLength: 300 })
      .map((bytes) => [0x16, 3, 1, 0, bytes.length % 256, ...bytes]),
  );
  await fc.assert(
    fc.asyncProperty(garbage, async (bytes) => {
      const socket = await consented(t, path);
      socket.end(Buffer.from(bytes));
      await whenClosed(socket);
    }),
    { numRuns: 40, verbose: true },
  );
  t.same(device.calls, []);
  await noneLeft(server);
  await connected(t, `nbds+unix:///disk?socket=${path}&${withCertificate}`);
});

t.test('plain text that is sent with STARTTLS is not taken for encrypted', async (t) => {
  const { socket: path, log } = await serve(t, { policy: 'optional' });
  const socket = connect(path);
  socket.write(Buffer.concat([HELLO, GO]));
  const heard: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => heard.push(chunk));
  await once(socket, 'close');
  t.equal(Buffer.concat(heard).length, 18, 'the greeting, and no consent');
  t.match(log.at(-1)?.message, /plain text follow the wish for TLS/);
});

t.test('plain text that is sent after the consent is not taken for encrypted', async (t) => {
  const { socket: path, log } = await serve(t, { policy: 'optional' });
  const socket = await consented(t, path);
  socket.write(GO);
  await whenClosed(socket);
  t.match(log.map(({ message }) => message).join('\n'), /TLS was not agreed on: /);
});

t.test('a client that never begins or never finishes TLS is dropped in time', async (t) => {
  const { socket: path, server, log } = await serve(t, { limits: { handshakeMsMax: 100 } });
  const silent = await consented(t, path);
  await whenClosed(silent);
  const slow = await consented(t, path);
  slow.write(Buffer.from([0x16, 3, 1, 1]));
  await whenClosed(slow);
  const idle = await secured(t, path);
  await once(idle, 'secureConnect');
  await whenClosed(idle);
  t.equal(log.filter(({ message }) => message === 'The handshake took too long').length, 3);
  await noneLeft(server);
});

t.test('a client that leaves during TLS is let go at once', async (t) => {
  const { socket: path, log } = await serve(t);
  const socket = await consented(t, path);
  socket.end();
  await whenClosed(socket);
  t.match(log.at(-1)?.message, /the client hung up/);
});

t.test('versions before 1.2 are refused, 1.2 is spoken', async (t) => {
  const { socket: path, log } = await serve(t);
  const ciphers = 'DEFAULT@SECLEVEL=0';
  const old = await secured(t, path, { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers });
  const [error]: unknown[] = await once(old, 'error');
  t.match(error, { code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' });
  const fair = await secured(t, path, { maxVersion: 'TLSv1.2' });
  await once(fair, 'secureConnect');
  fair.write(GO);
  await once(fair, 'data');
  t.match(log.at(-1)?.message, /^TLSv1.2 /);
});

t.test('STARTTLS within TLS is invalid, and the session goes on', async (t) => {
  const { socket: path } = await serve(t);
  const socket = await secured(t, path);
  socket.write(encodeOption(OPTION.startTls, Buffer.alloc(0)));
  const [reply]: unknown[] = await once(socket, 'data');
  t.equal(Buffer.isBuffer(reply) && reply.readUInt32BE(12), 0x8000_0003);
  socket.write(GO);
  await once(socket, 'data');
});

for (const maxVersion of ['TLSv1.2', 'TLSv1.3'] as const) {
  t.test(`a client that ends its side gets its answers in ${maxVersion}`, async (t) => {
    const holds = (call: string): boolean => call === 'read';
    const { socket: path, device } = await serve(t, { device: { holds } });
    const socket = await secured(t, path, { maxVersion });
    socket.write(GO);
    const heard: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => heard.push(chunk));
    socket.end(
      encodeRequest({
        flags: 0,
        type: COMMAND.read,
        cookieHigh: 0,
        cookieLow: 7,
        offsetBytes: 0,
        lengthBytes: 512,
      }),
    );
    await device.whenHeld(1);
    // Several turns of the server's loop: it has seen the end by then.
    await connected(t, `nbds+unix:///disk?socket=${path}&${withCertificate}`);
    device.finishNext();
    await once(socket, 'end');
    const reply = Buffer.concat(heard).subarray(-(16 + 512));
    t.equal(reply.toString('hex', 0, 16), '67446698000000000000000000000007');
  });
}

t.test('a server that closes answers what is in flight, and does not wait for handshakes', async (t) => {
  const limits = { closeMsMax: 100 };
  const { socket: path, server, device } = await serve(t, { limits, device: { holds: () => true } });
  const client = await connected(t, `nbds+unix:///disk?socket=${path}&${withCertificate}`);
  const silent = await consented(t, path);
  const read = client.read(Buffer.alloc(512), 0);
  await device.whenHeld(1);
  const closed = server.close();
  await t.rejects(client.read(Buffer.alloc(512), 0), { code: 'shutting-down' });
  device.finishNext();
  await read;
  await closed;
  await whenClosed(silent);
  t.equal(server.connectionCount, 0);
});

t.test('a client that takes its replies slowly is not read beyond the bound', async (t) => {
  const limits = { replyBytesMax: MIB };
  const { socket: path, device } = await serve(t, { limits, device: { sizeBytes: 16 * MIB } });
  device.bytes.forEach((_, index) => index % 4096 === 0 && device.bytes.writeUInt32BE(index, index));
  const socket = await secured(t, path);
  socket.write(GO);
  const [answer]: unknown[] = await once(socket, 'data');
  socket.pause();
  t.ok(Buffer.isBuffer(answer) && answer.readUInt32BE(12) === 3);
  const requests = Array.from({ length: 64 }, (_, index) =>
    encodeRequest({
      flags: 0,
      type: COMMAND.read,
      cookieHigh: 0,
      cookieLow: index,
      offsetBytes: (index % 16) * MIB,
      lengthBytes: MIB,
    }),
  );
  socket.write(Buffer.concat(requests));
  await device.whenCalled(1);
  const calledMax = device.calls.length;
  let heardBytes = 0;
  let sawAhead = 0;
  const done = new Promise<void>((resolve) => {
    socket.on('data', (chunk: Buffer) => {
      heardBytes += chunk.length;
      sawAhead = Math.max(sawAhead, device.calls.length - Math.floor(heardBytes / (MIB + 16)));
      if (heardBytes >= 64 * (MIB + 16)) resolve();
    });
  });
  socket.resume();
  await done;
  t.ok(calledMax < 64 && sawAhead < 16, `${sawAhead} reads ahead of what was taken`);
});

t.test('a server that goes astray after its consent is left', async (t) => {
  for (const [name, behind] of [
    ['together', GO],
    ['later', Buffer.from('no TLS at all, just text')],
  ] as const) {
    const path = join(temporary(t), 'peer.sock');
    const ack = Buffer.from('0003e889045565a9000000050000000100000000', 'hex');
    const peer = createServer((socket) => {
      socket.on('error', () => {});
      socket.write(Buffer.from('4e42444d4147494349484156454f50540003', 'hex'));
      socket.once('data', () => {
        if (name === 'together') socket.write(Buffer.concat([ack, behind]));
        else socket.write(ack, () => socket.once('data', () => socket.write(behind)));
      });
    });
    peer.listen(path);
    t.teardown(() => void peer.close());
    await once(peer, 'listening');
    const uri = `nbds+unix:///disk?socket=${path}&${withCertificate}`;
    const code = name === 'together' ? 'protocol-violation' : 'tls-failed';
    await t.rejects(NbdClient.connect(uri, { timeoutMs: 5000 }), { code }, name);
  }
});
