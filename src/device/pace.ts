/**
 * Whether calls of one kind are made at once, which blocks the loop while they last, or on the thread pool.
 *
 * A call that the page cache serves takes microseconds, and handing it to the pool would cost more than it
 * does. But the same call can wait: for a disk that has to be read, for a server behind a network filesystem,
 * for the kernel that holds back whoever fills memory with unwritten pages. Nobody says so beforehand. So calls
 * are measured, and what turned slow moves away by itself and comes back:
 *
 *                waited too long in one window
 *         +------------------------------------------+
 *         |                                          v
 *     at once                                     on the pool: rests, then waits for
 *         ^                                       a row of calls that were not slow
 *         |            the call was fast             |
 *         +-------------- one probe <----------------+
 *                             |                      ^
 *                             +--- it was slow: rests twice as long
 *
 * **Moving away.** What harms is the share of its time that the loop stands still. Calls over `paceSlowCallMs`
 * are added up in windows of `paceWindowMs`; beyond `paceBlockedMsMax` the kind moves. One very slow call does
 * that alone, many not so slow ones do it together, and a few in an hour do not. Shorter calls are work of the
 * processor, however many, and so is what a call's bytes take to be copied.
 *
 * A call also seems slow when another process had the processor meanwhile, and then the pool would only make it
 * worse. So what this thread stood ready and did not run (`runDelayMs`) is taken off the sum.
 *
 * **Coming back.** Calls on the pool are measured too, with the way there and back, so by a larger limit. After
 * a rest and a row of calls within it, one call is made at once. Where it is slow, or the kind moves away again
 * soon, the next rest is twice as long, up to a limit.
 *
 * Costs two readings of the clock a call (some 45 ns each) and one file of /proc per window.
 */

import { readFileSync } from 'node:fs';
import { type Clock, LIMITS, MIB, systemClock } from '../base/index.ts';

const COPY_MS_PER_BYTE = LIMITS.paceCopyMsPerMib / MIB;

/** Time as a pace sees it; injected so that tests decide it. */
export interface PaceTiming {
  readonly clock: Pick<Clock, 'monotonicMs'>;
  /** For how long, since any start, the calling thread was ready to run and had no processor. */
  readonly runDelayMs: () => number;
}

export class Pace {
  readonly #clock: PaceTiming['clock'];
  readonly #runDelayMs: () => number;
  #isPooled = false;

  /** While calls are made at once. */
  #windowEndsMs = Number.NEGATIVE_INFINITY;
  #slowMs = 0;
  #runDelayBeforeMs = 0;
  #cameBackMs = Number.NEGATIVE_INFINITY;

  /** While they run on the pool. */
  #restMs: number = LIMITS.paceRestMsMin;
  #restEndsMs = 0;
  #fastCount = 0;

  constructor(timing: PaceTiming = SYSTEM_TIMING) {
    this.#clock = timing.clock;
    this.#runDelayMs = timing.runDelayMs;
  }

  get isPooled(): boolean {
    return this.#isPooled;
  }

  /** Whether the next call is to be made at once. It is then: `began`, the call, `ended`, in one breath. */
  mayBlock(): boolean {
    if (!this.#isPooled) return true;
    return this.#fastCount >= LIMITS.paceFastCountMin && this.#clock.monotonicMs() >= this.#restEndsMs;
  }

  /** A call is about to be made at once. @returns what `ended` wants. */
  began(): number {
    const nowMs = this.#clock.monotonicMs();
    if (nowMs >= this.#windowEndsMs) this.#openWindow(nowMs);
    return nowMs;
  }

  /** The call is over, whether it succeeded or failed. @param lengthBytes what it was to copy. */
  ended(beganMs: number, lengthBytes: number): void {
    const nowMs = this.#clock.monotonicMs();
    const waitedMs = nowMs - beganMs - lengthBytes * COPY_MS_PER_BYTE;
    if (waitedMs >= LIMITS.paceSlowCallMs) this.#noteSlow(nowMs, waitedMs);
    else if (this.#isPooled) this.#comeBack(nowMs);
  }

  /** A call on the pool is about to begin. @returns what `pooledEnded` wants. */
  pooledBegan(): number {
    return this.#clock.monotonicMs();
  }

  pooledEnded(beganMs: number, lengthBytes: number): void {
    const waitedMs = this.#clock.monotonicMs() - beganMs - lengthBytes * COPY_MS_PER_BYTE;
    this.#fastCount = waitedMs >= LIMITS.pacePooledSlowMs ? 0 : this.#fastCount + 1;
  }

  #openWindow(nowMs: number): void {
    this.#windowEndsMs = nowMs + LIMITS.paceWindowMs;
    this.#slowMs = 0;
    this.#runDelayBeforeMs = this.#runDelayMs();
  }

  #noteSlow(nowMs: number, waitedMs: number): void {
    if (this.#isPooled) {
      this.#rest(nowMs, this.#restMs * 2);
      return;
    }
    this.#slowMs += waitedMs;
    const delayedMs = this.#runDelayMs() - this.#runDelayBeforeMs;
    if (this.#slowMs - delayedMs < LIMITS.paceBlockedMsMax) return;
    this.#isPooled = true;
    const wasSoon = nowMs - this.#cameBackMs < this.#restMs;
    this.#rest(nowMs, wasSoon ? this.#restMs * 2 : LIMITS.paceRestMsMin);
  }

  #rest(nowMs: number, restMs: number): void {
    this.#restMs = Math.min(restMs, LIMITS.paceRestMsMax);
    this.#restEndsMs = nowMs + this.#restMs;
    this.#fastCount = 0;
  }

  #comeBack(nowMs: number): void {
    this.#isPooled = false;
    this.#cameBackMs = nowMs;
    this.#windowEndsMs = nowMs;
  }
}

/**
 * The time that this thread waited for a processor, from the scheduler (Linux, `schedstat` of the thread); 0
 * always where the kernel does not count it.
 */
function threadRunDelayMs(): number {
  if (!hasSchedulerFile) return 0;
  try {
    const nanoseconds = Number(readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')[1]);
    if (Number.isFinite(nanoseconds)) return nanoseconds / 1e6;
  } catch {
    // No such file: an older kernel, or no /proc.
  }
  hasSchedulerFile = false;
  return 0;
}

let hasSchedulerFile = true;

const SYSTEM_TIMING: PaceTiming = { clock: systemClock, runDelayMs: threadRunDelayMs };
