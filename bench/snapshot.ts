/**
 * What tracking and snapshots cost: `bench/snapshot [--rounds N] [--seconds S] [--only SECTION] [--directory DIR]
 * [--freezes N] [--json]`.
 *
 * As in `bench/datapath`: all servers run at once and idle while another is measured, and each row is one fio job that
 * every server runs once in each round (rows.ts).
 *
 * Rows of four kinds, see README.md: tracking, first touches, snapshots, freezes.
 */

import { ARGUMENTS } from './arguments.ts';
import { existsSync, mkdtempSync, readFileSync, rmSync, statfsSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { must, Running } from '../native-tests/support/process.ts';
import { fioArguments, type FioJob, quantile, reportOf, runFio, warm } from './fio.ts';
import { cpuSeconds } from './peers.ts';
import { type Measured, runRow } from './rows.ts';
import { measureTrackingCost } from './tracking-cost.ts';
import {
  type Contender,
  CowbellContender,
  type Kind,
  QcowContender,
  startBare,
  TRACK_BYTES,
} from './snapshot-peers.ts';

/** A file system in memory. */
const MEMORY = '/dev/shm';
const MIB = 1024 ** 2;
const SIZE_BYTES = 256 * MIB;
const DEPTHS = [32, 1] as const;
const COUNTS = [1, 8] as const;

/** Every second region of the intent log (128 tracks of 64 KiB): those that follow a logged one are logged ahead. */
const TOUCH_STRIDE_BYTES = 16 * MIB;
/** As many regions as a freeze takes over into the next epoch's log. */
const TOUCH_COUNT = 4096;

/** Between two freezes, so that the load gets to its usual speed in between. */
const FREEZE_GAP_MS_MAX = 200;

const SECTIONS = ['tracking', 'touches', 'snapshots', 'freezes'] as const;
type Section = (typeof SECTIONS)[number];

interface Settings {
  readonly rounds: number;
  readonly seconds: number;
  readonly freezes: number;
  readonly only: string;
  readonly json: boolean;
  readonly directory: string;
}

type Job = Omit<FioJob, 'uri' | 'sizeBytes' | 'seconds'>;

const randomJob = (rw: 'randread' | 'randwrite', depth: number): Job => ({ rw, blockSize: '4k', depth });

/** One 4 KiB write into each track. */
const hitJob = (depth: number): Job => ({
  rw: 'write',
  blockSize: '4k',
  depth,
  strideBytes: TRACK_BYTES,
  requestCount: SIZE_BYTES / TRACK_BYTES,
});

class Bench {
  readonly #settings: Settings;

  constructor(settings: Settings) {
    this.#settings = settings;
  }

  wants(section: Section): boolean {
    const { only } = this.#settings;
    return only === '' || only === section;
  }

  async measure(
    server: { uri: string; pids: readonly number[] },
    job: Job,
    size = SIZE_BYTES,
  ): Promise<Measured> {
    const cpuBefore = cpuSeconds(server);
    const report = await runFio({
      ...job,
      uri: server.uri,
      sizeBytes: size,
      seconds: this.#settings.seconds,
    });
    return { ...report, cpuSecondsPerGib: (cpuSeconds(server) - cpuBefore) / (report.bytes / 1024 ** 3) };
  }

  /** See `runRow`. */
  async row(
    title: string,
    contenders: readonly Contender[],
    ratios: readonly (readonly [string, string])[],
    run: (contender: Contender) => Promise<Measured>,
  ): Promise<void> {
    await runRow(this.#settings, { title, contenders, ratios, run });
  }

  print(record: object): void {
    console.log(JSON.stringify(record));
  }
}

const MIXED: readonly (readonly [Kind, Kind])[] = [
  ['cowbell', 'internal'],
  ['cowbell', 'overlay'],
];

/** Cowbell with each number of snapshots against both kinds of peer with as many. */
const PEER_RATIOS = COUNTS.flatMap((count) =>
  MIXED.map(([own, peer]) => [`${own}-${count}`, `${peer}-${count}`] as const),
);
/** Cowbell with snapshots against itself without. */
const OWN_RATIOS = COUNTS.map((count) => [`cowbell-${count}`, 'cowbell-0'] as const);

async function trackingRows(
  bench: Bench,
  directory: string,
  source: string,
  settings: Settings,
): Promise<void> {
  if (!bench.wants('tracking')) return;
  const cost = await measureTrackingCost(directory, SIZE_BYTES);
  const inProcess = 'tracking, 4K writes in process, onto a device that does nothing';
  if (settings.json) bench.print({ row: inProcess, load: loadavg()[0], cost });
  else
    console.log(`\n${inProcess}\n  on ${cost.onNs.toFixed(0)} ns, off ${cost.offNs.toFixed(0)} ns for each`);
  const wanted = { directory, sizeBytes: SIZE_BYTES, snapshotCount: 0, source };
  const on = await CowbellContender.start('tracking-on', wanted);
  const off = await startBare('tracking-off', wanted);
  for (const depth of DEPTHS) {
    const title = `4K randwrite d${depth}, tracking on and off`;
    await bench.row(title, [on, off], [['tracking-on', 'tracking-off']], async (contender) => {
      for (const file of contender.files()) await warm(file);
      return bench.measure({ uri: contender.uri(), pids: contender.pids() }, randomJob('randwrite', depth));
    });
  }
  await Promise.all([on.stop(), off.stop()]);
}

/** The first write of an epoch into each region, which waits for the intent log unless the region was hot. */
async function firstTouchRows(bench: Bench, directory: string): Promise<void> {
  if (!bench.wants('touches')) return;
  const sizeBytes = TOUCH_COUNT * TOUCH_STRIDE_BYTES;
  const wanted = { directory, sizeBytes, snapshotCount: 0 };
  const on = await CowbellContender.start('touch', wanted);
  const off = await startBare('touch-off', wanted);
  const job = (depth: number): Job => ({
    rw: 'write',
    blockSize: '4k',
    depth,
    strideBytes: TOUCH_STRIDE_BYTES,
    requestCount: TOUCH_COUNT,
  });
  const touch = (contender: Contender, depth: number): Promise<Measured> =>
    bench.measure({ uri: contender.uri(), pids: contender.pids() }, job(depth), sizeBytes);
  // Otherwise the first round would allocate what the others write again.
  for (const contender of [on, off])
    await runFio({ ...job(32), uri: contender.uri(), sizeBytes, seconds: 120 });
  for (const depth of DEPTHS) {
    const cold = { ...pickOf(on), name: 'cold' };
    const hot = { ...pickOf(on), name: 'hot' };
    const bare = { ...pickOf(off), name: 'tracking-off' };
    const ratios = [
      ['cold', 'tracking-off'],
      ['hot', 'tracking-off'],
    ] as const;
    await bench.row(
      `first touches of regions, 4K write d${depth}`,
      [cold, hot, bare],
      ratios,
      async (contender) => {
        if (contender !== bare) await runFio({ ...job(32), uri: on.uri(), sizeBytes, seconds: 120 });
        if (contender !== bare) await on.freeze();
        // Nothing is written between two freezes: nothing is hot then.
        if (contender === cold) await on.freeze();
        return touch(contender, depth);
      },
    );
  }
  await Promise.all([on.stop(), off.stop()]);
}

/** The same contender, to be given another name. */
function pickOf(contender: Contender): Contender {
  return {
    name: contender.name,
    kind: contender.kind,
    snapshotCount: contender.snapshotCount,
    uri: () => contender.uri(),
    pids: () => contender.pids(),
    files: () => contender.files(),
    renew: () => contender.renew(),
    serveOldest: () => contender.serveOldest(),
    stop: () => contender.stop(),
  };
}

async function snapshotRows(bench: Bench, directory: string, source: string): Promise<void> {
  if (!bench.wants('snapshots')) return;
  const wanted = (snapshotCount: number) => ({ directory, sizeBytes: SIZE_BYTES, snapshotCount, source });
  const all: Contender[] = [
    await CowbellContender.start('cowbell-0', wanted(0)),
    await QcowContender.start('qcow2', 'qcow2-0', wanted(0)),
  ];
  for (const count of COUNTS) {
    all.push(await CowbellContender.start(`cowbell-${count}`, wanted(count)));
    for (const kind of ['internal', 'overlay'] as const)
      all.push(await QcowContender.start(kind, `${kind}-${count}`, wanted(count)));
  }
  const kept = all.filter(({ snapshotCount }) => snapshotCount > 0);
  const measure = async (contender: Contender, job: Job): Promise<Measured> => {
    for (const file of contender.files()) await warm(file);
    return bench.measure({ uri: contender.uri(), pids: contender.pids() }, job);
  };
  for (const depth of DEPTHS) {
    await bench.row(
      `snapshots: 4K write d${depth}, each the first of its track`,
      kept,
      PEER_RATIOS,
      async (contender) => {
        await contender.renew();
        return measure(contender, hitJob(depth));
      },
    );
  }
  const ratios = [...OWN_RATIOS, ['cowbell-0', 'qcow2-0'] as const, ...PEER_RATIOS];
  // From here on every track is kept.
  for (const contender of kept)
    await runFio({ ...hitJob(32), uri: contender.uri(), sizeBytes: SIZE_BYTES, seconds: 120 });
  for (const rw of ['randwrite', 'randread'] as const) {
    for (const depth of DEPTHS) {
      const title = `snapshots: 4K ${rw} d${depth}, all tracks kept`;
      await bench.row(title, all, ratios, (contender) => measure(contender, randomJob(rw, depth)));
    }
  }
  for (const depth of DEPTHS) {
    await bench.row(
      `snapshots: 4K randread d${depth} of the oldest`,
      kept,
      PEER_RATIOS,
      async (contender) => {
        const oldest = await contender.serveOldest();
        const measured = await bench.measure(oldest, randomJob('randread', depth));
        await oldest.end();
        return measured;
      },
    );
  }
  for (const contender of all) await contender.stop();
}

/** Freezes under load, and what a client sees of them; the same load without freezes beside it. */
async function freezeRows(
  bench: Bench,
  directory: string,
  source: string,
  settings: Settings,
): Promise<void> {
  const title = 'freezes under 4K randwrite d32';
  if (!bench.wants('freezes')) return;
  const wanted = { directory, sizeBytes: SIZE_BYTES, snapshotCount: 0, source };
  const contender = await CowbellContender.start('freezes', wanted);
  const quiet = await bench.measure(
    { uri: contender.uri(), pids: contender.pids() },
    randomJob('randwrite', 32),
  );
  const job = { ...randomJob('randwrite', 32), uri: contender.uri(), sizeBytes: SIZE_BYTES, seconds: 3600 };
  await contender.freeze();
  const load = new Running('fio', fioArguments(job));
  while ((await contender.changedTracks()) === 0) await pause(10);
  const before = { waitedMs: waitedMs(contender), atMs: performance.now() };
  const pauses: number[] = [];
  while (pauses.length < settings.freezes) {
    pauses.push(await contender.freeze());
    await pause(Math.random() * FREEZE_GAP_MS_MAX);
  }
  const waited = (waitedMs(contender) - before.waitedMs) / (performance.now() - before.atMs);
  const { stdout } = await load.stop('SIGINT');
  await contender.stop();
  const frozen = reportOf(stdout);
  const closed = {
    count: pauses.length,
    msP50: quantile(pauses, 0.5),
    msP99: quantile(pauses, 0.99),
    msMax: Math.max(...pauses),
  };
  if (settings.json) return bench.print({ row: title, load: loadavg()[0], closed, waited, frozen, quiet });
  console.log(`\n${title} (load average ${loadavg()[0]?.toFixed(1)})`);
  console.log(
    `  gate closed  p50 ${closed.msP50.toFixed(2)} ms   p99 ${closed.msP99.toFixed(2)} ms   max ${closed.msMax.toFixed(2)} ms of ${closed.count} freezes`,
  );
  console.log(`  the server waited for a processor ${(waited * 100).toFixed(0)} % of the time`);
  for (const [name, { requestsPerSecond, latencyMsP99, latencyMsP999, latencyMsMax, seconds }] of [
    ['frozen', frozen],
    ['quiet', quiet],
  ] as const) {
    console.log(
      `  ${name.padEnd(12)} ${requestsPerSecond.toFixed(0).padStart(7)} per second   p99 / p99.9 / max ${[latencyMsP99, latencyMsP999, latencyMsMax].map((value) => value.toFixed(2)).join(' / ')} ms   in ${seconds.toFixed(0)} s`,
    );
  }
}

/** For how long the server's main threads were ready to run and did not, since they began (proc(5), schedstat). */
function waitedMs(contender: Contender): number {
  const waitedNs = contender
    .pids()
    .map((pid) => Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[1]));
  return waitedNs.reduce((sum, value) => sum + value, 0) / 1e6;
}

async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: [...ARGUMENTS],
    options: {
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '3' },
      freezes: { type: 'string', default: '120' },
      only: { type: 'string', default: '' },
      json: { type: 'boolean', default: false },
      directory: { type: 'string', default: existsSync(MEMORY) ? MEMORY : tmpdir() },
    },
  });
  if (values.only !== '' && !SECTIONS.some((section) => section === values.only))
    throw new Error(`--only is ${values.only}, wanted one of ${SECTIONS.join(', ')}`);
  const directory = mkdtempSync(join(values.directory, 'cowbell-bench-'));
  const settings: Settings = {
    ...values,
    directory,
    rounds: Number(values.rounds),
    seconds: Number(values.seconds),
    freezes: Number(values.freezes),
  };
  const bench = new Bench(settings);
  const source = join(directory, 'source.raw');
  try {
    const free = statfsSync(directory);
    if (free.bavail * free.bsize < 32 * SIZE_BYTES)
      throw new Error(`The benchmark needs 8 GiB free under ${directory}`);
    await must('dd', [
      'if=/dev/urandom',
      `of=${source}`,
      'bs=1M',
      `count=${SIZE_BYTES / MIB}`,
      'status=none',
    ]);
    await trackingRows(bench, directory, source, settings);
    await firstTouchRows(bench, directory);
    await snapshotRows(bench, directory, source);
    await freezeRows(bench, directory, source, settings);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

await main();
