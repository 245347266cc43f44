/**
 * Runs all checks and tests, says how long each took, and ends with `N passed, N failed, N skipped`.
 *
 *   lint, format, types, unused      at once, one result each
 *   unit tests                       src and scripts, two files at a time
 *   fuzz and simulator               at once: one minute of scripts/fuzz from a new seed, which it prints; scripts/sim
 *                                    for seconds, from a fixed seed and from a new one; one result each
 *   native tests                     native-tests: those that measure by themselves; then those that boot machines,
 *                                    one at a time, and beside them the others, two at a time
 *
 * Assertions are what is counted in tests (tap-tally.ts says how), so one number means one thing throughout.
 * A skip prints its reason. With files named as arguments, only the tests in those are run. The raw results
 * stay in `.cache/`.
 */
import { spawn } from 'node:child_process';
import { createWriteStream, mkdirSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { inspect } from 'node:util';
import { type Tally, TapTally } from './tap-tally.ts';

type Check = readonly [name: string, command: string, ...args: string[]];

const CHECKS: readonly Check[] = [
  ['lint', 'npm', 'run', '--silent', 'lint'],
  ['format', 'npm', 'run', '--silent', 'format:check'],
  ['types', 'node_modules/.bin/tsc', '-p', 'tsconfig.json'],
  ['unused', 'npm', 'run', '--silent', 'knip'],
];

/** The fixed seeds find what was broken since; the new ones what nobody has met yet. */
const CAMPAIGNS: readonly Check[] = [
  ['fuzz', 'scripts/fuzz', '--seconds', '60'],
  ['simulator, fixed seed', 'scripts/sim', '--seconds', '15', '--seed', '1'],
  ['simulator, new seed', 'scripts/sim', '--seconds', '15'],
];
const NATIVE = 'native-tests/';
const UNIT_OPTIONS = ['--jobs=2'];
const NATIVE_OPTIONS = ['--jobs=1', '--timeout=600'];
/** Those beside the machines wait for processes most of the time. */
const OTHER_OPTIONS = ['--jobs=2', '--timeout=600'];
/** What they see of times or memory would be of the others, too. */
const MEASURING = [
  'loop-stall',
  'memory-bound',
  'recover-first-read',
  'serve-store-first-read',
  'snapshot-load',
];

/** Before anything of tap's, which loads a compiler into each of several hundred processes where nobody strips types. */
const HOOKS = new URL('ts-hooks.mjs', import.meta.url).href;

const total: Tally = { passed: 0, failed: 0, skipped: 0 };

function testFiles(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => join(directory, file))
    .toSorted();
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

/** Runs one stage, whose results are added to the total, and prints what it came to. */
async function stage(name: string, work: () => Promise<Tally>): Promise<void> {
  console.log(`== ${name}`);
  const start = performance.now();
  const { passed, failed, skipped } = await work();
  total.passed += passed;
  total.failed += failed;
  total.skipped += skipped;
  const verdict = failed === 0 ? 'ok' : 'FAILED';
  console.log(`   ${verdict}, ${seconds(performance.now() - start)}\n`);
}

/** Runs a command with its output on ours, or taken by `read`; returns its exit status. */
async function execute(
  command: string,
  args: readonly string[],
  read?: (text: string) => void,
  env: Readonly<Record<string, string>> = {},
): Promise<number> {
  return await new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      env: { ...process.env, ...env },
      stdio: ['ignore', read === undefined ? 'inherit' : 'pipe', 'inherit'],
    });
    if (read !== undefined) child.stdout?.setEncoding('utf8').on('data', read);
    child.once('error', reject);
    child.once('close', (status) => resolve(status ?? 1));
  });
}

