/**
 * Decides in which order concurrent work goes on: calls park here, and a seeded driver lets them go one by one.
 * So an interleaving is a function of the seed as far as the test's own code runs; files and their syncs take
 * the time they take.
 */

import { setImmediate as turn } from 'node:timers/promises';
import { type Deferred, deferred, type SeededRandom } from '../base/index.ts';

interface Parked {
  readonly label: string;
  readonly go: Deferred;
}

export class Scheduler {
  readonly #random: SeededRandom;
  readonly #parked: Parked[] = [];
  #isOpen = false;

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  get parkedCount(): number {
    return this.#parked.length;
  }

  /** Waits here, with this probability, until the driver says so. */
  async park(label: string, probability: number): Promise<void> {
    if (this.#isOpen || !this.#random.chance(probability)) return;
    const go = deferred();
    this.#parked.push({ label, go });
    await go.promise;
  }

  /** Lets one go, any of them. */
  releaseOne(): void {
    if (this.#parked.length === 0) return;
    const [parked] = this.#parked.splice(this.#random.below(this.#parked.length), 1);
    parked?.go.resolve();
  }

  /** Nobody parks until `close`, and who is parked goes on. */
  open(): void {
    this.#isOpen = true;
    for (const parked of this.#parked.splice(0)) parked.go.resolve();
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

/** Lets everything go on that can without files. */
export async function turns(count: number): Promise<void> {
  for (let done = 0; done < count; done += 1) await turn();
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
