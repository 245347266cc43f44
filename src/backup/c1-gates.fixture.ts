/**
 * The two gates of EXAMPLES C1, set into a session's calls: one before the main pass (`confirm`), one before
 * the store takes diverted tracks (`take`, one track at a time). Both record what came through.
 */

import { deferred, type Deferred } from '../base/index.ts';
import type { Step } from './session.fixture.ts';

class Turnstile {
  #allowed = Number.POSITIVE_INFINITY;
  readonly #waiting: Deferred[] = [];
  #onHeld: (() => void) | undefined;

  close(allowed: number): void {
    this.#allowed = allowed;
  }

  allow(count: number): void {
    this.#allowed += count;
    while (this.#allowed > 0) {
      const waiting = this.#waiting.shift();
      if (waiting === undefined) return;
      this.#allowed -= 1;
      waiting.resolve();
    }
  }

  open(): void {
    this.allow(Number.POSITIVE_INFINITY);
  }

  /** Resolves as soon as someone waits. */
  held(): Promise<void> {
    if (this.#waiting.length > 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onHeld = resolve;
    });
  }

  pass(): Promise<void> {
    if (this.#allowed > 0) {
      this.#allowed -= 1;
      return Promise.resolve();
    }
    const waiting = deferred();
    this.#waiting.push(waiting);
    this.#onHeld?.();
    return waiting.promise;
  }
}

export class C1Gates {
  /** What the main pass has saved from the home, in order. */
  readonly saved: number[] = [];
  /** What the store has taken out of the container, in order. */
  readonly taken: number[] = [];
  readonly #mainPass = new Turnstile();
  readonly #store = new Turnstile();

  holdMainPassAt(trackCount: number): void {
    this.#mainPass.close(trackCount);
  }

  holdStore(): void {
    this.#store.close(0);
  }

  mainPassHeld(): Promise<void> {
    return this.#mainPass.held();
  }

  letMainPassConfirm(count: number): void {
    this.#mainPass.allow(count);
  }

  releaseMainPass(): void {
    this.#mainPass.open();
  }

  letStoreTake(count: number): void {
    this.#store.allow(count);
  }

  releaseStore(): void {
    this.#store.open();
  }

  async pass(step: Step): Promise<void> {
    if (step === 'confirm') await this.#mainPass.pass();
    if (step === 'take') await this.#store.pass();
  }
}
