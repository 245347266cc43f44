/**
 * Goal: over real sockets, the server stays up whatever clients do, answers what it took, and leaves nothing
 * behind: no connection, no operation, no socket file.
 *
 * Method: raw clients that send bytes and read to the end of the stream, and the client of this room; devices
 * that hold calls, so that the test decides what is in flight when something happens.
 */

import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { AssertionError } from '../base/index.ts';
import { NbdClient } from './client.ts';
import { COMMAND, encodeClientFlags, encodeOption, OPTION } from './codec.ts';
import type { Export } from './export.ts';
import { NbdServer, type NbdServerOptions } from './server.ts';
import { exportOf, RawClient, untilNoConnections } from './test-client.ts';
import { TestDevice } from './test-device.ts';
import { block, flush, read, request, write } from './test-transmission.ts';

interface Served {
  readonly server: NbdServer;
  readonly path: string;
}

async function serve(t: Test, exports: Export[], options: NbdServerOptions = {}): Promise<Served> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const path = join(directory, 'nbd.sock');
  const server = new NbdServer({ exports, ...options });
  await server.listen({ kind: 'unix', path });
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return { server, path };
}

t.test('a half-closed client gets all its answers, then the connection ends', async (t) => {
  const device = new TestDevice({ holds: (call) => call === 'write' });
  const { server, path } = await serve(t, [exportOf(device)]);
  const client = await RawClient.transmit({ path });
  client.socket.end(Buffer.concat([write(1, 0), read(2, 512), flush(3)]));
  await device.whenHeld(1);
  await client.received(528 + 16);
  t.equal(server.connectionCount, 1);
  device.finishNext();
  await client.closed;
  t.equal(client.output.length, 528 + 16 + 16);
  await untilNoConnections(server);
});

t.test('DISC is answered by closing after what is in flight', async (t) => {
  const device = new TestDevice({ holds: (call) => call === 'write' });
  const { server, path } = await serve(t, [exportOf(device)]);
  const client = await RawClient.transmit({ path });
  client.socket.write(Buffer.concat([write(1, 0), request(COMMAND.disconnect, 2)]));
  await device.whenHeld(1);
  device.finishNext();
  await client.closed;
  t.equal(client.output.length, 16);
  await untilNoConnections(server);
});

t.test('a connection that died does not begin what the fence held for it', async (t) => {
  const device = new TestDevice({ holds: () => true });
  const { server, path } = await serve(t, [exportOf(device)]);
  const living = await RawClient.transmit({ path });
  living.socket.write(write(1, 0, block(1)));
  await device.whenHeld(1);
  const killed = await RawClient.transmit({ path });
  killed.socket.write(Buffer.concat([write(2, 0, block(2)), read(3, 512)]));
  await device.whenHeld(2);
  killed.socket.destroy();
  device.held[1]?.finish();
  await untilNoConnections(server, 1);
  device.finishNext();
  await living.received(16);
  t.same(device.calls, ['write 0+512', 'read 512+512']);
  living.socket.destroy();
});

t.test('what a killed client had in flight does not land on a later write', async (t) => {
  const device = new TestDevice({ holds: (_, offsetBytes) => offsetBytes === 0 });
  const { server, path } = await serve(t, [exportOf(device)]);
  const killed = await RawClient.transmit({ path });
  killed.socket.write(write(1, 0, block(1)));
  await device.whenHeld(1);
  killed.socket.destroy();

  const client = await NbdClient.connect({ transport: { kind: 'unix', path }, exportName: '' });
  const second = client.write(block(2), 0);
  await client.write(block(3), 512);
  t.same(device.calls, ['write 0+512', 'write 512+512'], 'the overlapping write is held');
  device.finishNext();
  await device.whenHeld(1);
  device.finishNext();
  await second;
  t.equal(device.bytes[0], 2);
  await client.disconnect();
  await untilNoConnections(server);
});

t.test(
  'close answers what is in flight, refuses what is new, and returns when the device is free',
  async (t) => {
    const device = new TestDevice({ holds: (call) => call === 'write' });
    const { server, path } = await serve(t, [exportOf(device)]);
    t.equal(statSync(path).mode & 0o777, 0o600);
    const client = await NbdClient.connect({ transport: { kind: 'unix', path }, exportName: '' });
    const idle = new RawClient({ path });
    const negotiating = new RawClient({ path });
    await idle.received(18);
    await negotiating.received(18);
    negotiating.socket.write(
      Buffer.concat([encodeClientFlags(3), encodeOption(OPTION.list, block(0)).subarray(0, 20)]),
    );
    const inFlight = client.write(block(1), 0);
    await device.whenHeld(1);
    let isClosed = false;
    const closing = server.close().then(() => (isClosed = true));
    await t.rejects(client.read(block(0), 0), { code: 'shutting-down' });
    t.notOk(isClosed);
    device.finishNext();
    await inFlight;
    await t.rejects(client.read(block(0), 0), { code: 'connection-lost' });
    await idle.closed;
    negotiating.socket.destroy();
    await closing;
    t.notOk(existsSync(path), 'the socket is gone');
    await t.rejects(server.listen({ kind: 'unix', path }), { code: 'server-closed' });
    await server.close();
  },
);

t.test('close waits for orphans, whose connection is gone already', async (t) => {
  const device = new TestDevice({ holds: () => true });
  const { server, path } = await serve(t, [exportOf(device)]);
  const client = await RawClient.transmit({ path });
  client.socket.write(Buffer.concat([write(1, 0), write(2, 512)]));
  await device.whenHeld(2);
  client.socket.destroy();
  // The answer that cannot be sent shows the server that the client is dead.
  device.finishNext();
  await untilNoConnections(server);
  let isClosed = false;
  const closing = server.close().then(() => (isClosed = true));
  for (let turn = 0; turn < 20; turn += 1) await nextTurn();
  t.notOk(isClosed);
  device.finishNext();
  await closing;
});

