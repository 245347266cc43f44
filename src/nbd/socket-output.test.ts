/**
 * Goal: what a socket did not take at once is exactly what is left to send. Method: real sockets, a reader that comes
 * late, buffers of many sizes.
 */

import { createServer, type Socket } from 'node:net';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer as collect } from 'node:stream/consumers';
import { connect } from 'node:net';
import t, { type Test } from 'tap';
import { descriptorOf } from './socket-input.ts';
import { sendAtOnce } from './socket-output.ts';

async function pair(
  t: Test,
): Promise<{ readonly near: Socket; readonly far: Socket; readonly descriptor: number }> {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-output-'));
  const server = createServer({ pauseOnConnect: true });
  const path = join(directory, 's');
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const far = connect(path).pause();
  const near = await new Promise<Socket>((resolve) => server.once('connection', resolve));
  t.teardown(() => {
    near.destroy();
    far.destroy();
    server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const descriptor = descriptorOf(near);
  if (descriptor === undefined) throw new Error('This Node hides the descriptor of a socket');
  return { near, far, descriptor };
}

const numbered = (lengthBytes: number, seed: number): Buffer =>
  Buffer.from(Uint8Array.from({ length: lengthBytes }, (_, index) => (index * 31 + seed) % 251));

t.test('what fits is gone at once', async (t) => {
  const { near, far, descriptor } = await pair(t);
  t.same(sendAtOnce(descriptor, [numbered(1000, 1)]), []);
  t.same(sendAtOnce(descriptor, [numbered(10, 2), numbered(0, 0), numbered(30, 3)]), []);
  near.end();
  const expected = Buffer.concat([numbered(1000, 1), numbered(10, 2), numbered(30, 3)]);
  t.ok(expected.equals(await collect(far)));
});

for (const sizes of [[4_000_000], [100, 3_000_000, 5, 700_000], [200_000, 200_000, 200_000, 200_000]]) {
  t.test(`the rest of ${sizes.join(', ')} bytes is what was not taken`, async (t) => {
    const { near, far, descriptor } = await pair(t);
    const buffers = sizes.map((size, index) => numbered(size, index));
    const rest = sendAtOnce(descriptor, buffers);
    const restBytes = rest.reduce((sum, buffer) => sum + buffer.length, 0);
    t.ok(restBytes > 0 && restBytes < Buffer.concat(buffers).length, `${restBytes} bytes are left`);
    t.same(sendAtOnce(descriptor, rest), rest, 'a full socket takes nothing');
    for (const buffer of rest) near.write(buffer);
    near.end();
    t.ok(Buffer.concat(buffers).equals(await collect(far)));
  });
}

t.test('a broken connection is left to the stream', async (t) => {
  const { near, far, descriptor } = await pair(t);
  far.destroy();
  await new Promise((resolve) => far.once('close', resolve));
  const buffers = [numbered(10, 1)];
  t.equal(sendAtOnce(descriptor, buffers), buffers);
  near.destroy();
});
