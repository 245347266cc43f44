/**
 * The second channel of a recovery, while a volume is served: fills what is missing, behind whoever uses the volume, and
 * ends the recovery when nothing is missing any more.
 *
 * What cannot be filled does not end it: the volume is served on, what is missing is asked for again after a while, and
 * longer each time, and the operator is told whenever the reason changes.
 */

import { type Clock, LIMITS, messageOf } from '../base/index.ts';
import { RateLimit } from '../backup/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { FillOptions, Volume } from '../volume/index.ts';

export interface FillProgress {
  readonly missingTracks: number;
  readonly trackCount: number;
}

export interface RecoveryFillOptions {
  readonly volume: Volume;
  readonly clock: Clock;
  /** What is brought in before the rest. */
  readonly first?: readonly TrackRun[] | undefined;
  readonly rateBytesPerSecond?: number | undefined;
  readonly warn: (sentence: string) => void;
  readonly onProgress?: ((progress: FillProgress) => void) | undefined;
  /** The recovery is over. */
  readonly onRecovered?: (() => void) | undefined;
}

export class RecoveryFill {
  readonly #options: RecoveryFillOptions;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  /** Begins at once. */
  constructor(options: RecoveryFillOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  /** Finishes when nothing of it is under way any more; what is there stays. */
  async stop(): Promise<void> {
    this.#stop.abort(new Error('The fill of the volume was stopped'));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { volume, onRecovered } = this.#options;
    const { recovery } = volume;
    if (recovery === undefined) return;
    const end = (): void => this.#stop.abort(recovery.over.reason);
    recovery.over.addEventListener('abort', end);
    await this.#fillUntilStopped();
    recovery.over.removeEventListener('abort', end);
    if (recovery.over.aborted) onRecovered?.();
  }

  async #fillUntilStopped(): Promise<void> {
    const { volume, warn } = this.#options;
    let told = '';
    for (let waitMs: number = LIMITS.fillRetryMsMin; ; waitMs = Math.min(2 * waitMs, LIMITS.fillRetryMsMax)) {
      try {
        await this.#fill();
        return;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        const reason = messageOf(error);
        const { name } = volume.identity;
        if (reason !== told) warn(`Volume ${name} cannot be filled now, and will be tried again: ${reason}`);
        told = reason;
      }
      await waitUnless(waitMs, this.#stop.signal);
      if (this.#stop.signal.aborted) return;
    }
  }

  async #fill(): Promise<void> {
    const { volume, first, rateBytesPerSecond, clock, onProgress } = this.#options;
    const { trackCount } = volume.geometry;
    await volume.fill((recovery, signal) =>
      recovery.fillAll({
        signal: AbortSignal.any([signal, this.#stop.signal]),
        ...(first === undefined ? {} : { first }),
        ...fillRate(rateBytesPerSecond, clock, this.#stop.signal),
        onProgress: (missingTracks) => onProgress?.({ missingTracks, trackCount }),
      }),
    );
  }
}

/** How a fill is held to its rate. */
export function fillRate(
  bytesPerSecond: number | undefined,
  clock: Clock,
  signal: AbortSignal,
): Pick<FillOptions, 'take'> {
  if (bytesPerSecond === undefined) return {};
  const rate = new RateLimit({ bytesPerSecond, clock, wait: (ms) => waitUnless(ms, signal) });
  return { take: (bytes) => rate.take(bytes) };
}

/** Waits; ends early when the signal fires. */
export function waitUnless(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done);
    if (signal.aborted) done();
  });
}
