/**
 * The gate: what a freeze closes. Writes are inside it only while they mark and write (DESIGN section 4), so
 * it empties as fast as the home writes.
 *
 * Entering is synchronous: a write looks whether the gate is open and enters in one go, with nothing between.
 */

import { assert, type Deferred, deferred, systemTimer } from '../base/index.ts';

export class Gate {
  #insideCount = 0;
  #reopened: Deferred | undefined;
  #emptied: Deferred | undefined;

  get isOpen(): boolean {
    return this.#reopened === undefined;
  }

  enter(): void {
    assert(this.isOpen, 'A write entered a closed gate');
    this.#insideCount += 1;
  }

  leave(): void {
    assert(this.#insideCount > 0, 'A write left the gate without having entered');
    this.#insideCount -= 1;
    if (this.#insideCount === 0) this.#emptied?.resolve();
  }

  /** Finishes when the gate is open; it may have been closed again by then. */
  whenOpen(): Promise<void> {
    return this.#reopened?.promise ?? Promise.resolve();
  }

  /**
   * Closes the gate and waits for those inside.
   *
   * @returns false where they did not leave within `waitMsMax` milliseconds; the gate is then open again.
   */
  async closeAndEmpty(waitMsMax: number, timer = systemTimer): Promise<boolean> {
    assert(this.isOpen, 'The gate is closed already');
    this.#reopened = deferred();
    if (this.#insideCount === 0) return true;
    const emptied = deferred();
    this.#emptied = emptied;
    const timeout = deferred<'timeout'>();
    const stopTimer = timer(waitMsMax, () => timeout.resolve('timeout'));
    const outcome = await Promise.race([emptied.promise, timeout.promise]);
    stopTimer();
    this.#emptied = undefined;
    if (outcome !== 'timeout') return true;
    this.reopen();
    return false;
  }

  reopen(): void {
    assert(this.#reopened !== undefined, 'The gate is open already');
    const reopened = this.#reopened;
    this.#reopened = undefined;
    reopened.resolve();
  }
}
