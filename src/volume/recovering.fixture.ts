/** Volumes under recovery for tests: their homes and backup sides are devices that the test can hold, fail and cut. */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ManualClock } from '../base/index.ts';
import { type BlockDevice, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelOf, TEST_TRACK_BYTES } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { type BackupSide, createVolume, Volume } from './index.ts';

export interface Recovering {
  readonly directory: string;
  readonly home: FaultyDevice;
  volume: Volume;
  /** What was told to the operator. */
  readonly warnings: string[];
  /** Stops cleanly and opens again. */
  reopen(): Promise<void>;
  open(): Promise<Volume>;
}

export interface RecoveringOptions {
  readonly side: BackupSide;
  readonly trackCount: number;
  /** Bytes at the end that are no whole track. */
  readonly moreBytes?: number;
  /** The tracks to be brought in; all where left out. */
  readonly missing?: TrackSet;
  readonly home?: FaultyDevice;
  readonly point?: string;
  readonly mirror?: string;
}

interface Teardown {
  teardown(body: () => Promise<void>): void;
}

/** The labels that a device holds, track by track. */
export async function labelsOn(device: Pick<BlockDevice, 'read' | 'sizeBytes'>): Promise<string[]> {
  const labels: string[] = [];
  for (let at = 0; at < device.sizeBytes; at += TEST_TRACK_BYTES) {
    const content = Buffer.alloc(Math.min(TEST_TRACK_BYTES, device.sizeBytes - at));
    await device.read(content, at);
    labels.push(labelOf(content));
  }
  return labels;
}

export async function makeRecovering(t: Teardown, options: RecoveringOptions): Promise<Recovering> {
  const { side, trackCount, moreBytes = 0, point, mirror } = options;
  const parent = await mkdtemp(join(tmpdir(), 'cowbell-recovering-'));
  const directory = join(parent, 'v');
  const clock = new ManualClock();
  const sizeBytes = trackCount * TEST_TRACK_BYTES + moreBytes;
  const home = options.home ?? new FaultyDevice(new MemoryDevice({ sizeBytes }));
  const count = Math.ceil(sizeBytes / TEST_TRACK_BYTES);
  await createVolume(directory, {
    sizeBytes,
    trackSizeBytes: TEST_TRACK_BYTES,
    clock,
    recovery: {
      record: {
        side: { kind: 'device', uri: 'test' },
        startedMs: clock.now(),
        ...(mirror === undefined ? {} : { mirror }),
      },
      tracks: options.missing ?? TrackSet.all(count),
      ...(point === undefined ? {} : { point: { point, createdMs: clock.now() } }),
    },
  });
  const warnings: string[] = [];
  const open = (): Promise<Volume> =>
    Volume.open(directory, {
      registry: { open: async () => unclosed(home) },
      openSide: async () => ({ ...side, close: async () => undefined }),
      clock,
      activity: 'testing',
      intentRegionTracks: 2,
      onWarning: (sentence) => warnings.push(sentence),
    });
  const test: Recovering = {
    directory,
    home,
    warnings,
    open,
    volume: await open(),
    reopen: async () => {
      await test.volume.close();
      test.volume = await open();
    },
  };
  t.teardown(async () => {
    await test.volume.close().catch(() => undefined);
    await rm(parent, { recursive: true, force: true });
  });
  return test;
}

/** The device outlives each opening. */
export function unclosed<Device extends BlockDevice>(device: Device): Device {
  return new Proxy(device, {
    get: (target, name) => {
      if (name === 'close') return async () => undefined;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
