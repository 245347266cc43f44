/**
 * The device port: what every adapter implements, every layer wraps and the NBD server serves.
 *
 * **Maybe-synchronous.** A call that finished returns nothing; a call that must wait returns a promise.
 * Small requests on a warm page cache finish at once, and the server replies in the same loop turn.
 *
 * **Ranges.** Offsets and lengths are bytes, multiples of `blockSizeBytes`, inside `sizeBytes`. The caller
 * checks what came from outside; an adapter asserts. Empty ranges are not sent.
 *
 * **Buffers** belong to the caller. An adapter may use one until its call has finished and not after.
 *
 * **Order.** Two overlapping calls in flight have no order unless the adapter says so. `flush` covers every
 * write that had finished when it was called. `fua` makes one write durable before it finishes.
 */

import { assert, type MaybePromise } from '../base/index.ts';

/** Declared once at open, then asserted on every call. */
export interface DeviceCapabilities {
  readonly readOnly: boolean;
  /** `trim` gives space back. Without it `trim` must not be called. */
  readonly trim: boolean;
  /** `extents` tells holes from data; without it everything is reported as data. */
  readonly extents: boolean;
  /**
   * `writeZeroes` may be asked to be `fast`: zeroes that may become a hole are made without writing them. A
   * single call may still be refused. Absent is false.
   */
  readonly fastZero?: boolean;
}

export interface WriteOptions {
  /** The bytes are durable before the call finishes (force unit access). */
  readonly fua?: boolean;
  /**
   * Called at most once, before the call returns or while its promise is pending, when the write starts to
   * wait for a backup (promise 8); `onResumed` follows when it goes on or fails.
   */
  readonly onWaiting?: () => void;
  readonly onResumed?: () => void;
}

export interface ZeroOptions extends WriteOptions {
  /** The zeroes may become a hole; false keeps the space allocated (NBD_CMD_FLAG_NO_HOLE). */
  readonly mayTrim?: boolean;
  /**
   * Fails soon with the code `not-fast` where the call would take as long as writing the zeroes
   * (NBD_CMD_FLAG_FAST_ZERO); nothing is changed then, as far as the device knew in time. Only with `mayTrim`
   * given as true, on a device that has `fastZero`.
   */
  readonly fast?: boolean;
}

/** A run of bytes of one kind. `zero` bytes read as zeroes; `hole` occupies no space. */
export interface DeviceExtent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly hole: boolean;
  readonly zero: boolean;
}

export interface BlockDevice {
  /** Only `extend` changes it, and never to less. */
  readonly sizeBytes: number;
  /** The smallest unit of a request; a power of two, at least 512. */
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  /** For messages and logs: `file /srv/a.raw`. */
  readonly description: string;

  /** Fills `target` from `offsetBytes`. */
  read(target: Buffer, offsetBytes: number): MaybePromise<void>;
  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void>;
  /** Afterwards the range reads as zeroes. */
  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void>;
  /** The content of the range is no longer needed; adapters of Cowbell make it read as zeroes. */
  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void>;
  /** Makes every write that had finished before this call durable. */
  flush(): Promise<void>;
  /** The kinds of the range's bytes, in order, without gaps, from `offsetBytes` on; adjacent runs may be alike. */
  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]>;
  /**
   * Makes the same range of another device of the same size read as this one's, without copying: both use the
   * blocks until one is written. Absent where it never can be done. Bytes that are written meanwhile may be shared
   * as they were before or after.
   *
   * @returns false where it cannot be done; nothing has changed then.
   */
  share?(target: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<boolean>;
  /**
   * Begins to have a range of what was written made durable, and does not wait for it: for who writes much and will not
   * read it soon. Absent where nothing can be begun.
   */
  beginWriteBack?(offsetBytes: number, lengthBytes: number): void;
  /**
   * Waits, blocking the thread, until what of the range was written is on the disk, and forgets what is kept of it in
   * memory. A flush is needed all the same.
   *
   * @throws what the disk refused: a later flush need not tell of it.
   */
  endWriteBack?(offsetBytes: number, lengthBytes: number): void;
  /**
   * Becomes as large as `sizeBytes`, a multiple of the block size, or stays as it is where it cannot: `sizeBytes` tells.
   * A file is made longer, by zeroes; a block device takes up what it has become since it was opened, with what is
   * there. Durable with the next flush. Absent where a device never can.
   */
  extend?(sizeBytes: number): Promise<void>;
  /** Releases the resources. Does not flush. Nothing may be in flight. */
  close(): Promise<void>;
}

/** The assertion that opens every call of every adapter. */
export function assertRange(device: BlockDevice, offsetBytes: number, lengthBytes: number): void {
  const { sizeBytes, blockSizeBytes } = device;
  const isWhole = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(lengthBytes);
  const isInside = offsetBytes >= 0 && lengthBytes > 0 && offsetBytes + lengthBytes <= sizeBytes;
  const isInBlocks = offsetBytes % blockSizeBytes === 0 && lengthBytes % blockSizeBytes === 0;
  if (isWhole && isInside && isInBlocks) return;
  // Only now: putting the sentence together takes as long as all of the checks.
  const range = `Range ${offsetBytes}+${lengthBytes}`;
  assert(isWhole, `${range} is not whole bytes`);
  assert(isInside, `${range} is outside of ${device.description} (${sizeBytes} bytes)`);
  assert(isInBlocks, `${range} is not a multiple of ${blockSizeBytes} bytes`);
}

/** The assertion of every `writeZeroes`, besides that of its range. */
export function assertZeroOptions(device: BlockDevice, options: ZeroOptions | undefined): void {
  if (options?.fast !== true) return;
  assert(options.mayTrim === true, `Fast zeroes of ${device.description} may not become a hole`);
  assert(device.capabilities.fastZero === true, `${device.description} has no fast zeroes`);
}
