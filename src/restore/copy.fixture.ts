/** What the tests of copying share: a volume and targets in memory that can be held, failed and cut. */

import { type ContainerArea, MemoryArea, type Volume } from '../volume/index.ts';
import { type BlockDevice, DeviceRegistry, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { TEST_TRACK_BYTES, labelOf } from '../sim/index.ts';
import { copyVolume, type CopyOptions, type CopyResult } from './copy.ts';

/** Devices behind `test:<name>`, which outlive each opening. Files are opened as ever. */
export class TestTargets {
  readonly devices = new Map<string, FaultyDevice>();
  readonly registry: { open: DeviceRegistry['open'] };

  constructor() {
    const registry = new DeviceRegistry();
    registry.register('test', async (uri) => withoutClose(this.device(uri.slice('test:'.length))));
    this.registry = { open: (uri, options) => registry.open(uri, options) };
  }

  add(name: string, sizeBytes: number): FaultyDevice {
    const device = new FaultyDevice(new MemoryDevice({ sizeBytes }));
    this.devices.set(name, device);
    return device;
  }

  device(name: string): FaultyDevice {
    const device = this.devices.get(name);
    if (device === undefined) throw new Error(`There is no test target ${name}`);
    return device;
  }
}

/** The device without its end: `close` does nothing. */
function withoutClose(device: FaultyDevice): BlockDevice {
  return new Proxy(device, {
    get: (target, name) => {
      if (name === 'close') return async () => undefined;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

export interface TestCopy extends Partial<Omit<CopyOptions, 'volume' | 'targets'>> {
  readonly targets?: TestTargets;
  /** Tracks of the container; 8 where left out. */
  readonly slots?: number;
}

/** Copies onto the named places, each its own name. */
export function copyTo(
  volume: Volume,
  uris: readonly string[],
  { targets, slots = 8, ...options }: TestCopy = {},
): Promise<CopyResult> {
  const registry = targets?.registry ?? new DeviceRegistry();
  return copyVolume({
    registry,
    isVolumeHome: async () => false,
    openAreas: async (): Promise<ContainerArea[]> =>
      slots === 0
        ? []
        : [new MemoryArea({ sizeBytes: slots * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES })],
    ...options,
    volume,
    targets: uris.map((uri) => ({ name: uri, uri })),
  });
}

export async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.sizeBytes);
  await device.read(content, 0);
  return content;
}

/** The labels of the tracks of some bytes. */
export function labelsIn(content: Buffer): string[] {
  const labels: string[] = [];
  for (let at = 0; at < content.length; at += TEST_TRACK_BYTES)
    labels.push(labelOf(content.subarray(at, at + TEST_TRACK_BYTES)));
  return labels;
}