/** Runs commands at once, each for one result, and prints what each said when it has ended. */
async function runChecks(checks: readonly Check[]): Promise<Tally> {
  const results = await Promise.all(
    checks.map(async ([name, command, ...args]) => {
      const start = performance.now();
      let output = '';
      const ok = (await execute(command, args, (text) => (output += text))) === 0;
      console.log(`   ${ok ? 'ok' : 'FAILED'} ${name}, ${seconds(performance.now() - start)}`);
      if (output !== '') console.log(output.trimEnd().replaceAll(/^/gm, '      '));
      return ok;
    }),
  );
  const passed = results.filter((ok) => ok).length;
  return { passed, failed: results.length - passed, skipped: 0 };
}

async function runTests(files: readonly string[], options: readonly string[], log: string): Promise<Tally> {
  mkdirSync('.cache', { recursive: true });
  const raw = createWriteStream(log);
  const tally = new TapTally({
    file: (name, ok, counts, durationMs) => {
      const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : '';
      const failed = counts.failed > 0 ? `, ${counts.failed} failed` : '';
      const time = durationMs === undefined ? '' : `, ${seconds(durationMs)}`;
      console.log(`   ${ok ? 'ok' : 'FAILED'} ${name}: ${counts.passed} passed${failed}${skipped}${time}`);
    },
    failure: (name, details) => {
      console.log(`   FAILED ${name}`);
      if (details !== null) console.log(inspect(details, { depth: 5 }).replaceAll(/^/gm, '      '));
    },
    skip: (name, reason) => console.log(`   SKIP ${name}: ${reason}`),
  });
  const status = await execute(
    'node_modules/.bin/tap',
    ['run', '--reporter=tap', ...options, ...files],
    (text) => {
      raw.write(text);
      tally.write(text);
    },
    { NODE_OPTIONS: `${process.env['NODE_OPTIONS'] ?? ''} --import=${HOOKS}` },
  );
  raw.end();
  const counts = tally.finish();
  if (status !== 0 && counts.failed === 0) {
    console.log(`   FAILED the test runner ended with status ${status}, see ${log}`);
    counts.failed += 1;
  }
  return counts;
}

async function runNative(files: readonly string[]): Promise<Tally> {
  const isMeasuring = (file: string): boolean =>
    MEASURING.some((name) => file === `${NATIVE}${name}.test.ts`);
  const isMachine = (file: string): boolean => file.startsWith(`${NATIVE}vm-`);
  const run = async (
    name: string,
    belongs: (file: string) => boolean,
    options = NATIVE_OPTIONS,
  ): Promise<Tally> => {
    const own = files.filter(belongs);
    if (own.length === 0) return { passed: 0, failed: 0, skipped: 0 };
    return await runTests(own, options, `.cache/native-tests-${name}.tap`);
  };
  const measuring = await run('measuring', isMeasuring);
  const beside = await Promise.all([
    run('machines', isMachine),
    run('others', (file) => !isMeasuring(file) && !isMachine(file), OTHER_OPTIONS),
  ]);
  const all = [measuring, ...beside];
  const sum = (member: keyof Tally): number => all.reduce((count, tally) => count + tally[member], 0);
  return { passed: sum('passed'), failed: sum('failed'), skipped: sum('skipped') };
}

async function main(): Promise<void> {
  const named = process.argv.slice(2).map((file) => relative(process.cwd(), file));
  const files = named.length > 0 ? named : ['src', 'scripts', 'native-tests'].flatMap(testFiles);
  const unit = files.filter((file) => !file.startsWith(NATIVE));
  const native = files.filter((file) => file.startsWith(NATIVE));
  if (named.length === 0) await stage('checks', () => runChecks(CHECKS));
  if (unit.length > 0) {
    await stage('unit tests', () => runTests(unit, UNIT_OPTIONS, '.cache/unit-tests.tap'));
  }
  if (named.length === 0) await stage('fuzz and simulator', () => runChecks(CAMPAIGNS));
  if (native.length > 0) {
    await stage('native tests', () => runNative(native));
  }
  console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  process.exitCode = total.failed === 0 ? 0 : 1;
}

await main();
