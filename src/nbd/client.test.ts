/**
 * Goal: the client and the server of this room understand each other in every command, over Unix sockets
 * and TCP, and every way to fail has its documented code.
 * Method: a real server on a temporary socket over a device in memory; the device's record of calls shows
 * what arrived. Servers that misbehave are plain sockets that send prepared bytes.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient, type NbdConnectOptions } from './client.ts';
import { NbdClientError } from './client-error.ts';
import { encodeGreeting, encodeOptionReply, OPTION, OPTION_REPLY, TRANSMISSION_FLAG } from './codec.ts';
import { NbdDevice, openNbdDevice } from './device.ts';
import type { Export } from './export.ts';
import { NbdServer, type NbdServerOptions } from './server.ts';
import { TestDevice } from './test-device.ts';
import { type NbdAddress, NbdUriError } from './uri.ts';

function exportOf(device: TestDevice, name = 'disk', more: Partial<Export> = {}): Export {
  return { name, description: 'a disk', device, readOnly: false, multiConn: true, ...more };
}

function temporarySocket(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return join(directory, 'nbd.sock');
}

async function serve(t: Test, exports: Export[], options: NbdServerOptions = {}): Promise<NbdAddress> {
  const server = new NbdServer({ exports, ...options });
  const transport = await server.listen({ kind: 'unix', path: temporarySocket(t) });
  t.teardown(() => server.close());
  return { transport, exportName: exports[0]?.name ?? '' };
}

/** For servers with prepared bytes, which expect no wishes. */
const PLAIN: NbdConnectOptions = { structuredReplies: false, extendedHeaders: false };

async function connect(
  t: Test,
  target: NbdAddress | string,
  options: NbdConnectOptions = {},
): Promise<NbdClient> {
  const client = await NbdClient.connect(target, { timeoutMs: 5000, ...options });
  t.teardown(() => client.disconnect());
  return client;
}

function code(expected: string): { code: string } {
  return { code: expected };
}

t.test('every command reaches the device and is answered', async (t) => {
  const device = new TestDevice();
  const client = await connect(t, await serve(t, [exportOf(device)]));
  t.match(client.exportInfo, {
    name: 'disk',
    description: 'a disk',
    sizeBytes: 1024 * 1024,
    readOnly: false,
    canFlush: true,
    canFua: true,
    canTrim: true,
    canWriteZeroes: true,
    canMultiConn: true,
    minimumBlockSizeBytes: 512,
    preferredBlockSizeBytes: 4096,
    maximumPayloadBytes: 32 * 1024 * 1024,
  });
  const content = Buffer.alloc(8192, 'cowbell');
  await client.write(content, 4096);
  await client.write(content, 16_384, { fua: true });
  await client.flush();
  const back = Buffer.alloc(8192);
  await client.read(back, 4096);
  t.ok(back.equals(content), 'reads what was written');
  await client.writeZeroes(4096, 512);
  await client.writeZeroes(4608, 512, { mayTrim: false, fua: true });
  await client.trim(16_384, 8192);
  t.same(device.calls, [
    'write 4096+8192',
    'write 16384+8192 fua',
    'flush 0+0',
    'read 4096+8192',
    'zeroes 4096+512',
    'zeroes-no-hole 4608+512 fua',
    'trim 16384+8192',
  ]);
  await client.read(back, 4096);
  t.ok(back.subarray(0, 1024).equals(Buffer.alloc(1024)), 'zeroes were written');
  t.ok(back.subarray(1024).equals(content.subarray(1024)), 'and nothing else');
});

t.test('many requests are in flight at once and are answered in any order', async (t) => {
  const device = new TestDevice({ holds: (call) => call === 'read' });
  device.bytes.forEach((_, index) => (device.bytes[index] = index >> 9));
  const client = await connect(t, await serve(t, [exportOf(device)]));
  const targets = Array.from({ length: 64 }, () => Buffer.alloc(512));
  const order: number[] = [];
  const reads = targets.map(async (target, index) => {
    await client.read(target, index * 512);
    order.push(index);
  });
  await device.whenHeld(64);
  t.equal(client.inFlightCount, 64);
  while (device.held.length > 0) device.held[device.held.length - 1]?.finish();
  await Promise.all(reads);
  t.same(order, [...targets.keys()].toReversed(), 'answered last first');
  t.ok(
    targets.every((target, index) => target.every((byte) => byte === index)),
    'each its own bytes',
  );
});

t.test('large payloads pass over TCP', async (t) => {
  const device = new TestDevice({ sizeBytes: 40 * 1024 * 1024 });
  const server = new NbdServer({ exports: [exportOf(device, 'größe')] });
  t.teardown(() => server.close());
  const transport = await server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  const client = await connect(t, { transport, exportName: 'größe' });
  const content = Buffer.alloc(32 * 1024 * 1024);
  for (let at = 0; at < content.length; at += 4) content.writeUInt32BE(at, at);
  await client.write(content, 4096);
  const back = Buffer.alloc(content.length);
  await client.read(back, 4096);
  t.ok(back.equals(content));
  t.equal(device.calls.length, 2);
});

