/**
 * Goal: several listeners are several views of one server. Each offers what it was told to, to every option
 * of the handshake; and the order of changes holds between all of them, which is what makes a client safe
 * that loses its connection on one and comes back on another.
 *
 * Method: one server with a Unix socket and a TCP port, our own client for what is offered, raw clients and a
 * device that holds its calls for the order.
 */

import { mkdtempSync, rmSync, statSync } from 'node:fs';
import type { NetConnectOpts } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient } from './client.ts';
import { type ListenOptions, NbdServer } from './server.ts';
import { exportOf, RawClient, untilNoConnections } from './test-client.ts';
import { TestDevice } from './test-device.ts';
import { block, flush, write } from './test-transmission.ts';
import type { NbdTransport } from './uri.ts';

interface Listening {
  readonly server: NbdServer;
  /** Opens one more Unix socket. */
  readonly listen: (options?: ListenOptions) => Promise<NbdTransport>;
}

function start(t: Test, names: readonly string[], device = new TestDevice()): Listening {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const server = new NbdServer({ exports: names.map((name) => exportOf(device, name)) });
  let count = 0;
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const listen = async (options?: ListenOptions) => {
    const transport = { kind: 'unix', path: join(directory, String((count += 1))) } as const;
    await server.listen(transport, options);
    return transport;
  };
  return { server, listen };
}

function placeOf(transport: NbdTransport): NetConnectOpts {
  return transport.kind === 'unix' ? { path: transport.path } : transport;
}

async function listed(transport: NbdTransport): Promise<readonly string[]> {
  return (await NbdClient.list({ transport, exportName: '' })).map(({ name }) => name);
}

/** The export that a client gets for a name, or the code of its refusal. */
async function got(transport: NbdTransport, exportName: string): Promise<string> {
  try {
    const client = await NbdClient.connect({ transport, exportName });
    const { sizeBytes, readOnly } = client.exportInfo;
    await client.disconnect();
    return `${sizeBytes}${readOnly ? ' read-only' : ''}`;
  } catch (error) {
    return error instanceof Error && 'code' in error ? String(error.code) : String(error);
  }
}

t.test('a listener offers what it was told to', async (t) => {
  const server = new NbdServer();
  t.teardown(() => server.close());
  for (const [index, name] of ['a', 'b', 'c'].entries()) {
    server.addExport(exportOf(new TestDevice({ sizeBytes: 512 * (index + 1) }), name));
  }
  const offer = (options?: ListenOptions): Promise<NbdTransport> =>
    server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, options);
  const all = await offer();
  const names = new Set(['b']);
  const one = await offer({ exports: names });
  const two = await offer({ exports: new Set(['c', 'a']) });
  const none = await offer({ exports: new Set() });

  t.same(await listed(all), ['a', 'b', 'c']);
  t.same(await listed(one), ['b']);
  t.same(await listed(two), ['a', 'c']);
  t.same(await listed(none), []);

  t.equal(await got(one, 'b'), '1024');
  t.equal(await got(one, ''), '1024', 'the only export offered here is the default one');
  t.equal(await got(one, 'a'), 'export-unknown');
  t.equal(await got(two, 'c'), '1536');
  t.equal(await got(two, ''), 'export-unknown', 'two have no default');
  t.equal(await got(all, 'a'), '512');
  t.equal(await got(none, ''), 'export-unknown');

  names.add('d');
  t.equal(await got(one, 'd'), 'export-unknown', 'a name need not exist yet');
  server.addExport(exportOf(new TestDevice({ sizeBytes: 2048 }), 'd'));
  t.equal(await got(one, 'd'), '2048');
  t.equal(await got(one, ''), 'export-unknown');
  await server.removeExport('b');
  t.equal(await got(one, ''), '2048');
});

t.test('an export with the empty name is hidden too', async (t) => {
  const { server, listen } = start(t, ['']);
  server.addExport(exportOf(new TestDevice({ sizeBytes: 512 }), 'a'));
  const restricted = await listen({ exports: new Set(['a']) });
  t.equal(await got(restricted, ''), '512', 'the default is the one export offered, not the hidden one');
  t.same(await listed(restricted), ['a']);
});

t.test('a listener may be read-only where another one is not', async (t) => {
  const device = new TestDevice();
  const { listen } = start(t, ['disk'], device);
  const writable = await listen();
  const readable = await listen({ readOnly: true });
  t.equal(await got(writable, 'disk'), '1048576');
  t.equal(await got(readable, 'disk'), '1048576 read-only');
  // Our client would not even send it.
  const client = await RawClient.transmit(placeOf(readable));
  client.socket.write(write(1, 0));
  await client.received(16);
  t.equal(client.output.readUInt32BE(4), 1, 'EPERM');
  t.same(device.calls, []);
  client.socket.destroy();
});

t.test('a listener is ended by itself, and what the empty name means is asked each time', async (t) => {
  const { server, listen } = start(t, ['a', 'b']);
  const leaving = new AbortController();
  const names = ['b'];
  const ended = await listen({ signal: leaving.signal });
  const stays = await listen({
    get defaultExport() {
      return names[0];
    },
  });
  server.addExport(exportOf(new TestDevice({ sizeBytes: 512 }), 'c'));
  const client = await NbdClient.connect({ transport: ended, exportName: 'a' });
  leaving.abort();
  t.equal(await got(ended, 'a'), 'connect-failed');
  t.throws(() => statSync(ended.kind === 'unix' ? ended.path : ''), { code: 'ENOENT' });
  t.equal(server.connectionCount, 1, 'who is connected stays');
  await client.disconnect();
  t.not(await got(stays, ''), '512');
  names[0] = 'c';
  t.equal(await got(stays, ''), '512');
});

t.test('what a dead client of one listener had in flight is fenced on another one', async (t) => {
  const device = new TestDevice({ holds: (call, offsetBytes) => call === 'write' && offsetBytes === 0 });
  const { server, listen } = start(t, ['disk'], device);
  const tcp = await server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  const unix = await listen({ exports: new Set(['disk']) });
  const killed = await RawClient.transmit(placeOf(tcp));
  killed.socket.write(write(1, 0, block(1)));
  await device.whenHeld(1);
  killed.socket.resetAndDestroy();
  await untilNoConnections(server);

  const returned = await RawClient.transmit(placeOf(unix));
  returned.socket.write(Buffer.concat([write(2, 0, block(2)), write(3, 512, block(3)), flush(4)]));
  await returned.received(16);
  t.same(device.calls, ['write 0+512', 'write 512+512'], 'the overlapping write and the flush are held');
  device.finishNext();
  await device.whenHeld(1);
  t.equal(device.bytes[0], 1, 'the stale write landed before');
  device.finishNext();
  await returned.received(3 * 16);
  t.equal(device.bytes[0], 2, 'and the acknowledged one stays');
  returned.socket.destroy();
});
