/**
 * Looks after a volume that is served, every second: whether its home is where it was, and whether lost members of its
 * delta store can be made again.
 */

import { LIMITS } from '../base/index.ts';
import type { Volume } from '../volume/index.ts';
import { waitUnless } from './recovery-fill.ts';

export class VolumeCare {
  readonly #volume: Volume;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  /** Begins at once. */
  constructor(volume: Volume) {
    this.#volume = volume;
    this.#running = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort(new Error('The care of the volume was stopped'));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await this.#volume.tend(signal);
      await waitUnless(LIMITS.volumeCareMs, signal);
    }
  }
}
