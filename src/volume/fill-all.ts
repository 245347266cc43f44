/**
 * Fills a device that is used meanwhile (`filling-device.ts`): goes through what is missing, some runs at once, behind
 * whoever waits for a track.
 *
 * A track that the source cannot give is left out, and the others go on.
 */

import { allFinished, LIMITS } from '../base/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { FillingDevice } from './filling-device.ts';
import type { Geometry } from './geometry.ts';

export interface FillOptions {
  /** What is brought in before the rest, in this order. */
  readonly first?: readonly TrackRun[];
  /** Waits until so many more bytes may be read; at once where left out. */
  readonly take?: (bytes: number) => Promise<void>;
  readonly signal?: AbortSignal;
  /** Called after each run, with the tracks still missing. Must not throw. */
  readonly onProgress?: (missingCount: number) => void;
}

export interface FillTarget {
  readonly filling: FillingDevice;
  readonly geometry: Geometry;
  /** Whether the device may be written. */
  readonly mayWrite: () => boolean;
  /** The runs to go through; those that are not missing are passed over. */
  readonly order: () => AsyncIterable<Iterable<TrackRun>>;
}

/** @throws the first reason why a track could not be brought in, when all others are; or at once, where nothing can be. */
export async function fillAll(target: FillTarget, options: FillOptions): Promise<void> {
  const fill = new Fill(target, options);
  try {
    await fill.start(options.first ?? []);
    for await (const runs of target.order()) await fill.start(runs);
  } finally {
    await fill.settle();
  }
  await fill.finish();
}

class Fill {
  readonly #target: FillTarget;
  readonly #options: FillOptions;
  readonly #running = new Set<Promise<void>>();
  readonly #runTracks: number;
  #firstFailure: { readonly error: unknown } | undefined;
  #failuresInARow = 0;

  constructor(target: FillTarget, options: FillOptions) {
    this.#target = target;
    this.#options = options;
    this.#runTracks = Math.max(1, Math.floor(LIMITS.fillRunBytesMax / target.geometry.trackSizeBytes));
  }

  /** Starts what of the runs is missing; what is under way then goes on beside what comes after. */
  async start(runs: Iterable<TrackRun>): Promise<void> {
    const { filling, geometry } = this.#target;
    const { signal, take, onProgress } = this.#options;
    for (const whole of runs) {
      for (const run of filling.missingIn(whole).runs(this.#runTracks)) {
        signal?.throwIfAborted();
        await filling.whenUnasked();
        await take?.(geometry.lengthOf(run));
        const filled = this.#bringIn(run).then(() => {
          this.#running.delete(filled);
          onProgress?.(filling.missingCount);
        });
        // It is looked at later.
        filled.catch(() => undefined);
        this.#running.add(filled);
        // One that has failed stays, and ends the fill here.
        if (this.#running.size >= LIMITS.fillRunCountMax) await Promise.race(this.#running);
      }
    }
  }

  async settle(): Promise<void> {
    await Promise.allSettled(this.#running);
  }

  async finish(): Promise<void> {
    await allFinished([...this.#running]);
    if (this.#firstFailure !== undefined) throw this.#firstFailure.error;
  }

  async #bringIn(run: TrackRun): Promise<void> {
    try {
      await this.#target.filling.bringIn(run);
      this.#failuresInARow = 0;
    } catch (error) {
      if (!this.#target.mayWrite()) throw error;
      // One of them may be damaged; the others are not.
      if (run.count === 1) this.#note(error);
      else
        for (let track = run.first; track < run.first + run.count; track += 1)
          await this.#bringIn({ first: track, count: 1 });
    }
  }

  /** @throws the error, where it seems that nothing can be read any more. */
  #note(error: unknown): void {
    this.#firstFailure ??= { error };
    this.#failuresInARow += 1;
    if (this.#failuresInARow >= LIMITS.fillFailuresInARowMax) throw error;
  }
}
