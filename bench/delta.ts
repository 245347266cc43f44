/**
 * What the copies of a delta store cost: `bench/delta [--rounds N] [--seconds S] [--only TEXT] [--directory DIR] [--json]`.
 *
 * 4 KiB random writes onto volumes with no, one and two delta copies, and onto a quorum of qemu-storage-daemon with one, two
 * and three children: as many copies of each write, all written before it is acknowledged. All servers run at once and idle
 * while another is measured, in rows as rows.ts has them; see README.md.
 */

import { ARGUMENTS } from './arguments.ts';
import { existsSync, mkdirSync, mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { listening } from '../native-tests/support/listening.ts';
import { must, mustCowbell, Running, startCowbell } from '../native-tests/support/process.ts';
import { runFio, warm } from './fio.ts';
import { cpuSeconds } from './peers.ts';
import { type Measured, runRow } from './rows.ts';

/** A file system in memory. */
const MEMORY = '/dev/shm';
const MIB = 1024 ** 2;
const SIZE_BYTES = 256 * MIB;
const DEPTHS = [32, 1] as const;
const FLUSH_EACH = 64;
const WARM_UP_SECONDS = 2;
const COPIES = [0, 1, 2] as const;

const RATIOS = [
  ['cowbell+1', 'cowbell+0'],
  ['cowbell+2', 'cowbell+0'],
  ['quorum-2', 'quorum-1'],
  ['quorum-3', 'quorum-1'],
  ['cowbell+0', 'quorum-1'],
  ['cowbell+1', 'quorum-2'],
  ['cowbell+2', 'quorum-3'],
] as const;

interface Contender {
  readonly name: string;
  readonly uri: string;
  /** What it serves, for bringing it into the page cache. */
  readonly files: readonly string[];
  pids(): readonly number[];
  /** Before each turn: the room that the last one took is free again. */
  renew(): Promise<void>;
  stop(): Promise<void>;
}

/** A volume whose delta logs are begun anew with each turn: they would grow without bound. */
class CowbellContender implements Contender {
  readonly name: string;
  readonly uri: string;
  readonly files: readonly string[];
  readonly #directory: string;
  readonly #places: readonly string[];
  #server: Running | undefined;

  constructor(directory: string, source: string, copies: number) {
    this.name = `cowbell+${copies}`;
    this.#directory = join(directory, this.name);
    mkdirSync(this.#directory);
    this.files = [source];
    this.#places = Array.from({ length: copies }, (_, index) => join(this.#directory, `delta-${index + 1}`));
    this.uri = `nbd+unix:///vol?socket=${join(this.#volume, 'nbd.sock')}`;
  }

  get #volume(): string {
    return join(this.#directory, 'vol');
  }

  async renew(): Promise<void> {
    await this.stop();
    for (const path of [this.#volume, ...this.#places]) rmSync(path, { recursive: true, force: true });
    const deltas = this.#places.flatMap((place) => ['--delta', place]);
    const [home = ''] = this.files;
    await mustCowbell([
      'volume',
      'create',
      this.#volume,
      '--size',
      String(SIZE_BYTES),
      '--home',
      home,
      ...deltas,
    ]);
    this.#server = startCowbell(['serve', this.#volume]);
    await this.#server.waitForLine(/^ready /);
  }

  pids(): readonly number[] {
    return pidsOf(this.#server);
  }

  async stop(): Promise<void> {
    await this.#server?.stop();
    this.#server = undefined;
  }
}

/** Writes go to all children, and are acknowledged when all have answered. One child stands without a quorum. */
class QuorumContender implements Contender {
  readonly name: string;
  readonly uri: string;
  readonly files: readonly string[];
  readonly #server: Running;

  private constructor(name: string, files: readonly string[], socket: string) {
    this.name = name;
    this.files = files;
    this.uri = `nbd+unix:///disk?socket=${socket}`;
    const children = files.map((_, index) => `children.${index}=file${index}`).join(',');
    const node = files.length === 1 ? 'file0' : 'disk';
    const words = [
      ...files.map((file, index) => ['--blockdev', `driver=file,node-name=file${index},filename=${file}`]),
      ...(files.length === 1
        ? []
        : [['--blockdev', `driver=quorum,node-name=disk,vote-threshold=1,${children}`]]),
      ['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ['--export', `type=nbd,id=export,node-name=${node},name=disk,writable=on`],
    ];
    this.#server = new Running('qemu-storage-daemon', words.flat());
  }

  static async start(directory: string, name: string, files: readonly string[]): Promise<QuorumContender> {
    const socket = join(directory, `${name}.sock`);
    const contender = new QuorumContender(name, files, socket);
    await listening(socket, contender.#server);
    return contender;
  }

  pids(): readonly number[] {
    return pidsOf(this.#server);
  }

  async renew(): Promise<void> {
    // It only has what it serves.
  }

  async stop(): Promise<void> {
    await this.#server.stop();
  }
}

function pidsOf(server: Running | undefined): readonly number[] {
  const pid = server?.child.pid;
  return pid === undefined ? [] : [pid];
}

/** Files of random bytes, so that all their blocks are allocated. */
async function makeFiles(directory: string, name: string, count: number): Promise<readonly string[]> {
  const files = Array.from({ length: count }, (_, index) => join(directory, `${name}-${index}.raw`));
  for (const file of files)
    await must('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${SIZE_BYTES / MIB}`, 'status=none']);
  return files;
}

async function startAll(directory: string): Promise<readonly Contender[]> {
  const contenders: Contender[] = [];
  for (const copies of COPIES) {
    const [home = ''] = await makeFiles(directory, `home-${copies}`, 1);
    contenders.push(new CowbellContender(directory, home, copies));
  }
  for (const copies of COPIES) {
    const name = `quorum-${copies + 1}`;
    contenders.push(
      await QuorumContender.start(directory, name, await makeFiles(directory, name, copies + 1)),
    );
  }
  return contenders;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: [...ARGUMENTS],
    options: {
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '3' },
      only: { type: 'string', default: '' },
      json: { type: 'boolean', default: false },
      directory: { type: 'string', default: existsSync(MEMORY) ? MEMORY : tmpdir() },
    },
  });
  const [rounds, seconds] = [Number(values.rounds), Number(values.seconds)];
  const directory = mkdtempSync(join(values.directory, 'cowbell-bench-'));
  const run = async (contender: Contender, depth: number, flushEach?: number): Promise<Measured> => {
    await contender.renew();
    for (const file of contender.files) await warm(file);
    const job = {
      uri: contender.uri,
      rw: 'randwrite',
      blockSize: '4k',
      depth,
      sizeBytes: SIZE_BYTES,
      ...(flushEach === undefined ? {} : { flushEach }),
    };
    // A server that has just begun has code to compile and regions to log.
    await runFio({ ...job, seconds: WARM_UP_SECONDS });
    const cpuBefore = cpuSeconds({ pids: contender.pids() });
    const report = await runFio({ ...job, seconds });
    const cpu = cpuSeconds({ pids: contender.pids() }) - cpuBefore;
    return { ...report, cpuSecondsPerGib: cpu / (report.bytes / 1024 ** 3) };
  };
  let contenders: readonly Contender[] = [];
  try {
    const free = statfsSync(directory);
    if (free.bavail * free.bsize < 32 * SIZE_BYTES)
      throw new Error(`The benchmark needs 8 GiB free under ${directory}`);
    contenders = await startAll(directory);
    for (const flushEach of [undefined, FLUSH_EACH]) {
      for (const depth of DEPTHS) {
        const flushes = flushEach === undefined ? 'no flushes' : `a flush each ${flushEach}`;
        const title = `4K randwrite d${depth}, ${flushes}`;
        if (!title.includes(values.only)) continue;
        const row = {
          title,
          contenders,
          ratios: RATIOS,
          run: (one: Contender) => run(one, depth, flushEach),
        };
        await runRow({ rounds, json: values.json }, row);
      }
    }
  } finally {
    await Promise.all(contenders.map((contender) => contender.stop()));
    rmSync(directory, { recursive: true, force: true });
  }
}

await main();
