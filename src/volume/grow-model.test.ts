/**
 * Goal: whatever a volume that grows is used for, its bytes and its snapshots are what they should be, and no change
 * since a point is missed.
 *
 * Method: random growths, writes, zeroes, snapshots, deletions, rollbacks, points and stops, clean ones and kills, on a
 * real volume and on plain buffers side by side; everything is compared after each step.
 */

import fc from 'fast-check';
import t from 'tap';
import { labelled, makeTestVolume, TEST_TRACK_BYTES, type TestVolume } from '../sim/index.ts';
import { backUp, kill } from './grow.fixture.ts';

const TRACK = TEST_TRACK_BYTES;

type Step =
  | { readonly kind: 'grow'; readonly sectors: number }
  | { readonly kind: 'write'; readonly at: number; readonly sectors: number }
  | { readonly kind: 'zero'; readonly at: number; readonly sectors: number }
  | { readonly kind: 'snapshot' | 'point' | 'clean' | 'crash' }
  | { readonly kind: 'delete' | 'roll back'; readonly which: number };

const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant('grow'), sectors: fc.integer({ min: 1, max: 20 }) }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom('write', 'zero'),
      at: fc.nat(1000),
      sectors: fc.integer({ min: 1, max: 20 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constantFrom('snapshot', 'point', 'clean', 'crash') }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constantFrom('delete', 'roll back'), which: fc.nat(10) }) },
);

/** Runs the steps on a volume and on plain buffers side by side. */
class Model {
  readonly #test: TestVolume;
  #bytes: Buffer;
  #count = 0;
  readonly #snapshots = new Map<string, Buffer>();
  readonly #points = new Map<string, Buffer>();

  constructor(test: TestVolume) {
    this.#test = test;
    this.#bytes = Buffer.alloc(test.volume.sizeBytes);
  }

  async step(step: Step): Promise<void> {
    const { volume } = this.#test;
    this.#count += 1;
    switch (step.kind) {
      case 'grow':
        await volume.grow(this.#bytes.length + step.sectors * 512);
        this.#bytes = Buffer.concat([this.#bytes], volume.sizeBytes);
        return;
      case 'write':
      case 'zero':
        return this.#write(step);
      case 'snapshot':
        await volume.createSnapshot(`s${this.#count}`);
        this.#snapshots.set(`s${this.#count}`, Buffer.from(this.#bytes));
        return;
      case 'point': {
        const point = await backUp(volume);
        this.#points.set(point, Buffer.from(this.#bytes));
        return;
      }
      case 'crash':
        await kill(this.#test);
        await this.#test.reopen();
        return;
      case 'clean':
        await this.#test.reopen();
        return;
      case 'delete':
      case 'roll back':
        return this.#withSnapshot(step);
    }
  }

  async #write(step: { readonly kind: 'write' | 'zero'; readonly at: number; readonly sectors: number }) {
    const { volume } = this.#test;
    const offset = (step.at % (this.#bytes.length / 512)) * 512;
    const length = Math.min(step.sectors * 512, this.#bytes.length - offset);
    const content = step.kind === 'zero' ? Buffer.alloc(length) : labelled(`w${this.#count}`, length);
    if (step.kind === 'zero') await volume.writeZeroes(offset, length, { mayTrim: true });
    else await volume.write(content, offset);
    content.copy(this.#bytes, offset);
  }

  async #withSnapshot({ kind, which }: { readonly kind: 'delete' | 'roll back'; readonly which: number }) {
    const { volume } = this.#test;
    const name = [...this.#snapshots.keys()][which % Math.max(1, this.#snapshots.size)];
    if (name === undefined) return;
    const content = this.#snapshots.get(name) ?? Buffer.alloc(0);
    if (kind === 'delete') {
      await volume.deleteSnapshot(name);
      this.#snapshots.delete(name);
    } else {
      await volume.rollBack(name);
      this.#bytes = Buffer.concat([content], this.#bytes.length);
    }
  }

  /** Bytes, snapshots, and that no change is missed. */
  async assertSame(after: string): Promise<void> {
    const { volume } = this.#test;
    const { geometry } = volume;
    const found = Buffer.alloc(volume.sizeBytes);
    await volume.read(found, 0);
    if (!found.equals(this.#bytes)) throw new Error(`the volume differs after ${after}`);
    for (const [name, content] of this.#snapshots) {
      const device = volume.openSnapshot(name);
      const kept = Buffer.alloc(device.sizeBytes);
      await device.read(kept, 0);
      await device.close();
      if (!kept.equals(content)) throw new Error(`snapshot ${name} differs after ${after}`);
    }
    for (const [point, content] of this.#points) {
      const changed = volume.changedSince(point);
      for (let track = 0; track < geometry.trackCount; track += 1) {
        const [from, to] = [track * TRACK, track * TRACK + geometry.lengthOf({ first: track, count: 1 })];
        const isSame = content.subarray(from, to).equals(this.#bytes.subarray(from, to));
        if (!isSame && !changed.has(track))
          throw new Error(`a change of track ${track} is missed after ${after}`);
      }
    }
  }
}

t.test('random growths, writes, snapshots, rollbacks and stops', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(STEP, { minLength: 4, maxLength: 25 }), async (steps) => {
      let undo: (() => Promise<void>) | undefined;
      const teardown = { teardown: (body: () => Promise<void>) => (undo = body) };
      const test = await makeTestVolume(teardown, { trackCount: 0, sizeBytes: TRACK + 512 });
      try {
        const model = new Model(test);
        for (const step of steps) {
          await model.step(step);
          await model.assertSame(JSON.stringify(step));
        }
      } finally {
        await undo?.();
      }
    }),
    { numRuns: 60 },
  );
});
