/**
 * The home with the delta store beside it: every change goes to both, and has finished when both have it (seeds/1,
 * Fig. 4; DESIGN section 4, "Deltas"). A read touches the home only.
 *
 * A change is logged in the order in which it comes here; the write path lets no overlapping ones in together, so home
 * and logs see them in one order. Where all logs are files of this machine, a change is in the log before it goes to the
 * home: when the process is killed then, the log tells of everything that the home has.
 *
 * Closing it closes the home; the log is its owner's.
 *
 * What the home refuses for want of room it has not taken, or in part: its content goes to the log then. Any other failure
 * of the home poisons the volume, and what it left in doubt is settled at the next opening.
 */

import { LIMITS, type MaybePromise } from '../base/index.ts';
import type { DeltaChange } from '../delta/index.ts';
import {
  type BlockDevice,
  isRefusal,
  LayerDevice,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';

/** What of the delta store this needs. */
export interface ChangeLog {
  /** All members are files of this machine. */
  readonly isLocal: boolean;
  append(change: DeltaChange, offsetBytes: number, lengthBytes: number): MaybePromise<void>;
  flush(): Promise<void>;
}

export class LoggedDevice extends LayerDevice {
  readonly #log: ChangeLog;

  constructor(home: BlockDevice, log: ChangeLog) {
    super(home);
    this.#log = log;
  }

  override write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    const logged = this.#log.append({ kind: 'write', source }, offsetBytes, source.length);
    return this.#change(logged, offsetBytes, source.length, () =>
      this.below.write(source, offsetBytes, options),
    );
  }

  override writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    const logged = this.#log.append({ kind: 'zeroes' }, offsetBytes, lengthBytes);
    return this.#change(logged, offsetBytes, lengthBytes, () =>
      this.below.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  /** Afterwards the range reads as zeroes, or as before: the log has zeroes. */
  override trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    const logged = this.#log.append({ kind: 'zeroes' }, offsetBytes, lengthBytes);
    return this.#change(logged, offsetBytes, lengthBytes, () =>
      this.below.trim(offsetBytes, lengthBytes, options),
    );
  }

  /** Makes every change that had finished before this call durable in both. */
  override async flush(): Promise<void> {
    const [home, log] = await Promise.allSettled([this.below.flush(), this.#log.flush()]);
    if (home.status === 'rejected') throw home.reason;
    if (log.status === 'rejected') throw log.reason;
  }

  #change(
    logged: MaybePromise<void>,
    offsetBytes: number,
    lengthBytes: number,
    perform: () => MaybePromise<void>,
  ): MaybePromise<void> {
    if (logged !== undefined) return this.#changeBoth(logged, offsetBytes, lengthBytes, perform);
    let done: MaybePromise<void>;
    try {
      done = perform();
    } catch (error) {
      return this.#refused(error, offsetBytes, lengthBytes);
    }
    return done?.catch((error: unknown) => this.#refused(error, offsetBytes, lengthBytes));
  }

  async #changeBoth(
    logged: Promise<void>,
    offsetBytes: number,
    lengthBytes: number,
    perform: () => MaybePromise<void>,
  ): Promise<void> {
    if (this.#log.isLocal) {
      await logged;
      await this.#change(undefined, offsetBytes, lengthBytes, perform);
      return;
    }
    // Both must have ended before the buffer is the caller's again.
    const both = [logged, (async () => perform())()];
    const [log, home] = await Promise.allSettled(both);
    if (home?.status === 'rejected') await this.#refused(home.reason, offsetBytes, lengthBytes);
    if (log?.status === 'rejected') throw log.reason;
  }

  /** Nobody changes the range meanwhile. @throws the error. */
  async #refused(error: unknown, offsetBytes: number, lengthBytes: number): Promise<never> {
    if (!isRefusal(error)) throw error;
    const end = offsetBytes + lengthBytes;
    for (let at = offsetBytes; at < end; at += LIMITS.fillRunBytesMax) {
      const source = Buffer.allocUnsafe(Math.min(LIMITS.fillRunBytesMax, end - at));
      await this.below.read(source, at);
      await this.#log.append({ kind: 'write', source }, at, source.length);
    }
    throw error;
  }
}
