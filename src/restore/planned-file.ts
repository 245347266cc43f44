/**
 * A file that a restore would make, where it is only planned: it has a size and takes nothing.
 *
 * A plan asks a target for its size, its block size and whether it can be written; whatever moves bytes is a
 * programmer error here.
 */

import { assert, LIMITS } from '../base/index.ts';
import type { BlockDevice, DeviceCapabilities, DeviceExtent } from '../device/index.ts';

export class PlannedFile implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes = LIMITS.blockSizeBytesMin;
  readonly capabilities: DeviceCapabilities = { readOnly: false, trim: false, extents: false };
  readonly description: string;

  constructor(path: string, sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    this.description = `new file ${path}`;
  }

  read(): void {
    this.#refuse('read');
  }

  write(): void {
    this.#refuse('written');
  }

  writeZeroes(): void {
    this.#refuse('zeroed');
  }

  trim(): void {
    this.#refuse('trimmed');
  }

  async flush(): Promise<void> {
    this.#refuse('flushed');
  }

  async extents(): Promise<readonly DeviceExtent[]> {
    this.#refuse('looked at');
    return [];
  }

  async close(): Promise<void> {
    // Nothing is open.
  }

  #refuse(action: string): void {
    assert(false, `${this.description} is only planned and cannot be ${action}`);
  }
}
