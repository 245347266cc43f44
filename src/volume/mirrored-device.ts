/**
 * Two devices that get every change: a change has finished when both have it. Reads are the primary's.
 *
 * A mirror that fails a change or a flush is left out from then on, after `onMirrorLost` has finished, which records it:
 * it no longer equals the primary, and nobody may take it for that. The primary's failures are the caller's.
 *
 * Trims become zeroes, so that both read the same afterwards. Overlapping changes must not be in flight at once: the two
 * would see them in different orders.
 */

import type { MaybePromise } from '../base/index.ts';
import type {
  BlockDevice,
  DeviceCapabilities,
  DeviceExtent,
  WriteOptions,
  ZeroOptions,
} from '../device/index.ts';

export interface MirroredDeviceOptions {
  readonly primary: BlockDevice;
  readonly mirror: BlockDevice;
  /** False where the primary's flush covers the mirror. */
  readonly flushesMirror?: boolean;
  /** Must have made durable that the mirror is lost when it finishes; may be called for several failures. */
  readonly onMirrorLost: (error: unknown) => Promise<void>;
}

export class MirroredDevice implements BlockDevice {
  readonly capabilities: DeviceCapabilities;
  readonly blockSizeBytes: number;
  readonly description: string;
  readonly #options: MirroredDeviceOptions;
  #isLost = false;

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
    return !this.#isLost;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    return this.#options.primary.read(target, offsetBytes);
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.#both((device) => device.write(source, offsetBytes, options));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    return this.#both((device) => device.writeZeroes(offsetBytes, lengthBytes, options));
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.writeZeroes(offsetBytes, lengthBytes, { ...options, mayTrim: true });
  }

  /** Makes every change that had finished before this call durable on both. */
  async flush(): Promise<void> {
    const { primary, flushesMirror = true } = this.#options;
    if (flushesMirror) await this.#both((device) => device.flush());
    else await primary.flush();
  }

  /** Flushes the mirror alone; its failure loses the mirror and nothing else. */
  async flushMirror(): Promise<void> {
    if (!this.#isLost) await this.#onMirror((device) => device.flush());
  }

  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    return this.#options.primary.extents(offsetBytes, lengthBytes);
  }

  /** Closes the primary; the mirror is its owner's. */
  close(): Promise<void> {
    return this.#options.primary.close();
  }

  #both(perform: (device: BlockDevice) => MaybePromise<void>): MaybePromise<void> {
    const { primary } = this.#options;
    if (this.#isLost) return perform(primary);
    return this.#onBoth(perform);
  }

  async #onBoth(perform: (device: BlockDevice) => MaybePromise<void>): Promise<void> {
    const { primary } = this.#options;
    const onMirror = this.#onMirror(perform);
    // Both must have ended before the buffer is the caller's again.
    const [done] = await Promise.allSettled([(async () => perform(primary))(), onMirror]);
    if (done.status === 'rejected') throw done.reason;
    await onMirror;
  }

  async #onMirror(perform: (device: BlockDevice) => MaybePromise<void>): Promise<void> {
    const { mirror, onMirrorLost } = this.#options;
    try {
      await perform(mirror);
    } catch (error) {
      this.#isLost = true;
      await onMirrorLost(error);
    }
  }
}
