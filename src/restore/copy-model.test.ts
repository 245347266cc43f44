/**
 * Goal: whatever ends a copy, and whenever, no target is ever taken for current that is not: what the volume remembers
 * of a target is true of its bytes, and the next copy that succeeds leaves exactly the bytes of its freeze.
 *
 * Method: a real volume over a disk in memory and a target that both lose what they have not flushed. The power is cut
 * at every call of the target and at every sync of the volume's own files, in the second copy of two; the volume's
 * state goes back to what was durable then. Then the same as a property: random writes, copies of the volume and of
 * snapshots, failures, cuts and clean stops. Clients write right behind each freeze.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { observeSyncs, SeededRandom } from '../base/index.ts';
import { labelsOf, makeTestVolume, TEST_TRACK_BYTES, type TestVolume, writeLabel } from '../sim/index.ts';
import type { FaultyDevice } from '../device/index.ts';
import { contentOf, copyTo, labelsIn, TestTargets } from './copy.fixture.ts';
import type { CopyResult } from './copy.ts';

const TRACK = TEST_TRACK_BYTES;
const TRACKS = 12;
const URI = 'test:one';

class Cut extends Error {}

/** A volume and its target, and what each point held. */
class World {
  readonly test: TestVolume;
  readonly target: FaultyDevice;
  readonly #targets = new TestTargets();
  readonly #random: SeededRandom;
  /** The labels of the tracks at each point that a target may hold. */
  readonly #contents = new Map<string, string[]>();
  readonly #snapshots = new Map<string, string[]>();
  /** What the frozen session will have copied. */
  #frozen: string[] = [];
  /** The volume's state as it was last durable. */
  #durable: Buffer;
  #count = 0;
  /** Steps until the power is cut; none where undefined. */
  #stepsLeft: number | undefined;
  #isCut = false;

  private constructor(test: TestVolume, seed: number) {
    this.test = test;
    this.#random = new SeededRandom(seed);
    this.target = this.#targets.add('one', TRACKS * TRACK);
    this.target.delay({}, async () => {
      const [session] = test.volume.sessions;
      if (session !== undefined) this.#contents.set(session.plan.point, this.#frozen);
      this.#step();
    });
    this.#durable = readFileSync(this.#statePath);
    observeSyncs({
      before: () => {
        this.#step();
        return 'perform';
      },
      after: ({ kind, path }) => {
        if (kind !== 'commit' && path === this.#statePath && !this.#isCut) {
          this.#durable = readFileSync(this.#statePath);
        }
      },
    });
  }

  static async make(t: Pick<Test, 'teardown'>, seed: number): Promise<World> {
    t.teardown(() => observeSyncs(undefined));
    return new World(await makeTestVolume(t, { trackCount: TRACKS }), seed);
  }