t.test('close does not wait for a client that takes no replies', async (t) => {
  const device = new TestDevice({ sizeBytes: 8 * 1024 * 1024 });
  const { server, path } = await serve(t, [exportOf(device)], {
    limits: { closeMsMax: 20, replyBytesMax: 16 * 1024 * 1024 },
  });
  const client = await RawClient.transmit({ path });
  client.socket.pause();
  client.socket.write(Buffer.concat([read(1, 0, 8 * 1024 * 1024), read(2, 0, 8 * 1024 * 1024)]));
  await device.whenCalled(2);
  await server.close();
  t.equal(server.connectionCount, 0);
  client.socket.destroy();
});

t.test('exports come and go while others are served', async (t) => {
  const device = new TestDevice();
  const { server, path } = await serve(t, [exportOf(device, 'a')]);
  const transport = { kind: 'unix', path } as const;
  server.addExport(exportOf(device, 'b'));
  const a = await NbdClient.connect({ transport, exportName: 'a' });
  const b = await NbdClient.connect({ transport, exportName: 'b' });
  t.teardown(() => a.disconnect());
  t.equal(server.connectionCountOf('b'), 1);
  await server.removeExport('b');
  await server.removeExport('b');
  await t.rejects(b.read(block(0), 0), { code: 'connection-lost' });
  await a.read(block(0), 0);
  await t.rejects(NbdClient.connect({ transport, exportName: 'b' }), { code: 'export-unknown' });
  t.throws(() => server.addExport(exportOf(device, 'a')), { code: 'export-exists' });
  t.throws(() => server.addExport(exportOf(device, 'a\0')), { code: 'export-name-invalid' });
  t.throws(() => server.addExport(exportOf(device, 'a'.repeat(5000))), { code: 'export-name-invalid' });
});

t.test('limits on connections and on the time of a handshake', async (t) => {
  const logged: string[] = [];
  const { server, path } = await serve(t, [exportOf(new TestDevice())], {
    limits: { connectionCountMax: 2, handshakeMsMax: 50 },
    log: ({ message }) => logged.push(message),
  });
  const first = await RawClient.transmit({ path });
  const slow = new RawClient({ path });
  await slow.received(18);
  const refused = new RawClient({ path });
  await refused.closed;
  t.equal(refused.output.length, 0);
  await slow.closed;
  await untilNoConnections(server, 1);
  t.match(logged, ['A connection beyond 2 was refused', 'The handshake took too long']);
  first.socket.write(read(1, 0));
  await first.received(528);
  t.pass('a client in transmission has all the time');
  first.socket.destroy();
});

t.test('garbage is hung up on, and the server goes on', async (t) => {
  const { server, path } = await serve(t, [exportOf(new TestDevice())]);
  for (const bytes of [
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
    Buffer.alloc(1000, 0xff),
    Buffer.concat([encodeClientFlags(3), Buffer.alloc(64)]),
  ]) {
    const client = new RawClient({ path });
    client.socket.write(bytes);
    await client.closed;
  }
  const lost = await RawClient.transmit({ path });
  lost.socket.write(Buffer.alloc(28));
  await lost.closed;
  const truncated = new RawClient({ path });
  truncated.socket.end(encodeClientFlags(3).subarray(0, 2));
  await truncated.closed;
  await untilNoConnections(server);
  const client = await NbdClient.connect({ transport: { kind: 'unix', path }, exportName: 'disk' });
  await client.read(block(0), 0);
  t.pass('a client is served');
  await client.disconnect();
});

t.test('a pipelining client that reads late is slowed down and gets everything', async (t) => {
  const device = new TestDevice({ sizeBytes: 4 * 1024 * 1024 });
  const limits = { replyBytesMax: 64 * 1024, inFlightCountMax: 4 };
  const { path } = await serve(t, [exportOf(device)], { limits });
  const client = await RawClient.transmit({ path });
  client.socket.pause();
  const count = 200;
  const lengthBytes = 64 * 1024;
  for (let index = 0; index < count; index += 1) client.socket.write(read(index, 0, lengthBytes));
  await device.whenCalled(2);
  for (let turn = 0; turn < 20; turn += 1) await nextTurn();
  t.ok(device.calls.length < count / 2, 'the server stops reading');
  for (let index = 0; index < count; index += 1) client.socket.write(read(index, 0));
  for (let turn = 0; turn < 20; turn += 1) await nextTurn();
  client.socket.resume();
  await client.received(count * (lengthBytes + 16) + count * (512 + 16));
  t.equal(device.calls.length, 2 * count);
  client.socket.destroy();
});

t.test('addresses that cannot be listened on have their codes', async (t) => {
  const { path } = await serve(t, []);
  const server = new NbdServer();
  t.teardown(() => server.close());
  await t.rejects(server.listen({ kind: 'unix', path }), { code: 'listen-failed' });
  await t.rejects(server.listen({ kind: 'unix', path: `/${'a'.repeat(200)}` }), {
    code: 'socket-path-too-long',
  });
});

t.test('a failed assertion of a device is handed on', async (t) => {
  const errors: Error[] = [];
  const device = new TestDevice({
    before: () => {
      throw new AssertionError('a bug');
    },
  });
  const { path } = await serve(t, [exportOf(device)], { onProgrammerError: (error) => errors.push(error) });
  const client = await NbdClient.connect({ transport: { kind: 'unix', path }, exportName: '' });
  await t.rejects(client.read(block(0), 0), { code: 'io' });
  t.match(errors, [{ message: 'a bug' }]);
  await client.disconnect();
});
