/**
 * What devices have in common whose bytes are spread over others: each call is cut into the parts that lie on one
 * member, and the parts are carried out at once.
 *
 * A call that lies on one member is that member's: it finishes at once where the member finishes at once. One that
 * fails has perhaps been carried out in part, on any of its members; it ends when none of them works at it any more.
 *
 * A flush reaches only members that were written to since their last one (`written-flush.ts`).
 *
 * Owns the members: closing this closes them.
 */

import { allFinished, assert, type MaybePromise } from '../base/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
import { DeviceError } from './errors.ts';
import { WrittenFlush } from './written-flush.ts';

/** A run of bytes on one member. */
export interface SpreadPart {
  readonly member: number;
  /** On the member. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

interface Member {
  readonly device: BlockDevice;
  readonly flushes: WrittenFlush;
}

export abstract class SpreadDevice implements BlockDevice {
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  protected readonly devices: readonly BlockDevice[];
  readonly #members: readonly Member[];

  constructor(description: string, devices: readonly BlockDevice[]) {
    assert(devices.length > 0, `A ${description} has no members`);
    this.description = `${description} of ${devices.map((device) => device.description).join(', ')}`;
    this.devices = devices;
    this.#members = devices.map((device) => ({ device, flushes: new WrittenFlush(device) }));
    this.blockSizeBytes = Math.max(...devices.map((device) => device.blockSizeBytes));
    const all = devices.map(({ capabilities }) => capabilities);
    const readOnly = all.some((one) => one.readOnly);
    this.capabilities = {
      readOnly,
      // A member without it is zeroed.
      trim: !readOnly && all.some((one) => one.trim),
      extents: all.some((one) => one.extents),
      fastZero: !readOnly && all.every((one) => one.fastZero === true),
    };
  }

  abstract get sizeBytes(): number;

  /** The parts of a range that lies inside, in the order of its bytes. */
  protected abstract parts(offsetBytes: number, lengthBytes: number): readonly SpreadPart[];

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    return this.#each(offsetBytes, target.length, ({ device }, part, from) =>
      device.read(target.subarray(from, from + part.lengthBytes), part.offsetBytes),
    );
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    this.#assertWritable(offsetBytes, source.length);
    return this.#change(offsetBytes, source.length, (device, part, from) =>
      device.write(source.subarray(from, from + part.lengthBytes), part.offsetBytes, options),
    );
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    this.#assertWritable(offsetBytes, lengthBytes);
    assertZeroOptions(this, options);
    return this.#change(offsetBytes, lengthBytes, (device, part) =>
      device.writeZeroes(part.offsetBytes, part.lengthBytes, options),
    );
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    this.#assertWritable(offsetBytes, lengthBytes);
    assert(this.capabilities.trim, `${this.description} cannot trim`);
    return this.#change(offsetBytes, lengthBytes, (device, part) =>
      device.capabilities.trim
        ? device.trim(part.offsetBytes, part.lengthBytes, options)
        : device.writeZeroes(part.offsetBytes, part.lengthBytes, { ...options, mayTrim: true }),
    );
  }

  async flush(): Promise<void> {
    await allFinished(this.#members.map(({ flushes }) => flushes.flush()));
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const found: DeviceExtent[] = [];
    let at = offsetBytes;
    for (const part of this.parts(offsetBytes, lengthBytes)) {
      const { device } = this.#memberOf(part);
      const shift = at - part.offsetBytes;
      const extents = await device.extents(part.offsetBytes, part.lengthBytes);
      for (const extent of extents) found.push({ ...extent, offsetBytes: extent.offsetBytes + shift });
      at += part.lengthBytes;
    }
    return found;
  }

  async close(): Promise<void> {
    await allFinished(this.#members.map(({ device }) => device.close()));
  }

  #memberOf(part: SpreadPart): Member {
    const member = this.#members[part.member];
    assert(member !== undefined, `${this.description} has no member ${part.member}`);
    return member;
  }

  #change(
    offsetBytes: number,
    lengthBytes: number,
    perform: (device: BlockDevice, part: SpreadPart, fromBytes: number) => MaybePromise<void>,
  ): MaybePromise<void> {
    return this.#each(offsetBytes, lengthBytes, ({ device, flushes }, part, from) => {
      let done: MaybePromise<void>;
      try {
        done = perform(device, part, from);
      } catch (error) {
        flushes.written();
        throw error;
      }
      if (done !== undefined) return done.finally(() => flushes.written());
      flushes.written();
      return undefined;
    });
  }

  /** @param perform is told where in the range the part begins. */
  #each(
    offsetBytes: number,
    lengthBytes: number,
    perform: (member: Member, part: SpreadPart, fromBytes: number) => MaybePromise<void>,
  ): MaybePromise<void> {
    const parts = this.parts(offsetBytes, lengthBytes);
    const [only] = parts;
    if (only !== undefined && parts.length === 1) return perform(this.#memberOf(only), only, 0);
    const running: Promise<void>[] = [];
    let from = 0;
    try {
      for (const part of parts) {
        const done = perform(this.#memberOf(part), part, from);
        if (done !== undefined) running.push(done);
        from += part.lengthBytes;
      }
    } catch (error) {
      if (running.length === 0) throw error;
      // The buffer is the caller's again only when nobody uses it any more.
      return Promise.allSettled(running).then(() => {
        throw error;
      });
    }
    return running.length === 0 ? undefined : allFinished(running).then(() => undefined);
  }

  #assertWritable(offsetBytes: number, lengthBytes: number): void {
    assertRange(this, offsetBytes, lengthBytes);
    assert(!this.capabilities.readOnly, `Write to ${this.description}, which is open read-only`);
  }
}

/**
 * Makes a device as large as is wanted, where it can be.
 *
 * @throws {DeviceError} 'too-small'; what extending throws.
 */
export async function extendTo(device: BlockDevice, sizeBytes: number): Promise<void> {
  if (device.sizeBytes < sizeBytes) await device.extend?.(sizeBytes);
  if (device.sizeBytes >= sizeBytes) return;
  throw tooSmall(device, sizeBytes);
}

/** The error of a member that is smaller than what lies on it. */
export function tooSmall(device: BlockDevice, wantedBytes: number): DeviceError {
  const { description, sizeBytes } = device;
  const message = `${description} has ${sizeBytes} bytes, wanted at least ${wantedBytes}`;
  return new DeviceError('too-small', message, { device: description, sizeBytes, wantedBytes });
}

/** @throws {DeviceError} 'unaligned' where a length is no whole number of blocks of the largest kind. */
export function assertBlocks(
  description: string,
  devices: readonly BlockDevice[],
  lengths: readonly number[],
): void {
  const blockSizeBytes = Math.max(...devices.map((device) => device.blockSizeBytes));
  const valueBytes = lengths.find((bytes) => bytes % blockSizeBytes !== 0);
  if (valueBytes === undefined) return;
  const message = `A part of ${description} has ${valueBytes} bytes, wanted a multiple of ${blockSizeBytes}`;
  throw new DeviceError('unaligned', message, { device: description, valueBytes, blockSizeBytes });
}
