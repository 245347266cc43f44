/**
 * A regular file, a block device, or one piece of either, as a device.
 *
 * Small reads are taken from the page cache at once; what is not there goes to the thread pool, so that a cold
 * read never blocks the loop. Where the filesystem cannot say what is there (tmpfs, network filesystems, FUSE),
 * small reads are plain `read` calls, and small writes always are plain `write` calls, into the page cache.
 * Those two may wait, so `pace.ts` measures them, reads and writes apart, and moves what turned slow to the
 * pool until it is fast again. Large requests run on the pool, where copying uses other cores. Zeroes and trims
 * become holes where the filesystem has them and written zeroes where not.
 *
 * A flush is one fdatasync under the name given at open, shared as `shared-flush.ts` says; `fua` is a write and
 * a flush. Once a flush has failed, all later ones of this open device fail.
 *
 * Buffered I/O only: the page cache serves requests of any alignment, and is shared with whoever else reads the
 * file. Does not lock unless asked to, and does not notice a file that someone else shortens until a read ends
 * early.
 */

import { close as closeCallback, readSync, type Stats, writeSync } from 'node:fs';
import { promisify } from 'node:util';
import {
  beginWriteBack,
  endWriteBack,
  assert,
  hasSparseFiles,
  LIMITS,
  type LockMode,
  type MaybePromise,
  NO_WAIT,
  punchHole,
  readNoWait,
  seekData,
  seekHole,
  shareRange,
  syncFile,
  type SyncName,
  zeroRange,
} from '../base/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
import { DeviceError, deviceErrorFrom } from './errors.ts';
import { extendFile, lockPiece, measure, openPath, type Piece } from './file-open.ts';
import { canPunchHoles } from './hole-support.ts';
import { Pace, type PaceTiming } from './pace.ts';
import { SharedFlush } from './shared-flush.ts';
import { poolRead, poolWrite } from './thread-pool.ts';

const closeFile = promisify(closeCallback);

export interface FileDeviceOptions {
  readonly path: string;
  readonly readOnly: boolean;
  /** The name of this device's syncs. */
  readonly syncName: SyncName;
  /** Where the piece starts; 0 where left out. */
  readonly offsetBytes?: number | undefined;
  /** How long the piece is; up to the end where left out. */
  readonly lengthBytes?: number | undefined;
  /** Requests up to this size are tried at once; `LIMITS.smallIoBytesMax` where left out. */
  readonly smallBytesMax?: number | undefined;
  /** Locks the piece against other users of Cowbell while it is open; needs koffi. */
  readonly lock?: LockMode | undefined;
  /** Refuses a block device that is mounted or otherwise in use by the kernel. No meaning for files. */
  readonly exclusive?: boolean | undefined;
  /** Time as `pace.ts` sees it, for tests. */
  readonly timing?: PaceTiming | undefined;
}

/**
 * Opens an existing file or block device.
 *
 * @throws {DeviceError} 'not-found', 'not-a-device', 'denied', 'read-only', 'busy', 'too-small', 'unaligned'
 *   (the size must be a multiple of 512 bytes, and so must the piece), 'io'.
 */
export async function openFileDevice(options: FileDeviceOptions): Promise<BlockDevice> {
  assert(
    options.lock !== 'exclusive' || !options.readOnly,
    'An exclusive lock needs a device open for writing',
  );
  const { descriptor, stats } = await openPath(options);
  try {
    const piece = measure(descriptor, stats, options);
    if (options.lock !== undefined) lockPiece(descriptor, piece, options.path, options.lock);
    const fastZero = !options.readOnly && (await canPunchHoles(options.path, stats));
    return new FileDevice(descriptor, stats, piece, { ...options, fastZero });
  } catch (error) {
    await closeFile(descriptor);
    throw error;
  }
}

class FileDevice implements BlockDevice {
  readonly blockSizeBytes: number = LIMITS.blockSizeBytesMin;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly #descriptor: number;
  readonly #options: FileDeviceOptions;
  #sizeBytes: number;
  /** Where the piece starts in the file. */
  readonly #startBytes: number;
  readonly #smallBytesMax: number;
  readonly #flush: SharedFlush;
  readonly #readPace: Pace;
  readonly #writePace: Pace;
  /** Until the filesystem says that it has no reads that do not wait. */
  #hasNoWait = true;

