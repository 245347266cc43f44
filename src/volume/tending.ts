/**
 * What is done for an open volume now and then, whoever has it open: the home is looked for where it was, members of the
 * delta store that were lost are made again, and logs go that were kept for a while.
 */

import type { Deltas } from './deltas.ts';
import { homePathOf, type VolumeIdentity } from './directory.ts';
import { VolumeError } from './errors.ts';
import type { Geometry } from './geometry.ts';
import { HomeWatch } from './home-watch.ts';

export interface TendingOptions {
  readonly identity: () => VolumeIdentity;
  readonly geometry: Geometry;
  readonly deltas: Deltas | undefined;
  /** The home is gone; what was written last may be nowhere else. Does not throw. */
  readonly onHomeLost: (reason: VolumeError) => Promise<void>;
}

export class Tending {
  readonly #options: TendingOptions;
  #home = '';
  #watch: HomeWatch | undefined;
  #running: Promise<void> | undefined;

  constructor(options: TendingOptions) {
    this.#options = options;
  }

  /** One round; a call while one is under way shares it. Does not throw. */
  tend(signal: AbortSignal): Promise<void> {
    this.#running ??= this.#round(signal).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #round(signal: AbortSignal): Promise<void> {
    await this.#lookForHome();
    if (!signal.aborted) await this.#options.deltas?.tend(signal);
  }

  async #lookForHome(): Promise<void> {
    const { identity, geometry, onHomeLost } = this.#options;
    const { name, directory, home } = identity();
    if (home !== this.#home) {
      this.#home = home;
      this.#watch = await HomeWatch.begin(homePathOf(directory, home));
      return;
    }
    const wrong = await this.#watch?.whatIsWrong(geometry.sizeBytes);
    if (wrong === undefined) return;
    this.#watch = undefined;
    const message = `Home of volume ${name} is lost: ${wrong}; make it again with volume rebuild, or with recover`;
    await onHomeLost(new VolumeError('home-lost', message, { directory }));
  }
}
