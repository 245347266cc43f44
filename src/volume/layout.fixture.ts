/**
 * Volumes for tests whose homes have layouts: over devices in memory that the test holds, fails, takes away and cuts the
 * power of. Tests only.
 *
 * Devices are named `mem:<name>`, with a piece where a part is meant, and outlive the volumes; a piece is locked as a
 * file's is.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { KIB, ManualClock } from '../base/index.ts';
import {
  type BlockDevice,
  DeviceError,
  type DeviceRegistry,
  FaultyDevice,
  MemoryDevice,
  parseDeviceAddress,
  PieceDevice,
} from '../device/index.ts';
import { createVolume } from './directory.ts';
import type { LayoutRequest } from './layout.ts';
import { Volume } from './volume.ts';

export const TRACK_BYTES = 4 * KIB;

interface Lock {
  readonly from: number;
  readonly to: number;
  readonly isExclusive: boolean;
}

export class Disk {
  readonly memory: MemoryDevice;
  readonly #onMade: (device: FaultyDevice) => void;
  faulty: FaultyDevice;
  /** It cannot be opened, and what is open fails. */
  isGone = false;
  readonly locks = new Set<Lock>();

  constructor(sizeBytes: number, onMade: (device: FaultyDevice) => void = () => undefined) {
    this.memory = new MemoryDevice({ sizeBytes });
    this.#onMade = onMade;
    this.faulty = this.#make();
  }

  #make(): FaultyDevice {
    const device = new FaultyDevice(this.memory);
    this.#onMade(device);
    return device;
  }

  /** What is open fails from now on, and nothing can be opened. */
  goAway(): void {
    this.isGone = true;
    this.faulty.switchOff();
  }

  /** As it was when it went away, or with what the test has put there. */
  comeBack(): void {
    this.isGone = false;
    this.faulty = this.#make();
  }

  content(offsetBytes = 0, lengthBytes = this.memory.sizeBytes): Buffer {
    const content = Buffer.alloc(lengthBytes);
    this.memory.read(content, offsetBytes);
    return content;
  }
}

export class Disks implements Pick<DeviceRegistry, 'open'> {
  readonly #disks = new Map<string, Disk>();

  add(name: string, sizeBytes: number, onMade?: (device: FaultyDevice) => void): Disk {
    const disk = new Disk(sizeBytes, onMade);
    this.#disks.set(name, disk);
    return disk;
  }

  get(name: string): Disk {
    const disk = this.#disks.get(name);
    if (disk === undefined) throw new Error(`No disk ${name}`);
    return disk;
  }

  async open(uri: string, options: Parameters<DeviceRegistry['open']>[1]): Promise<BlockDevice> {
    const { target, piece } = parseDeviceAddress(uri);
    const disk = this.#disks.get(target.slice('mem:'.length));
    if (disk === undefined || disk.isGone)
      throw new DeviceError('not-found', `Opening on ${uri} failed: it is gone`, { device: uri });
    const from = piece?.offsetBytes ?? 0;
    const to = piece === undefined ? Number.MAX_SAFE_INTEGER : from + piece.lengthBytes;
    const isExclusive = options.lock === 'exclusive';
    for (const lock of disk.locks)
      if (lock.from < to && from < lock.to && (lock.isExclusive || isExclusive))
        throw new DeviceError('busy', `${uri} is locked by another user, wanted it unlocked`, {
          device: uri,
        });
    const lock = { from, to, isExclusive };
    if (options.lock !== undefined) disk.locks.add(lock);
    const { faulty } = disk;
    const whole = withClose(faulty, () => disk.locks.delete(lock));
    return piece === undefined ? whole : new PieceDevice(whole, piece.offsetBytes, piece.lengthBytes);
  }
}

/** The device with another end: it outlives whoever closes it. */
function withClose(device: FaultyDevice, onClose: () => void): BlockDevice {
  return new Proxy(device, {
    get: (target, name) => {
      if (name === 'close') {
        return async () => {
          onClose();
        };
      }
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

export interface LaidOut {
  readonly directory: string;
  readonly disks: Disks;
  readonly clock: ManualClock;
  readonly warnings: string[];
  volume: Volume;
  open(): Promise<Volume>;
  /** Stops cleanly and opens again. */
  reopen(): Promise<Volume>;
}

/** Makes a directory for volumes; removed after the test. */
export async function makeParent(t: Pick<Test, 'teardown'>): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), 'cowbell-layout-'));
  t.teardown(() => rm(parent, { recursive: true, force: true }));
  return parent;
}

/** Makes and opens a volume whose home has the layout; closed after the test. */
export async function makeLaidOut(
  t: Pick<Test, 'teardown'>,
  options: {
    readonly disks: Disks;
    readonly layout: LayoutRequest;
    readonly sizeBytes: number;
    readonly directory: string;
    readonly trackSizeBytes?: number;
  },
): Promise<LaidOut> {
  const { disks, layout, sizeBytes, directory, trackSizeBytes = TRACK_BYTES } = options;
  const clock = new ManualClock();
  await createVolume(directory, { sizeBytes, trackSizeBytes, layout, registry: disks, clock });
  const warnings: string[] = [];
  const open = (): Promise<Volume> =>
    Volume.open(directory, {
      registry: disks,
      clock,
      activity: 'testing',
      intentRegionTracks: 2,
      onWarning: (sentence) => warnings.push(sentence),
    });
  const laidOut: LaidOut = {
    directory,
    disks,
    clock,
    warnings,
    volume: await open(),
    open,
    reopen: async () => {
      await laidOut.volume.close();
      laidOut.volume = await open();
      return laidOut.volume;
    },
  };
  t.teardown(() => laidOut.volume.close().catch(() => undefined));
  return laidOut;
}

/** A layout of one extent. */
export function layoutFor(kind: 'stripe' | 'mirror', ...places: readonly string[]): LayoutRequest {
  return { extents: [{ kind, members: places.map((place) => ({ place })) }] };
}

/** Brings every member back that can be, and everything it lacks. */
export function rebuildAll(volume: Volume): Promise<void> {
  return volume.careForMirrors(async (mirrors, signal) => {
    await mirrors.rejoin();
    await mirrors.rebuild({ signal });
  });
}

/** What is in the members of each part, as status tells. */
export function memberStates(volume: Volume): string[] {
  const parts = volume.status().parts ?? [];
  return parts.flatMap(({ members }) =>
    members.map((member) => ('state' in member ? member.state : 'plain')),
  );
}
