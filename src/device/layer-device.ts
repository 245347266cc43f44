/**
 * A device over one other, which it owns: every call is that one's. What a layer does in a way of its own it overrides.
 *
 * Write-back hints are not passed on: who may give them has opened the device itself.
 */

import type { MaybePromise } from '../base/index.ts';
import type {
  BlockDevice,
  DeviceCapabilities,
  DeviceExtent,
  WriteOptions,
  ZeroOptions,
} from './block-device.ts';

export abstract class LayerDevice implements BlockDevice {
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  protected below: BlockDevice;

  constructor(below: BlockDevice, capabilities = below.capabilities) {
    this.below = below;
    this.blockSizeBytes = below.blockSizeBytes;
    this.capabilities = capabilities;
  }

  get sizeBytes(): number {
    return this.below.sizeBytes;
  }

  get description(): string {
    return this.below.description;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    return this.below.read(target, offsetBytes);
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.below.write(source, offsetBytes, options);
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    return this.below.writeZeroes(offsetBytes, lengthBytes, options);
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.below.trim(offsetBytes, lengthBytes, options);
  }

  flush(): Promise<void> {
    return this.below.flush();
  }

  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    return this.below.extents(offsetBytes, lengthBytes);
  }

  async share(target: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<boolean> {
    return (await this.below.share?.(target, offsetBytes, lengthBytes)) ?? false;
  }

  async extend(sizeBytes: number): Promise<void> {
    await this.below.extend?.(sizeBytes);
  }

  close(): Promise<void> {
    return this.below.close();
  }
}
