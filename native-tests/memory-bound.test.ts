/**
 * Goal: a serving process stays within a stated amount of memory, whatever its clients leave in its hands: 64 of
 * them, each with 64 requests of 1 MiB in flight, as writes that the volume does not take and as reads whose
 * replies nobody takes. Another client is still served, and in the end everything is answered.
 *
 * Method: raw sockets that send all they have at once. Writes are held by a backup whose child process is stopped
 * and whose container is full. The kernel's own record of the most memory a process ever had (VmHWM) is
 * compared with the sum of what `base/limits.ts` allows and what Node needs by itself.
 */
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { LIMITS, MIB } from '../src/base/index.ts';
import { NbdClient } from '../src/nbd/index.ts';
import { childrenOf, must, mustCowbell, type Running, startCowbell } from './support/process.ts';
import { type Served, serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const CONNECTION_COUNT = 64;
const REQUEST_COUNT = 64;
const SIZE_MIB = 256;
/** Node itself with Cowbell's code, its heap, and what the allocator keeps: about 100 MiB after a start. */
const PROCESS_BYTES = 192 * MIB;
/** Input buffers, and buffers that are kept for later. */
const BUFFER_BYTES = CONNECTION_COUNT * LIMITS.nbdInputBytesMax + LIMITS.nbdIdleBufferBytesMax;
/** Requests that run, and replies that were not taken. */
const READING_BYTES_MAX = PROCESS_BYTES + BUFFER_BYTES + LIMITS.nbdMemoryBytesMax;
/** Writes that wait for a backup are counted apart, up to as much again. */
const WAITING_BYTES_MAX = READING_BYTES_MAX + LIMITS.nbdMemoryBytesMax;
const SETTLED_MS = 1500;
const SETTLE_MS_MAX = 60_000;
const ANSWER_MS_MAX = 120_000;
const READ = 0;
const WRITE = 1;
const REPLY_BYTES = 16;
/** The greeting, and the answers to NBD_OPT_GO: size and flags, block sizes, acknowledgement. */
const HANDSHAKE_BYTES = 18 + 32 + 34 + 20;

/** Client flags (fixed newstyle, no zeroes) and NBD_OPT_GO for the export `vol`. */
const HANDSHAKE = Buffer.from('\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0', 'latin1');

function requestHeader(type: number, cookie: number, offsetBytes: number): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(0x25609513, 0);
  header.writeUInt16BE(type, 6);
  header.writeUInt32BE(cookie, 12);
  header.writeBigUInt64BE(BigInt(offsetBytes), 16);
  header.writeUInt32BE(MIB, 24);
  return header;
}

/** A client that sends its requests at once, and takes answers when it is told to. */
class Flood {
  readonly #socket: Socket;
  receivedBytes = 0;

  constructor(path: string, type: number, index: number) {
    this.#socket = connect(path);
    this.#socket.write(HANDSHAKE);
    const payload = Buffer.alloc(MIB, index + 1);
    for (let request = 0; request < REQUEST_COUNT; request += 1) {
      const offsetBytes = ((index * REQUEST_COUNT + request) % SIZE_MIB) * MIB;
      this.#socket.write(requestHeader(type, request, offsetBytes));
      if (type === WRITE) this.#socket.write(payload);
    }
  }

  /** Takes `wantedBytes` of answers behind the handshake; fails where the server ends before. */
  async take(wantedBytes: number): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#socket.on('data', (chunk: Buffer) => {
        this.receivedBytes += chunk.length;
        if (this.receivedBytes === HANDSHAKE_BYTES + wantedBytes) resolve();
      });
      this.#socket.on('error', reject);
      this.#socket.on('close', () =>
        reject(new Error(`The server closed after ${this.receivedBytes} bytes`)),
      );
    });
    this.#socket.destroy();
  }
}

/** A line of /proc/<pid>/status in bytes. */
function memoryOf(server: Running, line: 'VmRSS' | 'VmHWM'): number {
  const status = readFileSync(`/proc/${server.child.pid}/status`, 'latin1');
  return Number(new RegExp(`${line}:\\s+(\\d+) kB`).exec(status)?.[1]) * 1024;
}