  get #statePath(): string {
    return join(this.test.directory, 'state.mdb');
  }

  #step(): void {
    if (this.#isCut) throw new Cut('The power was cut');
    if (this.#stepsLeft === undefined) return;
    this.#stepsLeft -= 1;
    if (this.#stepsLeft > 0) return;
    this.#isCut = true;
    throw new Cut('The power is cut');
  }

  async write(tracks: readonly number[]): Promise<void> {
    for (const track of tracks) {
      this.#count += 1;
      // Every fifth one becomes zero.
      if (this.#count % 5 === 0) await this.test.volume.writeZeroes(track * TRACK, TRACK, { mayTrim: true });
      else await writeLabel(this.test.volume, track, `w${this.#count}`);
    }
  }

  async snapshot(name: string): Promise<void> {
    this.#snapshots.set(name, await labelsOf(this.test.volume));
    await this.test.volume.createSnapshot(name);
  }

  /**
   * Copies, with writes right behind the freeze; what the target holds afterwards is compared.
   *
   * @param during.cutAt steps until the power is cut.
   */
  async copy(
    during: {
      readonly writes?: readonly number[];
      readonly snapshot?: string | undefined;
      readonly cutAt?: number;
      readonly failAt?: number;
    } = {},
  ): Promise<CopyResult | undefined> {
    const { writes = [], snapshot, cutAt, failAt } = during;
    const { volume, home } = this.test;
    this.#frozen =
      (snapshot === undefined ? undefined : this.#snapshots.get(snapshot)) ?? (await labelsOf(volume));
    const behind = home.delay({ kind: 'extents', nth: 1 }, () => this.write(writes));
    const rule = failAt === undefined ? undefined : this.target.fail({ nth: failAt });
    this.#stepsLeft = cutAt;
    try {
      const options = {
        targets: this.#targets,
        slots: TRACKS,
        ...(snapshot === undefined ? {} : { snapshot }),
      };
      const result = await copyTo(volume, [URI], options);
      this.#contents.set(result.point, this.#frozen);
      deepStrictEqual(labelsIn(await contentOf(this.target)), this.#frozen);
      return result;
    } catch (error) {
      if (!this.#isCut && failAt === undefined) throw error;
      return undefined;
    } finally {
      this.#stepsLeft = undefined;
      behind.remove();
      rule?.remove();
    }
  }

  get isCut(): boolean {
    return this.#isCut;
  }

  /** The power is cut now, if it was not before. */
  async crash(): Promise<void> {
    const { volume, home } = this.test;
    this.#isCut = true;
    const rule = home.fail({ kind: 'flush' });
    await volume.close().catch(() => undefined);
    rule.remove();
    writeFileSync(this.#statePath, this.#durable);
    await home.powerCut(this.#random);
    await this.target.powerCut(this.#random);
    this.#isCut = false;
    await this.test.reopen();
  }

  async stop(): Promise<void> {
    await this.test.reopen();
  }

  /** What the volume remembers of the target is so. */
  async check(): Promise<void> {
    const { volume } = this.test;
    for (const { point, copy } of volume.consumers()) {
      const then = this.#contents.get(point);
      ok(then !== undefined, `Point ${point} is that of a copy`);
      const now = labelsIn(await contentOf(this.target));
      if (copy?.isIncomplete !== true) {
        deepStrictEqual(now, then, 'a target that counts as complete');
        continue;
      }
      const changed = volume.changedSince(point);
      for (const [track, label] of then.entries()) {
        if (!changed.has(track))
          deepStrictEqual([track, now[track]], [track, label], 'a track that did not change');
      }
    }
  }
}

t.test('the power is cut at every step of the second copy', async (t) => {
  for (const isFull of [false, true]) {
    for (const snapshot of [undefined, 's']) {
      let cutAt = 0;
      for (let isOver = false; !isOver;) {
        cutAt += 1;
        const world = await World.make(t, 100 + cutAt);
        try {
          await world.write([0, 1, 2, 3, 5, 8, 11]);
          if (!isFull) ok((await world.copy({ writes: [2, 4] })) !== undefined);
          await world.write([1, 3, 5, 9]);
          if (snapshot !== undefined) await world.snapshot(snapshot);
          await world.copy({ writes: [0, 3, 7, 9], snapshot, cutAt });
          isOver = !world.isCut;
          await world.crash();
          await world.check();
          await world.write([6]);
          ok((await world.copy({ writes: [6, 10] })) !== undefined);
          await world.check();
        } finally {
          observeSyncs(undefined);
        }
      }
      t.ok(cutAt > 10, `${isFull ? 'full' : 'incremental'}, ${snapshot ?? 'a freeze'}: ${cutAt - 1} cuts`);
    }
  }
});

type Step =
  | { readonly kind: 'write'; readonly tracks: readonly number[] }
  | {
      readonly kind: 'copy';
      readonly writes: readonly number[];
      readonly snapshot: number | undefined;
      readonly cutAt: number | undefined;
      readonly failAt: number | undefined;
    }
  | { readonly kind: 'snapshot' | 'crash' | 'stop' };

const TRACK_LIST = fc.array(fc.nat(TRACKS - 1), { maxLength: 5 });
const STEP: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('write'), tracks: TRACK_LIST }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('copy'),
      writes: TRACK_LIST,
      snapshot: fc.option(fc.nat(5), { nil: undefined, freq: 1 }),
      cutAt: fc.option(fc.integer({ min: 1, max: 25 }), { nil: undefined }),
      failAt: fc.option(fc.integer({ min: 1, max: 10 }), { nil: undefined }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom('snapshot', 'crash', 'stop') }) },
);

async function perform(world: World, step: Step, snapshots: string[]): Promise<void> {
  switch (step.kind) {
    case 'write':
      return world.write(step.tracks);
    case 'copy': {
      const { writes, cutAt, failAt } = step;
      const snapshot = step.snapshot === undefined ? undefined : snapshots[step.snapshot % snapshots.length];
      await world.copy({
        writes,
        snapshot,
        ...(cutAt === undefined ? {} : { cutAt }),
        ...(failAt === undefined ? {} : { failAt }),
      });
      if (world.isCut) await world.crash();
      return;
    }
    case 'snapshot': {
      const name = `s${snapshots.length}`;
      await world.snapshot(name);
      snapshots.push(name);
      return;
    }
    case 'crash':
      return world.crash();
    case 'stop':
      return world.stop();
  }
}

t.test('random lives of a volume and its target', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.array(STEP, { minLength: 3, maxLength: 14 }), async (seed, steps) => {
      const teardowns: (() => unknown)[] = [];
      const world = await World.make({ teardown: (body) => void teardowns.push(body) }, seed);
      try {
        const snapshots: string[] = [];
        for (const step of steps) {
          await perform(world, step, snapshots);
          await world.check();
        }
        ok((await world.copy()) !== undefined);
        await world.check();
      } finally {
        observeSyncs(undefined);
        for (const body of teardowns.toReversed()) await body();
      }
    }),
    { numRuns: Number(process.env['COWBELL_RUNS'] ?? 60) },
  );
  t.pass();
});
