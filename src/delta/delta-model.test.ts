/**
 * Goal: whatever is done with a delta store, in whatever order it is switched, released, compacted, closed, killed and
 * cut off from its power, and whichever member is lost, what its logs give is what was appended: everything that was
 * flushed, and of the rest a part from its beginning.
 *
 * Method: seeded runs beside a model of all changes (`world.fixture.ts`), with one to three members of both kinds. After
 * each few steps and after each crash the logs are read anew and compared with the model, from each point to each, and
 * at random instants. A failure names its seed; `COWBELL_SEED=n` runs that one again, `COWBELL_RUNS=n` so many.
 */

import { env } from 'node:process';
import t, { type Test } from 'tap';
import { LIMITS, SeededRandom } from '../base/index.ts';
import { DeltaWorld, type MemberKind, TRACK_BYTES, VOLUME_BYTES } from './world.fixture.ts';

const RUNS = Number(env['COWBELL_RUNS'] ?? 6);
const FIRST_SEED = Number(env['COWBELL_SEED'] ?? 1);
const LAST_SEED = env['COWBELL_SEED'] === undefined ? FIRST_SEED + RUNS - 1 : FIRST_SEED;
const STEPS = 120;
const BLOCK = LIMITS.blockSizeBytesMin;

class Run {
  readonly world: DeltaWorld;
  readonly seed: number;
  /** The point that the logs reach back to. */
  #oldest = 0;
  #points = 0;
  /** Nothing in between is known of what is before. */
  #compactedUpTo = 0;

  constructor(t: Test, seed: number) {
    const random = new SeededRandom(seed);
    const count = 1 + random.below(3);
    const kinds = Array.from({ length: count }, (): MemberKind => random.pick(['directory', 'device']));
    this.seed = seed;
    this.world = new DeltaWorld(t, { seed: seed * 7919, kinds });
  }

  async step(): Promise<void> {
    const { world } = this;
    const { random } = world;
    world.clock.advance(random.below(3) * 1000);
    const roll = random.below(100);
    if (roll < 62) await this.#append();
    else if (roll < 74) await world.flush();
    else if (roll < 80) await this.#switch();
    else if (roll < 84) await this.#release();
    else if (roll < 87) await this.#compact();
    else if (roll < 90) await this.#lose();
    else if (roll < 94) await this.#recreate();
    else if (roll < 96) await this.#restart();
    else await this.#crash();
  }

