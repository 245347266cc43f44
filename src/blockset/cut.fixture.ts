/**
 * Cuts a piece of work on a store at every event: each sync before and after it, each LMDB commit. At each the power
 * goes (`LossyDisk`), the tree is moved aside, since this process lives on and cleans up, and the store is opened as
 * after a start.
 */

import { cpSync, existsSync, readdirSync, renameSync } from 'node:fs';
import { SeededRandom } from '../base/index.ts';
import { LossyDisk } from '../sim/index.ts';
import { Store } from './store.ts';

/** Thrown through whatever was running when the power was cut. */
class PowerCut extends Error {}

export interface CutWork {
  /** A store, not open, to be copied for each cut; its directory is of the caller's scratch directory. */
  readonly template: string;
  readonly work: (store: Store) => Promise<void>;
  /** The store after the cut, opened anew; `cut` names the moment for messages. */
  readonly check: (store: Store, cut: string) => Promise<void>;
  /** What a cut keeps of names and images. */
  readonly seed?: number;
}

/** Runs the work once for each of its events, and once without a cut. @returns the number of cuts. */
export async function cutEverywhere(wanted: CutWork): Promise<number> {
  for (let cutAt = 1; ; cutAt += 1) {
    const path = `${wanted.template}-${cutAt}`;
    cpSync(wanted.template, path, { recursive: true });
    const cut = await runUntil(wanted, path, cutAt);
    const left = cut === undefined ? path : `${path}-cut`;
    await wanted.check(await Store.open(left), cut ?? 'no cut');
    if (cut === undefined) return cutAt - 1;
  }
}

/**
 * Runs the work on the store at a path, which is moved to `<path>-cut` by the cut.
 *
 * @param cutAt the number of the event, from 1.
 * @returns the name of the event at which the power was cut, or undefined where the work ended before.
 */
export async function runUntil(
  wanted: Pick<CutWork, 'work' | 'seed'>,
  path: string,
  cutAt: number,
): Promise<string | undefined> {
  let events = 0;
  let cut: string | undefined;
  const disk: LossyDisk = new LossyDisk(path, {
    tearCommits: (name) => name.endsWith('.partial') || name.endsWith('.cbs'),
    onEvent: (event, when) => {
      events += 1;
      if (cut === undefined && events === cutAt) {
        cut = `${cutAt}: ${when} ${event.kind === 'commit' ? 'commit' : event.name} of ${event.path}`;
        disk.powerCut(new SeededRandom((wanted.seed ?? 1) * 1000 + cutAt));
        renameSync(path, `${path}-cut`);
      }
      if (cut !== undefined) throw new PowerCut();
      return undefined;
    },
  });
  try {
    const store = await Store.open(path);
    await wanted.work(store);
  } catch (error) {
    if (cut === undefined) throw error;
  } finally {
    disk.close();
  }
  return cut;
}

/** What must never be left after the store was opened for writing: names of half sets, or entries without one. */
export async function leftovers(store: Store): Promise<string[]> {
  const names = readdirSync(`${store.path}/sets`);
  const half = names.filter((name) => !/^[0-9A-Z]{26}-\d+\.cbs$/.test(name));
  const missing = (await store.list()).filter(({ path }) => !existsSync(path)).map(({ id }) => id);
  return [...half, ...missing];
}
