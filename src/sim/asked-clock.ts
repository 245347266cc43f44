/**
 * Clocks of which no two answers are alike, and that go on only when they are asked: the time of a run is its own.
 *
 * The asked clock keeps the model's image of the moment at which it was last asked. A volume asks for the time of a point with the gate closed and empty, so right after a session has begun that
 * image is the image of its freeze, exactly.
 */

import { type Clock, present } from '../base/index.ts';
import type { ModelImage, ModelVolume } from './model.ts';

export class CountingClock implements Clock {
  #nowMs = 1_700_000_000_000;

  now(): number {
    this.#nowMs += 1;
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }
}

export class AskedClock extends CountingClock {
  readonly #model: ModelVolume;
  #image: ModelImage | undefined;

  constructor(model: ModelVolume) {
    super();
    this.#model = model;
  }

  get image(): ModelImage {
    return present(this.#image, 'A freeze asks for the time');
  }

  override now(): number {
    this.#image = this.#model.snapshot();
    return super.now();
  }
}
