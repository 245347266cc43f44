/**
 * Volumes for tests: real ones, in a real directory, whose home is a device that the test can hold, fail and
 * cut the power of.
 *
 * A label such as `3b` stands for a whole track filled with a pattern made from the label, so that a wrong or
 * a stale track names itself (`labelOf`).
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Clock, KIB, ManualClock, type Timer } from '../base/index.ts';
import { FaultyDevice, MemoryDevice, openFileDevice } from '../device/index.ts';
import { createVolume, Volume } from '../volume/index.ts';

export const TEST_TRACK_BYTES = 4 * KIB;

export interface TestVolume {
  readonly directory: string;
  readonly home: FaultyDevice;
  readonly clock: Clock;
  readonly volume: Volume;
  /** Stops cleanly and opens again, on the same home. */
  reopen(): Promise<Volume>;
}

export interface TestVolumeOptions {
  readonly trackCount: number;
  readonly trackSizeBytes?: number;
  readonly sizeBytes?: number;
  readonly freezeWaitMsMax?: number;
  /** What measures how long a write waits, and a freeze. */
  readonly timer?: Timer;
  /** 2 where left out. */
  readonly intentRegionTracks?: number;
  /** A directory on a filesystem that shares blocks: the volume lies there with its home, its snapshots are by clone. */
  readonly cloneOn?: string;
}

interface Teardown {
  teardown(body: () => Promise<void>): void;
}

/** Makes and opens a volume; the test's teardown closes and removes it. */
export async function makeTestVolume(t: Teardown, options: TestVolumeOptions): Promise<TestVolume> {
  const { cloneOn } = options;
  const parent = await mkdtemp(join(cloneOn ?? tmpdir(), 'cowbell-volume-'));
  const directory = join(parent, 'v');
  const clock = new ManualClock();
  const trackSizeBytes = options.trackSizeBytes ?? TEST_TRACK_BYTES;
  const sizeBytes = options.sizeBytes ?? options.trackCount * trackSizeBytes;
  const snapshotBy = cloneOn === undefined ? 'copy' : 'clone';
  const identity = await createVolume(directory, { sizeBytes, trackSizeBytes, clock, snapshotBy });
  const disk =
    cloneOn === undefined
      ? new MemoryDevice({ sizeBytes })
      : await openFileDevice({ path: identity.home, readOnly: false, syncName: 'home' });
  const home = new FaultyDevice(disk);
  // The device outlives each opening: closing the volume must not take the test's disk away.
  const registry = { open: async () => withoutClose(home) };
  const open = (): Promise<Volume> =>
    Volume.open(directory, {
      registry,
      clock,
      activity: 'testing',
      ...(options.freezeWaitMsMax === undefined ? {} : { freezeWaitMsMax: options.freezeWaitMsMax }),
      ...(options.timer === undefined ? {} : { timer: options.timer }),
      intentRegionTracks: options.intentRegionTracks ?? 2,
    });
  const test = {
    directory,
    home,
    clock,
    volume: await open(),
    reopen: async (): Promise<Volume> => {
      await test.volume.close();
      test.volume = await open();
      return test.volume;
    },
  };
  t.teardown(async () => {
    await test.volume.close();
    await home.close();
    await rm(parent, { recursive: true, force: true });
  });
  return test;
}

/** The device without its end: `close` does nothing. */
function withoutClose(device: FaultyDevice): FaultyDevice {
  return new Proxy(device, {
    get: (target, name) => {
      if (name === 'close') return async () => undefined;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

/** A buffer filled with the label, over and over. */
export function labelled(label: string, lengthBytes = TEST_TRACK_BYTES): Buffer {
  return Buffer.alloc(lengthBytes, `${label};`);
}

/** The label that a buffer is filled with; `0` for zeroes, `-` for anything that no label gives. */
export function labelOf(content: Buffer): string {
  if (content.every((byte) => byte === 0)) return '0';
  const label = content.toString('latin1', 0, Math.max(0, content.indexOf(';')));
  return label !== '' && content.equals(labelled(label, content.length)) ? label : '-';
}

/** The labels of a volume's tracks. */
export async function labelsOf(volume: Volume): Promise<string[]> {
  const { trackCount, trackSizeBytes } = volume.geometry;
  const labels: string[] = [];
  for (let track = 0; track < trackCount; track += 1) {
    const content = Buffer.alloc(volume.geometry.lengthOf({ first: track, count: 1 }));
    await volume.read(content, track * trackSizeBytes);
    labels.push(labelOf(content));
  }
  return labels;
}

/** Writes a label over one whole track. */
export async function writeLabel(volume: Volume, track: number, label: string): Promise<void> {
  await volume.write(labelled(label, volume.geometry.trackSizeBytes), track * volume.geometry.trackSizeBytes);
}
