/**
 * Holds the main pass to so many bytes a second (`--rate`). What clients divert is never held: they may be
 * waiting for it.
 *
 * A budget of one second's bytes fills with time; whoever takes from it when it is empty waits until it would be
 * even again. So short pauses are made up for and long ones are not.
 */

import type { Clock } from '../base/index.ts';

export class RateLimit {
  readonly #bytesPerSecond: number;
  readonly #clock: Clock;
  readonly #wait: (ms: number) => Promise<void>;
  /** When the bytes taken so far are paid for. */
  #evenMs: number;

  /** @param bytesPerSecond at least 1. */
  constructor(options: {
    readonly bytesPerSecond: number;
    readonly clock: Clock;
    readonly wait: (ms: number) => Promise<void>;
  }) {
    this.#bytesPerSecond = options.bytesPerSecond;
    this.#clock = options.clock;
    this.#wait = options.wait;
    this.#evenMs = options.clock.monotonicMs();
  }

  /** Takes bytes from the budget, and waits while it is overdrawn. */
  async take(bytes: number): Promise<void> {
    const nowMs = this.#clock.monotonicMs();
    this.#evenMs = Math.max(this.#evenMs, nowMs - 1000);
    const waitMs = this.#evenMs - nowMs;
    this.#evenMs += (bytes / this.#bytesPerSecond) * 1000;
    if (waitMs > 0) await this.#wait(waitMs);
  }
}
