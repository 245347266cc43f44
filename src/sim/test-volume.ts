/**
 * Volumes for tests: real ones, in a real directory, whose home is a device that the test can hold, fail and
 * cut the power of.
 *
 * A label such as `3b` stands for a whole track filled with a pattern made from the label, so that a wrong or
 * a stale track names itself (`labelOf`).
 */

import { cpSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert, type Clock, KIB, ManualClock, present, type Timer } from '../base/index.ts';
import { DeviceRegistry, FaultyDevice, MemoryDevice, openFileDevice } from '../device/index.ts';
import { createVolume, Volume } from '../volume/index.ts';

export const TEST_TRACK_BYTES = 4 * KIB;

export interface TestVolume {
  readonly directory: string;
  readonly home: FaultyDevice;
  readonly clock: ManualClock;
  readonly volume: Volume;
  /** Directories of the delta store. */
  readonly deltaPlaces: readonly string[];
  /** Stops cleanly and opens again, on the same home. */
  reopen(): Promise<Volume>;
  /**
   * The process ends at once, and another one opens the volume. What the devices hold is the test's business. Not of delta
   * stores in directories.
   */
  crash(): Promise<Volume>;
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
  /** Members of its delta store; it has none where left out. */
  readonly deltaCount?: number;
  readonly keepLogMs?: number;
  /** Further members of the delta store, by the names that it knows them by, such as `mem:one`. */
  readonly deltaDevices?: ReadonlyMap<string, FaultyDevice>;
  readonly bootId?: () => string | undefined;
}

interface Teardown {
  teardown(body: () => Promise<void>): void;
}

/** Makes and opens a volume; the test's teardown closes and removes it. */
export async function makeTestVolume(t: Teardown, options: TestVolumeOptions): Promise<TestVolume> {
  const parent = await mkdtemp(join(options.cloneOn ?? tmpdir(), 'cowbell-volume-'));
  const directory = join(parent, 'v');
  const clock = new ManualClock();
  const { deltaCount = 0, deltaDevices = new Map<string, FaultyDevice>() } = options;
  const directories = Array.from({ length: deltaCount }, (_, index) => join(parent, `d${index + 1}`));
  const deltaPlaces = [...directories, ...deltaDevices.keys()];
  const home = await makeHome(directory, clock, deltaPlaces, options);
  // The device outlives each opening: closing the volume must not take the test's disk away.
  const files = new DeviceRegistry();
  let life: Life = { isOver: false };
  const registry: Pick<DeviceRegistry, 'open'> = {
    open: async (uri, wish) => {
      const device = uri.endsWith('home.raw') ? home : deltaDevices.get(uri);
      return device === undefined ? files.open(uri, wish) : ofLife(device, life);
    },
  };
  const open = (): Promise<Volume> =>
    Volume.open(test.directory, {
      registry,
      moved: lives > 0,
      clock,
      activity: 'testing',
      ...(options.freezeWaitMsMax === undefined ? {} : { freezeWaitMsMax: options.freezeWaitMsMax }),
      ...(options.timer === undefined ? {} : { timer: options.timer }),
      intentRegionTracks: options.intentRegionTracks ?? 2,
      ...(options.bootId === undefined ? {} : { bootId: options.bootId }),
    });
  const opened = async (): Promise<Volume> => {
    volume = await open();
    return volume;
  };
  let volume: Volume | undefined;
  let lives = 0;
  const test = {
    directory,
    home,
    clock,
    deltaPlaces,
    get volume(): Volume {
      return present(volume, 'The volume was opened');
    },
    reopen: async (): Promise<Volume> => {
      await volume?.close();
      return opened();
    },
    crash: async (): Promise<Volume> => {
      assert(deltaCount === 0, 'What has ended would go on writing into directories');
      lives += 1;
      const next = join(parent, `v${lives}`);
      cpSync(test.directory, next, { recursive: true, filter: (path) => !path.endsWith('.sock') });
      life.isOver = true;
      await volume?.close().catch(() => undefined);
      life = { isOver: false };
      test.directory = next;
      return opened();
    },
  };
  await opened();
  t.teardown(async () => {
    await volume?.close();
    await home.close();
    await rm(parent, { recursive: true, force: true });
  });
  return test;
}

/** Makes the volume. @returns its home. */
async function makeHome(
  directory: string,
  clock: Clock,
  deltaPlaces: readonly string[],
  { cloneOn, trackCount, trackSizeBytes = TEST_TRACK_BYTES, keepLogMs = 0, ...options }: TestVolumeOptions,
): Promise<FaultyDevice> {
  const sizeBytes = options.sizeBytes ?? trackCount * trackSizeBytes;
  const deltas = { places: deltaPlaces.map((place) => ({ place })), keepLogMs };
  await createVolume(directory, {
    sizeBytes,
    trackSizeBytes,
    clock,
    snapshotBy: cloneOn === undefined ? 'copy' : 'clone',
    ...(deltaPlaces.length === 0 ? {} : { deltas }),
  });
  if (cloneOn === undefined) return new FaultyDevice(new MemoryDevice({ sizeBytes }));
  const path = join(directory, 'home.raw');
  return new FaultyDevice(await openFileDevice({ path, readOnly: false, syncName: 'home' }));
}

/** From an opening to its end. */
interface Life {
  isOver: boolean;
}

/** The device as long as the life lasts, and without its own end: `close` does nothing. */
function ofLife(device: FaultyDevice, life: Life): FaultyDevice {
  return new Proxy(device, {
    get: (target, name) => {
      if (name === 'close') return async () => undefined;
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== 'function') return value;
      return life.isOver ? () => Promise.reject(new Error('The process has ended')) : value.bind(target);
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
