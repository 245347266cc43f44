/**
 * Goal: requests that a slow device takes together are served together: 32 of them at once in about the time of
 * one, and a reply waits for no other request.
 *
 * Method: a real server and client on a Unix socket. That the device is given all 32 calls before the first has
 * finished is asked without a clock. With a device that holds each call for 5 ms the clock is asked too, for
 * the best of several tries: one after the other would take 160 ms.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient } from './client.ts';
import { NbdServer } from './server.ts';
import { TestDevice } from './test-device.ts';

const LATENCY_MS = 5;
const REQUEST_COUNT = 32;
const TRY_COUNT_MAX = 10;
const TIMES_MAX = 3;

async function serve(t: Test, device: TestDevice): Promise<NbdClient> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const exported = { name: '', description: '', device, readOnly: false, multiConn: true };
  const server = new NbdServer({ exports: [exported] });
  const transport = await server.listen({ kind: 'unix', path: join(directory, 'nbd.sock') });
  const client = await NbdClient.connect({ transport, exportName: '' });
  t.teardown(async () => {
    await client.disconnect();
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return client;
}

/** As many requests as there may be, of one kind or another, each somewhere else. */
function request(client: NbdClient, kind: 'read' | 'write' | 'mixed', index: number): Promise<void> {
  const bytes = Buffer.alloc(4096, index);
  const isRead = kind === 'read' || (kind === 'mixed' && index % 2 === 0);
  return isRead ? client.read(bytes, index * 8192) : client.write(bytes, index * 8192);
}

for (const kind of ['read', 'write', 'mixed'] as const) {
  t.test(`${kind}: ${REQUEST_COUNT} requests in about one latency`, async (t) => {
    const device: TestDevice = new TestDevice({
      holds: () => {
        setTimeout(() => device.finishNext(), LATENCY_MS);
        return true;
      },
    });
    const client = await serve(t, device);
    let bestMs = Number.POSITIVE_INFINITY;
    for (let attempt = 0; attempt < TRY_COUNT_MAX && bestMs >= TIMES_MAX * LATENCY_MS; attempt += 1) {
      const startMs = performance.now();
      await Promise.all(Array.from({ length: REQUEST_COUNT }, (_, index) => request(client, kind, index)));
      bestMs = Math.min(bestMs, performance.now() - startMs);
    }
    t.ok(bestMs < TIMES_MAX * LATENCY_MS, `all took ${bestMs.toFixed(1)} ms`);
  });
}

t.test('a reply waits for no other request', async (t) => {
  const device = new TestDevice({ holds: () => true });
  const client = await serve(t, device);
  const answered: number[] = [];
  const all = Array.from({ length: REQUEST_COUNT }, async (_, index) => {
    await request(client, 'mixed', index);
    answered.push(index);
  });
  await device.whenHeld(REQUEST_COUNT);
  t.equal(device.calls.length, REQUEST_COUNT, 'the device has all of them and has finished none');
  // From the last to the first, each only after the one before was answered.
  for (let index = REQUEST_COUNT - 1; index >= 0; index -= 1) {
    device.held[index]?.finish();
    await all[index];
  }
  t.same(
    answered,
    Array.from({ length: REQUEST_COUNT }, (_, index) => REQUEST_COUNT - 1 - index),
  );
});
