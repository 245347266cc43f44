/**
 * A piece of another device, for adapters that cannot open a part of what a URI names.
 *
 * Passes every call on with its offset moved. Owns the device below: closing the piece closes it.
 */

import { assert, type MaybePromise } from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
import { DeviceError } from './errors.ts';

export class PieceDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly #next: BlockDevice;
  readonly #offsetBytes: number;

  /**
   * @throws {DeviceError} 'too-small' where the piece reaches beyond the end, 'unaligned' where it does not fit
   *   the blocks.
   */
  constructor(next: BlockDevice, offsetBytes: number, lengthBytes: number) {
    assert(offsetBytes >= 0 && lengthBytes > 0, `Piece ${offsetBytes}+${lengthBytes} is empty or negative`);
    this.description = `${next.description}@${offsetBytes}+${lengthBytes}`;
    for (const valueBytes of [offsetBytes, lengthBytes]) {
      if (valueBytes % next.blockSizeBytes === 0) continue;
      throw new DeviceError(
        'unaligned',
        `${this.description} has an offset or size of ${valueBytes} bytes, wanted a multiple of ${next.blockSizeBytes}`,
        { device: this.description, valueBytes, blockSizeBytes: next.blockSizeBytes },
      );
    }
    if (offsetBytes + lengthBytes > next.sizeBytes) {
      const wantedBytes = offsetBytes + lengthBytes;
      throw new DeviceError(
        'too-small',
        `${this.description} ends after ${next.sizeBytes} bytes, wanted at least ${wantedBytes}`,
        { device: this.description, sizeBytes: next.sizeBytes, wantedBytes },
      );
    }
    this.sizeBytes = lengthBytes;
    this.blockSizeBytes = next.blockSizeBytes;
    this.capabilities = next.capabilities;
    this.#next = next;
    this.#offsetBytes = offsetBytes;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    return this.#next.read(target, this.#offsetBytes + offsetBytes);
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    assertRange(this, offsetBytes, source.length);
    return this.#next.write(source, this.#offsetBytes + offsetBytes, options);
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    assertRange(this, offsetBytes, lengthBytes);
    return this.#next.writeZeroes(this.#offsetBytes + offsetBytes, lengthBytes, options);
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    assertRange(this, offsetBytes, lengthBytes);
    return this.#next.trim(this.#offsetBytes + offsetBytes, lengthBytes, options);
  }

  flush(): Promise<void> {
    return this.#next.flush();
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const extents = await this.#next.extents(this.#offsetBytes + offsetBytes, lengthBytes);
    return extents.map((extent) => ({ ...extent, offsetBytes: extent.offsetBytes - this.#offsetBytes }));
  }

  close(): Promise<void> {
    return this.#next.close();
  }
}
