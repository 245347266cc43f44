/**
 * What is written over a device that can only be read, kept beside it for as long as it is open.
 *
 *     read:   units of the overlay -> the overlay's storage      all others -> the device below
 *     write:  a unit that is written in part for the first time is copied up whole, with the new bytes in it
 *
 * A unit belongs to the overlay once all of it is in the storage, and never goes back. The storage is as large as the
 * device and sparse: each unit lies at its own address, so that nothing has to be looked up. What nobody has written to
 * it is a hole there.
 *
 * Writes that touch a unit on its way into the overlay wait for it; all others run beside each other. A write that
 * fails leaves its units with the device below, as they were, or in the overlay with any part of the write, as a disk
 * does.
 *
 * What it does not do: nothing is durable, since nothing outlives it; so a flush has nothing to do. It does not give
 * units back that become what they were.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { allFinished, assert, type MaybePromise } from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  createSparseFile,
  type DeviceCapabilities,
  type DeviceExtent,
  deviceErrorFrom,
  openFileDevice,
} from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';

export interface OverlayOptions {
  /** What is copied up at once: a power of two, the blocks of both devices divide it. */
  readonly unitBytes: number;
  /** At least as large as the device below, all zeroes, and of nobody else. Closed with the overlay. */
  readonly storage: BlockDevice;
}

/** Units that are on their way into the overlay. */
interface Claim {
  readonly run: TrackRun;
  readonly done: Promise<unknown>;
}

/** Part of a range that lies in one place. */
interface Part {
  readonly isOwn: boolean;
  readonly fromBytes: number;
  readonly toBytes: number;
}

/** How a range of the overlay becomes what it shall be. */
interface Change {
  /** In the storage. */
  readonly apply: (fromBytes: number, toBytes: number) => MaybePromise<void>;
  /** In a unit that was copied from the device below. */
  readonly merge: (unit: Buffer, unitStart: number) => void;
}

