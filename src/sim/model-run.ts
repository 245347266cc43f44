/** One run of the model test, from its seed. */

import { SeededRandom } from '../base/index.ts';
import { Store, verify } from '../blockset/index.ts';
import { COMMANDS, drawCommand, drawWeights, endBackup, recoverFromPoison } from './model-commands.ts';
import { RunningBackup } from './model-backup.ts';
import { must, type Tally, World } from './model-world.ts';
import { turns } from './scheduler.ts';

export interface ModelRunOptions {
  readonly seed: number;
  /** Commands; drawn from the seed where left out. */
  readonly commands?: number;
  /** How much more often than otherwise some commands come, by name. */
  readonly favours?: Readonly<Record<string, number>>;
  /** Called before each command; for looking at a run that failed. */
  readonly onCommand?: (name: string) => void;
}

/**
 * Runs one seed.
 *
 * @returns how often what was done.
 * @throws {ModelViolation} and what the rooms throw, where a promise is broken; the message names the seed.
 */
export async function runModel(options: ModelRunOptions): Promise<Tally> {
  const random = new SeededRandom(options.seed);
  const world = await World.create(random);
  try {
    const weights = drawWeights(world, options.favours);
    const count = options.commands ?? random.pick([30, 80, 160]);
    for (let done = 0; done < count; done += 1) {
      const name = drawCommand(world, weights);
      options.onCommand?.(name);
      await COMMANDS[name]?.run(world);
      await afterCommand(world);
    }
    await finish(world);
    return world.tally;
  } catch (error) {
    throw new Error(`Seed ${options.seed} failed: ${String(error)}`, { cause: error });
  } finally {
    await world.destroy();
  }
}

async function afterCommand(world: World): Promise<void> {
  // The many are time for the files of the volume, whose writes go on beside the model.
  await turns(world.random.pick([0, 0, 1, 3, 150, 400]));
  if (world.volume.status().poisoned !== undefined) await recoverFromPoison(world);
  world.checkDisk();
  if (world.random.chance(0.2)) world.checkChanges();
  const { backup } = world;
  if (backup?.isOver !== true) return;
  await backup.ended;
  world.backup = undefined;
  await world.checkIdle();
}

/** Everything comes to its end, and each store gets a last set, which is checked with all before it. */
async function finish(world: World): Promise<void> {
  await endBackup(world);
  world.backup = undefined;
  await world.checkIdle();
  if (world.volume.status().poisoned !== undefined) await recoverFromPoison(world);
  for (const known of world.stores) {
    const store = await Store.open(known.path);
    for (let round = 0; round < 2; round += 1) {
      const backup = new RunningBackup(world, store);
      world.backup = backup;
      world.scheduler.open();
      await endBackup(world);
      world.scheduler.close();
    }
    await world.checkStore(store, { everySet: true });
    for await (const verified of verify(store)) {
      must(verified.sound, `Set ${verified.set.id} is not sound: ${verified.findings.join('; ')}`);
    }
  }
  world.backup = undefined;
  await world.checkIdle();
}
