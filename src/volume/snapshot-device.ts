/** A snapshot as a device: read-only, and held while it is open, so that nobody deletes it meanwhile. */

import type { MaybePromise } from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
} from '../device/index.ts';
import { LIMITS } from '../base/index.ts';
import { VolumeError } from './errors.ts';
import type { Snapshot } from './snapshot-member.ts';
import type { Snapshots } from './snapshots.ts';

export interface SnapshotDeviceOptions {
  readonly snapshots: Snapshots;
  readonly name: string;
  readonly home: Pick<BlockDevice, 'extents' | 'share'>;
  /** The volume's name, for messages. */
  readonly volumeName: string;
}

export class SnapshotDevice implements BlockDevice {
  readonly blockSizeBytes = LIMITS.blockSizeBytesMin;
  readonly capabilities: DeviceCapabilities = { readOnly: true, trim: false, extents: true };
  readonly description: string;
  readonly sizeBytes: number;
  readonly snapshot: Snapshot;
  readonly #options: SnapshotDeviceOptions;
  readonly #release: () => void;

  /** @throws {VolumeError} `unknown-snapshot`, `snapshot-damaged` */
  constructor(options: SnapshotDeviceOptions) {
    const { snapshot, release } = options.snapshots.hold(options.name);
    this.#options = options;
    this.#release = release;
    this.snapshot = snapshot;
    this.description = `snapshot ${snapshot.name} of volume ${options.volumeName}`;
    this.sizeBytes = snapshot.geometry.sizeBytes;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    return this.#options.snapshots.read(this.snapshot, target, offsetBytes);
  }

  write(): MaybePromise<void> {
    throw this.#readOnly();
  }

  writeZeroes(): MaybePromise<void> {
    throw this.#readOnly();
  }

  trim(): MaybePromise<void> {
    throw this.#readOnly();
  }

  async flush(): Promise<void> {
    // What it holds is durable.
  }

  /** Holes of the home where it still holds the content; a track that was replaced is data. */
  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const { snapshots, home } = this.#options;
    const { geometry } = this.snapshot;
    const clone = snapshots.cloneOf(this.snapshot);
    if (clone !== undefined) return clone.extents(offsetBytes, lengthBytes);
    const extents = await home.extents(offsetBytes, lengthBytes);
    // Looked at after the home was asked: a track that was replaced meanwhile is found out here.
    const said: DeviceExtent[] = [];
    for (const extent of extents) {
      const run = geometry.tracksOf(extent.offsetBytes, extent.lengthBytes);
      const end = extent.offsetBytes + extent.lengthBytes;
      for (let track = run.first; track < run.first + run.count; track += 1) {
        const from = Math.max(extent.offsetBytes, geometry.offsetOf(track));
        const to = Math.min(end, geometry.offsetOf(track + 1));
        const isAtHome = snapshots.isAtHome(this.snapshot, track);
        const { hole, zero } = isAtHome ? extent : { hole: false, zero: false };
        append(said, { offsetBytes: from, lengthBytes: to - from, hole, zero });
      }
    }
    return said;
  }

  /**
   * Shares a range of whole tracks with a device that is to become a copy of this one, as far as the home can.
   *
   * @returns the tracks that the home no longer holds, whose content must be written there whatever it reads as
   *   now; undefined where nothing can be shared.
   */
  async shareHome(
    target: BlockDevice,
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<readonly number[] | undefined> {
    const { snapshots, home } = this.#options;
    const { geometry } = this.snapshot;
    const clone = snapshots.cloneOf(this.snapshot);
    if (clone !== undefined) return (await clone.share(target, offsetBytes, lengthBytes)) ? [] : undefined;
    if ((await home.share?.(target, offsetBytes, lengthBytes)) !== true) return undefined;
    // Looked at after the home was shared: a track that was replaced meanwhile is found out here.
    const run = geometry.tracksOf(offsetBytes, lengthBytes);
    const replaced: number[] = [];
    for (let track = run.first; track < run.first + run.count; track += 1)
      if (!snapshots.isAtHome(this.snapshot, track)) replaced.push(track);
    return replaced;
  }

  /** Lets the snapshot go. */
  async close(): Promise<void> {
    this.#release();
  }

  #readOnly(): VolumeError {
    return new VolumeError('read-only', `A ${this.description} is read-only`, {
      directory: this.description,
    });
  }
}

/** Adds an extent, to the last one where they are of one kind. */
function append(extents: DeviceExtent[], next: DeviceExtent): void {
  const last = extents.at(-1);
  if (last === undefined || last.hole !== next.hole || last.zero !== next.zero) extents.push(next);
  else extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + next.lengthBytes };
}
