/**
 * What clients see of an incremental backup, with delta logs to take it from and without:
 * `bench/incremental [--rounds N] [--seconds S] [--size MiB] [--directory DIR] [--json]`.
 *
 * A full backup, then all of the volume is written anew, in whole tracks, so that everything has changed and the logs hold
 * it whole. Then 4 KiB random writes at depth 32 go on all over it, alone at first and during the incremental after that
 * (backup-load.ts). With logs the backup takes all tracks from there, and holds up no write; without them each first write
 * to a track that is not saved yet waits until it is diverted. See README.md.
 */

import { ARGUMENTS } from './arguments.ts';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { must, mustCowbell, type Running, startCowbell } from '../native-tests/support/process.ts';
import { eventsOf } from '../native-tests/support/served.ts';
import { type LoadReport, type LoadServer, measureLoad } from './backup-load.ts';
import { median, runFio } from './fio.ts';

const MIB = 1024 ** 2;
const WRITE_BYTES = 4096;
const FIRST_SECONDS = 1;
const BACKUP_LIMIT_MS = 300_000;
const COPIES = [0, 1] as const;

type SetEvent = Readonly<Record<string, unknown>>;

/** A volume with as many delta copies as are wanted, and a store of its own; made anew for each turn. */
class VolumeServer implements LoadServer {
  readonly name: string;
  readonly #directory: string;
  readonly #copies: number;
  #server: Running | undefined;
  /** Of the incremental backup. */
  set: SetEvent = {};

  constructor(directory: string, copies: number) {
    this.name = copies === 0 ? 'no deltas' : `${copies} delta copy`;
    this.#directory = join(directory, `cowbell-${copies}`);
    this.#copies = copies;
  }

