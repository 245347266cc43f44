/**
 * What a backup costs: `bench/backup [--rounds N] [--only SECTION] [--directory DIR] [--size MiB] [--sparse GiB]
 * [--huge GiB] [--seconds S] [--load-size MiB] [--json]`.
 *
 * As in `bench/snapshot`: each row is one save that every contender runs once in each round, in a rotating order, and
 * figures are medians of the rounds. A ratio is the median of the ratios of the rounds, and beside it stands that of
 * the two best rounds. All read one file in the same state of the page cache and write to the same disk.
 *
 * Sections: full, incremental, sparse, memory, load; see README.md.
 */

import { ARGUMENTS } from './arguments.ts';
import { mkdtempSync, rmSync, statfsSync, truncateSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { must, startCowbell } from '../native-tests/support/process.ts';
import { keepWarm, makeImage, makeSparseCopy, VolumeAtRest } from './backup-image.ts';
import {
  CowbellServer,
  type LoadFigures,
  type LoadReport,
  type LoadServer,
  measureLoad,
  QemuServer,
} from './backup-load.ts';
import { PeakMemory } from './backup-memory.ts';
import { CowbellSaver, nbdcopy, qemuImg, ResticSaver, type Saved, type Saver } from './backup-peers.ts';
import { median } from './fio.ts';

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;

/** Of the tracks, before an incremental. */
const CHANGED_SHARE = 0.01;

const SECTIONS = ['full', 'incremental', 'sparse', 'memory', 'load'] as const;
type Section = (typeof SECTIONS)[number];

interface Settings {
  readonly rounds: number;
  readonly only: string;
  readonly directory: string;
  readonly json: boolean;
  readonly sizeBytes: number;
  readonly sparseBytes: number;
  readonly hugeBytes: number;
  readonly loadBytes: number;
  readonly seconds: number;
}

type Results<T> = ReadonlyMap<string, readonly T[]>;

/** A quotient of two contenders' figures, round by round. */
interface Ratio {
  readonly of: string;
  /** The median of the rounds. */
  readonly typical: number;
  /** Of the smallest figure of each. */
  readonly best: number;
}

function ratio<T>(
  results: Results<T>,
  first: string,
  second: string,
  figure: (one: T) => number,
  of = `${first} / ${second}`,
): Ratio {
  const [ours, theirs] = [first, second].map((name) => (results.get(name) ?? []).map(figure));
  if (ours === undefined || theirs === undefined) throw new Error(`No figures for ${of}`);
  const quotients = ours.map((value, round) => value / (theirs[round] ?? Number.NaN));
  return { of, typical: median(quotients), best: Math.min(...ours) / Math.min(...theirs) };
}

class Bench {
  readonly settings: Settings;
  /** The image and what it holds that is not a hole. */
  readonly image: string;
  readonly imageBytes: number;

  private constructor(settings: Settings, image: string, imageBytes: number) {
    this.settings = settings;
    this.image = image;
    this.imageBytes = imageBytes;
  }

  static async prepare(settings: Settings): Promise<Bench> {
    const image = join(settings.directory, 'image.raw');
    const imageBytes = await makeImage(image, settings.sizeBytes);
    const bench = new Bench(settings, image, imageBytes);
    bench.report(
      `an ext4 image of ${gib(settings.sizeBytes)} with ${gib(imageBytes)} of data`,
      { imageBytes },
      [],
    );
    return bench;
  }

  at(name: string): string {
    return join(this.settings.directory, name);
  }

  wants(section: Section): boolean {
    return this.settings.only === '' || this.settings.only === section;
  }

  /** Runs every contender once in each round, each round beginning with another. */
  async rounds<C extends { readonly name: string }, T>(
    contenders: readonly C[],
    run: (contender: C, round: number) => Promise<T>,
  ): Promise<Results<T>> {
    const results = new Map<string, T[]>(contenders.map(({ name }) => [name, []]));
    for (let round = 0; round < this.settings.rounds; round += 1) {
      for (let index = 0; index < contenders.length; index += 1) {
        const contender = contenders[(index + round) % contenders.length];
        if (contender !== undefined) results.get(contender.name)?.push(await run(contender, round));
      }
    }
    return results;
  }

  report(row: string, record: object, lines: readonly string[]): void {
    const load = loadavg()[0];
    if (this.settings.json) console.log(JSON.stringify({ row, load, ...record }));
    else console.log([`\n${row} (load average ${load?.toFixed(1)})`, ...lines].join('\n'));
  }

  /** Seconds and bytes of each contender, and ratios. */
  reportSaves(row: string, results: Results<Saved>, ratios: readonly Ratio[]): void {
    const figures = [...results].map(([name, saves]) => ({
      name,
      seconds: median(saves.map(({ seconds }) => seconds)),
      cpuSeconds: median(saves.map(({ cpuSeconds }) => cpuSeconds)),
      bytes: median(saves.map(({ bytes }) => bytes)),
      overhead: median(saves.map(({ bytes, payloadBytes = Number.NaN }) => bytes / payloadBytes - 1)),
    }));
    const lines = figures.map(({ name, seconds, cpuSeconds, bytes, overhead }) => {
      const above = Number.isNaN(overhead) ? '' : `, ${percent(overhead)} above its frames`;
      return `  ${name.padEnd(18)} ${seconds.toFixed(2).padStart(7)} s   ${cpuSeconds.toFixed(2).padStart(7)} CPU s   ${gib(bytes)} on disk${above}`;
    });
    this.report(row, { figures, ratios }, [...lines, ...ratios.map(ratioLine)]);
  }
}

// --- Full ---

async function fullRows(bench: Bench): Promise<void> {
  if (!bench.wants('full')) return;
  const { settings, image } = bench;
  const volume = await VolumeAtRest.create(bench.at('vol'), image);
  const savers: Saver[] = [
    ...(['zstd', 'fast', 'none'] as const).map(
      (codec) => new CowbellSaver(settings.directory, volume, codec),
    ),
    qemuImg(settings.directory, image),
    new ResticSaver(settings.directory, image),
    nbdcopy(settings.directory, image),
  ];
  const results = await bench.rounds(savers, async (saver) => {
    await saver.renew();
    await keepWarm(image, settings.sizeBytes);
    const saved = await saver.save();
    saver.remove();
    return saved;
  });
  const pairs = [
    ['qemu-img', 'cowbell-zstd'],
    ['restic', 'cowbell-zstd'],
    ['qemu-img', 'cowbell-fast'],
    ['restic', 'cowbell-fast'],
    ['nbdcopy', 'cowbell-none'],
  ] as const;
  bench.reportSaves(`full, ${gib(settings.sizeBytes)}`, results, [
    ...pairs.map(([peer, own]) => ratio(results, peer, own, secondsOf, `time of ${peer} / ${own}`)),
    ...pairs.map(([peer, own]) => ratio(results, peer, own, cpuOf, `CPU of ${peer} / ${own}`)),
    ...pairs.map(([peer, own]) => ratio(results, own, peer, bytesOf, `size of ${own} / ${peer}`)),
  ]);
  rmSync(volume.directory, { recursive: true });
}

// --- Incremental ---

/** A full one of each saver, 1 % changed, and what each takes for that. */
async function incrementalRow(
  bench: Bench,
  row: string,
  volume: VolumeAtRest,
  savers: readonly Saver[],
): Promise<void> {
  const fulls = new Map<string, Saved[]>(savers.map(({ name }) => [name, []]));
  let changedRound = -1;
  const save = async (saver: Saver): Promise<Saved> => {
    await keepWarm(volume.home, bench.settings.sizeBytes);
    return saver.save();
  };
  const agains = await bench.rounds(savers, async (saver, round) => {
    // All have saved everything before the change.
    if (changedRound !== round) {
      for (const each of savers) {
        await each.renew();
        fulls.get(each.name)?.push(await save(each));
      }
      await volume.change(CHANGED_SHARE, bench.settings.sizeBytes);
      changedRound = round;
    }
    return save(saver);
  });
  for (const saver of savers) saver.remove();
  const names = savers.map(({ name }) => name);
  const both = new Map(
    names.flatMap((name) => [
      [`${name} full`, fulls.get(name) ?? []],
      [`${name} 1 %`, agains.get(name) ?? []],
    ]),
  );
  const ratios = names.map((name) => ratio(both, `${name} 1 %`, `${name} full`, secondsOf));
  const others = names.slice(1).map((name) => ratio(both, `${name} 1 %`, `${names[0]} 1 %`, secondsOf));
  bench.reportSaves(row, both, [...ratios, ...others]);
}

async function incrementalRows(bench: Bench): Promise<void> {
  if (!bench.wants('incremental')) return;
  const { settings, image } = bench;
  const volume = await VolumeAtRest.create(bench.at('vol'), image);
  await incrementalRow(bench, `1 % of ${gib(settings.sizeBytes)} changed`, volume, [
    new CowbellSaver(settings.directory, volume, 'zstd'),
    new ResticSaver(settings.directory, image),
  ]);
  rmSync(volume.directory, { recursive: true });
}

async function sparseRows(bench: Bench): Promise<void> {
  if (!bench.wants('sparse')) return;
  const { settings } = bench;
  const home = bench.at('sparse.raw');
  await makeSparseCopy(bench.image, home, settings.sparseBytes);
  const volume = await VolumeAtRest.create(bench.at('vol'), home);
  await incrementalRow(bench, `1 % of the same data in ${gib(settings.sparseBytes)} changed`, volume, [
    new CowbellSaver(settings.directory, volume, 'zstd'),
  ]);
  rmSync(volume.directory, { recursive: true });
  rmSync(home);
}

// --- Memory ---

interface MemoryPeak {
  readonly name: string;
  readonly fullBytes: number;
  readonly incrementalBytes: number;
}

/** A full and an incremental backup of a volume, at rest or served. */
async function memoryOf(bench: Bench, name: string, home: string, isServed: boolean): Promise<MemoryPeak> {
  const volume = await VolumeAtRest.create(bench.at('vol'), home);
  const saver = new CowbellSaver(bench.settings.directory, volume, 'zstd');
  await saver.renew();
  await keepWarm(home, bench.settings.sizeBytes);
  const fullBytes = await peakOf(volume, saver, isServed);
  await volume.change(CHANGED_SHARE, bench.settings.sizeBytes);
  const incrementalBytes = await peakOf(volume, saver, isServed);
  saver.remove();
  rmSync(volume.directory, { recursive: true });
  return { name, fullBytes, incrementalBytes };
}

async function peakOf(volume: VolumeAtRest, saver: CowbellSaver, isServed: boolean): Promise<number> {
  const server = isServed ? startCowbell(['serve', volume.directory]) : undefined;
  await server?.waitForLine(/^ready nbd/);
  let memory: PeakMemory | undefined;
  await saver.save((backup) => {
    memory = new PeakMemory([backup, server].flatMap((one) => one?.child.pid ?? []));
  });
  await server?.stop();
  const peak = memory?.stop();
  if (peak === undefined || peak.processCount < 2)
    throw new Error('The processes of the backup were not seen');
  return peak.peakBytes;
}

async function memoryRows(bench: Bench): Promise<void> {
  if (!bench.wants('memory')) return;
  const { settings, image } = bench;
  const sparse = bench.at('sparse.raw');
  await makeSparseCopy(image, sparse, settings.sparseBytes);
  const peaks = [
    await memoryOf(bench, `${gib(settings.sizeBytes)} at rest`, image, false),
    await memoryOf(bench, `${gib(settings.sizeBytes)} served`, image, true),
  ];
  truncateSync(sparse, settings.hugeBytes);
  peaks.push(
    await memoryOf(bench, `${gib(settings.hugeBytes)} at rest`, sparse, false),
    await memoryOf(bench, `${gib(settings.hugeBytes)} served`, sparse, true),
  );
  rmSync(sparse);
  const lines = peaks.map(
    ({ name, fullBytes, incrementalBytes }) =>
      `  ${name.padEnd(20)} full ${mib(fullBytes)}, incremental ${mib(incrementalBytes)}`,
  );
  bench.report('peak anonymous memory of all processes of a backup', { peaks }, lines);
}

// --- Load ---

async function loadRows(bench: Bench): Promise<void> {
  if (!bench.wants('load')) return;
  const { settings, image } = bench;
  const { directory, loadBytes, seconds } = settings;
  const file = bench.at('load.raw');
  const roomy = `${join(directory, 'container')}:${loadBytes}`;
  const servers: LoadServer[] = [
    new CowbellServer(directory, 'cowbell', ['--container', 'memory:64M']),
    new CowbellServer(directory, 'cowbell-roomy', ['--container', 'memory:64M', '--container', roomy]),
    new QemuServer(directory, 'raw'),
    new QemuServer(directory, 'qcow2'),
  ];
  await must('mkdir', [join(directory, 'container')]);
  const results = await bench.rounds(servers, async (server) => {
    // What the load before wrote is not what is to be saved.
    const size = [`count=${Math.ceil(loadBytes / MIB)}`, 'bs=1M', 'conv=fsync'];
    await must('dd', [`if=${image}`, `of=${file}`, ...size, 'status=none'], { timeoutMs: 600_000 });
    const uri = await server.start(file, loadBytes);
    try {
      return await measureLoad({ server, uri, sizeBytes: loadBytes, idleSeconds: seconds, directory });
    } finally {
      await server.stop();
      rmSync(file);
    }
  });
  reportLoad(bench, `4K randwrite d32 during a full backup of ${gib(loadBytes)}`, results);
}

const PHASES = ['idle', 'first', 'rest'] as const;

function reportLoad(bench: Bench, row: string, results: Results<LoadReport>): void {
  const figures = [...results].map(([name, reports]) => ({
    name,
    backupSeconds: median(reports.map(({ backupSeconds }) => backupSeconds)),
    // Of each round against its own idle time.
    shareOfIdle: median(reports.map(({ idle, rest }) => rest.requestsPerSecond / idle.requestsPerSecond)),
    phases: PHASES.map((phase) => ({ phase, ...medianFigures(reports.map((report) => report[phase])) })),
  }));
  const lines = figures.flatMap(({ name, backupSeconds, shareOfIdle, phases }) => [
    `  ${name}: backup took ${backupSeconds.toFixed(1)} s, ${percent(shareOfIdle)} of idle throughput after the first second`,
    ...phases.map(
      ({ phase, requestsPerSecond, latencyMsP99, pauseMs }) =>
        `    ${phase.padEnd(6)} ${requestsPerSecond.toFixed(0).padStart(7)} per second   p99 ${latencyMsP99.toFixed(2)} ms   longest pause ${pauseMs.toFixed(1)} ms`,
    ),
  ]);
  const ratios = ['qemu-raw', 'qemu-qcow2'].flatMap((peer) =>
    ['cowbell', 'cowbell-roomy'].flatMap((own) => [
      ratio(results, own, peer, (one) => one.rest.requestsPerSecond, `throughput of ${own} / ${peer}`),
      ratio(results, own, peer, (one) => one.rest.latencyMsP99, `p99 of ${own} / ${peer}`),
      ratio(results, own, peer, (one) => one.rest.pauseMs, `longest pause of ${own} / ${peer}`),
      ratio(results, own, peer, (one) => one.backupSeconds, `duration of ${own} / ${peer}`),
    ]),
  );
  bench.report(row, { figures, ratios }, [...lines, ...ratios.map(ratioLine)]);
}

function medianFigures(all: readonly LoadFigures[]): LoadFigures {
  const of = (key: keyof LoadFigures): number => median(all.map((one) => one[key]));
  return {
    requestsPerSecond: of('requestsPerSecond'),
    latencyMsP99: of('latencyMsP99'),
    pauseMs: of('pauseMs'),
  };
}

// --- Words ---

const secondsOf = ({ seconds }: Saved): number => seconds;
const cpuOf = ({ cpuSeconds }: Saved): number => cpuSeconds;
const bytesOf = ({ bytes }: Saved): number => bytes;
const gib = (bytes: number): string => `${(bytes / GIB).toFixed(2)} GiB`;
const mib = (bytes: number): string => `${(bytes / MIB).toFixed(0)} MiB`;
const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
const ratioLine = ({ of, typical, best }: Ratio): string =>
  `  ${of}: ${typical.toFixed(3)} (best ${best.toFixed(3)})`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: [...ARGUMENTS],
    options: {
      rounds: { type: 'string', default: '3' },
      only: { type: 'string', default: '' },
      directory: { type: 'string', default: tmpdir() },
      json: { type: 'boolean', default: false },
      size: { type: 'string', default: '4096' },
      sparse: { type: 'string', default: '64' },
      huge: { type: 'string', default: '4096' },
      'load-size': { type: 'string', default: '1024' },
      seconds: { type: 'string', default: '5' },
    },
  });
  if (values.only !== '' && !SECTIONS.some((section) => section === values.only))
    throw new Error(`--only is ${values.only}, wanted one of ${SECTIONS.join(', ')}`);
  const directory = mkdtempSync(join(values.directory, 'cowbell-bench-'));
  const settings: Settings = {
    rounds: Number(values.rounds),
    only: values.only,
    json: values.json,
    directory,
    sizeBytes: Number(values.size) * MIB,
    sparseBytes: Number(values.sparse) * GIB,
    hugeBytes: Number(values.huge) * GIB,
    loadBytes: Math.min(Number(values['load-size']), Number(values.size)) * MIB,
    seconds: Number(values.seconds),
  };
  try {
    const { bavail, bsize } = statfsSync(directory);
    if (bavail * bsize < 4 * settings.sizeBytes)
      throw new Error(`The benchmark needs ${gib(4 * settings.sizeBytes)} free under ${directory}`);
    const bench = await Bench.prepare(settings);
    await fullRows(bench);
    await incrementalRows(bench);
    await sparseRows(bench);
    await memoryRows(bench);
    await loadRows(bench);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

await main();