t.test('several exports, a default one only where it is clear, lists and info', async (t) => {
  const first = new TestDevice();
  const address = await serve(t, [exportOf(first, 'one')]);
  const byDefault = await connect(t, { ...address, exportName: '' });
  t.equal(byDefault.exportInfo.name, 'one', 'one export is the default');

  const two = await serve(t, [
    exportOf(first, 'one'),
    exportOf(new TestDevice({ sizeBytes: 512 * 7, readOnly: true }), 'two', { description: '' }),
  ]);
  t.same(await NbdClient.list(two), [
    { name: 'one', description: 'a disk' },
    { name: 'two', description: '' },
  ]);
  t.match(await NbdClient.info({ ...two, exportName: 'two' }), { sizeBytes: 3584, readOnly: true });
  await t.rejects(NbdClient.connect({ ...two, exportName: '' }), code('export-unknown'));
  await t.rejects(NbdClient.info({ ...two, exportName: 'three' }), code('export-unknown'));
});

t.test('the server answers what the export does not allow, and the client says so', async (t) => {
  const failing = new TestDevice({
    before: (call, offsetBytes) => {
      const codes = new Map([
        [512, 'ENOSPC'],
        [1024, 'poisoned'],
        [1536, 'ENOMEM'],
        [2048, 'EROFS'],
        [2560, 'no such code'],
        [3072, 'ESHUTDOWN'],
      ]);
      const code = codes.get(offsetBytes);
      if (code !== undefined) throw Object.assign(new Error(`${call} failed`), { code });
    },
  });
  const logged: string[] = [];
  const address = await serve(t, [exportOf(failing), exportOf(new TestDevice(), 'ro', { readOnly: true })], {
    log: ({ level, message }) => {
      if (level !== 'info') logged.push(message);
    },
  });
  const client = await connect(t, address);
  const block = Buffer.alloc(512);
  await t.rejects(client.write(block, 512), code('no-space'));
  await t.rejects(client.write(block, 1024), code('io'));
  await t.rejects(client.read(block, 1536), code('out-of-memory'));
  await t.rejects(client.write(block, 2048), code('read-only'));
  t.equal(logged.length, 4);
  await t.rejects(client.read(block, 2560), code('io'));
  t.equal(logged[4], 'Command 0 on 2560+512 failed: read failed', 'an unmapped code is EIO');
  await t.rejects(client.read(block, 3072), {
    ...code('shutting-down'),
    details: { errorName: 'ESHUTDOWN', errorValue: 108 },
  });
  await t.rejects(client.read(block, failing.sizeBytes), code('invalid-request'));
  await t.rejects(client.write(block, failing.sizeBytes), code('no-space'));
  await t.rejects(client.read(block, 100), code('invalid-request'));
  await t.rejects(client.read(Buffer.alloc(100), 0), code('invalid-request'));
  await client.read(Buffer.alloc(0), 0);

  const readOnly = await connect(t, { ...address, exportName: 'ro' });
  t.equal(readOnly.exportInfo.canWriteZeroes, false);
  await t.rejects(readOnly.write(block, 0), code('read-only'));
  await readOnly.read(block, 0);
});

