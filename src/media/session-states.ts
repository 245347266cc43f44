/**
 * The states of one session on sequential media, as a small machine of its own.
 *
 *     opened --> beginning-of-medium --> write (or read) --> end-of-medium --> opened
 *                                            |
 *                                            +--> error --> opened
 *
 * A medium is opened once and goes once through the circle: its headers are read or written at its beginning,
 * its directory and catalog at its end. Where an operation on it fails, the medium is closed, the failure is
 * written to the log and the operator is told, and the session stands where it could open another medium.
 *
 * Every other step is a mistake of the program and is refused, so that no code path can write data before
 * the headers or leave a medium without having ended it. The steps are kept with their times, a bounded
 * number of them, for the status and the log. The machine does no work and knows no medium but by its number.
 */

import { assert, type Clock, LIMITS } from '../base/index.ts';

export type TransferState = 'write' | 'read';
export type SessionState = 'opened' | 'beginning-of-medium' | TransferState | 'end-of-medium' | 'error';

export interface SessionStep {
  readonly state: SessionState;
  /** The medium of the step, from 1; 0 before the first. */
  readonly medium: number;
  /** Milliseconds since the Unix epoch. */
  readonly atMs: number;
  /** Why, where the state is `error`. */
  readonly reason?: string;
}

export class SessionStates {
  readonly #clock: Clock;
  readonly #transfer: TransferState;
  readonly #steps: SessionStep[] = [];
  readonly #onStep: ((step: SessionStep) => void) | undefined;
  #droppedCount = 0;

  /**
   * Begins in `opened`.
   *
   * @param transfer `write` for a backup or an export, `read` for a restore or an import.
   * @param onStep called with each step after it was made, the first one included. Must not throw.
   */
  constructor(
    transfer: TransferState,
    options: { readonly clock: Clock; readonly onStep?: (step: SessionStep) => void },
  ) {
    this.#transfer = transfer;
    this.#clock = options.clock;
    this.#onStep = options.onStep;
    this.#record('opened', 0);
  }

  get state(): SessionState {
    return this.#last().state;
  }

  /** The medium that the session is at, or was at last; 0 before the first. */
  get medium(): number {
    return this.#last().medium;
  }

  /** The steps so far, oldest first; the newest `LIMITS.mediaStepCountMax` of them. */
  get steps(): readonly SessionStep[] {
    return this.#steps;
  }

  /** Steps that are no longer in `steps`. */
  get droppedCount(): number {
    return this.#droppedCount;
  }

  /** A medium is there, and its headers are read or written now. @param medium its number, from 1. */
  beginMedium(medium: number): void {
    assert(Number.isInteger(medium) && medium >= 1, `Medium ${medium} has no number`);
    this.#step('opened', 'beginning-of-medium', medium);
  }

  /** The headers are done; data follows. */
  transfer(): void {
    this.#step('beginning-of-medium', this.#transfer);
  }

  /** The medium is full or read to its end, or there is no more data: its end is read or written now. */
  endMedium(): void {
    this.#step(this.#transfer, 'end-of-medium');
  }

  /** An operation on the medium failed. @param reason one sentence, for the log. */
  fail(reason: string): void {
    this.#step(this.#transfer, 'error', undefined, reason);
  }

  /** The medium is closed; after an error the log is written and the operator told as well. */
  closeMedium(): void {
    const from = this.state;
    assert(from === 'end-of-medium' || from === 'error', `A session in ${from} cannot go to opened`);
    this.#record('opened', this.medium);
  }

  #step(from: SessionState, to: SessionState, medium: number = this.medium, reason?: string): void {
    assert(this.state === from, `A session in ${this.state} cannot go to ${to}`);
    this.#record(to, medium, reason);
  }

  #record(state: SessionState, medium: number, reason?: string): void {
    const step = { state, medium, atMs: this.#clock.now(), ...(reason === undefined ? {} : { reason }) };
    this.#steps.push(step);
    if (this.#steps.length > LIMITS.mediaStepCountMax) {
      this.#steps.shift();
      this.#droppedCount += 1;
    }
    this.#onStep?.(step);
  }

  #last(): SessionStep {
    const last = this.#steps.at(-1);
    assert(last !== undefined, 'A session has a first step');
    return last;
  }
}
