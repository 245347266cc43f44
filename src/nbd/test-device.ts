/**
 * A device for the room's tests: bytes in memory that finish at once, or when the test says so.
 *
 * It asserts every range it is given, so a request that should have been refused ends a test; and it
 * records its calls.
 */

import { assert, type MaybePromise } from '../base/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';

/** A call that waits for the test. */
export interface Held {
  readonly call: string;
  readonly offsetBytes: number;
  readonly options: WriteOptions;
  /** Does the work and finishes the call, with an error where one is given. */
  finish(error?: Error): void;
}

export interface TestDeviceOptions {
  readonly sizeBytes?: number;
  readonly blockSizeBytes?: number;
  readonly readOnly?: boolean;
  readonly trim?: boolean;
  /** Blocks of zeroes are holes; without it everything is data. */
  readonly extents?: boolean;
  /** Whether a call waits for the test; false finishes at once. */
  readonly holds?: (call: string, offsetBytes: number) => boolean;
  /** Called before each call; may throw. */
  readonly before?: (call: string, offsetBytes: number) => void;
}

export class TestDevice implements BlockDevice {
  bytes: Buffer;
  /** A test may let it grow, with `bytes`. */
  sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description = 'test device';
  readonly calls: string[] = [];
  readonly held: Held[] = [];
  readonly #options: TestDeviceOptions;
  #watchers: (() => void)[] = [];

  constructor(options: TestDeviceOptions = {}) {
    this.sizeBytes = options.sizeBytes ?? 1024 * 1024;
    this.blockSizeBytes = options.blockSizeBytes ?? 512;
    const { readOnly = false, trim = true, extents = false } = options;
    this.capabilities = { readOnly, trim, extents, fastZero: trim && !readOnly };
    this.bytes = Buffer.alloc(this.sizeBytes);
    this.#options = options;
  }

  /** Resolves when `count` calls are being held. */
  async whenHeld(count: number): Promise<void> {
    while (this.held.length < count) await this.#nextCall();
  }

  /** Resolves when `count` calls were made in all. */
  async whenCalled(count: number): Promise<void> {
    while (this.calls.length < count) await this.#nextCall();
  }

  /** Finishes the oldest held call. */
  finishNext(error?: Error): void {
    const next = this.held[0];
    assert(next !== undefined, 'No call is held');
    next.finish(error);
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    return this.#call('read', offsetBytes, target.length, {}, () => {
      this.bytes.copy(target, 0, offsetBytes);
    });
  }

  write(source: Buffer, offsetBytes: number, options: WriteOptions = {}): MaybePromise<void> {
    this.#assertChange(offsetBytes, source.length);
    return this.#call('write', offsetBytes, source.length, options, () => {
      source.copy(this.bytes, offsetBytes);
    });
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options: ZeroOptions = {}): MaybePromise<void> {
    this.#assertChange(offsetBytes, lengthBytes);
    assertZeroOptions(this, options);
    const call = options.mayTrim === false ? 'zeroes-no-hole' : 'zeroes';
    return this.#call(call, offsetBytes, lengthBytes, options, () => {
      this.bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
    });
  }

  trim(offsetBytes: number, lengthBytes: number, options: WriteOptions = {}): MaybePromise<void> {
    assert(this.capabilities.trim, 'The device cannot trim');
    this.#assertChange(offsetBytes, lengthBytes);
    return this.#call('trim', offsetBytes, lengthBytes, options, () => {
      this.bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
    });
  }

  async flush(): Promise<void> {
    await this.#call('flush', 0, 0, {}, () => {});
  }

  /** One extent for each block: adjacent ones may be alike. */
  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    await this.#call('extents', offsetBytes, lengthBytes, {}, () => {});
    if (!this.capabilities.extents) return [{ offsetBytes, lengthBytes, hole: false, zero: false }];
    const unitBytes = this.blockSizeBytes;
    return Array.from({ length: lengthBytes / unitBytes }, (_, index) => {
      const at = offsetBytes + index * unitBytes;
      const zero = this.bytes.subarray(at, at + unitBytes).every((byte) => byte === 0);
      return { offsetBytes: at, lengthBytes: unitBytes, hole: zero, zero };
    });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #assertChange(offsetBytes: number, lengthBytes: number): void {
    assert(!this.capabilities.readOnly, 'The device is read-only');
    assertRange(this, offsetBytes, lengthBytes);
  }

  #call(
    call: string,
    offsetBytes: number,
    lengthBytes: number,
    options: WriteOptions,
    work: () => void,
  ): MaybePromise<void> {
    this.calls.push(`${call} ${offsetBytes}+${lengthBytes}${options.fua === true ? ' fua' : ''}`);
    const watchers = this.#watchers;
    this.#watchers = [];
    for (const watcher of watchers) queueMicrotask(watcher);
    this.#options.before?.(call, offsetBytes);
    if (this.#options.holds?.(call, offsetBytes) !== true) return work();
    return new Promise((resolve, reject) => {
      const held: Held = {
        call,
        offsetBytes,
        options,
        finish: (error) => {
          this.held.splice(this.held.indexOf(held), 1);
          if (error !== undefined) {
            reject(error);
            return;
          }
          work();
          resolve();
        },
      };
      this.held.push(held);
    });
  }

  #nextCall(): Promise<void> {
    return new Promise((resolve) => this.#watchers.push(resolve));
  }
}
