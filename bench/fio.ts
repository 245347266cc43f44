/** One fio job over its nbd engine, what it tells, and what the benchmarks do with such figures. */

import { closeSync, fsyncSync, openSync } from 'node:fs';
import { dropCache } from '../src/base/index.ts';
import { must } from '../native-tests/support/process.ts';

export interface FioJob {
  readonly uri: string;
  readonly rw: string;
  readonly blockSize: string;
  readonly depth: number;
  readonly sizeBytes: number;
  /** It ends after this time at the latest. */
  readonly seconds: number;
  /** One where left out. */
  readonly connections?: number;
  /** It ends after so many requests; where left out it goes on until the time is over. */
  readonly requestCount?: number;
  /** One request of the block size at the beginning of each such piece, in their order; `rw` is not a random one. */
  readonly strideBytes?: number;
  /** A flush follows each so many requests; none where left out. */
  readonly flushEach?: number;
}

export interface FioReport {
  readonly bytes: number;
  readonly seconds: number;
  readonly requestsPerSecond: number;
  /** Completion latencies as the client sees them. */
  readonly latencyMsP50: number;
  readonly latencyMsP99: number;
  readonly latencyMsP999: number;
  readonly latencyMsMax: number;
}

export function fioArguments(job: FioJob): string[] {
  const { requestCount, strideBytes, flushEach } = job;
  return [
    '--name=bench',
    '--ioengine=nbd',
    `--uri=${job.uri}`,
    `--rw=${job.rw}${strideBytes === undefined ? '' : `:${strideBytes - Number.parseInt(job.blockSize) * 1024}`}`,
    `--bs=${job.blockSize}`,
    `--iodepth=${job.depth}`,
    `--numjobs=${job.connections ?? 1}`,
    '--group_reporting',
    `--size=${job.sizeBytes}`,
    ...(requestCount === undefined ? ['--time_based'] : [`--number_ios=${requestCount}`]),
    ...(flushEach === undefined ? [] : [`--fsync=${flushEach}`]),
    `--runtime=${job.seconds}`,
    '--output-format=json',
  ];
}

export async function runFio(job: FioJob): Promise<FioReport> {
  return reportOf(await must('fio', fioArguments(job), { timeoutMs: job.seconds * 1000 + 60_000 }));
}

/** What fio printed: reads and writes of its grouped job, latencies of the one that it did more of. */
export function reportOf(output: string): FioReport {
  const report: unknown = JSON.parse(output.slice(output.indexOf('{')));
  const sides = ['read', 'write'].map((side) => inside(report, ['jobs', '0', side]));
  const bytesOf = (side: unknown): number => numberIn(side, ['io_bytes']);
  const side = sides.toSorted((a, b) => bytesOf(b) - bytesOf(a))[0];
  const latencyMs = (...path: string[]): number => numberIn(side, ['clat_ns', ...path]) / 1e6;
  const sumOf = (key: string): number => sides.reduce<number>((sum, one) => sum + numberIn(one, [key]), 0);
  return {
    bytes: sumOf('io_bytes'),
    seconds: Math.max(...sides.map((one) => numberIn(one, ['runtime']))) / 1000,
    requestsPerSecond: sumOf('iops'),
    latencyMsP50: latencyMs('percentile', '50.000000'),
    latencyMsP99: latencyMs('percentile', '99.000000'),
    latencyMsP999: latencyMs('percentile', '99.900000'),
    latencyMsMax: latencyMs('max'),
  };
}

function inside(value: unknown, path: readonly string[]): unknown {
  let found = value;
  for (const key of path)
    found = typeof found === 'object' && found !== null ? Reflect.get(found, key) : undefined;
  return found;
}

function numberIn(value: unknown, path: readonly string[]): number {
  const found = inside(value, path);
  return typeof found === 'number' ? found : 0;
}

/**
 * Brings a file into the page cache, always in the same way: a machine may have taken it away since its last turn,
 * and a write costs several times as much where the cache holds the file in large pieces as where it holds it in small
 * ones, which depends on what came before.
 */
export async function warm(path: string): Promise<void> {
  const descriptor = openSync(path, 'r+');
  fsyncSync(descriptor);
  await dropCache(descriptor);
  closeSync(descriptor);
  await must('dd', [`if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none']);
}

/** The value below which the share lies: 0.5 is the median. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}
