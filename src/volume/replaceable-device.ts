/**
 * A home that may be exchanged for another one while it is used: what fails goes on with the next one, and its user hears
 * nothing of it but the time it takes.
 *
 *     a request fails -> replace(error) -> a device -> the request again, there
 *                                       -> it rejects: the request fails with its own error
 *
 * Whatever was in flight ends on the device that it was sent to, and is sent again where that failed. Requests that come
 * while the device is being exchanged wait. A device that has taken over must have everything that was acknowledged: that is
 * what the delta store is for. What failed for want of room, or was refused because it would not be fast, has not failed.
 *
 * It is not exchanged twice: who has lost a second home has a recovery that is cut short.
 */

import type { MaybePromise } from '../base/index.ts';
import {
  type BlockDevice,
  type DeviceExtent,
  isRefusal,
  LayerDevice,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';

export interface ReplaceableDeviceOptions {
  readonly device: BlockDevice;
  /**
   * Called once, for the first failure. The device that it gives is at least as large, has the same block size, and is this
   * one's to close.
   */
  readonly replace: (error: unknown) => Promise<BlockDevice>;
}

export class ReplaceableDevice extends LayerDevice {
  readonly #options: ReplaceableDeviceOptions;
  #replacing: Promise<BlockDevice> | undefined;
  #isReplaced = false;
  #retired: BlockDevice | undefined;

  constructor(options: ReplaceableDeviceOptions) {
    const { device } = options;
    // Of whatever comes next it is not known.
    super(device, { ...device.capabilities, fastZero: false });
    this.#options = options;
  }

  override read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    return this.#perform((device) => device.read(target, offsetBytes));
  }

  override write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.#perform((device) => device.write(source, offsetBytes, options));
  }

  override writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    return this.#perform((device) => device.writeZeroes(offsetBytes, lengthBytes, options));
  }

  override trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.#perform((device) => {
      if (device.capabilities.trim) return device.trim(offsetBytes, lengthBytes, options);
      return device.writeZeroes(offsetBytes, lengthBytes, { ...options, mayTrim: true });
    });
  }

  override async flush(): Promise<void> {
    await this.#perform((device) => device.flush());
  }

  override async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    let extents: readonly DeviceExtent[] = [];
    await this.#perform(async (device) => {
      extents = await device.extents(offsetBytes, lengthBytes);
    });
    return extents;
  }

  /** Exchanges the device before anything has failed: it was seen to be lost. @throws what replacing it throws. */
  async replace(reason: unknown): Promise<void> {
    await this.#replace(reason);
  }

  override async close(): Promise<void> {
    await this.#replacing?.catch(() => undefined);
    // What was in flight on it needed it until now; it has failed, and may fail to close.
    await this.#retired?.close().catch(() => undefined);
    await this.below.close();
  }

  #perform(perform: (device: BlockDevice) => MaybePromise<void>): MaybePromise<void> {
    if (this.#replacing !== undefined && !this.#isReplaced) return this.#onNext(perform, this.#replacing);
    let done: MaybePromise<void>;
    const device = this.below;
    try {
      done = perform(device);
    } catch (error) {
      return this.#failed(error, device, perform);
    }
    return done?.catch((error: unknown) => this.#failed(error, device, perform));
  }

  async #failed(
    error: unknown,
    failed: BlockDevice,
    perform: (device: BlockDevice) => MaybePromise<void>,
  ): Promise<void> {
    if (isRefusal(error) || (this.#isReplaced && failed === this.below)) throw error;
    try {
      await this.#replace(error);
    } catch {
      // Why it could not be replaced was told by who tried; the request has its own reason.
      throw error;
    }
    await perform(this.below);
  }

  async #onNext(
    perform: (device: BlockDevice) => MaybePromise<void>,
    next: Promise<BlockDevice>,
  ): Promise<void> {
    // Where there is none, the old one answers for itself.
    await next.catch(() => undefined);
    await perform(this.below);
  }

  #replace(reason: unknown): Promise<BlockDevice> {
    this.#replacing ??= this.#exchange(reason);
    return this.#replacing;
  }

  async #exchange(reason: unknown): Promise<BlockDevice> {
    const next = await this.#options.replace(reason);
    this.#retired = this.below;
    this.below = next;
    this.#isReplaced = true;
    return next;
  }
}
