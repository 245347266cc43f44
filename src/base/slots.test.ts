/**
 * Goal: never more than the limit at once, first come first served, and a failure frees its slot.
 * Method: work that the test finishes by hand; the order of starts is recorded.
 */

import t from 'tap';
import { AssertionError } from './assert.ts';
import { Slots } from './slots.ts';

t.test('work beyond the limit waits and starts in order', async (t) => {
  const slots = new Slots(2);
  const started: number[] = [];
  const finish: (() => void)[] = [];
  const runs = [0, 1, 2, 3].map((index) =>
    slots.run(() => {
      started.push(index);
      return new Promise<void>((resolve) => finish.push(resolve));
    }),
  );
  t.same(started, [0, 1]);
  t.equal(slots.usedCount, 2);
  t.equal(slots.waitingCount, 2);
  finish[1]?.();
  await runs[1];
  await Promise.resolve();
  t.same(started, [0, 1, 2]);
  t.equal(slots.usedCount, 2);
  finish[0]?.();
  finish[2]?.();
  await Promise.all([runs[0], runs[2]]);
  finish[3]?.();
  await Promise.all(runs);
  t.same(started, [0, 1, 2, 3]);
  t.equal(slots.usedCount, 0);
});

t.test('failed work frees its slot and fails only itself', async (t) => {
  const slots = new Slots(1);
  const failed = slots.run(() => Promise.reject(new Error('no')));
  const next = slots.run(() => Promise.resolve('done'));
  await t.rejects(failed, { message: 'no' });
  t.equal(await next, 'done');
  t.equal(slots.usedCount, 0);
  t.throws(() => new Slots(0), AssertionError);
});
