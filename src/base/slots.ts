/**
 * A counted limit on things that run at once, first come, first served.
 *
 * Used for work on Node's thread pool: what is beyond the limit waits here, where it costs nothing, and not
 * in libuv's queue, where it would stand in front of a sync that other work waits for.
 */

import { assert } from './assert.ts';

export class Slots {
  readonly #countMax: number;
  readonly #waiting: (() => void)[] = [];
  #used = 0;

  /** @param countMax how many may run at once, at least 1. */
  constructor(countMax: number) {
    assert(Number.isInteger(countMax) && countMax >= 1, `Slot count ${countMax} is not at least 1`);
    this.#countMax = countMax;
  }

  get usedCount(): number {
    return this.#used;
  }

  get waitingCount(): number {
    return this.#waiting.length;
  }

  /** Runs `work` when a slot is free and frees it when the work has finished or failed. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    // A freed slot passes straight to the first waiter, so the count never exceeds the limit in between.
    if (this.#used < this.#countMax) this.#used += 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#used -= 1;
      else next();
    }
  }
}
