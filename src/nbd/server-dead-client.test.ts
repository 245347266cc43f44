/**
 * Goal: to know, and keep, what becomes of requests that a client over TCP had sent and the server had not
 * read when the client went away.
 *
 * Method: a connection that may have one request in flight, whose device holds the first write; behind it
 * more writes, some in the chunk that was read, some still in the kernel. Then the client resets, closes its
 * sending side, or is gone without a reset; meanwhile another connection writes to the same places.
 */

import t, { type Test } from 'tap';
import { NbdServer } from './server.ts';
import { exportOf, RawClient, untilNoConnections } from './test-client.ts';
import { TestDevice } from './test-device.ts';
import { block, write } from './test-transmission.ts';

const STALE = 1;
const NEW = 2;
const COUNT = 8;

async function start(t: Test) {
  let isFirst = true;
  const device = new TestDevice({
    holds: () => {
      const holds = isFirst;
      isFirst = false;
      return holds;
    },
  });
  const server = new NbdServer({ exports: [exportOf(device)], limits: { inFlightCountMax: 1 } });
  t.teardown(() => server.close());
  const transport = await server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  const connect = (): Promise<RawClient> =>
    RawClient.transmit(transport.kind === 'tcp' ? transport : { path: '' });
  const client = await connect();
  client.socket.write(Buffer.concat([0, 1, 2].map((index) => write(index, index * 512, block(STALE)))));
  await device.whenHeld(1);
  // Nobody reads these for now.
  for (let index = 3; index < COUNT; index += 1) client.socket.write(write(index, index * 512, block(STALE)));
  await new Promise<void>((resolve) => client.socket.write('', () => resolve()));
  return { device, server, client, connect };
}

/** Writes all places but the held one through another connection, and waits for the answers. */
async function writeAnew(connect: () => Promise<RawClient>): Promise<RawClient> {
  const other = await connect();
  for (let index = 1; index < COUNT; index += 1) other.socket.write(write(index, index * 512, block(NEW)));
  await other.received((COUNT - 1) * 16);
  return other;
}

function contentOf(device: TestDevice): number[] {
  return Array.from({ length: COUNT }, (_, index) => device.bytes[index * 512] ?? -1);
}

t.test('a reset: what was not read is not begun', async (t) => {
  const { device, server, client, connect } = await start(t);
  client.socket.resetAndDestroy();
  await client.closed;
  const other = await writeAnew(connect);
  device.finishNext();
  await untilNoConnections(server, 1);
  t.equal(device.calls.length, COUNT, 'the held one, and those of the other connection');
  t.same(contentOf(device), [STALE, NEW, NEW, NEW, NEW, NEW, NEW, NEW]);
  other.socket.destroy();
});

t.test('a half-close: everything is read, done and answered', async (t) => {
  const { device, server, client } = await start(t);
  client.socket.end();
  device.finishNext();
  await client.closed;
  t.equal(client.output.length, COUNT * 16);
  t.same(
    contentOf(device),
    Array.from({ length: COUNT }, () => STALE),
  );
  await untilNoConnections(server);
});

t.test('a client that closed without a reset: what was not read is not begun', async (t) => {
  const { device, server, client, connect } = await start(t);
  client.socket.destroy();
  await client.closed;
  const other = await writeAnew(connect);
  device.finishNext();
  await untilNoConnections(server, 1);
  t.equal(device.calls.length, COUNT, 'the held one, and those of the other connection');
  t.same(contentOf(device), [STALE, NEW, NEW, NEW, NEW, NEW, NEW, NEW]);
  other.socket.destroy();
});

t.test('a client that is there keeps what it sent, however late it is read', async (t) => {
  const { device, server, client, connect } = await start(t);
  const other = await writeAnew(connect);
  device.finishNext();
  await client.received(COUNT * 16);
  t.equal(device.calls.length, 2 * COUNT - 1);
  client.socket.destroy();
  other.socket.destroy();
  await untilNoConnections(server);
});
