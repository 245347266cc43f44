/**
 * The simulator (src/sim/simulator.ts), seed after seed, until a promise is broken or the time is up.
 *
 *     --seconds N      as many seeds as fit; 60 where nothing is said
 *     --runs N         so many seeds
 *     --seed N         the first one; by the clock where left out
 *     --without SYNC   this sync does nothing (`SyncName` in src/base/sync.ts): the simulator must find a breach
 *     --json           one JSON object a line, the last with `"event":"done"`
 *     --trace          each thing that happens, for looking at one seed and for comparing two runs of it
 *
 * Exit status 0 where every promise held, 1 where one was broken, 2 where it was not called rightly.
 */

import { parseArgs } from 'node:util';
import { SYNC_NAMES, type SyncName } from '../src/base/index.ts';
import { PROMISES, type Breach } from '../src/sim/promises.ts';
import { simulate, type SimulationResult } from '../src/sim/simulator.ts';

const PROGRESS_MS = 10_000;

const { values } = parseArgs({
  options: {
    runs: { type: 'string' },
    seconds: { type: 'string' },
    seed: { type: 'string' },
    without: { type: 'string' },
    json: { type: 'boolean', default: false },
    trace: { type: 'boolean', default: false },
  },
});

function usage(message: string): never {
  console.error(message);
  process.exit(2);
}

function numberOf(name: 'runs' | 'seconds' | 'seed'): number | undefined {
  const text = values[name];
  if (text === undefined) return undefined;
  const number = Number(text);
  if (text === '' || !Number.isSafeInteger(number) || number < 0)
    usage(`Option --${name} is ${text}, wanted a whole number`);
  return number;
}

function syncOf(name: string | undefined): SyncName | undefined {
  if (name === undefined) return undefined;
  const known = SYNC_NAMES.find((sync) => sync === name);
  return known ?? usage(`Option --without is ${name}, wanted one of ${SYNC_NAMES.join(', ')}`);
}

const first = numberOf('seed') ?? Date.now() % 1_000_000_000;
const runs = numberOf('runs') ?? Number.POSITIVE_INFINITY;
const seconds = numberOf('seconds') ?? (values.runs === undefined ? 60 : Number.POSITIVE_INFINITY);
const without = syncOf(values.without);

const startedMs = performance.now();
const crashes = new Map<string, number>();
const total = { runs: 0, syncsFailed: 0, tracksVerified: 0 };

/** One line: an object where asked for, else a sentence. */
function say(event: Record<string, unknown>, text: string): void {
  console.log(values.json ? JSON.stringify(event) : text);
}

function elapsedSeconds(): number {
  return Math.round((performance.now() - startedMs) / 100) / 10;
}

function add({ crashes: points, syncsFailed, tracksVerified }: SimulationResult): void {
  for (const point of points) crashes.set(point, (crashes.get(point) ?? 0) + 1);
  total.syncsFailed += syncsFailed;
  total.tracksVerified += tracksVerified;
}

function reportBreach(seed: number, { promise, message }: Breach, points: readonly string[]): void {
  const repeat = `scripts/sim --runs 1 --seed ${seed}${without === undefined ? '' : ` --without ${without}`}`;
  const where = points.length === 0 ? 'none' : points.join(', ');
  say(
    { event: 'breach', seed, promise, says: PROMISES[promise], message, crashPoints: points, repeat },
    `Seed ${seed} broke "${promise}" (${PROMISES[promise]})\n  ${message}\n  Crash points: ${where}\n  Again: ${repeat}`,
  );
}

function reportTotal(breach: Breach | undefined): void {
  const points = Object.fromEntries([...crashes].toSorted(([a], [b]) => a.localeCompare(b)));
  const cuts = Object.entries(points).map(([point, count]) => `${count} ${point}`);
  say(
    { event: 'done', ...total, crashes: points, broken: breach?.promise ?? null, seconds: elapsedSeconds() },
    `${total.runs} runs, crashes: ${cuts.join(', ')}; ${total.syncsFailed} syncs failed, ` +
      `${total.tracksVerified} tracks verified, ${elapsedSeconds()} s, ${breach === undefined ? 'no promise' : `"${breach.promise}"`} broken`,
  );
}

async function main(): Promise<void> {
  say({ event: 'start', seed: first, without: without ?? null }, `First seed ${first}`);
  let breach: Breach | undefined;
  let nextProgressMs = startedMs + PROGRESS_MS;
  for (let seed = first; breach === undefined && seed < first + runs; seed += 1) {
    if (elapsedSeconds() >= seconds) break;
    const result = await simulate({
      seed,
      ...(without === undefined ? {} : { without }),
      ...(values.trace ? { onTrace: (line) => say({ event: 'trace', line }, `  ${line}`) } : {}),
    });
    total.runs += 1;
    add(result);
    breach = result.breach;
    if (breach !== undefined) reportBreach(seed, breach, result.crashes);
    if (performance.now() < nextProgressMs) continue;
    nextProgressMs += PROGRESS_MS;
    say({ event: 'progress', seed, ...total }, `Seed ${seed}: ${total.runs} runs in ${elapsedSeconds()} s`);
  }
  reportTotal(breach);
  process.exitCode = breach === undefined ? 0 : 1;
}

await main();
