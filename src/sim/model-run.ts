/** One run of the model test, from its seed. */

import { SeededRandom } from '../base/index.ts';
import { SeededIds } from './asked-clock.ts';
import { Store, verify } from '../blockset/index.ts';
import { COMMANDS, drawCommand, drawWeights, endBackups, recoverFromPoison } from './model-commands.ts';
import { RunningBackup } from './model-backup.ts';
import { type Tally, World, type WorldOptions } from './model-world.ts';
import { issueChange } from './model-writes.ts';
import { must } from './promises.ts';
import { turns } from './scheduler.ts';

export interface ModelRunOptions extends WorldOptions {
  readonly seed: number;
  /** Commands; drawn from the seed where left out. */
  readonly commands?: number;
  /** How much more often than otherwise some commands come, by name. */
  readonly favours?: Readonly<Record<string, number>>;
}

/**
 * Runs one seed.
 *
 * @returns how often what was done.
 * @throws {ModelViolation} and what the rooms throw, where a promise is broken; the message names the seed.
 */
export async function runModel(options: ModelRunOptions): Promise<Tally> {
  const random = new SeededRandom(options.seed);
  const ids = new SeededIds(new SeededRandom(options.seed));
  const world = await World.create(random, ids, options);
  try {
    await begin(world);
    const weights = drawWeights(world, options.favours);
    const counts = options.isSmall === true ? [10, 20, 50] : [30, 80, 160];
    const count = options.commands ?? random.pick(counts);
    for (let done = 0; done < count; done += 1) {
      const name = drawCommand(world, weights);
      world.trace(name);
      await COMMANDS[name]?.run(world);
      await afterCommand(world);
    }
    await finish(world, options.isSmall === true ? random.below(2) : 2);
    return world.tally;
  } catch (error) {
    throw new Error(`Seed ${options.seed} failed: ${String(error)}`, { cause: error });
  } finally {
    await world.destroy();
    ids.close();
  }
}

/** Many runs begin with snapshots, so that the others meet them. */
async function begin(world: World): Promise<void> {
  for (let count = world.random.pick([0, 0, 1, 2, 3]); count > 0; count -= 1) {
    issueChange(world, 'write');
    world.snapshots.make();
    await world.writesEnd();
  }
}

async function afterCommand(world: World): Promise<void> {
  await turns(world.random.pick([0, 0, 1, 3]));
  if (world.isCutDue) await world.kill();
  if (world.volume.status().poisoned !== undefined) await recoverFromPoison(world);
  world.checkDisk();
  if (world.random.chance(0.2)) world.checkChanges();
  const { backups } = world;
  const over = backups.filter(({ isOver }) => isOver);
  for (const backup of over) {
    await backup.ended;
    backups.splice(backups.indexOf(backup), 1);
  }
  if (over.length > 0 && backups.length === 0) await world.checkIdle();
}

/** Everything comes to its end, and each store gets last sets, which are checked with all before them. */
async function finish(world: World, lastSets: number): Promise<void> {
  await endBackups(world);
  world.backups.length = 0;
  await world.checkIdle();
  world.failingSyncs.clear();
  world.snapshots.setFull(false);
  if (world.volume.status().poisoned !== undefined) await recoverFromPoison(world);
  for (const known of world.stores) {
    const store = await world.straight(() => Store.open(known.path, { clock: world.storeClock }));
    for (let round = 0; round < lastSets; round += 1) {
      world.backups.splice(0, 1, new RunningBackup(world, store));
      world.scheduler.open();
      await endBackups(world);
      world.scheduler.close();
    }
    await world.checkStore(store, { everySet: true });
    if (lastSets === 0) continue;
    for await (const verified of verify(store)) {
      must(
        'complete or invisible',
        verified.sound,
        `Set ${verified.set.id} is not sound: ${verified.findings.join('; ')}`,
      );
    }
  }
  world.backups.length = 0;
  await world.checkIdle();
}
