/**
 * Two devices that get every change: a change has finished when both have it. Reads are the primary's.
 *
 * A mirror that fails a change or a flush is left out from then on, and `onMirrorLost` records it: it no longer equals
 * the primary, and nobody may take it for that. Until that has finished nothing does that may be on the primary alone.
 *
 * What the primary refuses for want of room is taken back from the mirror, so that the two stay equal. Its other failures
 * are the caller's: they may differ in what has failed.
 *
 * Trims become zeroes, so that both read the same afterwards. Overlapping changes must not be in flight at once: the two
 * would see them in different orders.
 */

import { LIMITS, type MaybePromise } from '../base/index.ts';
import {
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  isRefusal,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';

export interface MirroredDeviceOptions {
  readonly primary: BlockDevice;
  readonly mirror: BlockDevice;
  /** False where the primary's flush covers the mirror. */
  readonly flushesMirror?: boolean;
  /** Must have made durable that the mirror is lost when it finishes. Called once, for the first failure. */
  readonly onMirrorLost: (error: unknown) => Promise<void>;
}

export class MirroredDevice implements BlockDevice {
  readonly capabilities: DeviceCapabilities;
  readonly blockSizeBytes: number;
  readonly description: string;
  readonly #options: MirroredDeviceOptions;
  /** From the mirror's first failure on; settles when that is on record. */
  #losing: Promise<void> | undefined;
  #isOnRecord = false;

  constructor(options: MirroredDeviceOptions) {
    const { primary } = options;
    this.#options = options;
    this.description = primary.description;
    this.blockSizeBytes = primary.blockSizeBytes;
    this.capabilities = { ...primary.capabilities, trim: false, fastZero: false };
  }

  get sizeBytes(): number {
    return this.#options.primary.sizeBytes;
  }

  /** Whether the mirror still gets the changes. */
  get isMirroring(): boolean {
    return this.#losing === undefined;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    return this.#options.primary.read(target, offsetBytes);
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.#change(offsetBytes, source.length, (device) => device.write(source, offsetBytes, options));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    return this.#change(offsetBytes, lengthBytes, (device) =>
      device.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.writeZeroes(offsetBytes, lengthBytes, { ...options, mayTrim: true });
  }

  /** Makes every change that had finished before this call durable on both. */
  async flush(): Promise<void> {
    const { flushesMirror = true } = this.#options;
    await this.#both((device) => device.flush(), flushesMirror);
  }

  /** Flushes the mirror alone; its failure loses the mirror and nothing else. */
  async flushMirror(): Promise<void> {
    await this.onMirror((device) => device.flush());
  }

  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    return this.#options.primary.extents(offsetBytes, lengthBytes);
  }

  /** Closes the primary; the mirror is its owner's. */
  close(): Promise<void> {
    return this.#options.primary.close();
  }

  /**
   * Does something to the mirror alone, if there still is one. Its failure loses the mirror, which is on record then.
   *
   * @throws what recording the loss throws.
   */
  async onMirror(perform: (mirror: BlockDevice) => MaybePromise<void>): Promise<void> {
    const { mirror, onMirrorLost } = this.#options;
    if (this.#losing === undefined) {
      try {
        await perform(mirror);
      } catch (error) {
        this.#losing ??= onMirrorLost(error).then(() => {
          this.#isOnRecord = true;
        });
      }
    }
    await this.#losing;
  }

  #change(
    offsetBytes: number,
    lengthBytes: number,
    perform: (device: BlockDevice) => MaybePromise<void>,
  ): MaybePromise<void> {
    if (this.#isOnRecord) return perform(this.#options.primary);
    return this.#changeBoth(offsetBytes, lengthBytes, perform);
  }

  async #changeBoth(
    offsetBytes: number,
    lengthBytes: number,
    perform: (device: BlockDevice) => MaybePromise<void>,
  ): Promise<void> {
    try {
      await this.#both(perform, true);
    } catch (error) {
      if (isRefusal(error)) await this.#makeEqual(offsetBytes, lengthBytes);
      throw error;
    }
  }

  /** Nobody changes the range meanwhile. */
  async #makeEqual(offsetBytes: number, lengthBytes: number): Promise<void> {
    const { primary } = this.#options;
    const endBytes = offsetBytes + lengthBytes;
    await this.onMirror(async (mirror) => {
      for (let at = offsetBytes; at < endBytes; at += LIMITS.fillRunBytesMax) {
        const content = Buffer.allocUnsafe(Math.min(LIMITS.fillRunBytesMax, endBytes - at));
        await primary.read(content, at);
        await mirror.write(content, at);
      }
    });
  }

  async #both(perform: (device: BlockDevice) => MaybePromise<void>, isMirrors: boolean): Promise<void> {
    const { primary } = this.#options;
    const onMirror = isMirrors ? this.onMirror(perform) : this.#losing;
    // Both must have ended before the buffer is the caller's again.
    const [done] = await Promise.allSettled([(async () => perform(primary))(), onMirror]);
    if (done.status === 'rejected') throw done.reason;
    // The mirror may have failed somebody else meanwhile.
    await onMirror;
    await this.#losing;
  }
}
