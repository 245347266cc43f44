/**
 * A clock that keeps the model's image of the moment at which it was last asked.
 *
 * A volume asks for the time of a point with the gate closed and empty, so right after a session has begun that
 * image is the image of its freeze, exactly.
 */

import { type Clock, present } from '../base/index.ts';
import type { ModelImage, ModelVolume } from './model.ts';

export class AskedClock implements Clock {
  readonly #model: ModelVolume;
  #image: ModelImage | undefined;
  #nowMs = 1_700_000_000_000;

  constructor(model: ModelVolume) {
    this.#model = model;
  }

  get image(): ModelImage {
    return present(this.#image, 'A freeze asks for the time');
  }

  now(): number {
    this.#image = this.#model.snapshot();
    this.#nowMs += 1;
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }
}
