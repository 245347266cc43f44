/**
 * Looks after the mirrors of a volume that is served: tries again what is away, longer each time, and rebuilds what is
 * back, behind whoever uses the volume.
 *
 * What is lost is told by the volume when it happens; here is told when everything is there again.
 */

import { type Clock, LIMITS } from '../base/index.ts';
import type { Volume } from '../volume/index.ts';
import { fillRate, waitUnless } from './recovery-fill.ts';

export interface MirrorCareOptions {
  readonly volume: Volume;
  readonly clock: Clock;
  readonly rebuildRateBytesPerSecond?: number | undefined;
  readonly warn: (sentence: string) => void;
}

export class MirrorCare {
  readonly #options: MirrorCareOptions;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  /** Begins at once. */
  constructor(options: MirrorCareOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort(new Error('The rebuild of the volume was stopped'));
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    let waitMs: number = LIMITS.mirrorRetryMsMin;
    while (!signal.aborted) {
      const before = this.#absentCount;
      if (before > 0 && (await this.#care())) waitMs = LIMITS.mirrorRetryMsMin;
      else waitMs = before === 0 ? LIMITS.mirrorRetryMsMin : Math.min(2 * waitMs, LIMITS.mirrorRetryMsMax);
      await waitUnless(waitMs, signal);
    }
  }

  get #absentCount(): number {
    const { mirrors } = this.#options.volume;
    return mirrors === undefined ? 0 : mirrors.awayCount + mirrors.rebuildingCount;
  }

  /** @returns whether all members are current again. */
  async #care(): Promise<boolean> {
    const { volume, warn, clock, rebuildRateBytesPerSecond } = this.#options;
    try {
      await volume.careForMirrors(async (mirrors, stopped) => {
        await mirrors.rejoin();
        const signal = AbortSignal.any([stopped, this.#stop.signal]);
        await mirrors.rebuild({ signal, ...fillRate(rebuildRateBytesPerSecond, clock, signal) });
      });
    } catch {
      // It was stopped, the volume takes no writes, or a member went away again, which the volume has told.
      return false;
    }
    if (this.#absentCount > 0) return false;
    warn(`All copies of volume ${volume.identity.name} are current again`);
    return true;
  }
}
