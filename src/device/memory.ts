/**
 * A device in memory, for tests, scratch volumes and measuring what the layers above cost.
 *
 * Sparse: chunks of 64 KiB exist once something was written to them, and go away when the whole chunk is trimmed
 * or zeroed. Every call finishes at once. Nothing is durable; a flush succeeds and does nothing.
 */

import { assert, isPowerOfTwo, KIB, LIMITS } from '../base/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type ZeroOptions,
} from './block-device.ts';

const CHUNK_BYTES = 64 * KIB;

export interface MemoryDeviceOptions {
  /** A multiple of the block size. */
  readonly sizeBytes: number;
  /** A power of two, from 512 to 64 KiB; 512 where left out. */
  readonly blockSizeBytes?: number;
  readonly readOnly?: boolean;
  readonly description?: string;
}

/** A part of one chunk that a range covers. */
interface Slice {
  readonly chunk: number;
  /** Where it starts in the chunk, and in the range. */
  readonly inChunk: number;
  readonly inRange: number;
  readonly lengthBytes: number;
}

export class MemoryDevice implements BlockDevice {
  sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly #chunks = new Map<number, Buffer>();

  constructor(options: MemoryDeviceOptions) {
    this.sizeBytes = options.sizeBytes;
    this.blockSizeBytes = options.blockSizeBytes ?? LIMITS.blockSizeBytesMin;
    this.description = options.description ?? 'memory';
    this.capabilities = {
      readOnly: options.readOnly === true,
      trim: options.readOnly !== true,
      extents: true,
      fastZero: options.readOnly !== true,
    };
    assert(
      isPowerOfTwo(this.blockSizeBytes) &&
        this.blockSizeBytes >= LIMITS.blockSizeBytesMin &&
        this.blockSizeBytes <= CHUNK_BYTES,
      `Block size ${this.blockSizeBytes} is not a power of two from 512 to ${CHUNK_BYTES}`,
    );
    assert(
      Number.isSafeInteger(this.sizeBytes) &&
        this.sizeBytes > 0 &&
        this.sizeBytes % this.blockSizeBytes === 0,
      `Device size ${this.sizeBytes} is not a positive multiple of ${this.blockSizeBytes}`,
    );
  }

  /** Memory in use, for tests. */
  get allocatedBytes(): number {
    return this.#chunks.size * CHUNK_BYTES;
  }

  read(target: Buffer, offsetBytes: number): void {
    assertRange(this, offsetBytes, target.length);
    for (const slice of slices(offsetBytes, target.length)) {
      const part = target.subarray(slice.inRange, slice.inRange + slice.lengthBytes);
      const chunk = this.#chunks.get(slice.chunk);
      if (chunk === undefined) part.fill(0);
      else chunk.copy(part, 0, slice.inChunk, slice.inChunk + slice.lengthBytes);
    }
  }

  write(source: Buffer, offsetBytes: number): void {
    this.#assertWritable(offsetBytes, source.length);
    for (const slice of slices(offsetBytes, source.length)) {
      source.copy(
        this.#allocate(slice.chunk),
        slice.inChunk,
        slice.inRange,
        slice.inRange + slice.lengthBytes,
      );
    }
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): void {
    this.#assertWritable(offsetBytes, lengthBytes);
    assertZeroOptions(this, options);
    const keep = options?.mayTrim === false;
    for (const slice of slices(offsetBytes, lengthBytes)) {
      if (!keep && slice.lengthBytes === CHUNK_BYTES) this.#chunks.delete(slice.chunk);
      const chunk = keep ? this.#allocate(slice.chunk) : this.#chunks.get(slice.chunk);
      chunk?.fill(0, slice.inChunk, slice.inChunk + slice.lengthBytes);
    }
  }

  trim(offsetBytes: number, lengthBytes: number): void {
    this.writeZeroes(offsetBytes, lengthBytes);
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const extents: DeviceExtent[] = [];
    for (const slice of slices(offsetBytes, lengthBytes)) {
      const hole = !this.#chunks.has(slice.chunk);
      const last = extents.at(-1);
      if (last?.hole === hole) {
        extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + slice.lengthBytes };
      } else {
        const start = offsetBytes + slice.inRange;
        extents.push({ offsetBytes: start, lengthBytes: slice.lengthBytes, hole, zero: hole });
      }
    }
    return Promise.resolve(extents);
  }

  extend(sizeBytes: number): Promise<void> {
    assert(
      sizeBytes % this.blockSizeBytes === 0,
      `Device size ${sizeBytes} is not a multiple of the block size`,
    );
    this.sizeBytes = Math.max(this.sizeBytes, sizeBytes);
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #allocate(index: number): Buffer {
    const there = this.#chunks.get(index);
    if (there !== undefined) return there;
    const chunk = Buffer.alloc(CHUNK_BYTES);
    this.#chunks.set(index, chunk);
    return chunk;
  }

  #assertWritable(offsetBytes: number, lengthBytes: number): void {
    assertRange(this, offsetBytes, lengthBytes);
    assert(!this.capabilities.readOnly, `Write to ${this.description}, which is open read-only`);
  }
}

/** A range cut at chunk boundaries. */
function* slices(offsetBytes: number, lengthBytes: number): Generator<Slice> {
  for (let inRange = 0; inRange < lengthBytes;) {
    const at = offsetBytes + inRange;
    const inChunk = at % CHUNK_BYTES;
    const length = Math.min(CHUNK_BYTES - inChunk, lengthBytes - inRange);
    yield { chunk: (at - inChunk) / CHUNK_BYTES, inChunk, inRange, lengthBytes: length };
    inRange += length;
  }
}
