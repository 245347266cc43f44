/**
 * The state in which a volume refuses writes and flushes, after one of its home has failed (DESIGN section 4, promise
 * 10): recorded, so that it survives reopening, and cleared by `volume check` alone.
 */

import { type Clock, messageOf } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { PoisonRecord, VolumeState } from './state.ts';

export interface PoisonOptions {
  readonly state: Pick<VolumeState, 'poison' | 'suspects' | 'savePoison'>;
  readonly trackCount: number;
  readonly clock: Clock;
}

export class Poison {
  readonly #options: PoisonOptions;
  #record: PoisonRecord | undefined;
  #suspects: TrackSet;
  #recording: Promise<void> | undefined;
  #isRecorded = true;

  constructor(options: PoisonOptions) {
    this.#options = options;
    this.#record = options.state.poison;
    this.#suspects = options.state.suspects(options.trackCount);
  }

  /** Undefined where the volume is not poisoned. */
  get record(): PoisonRecord | undefined {
    return this.#record;
  }

  /** The tracks that may not hold what was written to them last. */
  get suspects(): TrackSet {
    return this.#suspects;
  }

  /** False once it could not be recorded: the process stays poisoned, and the next opening must be an unclean one. */
  get isRecorded(): boolean {
    return this.#isRecorded;
  }

  /** From now on the volume is poisoned. @param suspects what was written since the last good flush. */
  begin(error: unknown, suspects: TrackSet): void {
    const record: PoisonRecord = { reason: messageOf(error), atMs: this.#options.clock.now() };
    this.#record = record;
    this.#suspects = suspects;
    this.#recording = this.#save(record, suspects);
  }

  /** Finishes when it is on record, or could not be recorded. */
  async whenRecorded(): Promise<void> {
    await this.#recording;
  }

  /** It was cleared, durably. */
  end(): void {
    this.#record = undefined;
    this.#suspects = TrackSet.empty();
  }

  async #save(record: PoisonRecord, suspects: TrackSet): Promise<void> {
    try {
      await this.#options.state.savePoison(record, suspects);
    } catch {
      this.#isRecorded = false;
    }
  }
}
