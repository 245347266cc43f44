/**
 * The model test (src/sim/model-run.ts) for as many seeds as asked, one after the other.
 *
 *     --runs N       so many seeds; 100 where nothing is said
 *     --seconds N    as many as fit
 *     --seed N       the first one; by the clock where left out
 *     --trace        each command as it is run
 */

import { parseArgs } from 'node:util';
import { runModel } from '../src/sim/model-run.ts';

const { values } = parseArgs({
  options: {
    runs: { type: 'string' },
    seconds: { type: 'string' },
    seed: { type: 'string' },
    trace: { type: 'boolean' },
  },
});
const first = values.seed === undefined ? Date.now() % 1_000_000_000 : Number(values.seed);
const runs = values.seconds === undefined ? Number(values.runs ?? 100) : Number.POSITIVE_INFINITY;
const untilMs = values.seconds === undefined ? Number.POSITIVE_INFINITY : Number(values.seconds) * 1000;
const startedMs = performance.now();
const total = new Map<string, number>();
const failed: number[] = [];

console.log(`First seed ${first}`);
let seed = first;
for (; seed < first + runs && performance.now() - startedMs < untilMs; seed += 1) {
  try {
    const tally = await runModel({
      seed,
      onTrace: (line) => {
        if (values.trace === true) console.log(`  ${line}`);
      },
    });
    for (const [what, count] of tally) total.set(what, (total.get(what) ?? 0) + count);
  } catch (error) {
    failed.push(seed);
    console.log(error instanceof Error ? error.message : error);
    if (values.trace === true && error instanceof Error) console.log(error.cause);
  }
}
for (const [what, count] of [...total].toSorted(([a], [b]) => a.localeCompare(b)))
  console.log(`${String(count).padStart(9)}  ${what}`);
if (failed.length > 0) console.log(`Failed seeds: ${failed.join(' ')}`);
console.log(`Took ${Math.round((performance.now() - startedMs) / 1000)} s`);
console.log(`${seed - first - failed.length} passed, ${failed.length} failed`);
process.exitCode = failed.length > 0 ? 1 : 0;
