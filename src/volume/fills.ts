/**
 * The recovery that an open volume is in, and what fills it: any number at once, the side's fill and media. Whichever
 * finds that nothing is missing any more ends the recovery.
 */

import type { Recovery } from './recovery.ts';

export interface FillsOptions {
  /** Undefined where everything is in the home. */
  readonly recovery: Recovery | undefined;
  /** Throws where the home may not be written. */
  readonly refuse: () => void;
  readonly flush: () => Promise<void>;
}

export class Fills {
  readonly #options: FillsOptions;
  #recovery: Recovery | undefined;
  readonly #stop = new AbortController();
  readonly #running = new Set<Promise<void>>();

  constructor(options: FillsOptions) {
    this.#options = options;
    this.#recovery = options.recovery;
  }

  /** Undefined once it is over. */
  get recovery(): Recovery | undefined {
    return this.#recovery;
  }

  /** See `Volume.fill`. */
  async run(body: (recovery: Recovery, signal: AbortSignal) => Promise<void>): Promise<void> {
    const recovery = this.#recovery;
    if (recovery === undefined) return;
    const { signal } = this.#stop;
    const filling = body(recovery, signal).then(() => this.#end(recovery));
    this.#running.add(filling);
    try {
      await filling;
    } finally {
      this.#running.delete(filling);
    }
  }

  /** Ends what fills; the recovery goes on at the next opening. */
  async stop(reason: unknown): Promise<void> {
    this.#stop.abort(reason);
    await Promise.allSettled(this.#running);
  }

  /** Nothing may be in flight any more. */
  async close(): Promise<void> {
    await this.#options.recovery?.closeSide();
  }

  async #end(recovery: Recovery): Promise<void> {
    this.#stop.signal.throwIfAborted();
    if (!recovery.isComplete || this.#recovery === undefined) return;
    this.#options.refuse();
    await this.#options.flush();
    await recovery.end();
    this.#recovery = undefined;
    // A mirror is written for as long as the volume is open.
    if (!recovery.isMirrored) await recovery.closeSide();
  }
}
