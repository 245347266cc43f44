/**
 * Goal: whatever sessions leave and whatever is done to look after a store, in whatever order and cut at whatever event,
 * every point that the store still holds reads back exactly, the latest is never lost, and nothing half is left.
 *
 * Method: seeded lives of a store against a model, which is the labels of each point's tracks: full, differential and
 * incremental sets on any point, then merges, prunings, protections, removals and moves to another store, some of them
 * cut by the power. `COWBELL_SEED=n` runs one life again.
 */

import { cpSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import t from 'tap';
import { ManualClock, SeededRandom } from '../base/index.ts';
import { copySets } from './copy-sets.ts';
import { leftovers, runUntil } from './cut.fixture.ts';
import { mergeChain } from './merge.ts';
import { readLabels, saveSet, scratch, withoutSyncs } from './model.fixture.ts';
import { prune } from './prune.ts';
import type { RetentionPolicy } from './retention.ts';
import { Store } from './store.ts';

const TRACKS = [0, 1, 2, 3, 4, 5];
const STEPS = 14;
const LIVES = 6;
const HOUR_MS = 3_600_000;
const RULES = ['keepLast', 'keepHourly', 'keepDaily', 'keepWeekly'] as const;

class Life {
  readonly #random: SeededRandom;
  readonly #clock = new ManualClock();
  readonly #directory: string;
  /** The labels of each point ever saved. */
  readonly #points = new Map<string, readonly string[]>();
  #path: string;
  #latest = '';
  #count = 0;
  readonly log: string[] = [];

  constructor(seed: number, directory: string) {
    this.#random = new SeededRandom(seed);
    this.#directory = directory;
    this.#path = `${directory}/store`;
  }

  async live(): Promise<void> {
    await Store.init(this.#path, { clock: this.#clock });
    await this.#save();
    for (let step = 0; step < STEPS; step += 1) {
      const save = (): Promise<void> => this.#save();
      const acts = [
        save,
        save,
        save,
        () => this.#merge(),
        () => this.#prune(),
        () => this.#remove(),
        () => this.#move(),
      ];
      await this.#random.pick(acts)();
      await this.#check();
    }
  }

  #open(): Promise<Store> {
    return Store.open(this.#path, { clock: this.#clock });
  }

  async #save(): Promise<void> {
    const store = await this.#open();
    const points = await store.newestPoints('volume-1');
    this.#clock.advance(this.#random.below(30) * HOUR_MS + 1);
    const isFull = points.length === 0 || this.#random.chance(0.2);
    const parent = this.#random.chance(0.8) ? points[0] : points[this.#random.below(points.length)];
    const base = isFull ? null : (parent?.point ?? null);
    const point = `p${this.#count}`;
    const labels = [...(this.#points.get(base ?? '') ?? TRACKS.map(() => '0'))];
    if (base === null) labels.fill('0');
    const tracks = TRACKS.filter(() => this.#random.chance(base === null ? 0.8 : 0.3)).map((track) => {
      const label = this.#random.chance(0.2) ? null : `${point}.${track}`;
      labels[track] = label ?? '0';
      return [track, label] as const;
    });
    await saveSet(store, { base, point }, tracks);
    this.#points.set(point, labels);
    this.#latest = point;
    this.#count += 1;
    this.log.push(`save ${point} on ${base ?? 'nothing'}`);
  }

  async #anySet(): Promise<string> {
    const store = await this.#open();
    return this.#random.pick(await store.newestPoints('volume-1')).sets[0]?.id ?? '';
  }

  async #merge(): Promise<void> {
    const id = await this.#anySet();
    this.log.push(`merge ${id}`);
    await this.#perhapsCut(async (store) => {
      await mergeChain(store, id);
    });
  }

  async #prune(): Promise<void> {
    const policy: RetentionPolicy = { [this.#random.pick(RULES)]: 1 + this.#random.below(4) };
    this.log.push(`prune ${JSON.stringify(policy)}`);
    await this.#perhapsCut(async (store) => {
      await prune(store, { policy });
    });
  }

  async #remove(): Promise<void> {
    const id = await this.#anySet();
    const isProtecting = this.#random.chance(0.5);
    this.log.push(`${isProtecting ? 'protect' : 'remove'} ${id}`);
    await this.#perhapsCut(async (store) => {
      if (isProtecting) await store.protect(id, { untilMs: this.#clock.now() + 20 * HOUR_MS });
      else await store.remove([id], { keepPoints: [this.#latest] });
    });
  }

  /** All sets into a new store, which takes the place of the old. */
  async #move(): Promise<void> {
    this.log.push('move');
    const source = await this.#open();
    const target = await Store.init(`${this.#directory}/moved`, { clock: this.#clock });
    const ids = (await source.list()).map(({ id }) => id);
    for await (const copied of copySets(source, target, ids)) if (copied.isPresent) this.log.push('present');
    rmSync(this.#path, { recursive: true });
    renameSync(target.path, this.#path);
  }

  async #perhapsCut(work: (store: Store) => Promise<void>): Promise<void> {
    if (this.#random.chance(0.4)) {
      withoutSyncs({ teardown: () => undefined });
      await work(await this.#open());
      return;
    }
    const path = `${this.#directory}/cut`;
    cpSync(this.#path, path, { recursive: true });
    const cut = await runUntil({ work, seed: this.#random.below(1000) }, path, 1 + this.#random.below(40));
    this.log.push(cut ?? 'not cut');
    withoutSyncs({ teardown: () => undefined });
    rmSync(this.#path, { recursive: true });
    renameSync(cut === undefined ? path : `${path}-cut`, this.#path);
  }

  async #check(): Promise<void> {
    const store = await this.#open();
    const points = await store.newestPoints('volume-1');
    const held = new Set(points.map(({ point }) => point));
    if (!held.has(this.#latest)) throw new Error(`The latest point ${this.#latest} is lost`);
    if (points[0]?.point !== this.#latest && !(await this.#isBranch(store))) {
      throw new Error(`Latest is ${points[0]?.point}, wanted ${this.#latest}`);
    }
    for (const set of await store.list()) {
      const labels = await readLabels(store, set.id, TRACKS);
      const wanted = this.#points.get(set.header?.point ?? '')?.join(' ');
      if (labels !== wanted) throw new Error(`${set.header?.point} reads ${labels}, wanted ${wanted}`);
    }
    const left = await leftovers(store);
    if (left.length > 0) throw new Error(`Left: ${left.join(' ')}`);
  }

  /** Sets of one clock tick that build on an older point: several may be latest, and no order among them is promised. */
  async #isBranch(store: Store): Promise<boolean> {
    try {
      return (await store.find('latest')).header?.point === undefined;
    } catch {
      return true;
    }
  }
}

t.test('lives of a store', async (t) => {
  const given = process.env['COWBELL_SEED'];
  const first = given === undefined ? Date.now() % 1_000_000 : Number(given);
  const directory = scratch(t);
  for (let seed = first; seed < first + (given === undefined ? LIVES : 1); seed += 1) {
    withoutSyncs(t);
    const life = new Life(seed, `${directory}/${seed}`);
    mkdirSync(`${directory}/${seed}`);
    try {
      await life.live();
      t.pass(`seed ${seed}`);
    } catch (error) {
      t.fail(`seed ${seed}: ${String(error)}`, { log: life.log });
    }
  }
});
