/**
 * What the requests of one connection may hold at once (promise 9).
 *
 * Requests that run and their bytes count together with the replies that the client has not taken. Requests that
 * wait for a backup or for the fence are counted apart, so that reads behind waiting writes go on (promise 8).
 *
 * The memory of all connections of a server is shared out evenly: each may hold its part of it, whatever the
 * others do, so that none can starve another one. A connection with nothing under way may always run one
 * request, though it be larger than its part; so the bound of a server is the larger of its memory and one
 * request of the largest size for each connection.
 */

import type { NbdLimits } from './limits.ts';

/** Shared by the connections of a server. */
export interface MemoryShare {
  /** What each connection may hold now, in bytes. */
  readonly shareBytes: number;
}

export class Admission {
  readonly #limits: NbdLimits;
  readonly #memory: MemoryShare | undefined;
  #runningCount = 0;
  #runningBytes = 0;
  #waitingCount = 0;
  #waitingBytes = 0;

  constructor(limits: NbdLimits, memory?: MemoryShare) {
    this.#limits = limits;
    this.#memory = memory;
  }

  /**
   * Whether one more request may begin that holds `heldBytes`, its reply's included, while `replyBytes` of
   * earlier ones are not taken.
   */
  hasRoomFor(heldBytes: number, replyBytes: number): boolean {
    const limits = this.#limits;
    const shareBytes = this.#memory?.shareBytes ?? Number.POSITIVE_INFINITY;
    const bytesMax = Math.min(limits.inFlightBytesMax, shareBytes);
    const isIdle = this.#runningCount === 0 && replyBytes === 0;
    const fits = this.#runningBytes + replyBytes + heldBytes <= bytesMax || isIdle;
    return (
      fits &&
      this.#runningCount < limits.inFlightCountMax &&
      this.#waitingBytes < Math.min(limits.waitingBytesMax, shareBytes) &&
      this.#waitingCount < limits.waitingCountMax
    );
  }

  begin(heldBytes: number): void {
    this.#runningCount += 1;
    this.#runningBytes += heldBytes;
  }

  end(heldBytes: number): void {
    this.#runningCount -= 1;
    this.#runningBytes -= heldBytes;
  }

  /** A running request waits from now on. */
  suspend(heldBytes: number): void {
    this.end(heldBytes);
    this.#waitingCount += 1;
    this.#waitingBytes += heldBytes;
  }

  /** A waiting request runs again. */
  resume(heldBytes: number): void {
    this.begin(heldBytes);
    this.#waitingCount -= 1;
    this.#waitingBytes -= heldBytes;
  }
}
