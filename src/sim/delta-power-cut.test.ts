/**
 * Goal: whenever the power is cut, a volume with a delta store is given back by store and logs alone as far as it was
 * flushed, and agrees with them once it is open again (promise 6 of DESIGN section 4, and the others as before); and the
 * syncs that this needs are needed.
 *
 * Method: the scenario of `power-cut.test.ts` with a delta store of one or two members, cut at every few of its events.
 * `COWBELL_SEED=n` gives other cuts.
 */

import { env } from 'node:process';
import t from 'tap';
import { SeededRandom } from '../base/index.ts';
import { live } from './power-cut.ts';
import type { Breach } from './promises.ts';

const SEED = Number(env['COWBELL_SEED'] ?? 1);
const LIVES_MAX = 400;
const NEVER = Number.POSITIVE_INFINITY;
/** There are many events, and most are those of a volume without deltas. By the number of members. */
const STRIDES = [
  [1, 15],
  [2, 6],
] as const;

t.test(`a cut of a volume with a delta store breaks no promise, seed ${SEED}`, async (t) => {
  for (const [deltaCount, stride] of STRIDES) {
    const whole = await live({ seed: SEED, cutAt: NEVER, deltaCount });
    t.equal(whole.broken, undefined, 'nor does a cut after everything');
    const broken: string[] = [];
    // Other seeds cut at other events.
    for (let cutAt = 1 + (SEED % stride); cutAt <= whole.events.length; cutAt += stride) {
      const seed = SEED * 10_000 + cutAt;
      const life = await live({ seed, cutAt, deltaCount });
      if (life.broken !== undefined)
        broken.push(`seed ${seed}, cut at ${cutAt} (${life.events.at(-1)}): ${life.broken.message}`);
    }
    t.same(broken, []);
    t.comment(`${whole.events.length} events with ${deltaCount} members`);
  }
});

t.test(
  `without a sync of the delta logs, or of the regions in doubt, some cut loses data, seed ${SEED}`,
  async (t) => {
    const { events } = await live({ seed: SEED, cutAt: NEVER, deltaCount: 1 });
    // Without the others more is in doubt after a crash than is, and nothing is lost.
    const syncs = [
      'delta file d1/*/*.delta',
      'delta-directory directory d1',
      'delta-directory directory d1/*',
      'intent-log file v/dirty/intent-*.log',
    ];
    for (const without of syncs) {
      t.ok(events.includes(`before ${without}`), `the scenario meets ${without}`);
      const random = new SeededRandom(SEED);
      let broken: Breach | undefined;
      let lives = 0;
      while (broken === undefined && lives < LIVES_MAX) {
        lives += 1;
        const cutAt = 1 + random.below(events.length);
        ({ broken } = await live({ seed: SEED * 10_000 + lives, cutAt, without, deltaCount: 1 }));
      }
      t.ok(broken !== undefined, `${without}: after ${lives} lives, ${broken?.message ?? 'nothing broke'}`);
    }
  },
);
