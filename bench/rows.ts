/**
 * Rows of a benchmark: every contender runs once in each round, in a rotating order, and figures are medians of the rounds.
 * A ratio is the median of the ratios of the rounds, so that what a busy machine takes from both in one round counts less;
 * beside it stands the ratio of the two best rounds, which are those that were disturbed least.
 */

import { loadavg } from 'node:os';
import { type FioReport, median } from './fio.ts';

export interface Measured extends FioReport {
  readonly cpuSecondsPerGib: number;
}

export interface RowSettings {
  readonly rounds: number;
  readonly json: boolean;
}

export interface Row<Contender> {
  readonly title: string;
  readonly contenders: readonly Contender[];
  /** Of the first to the second, by their names. */
  readonly ratios: readonly (readonly [string, string])[];
  readonly run: (contender: Contender) => Promise<Measured>;
}

/** Runs a row and prints it: lines, or one JSON object. */
export async function runRow<Contender extends { readonly name: string }>(
  { rounds, json }: RowSettings,
  { title, contenders, ratios, run }: Row<Contender>,
): Promise<void> {
  const results = new Map<string, Measured[]>(contenders.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round += 1) {
    for (let index = 0; index < contenders.length; index += 1) {
      const contender = contenders[(index + round) % contenders.length];
      if (contender !== undefined) results.get(contender.name)?.push(await run(contender));
    }
  }
  const figures = [...results].map(([name, measured]) => ({ name, ...mediansOf(measured) }));
  const compared = ratios.map(([first, second]) => compare(results, first, second));
  if (json) {
    console.log(JSON.stringify({ row: title, load: loadavg()[0], figures, ratios: compared }));
    return;
  }
  console.log(`\n${title} (load average ${loadavg()[0]?.toFixed(1)})`);
  for (const figure of figures) console.log(textOf(figure));
  for (const ratio of compared) {
    const [speed, bestSpeed, cpu, bestCpu] = [ratio.speed, ratio.bestSpeed, ratio.cpu, ratio.bestCpu].map(
      (value) => value.toFixed(2),
    );
    console.log(
      `  ${ratio.first} / ${ratio.second}: speed ${speed} (best ${bestSpeed}), CPU per GiB ${cpu} (best ${bestCpu})`,
    );
  }
}

function mediansOf(measured: readonly Measured[]): Measured {
  const of = (key: keyof Measured): number => median(measured.map((one) => one[key]));
  return {
    bytes: of('bytes'),
    seconds: of('seconds'),
    requestsPerSecond: of('requestsPerSecond'),
    latencyMsP50: of('latencyMsP50'),
    latencyMsP99: of('latencyMsP99'),
    latencyMsP999: of('latencyMsP999'),
    latencyMsMax: of('latencyMsMax'),
    cpuSecondsPerGib: of('cpuSecondsPerGib'),
  };
}

interface Ratio {
  readonly first: string;
  readonly second: string;
  readonly speed: number;
  readonly cpu: number;
  readonly bestSpeed: number;
  readonly bestCpu: number;
}

function compare(results: ReadonlyMap<string, readonly Measured[]>, first: string, second: string): Ratio {
  const of = (name: string, key: keyof Measured): number[] =>
    (results.get(name) ?? []).map((one) => one[key]);
  const ratio = (key: keyof Measured): number => {
    const others = of(second, key);
    return median(of(first, key).map((value, round) => value / (others[round] ?? Number.NaN)));
  };
  const best = (key: keyof Measured, pick: (...values: number[]) => number): number =>
    pick(...of(first, key)) / pick(...of(second, key));
  return {
    first,
    second,
    speed: ratio('requestsPerSecond'),
    cpu: ratio('cpuSecondsPerGib'),
    bestSpeed: best('requestsPerSecond', Math.max),
    bestCpu: best('cpuSecondsPerGib', Math.min),
  };
}

function textOf(figure: Measured & { readonly name: string }): string {
  const { name, requestsPerSecond, latencyMsP50, latencyMsP99, latencyMsMax, cpuSecondsPerGib } = figure;
  const latencies = [latencyMsP50, latencyMsP99, latencyMsMax].map((value) => value.toFixed(2)).join(' / ');
  const speed = `${requestsPerSecond.toFixed(0).padStart(7)} per second`;
  return `  ${name.padEnd(12)} ${speed}   p50 / p99 / max ${latencies} ms   ${cpuSecondsPerGib.toFixed(2)} CPU s/GiB`;
}
