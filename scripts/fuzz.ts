/**
 * The fuzzer (src/nbd/test-fuzz.ts) for as long as asked, one run after the other.
 *
 *     --seconds N    as many runs as fit; 60 where nothing is said
 *     --runs N       so many runs
 *     --seed N       the first one; by the clock where left out
 *
 * A run that never ends cannot say so itself: a second thread watches, and ends the process. What is thrown
 * where nobody waits for it ends the process too. In both cases the seed is printed. Memory is measured after
 * a collection, first when everything has been used once, and must not have grown at the end.
 */
import { writeSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { Fuzzer } from '../src/nbd/test-fuzz.ts';

/** No run takes more than a second, even on a busy machine. */
const HANG_MS = 30_000;
const WARM_RUN_COUNT = 1500;
/** What may be there at the end and was not at first: code that was compiled, buffers that are pooled. */
const GROWTH_BYTES_MAX = 8 * 1024 * 1024;
const FAILURE_COUNT_MAX = 5;

const { values } = parseArgs({
  options: { runs: { type: 'string' }, seconds: { type: 'string' }, seed: { type: 'string' } },
});
const first = values.seed === undefined ? Date.now() % 1_000_000_000 : Number(values.seed);
const runs = values.runs === undefined ? Number.POSITIVE_INFINITY : Number(values.runs);
const seconds = Number(values.seconds ?? (values.runs === undefined ? 60 : Number.POSITIVE_INFINITY));
const startedMs = performance.now();

let seed = first;
/** The seed that runs, for the watching thread. */
const shared = new Uint32Array(new SharedArrayBuffer(8));

const collectGarbage = ((): (() => void) => {
  setFlagsFromString('--expose-gc');
  const collect: unknown = runInNewContext('gc');
  if (typeof collect !== 'function') throw new Error('The garbage collector cannot be called');
  return () => void Reflect.apply(collect, undefined, []);
})();

async function heldBytes(): Promise<number> {
  // Twice, with a turn between: what was collected may hold more through a finalizer.
  for (let pass = 0; pass < 2; pass += 1) {
    collectGarbage();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

function fail(what: string, error: unknown): never {
  writeSync(
    2,
    `Seed ${seed}: ${what}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  process.exit(1);
}
process.on('uncaughtException', (error) => fail('thrown where nobody waits', error));
process.on('unhandledRejection', (error) => fail('rejected where nobody waits', error));

const watcher = new Worker(
  `const { workerData } = require('node:worker_threads');
  const { writeSync } = require('node:fs');
  let last = -1;
  setInterval(() => {
    const [seed, count] = workerData.shared;
    if (count === last) {
      writeSync(2, 'Seed ' + seed + ' hangs\\n');
      process.kill(process.pid, 'SIGKILL');
    }
    last = count;
  }, workerData.hangMs);`,
  { eval: true, workerData: { shared, hangMs: HANG_MS } },
);
watcher.unref();

console.log(`First seed ${first}`);
const fuzzer = await Fuzzer.open();
const total = new Map<string, number>();
const failed: number[] = [];
let warmBytes: number | undefined;
let slowest = { seed: first, ms: 0 };
const isTime = (): boolean => performance.now() - startedMs < seconds * 1000;
for (; seed < first + runs && isTime() && failed.length < FAILURE_COUNT_MAX; seed += 1) {
  shared[0] = seed;
  shared[1] = seed - first + 1;
  const beganMs = performance.now();
  try {
    const what = await fuzzer.run(seed);
    total.set(what, (total.get(what) ?? 0) + 1);
  } catch (error) {
    failed.push(seed);
    console.log(`Seed ${seed}:`, error);
  }
  const ms = performance.now() - beganMs;
  if (ms > slowest.ms) slowest = { seed, ms };
  if (seed - first === WARM_RUN_COUNT) warmBytes = await heldBytes();
}
const grownBytes = warmBytes === undefined ? 0 : (await heldBytes()) - warmBytes;
await fuzzer.close();
for (const [what, count] of total) console.log(`${String(count).padStart(9)}  ${what}`);
console.log(`Slowest seed ${slowest.seed}: ${Math.round(slowest.ms)} ms`);
console.log(`Memory grew by ${Math.round(grownBytes / 1024)} KiB`);
let failedCount = failed.length;
if (grownBytes > GROWTH_BYTES_MAX) {
  failedCount += 1;
  console.log(`That is more than ${GROWTH_BYTES_MAX / 1024} KiB: something is kept`);
}
if (failed.length > 0) console.log(`Failed seeds: ${failed.join(' ')}`);
console.log(`Took ${Math.round((performance.now() - startedMs) / 1000)} s`);
console.log(`${seed - first - failed.length} passed, ${failedCount} failed`);
process.exitCode = failedCount > 0 ? 1 : 0;
