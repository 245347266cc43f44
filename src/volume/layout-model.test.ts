/**
 * Goal: whatever the layout, and whatever fails, goes away, comes back, is replaced or loses power, every read gives
 * what was written, every flushed write is there after a power cut, and members that are current hold the same. Method:
 * random steps on a real volume over devices whose calls end in any order, beside a model that knows what each sector
 * may hold (`layout-world.fixture.ts`). The first seed that fails is told; `COWBELL_SEED` runs one, `COWBELL_SEEDS` more.
 */

import t from 'tap';
import { turns, within } from '../sim/index.ts';
import { LayoutWorld } from './layout-world.fixture.ts';

const STEPS = 60;
const ONE = process.env['COWBELL_SEED'];
const FIRST_SEED = Number(ONE ?? 1);
const LAST_SEED = ONE === undefined ? Number(process.env['COWBELL_SEEDS'] ?? 12) : FIRST_SEED;

type Step = (world: LayoutWorld) => Promise<void> | void;

const often = (step: Step, weight: number): Step[] => Array.from({ length: weight }, () => step);

const STEPS_TO_TAKE: readonly Step[] = [
  ...often((world) => world.change(), 24),
  ...often((world) => world.read(), 10),
  ...often((world) => world.flush(), 6),
  ...often((world) => world.snapshot(), 3),
  ...often((world) => world.goAway(), 3),
  ...often((world) => world.failOnce(), 3),
  ...often((world) => world.comeBack(), 4),
  ...often((world) => world.replace(), 2),
  ...often((world) => world.powerCut(), 3),
  ...often((world) => world.reopen(), 1),
];

async function runSeed(seed: number): Promise<ReadonlyMap<string, number>> {
  const world = new LayoutWorld(seed);
  try {
    await world.start();
    for (let step = 0; step < STEPS; step += 1) {
      const take = world.random.pick(STEPS_TO_TAKE);
      await within((async () => take(world))(), `step ${step}, ${take.toString()}`, 10_000);
      world.check();
      while (world.scheduler.parkedCount > 0 && world.random.chance(0.5)) world.scheduler.releaseOne();
      if (world.random.chance(0.6)) await turns(1);
      if (world.random.chance(0.1)) await world.settle();
    }
    await within(world.finish(), 'the end', 10_000);
    return world.tally;
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    const layout = world.extents.map(({ kind, members }) => `${kind} ${members.length}`).join(', ');
    throw new Error(`Seed ${seed} (${layout}): ${what}`, { cause: error });
  } finally {
    await world.end();
  }
}

t.test(`random layouts, seeds ${FIRST_SEED} to ${LAST_SEED}`, { timeout: 100_000 }, async (t) => {
  const done = new Map<string, number>();
  for (let seed = FIRST_SEED; seed <= LAST_SEED; seed += 1)
    for (const [what, count] of await runSeed(seed)) done.set(what, (done.get(what) ?? 0) + count);
  t.pass('everything was as it should be');
  if (FIRST_SEED === LAST_SEED) return;
  // A run that never gets to these would hold any promise.
  for (const what of [
    'members gone',
    'failures',
    'rebuilds',
    'replacements',
    'power cuts',
    'clean stops',
    'points',
  ])
    t.ok((done.get(what) ?? 0) > 0, `${what}: ${done.get(what) ?? 0}`);
});
