/**
 * Brings a mirror up from the volume that is served, behind whoever uses it. A mirror that fails is lost, and not tried
 * again: it is brought up from the beginning by the next process that serves the volume with it.
 */

import type { Clock } from '../base/index.ts';
import type { Volume } from '../volume/index.ts';
import { fillRate, type FillProgress } from './recovery-fill.ts';

export interface MirrorFillOptions {
  readonly volume: Volume;
  readonly clock: Clock;
  readonly rateBytesPerSecond?: number | undefined;
  readonly onProgress: (progress: FillProgress) => void;
  /** Both hold the same from now on. */
  readonly onEqual: () => void;
}

export class MirrorFill {
  readonly #options: MirrorFillOptions;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  /** Begins at once. */
  constructor(options: MirrorFillOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort(new Error('The fill of the mirror was stopped'));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { volume, clock, rateBytesPerSecond, onProgress, onEqual } = this.#options;
    const { trackCount } = volume.geometry;
    try {
      await volume.fillMirror((mirroring, stopped) => {
        const signal = AbortSignal.any([stopped, this.#stop.signal]);
        return mirroring.fillAll({
          signal,
          ...fillRate(rateBytesPerSecond, clock, signal),
          onProgress: (missingTracks) => onProgress({ missingTracks, trackCount }),
        });
      });
      if (volume.mirroring?.isEqual === true) onEqual();
    } catch {
      // The volume has told that the mirror is lost, unless it was stopped.
    }
  }
}
