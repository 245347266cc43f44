/**
 * Several calls in flight, at most so many at once.
 *
 * `start` waits for a free place, starts the call and comes back while it runs. A call that finishes at once
 * (devices may) never takes a place. The first failure is kept: `start` and `drain` throw it, and nothing new
 * begins; the calls already running are waited for, because their buffers and devices are still in use.
 */

import { deferred, type Deferred, type MaybePromise } from '../base/index.ts';

export class WriteWindow {
  readonly #countMax: number;
  #running = 0;
  #failure: { readonly error: unknown } | undefined;
  #changed: Deferred | undefined;

  /** @param countMax calls in flight at once, at least 1. */
  constructor(countMax: number) {
    this.#countMax = countMax;
  }

  /** Starts `call` as soon as there is a place. @throws the failure of an earlier call, or of this one. */
  async start(call: () => MaybePromise<void>): Promise<void> {
    while (this.#running >= this.#countMax) await this.#change();
    if (this.#failure !== undefined) throw this.#failure.error;
    const running = call();
    if (running === undefined) return;
    this.#running += 1;
    running.then(
      () => this.#finish(),
      (error: unknown) => {
        this.#failure ??= { error };
        this.#finish();
      },
    );
  }

  /** Waits until nothing runs. @throws the first failure, if there was one. */
  async drain(): Promise<void> {
    await this.settle();
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  /** Waits until nothing runs, whatever became of it. */
  async settle(): Promise<void> {
    while (this.#running > 0) await this.#change();
  }

  #change(): Promise<void> {
    this.#changed ??= deferred();
    return this.#changed.promise;
  }

  #finish(): void {
    this.#running -= 1;
    const changed = this.#changed;
    this.#changed = undefined;
    changed?.resolve();
  }
}
