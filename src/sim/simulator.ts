/**
 * One seed of the simulator: a small run of the model (`model-run.ts`) and a life that is cut (`power-cut.ts`).
 *
 * The two look at different things. The model runs interleave clients, sessions, failures and kills of the volume;
 * the lives have volume, home, store and restored target on one disk and are cut anywhere in between. The seed decides
 * everything in both.
 */

import type { SyncName } from '../base/index.ts';
import { CRASH_POINTS, type CrashPoint } from './crash-points.ts';
import { runModel } from './model-run.ts';
import type { Tally } from './model-world.ts';
import { drawCut, live } from './power-cut.ts';
import { type Breach, breachOf } from './promises.ts';

export interface Simulation {
  readonly seed: number;
  /** A sync that does nothing on the lossy disk: a check of the simulator itself. */
  readonly without?: SyncName;
  /** Each thing that happens, in order: the same seed gives the same lines. */
  readonly onTrace?: (line: string) => void;
}

export interface SimulationResult {
  /** The first promise that was broken; undefined where all held. */
  readonly breach: Breach | undefined;
  readonly crashes: readonly CrashPoint[];
  readonly syncsFailed: number;
  /** Tracks that were compared with what they had to hold. */
  readonly tracksVerified: number;
}

const MODEL_SYNCS: readonly SyncName[] = [
  'intent-log',
  'intent-log-create',
  'volume-state',
  'volume-directory',
  'snapshot-store',
  'snapshot-directory',
];
const NOTHING: SimulationResult = { breach: undefined, crashes: [], syncsFailed: 0, tracksVerified: 0 };

export async function simulate({ seed, without, onTrace }: Simulation): Promise<SimulationResult> {
  const options = {
    ...(without === undefined ? {} : { without }),
    ...(onTrace === undefined ? {} : { onTrace }),
  };
  // On the lossy disk of the model lies the volume; what is needed elsewhere, it would not miss.
  const isOfModel = without === undefined || MODEL_SYNCS.includes(without);
  const model = isOfModel ? await simulateModel(seed, options) : NOTHING;
  if (model.breach !== undefined) return model;
  const life = await live({ ...options, seed, cutAt: await drawCut(seed, without) });
  return {
    breach: life.broken,
    crashes: [...model.crashes, life.crashPoint],
    syncsFailed: model.syncsFailed,
    tracksVerified: model.tracksVerified + life.tracksVerified,
  };
}

async function simulateModel(
  seed: number,
  options: Pick<Simulation, 'without' | 'onTrace'>,
): Promise<SimulationResult> {
  const tally: Tally = new Map();
  let breach: Breach | undefined;
  try {
    await runModel({ ...options, seed, tally, isSmall: true });
  } catch (error) {
    breach = breachOf(error instanceof Error ? (error.cause ?? error) : error);
  }
  const countOf = (what: string): number => tally.get(what) ?? 0;
  return {
    breach,
    crashes: CRASH_POINTS.flatMap((point) =>
      Array.from({ length: countOf(`crashes: ${point}`) }, () => point),
    ),
    syncsFailed: countOf('syncs that failed'),
    tracksVerified: countOf('tracks verified'),
  };
}
