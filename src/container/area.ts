/**
 * The areas an intermediate container is made of: memory first, then files or devices.
 *
 * An area is a row of slots of one track each. Nothing in it need survive the process: what it holds is
 * needed only while the session runs (DESIGN section 4), so nothing here is ever synced.
 */

import { assert, type MaybePromise } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';

export interface ContainerArea {
  readonly description: string;
  readonly slotCount: number;
  /** Whether content comes back without waiting; such content is drained newest first (DESIGN section 4). */
  readonly isMemory: boolean;
  /** Copies `content` into the slot; `content` stays the caller's. */
  put(slot: number, content: Buffer): MaybePromise<void>;
  /** The slot's content; the buffer is the caller's until the slot is freed. */
  get(slot: number): MaybePromise<Buffer>;
  /** The slot's content is no longer needed. */
  free(slot: number): void;
  close(): Promise<void>;
}

/** Slots in memory, allocated when they are first used. */
export class MemoryArea implements ContainerArea {
  readonly description = 'memory';
  readonly isMemory = true;
  readonly slotCount: number;
  readonly #contents = new Map<number, Buffer>();

  constructor(options: { readonly sizeBytes: number; readonly trackSizeBytes: number }) {
    this.slotCount = Math.floor(options.sizeBytes / options.trackSizeBytes);
  }

  put(slot: number, content: Buffer): void {
    this.#contents.set(slot, Buffer.from(content));
  }

  get(slot: number): Buffer {
    const content = this.#contents.get(slot);
    assert(content !== undefined, `Slot ${slot} of the memory area is empty`);
    return content;
  }

  free(slot: number): void {
    this.#contents.delete(slot);
  }

  async close(): Promise<void> {
    this.#contents.clear();
  }
}

/** Slots on a device: a file or a partition of its own. Closing the area closes the device. */
export class DeviceArea implements ContainerArea {
  readonly description: string;
  readonly isMemory = false;
  readonly slotCount: number;
  readonly #device: BlockDevice;
  readonly #trackSizeBytes: number;

  constructor(options: { readonly device: BlockDevice; readonly trackSizeBytes: number }) {
    this.#device = options.device;
    this.#trackSizeBytes = options.trackSizeBytes;
    this.description = options.device.description;
    this.slotCount = Math.floor(options.device.sizeBytes / options.trackSizeBytes);
  }

  put(slot: number, content: Buffer): MaybePromise<void> {
    return this.#device.write(content, slot * this.#trackSizeBytes);
  }

  async get(slot: number): Promise<Buffer> {
    const content = Buffer.alloc(this.#trackSizeBytes);
    await this.#device.read(content, slot * this.#trackSizeBytes);
    return content;
  }

  free(): void {
    // The slot is simply written again.
  }

  close(): Promise<void> {
    return this.#device.close();
  }
}
