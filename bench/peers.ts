/**
 * The servers that the datapath benchmark compares, each over a raw file of its own, already written once so
 * that its pages are in the cache and its blocks allocated.
 */

import { spawn } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { killAtExit, must, mustCowbell, Running, startCowbell } from '../native-tests/support/process.ts';

export type Transport = 'unix' | 'tcp';

export interface Peer {
  readonly name: string;
  readonly uri: Readonly<Record<Transport, string>>;
  /** What it serves, for bringing it into the page cache. */
  readonly file: string;
  /** The processes that serve, for their CPU time. */
  readonly pids: readonly number[];
  stop(): Promise<void>;
}

interface Place {
  readonly directory: string;
  readonly sizeBytes: number;
  /** A free TCP port for this peer. */
  readonly port: number;
}

const TICKS_PER_SECOND = 100;

/** User and system seconds that the processes and their threads have used so far. */
export function cpuSeconds(peer: { readonly pids: readonly number[] }): number {
  let ticks = 0;
  for (const pid of peer.pids) {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
    // Fields 14 to 17 of proc(5), counted from the state after the name: own and waited-for children's times.
    for (const index of [11, 12, 13, 14]) ticks += Number(fields[index] ?? 0);
  }
  return ticks / TICKS_PER_SECOND;
}

export async function startCowbellPeer({ directory, sizeBytes, port }: Place): Promise<Peer> {
  const volume = join(directory, 'cowbell');
  await mustCowbell(['volume', 'create', volume, '--size', String(sizeBytes)]);
  const server = startCowbell(['serve', volume, '--listen', `127.0.0.1:${port}`]);
  await server.waitForLine(/^ready nbd:/);
  return {
    name: 'cowbell',
    uri: {
      unix: `nbd+unix:///cowbell?socket=${join(volume, 'nbd.sock')}`,
      tcp: `nbd://127.0.0.1:${port}/cowbell`,
    },
    file: join(volume, 'home.raw'),
    pids: pidsOf(server),
    stop: async () => {
      await server.stop();
    },
  };
}

/** Serves over one transport a process: two processes, one file. */
function startPair(
  name: string,
  file: string,
  commands: Readonly<Record<Transport, readonly string[]>>,
  uri: Readonly<Record<Transport, string>>,
): Peer {
  const children = Object.values(commands).map(([command = '', ...args]) => {
    const child = spawn(command, args, { stdio: 'ignore' });
    killAtExit(child);
    return child;
  });
  return {
    name,
    file,
    uri,
    pids: children.flatMap(({ pid }) => (pid === undefined ? [] : [pid])),
    stop: async () => {
      for (const child of children) child.kill('SIGTERM');
    },
  };
}

export function startNbdkit({ directory, sizeBytes, port }: Place): Peer {
  const file = makeFile(directory, 'nbdkit.raw', sizeBytes);
  const socket = join(directory, 'nbdkit.sock');
  return startPair(
    'nbdkit',
    file,
    {
      unix: ['nbdkit', '-f', '-U', socket, 'file', file],
      tcp: ['nbdkit', '-f', '-i', '127.0.0.1', '-p', String(port), 'file', file],
    },
    { unix: `nbd+unix:///?socket=${socket}`, tcp: `nbd://127.0.0.1:${port}` },
  );
}

export function startQemuNbd({ directory, sizeBytes, port }: Place): Peer {
  const file = makeFile(directory, 'qemu-nbd.raw', sizeBytes);
  const socket = join(directory, 'qemu-nbd.sock');
  // Two writers on one file: only one of the two is used at a time, so sharing it is safe here.
  const image = `driver=raw,file.driver=file,file.filename=${file},file.locking=off`;
  return startPair(
    'qemu-nbd',
    file,
    {
      unix: ['qemu-nbd', '-t', '-e', '8', '-k', socket, '--image-opts', image],
      tcp: ['qemu-nbd', '-t', '-e', '8', '-b', '127.0.0.1', '-p', String(port), '--image-opts', image],
    },
    { unix: `nbd+unix:///?socket=${socket}`, tcp: `nbd://127.0.0.1:${port}` },
  );
}

/** A daemon that forks for each connection; in the foreground it would end with the first one. */
export async function startNbdServer({ directory, sizeBytes, port }: Place): Promise<Peer> {
  const file = makeFile(directory, 'nbd-server.raw', sizeBytes);
  const socket = join(directory, 'nbd-server.sock');
  const pids: number[] = [];
  for (const [name, listen] of [
    ['unix', `unixsock = ${socket}`],
    ['tcp', `listenaddr = 127.0.0.1\nport = ${port}`],
  ] as const) {
    const path = join(directory, `nbd-server-${name}`);
    writeFileSync(
      `${path}.conf`,
      `[generic]\n${listen}\n[disk]\nexportname = ${file}\nflush = true\nfua = true\n`,
    );
    await must('nbd-server', ['-C', `${path}.conf`, '-p', `${path}.pid`]);
    await new Promise((resolve) => setTimeout(resolve, 500));
    pids.push(Number(readFileSync(`${path}.pid`, 'utf8')));
  }
  return {
    name: 'nbd-server',
    file,
    uri: { unix: `nbd+unix:///disk?socket=${socket}`, tcp: `nbd://127.0.0.1:${port}/disk` },
    pids,
    stop: async () => {
      for (const pid of pids) process.kill(pid, 'SIGTERM');
    },
  };
}

function makeFile(directory: string, name: string, sizeBytes: number): string {
  const path = join(directory, name);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

function pidsOf(server: Running): number[] {
  return server.child.pid === undefined ? [] : [server.child.pid];
}