t.test('errors of connecting have their codes', async (t) => {
  await t.rejects(NbdClient.connect('nbd+unix:///?socket=/does/not/exist'), code('connect-failed'));
  await t.rejects(NbdClient.connect('nbd:/oops'), NbdUriError);
  const http = await fakeServer(t, () => Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'));
  await t.rejects(NbdClient.connect(http), code('protocol-violation'));
  const silent = await fakeServer(t, () => undefined);
  await t.rejects(NbdClient.connect(silent, { timeoutMs: 20 }), code('connect-failed'));
  const hangsUp = await fakeServer(t, (_, socket) => void socket.destroy());
  await t.rejects(NbdClient.connect(hangsUp), code('connect-failed'));
  const tls = await fakeServer(t, (step) =>
    step === 0 ? encodeGreeting(3) : encodeOptionReply(OPTION.go, OPTION_REPLY.errorTlsRequired, none),
  );
  await t.rejects(NbdClient.connect(tls, PLAIN), code('tls-required'));
  const policy = await fakeServer(t, (step) =>
    step === 0
      ? encodeGreeting(3)
      : encodeOptionReply(OPTION.go, OPTION_REPLY.errorPolicy, Buffer.from('no')),
  );
  await t.rejects(NbdClient.connect(policy, PLAIN), {
    ...code('option-refused'),
    message: /refused option 7: no$/,
  });
});

t.test('an older server is asked with EXPORT_NAME', async (t) => {
  const reply = Buffer.alloc(10 + 124);
  reply.writeUInt32BE(5 * 512, 4);
  reply.writeUInt16BE(TRANSMISSION_FLAG.hasFlags | TRANSMISSION_FLAG.readOnly, 8);
  const unsupported = encodeOptionReply(OPTION.go, OPTION_REPLY.errorUnsupported, none);
  const steps = [encodeGreeting(1), unsupported, reply];
  const fixed = await connect(t, await fakeServer(t, (step) => steps[step]), PLAIN);
  t.match(fixed.exportInfo, { sizeBytes: 2560, readOnly: true, minimumBlockSizeBytes: 1 });
  const veryOld = await connect(t, await fakeServer(t, (step) => [encodeGreeting(0), reply][step]));
  t.match(veryOld.exportInfo, { sizeBytes: 2560, canFlush: false });
  const refuses = await fakeServer(t, (step, socket) => {
    if (step === 2) socket.destroy();
    return steps[step === 2 ? 3 : step];
  });
  await t.rejects(NbdClient.connect(refuses, PLAIN), code('export-unknown'));
});

t.test('a lost connection and nonsense fail all requests in flight', async (t) => {
  const hello = Buffer.concat([
    encodeOptionReply(
      OPTION.go,
      OPTION_REPLY.info,
      Buffer.from('0000000000000000100000050000', 'hex').subarray(0, 12),
    ),
    encodeOptionReply(OPTION.go, OPTION_REPLY.ack, none),
  ]);
  const dies = await fakeServer(t, (step, socket) => {
    if (step === 2) socket.destroy();
    return [encodeGreeting(3), hello][step];
  });
  const lost = await connect(t, dies, PLAIN);
  const both = await Promise.allSettled([lost.read(Buffer.alloc(512), 0), lost.read(Buffer.alloc(512), 512)]);
  t.match(both, [{ reason: code('connection-lost') }, { reason: code('connection-lost') }]);
  await t.rejects(lost.read(Buffer.alloc(512), 0), code('connection-lost'), 'and all later ones');
  t.notOk(lost.isConnected);

  const babbles = await fakeServer(t, (step) => [encodeGreeting(3), hello, Buffer.alloc(16, 'x')][step]);
  const confused = await connect(t, babbles, PLAIN);
  await t.rejects(confused.read(Buffer.alloc(512), 0), code('protocol-violation'));

  const client = await connect(t, await serve(t, [exportOf(new TestDevice())]));
  await client.disconnect();
  await client.disconnect();
  await t.rejects(client.read(Buffer.alloc(512), 0), code('disconnected'));
});

t.test('the client as a device keeps the promises of the port', async (t) => {
  const behind = new TestDevice({ sizeBytes: 3 * 1024 * 1024 });
  const limits = { payloadBytesMax: 1024 * 1024 };
  const address = await serve(t, [exportOf(behind)], { limits });
  const device = await openNbdDevice(address);
  t.match(device, { sizeBytes: 3 * 1024 * 1024, blockSizeBytes: 512 });
  t.same(device.capabilities, { readOnly: false, trim: true, extents: true, fastZero: true });
  const content = Buffer.alloc(device.sizeBytes, 'abcdefg');
  await device.write(content, 0, { fua: true });
  t.equal(behind.calls.length, 3, 'a large write is cut to the payload limit');
  const back = Buffer.alloc(device.sizeBytes);
  await device.read(back, 0);
  t.ok(back.equals(content));
  await device.trim(512, 512);
  await device.writeZeroes(2048, 512, { mayTrim: false });
  await device.flush();
  t.same(behind.calls.slice(6), ['zeroes 512+512', 'zeroes-no-hole 2048+512', 'flush 0+0']);
  t.same(await device.extents(0, 1024), [{ offsetBytes: 0, lengthBytes: 1024, hole: false, zero: false }]);
  t.throws(() => device.read(Buffer.alloc(512), device.sizeBytes), /outside of nbd nbd\+unix/);
  await device.close();
});

t.test('a device over a server that offers little does it another way', async (t) => {
  const behind = new TestDevice({ trim: false });
  const address = await serve(t, [exportOf(behind)]);
  const client = await connect(t, address);
  const poor = { ...client.exportInfo, canFua: false, canWriteZeroes: false };
  Object.defineProperty(client, 'exportInfo', { value: poor });
  const device = new NbdDevice(client);
  t.equal(device.capabilities.trim, false);
  behind.bytes.fill(1);
  await device.writeZeroes(512, 1024, { fua: true });
  t.same(behind.calls, ['write 512+1024', 'flush 0+0']);
  t.equal(behind.bytes.indexOf(0), 512);
  t.equal(behind.bytes.lastIndexOf(0), 1535);
  Object.defineProperty(client, 'exportInfo', { value: { ...poor, sizeBytes: 1000 } });
  t.throws(() => new NbdDevice(client), code('export-unsuitable'));
});

const none = Buffer.alloc(0);

/** A server that answers the connection and then each chunk with prepared bytes. */
async function fakeServer(
  t: Test,
  answer: (step: number, socket: Socket) => Buffer | undefined,
): Promise<NbdAddress> {
  const path = temporarySocket(t);
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    let step = 0;
    const next = (): void => {
      const bytes = answer(step, socket);
      step += 1;
      if (bytes !== undefined && !socket.destroyed) socket.write(bytes);
    };
    socket.on('data', next);
    socket.on('error', () => {});
    next();
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return { transport: { kind: 'unix', path }, exportName: 'x' };
}

t.test('every error of a client is an NbdClientError', async (t) => {
  await t.rejects(NbdClient.connect('nbd+unix:///?socket=/does/not/exist'), NbdClientError);
});
