/**
 * What a volume does for each small write besides writing it, in nanoseconds: a loop of writes to a volume whose home
 * does nothing, and to that home. The best of many short turns, so a busy machine changes little; what a server takes
 * for a request, to compare it with, is in the rows beside it.
 */

import { join } from 'node:path';
import type { BlockDevice } from '../src/device/index.ts';
import { mustCowbell } from '../native-tests/support/process.ts';
import { Volume } from '../src/volume/index.ts';

const WRITE_BYTES = 4096;
const WRITE_COUNT = 20_000;
const TURN_COUNT = 100;

export interface TrackingCost {
  readonly onNs: number;
  readonly offNs: number;
}

export async function measureTrackingCost(directory: string, sizeBytes: number): Promise<TrackingCost> {
  const path = join(directory, 'tracking-cost');
  await mustCowbell(['volume', 'create', path, '--size', String(sizeBytes)]);
  const home = idleDevice(sizeBytes);
  const volume = await Volume.open(path, { registry: { open: async () => home }, activity: 'bench' });
  // Every region is logged and every track marked before the first turn.
  const content = Buffer.alloc(1024 ** 2, 1);
  for (let at = 0; at < sizeBytes; at += content.length) await volume.write(content, at);
  const best = { on: Infinity, off: Infinity };
  for (let turn = 0; turn < TURN_COUNT; turn += 1) {
    best.on = Math.min(best.on, await turnNs(volume));
    best.off = Math.min(best.off, await turnNs(home));
  }
  await volume.close();
  return { onNs: best.on, offNs: best.off };
}

async function turnNs(device: BlockDevice): Promise<number> {
  const source = Buffer.alloc(WRITE_BYTES, 2);
  const blockCount = device.sizeBytes / WRITE_BYTES;
  const offsets = Array.from(
    { length: WRITE_COUNT },
    () => Math.floor(Math.random() * blockCount) * WRITE_BYTES,
  );
  const began = process.hrtime.bigint();
  for (const offset of offsets) {
    const done = device.write(source, offset);
    if (done !== undefined) await done;
  }
  return Number(process.hrtime.bigint() - began) / WRITE_COUNT;
}

function idleDevice(sizeBytes: number): BlockDevice {
  return {
    sizeBytes,
    blockSizeBytes: 512,
    capabilities: { readOnly: false, trim: true, extents: true },
    description: 'a device that does nothing',
    read: () => undefined,
    write: () => undefined,
    writeZeroes: () => undefined,
    trim: () => undefined,
    flush: async () => undefined,
    extents: async () => [],
    close: async () => undefined,
  };
}
