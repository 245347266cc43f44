/**
 * Clocks of which no two answers are alike, and that go on only when they are asked: the time of a run is its own.
 *
 * The asked clock keeps the model's image of the moment at which it was last asked. A volume asks for the time of a point with the gate closed and empty, so right after a session has begun that
 * image is the image of its freeze, exactly.
 */

import { type Clock, present, type SeededRandom, seedIds } from '../base/index.ts';
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

/** Identifiers out of a seed, in place of the system's until `close`. */
export class SeededIds {
  #last = '';

  constructor(random: SeededRandom) {
    seedIds(() => {
      const bytes = Buffer.from(Array.from({ length: 16 }, () => random.below(256)));
      this.#last = bytes.toString('hex');
      return bytes;
    });
  }

  /** The one that was given out last. */
  get last(): string {
    return this.#last;
  }

  close(): void {
    seedIds(undefined);
  }
}

export class AskedClock extends CountingClock {
  readonly #model: ModelVolume;
  readonly #ids: SeededIds | undefined;
  readonly #images = new Map<string, ModelImage>();
  #image: ModelImage | undefined;

  /** @param ids with them, the images of several freezes are kept apart. */
  constructor(model: ModelVolume, ids?: SeededIds) {
    super();
    this.#model = model;
    this.#ids = ids;
  }

  /** The image of the freeze that fixed this point: its id is drawn right before its time is asked for. */
  imageOf(point: string): ModelImage {
    return present(this.#images.get(point), `Point ${point} was fixed in this run`);
  }

  get image(): ModelImage {
    return present(this.#image, 'A freeze asks for the time');
  }

  override now(): number {
    this.#image = this.#model.snapshot();
    const id = this.#ids?.last;
    if (id !== undefined && !this.#images.has(id)) this.#images.set(id, this.#image);
    return super.now();
  }
}
