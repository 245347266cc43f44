/**
 * Goal: nothing that a client sends ends the server or disturbs other clients: garbage, handshakes and requests
 * cut off anywhere, bits flipped in them, options and requests larger than allowed, offsets outside.
 *
 * Method: raw sockets against a running server, while one good client goes on. The seed is printed;
 * COWBELL_SEED repeats it.
 */
import { randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import t from 'tap';
import { SeededRandom } from '../src/base/index.ts';
import { NbdClient } from '../src/nbd/index.ts';
import { type Served, serveVolume } from './support/served.ts';

const MIB = 1_048_576;
const SIZE_BYTES = 4 * MIB;
/** Newstyle greeting: two magic numbers and flags. */
const GREETING_BYTES = 18;
const WRITE = 1;
const READ = 0;
const TRIM = 4;
const WRITE_ZEROES = 6;

function option(type: number, data: Buffer, lengthBytes: number = data.length): Buffer {
  const header = Buffer.alloc(16);
  header.write('IHAVEOPT', 0, 'latin1');
  header.writeUInt32BE(type, 8);
  header.writeUInt32BE(lengthBytes, 12);
  return Buffer.concat([header, data]);
}

/** Client flags (fixed newstyle, no zeroes) and NBD_OPT_GO for the export `vol`. */
function handshake(): Buffer {
  return Buffer.concat([Buffer.from([0, 0, 0, 3]), option(7, Buffer.from('\0\0\0\x03vol\0\0', 'latin1'))]);
}

function request(type: number, offsetBytes: bigint, lengthBytes: number, payload?: Buffer): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(0x25609513, 0);
  header.writeUInt16BE(type, 6);
  header.writeBigUInt64BE(77n, 8);
  header.writeBigUInt64BE(offsetBytes, 16);
  header.writeUInt32BE(lengthBytes, 24);
  return payload === undefined ? header : Buffer.concat([header, payload]);
}

/** Sends bytes, says goodbye, and returns all that came back, once the server has closed too. */
async function exchange(path: string, bytes: Buffer): Promise<Buffer> {
  return await new Promise((resolve, reject) => {
    const socket: Socket = connect(path);
    const received: Buffer[] = [];
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`The server keeps a connection that has ended: ${bytes.toString('hex', 0, 64)}`));
    }, 8000);
    socket.on('data', (chunk) => received.push(chunk));
    socket.on('error', () => undefined); // Whatever the server does to this connection is right.
    socket.on('close', () => {
      clearTimeout(timer);
      resolve(Buffer.concat(received));
    });
    socket.end(bytes);
  });
}

/** The error value of the first reply after the handshake; undefined where there is none. */
async function refusal(path: string, bytes: Buffer): Promise<number | undefined> {
  const received = await exchange(path, Buffer.concat([handshake(), bytes]));
  const at = received.indexOf(Buffer.from([0x67, 0x44, 0x66, 0x98]), GREETING_BYTES);
  return at < 0 ? undefined : received.readUInt32BE(at + 4);
}

/** A client that was there before, and a new one, read what was written at the beginning. */
async function prepare(served: Served): Promise<{ path: string; assertServing: () => Promise<void> }> {
  const content = randomBytes(SIZE_BYTES);
  const good = await NbdClient.connect(served.uri);
  await good.write(content, 0);
  return {
    path: `${served.volume}/nbd.sock`,
    assertServing: async () => {
      const fresh = await NbdClient.connect(served.uri);
      for (const client of [good, fresh]) {
        const read = Buffer.alloc(SIZE_BYTES);
        await client.read(read, 0);
        if (!read.equals(content)) throw new Error('The volume has changed');
      }
      await fresh.disconnect();
    },
  };
}

t.test('garbage and cut off handshakes', async (t) => {
  const served = await serveVolume(t, { size: '4M' });
  const { path, assertServing } = await prepare(served);
  const whole = Buffer.concat([handshake(), request(READ, 0n, 512)]);
  for (let length = 0; length < whole.length; length += 1) await exchange(path, whole.subarray(0, length));
  await assertServing();

  for (let round = 0; round < 40; round += 1) {
    const garbage = randomBytes(1 + round * 97);
    await exchange(path, garbage);
    await exchange(path, Buffer.concat([Buffer.from([0, 0, 0, 3]), garbage]));
    await exchange(path, Buffer.concat([handshake(), garbage]));
  }
  await assertServing();

  const options = [
    option(7, Buffer.alloc(16), 0xffffffff),
    option(7, Buffer.from('\xff\xff\xff\xffvol\0\0', 'latin1')),
    option(1, Buffer.alloc(8192, 0x61)),
    option(99, Buffer.alloc(65_536)),
    Buffer.concat(Array.from({ length: 1000 }, () => option(3, Buffer.alloc(0)))),
  ];
  for (const bytes of options) await exchange(path, Buffer.concat([Buffer.from([0, 0, 0, 3]), bytes]));
  await assertServing();
  t.equal(served.server.ended, undefined);
  t.equal((await served.server.stop()).status, 0);
});

t.test('flipped bits', async (t) => {
  const seed = Number(process.env['COWBELL_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
  t.comment(`COWBELL_SEED=${seed}`);
  const random = new SeededRandom(seed);
  const served = await serveVolume(t, { size: '4M' });
  const { path, assertServing } = await prepare(served);
  // Requests that change nothing as they are; a flip that makes a write of one lacks its payload.
  const whole = Buffer.concat([handshake(), request(READ, 0n, 4096), request(3, 0n, 0)]);
  for (let round = 0; round < 300; round += 1) {
    const bytes = Buffer.from(whole);
    for (let flips = 1 + random.below(3); flips > 0; flips -= 1) {
      const at = random.below(bytes.length);
      // Byte 7 of a request is its type: one flip away from a trim or zeroes, which may be done.
      if (at === handshake().length + 7 || at === handshake().length + 28 + 7) continue;
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.below(8));
    }
    await exchange(path, bytes);
  }
  await assertServing();
  t.equal((await served.server.stop()).status, 0);
});

t.test('requests that are too large, outside, or cut off', async (t) => {
  const served = await serveVolume(t, { size: '4M' });
  const { path, assertServing } = await prepare(served);
  const [EINVAL, ENOSPC] = [22, 28];
  t.equal(await refusal(path, request(READ, 0n, 32 * MIB + 512)), EINVAL);
  t.equal(await refusal(path, request(READ, 0n, 0xffffffff)), EINVAL);
  t.equal(await refusal(path, request(READ, BigInt(SIZE_BYTES), 512)), EINVAL);
  t.equal(await refusal(path, request(READ, 2n ** 64n - 512n, 512)), EINVAL);
  t.equal(await refusal(path, request(TRIM, 2n ** 63n, 512)), EINVAL);
  t.equal(await refusal(path, request(WRITE_ZEROES, 0n, 0xffffffff)), ENOSPC);
  t.equal(await refusal(path, request(WRITE, BigInt(SIZE_BYTES), 512, randomBytes(512))), ENOSPC);
  t.equal(await refusal(path, request(WRITE, 2n ** 53n, 512, randomBytes(512))), ENOSPC);
  t.equal(await refusal(path, request(99, 0n, 512)), EINVAL);
  const oversize = await refusal(path, request(WRITE, 0n, 64 * MIB, randomBytes(MIB)));
  t.ok(oversize === undefined || oversize === EINVAL, 'a write of 64 MiB is not done');
  t.equal(await refusal(path, request(WRITE, 0n, 65_536, randomBytes(65_535))), undefined);
  await assertServing();
  t.equal((await served.server.stop()).status, 0);
});