  constructor(
    descriptor: number,
    stats: Stats,
    piece: Piece,
    options: FileDeviceOptions & { readonly fastZero: boolean },
  ) {
    this.#options = options;
    this.#sizeBytes = piece.lengthBytes;
    this.description = piece.description;
    this.capabilities = {
      readOnly: options.readOnly,
      trim: !options.readOnly,
      extents: stats.isFile() && hasSparseFiles(),
      fastZero: options.fastZero,
    };
    this.#descriptor = descriptor;
    this.#startBytes = piece.offsetBytes;
    this.#smallBytesMax = options.smallBytesMax ?? LIMITS.smallIoBytesMax;
    this.#flush = new SharedFlush(() => syncFile(options.syncName, descriptor, options.path));
    this.#readPace = new Pace(options.timing);
    this.#writePace = new Pace(options.timing);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    if (target.length > this.#smallBytesMax) return this.#readOnPool(target, offsetBytes, 0);
    if (this.#hasNoWait) {
      const count = this.#readNoWait(target, offsetBytes);
      if (count === target.length) return undefined;
      if (count !== NO_WAIT.unsupported) return this.#readOnPool(target, offsetBytes, Math.max(count, 0));
      this.#hasNoWait = false;
    }
    if (!this.#readPace.mayBlock()) return this.#readOnPool(target, offsetBytes, 0, this.#readPace);
    const count = this.#readAtOnce(target, offsetBytes);
    // A short count is no error: the rest fails, or comes, by itself.
    return count === target.length ? undefined : this.#readOnPool(target, offsetBytes, count);
  }

  #readNoWait(target: Buffer, offsetBytes: number): number {
    try {
      return readNoWait(this.#descriptor, target, this.#startBytes + offsetBytes);
    } catch (error) {
      throw this.#failed('Read', offsetBytes, target.length, error);
    }
  }

  #readAtOnce(target: Buffer, offsetBytes: number): number {
    const beganMs = this.#readPace.began();
    try {
      return readSync(this.#descriptor, target, 0, target.length, this.#startBytes + offsetBytes);
    } catch (error) {
      throw this.#failed('Read', offsetBytes, target.length, error);
    } finally {
      this.#readPace.ended(beganMs, target.length);
    }
  }

  /** Reads what is missing after the first `done` bytes. Small reads are measured by their pace. */
  async #readOnPool(target: Buffer, offsetBytes: number, done: number, pace?: Pace): Promise<void> {
    let at = done;
    try {
      while (at < target.length) {
        const position = this.#startBytes + offsetBytes + at;
        const count = await poolRead(this.#descriptor, target.subarray(at), position, pace);
        if (count === 0) throw new Error(`the file ends at ${position} bytes`);
        at += count;
      }
    } catch (error) {
      throw this.#failed('Read', offsetBytes, target.length, error);
    }
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    this.#assertWritable(offsetBytes, source.length);
    if (source.length > this.#smallBytesMax) return this.#writeOnPool(source, offsetBytes, options);
    const pace = this.#writePace;
    if (!pace.mayBlock()) return this.#writeOnPool(source, offsetBytes, options, pace);
    const beganMs = pace.began();
    try {
      // A short count is no error: the rest fails, or goes through, by itself.
      for (let at = 0; at < source.length;) {
        const position = this.#startBytes + offsetBytes + at;
        at += writeSync(this.#descriptor, source, at, source.length - at, position);
      }
    } catch (error) {
      throw this.#failed('Write', offsetBytes, source.length, error);
    } finally {
      pace.ended(beganMs, source.length);
    }
    return options?.fua === true ? this.flush() : undefined;
  }

  /** Small writes are measured by their pace. */
  async #writeOnPool(
    source: Buffer,
    offsetBytes: number,
    options?: WriteOptions,
    pace?: Pace,
  ): Promise<void> {
    try {
      for (let at = 0; at < source.length;) {
        const position = this.#startBytes + offsetBytes + at;
        at += await poolWrite(this.#descriptor, source.subarray(at), position, pace);
      }
    } catch (error) {
      throw this.#failed('Write', offsetBytes, source.length, error);
    }
    if (options?.fua === true) await this.flush();
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): Promise<void> {
    this.#assertWritable(offsetBytes, lengthBytes);
    assertZeroOptions(this, options);
    try {
      const clear = options?.mayTrim === false ? zeroRange : punchHole;
      const done = await clear(this.#descriptor, this.#startBytes + offsetBytes, lengthBytes);
      if (!done && options?.fast === true) throw this.#notFast(offsetBytes, lengthBytes);
      if (!done) await this.#writeOutZeroes(offsetBytes, lengthBytes);
    } catch (error) {
      throw this.#failed('Zeroing', offsetBytes, lengthBytes, error);
    }
    if (options?.fua === true) await this.flush();
  }

  async trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): Promise<void> {
    await this.writeZeroes(offsetBytes, lengthBytes, { fua: options?.fua === true, mayTrim: true });
  }

  flush(): Promise<void> {
    return this.#flush.flush().catch((error: unknown) => {
      throw deviceErrorFrom('Flush', this.description, error, 'flush-failed');
    });
  }

  beginWriteBack(offsetBytes: number, lengthBytes: number): void {
    this.#assertWritable(offsetBytes, lengthBytes);
    this.#writeBack(beginWriteBack, offsetBytes, lengthBytes);
  }

  endWriteBack(offsetBytes: number, lengthBytes: number): void {
    this.#assertWritable(offsetBytes, lengthBytes);
    this.#writeBack(endWriteBack, offsetBytes, lengthBytes);
  }

  #writeBack(perform: typeof beginWriteBack, offsetBytes: number, lengthBytes: number): void {
    try {
      // A system that cannot is none the worse: the flush does it all.
      perform(this.#descriptor, this.#startBytes + offsetBytes, lengthBytes);
    } catch (error) {
      throw this.#failed('Writing back', offsetBytes, lengthBytes, error);
    }
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const extents: DeviceExtent[] = [];
    let rounds = 0;
    const end = this.#startBytes + offsetBytes + lengthBytes;
    try {
      for (let at = this.#startBytes + offsetBytes; at < end;) {
        const data = Math.min(seekData(this.#descriptor, at) ?? end, end);
        // Writers may be at work: whatever the file says next, the runs go forward and leave no gap.
        const hole = data === end ? end : Math.min(seekHole(this.#descriptor, data) ?? end, end);
        if (data > at) extents.push(this.#extent(at, data, true));
        if (hole > data) extents.push(this.#extent(data, hole, false));
        assert(hole > at, `Extents of ${this.description} do not advance from ${at}`);
        at = hole;
        rounds += 1;
        if (rounds % ROUNDS_PER_TURN === 0) await nextTurn();
      }
    } catch (error) {
      throw this.#failed('Asking for extents', offsetBytes, lengthBytes, error);
    }
    return extents;
  }

  #extent(start: number, end: number, hole: boolean): DeviceExtent {
    return { offsetBytes: start - this.#startBytes, lengthBytes: end - start, hole, zero: hole };
  }

  async share(target: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<boolean> {
    assertRange(this, offsetBytes, lengthBytes);
    if (!(target instanceof FileDevice)) return false;
    target.#assertWritable(offsetBytes, lengthBytes);
    try {
      return await shareRange(this.#descriptor, target.#descriptor, {
        sourceOffsetBytes: this.#startBytes + offsetBytes,
        targetOffsetBytes: target.#startBytes + offsetBytes,
        lengthBytes,
      });
    } catch (error) {
      throw this.#failed(`Sharing with ${target.description}`, offsetBytes, lengthBytes, error);
    }
  }

  async extend(sizeBytes: number): Promise<void> {
    const { lengthBytes, lock, path } = this.#options;
    // A piece is as long as it was said to be.
    if (sizeBytes <= this.#sizeBytes || lengthBytes !== undefined) return;
    assert(!this.capabilities.readOnly, `Extension of ${this.description}, which is open read-only`);
    const addedBytes = sizeBytes - this.#sizeBytes;
    const added = { offsetBytes: this.#startBytes + this.#sizeBytes, lengthBytes: addedBytes };
    // First: whoever has a lock beyond the end counts on what is, or is not, there.
    if (lock !== undefined)
      lockPiece(this.#descriptor, { ...added, description: this.description }, path, lock);
    const foundBytes = await extendFile(this.#descriptor, this.description, this.#startBytes + sizeBytes);
    this.#sizeBytes = Math.max(this.#sizeBytes, Math.min(sizeBytes, foundBytes - this.#startBytes));
  }

  async close(): Promise<void> {
    try {
      await closeFile(this.#descriptor);
    } catch (error) {
      throw deviceErrorFrom('Close', this.description, error);
    }
  }

  async #writeOutZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    for (let at = 0; at < lengthBytes;) {
      const piece = ZEROES.subarray(0, Math.min(ZEROES.length, lengthBytes - at));
      at += await poolWrite(this.#descriptor, piece, this.#startBytes + offsetBytes + at);
    }
  }

  #assertWritable(offsetBytes: number, lengthBytes: number): void {
    assertRange(this, offsetBytes, lengthBytes);
    // The sentence would take longer than the rest of the way to the system call.
    if (this.capabilities.readOnly) assert(false, `Write to ${this.description}, which is open read-only`);
  }

  /** It was possible at open: a range that does not fit the sectors, or a disk that found out by trying. */
  #notFast(offsetBytes: number, lengthBytes: number): DeviceError {
    return new DeviceError(
      'not-fast',
      `Zeroing of ${lengthBytes} bytes at ${offsetBytes} on ${this.description} would have to write them`,
      { device: this.description },
    );
  }

  #failed(what: string, offsetBytes: number, lengthBytes: number, error: unknown): DeviceError {
    return deviceErrorFrom(`${what} of ${lengthBytes} bytes at ${offsetBytes}`, this.description, error);
  }
}

const ZEROES = Buffer.alloc(LIMITS.zeroWriteBytesMax);

/** After so many runs of data the loop gets a turn, as each takes two system calls. */
const ROUNDS_PER_TURN = 128;

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
