/**
 * Goal: whatever is written, frozen, saved, cancelled, broken and stopped in whatever order, the promises of
 * DESIGN section 4 hold: every set holds exactly its freeze, the live volume is what was written, no changed
 * track is missed, no writer is left waiting, and a restore puts back what was saved.
 *
 * Method: seeded runs of a real volume, container, lane, store and restore beside a model (`model-run.ts`).
 * Sessions, writes and the home's own calls wait for a seeded scheduler, so that they interleave in every way.
 * After each command the volume is compared with the model, after each session its set. A failure names its
 * seed; `COWBELL_SEED=n` runs that one again, `scripts/soak` as many as asked. Sessions in real child processes
 * that are really killed: `killed-children.test.ts`.
 */

import { env } from 'node:process';
import t from 'tap';
import { contentOf, ModelVolume, SECTOR_BYTES } from './model.ts';
import { runModel } from './model-run.ts';

const RUNS = 30;
const FIRST_SEED = env['COWBELL_SEED'] === undefined ? 1 : Number(env['COWBELL_SEED']);
const LAST_SEED = env['COWBELL_SEED'] === undefined ? FIRST_SEED + RUNS - 1 : FIRST_SEED;

/** Rare, since most writes of a short run wait for the intent log, a real file: counted over both tests. */
let pastBackupCount = 0;

t.test(`random runs hold every promise, seeds ${FIRST_SEED} to ${LAST_SEED}`, async (t) => {
  const done = new Map<string, number>();
  for (let seed = FIRST_SEED; seed <= LAST_SEED; seed += 1) {
    const tally = await runModel({ seed });
    pastBackupCount += tally.get('writes past a backup') ?? 0;
    for (const [what, count] of tally) done.set(what, (done.get(what) ?? 0) + count);
  }
  t.pass('no promise was broken');
  if (LAST_SEED === FIRST_SEED) return;
  // A run that never gets to these would hold any promise.
  for (const what of [
    'backups full',
    'backups incremental',
    'backups differential',
    'sessions side by side',
    'backups failed: cancelled',
    'backups failed: killed',
    'backups failed: hung',
    'clean reopens',
    'unclean reopens',
    'recoveries',
    'restores',
    'tracks diverted',
    'writes that waited',
  ]) {
    t.ok((done.get(what) ?? 0) > 0, `${what}: ${done.get(what) ?? 0}`);
  }
});

t.test(`killed servers lose nothing that was flushed, seeds ${FIRST_SEED} to ${LAST_SEED}`, async (t) => {
  let kills = 0;
  for (let seed = FIRST_SEED; seed <= LAST_SEED; seed += 1) {
    const tally = await runModel({ seed, commands: 60, favours: { kill: 8, flush: 4, 'begin a backup': 2 } });
    kills += tally.get('kills') ?? 0;
    pastBackupCount += tally.get('writes past a backup') ?? 0;
  }
  t.ok(kills > 0 || LAST_SEED === FIRST_SEED, `${kills} kills, and each time everything flushed was there`);
  t.ok(pastBackupCount > 0 || LAST_SEED === FIRST_SEED, `${pastBackupCount} writes past a backup`);
});

t.test('the model knows overlapping writes, trims, spans and cuts', async (t) => {
  const model = new ModelVolume(4 * SECTOR_BYTES);
  const holds = (...values: number[]): boolean => model.snapshot().mismatch(contentOf(values)) === undefined;
  const first = model.begin(0, [1, 2]);
  t.ok(holds(0, 0, 0, 0) && holds(1, 0, 0, 0) && holds(0, 2, 0, 0), 'either, sector by sector');
  const second = model.begin(1, [3, 4]);
  model.finish(first);
  t.notOk(holds(0, 2, 0, 0), 'what has finished is there');
  t.ok(holds(1, 2, 0, 0) && holds(1, 3, 4, 0));
  model.finish(second);
  t.ok(holds(1, 2, 4, 0) && holds(1, 3, 4, 0), 'overlapping writes have no order');
  t.notOk(holds(1, 2, 0, 0));
  model.finish(model.begin(0, [0], { isTrim: true }));
  t.ok(holds(0, 3, 4, 0) && holds(1, 3, 4, 0), 'a trim may or may not zero');
  const span = model.openSpan();
  const third = model.begin(3, [5]);
  model.finish(third);
  t.equal(span.mismatch(contentOf([5]), 3), undefined);
  t.equal(span.mismatch(contentOf([0]), 3), undefined);
  t.match(span.mismatch(contentOf([6]), 3), /sector 3 holds 6, wanted 0 or 5/);
  t.equal(model.afterCut().mismatch(contentOf([0, 0, 0, 0])), undefined, 'nothing was flushed');
  model.flushed(model.openSpan());
  t.equal(model.afterCut().mismatch(contentOf([1, 2, 4, 5])), undefined);
  t.ok(model.afterCut().mismatch(contentOf([0]), 2) !== undefined, 'what was flushed stays');
  model.finish(model.begin(2, [7], { isFua: true }));
  t.ok(model.afterCut().mismatch(contentOf([4]), 2) !== undefined, 'FUA too');
});
