/**
 * Devices one behind the other, as one (seeds/2, Fig. 2A).
 *
 * Of each device only the given length is used, from its first byte on, so that what is done to one later, such as
 * making it longer, moves nothing. Only the last one grows.
 */

import { assert } from '../base/index.ts';
import type { BlockDevice } from './block-device.ts';
import { assertBlocks, extendTo, SpreadDevice, type SpreadPart, tooSmall } from './spread-device.ts';

export interface ConcatMember {
  readonly device: BlockDevice;
  /** Bytes of it that are used; at most all. */
  readonly lengthBytes: number;
}

export class ConcatDevice extends SpreadDevice {
  /** Where each member begins, and last where the device ends. */
  readonly #starts: number[] = [0];

  /**
   * @param members at least one; closed with this device.
   * @throws {DeviceError} 'too-small' where a device is shorter than the length, 'unaligned'.
   */
  constructor(members: readonly ConcatMember[]) {
    const devices = members.map(({ device }) => device);
    super('concatenation', devices);
    assertBlocks(
      this.description,
      devices,
      members.map(({ lengthBytes }) => lengthBytes),
    );
    for (const { device, lengthBytes } of members) {
      assert(lengthBytes > 0, `Member ${device.description} has no bytes`);
      if (device.sizeBytes < lengthBytes) throw tooSmall(device, lengthBytes);
      this.#starts.push(this.sizeBytes + lengthBytes);
    }
  }

  get sizeBytes(): number {
    return this.#starts.at(-1) ?? 0;
  }

  protected parts(offsetBytes: number, lengthBytes: number): readonly SpreadPart[] {
    const endBytes = offsetBytes + lengthBytes;
    const parts: SpreadPart[] = [];
    // They are few, and most calls lie on one.
    for (let member = 0; member + 1 < this.#starts.length; member += 1) {
      const start = this.#starts[member] ?? 0;
      const from = Math.max(offsetBytes, start);
      const to = Math.min(endBytes, this.#starts[member + 1] ?? 0);
      if (from < to) parts.push({ member, offsetBytes: from - start, lengthBytes: to - from });
    }
    return parts;
  }

  /** The last member grows. @throws what extending it throws. */
  async extend(sizeBytes: number): Promise<void> {
    const last = this.devices.at(-1);
    const start = this.#starts.at(-2);
    assert(last !== undefined && start !== undefined, `${this.description} has no last member`);
    assert(sizeBytes % this.blockSizeBytes === 0, `Size ${sizeBytes} is no whole number of blocks`);
    if (sizeBytes <= this.sizeBytes) return;
    await extendTo(last, sizeBytes - start);
    this.#starts[this.#starts.length - 1] = sizeBytes;
  }
}
