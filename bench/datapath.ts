/**
 * The data path against its peers: `bench/datapath [--rounds N] [--seconds S] [--only TEXT] [--directory DIR]`.
 *
 * Cowbell serves a volume with change tracking on; nbdkit's file plugin, qemu-nbd and nbd-server serve raw
 * files. All run at once and idle while another is measured. Each row is one fio job over its nbd engine; in
 * each round every server runs it once, in a rotating order, so that the machine's moods hit all alike. The
 * figure is the median of the rounds, and the ratio is to the best peer of the row.
 *
 * The files are in memory unless a directory is given: on a disk the file system takes most of the time of small
 * writes, and how much depends on what it did before.
 */

import { existsSync, mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { freePort, must } from '../native-tests/support/process.ts';
import { median, runFio, warm } from './fio.ts';
import {
  cpuSeconds,
  type Peer,
  startCowbellPeer,
  startNbdkit,
  startNbdServer,
  startQemuNbd,
  type Transport,
} from './peers.ts';

interface Workload {
  readonly name: string;
  readonly rw: string;
  readonly blockSize: string;
  readonly depth: number;
}

const WORKLOADS: readonly Workload[] = [
  { name: '4K randread d1', rw: 'randread', blockSize: '4k', depth: 1 },
  { name: '4K randwrite d1', rw: 'randwrite', blockSize: '4k', depth: 1 },
  { name: '4K randread d32', rw: 'randread', blockSize: '4k', depth: 32 },
  { name: '4K randwrite d32', rw: 'randwrite', blockSize: '4k', depth: 32 },
  { name: '64K randrw d16', rw: 'randrw', blockSize: '64k', depth: 16 },
  { name: '1M read d8', rw: 'read', blockSize: '1m', depth: 8 },
  { name: '1M write d8', rw: 'write', blockSize: '1m', depth: 8 },
];

/** A file system in memory. */
const MEMORY = '/dev/shm';
const SIZE_BYTES = 512 * 1024 ** 2;

interface Measured {
  readonly bytesPerSecond: number;
  readonly cpuSecondsPerGib: number;
}

async function measure(
  peer: Peer,
  workload: Workload,
  transport: Transport,
  connections: number,
  seconds: number,
): Promise<Measured> {
  await warm(peer.file);
  const cpuBefore = cpuSeconds(peer);
  const { bytes } = await runFio({
    ...workload,
    uri: peer.uri[transport],
    sizeBytes: SIZE_BYTES,
    seconds,
    connections,
  });
  return {
    bytesPerSecond: bytes / seconds,
    cpuSecondsPerGib: (cpuSeconds(peer) - cpuBefore) / (bytes / 1024 ** 3),
  };
}

/** One nbdcopy of the whole export, out of a server to nowhere or from a file into it. */
async function measureCopy(peer: Peer, direction: 'out' | 'in', source: string): Promise<Measured> {
  await warm(peer.file);
  const cpuBefore = cpuSeconds(peer);
  const started = performance.now();
  await must('nbdcopy', direction === 'out' ? [peer.uri.unix, 'null:'] : [source, peer.uri.unix]);
  const seconds = (performance.now() - started) / 1000;
  return {
    bytesPerSecond: SIZE_BYTES / seconds,
    cpuSecondsPerGib: (cpuSeconds(peer) - cpuBefore) / (SIZE_BYTES / 1024 ** 3),
  };
}

function medianOf(results: readonly Measured[], key: keyof Measured): number {
  return median(results.map((result) => result[key]));
}

async function row(
  title: string,
  peers: readonly Peer[],
  rounds: number,
  run: (peer: Peer) => Promise<Measured>,
): Promise<void> {
  const results = new Map<Peer, Measured[]>(peers.map((peer) => [peer, []]));
  for (let round = 0; round < rounds; round += 1) {
    const order = peers.map((_, index) => peers[(index + round) % peers.length]);
    for (const peer of order) {
      if (peer !== undefined) results.get(peer)?.push(await run(peer));
    }
  }
  const speeds = peers.map((peer) => ({
    peer,
    speed: medianOf(results.get(peer) ?? [], 'bytesPerSecond'),
    cpu: medianOf(results.get(peer) ?? [], 'cpuSecondsPerGib'),
  }));
  const own = speeds.find(({ peer }) => peer.name === 'cowbell')?.speed ?? Number.NaN;
  const best = Math.max(...speeds.filter(({ peer }) => peer.name !== 'cowbell').map(({ speed }) => speed));
  const figures = speeds.map(
    ({ peer, speed, cpu }) =>
      `${peer.name} ${(speed / 1024 ** 2).toFixed(0)} MiB/s (${cpu.toFixed(2)} s/GiB)`,
  );
  console.log(`${title.padEnd(34)} ${(own / best).toFixed(2)} of the best peer   ${figures.join('   ')}`);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '3' },
      only: { type: 'string', default: '' },
      directory: { type: 'string', default: existsSync(MEMORY) ? MEMORY : tmpdir() },
    },
  });
  const directory = mkdtempSync(join(values.directory, 'cowbell-bench-'));
  const free = statfsSync(directory);
  if (free.bavail * free.bsize < 7 * SIZE_BYTES)
    throw new Error(`The benchmark needs 3.5 GiB free under ${directory}`);
  const peers: Peer[] = [];
  const rounds = Number(values.rounds);
  const source = join(directory, 'source.raw');
  try {
    const place = async () => ({ directory, sizeBytes: SIZE_BYTES, port: await freePort() });
    peers.push(await startCowbellPeer(await place()));
    for (const start of [startNbdkit, startQemuNbd, startNbdServer]) peers.push(await start(await place()));
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const fill: Workload = { name: 'fill', rw: 'write', blockSize: '1m', depth: 8 };
    await must('dd', ['if=/dev/urandom', `of=${source}`, 'bs=1M', `count=${SIZE_BYTES / 1024 ** 2}`]);
    for (const peer of peers) await measure(peer, fill, 'unix', 1, 3);
    for (const workload of WORKLOADS) {
      for (const connections of [1, 4]) {
        for (const transport of ['unix', 'tcp'] as const) {
          const title = `${workload.name}, ${connections} conn, ${transport}`;
          if (!title.includes(values.only)) continue;
          await row(title, peers, rounds, (peer) =>
            measure(peer, workload, transport, connections, Number(values.seconds)),
          );
        }
      }
    }
    for (const direction of ['out', 'in'] as const) {
      const title = `nbdcopy ${direction}, unix`;
      if (!title.includes(values.only)) continue;
      await row(title, peers, rounds, (peer) => measureCopy(peer, direction, source));
    }
  } finally {
    for (const peer of peers) await peer.stop();
    rmSync(directory, { recursive: true, force: true });
  }
}

await main();