  async #append(): Promise<void> {
    const { random } = this.world;
    const start = random.below(VOLUME_BYTES / BLOCK) * BLOCK;
    const aligned = Math.floor(start / TRACK_BYTES) * TRACK_BYTES;
    const offset = random.chance(0.4) ? aligned : start;
    const length = random.pick([
      BLOCK,
      8 * BLOCK,
      TRACK_BYTES,
      TRACK_BYTES,
      3 * TRACK_BYTES,
      5 * TRACK_BYTES + BLOCK,
    ]);
    const kind = random.chance(0.2) ? 'zeroes' : 'write';
    await this.world.append(offset, Math.min(length, VOLUME_BYTES - offset), kind);
  }

  async #switch(): Promise<void> {
    this.#points += 1;
    await this.world.switchTo(this.#points.toString(16).padStart(32, '0'));
  }

  async #release(): Promise<void> {
    const { world } = this;
    const { points } = world;
    const next = this.#oldest + world.random.below(points.length - this.#oldest);
    await world.store.release(points[next]?.point ?? '', 0);
    this.#oldest = next;
  }

  async #compact(): Promise<void> {
    await this.world.store.compact(0);
    this.#compactedUpTo = this.world.changes.at(-1)?.sequence ?? 0;
  }

  /** A device fails, where another member is left. */
  async #lose(): Promise<void> {
    const { world } = this;
    const healthy = world.store.status().members.filter(({ state }) => state === 'healthy');
    if (healthy.length < 2) return;
    const index = world.random.below(world.places.length);
    const { place, state } = world.store.status().members[index] ?? {};
    if (state !== 'healthy' || place === undefined) return;
    let device;
    try {
      device = world.device(index);
    } catch {
      return;
    }
    device.fail({ kind: world.random.pick([['write'], ['flush'], ['write', 'flush']] as const) });
    await this.#append();
    await world.flush();
  }

  async #recreate(): Promise<void> {
    const { world } = this;
    const lost = world.store.status().members.find(({ state }) => state === 'lost');
    if (lost === undefined) return;
    const making = world.store.recreate(lost.place);
    for (let count = world.random.below(8); count > 0; count -= 1) await this.#append();
    await making;
    world.lost.delete(lost.place);
  }

  async #restart(): Promise<void> {
    const { world } = this;
    await world.flush();
    await world.close();
    await world.open();
  }

  async #crash(): Promise<void> {
    const { world } = this;
    await world.crash(world.random.chance(0.5) ? 'kill' : 'power');
    await world.forgetCutOff();
    await world.open();
    await this.check('after a crash');
  }

  /** Everything that the logs have to give. */
  async check(when: string): Promise<void> {
    const { world } = this;
    const { points, changes, random } = world;
    const reader = await world.reader(
      world.places.map(({ place }) => place).filter((place) => !world.lost.has(place)),
    );
    try {
      const last = changes.at(-1)?.sequence ?? 0;
      for (const [index, { point, sequence }] of points.entries()) {
        if (index < this.#oldest) {
          t.notOk(reader.has(point), `released, ${when}`);
          continue;
        }
        const base = world.imageAt(sequence);
        const end = index + random.below(points.length - index + 1);
        const until = points[end];
        const found = await world.composed(
          reader,
          base,
          point,
          until === undefined ? {} : { point: until.point },
        );
        same(
          found,
          world.imageAt(until?.sequence ?? last),
          `${when}, from point ${index} to ${end}, seed ${this.seed}`,
        );
        await this.#checkInstant(reader, index);
      }
      this.#checkTracks();
    } finally {
      await reader.close();
    }
  }

  async #checkInstant(reader: Awaited<ReturnType<DeltaWorld['reader']>>, index: number): Promise<void> {
    const { world } = this;
    const { point, sequence } = world.points[index] ?? { point: '', sequence: 0 };
    const known = world.changes.filter((change) => change.sequence > Math.max(sequence, this.#compactedUpTo));
    const some = known[world.random.below(known.length)];
    if (some === undefined || this.#compactedUpTo > sequence) return;
    const before = world.changes.findLast(({ timeMs }) => timeMs < some.timeMs)?.sequence ?? 0;
    const found = await world.composed(reader, world.imageAt(sequence), point, { beforeMs: some.timeMs });
    same(
      found,
      world.imageAt(Math.max(before, sequence)),
      `before ${some.timeMs}, from point ${index}, seed ${this.seed}`,
    );
  }

  /** What the store says is whole can be had from the logs alone. */
  #checkTracks(): void {
    const { points, store, changes } = this.world;
    const from = points[this.#oldest];
    if (from === undefined) return;
    const touched = new Set<number>();
    const blocks = new Map<number, Set<number>>();
    for (const { sequence, offsetBytes, content } of changes) {
      if (sequence <= from.sequence) continue;
      for (let at = offsetBytes; at < offsetBytes + content.length; at += BLOCK) {
        const track = Math.floor(at / TRACK_BYTES);
        touched.add(track);
        const seen = blocks.get(track) ?? new Set();
        blocks.set(track, seen.add(at % TRACK_BYTES));
      }
    }
    const whole = [...blocks].filter(([, seen]) => seen.size === TRACK_BYTES / BLOCK).map(([track]) => track);
    t.same(
      store.touchedTracks(from.point)?.toArray(),
      [...touched].toSorted((a, b) => a - b),
      'touched tracks',
    );
    t.same(
      store.wholeTracks(from.point, 'now')?.toArray(),
      whole.toSorted((a, b) => a - b),
      'whole tracks',
    );
  }
}

function same(found: Buffer, wanted: Buffer, what: string): void {
  if (found.equals(wanted)) return;
  const at = found.findIndex((byte, index) => byte !== wanted[index]);
  throw new Error(`${what}: first difference at byte ${at} (track ${Math.floor(at / TRACK_BYTES)})`);
}

for (let seed = FIRST_SEED; seed <= LAST_SEED; seed += 1) {
  await t.test(`seed ${seed}`, async (t) => {
    const run = new Run(t, seed);
    await run.world.open();
    for (let step = 0; step < STEPS; step += 1) {
      await run.step();
      if (step % 10 === 9) await run.check(`step ${step}`);
    }
    t.pass();
  });
}
