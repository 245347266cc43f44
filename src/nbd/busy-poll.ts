/**
 * Looks for the next requests for a moment before the event loop sleeps.
 *
 * A client with one request at a time answers a reply within some ten microseconds. To put the processor to sleep and
 * to be woken for that request takes as long again, more so in a virtual machine: half of the time of a 4 KiB read.
 * So where the last requests came that soon, the loop polls its sockets without sleeping, for `POLL_MS` at most, as
 * the I/O threads of QEMU do (`poll-max-ns`); the first time in vain ends it, until requests come that soon again. An
 * idle server sleeps.
 */

import { availableParallelism } from 'node:os';

/** How long the loop looks for more after it served something. */
const POLL_MS = 0.05;
/** Requests that come this soon after the last ones, a wake-up included, make it worth while. */
const SOON_MS = 0.08;

export class BusyPoll {
  readonly #now: () => number;
  readonly #nextTurn: (turn: () => void) => void;
  #isWorth = false;
  #isPolling = false;
  #servedMs = Number.NEGATIVE_INFINITY;

  /** @param now milliseconds. @param nextTurn calls back in the next turn of the loop, which then does not sleep. */
  constructor(now: () => number, nextTurn: (turn: () => void) => void) {
    this.#now = now;
    this.#nextTurn = nextTurn;
  }

  /** Requests arrived and are about to be served. */
  arrived(): void {
    if (this.#now() - this.#servedMs < SOON_MS) this.#isWorth = true;
  }

  /** They were served, or run. */
  served(): void {
    this.#servedMs = this.#now();
    if (!this.#isWorth || this.#isPolling) return;
    this.#isPolling = true;
    this.#nextTurn(this.#poll);
  }

  readonly #poll = (): void => {
    if (this.#now() - this.#servedMs < POLL_MS) {
      this.#nextTurn(this.#poll);
      return;
    }
    this.#isPolling = false;
    this.#isWorth = false;
  };
}

/** With one processor the client would have to wait for the end of the polling. */
const nothing = { arrived: () => undefined, served: () => undefined };

/** That of this process's loop. */
export const busyPoll: Pick<BusyPoll, 'arrived' | 'served'> =
  availableParallelism() > 1 ? new BusyPoll(() => performance.now(), setImmediate) : nothing;
