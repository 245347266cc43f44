/**
 * Goal: with a limit, a backup that has no room is given up when a write has waited that long, and for no other reason;
 * without one, writes wait. Method: a timer that the test turns, on a real volume.
 */

import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { labelsOf, makeTestVolume, writeLabel } from '../sim/index.ts';
import { Receiver } from './receiver.fixture.ts';

/** Time that passes when the test says so. */
class TurnedTimer {
  readonly #pending = new Set<{ readonly atMs: number; readonly fire: () => void }>();
  #nowMs = 0;

  readonly timer = (milliseconds: number, fire: () => void): (() => void) => {
    const entry = { atMs: this.#nowMs + milliseconds, fire };
    this.#pending.add(entry);
    return () => this.#pending.delete(entry);
  };

  get size(): number {
    return this.#pending.size;
  }

  async pass(milliseconds: number): Promise<void> {
    this.#nowMs += milliseconds;
    for (const entry of this.#pending) {
      if (entry.atMs > this.#nowMs) continue;
      this.#pending.delete(entry);
      entry.fire();
    }
    for (let count = 0; count < 20; count += 1) await turn();
  }
}

async function begin(t: Parameters<typeof makeTestVolume>[0], slots: number, waitMsMax?: number) {
  const time = new TurnedTimer();
  const test = await makeTestVolume(t, { trackCount: 4, timer: time.timer });
  for (let track = 0; track < 4; track += 1) await writeLabel(test.volume, track, `o${track}`);
  const limit = waitMsMax === undefined ? {} : { waitMsMax };
  const receiver = await Receiver.begin(test.volume, slots, { consumer: 'a', ...limit });
  /** A write that has come as far as it can. */
  const write = async (
    track: number,
  ): Promise<{ readonly isDone: () => boolean; readonly done: Promise<void> }> => {
    const state = { isDone: false };
    const done = writeLabel(test.volume, track, `n${track}`).then(() => {
      state.isDone = true;
    });
    await time.pass(0);
    return { isDone: () => state.isDone, done };
  };
  return { time, test, receiver, write };
}

for (const slots of [0, 1]) {
  t.test(`a write waits too long: the backup fails and the writes go on, ${slots} slots`, async (t) => {
    const { time, test, receiver, write } = await begin(t, slots, 500);
    if (slots === 1) await (await write(3)).done;
    const first = await write(0);
    await time.pass(300);
    const second = await write(1);
    await time.pass(199);
    t.same([first.isDone(), second.isDone(), receiver.session.state], [false, false, 'running']);
    await time.pass(1);
    await Promise.all([first.done, second.done]);
    t.equal(receiver.session.state, 'failed');
    t.match(receiver.session.signal.reason, {
      code: 'container-full',
      message: /track 0 has waited 500 ms .* which is full; give it more areas/,
      details: { track: 0, waitedMs: 500 },
    });
    t.equal(time.size, 0, 'no timer is left');
    t.same((await labelsOf(test.volume)).slice(0, 3), ['n0', 'n1', 'o2']);
    t.match(test.volume.status(), { sessions: [], writesWaiting: 0, changedTracks: slots + 2 });
  });
}

t.test('room in time ends the wait; the next one has its own', async (t) => {
  const { time, receiver, write } = await begin(t, 1, 500);
  await (
    await write(0)
  ).done;
  const waiting = await write(1);
  await time.pass(400);
  await receiver.take(1);
  receiver.acknowledge();
  await time.pass(50);
  await waiting.done;
  const next = await write(2);
  await time.pass(450);
  t.same([next.isDone(), receiver.session.state], [false, 'running']);
  await receiver.mainPass(2, 1);
  await time.pass(500);
  await next.done;
  t.same([receiver.session.state, time.size], ['running', 0]);
});

t.test('a track that the lane is reading out of turn is waited for as well', async (t) => {
  const { time, receiver, write } = await begin(t, 0, 500);
  const waiting = await write(0);
  await receiver.take(1);
  await time.pass(500);
  await waiting.done;
  t.equal(receiver.session.state, 'failed');
});

t.test('without a limit writes wait, and no timer runs', async (t) => {
  const { time, receiver, write } = await begin(t, 1);
  await (
    await write(0)
  ).done;
  const waiting = await write(1);
  await time.pass(3_600_000);
  t.same([waiting.isDone(), receiver.session.state, time.size], [false, 'running', 0]);
  receiver.session.fail(new Error('enough'));
  await time.pass(0);
  await waiting.done;
});

t.test('of two sessions only the one with a limit gives up; the write waits for the other', async (t) => {
  const { time, test, receiver, write } = await begin(t, 0, 500);
  const other = await Receiver.begin(test.volume, 0, { consumer: 'b' });
  const waiting = await write(0);
  await time.pass(500);
  t.same([receiver.session.state, other.session.state, waiting.isDone()], ['failed', 'running', false]);
  t.same(await other.take(), [0]);
  other.acknowledge();
  await time.pass(0);
  await waiting.done;
});
