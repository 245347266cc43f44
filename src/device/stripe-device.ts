/**
 * Devices that take turns, a stripe each, so that what is read or written in a row keeps all of them busy.
 *
 *     stripe   0   1   2   3   4   5   6 ...
 *     member   0   1   2   0   1   2   0
 *     its row  0   0   0   1   1   1   2
 *
 * Where a byte lies depends on the stripe size and the number of members, not on how large they are: growing moves
 * nothing.
 */

import { assert } from '../base/index.ts';
import type { BlockDevice } from './block-device.ts';
import { assertBlocks, extendTo, SpreadDevice, type SpreadPart, tooSmall } from './spread-device.ts';

export interface StripeOptions {
  /** At least one; closed with this device. */
  readonly devices: readonly BlockDevice[];
  /** A multiple of every member's block size. */
  readonly stripeBytes: number;
  /** Of the whole. */
  readonly sizeBytes: number;
}

export class StripeDevice extends SpreadDevice {
  readonly #stripeBytes: number;
  #sizeBytes: number;

  /** @throws {DeviceError} 'too-small', 'unaligned' */
  constructor({ devices, stripeBytes, sizeBytes }: StripeOptions) {
    super('stripes', devices);
    assert(stripeBytes > 0 && sizeBytes > 0, `Stripes of ${stripeBytes} of ${sizeBytes} bytes cannot be`);
    assertBlocks(this.description, devices, [stripeBytes, sizeBytes]);
    this.#stripeBytes = stripeBytes;
    this.#sizeBytes = sizeBytes;
    for (const [member, device] of devices.entries()) {
      const wantedBytes = stripeMemberBytes(sizeBytes, stripeBytes, devices.length, member);
      if (device.sizeBytes < wantedBytes) throw tooSmall(device, wantedBytes);
    }
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  protected parts(offsetBytes: number, lengthBytes: number): readonly SpreadPart[] {
    const endBytes = offsetBytes + lengthBytes;
    const count = this.devices.length;
    const parts: SpreadPart[] = [];
    for (let at = offsetBytes; at < endBytes;) {
      const stripe = Math.floor(at / this.#stripeBytes);
      const inStripe = at - stripe * this.#stripeBytes;
      const length = Math.min(this.#stripeBytes - inStripe, endBytes - at);
      const row = Math.floor(stripe / count);
      parts.push({
        member: stripe % count,
        offsetBytes: row * this.#stripeBytes + inStripe,
        lengthBytes: length,
      });
      at += length;
    }
    return parts;
  }

  /** All members grow. @throws what extending them throws. */
  async extend(sizeBytes: number): Promise<void> {
    assert(sizeBytes % this.blockSizeBytes === 0, `Size ${sizeBytes} is no whole number of blocks`);
    if (sizeBytes <= this.#sizeBytes) return;
    for (const [member, device] of this.devices.entries())
      await extendTo(device, stripeMemberBytes(sizeBytes, this.#stripeBytes, this.devices.length, member));
    this.#sizeBytes = sizeBytes;
  }
}

/** How many bytes of a striped device lie on one of its members. */
export function stripeMemberBytes(
  sizeBytes: number,
  stripeBytes: number,
  memberCount: number,
  member: number,
): number {
  const stripeCount = Math.floor(sizeBytes / stripeBytes);
  const whole = Math.floor(stripeCount / memberCount) + (member < stripeCount % memberCount ? 1 : 0);
  const rest = member === stripeCount % memberCount ? sizeBytes % stripeBytes : 0;
  return whole * stripeBytes + rest;
}
