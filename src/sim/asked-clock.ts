/**
 * A clock that tells when it was asked.
 *
 * A volume asks for the time of a point with the gate closed and empty, so the model's image taken at that
 * question is the image of the freeze, exactly.
 */

import { type Clock, present } from '../base/index.ts';
import type { ModelImage, ModelVolume } from './model.ts';

export class AskedClock implements Clock {
  #onNow: (() => void) | undefined;
  #nowMs = 1_700_000_000_000;

  now(): number {
    this.#onNow?.();
    this.#nowMs += 1;
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  /** Begins a session. @returns what `begin` gives, with the model as it was at the freeze. */
  async atFreeze<T>(
    model: ModelVolume,
    begin: () => Promise<T>,
  ): Promise<{ readonly begun: T; readonly image: ModelImage }> {
    let image: ModelImage | undefined;
    this.#onNow = () => {
      image ??= model.snapshot();
    };
    try {
      const begun = await begin();
      return { begun, image: present(image, 'A freeze asks for the time') };
    } finally {
      this.#onNow = undefined;
    }
  }
}