  async start(file: string, sizeBytes: number): Promise<string> {
    this.#clear();
    mkdirSync(this.#directory);
    const deltas = Array.from({ length: this.#copies }, (_, index) => [
      '--delta',
      this.#path(`delta-${index}`),
    ]);
    const words = ['--size', String(sizeBytes), '--home', file, ...deltas.flat()];
    await mustCowbell(['volume', 'create', this.#path('vol'), ...words]);
    await mustCowbell(['store', 'init', this.#path('store')]);
    this.#server = startCowbell(['serve', this.#path('vol')]);
    const uri = (await this.#server.waitForLine(/^ready nbd/)).slice('ready '.length);
    await this.#backUp('full');
    const whole = { rw: 'write', blockSize: '64k', depth: 16, requestCount: sizeBytes / 65_536 };
    await runFio({ ...whole, uri, sizeBytes, seconds: 300 });
    return uri;
  }

  async backUp(): Promise<{ readonly fromMs: number; readonly toMs: number }> {
    this.set = await this.#backUp('incremental');
    const toMs = Date.now();
    return { fromMs: toMs - Number(this.set['durationMs']), toMs };
  }

  async #backUp(level: string): Promise<SetEvent> {
    const words = ['--json', 'backup', '--level', level, '--store', this.#path('store'), this.#path('vol')];
    const stdout = await mustCowbell(words, { timeoutMs: BACKUP_LIMIT_MS });
    return eventsOf(stdout).find(({ event }) => event === 'set') ?? {};
  }

  async stop(): Promise<void> {
    await this.#server?.stop();
    this.#clear();
  }

  #path(name: string): string {
    return join(this.#directory, name);
  }

  #clear(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

interface Figures {
  readonly idleMbPerSecond: number;
  readonly duringMbPerSecond: number;
  /** During the backup to idle. */
  readonly share: number;
  readonly pauseMs: number;
  readonly latencyMsP99: number;
  readonly backupSeconds: number;
  readonly tracks: number;
  readonly diverted: number;
}

function figuresOf({ idle, first, rest, backupSeconds }: LoadReport, set: SetEvent): Figures {
  const firstSeconds = Math.min(FIRST_SECONDS, backupSeconds);
  const restSeconds = backupSeconds - firstSeconds;
  const requests =
    first.requestsPerSecond * firstSeconds + (restSeconds > 0 ? rest.requestsPerSecond * restSeconds : 0);
  const mb = (requestsPerSecond: number): number => (requestsPerSecond * WRITE_BYTES) / 1e6;
  return {
    idleMbPerSecond: mb(idle.requestsPerSecond),
    duringMbPerSecond: mb(requests / backupSeconds),
    share: requests / backupSeconds / idle.requestsPerSecond,
    pauseMs: Math.max(first.pauseMs, rest.pauseMs),
    latencyMsP99: Math.max(first.latencyMsP99, rest.latencyMsP99),
    backupSeconds,
    tracks: Number(set['tracks']),
    diverted: Number(set['diverted']),
  };
}

const KEYS = [
  ['idleMbPerSecond', 'MB/s alone'],
  ['duringMbPerSecond', 'MB/s during the backup'],
  ['share', 'of it'],
  ['latencyMsP99', 'ms p99'],
  ['pauseMs', 'ms longest'],
  ['backupSeconds', 's backup'],
  ['tracks', 'tracks'],
  ['diverted', 'diverted'],
] as const;

function report(results: ReadonlyMap<string, readonly Figures[]>, json: boolean): void {
  const of = (figures: readonly Figures[], key: keyof Figures): number =>
    median(figures.map((one) => one[key]));
  const medians = [...results].map(([name, figures]) => ({
    name,
    ...Object.fromEntries(KEYS.map(([key]) => [key, of(figures, key)])),
  }));
  const [without = [], logged = []] = results.values();
  const ratioOf = (key: keyof Figures): number =>
    median(logged.map((one, round) => one[key] / (without[round]?.[key] ?? Number.NaN)));
  const ratios = { during: ratioOf('duringMbPerSecond'), share: ratioOf('share'), pause: ratioOf('pauseMs') };
  if (json) return console.log(JSON.stringify({ load: loadavg()[0], figures: medians, ratios }));
  console.log(`incremental of all tracks under 4K randwrite d32 (load average ${loadavg()[0]?.toFixed(1)})`);
  for (const [name, figures] of results) {
    const texts = KEYS.map(([key, unit]) => `${Number(of(figures, key).toPrecision(4))} ${unit}`);
    console.log(`  ${name.padEnd(14)} ${texts.join(', ')}`);
  }
  const [during, share, pause] = [ratios.during, ratios.share, ratios.pause].map((value) => value.toFixed(2));
  console.log(
    `  with / without deltas: MB/s during ${during}, share of alone ${share}, longest write ${pause}`,
  );
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: [...ARGUMENTS],
    options: {
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '4' },
      size: { type: 'string', default: '512' },
      json: { type: 'boolean', default: false },
      directory: { type: 'string', default: tmpdir() },
    },
  });
  const directory = mkdtempSync(join(values.directory, 'cowbell-bench-'));
  const sizeBytes = Number(values.size) * MIB;
  const servers = COPIES.map((copies) => new VolumeServer(directory, copies));
  const results = new Map<string, Figures[]>(servers.map(({ name }) => [name, []]));
  try {
    const home = join(directory, 'home.raw');
    await must('dd', ['if=/dev/urandom', `of=${home}`, 'bs=1M', `count=${values.size}`, 'status=none']);
    for (let round = 0; round < Number(values.rounds); round += 1) {
      for (let index = 0; index < servers.length; index += 1) {
        const server = servers[(index + round) % servers.length];
        if (server === undefined) continue;
        try {
          const uri = await server.start(home, sizeBytes);
          const idleSeconds = Number(values.seconds);
          const measured = await measureLoad({ server, uri, sizeBytes, idleSeconds, directory });
          results.get(server.name)?.push(figuresOf(measured, server.set));
        } finally {
          await server.stop();
        }
      }
    }
    report(results, values.json);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

await main();
