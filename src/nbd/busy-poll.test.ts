/**
 * Goal: the loop polls while requests follow each other closely, never for longer than a moment, and not at all where
 * they do not.
 * Method: a clock set by hand and a loop whose turns are counted.
 */

import t from 'tap';
import { BusyPoll } from './busy-poll.ts';

/** A loop that turns when it is told to, each turn taking 10 µs. */
function createLoop() {
  let nowMs = 1000;
  let next: (() => void) | undefined;
  const poll = new BusyPoll(
    () => nowMs,
    (turn) => (next = turn),
  );
  return {
    request: (): void => {
      poll.arrived();
      poll.served();
    },
    wait: (milliseconds: number): void => void (nowMs += milliseconds),
    /** Turns until the loop sleeps, `countMax` times at most. @returns how often. */
    turns: (countMax: number): number => {
      let count = 0;
      for (; count < countMax && next !== undefined; count += 1) {
        const turn = next;
        next = undefined;
        nowMs += 0.01;
        turn();
      }
      return count;
    },
  };
}

t.test('a lone request is not waited for', async (t) => {
  const loop = createLoop();
  loop.request();
  t.equal(loop.turns(10), 0);
  loop.wait(1);
  loop.request();
  t.equal(loop.turns(10), 0, 'nor one long after');
});

t.test('requests that follow closely keep the loop awake', async (t) => {
  const loop = createLoop();
  loop.request();
  loop.wait(0.06);
  for (let round = 0; round < 100; round += 1) {
    loop.request();
    t.equal(loop.turns(3), 3);
  }
});

t.test(
  'polling ends soon after the last request and begins anew only when they are close again',
  async (t) => {
    const loop = createLoop();
    loop.request();
    loop.wait(0.02);
    loop.request();
    const count = loop.turns(1000);
    t.ok(count >= 5 && count <= 6, `${count} turns of 10 µs`);
    loop.wait(0.2);
    loop.request();
    t.equal(loop.turns(10), 0, 'the last one came late');
    loop.wait(0.02);
    loop.request();
    t.ok(loop.turns(10) > 0);
  },
);
