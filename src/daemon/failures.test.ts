/**
 * Goal: homes, members of the delta store and the store fail at random, singly and together, and as long as what is left
 * is what the configuration promises to survive, every write comes back; and with logs that are kept, the volume comes
 * back as it was at any instant.
 *
 * Method: a volume with two members and a store, beside a model. Promised: with its home, everything may be lost but that;
 * without it, one member is enough, where the logs go on from a set of the store or reach back to the beginning. At random
 * moments all but the home is copied, as a kill at that moment leaves it, and rebuilt there, from the members that are
 * left; now and then the home itself is lost. `COWBELL_SEED=n` gives other runs.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { env } from 'node:process';
import t, { type Test } from 'tap';
import { present, SeededRandom } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { TEST_TRACK_BYTES } from '../sim/index.ts';
import { imageBefore, type Moment, TRACK_COUNT, World } from './rebuild.fixture.ts';

const FIRST_SEED = Number(env['COWBELL_SEED'] ?? 1);
const SEED_COUNT = 3;
const STEP_COUNT = 45;
const SIZE_BYTES = TRACK_COUNT * TEST_TRACK_BYTES;

type Step =
  | 'write'
  | 'flush'
  | 'back up'
  | 'lose a member'
  | 'make it again'
  | 'lose the store'
  | 'check'
  | 'lose the home';
const STEPS: readonly Step[] = [
  ...Array.from({ length: 10 }, (): Step => 'write'),
  'flush',
  'flush',
  'back up',
  'back up',
  'lose a member',
  'make it again',
  'make it again',
  'lose the store',
  'check',
  'check',
  'lose the home',
];

class Failures {
  readonly tally = new Map<Step, number>();
  readonly moments: Moment[] = [];
  readonly #t: Test;
  readonly #world: World;
  readonly #random: SeededRandom;
  readonly #keepsLogs: boolean;
  readonly #image = Buffer.alloc(SIZE_BYTES);
  #lost: number | undefined;
  /** The logs go on from a set, or from the beginning of the volume. */
  #isJoined = true;
  #number = 0;

  constructor(t: Test, world: World, random: SeededRandom, keepsLogs: boolean) {
    this.#t = t;
    this.#world = world;
    this.#random = random;
    this.#keepsLogs = keepsLogs;
  }

  async run(): Promise<void> {
    for (let number = 0; number < STEP_COUNT; number += 1) {
      this.#world.clock.advance(1 + this.#random.below(1000));
      const step = this.#random.pick(STEPS);
      if (await this.#perform(step)) this.tally.set(step, (this.tally.get(step) ?? 0) + 1);
    }
    await this.#check();
  }

  /** @returns false where the step is not for now. */
  async #perform(step: Step): Promise<boolean> {
    const { live } = this.#world;
    switch (step) {
      case 'write':
        await this.#write();
        return true;
      case 'flush':
        await live.flush();
        return true;
      case 'back up':
        await this.#world.backUp('incremental');
        this.#isJoined = true;
        return true;
      case 'lose a member':
        if (this.#lost !== undefined) return false;
        this.#lost = this.#random.below(2);
        rmSync(this.#lostPlace, { recursive: true });
        return true;
      case 'make it again':
        return this.#makeAgain();
      case 'lose the store':
        rmSync(this.#world.storePath, { recursive: true });
        this.#world.store = await Store.init(this.#world.storePath);
        // Logs that had been backed up are gone, unless they are kept.
        if (live.consumers().length > 0 && !this.#keepsLogs) this.#isJoined = false;
        return true;
      case 'check':
        if (!this.#isJoined) return false;
        await this.#check();
        return true;
      case 'lose the home':
        return this.#loseHome();
    }
  }

  get #lostPlace(): string {
    return present(this.#world.deltas[this.#lost ?? 0], 'There are two members');
  }

  async #write(): Promise<void> {
    const offsetBytes = this.#random.below(SIZE_BYTES / 512) * 512;
    this.#number += 1;
    const lengthBytes = Math.min(this.#random.pick([512, 4096, 8192]), SIZE_BYTES - offsetBytes);
    const content = Buffer.alloc(lengthBytes, (this.#number % 255) + 1);
    await this.#world.live.write(content, offsetBytes);
    content.copy(this.#image, offsetBytes);
    this.moments.push({ timeMs: this.#world.clock.now(), image: Buffer.from(this.#image) });
  }

  async #makeAgain(): Promise<boolean> {
    if (this.#lost === undefined) return false;
    mkdirSync(this.#lostPlace);
    const state = (): string | undefined => this.#world.live.status().deltas?.members[this.#lost ?? 0]?.state;
    // One round sees that it is gone, another makes it.
    for (let round = 0; round < 3; round += 1) await this.#world.live.tend(new AbortController().signal);
    this.#t.equal(state(), 'healthy', 'the member is made again');
    this.#lost = undefined;
    return true;
  }

  /** As after a kill at this moment, with the home lost. */
  async #check(beforeMs?: number): Promise<void> {
    if (!this.#isJoined) return;
    const wanted = beforeMs === undefined ? this.#image : imageBefore(this.moments, beforeMs);
    const place = this.#world.copy(this.#lost);
    const at = beforeMs === undefined ? {} : { beforeMs };
    const { content, blueprint } = await this.#world.rebuild({ ...place, ...at });
    this.#t.ok(content.equals(wanted), `${beforeMs ?? 'now'}, from set ${blueprint.set ?? 'none'}`);
    rmSync(place.directory, { recursive: true });
  }

  /** The volume goes on in the home that is rebuilt. */
  async #loseHome(): Promise<boolean> {
    if (!this.#isJoined) return false;
    const { home } = this.#world.live.identity;
    await this.#world.live.close();
    rmSync(home);
    const { directory, storePath } = this.#world;
    const { content } = await this.#world.rebuild({ directory, storePath });
    this.#t.ok(content.equals(this.#image), 'the home is what it was');
    await this.#world.open();
    return true;
  }

  async checkInstants(count: number): Promise<void> {
    for (let number = 0; number < count; number += 1)
      await this.#check(this.#random.pick(this.moments).timeMs + this.#random.below(2));
  }
}

for (let seed = FIRST_SEED; seed < FIRST_SEED + SEED_COUNT; seed += 1) {
  for (const keepLogMs of [undefined, 1e9]) {
    const logs = keepLogMs === undefined ? 'logs that go' : 'logs that are kept';
    t.test(`whatever fails, every write comes back; ${logs}, seed ${seed}`, async (t) => {
      const world = await World.create(t, 2, keepLogMs);
      const failures = new Failures(t, world, new SeededRandom(seed), keepLogMs !== undefined);
      await failures.run();
      if (keepLogMs !== undefined) await failures.checkInstants(5);
      t.comment(Array.from(failures.tally, ([step, count]) => `${step} ${count}`).join(', '));
    });
  }
}
