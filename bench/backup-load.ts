/**
 * A backup under load: a server of a raw file, fio's 4 KiB random writes at depth 32 through it all the time, and a
 * backup in the midst of them. `cowbell serve` with `cowbell backup`, and qemu-storage-daemon with a `blockdev-backup`
 * job, which copies before writing too.
 *
 * fio logs a histogram of its completion latencies every 100 ms with the time of day; what is said about a span of time
 * is put together from those within it. So a percentile is exact to fio's bins, 1.6 %.
 */

import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { must, mustCowbell, Running, startCowbell } from '../native-tests/support/process.ts';
import { fioArguments } from './fio.ts';

const LOG_MS = 100;
const BACKUP_LIMIT_MS = 300_000;
const FIRST_MS = 1000;

/** When a backup froze its volume, and when it was done, by the time of day. */
interface Span {
  readonly fromMs: number;
  readonly toMs: number;
}

export interface LoadServer {
  readonly name: string;
  /** Serves the file. @returns the export's URI. */
  start(file: string, sizeBytes: number): Promise<string>;
  backUp(): Promise<Span>;
  /** Ends, and gives the room of the backup back. */
  stop(): Promise<void>;
}

// --- Servers ---

export class CowbellServer implements LoadServer {
  readonly name: string;
  readonly #directory: string;
  readonly #words: readonly string[];
  #server: Running | undefined;

  /** @param words for `backup`. */
  constructor(directory: string, name: string, words: readonly string[]) {
    this.name = name;
    this.#directory = join(directory, name);
    this.#words = words;
  }

