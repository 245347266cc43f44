/**
 * Decides in which order concurrent work goes on: calls park here, and a seeded driver lets them go one by one.
 *
 * What is not parked goes on as far as it can before the driver does anything else: a turn ends when no call to
 * the file system is under way any more. So files take no time, except where somebody parks around them, and an
 * interleaving is a function of the seed. That holds to the letter where the thread pool has one thread
 * (`UV_THREADPOOL_SIZE=1`, as `scripts/sim` sets it): with more, calls that are under way together end in any order.
 */

import { getActiveResourcesInfo } from 'node:process';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { type Deferred, deferred, type SeededRandom, type Timer } from '../base/index.ts';

interface Parked {
  readonly label: string;
  readonly go: Deferred;
}

export class Scheduler {
  readonly #random: SeededRandom;
  readonly #parked: Parked[] = [];
  readonly #onRelease: ((label: string) => void) | undefined;
  #isOpen = false;

  /** @param onRelease told who goes on, for the trace of a run. */
  constructor(random: SeededRandom, onRelease?: (label: string) => void) {
    this.#random = random;
    this.#onRelease = onRelease;
  }

  get parkedCount(): number {
    return this.#parked.length;
  }

  /** Who waits here, those that came first in front. */
  get parked(): readonly string[] {
    return this.#parked.map(({ label }) => label);
  }

  /** Waits here, with this probability, until the driver says so. */
  async park(label: string, probability: number): Promise<void> {
    if (this.#isOpen || !this.#random.chance(probability)) return;
    const go = deferred();
    this.#parked.push({ label, go });
    await go.promise;
  }

  /** A timer that fires when the driver says so, if ever. */
  readonly timer: Timer = (_, fire) => {
    if (this.#isOpen) return () => undefined;
    const parked: Parked = { label: 'timer', go: { ...deferred(), resolve: fire } };
    this.#parked.push(parked);
    return () => {
      const place = this.#parked.indexOf(parked);
      if (place >= 0) this.#parked.splice(place, 1);
    };
  };

  /** Lets one go, any of them. */
  releaseOne(): void {
    if (this.#parked.length === 0) return;
    const [parked] = this.#parked.splice(this.#random.below(this.#parked.length), 1);
    if (parked !== undefined) this.#onRelease?.(parked.label);
    parked?.go.resolve();
  }

  /** Nobody parks until `close`, and who is parked goes on. Timers do not fire any more. */
  open(): void {
    this.#isOpen = true;
    for (const parked of this.#parked.splice(0)) if (parked.label !== 'timer') parked.go.resolve();
  }

  close(): void {
    this.#isOpen = false;
  }

  /** Ends the waiting of those whose label begins so, with an error. */
  fail(prefix: string, error: Error): void {
    for (const parked of this.#parked.filter(({ label }) => label.startsWith(prefix))) {
      this.#parked.splice(this.#parked.indexOf(parked), 1);
      parked.go.reject(error);
    }
  }
}

const FILE_CALLS: readonly string[] = ['FSReqPromise', 'FSReqCallback', 'CloseReq'];

/** Lets everything go on that can, files included, so many times. */
export async function turns(count: number): Promise<void> {
  for (let done = 0; done < count; done += 1) {
    do await nextTurn();
    while (getActiveResourcesInfo().some((resource) => FILE_CALLS.includes(resource)));
  }
}

/**
 * Waits for something that must come by itself.
 *
 * @throws where it has not come after so long that it never will; the limit measures nothing.
 */
export async function within<T>(work: Promise<T>, what: string, msMax = 30_000): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const never = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} does not end`)), msMax);
  });
  try {
    return await Promise.race([work, never]);
  } finally {
    clearTimeout(timer);
  }
}
