/**
 * Goal: the simulator's seeds are runs that can be repeated, it finds what it is there to find, and seeds that once
 * found something stay.
 *
 * Method: a few seeds are run twice by the command, which sets the process up for it, and everything that happened is
 * compared; then with syncs that do nothing, one of the volume and one of the store; then each seed of the table.
 * `scripts/sim` runs as many others as asked.
 */

import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';
import type { SyncName } from '../base/index.ts';
import { simulate, type SimulationResult } from './simulator.ts';

const run = promisify(execFile);
const COMMAND = fileURLToPath(new URL('../../scripts/sim', import.meta.url));

/** Seeds that broke a promise once, each with the defect that it found. */
const FOUND: readonly { readonly seed: number; readonly defect: string }[] = [
  {
    seed: 42,
    defect: 'a snapshot was deleted while a rollback to it began, and the volume never opened again',
  },
  { seed: 97, defect: 'a volume poisoned in the middle of a rollback could not be opened to be checked' },
  { seed: 122, defect: 'a rollback had its own snapshot dropped for want of room' },
  { seed: 1994, defect: 'a trim that was put off was done after a rollback had undone it' },
  {
    seed: 3396,
    defect: 'a snapshot whose record could not be synced lost its file, and all older ones with it',
  },
  { seed: 20455, defect: 'old content whose sync had failed was trusted after the next opening' },
];

t.test('the same seed is the same run', async (t) => {
  const args = ['--runs', '12', '--seed', '1', '--trace', '--json'];
  const [first, second] = await Promise.all([run(COMMAND, args), run(COMMAND, args)]);
  const lines = (output: string): string[] =>
    output.split('\n').filter((line) => !/"seconds"|progress/.test(line));
  t.ok(lines(first.stdout).length > 500, `${lines(first.stdout).length} things happened`);
  t.same(lines(first.stdout), lines(second.stdout));
});

/** The first breach among so many seeds. */
async function firstBreach(without: SyncName, seedCount: number): Promise<SimulationResult['breach']> {
  for (let seed = 1; seed <= seedCount; seed += 1) {
    const { breach } = await simulate({ seed, without });
    if (breach !== undefined) return breach;
  }
  return undefined;
}

t.test('a sync that does nothing is found', async (t) => {
  t.match(await firstBreach('intent-log', 60), { promise: 'changes are known' });
  t.match(await firstBreach('set-seal', 60), { promise: 'complete or invisible' });
});

t.test('seeds that found something hold now', async (t) => {
  for (const { seed, defect } of FOUND) {
    const { breach } = await simulate({ seed });
    t.equal(breach, undefined, `seed ${seed}: ${defect}`);
  }
  t.pass(`${FOUND.length} seeds`);
});

t.test('the command says which promise is broken, and how to see it again', async (t) => {
  const failed = run(COMMAND, ['--runs', '60', '--seed', '1', '--without', 'intent-log', '--json']);
  const { code, stdout }: { code: number; stdout: string } = await failed.then(
    () => t.fail('no breach was found'),
    (error) => error,
  );
  t.equal(code, 1);
  const [breach, done] = stdout
    .trim()
    .split('\n')
    .slice(-2)
    .map((line): Record<string, unknown> => JSON.parse(line));
  t.match(breach, { event: 'breach', promise: 'changes are known' });
  t.match(String(breach?.['repeat']), /^scripts\/sim --runs 1 --seed \d+ --without intent-log$/);
  t.match(done, { event: 'done', broken: 'changes are known' });
  await t.rejects(run(COMMAND, ['--without', 'nothing']), { code: 2 });
});
