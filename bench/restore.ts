/**
 * What a restore costs: `bench/restore [--rounds N] [--directory DIR] [--size MiB] [--json]`.
 *
 * One image is saved once by each contender. Then each restores it to a new file once in each round, in a rotating
 * order, from what is in the page cache; figures are medians of the rounds. A ratio is the median of the ratios of the
 * rounds, and beside it stands that of the two best rounds. See README.md.
 */

import { ARGUMENTS } from './arguments.ts';
import { lstatSync, mkdtempSync, readdirSync, rmSync, statfsSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { must } from '../native-tests/support/process.ts';
import { keepWarm, makeImage, VolumeAtRest } from './backup-image.ts';
import { COWBELL, CowbellSaver, qemuImg, resticEnv, ResticSaver, type Saved, timed } from './backup-peers.ts';
import { median } from './fio.ts';

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;
const LIMIT_MS = 900_000;

/** Restores what was saved before to a new file. */
interface Restorer {
  readonly name: string;
  /** A file or directory with what was saved, to be in the page cache. */
  readonly from: string;
  readonly words: (target: string) => readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** Saves the image with every contender; what they took is of no interest here. */
async function saveAll(directory: string, image: string): Promise<Restorer[]> {
  const at = (name: string): string => join(directory, name);
  const volume = await VolumeAtRest.create(at('vol'), image);
  for (const saver of [
    new CowbellSaver(directory, volume, 'zstd'),
    qemuImg(directory, image),
    new ResticSaver(directory, image),
  ]) {
    await saver.renew();
    await saver.save();
  }
  const store = at('cowbell-zstd');
  const restore = [...COWBELL, '--json', 'restore', store, 'latest'];
  const env = resticEnv(at('restic'), at('restic-cache'));
  const dump = 'restic -q dump latest /volume > "$0" && sync "$0"';
  return [
    { name: 'cowbell', from: store, words: (target) => [...restore, target] },
    { name: 'cowbell --verify', from: store, words: (target) => [...restore, target, '--verify'] },
    {
      name: 'qemu-img',
      from: at('qemu-img'),
      words: (target) => [
        'qemu-img',
        'convert',
        '-f',
        'qcow2',
        '-O',
        'raw',
        '-t',
        'writeback',
        at('qemu-img'),
        target,
      ],
    },
    { name: 'restic', from: at('restic'), words: (target) => ['sh', '-c', dump, target], env },
  ];
}

/** Every file below the path, into the page cache. */
async function warm(path: string): Promise<void> {
  const stats = lstatSync(path);
  if (stats.isFile()) await keepWarm(path, stats.size);
  if (stats.isDirectory()) for (const name of readdirSync(path)) await warm(join(path, name));
}

async function runRounds(
  restorers: readonly Restorer[],
  of: { readonly rounds: number; readonly image: string; readonly target: string },
): Promise<ReadonlyMap<string, readonly Saved[]>> {
  const results = new Map<string, Saved[]>(restorers.map(({ name }) => [name, []]));
  for (let round = 0; round < of.rounds; round += 1) {
    for (let index = 0; index < restorers.length; index += 1) {
      const restorer = restorers[(index + round) % restorers.length];
      if (restorer === undefined) continue;
      const { name, from, words, env = {} } = restorer;
      await warm(from);
      const took = await timed(of.target, { words: words(of.target), env });
      results.get(name)?.push(took);
      if (round === 0) await must('cmp', [of.image, of.target], { timeoutMs: LIMIT_MS });
      rmSync(of.target);
    }
  }
  return results;
}

interface Ratio {
  readonly of: string;
  readonly typical: number;
  readonly best: number;
}

function ratio(
  results: ReadonlyMap<string, readonly Saved[]>,
  peer: string,
  figure: 'seconds' | 'cpuSeconds',
): Ratio {
  const own = (results.get('cowbell') ?? []).map((took) => took[figure]);
  const theirs = (results.get(peer) ?? []).map((took) => took[figure]);
  const quotients = theirs.map((value, round) => value / (own[round] ?? Number.NaN));
  const what = figure === 'seconds' ? 'time' : 'CPU';
  return {
    of: `${what} of ${peer} / cowbell`,
    typical: median(quotients),
    best: Math.min(...theirs) / Math.min(...own),
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    args: [...ARGUMENTS],
    options: {
      rounds: { type: 'string', default: '5' },
      directory: { type: 'string', default: tmpdir() },
      json: { type: 'boolean', default: false },
      size: { type: 'string', default: '4096' },
    },
  });
  const sizeBytes = Number(values.size) * MIB;
  const directory = mkdtempSync(join(values.directory, 'cowbell-bench-'));
  try {
    const { bavail, bsize } = statfsSync(directory);
    if (bavail * bsize < 4 * sizeBytes) {
      throw new Error(`The benchmark needs ${(4 * sizeBytes) / GIB} GiB free under ${directory}`);
    }
    const image = join(directory, 'image.raw');
    const imageBytes = await makeImage(image, sizeBytes);
    const restorers = await saveAll(directory, image);
    const target = join(directory, 'restored.raw');
    const results = await runRounds(restorers, { rounds: Number(values.rounds), image, target });
    const figures = [...results].map(([name, turns]) => ({
      name,
      seconds: median(turns.map(({ seconds }) => seconds)),
      cpuSeconds: median(turns.map(({ cpuSeconds }) => cpuSeconds)),
      bytes: median(turns.map(({ bytes }) => bytes)),
    }));
    const ratios = ['qemu-img', 'restic'].flatMap((peer) => [
      ratio(results, peer, 'seconds'),
      ratio(results, peer, 'cpuSeconds'),
    ]);
    const load = loadavg()[0];
    if (values.json) {
      console.log(JSON.stringify({ row: 'restore', load, sizeBytes, imageBytes, figures, ratios }));
      return;
    }
    const size = `${(sizeBytes / GIB).toFixed(2)} GiB with ${(imageBytes / GIB).toFixed(2)} GiB of data`;
    console.log(`restore, ${size} (load average ${load?.toFixed(1)})`);
    for (const { name, seconds, cpuSeconds, bytes } of figures) {
      console.log(
        `  ${name.padEnd(18)} ${seconds.toFixed(2).padStart(7)} s   ${cpuSeconds.toFixed(2).padStart(7)} CPU s   ${(bytes / GIB).toFixed(2)} GiB on disk`,
      );
    }
    for (const { of, typical, best } of ratios) {
      console.log(`  ${of}: ${typical.toFixed(3)} (best ${best.toFixed(3)})`);
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

await main();