export class OverlayDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities = { readOnly: false, trim: true, extents: true };
  readonly description: string;
  readonly #next: BlockDevice;
  readonly #storage: BlockDevice;
  readonly #unitBytes: number;
  /** The units that are in the overlay, whole. */
  readonly #own = TrackSet.empty();
  /** The units that the storage may have something else than zeroes of. */
  readonly #touched = TrackSet.empty();
  readonly #claims = new Set<Claim>();

  /** @param next stays the caller's. */
  constructor(next: BlockDevice, { unitBytes, storage }: OverlayOptions) {
    this.sizeBytes = next.sizeBytes;
    this.blockSizeBytes = Math.max(next.blockSizeBytes, storage.blockSizeBytes);
    this.description = `overlay of ${next.description}`;
    this.#next = next;
    this.#storage = storage;
    this.#unitBytes = unitBytes;
    assert(unitBytes % this.blockSizeBytes === 0, `Unit of ${unitBytes} bytes is no whole blocks`);
    assert(storage.sizeBytes >= next.sizeBytes, 'An overlay has room for all of its device');
  }

  /** Bytes of the units that are in the overlay. */
  get ownBytes(): number {
    return this.#own.size * this.#unitBytes;
  }

  async read(target: Buffer, offsetBytes: number): Promise<void> {
    assertRange(this, offsetBytes, target.length);
    await allFinished(
      this.#parts(offsetBytes, target.length).map(async ({ isOwn, fromBytes, toBytes }) => {
        const part = target.subarray(fromBytes - offsetBytes, toBytes - offsetBytes);
        await (isOwn ? this.#storage : this.#next).read(part, fromBytes);
      }),
    );
  }

  /** @throws {DeviceError} `no-space` where the storage has no room; what the device below throws. */
  async write(source: Buffer, offsetBytes: number): Promise<void> {
    assertRange(this, offsetBytes, source.length);
    await this.#change(offsetBytes, source.length, {
      apply: (fromBytes, toBytes) => {
        this.#touched.addRun(this.#unitsOf(fromBytes, toBytes));
        return this.#storage.write(
          source.subarray(fromBytes - offsetBytes, toBytes - offsetBytes),
          fromBytes,
        );
      },
      merge: (unit, unitStart) => {
        const from = Math.max(offsetBytes, unitStart);
        const to = Math.min(offsetBytes + source.length, unitStart + unit.length);
        source.copy(unit, from - unitStart, from - offsetBytes, to - offsetBytes);
      },
    });
  }

  /** Zeroes may always become holes: room that nobody wrote to is not kept for anybody. Otherwise as `write`. */
  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    assertRange(this, offsetBytes, lengthBytes);
    await this.#change(offsetBytes, lengthBytes, {
      apply: (fromBytes, toBytes) => this.#zero(fromBytes, toBytes),
      merge: (unit, unitStart) => {
        const from = Math.max(offsetBytes, unitStart);
        unit.fill(0, from - unitStart, Math.min(offsetBytes + lengthBytes - unitStart, unit.length));
      },
    });
  }

  trim(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.writeZeroes(offsetBytes, lengthBytes);
  }

  /** Nothing is durable here. */
  flush(): Promise<void> {
    return Promise.resolve();
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const extents: DeviceExtent[] = [];
    for (const { isOwn, fromBytes, toBytes } of this.#parts(offsetBytes, lengthBytes)) {
      const device = isOwn ? this.#storage : this.#next;
      extents.push(...(await device.extents(fromBytes, toBytes - fromBytes)));
    }
    return extents;
  }

  /** Gives the storage back; the device below stays open. */
  close(): Promise<void> {
    return this.#storage.close();
  }

  #parts(offsetBytes: number, lengthBytes: number): Part[] {
    const endBytes = offsetBytes + lengthBytes;
    const parts: Part[] = [];
    let atBytes = offsetBytes;
    const push = (toBytes: number, isOwn: boolean): void => {
      if (toBytes <= atBytes) return;
      parts.push({ isOwn, fromBytes: atBytes, toBytes });
      atBytes = toBytes;
    };
    for (const run of this.#own.intersection(TrackSet.ofRun(this.#unitsOf(offsetBytes, endBytes))).runs()) {
      push(run.first * this.#unitBytes, false);
      push(Math.min((run.first + run.count) * this.#unitBytes, endBytes), true);
    }
    push(endBytes, false);
    return parts;
  }

  #unitsOf(fromBytes: number, toBytes: number): TrackRun {
    const first = Math.floor(fromBytes / this.#unitBytes);
    return { first, count: Math.ceil(toBytes / this.#unitBytes) - first };
  }

  async #change(offsetBytes: number, lengthBytes: number, change: Change): Promise<void> {
    const endBytes = offsetBytes + lengthBytes;
    const units = this.#unitsOf(offsetBytes, endBytes);
    for (let claim = this.#claimOn(units); claim !== undefined; claim = this.#claimOn(units)) {
      await claim.done;
    }
    if (TrackSet.ofRun(units).difference(this.#own).isEmpty) {
      await change.apply(offsetBytes, endBytes);
      return;
    }
    const changing = this.#take(offsetBytes, endBytes, change);
    // Those that wait go on whether this one succeeded or not.
    const claim = { run: units, done: changing.catch(() => undefined) };
    this.#claims.add(claim);
    try {
      await changing;
    } finally {
      this.#claims.delete(claim);
    }
  }

  #claimOn(units: TrackRun): Claim | undefined {
    for (const claim of this.#claims) {
      const { first, count } = claim.run;
      if (first < units.first + units.count && units.first < first + count) return claim;
    }
    return undefined;
  }

  /** Changes the range, and makes all of its units the overlay's. */
  async #take(offsetBytes: number, endBytes: number, change: Change): Promise<void> {
    const size = this.#unitBytes;
    let fromBytes = offsetBytes;
    let toBytes = endBytes;
    const merging: Promise<void>[] = [];
    const mergeUnit = (unit: number): void => void merging.push(this.#copyUp(unit, change));
    if (this.#isPartial(fromBytes, endBytes, Math.floor(fromBytes / size))) {
      mergeUnit(Math.floor(fromBytes / size));
      fromBytes = (Math.floor(fromBytes / size) + 1) * size;
    }
    const last = Math.floor((toBytes - 1) / size);
    if (fromBytes < toBytes && this.#isPartial(fromBytes, toBytes, last)) {
      mergeUnit(last);
      toBytes = last * size;
    }
    if (fromBytes < toBytes) merging.push(this.#apply(fromBytes, toBytes, change));
    await allFinished(merging);
    this.#own.addRun(this.#unitsOf(offsetBytes, endBytes));
  }

  /** Whether the range covers the unit in part only, and the unit is not the overlay's yet. */
  #isPartial(fromBytes: number, toBytes: number, unit: number): boolean {
    if (this.#own.has(unit)) return false;
    const start = unit * this.#unitBytes;
    return fromBytes > start || toBytes < Math.min(start + this.#unitBytes, this.sizeBytes);
  }

  async #copyUp(unit: number, change: Change): Promise<void> {
    const start = unit * this.#unitBytes;
    const content = Buffer.allocUnsafe(Math.min(this.#unitBytes, this.sizeBytes - start));
    await this.#next.read(content, start);
    change.merge(content, start);
    this.#touched.add(unit);
    await this.#storage.write(content, start);
  }

  async #apply(fromBytes: number, toBytes: number, change: Change): Promise<void> {
    await change.apply(fromBytes, toBytes);
  }

  /** Only what was written to the storage has to be zeroed there. */
  async #zero(fromBytes: number, toBytes: number): Promise<void> {
    const touched = this.#touched.intersection(TrackSet.ofRun(this.#unitsOf(fromBytes, toBytes)));
    for (const run of touched.runs()) {
      const from = Math.max(run.first * this.#unitBytes, fromBytes);
      const to = Math.min((run.first + run.count) * this.#unitBytes, toBytes);
      await this.#storage.writeZeroes(from, to - from, { mayTrim: true });
    }
  }
}

/**
 * An overlay whose storage is a sparse file without a name: it goes with the process, whatever ends that.
 *
 * @param directory where there is room for what will be written.
 * @throws {DeviceError} where the file cannot be made.
 */
export async function openOverlay(
  next: BlockDevice,
  { directory, unitBytes }: { readonly directory: string; readonly unitBytes: number },
): Promise<OverlayDevice> {
  let own: string;
  try {
    own = await mkdtemp(join(directory, 'cowbell-overlay-'));
  } catch (error) {
    throw deviceErrorFrom('Creation of an overlay', directory, error);
  }
  try {
    const path = join(own, 'overlay');
    await createSparseFile(path, next.sizeBytes, 'restore-target');
    const storage = await openFileDevice({ path, readOnly: false, syncName: 'restore-target' });
    return new OverlayDevice(next, { unitBytes, storage });
  } finally {
    await rm(own, { recursive: true, force: true });
  }
}
