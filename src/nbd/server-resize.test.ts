/**
 * Goal: an export that lets its clients make it larger does so, for the client that asked and for all others,
 * and never becomes smaller; one that does not, does not offer it. And a device that grows by itself shows
 * its size to whoever connects, and takes requests up to there.
 *
 * Method: a device of the test's with a size that changes, our own client, and raw requests for what our
 * client does not send.
 */

import t, { type Test } from 'tap';
import { deferred } from '../base/index.ts';
import { NbdClient } from './client.ts';
import { COMMAND, NBD_ERROR } from './codec.ts';
import type { Export } from './export.ts';
import { NbdServer } from './server.ts';
import { exportOf, RawClient } from './test-client.ts';
import { TestDevice } from './test-device.ts';
import { block, request } from './test-transmission.ts';

const KIB = 1024;

async function start(t: Test, change: (device: TestDevice) => Partial<Export>) {
  const device = new TestDevice({ sizeBytes: 4 * KIB });
  device.bytes = Buffer.alloc(64 * KIB);
  const server = new NbdServer({ exports: [{ ...exportOf(device), ...change(device) }] });
  t.teardown(() => server.close());
  const address = { host: '127.0.0.1', port: 0 };
  const transport = await server.listen({ kind: 'tcp', ...address });
  const readOnly = await server.listen({ kind: 'tcp', ...address }, { readOnly: true });
  const connect = async (): Promise<NbdClient> => {
    const client = await NbdClient.connect({ transport, exportName: 'disk' });
    t.teardown(() => client.disconnect());
    return client;
  };
  return { device, transport, readOnly, connect };
}

t.test('a client makes the export larger, for all', async (t) => {
  const asked: number[] = [];
  const { device, connect, readOnly } = await start(t, (grown) => ({
    resize: async (sizeBytes) => {
      asked.push(sizeBytes);
      if (sizeBytes > 32 * KIB) throw Object.assign(new Error('full'), { code: 'ENOSPC' });
      grown.sizeBytes = sizeBytes;
    },
  }));
  const client = await connect();
  const beside = await connect();
  t.ok(client.canResize);
  await t.rejects(beside.write(block(1), 4 * KIB), { code: 'no-space' });
  await client.resize(8 * KIB);
  t.equal(device.sizeBytes, 8 * KIB);
  await client.write(block(1), 8 * KIB - 512);
  await beside.write(block(2), 4 * KIB);
  await t.rejects(client.write(block(1), 8 * KIB), { code: 'no-space' });
  t.equal((await connect()).exportInfo.sizeBytes, 8 * KIB, 'who connects now is told');
  await client.resize(8 * KIB);
  t.strictSame(asked, [8 * KIB], 'the size that it has needs nothing');
  await t.rejects(client.resize(64 * KIB), {
    code: 'no-space',
    message: /Cannot resize to 65536 bytes: there is/,
  });
  await t.rejects(client.resize(4 * KIB), { code: 'read-only', message: /not made smaller/ });
  await t.rejects(client.resize(9 * KIB + 1), { code: 'invalid-request' });
  t.strictSame(asked, [8 * KIB, 64 * KIB]);
  const reader = await NbdClient.connect({ transport: readOnly, exportName: 'disk' });
  t.notOk(reader.canResize, 'a read-only listener offers none');
  await reader.disconnect();
});

t.test('two that ask at once get the larger size', async (t) => {
  const gate = deferred();
  const asked: number[] = [];
  const { device, connect } = await start(t, (grown) => ({
    resize: async (sizeBytes) => {
      asked.push(sizeBytes);
      await gate.promise;
      grown.sizeBytes = sizeBytes;
    },
  }));
  const [large, small] = [await connect(), await connect()];
  const resizes = [large.resize(16 * KIB)];
  await large.read(block(0), 0);
  resizes.push(small.resize(8 * KIB));
  await small.read(block(0), 0);
  gate.resolve();
  await Promise.all(resizes);
  t.equal(device.sizeBytes, 16 * KIB);
  t.strictSame(asked, [16 * KIB]);
});

t.test('an export that does not offer it refuses it', async (t) => {
  const { transport, connect, device } = await start(t, () => ({}));
  const client = await connect();
  t.notOk(client.canResize);
  t.throws(() => client.resize(8 * KIB), /does not offer NBD_CMD_RESIZE/);
  const raw = await RawClient.transmit(transport.kind === 'tcp' ? transport : { path: '' });
  raw.socket.write(request(COMMAND.resize, 1, { offsetBytes: 8 * KIB }));
  await raw.received(16);
  t.equal(raw.output.readUInt32BE(4), NBD_ERROR.EINVAL);
  raw.socket.destroy();
  device.sizeBytes = 8 * KIB;
  await client.write(block(1), 7 * KIB);
  t.equal((await connect()).exportInfo.sizeBytes, 8 * KIB, 'a device that grew by itself');
});

t.test('sizes that no client of ours asks for', async (t) => {
  const { transport } = await start(t, () => ({ resize: async () => void t.fail('not asked') }));
  const raw = await RawClient.transmit(transport.kind === 'tcp' ? transport : { path: '' });
  const huge = request(COMMAND.resize, 1);
  huge.fill(0xff, 16, 24);
  raw.socket.write(
    Buffer.concat([huge, request(COMMAND.resize, 2, { offsetBytes: 8 * KIB, lengthBytes: 512 })]),
  );
  await raw.received(32);
  t.equal(raw.output.readUInt32BE(4), NBD_ERROR.ENOSPC);
  t.equal(raw.output.readUInt32BE(16 + 4), NBD_ERROR.EINVAL);
  raw.socket.destroy();
});