  async start(file: string, sizeBytes: number): Promise<string> {
    this.#clear();
    await must('mkdir', [this.#directory]);
    await mustCowbell(['volume', 'create', this.#volume, '--size', String(sizeBytes), '--home', file]);
    await mustCowbell(['store', 'init', this.#store]);
    this.#server = startCowbell(['serve', this.#volume]);
    return (await this.#server.waitForLine(/^ready nbd/)).slice('ready '.length);
  }

  async backUp(): Promise<Span> {
    const words = ['--json', 'backup', '--level', 'full', '--store', this.#store, this.#volume];
    const backup = startCowbell([...words, ...this.#words]);
    const line = await backup.waitForLine(/"event":"set"/, BACKUP_LIMIT_MS);
    const toMs = Date.now();
    const set: unknown = JSON.parse(line);
    const took = typeof set === 'object' && set !== null ? Reflect.get(set, 'durationMs') : undefined;
    if ((await backup.wait()).status !== 0) throw new Error(`${backup.title} failed`);
    return { fromMs: toMs - Number(took), toMs };
  }

  async stop(): Promise<void> {
    await this.#server?.stop();
    this.#clear();
  }

  get #volume(): string {
    return join(this.#directory, 'vol');
  }

  get #store(): string {
    return join(this.#directory, 'store');
  }

  #clear(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Its job copies 64 KiB clusters, of the size of our tracks, into a raw file or a qcow2 one. */
export class QemuServer implements LoadServer {
  readonly name: string;
  readonly #directory: string;
  readonly #format: 'raw' | 'qcow2';
  #server: Running | undefined;
  #monitor: Monitor | undefined;
  #sizeBytes = 0;

  constructor(directory: string, format: 'raw' | 'qcow2') {
    this.name = `qemu-${format}`;
    this.#directory = directory;
    this.#format = format;
  }

  async start(file: string, sizeBytes: number): Promise<string> {
    this.#clear();
    this.#sizeBytes = sizeBytes;
    const [nbd, qmp] = [this.#path('nbd'), this.#path('qmp')];
    const words = [
      ['--blockdev', `driver=file,node-name=file,filename=${file}`],
      ['--blockdev', 'driver=raw,node-name=disk,file=file'],
      ['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
      ['--export', 'type=nbd,id=export,node-name=disk,name=disk,writable=on'],
      ['--chardev', `socket,id=qmp,path=${qmp},server=on,wait=off`],
      ['--monitor', 'chardev=qmp'],
    ];
    this.#server = new Running('qemu-storage-daemon', words.flat());
    while (!existsSync(qmp) || !existsSync(nbd)) {
      if (this.#server.ended !== undefined)
        throw new Error(`qemu-storage-daemon ended: ${this.#server.stderr}`);
      await wait(10);
    }
    this.#monitor = await Monitor.connect(qmp);
    return `nbd+unix:///disk?socket=${nbd}`;
  }

  async backUp(): Promise<Span> {
    const monitor = this.#monitor;
    if (monitor === undefined) throw new Error('The server was not started');
    const target = this.#path('target');
    await must('qemu-img', ['create', '-q', '-f', this.#format, target, String(this.#sizeBytes)]);
    const file = { driver: 'file', filename: target };
    await monitor.request('blockdev-add', { 'node-name': 'target', driver: this.#format, file });
    const done = monitor.untilEvent('BLOCK_JOB_COMPLETED', BACKUP_LIMIT_MS);
    const fromMs = Date.now();
    const job = { 'job-id': 'backup', device: 'disk', target: 'target', sync: 'full' };
    await monitor.request('blockdev-backup', job);
    const completed = await done;
    if ('error' in completed) throw new Error(`blockdev-backup failed: ${String(completed['error'])}`);
    return { fromMs, toMs: Date.now() };
  }

  async stop(): Promise<void> {
    this.#monitor?.close();
    await this.#server?.stop();
    this.#clear();
  }

  #path(what: string): string {
    return join(this.#directory, `${this.name}.${what}`);
  }

  #clear(): void {
    for (const what of ['nbd', 'qmp', 'target']) rmSync(this.#path(what), { force: true });
  }
}

type Message = Readonly<Record<string, unknown>>;

/** QEMU's machine protocol: JSON objects, one a line; answers in the order of the requests. */
class Monitor {
  readonly #socket: Socket;
  readonly #listeners = new Set<(message: Message) => void>();

  private constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => {
      const message: unknown = JSON.parse(line);
      if (typeof message !== 'object' || message === null) return;
      for (const listener of this.#listeners) listener({ ...message });
    });
  }

  static async connect(path: string): Promise<Monitor> {
    const socket = createConnection(path);
    await once(socket, 'connect');
    const monitor = new Monitor(socket);
    await monitor.request('qmp_capabilities', {});
    return monitor;
  }

  async request(command: string, parameters: object): Promise<void> {
    const answered = this.#until((message) => 'return' in message || 'error' in message, 60_000);
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: parameters })}\n`);
    const answer = await answered;
    if ('error' in answer) throw new Error(`${command}: ${JSON.stringify(answer['error'])}`);
  }

  /** @returns what came with the event. */
  async untilEvent(name: string, limitMs: number): Promise<object> {
    const { data } = await this.#until(({ event }) => event === name, limitMs);
    return typeof data === 'object' && data !== null ? data : {};
  }

  close(): void {
    this.#socket.destroy();
  }

  #until(wanted: (message: Message) => boolean, limitMs: number): Promise<Message> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#listeners.delete(listener);
        reject(new Error(`qemu-storage-daemon did not answer within ${limitMs} ms`));
      }, limitMs);
      const listener = (message: Message): void => {
        if (!wanted(message)) return;
        clearTimeout(timer);
        this.#listeners.delete(listener);
        resolve(message);
      };
      this.#listeners.add(listener);
    });
  }
}

// --- What the load saw ---

export interface LoadFigures {
  readonly requestsPerSecond: number;
  readonly latencyMsP99: number;
  /** The longest that one write took. */
  readonly pauseMs: number;
}

export interface LoadReport {
  readonly idle: LoadFigures;
  /** The first second of the backup, in which most writes hit a track that is not saved. */
  readonly first: LoadFigures;
  /** From then on to its end. */
  readonly rest: LoadFigures;
  readonly backupSeconds: number;
}

/** Runs the load for `idleSeconds`, then with the backup until that has ended. */
export async function measureLoad(options: {
  readonly server: LoadServer;
  readonly uri: string;
  readonly sizeBytes: number;
  readonly idleSeconds: number;
  readonly directory: string;
}): Promise<LoadReport> {
  const { server, uri, sizeBytes, idleSeconds, directory } = options;
  const prefix = join(directory, 'load');
  const job = { uri, rw: 'randwrite', blockSize: '4k', depth: 32, sizeBytes, seconds: 3600 };
  const logs = [`--write_hist_log=${prefix}`, `--log_hist_msec=${LOG_MS}`, '--log_unix_epoch=1'];
  const startedMs = Date.now();
  const fio = new Running('fio', [...fioArguments(job), ...logs], { cwd: directory });
  try {
    // The first second is that of an empty queue and of cold code.
    await wait((idleSeconds + 1) * 1000);
    const { fromMs, toMs } = await server.backUp();
    await fio.stop('SIGINT');
    const windows = readHistograms(directory);
    const firstEndMs = Math.min(fromMs + FIRST_MS, toMs);
    return {
      idle: figuresOf(windows, startedMs + 1000, startedMs + (idleSeconds + 1) * 1000),
      first: figuresOf(windows, fromMs, firstEndMs),
      rest: figuresOf(windows, firstEndMs, toMs),
      backupSeconds: (toMs - fromMs) / 1000,
    };
  } finally {
    if (fio.ended === undefined) fio.child.kill('SIGKILL');
  }
}

interface Window {
  readonly endMs: number;
  /** Completions by fio's bins of latency. */
  readonly bins: readonly number[];
}

/** Reads fio's logs of histograms and removes them. */
function readHistograms(directory: string): Window[] {
  const names = readdirSync(directory).filter((name) => /^load_clat_hist\.[0-9]+\.log$/.test(name));
  const windows = names.flatMap((name) => {
    const lines = readFileSync(join(directory, name), 'utf8').split('\n').filter(Boolean);
    rmSync(join(directory, name));
    // Time, direction, block size, then the bins.
    return lines.map((line) => {
      const [endMs = 0, , , ...bins] = line.split(',').map(Number);
      return { endMs, bins };
    });
  });
  if (windows.length === 0) throw new Error(`fio left no histograms in ${directory}`);
  return windows;
}

function figuresOf(windows: readonly Window[], fromMs: number, toMs: number): LoadFigures {
  const bins: number[] = [];
  for (const window of windows) {
    // By the middle of each window.
    if (window.endMs - LOG_MS / 2 <= fromMs || window.endMs - LOG_MS / 2 > toMs) continue;
    window.bins.forEach((count, bin) => (bins[bin] = (bins[bin] ?? 0) + count));
  }
  const total = bins.reduce((sum, count) => sum + count, 0);
  let passed = 0;
  const p99 = bins.findIndex((count) => (passed += count) >= total * 0.99);
  const longest = bins.findLastIndex((count) => count > 0);
  return {
    requestsPerSecond: (total * 1000) / Math.max(1, toMs - fromMs),
    latencyMsP99: binMs(p99),
    pauseMs: binMs(longest),
  };
}

/** The middle of a bin of fio's (`plat_idx_to_val` in its stat.c), which are 64 for each power of two nanoseconds. */
function binMs(bin: number): number {
  if (bin < 128) return Math.max(0, bin) / 1e6;
  const errorBits = Math.floor(bin / 64) - 1;
  return (2 ** (errorBits + 6) + ((bin % 64) + 0.5) * 2 ** errorBits) / 1e6;
}