/** Waits until the server's memory has not grown for a while: it takes no more than it has. */
async function settled(server: Running): Promise<void> {
  const startMs = performance.now();
  let [most, sinceMs] = [0, startMs];
  while (performance.now() - sinceMs < SETTLED_MS) {
    const now = memoryOf(server, 'VmRSS');
    if (now > most + MIB) [most, sinceMs] = [now, performance.now()];
    if (performance.now() - startMs > SETTLE_MS_MAX) throw new Error('The server’s memory never settles');
    await sleep(50);
  }
}

async function allAnswered(floods: readonly Flood[], wantedBytes: number): Promise<void> {
  const timeout = AbortSignal.timeout(ANSWER_MS_MAX);
  const late = new Promise<never>((_, reject) => {
    timeout.addEventListener('abort', () => reject(new Error(`Not all is answered in ${ANSWER_MS_MAX} ms`)));
  });
  await Promise.race([late, Promise.all(floods.map((flood) => flood.take(wantedBytes)))]);
}

const startFloods = (served: Served, type: number): readonly Flood[] =>
  Array.from({ length: CONNECTION_COUNT }, (_, index) => new Flood(`${served.volume}/nbd.sock`, type, index));

const inMib = (bytes: number): string => `${Math.round(bytes / MIB)} MiB`;

t.test('reads whose replies are not taken', async (t) => {
  const served = await serveVolume(t, { size: `${SIZE_MIB}M` });
  const { server, uri } = served;
  const idle = memoryOf(server, 'VmRSS');
  const floods = startFloods(served, READ);
  await settled(server);
  const client = await NbdClient.connect(uri);
  await client.write(Buffer.alloc(MIB, 1), 0, { fua: true });
  await client.disconnect();
  const full = memoryOf(server, 'VmRSS');
  await allAnswered(floods, REQUEST_COUNT * (MIB + REPLY_BYTES));
  const most = memoryOf(server, 'VmHWM');
  t.comment(
    `idle ${inMib(idle)}, full ${inMib(full)}, at most ${inMib(most)} of ${inMib(READING_BYTES_MAX)}`,
  );
  t.ok(most < READING_BYTES_MAX, `${inMib(most)} at most`);
  t.equal((await server.stop()).status, 0);
});

t.test('writes that wait for a stalled backup', async (t) => {
  if (!requireTools(t, ['nbdcopy', 'dd'])) return;
  const served = await serveVolume(t, { size: `${SIZE_MIB}M` });
  const { at, volume, server, uri } = served;
  await must('dd', ['if=/dev/urandom', `of=${at('in.raw')}`, 'bs=1M', `count=${SIZE_MIB}`]);
  await must('nbdcopy', ['--flush', at('in.raw'), uri]);
  await mustCowbell(['store', 'init', at('store')]);
  const words = ['--json', 'backup', '--store', at('store'), volume, '--container', 'memory:1M'];
  const backup = startCowbell(words);
  await backup.waitForLine(/"event":"progress"/);
  const [child = 0] = childrenOf(server.child.pid);
  t.ok(child > 0, 'the backup has a process');
  process.kill(child, 'SIGSTOP');

  const idle = memoryOf(server, 'VmRSS');
  const floods = startFloods(served, WRITE);
  await settled(server);
  const client = await NbdClient.connect(uri);
  const target = Buffer.alloc(4096);
  await client.read(target, (SIZE_MIB - 1) * MIB);
  await client.disconnect();
  const full = memoryOf(server, 'VmRSS');
  process.kill(child, 'SIGCONT');
  await allAnswered(floods, REQUEST_COUNT * REPLY_BYTES);
  const most = memoryOf(server, 'VmHWM');
  t.comment(
    `idle ${inMib(idle)}, full ${inMib(full)}, at most ${inMib(most)} of ${inMib(WAITING_BYTES_MAX)}`,
  );
  t.ok(most < WAITING_BYTES_MAX, `${inMib(most)} at most`);
  t.equal((await backup.wait(ANSWER_MS_MAX)).status, 0);
  t.equal((await server.stop()).status, 0);
});
