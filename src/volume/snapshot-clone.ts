/**
 * A snapshot that is a file of its own, which shares its blocks with the home (reflink): the filesystem keeps what is
 * replaced, and no write needs a copy of ours.
 *
 *     create     an empty file, durable; writes go on
 *     take       with the gate closed: one call makes it what the home is
 *     flush      afterwards: it is durable, and complete in itself
 *
 * Nothing else is needed to read it, neither home nor other snapshots, and no other snapshot needs it.
 */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CorruptionError, type MaybePromise, syncDirectory } from '../base/index.ts';
import {
  type BlockDevice,
  createSparseFile,
  DeviceError,
  type DeviceExtent,
  openFileDevice,
} from '../device/index.ts';
import { VolumeError } from './errors.ts';

export interface ClonePlace {
  readonly directory: string;
  readonly storeId: string;
}

export class SnapshotClone {
  readonly path: string;
  readonly #device: BlockDevice;
  /** Calls under way; closing waits for them. */
  readonly #running = new Set<Promise<unknown>>();
  #isClosed = false;

  private constructor(path: string, device: BlockDevice) {
    this.path = path;
    this.#device = device;
  }

  static nameOf(storeId: string): string {
    return `${storeId}.clone`;
  }

  /** Whether a file of that name is some snapshot's. */
  static isName(name: string): boolean {
    return /^[0-9a-f]{32}\.clone$/.test(name);
  }

  static pathOf({ directory, storeId }: ClonePlace): string {
    return join(directory, SnapshotClone.nameOf(storeId));
  }

  /** Makes the file, with nothing in it yet; durable when the promise resolves, its name too. */
  static async create(place: ClonePlace, sizeBytes: number): Promise<SnapshotClone> {
    const path = SnapshotClone.pathOf(place);
    await createSparseFile(path, sizeBytes, 'snapshot-store');
    try {
      await syncDirectory('snapshot-directory', place.directory);
      const device = await openFileDevice({ path, readOnly: false, syncName: 'snapshot-store' });
      return new SnapshotClone(path, device);
    } catch (error) {
      await rm(path, { force: true });
      throw error;
    }
  }

  /** @throws {CorruptionError} where the file is missing, or shorter than it was. */
  static async open(place: ClonePlace, sizeBytes: number): Promise<SnapshotClone> {
    const path = SnapshotClone.pathOf(place);
    try {
      const options = { path, readOnly: true, syncName: 'snapshot-store', lengthBytes: sizeBytes } as const;
      return new SnapshotClone(path, await openFileDevice(options));
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      if (error.code !== 'not-found' && error.code !== 'too-small' && error.code !== 'not-a-device')
        throw error;
      throw new CorruptionError(`Snapshot file ${path} is lost: ${error.message}`, { where: path });
    }
  }

  get sizeBytes(): number {
    return this.#device.sizeBytes;
  }

  /**
   * Makes it what the home is now. Nothing may be writing to the home. The time it takes grows with the number of the
   * home's extents, and with what of it was not written out yet.
   *
   * @throws {VolumeError} `cannot-clone`
   */
  async take(home: Pick<BlockDevice, 'share' | 'description'>): Promise<void> {
    if ((await home.share?.(this.#device, 0, this.sizeBytes)) === true) return;
    throw cannotClone(home.description, this.path);
  }

  /** What it took is durable when the promise resolves. */
  flush(): Promise<void> {
    return this.#device.flush();
  }

  read(target: Buffer, offsetBytes: number): Promise<void> {
    return this.#track(() => this.#device.read(target, offsetBytes));
  }

  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    return this.#track(() => this.#device.extents(offsetBytes, lengthBytes));
  }

  /** See `BlockDevice.share`. */
  share(target: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<boolean> {
    return this.#track(() => this.#device.share?.(target, offsetBytes, lengthBytes) ?? false);
  }

  /** Waits for what is being read. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await Promise.allSettled(this.#running);
    await this.#device.close();
  }

  /** Closes the file and gives its space back. */
  async remove(): Promise<void> {
    await this.close();
    await rm(this.path, { force: true });
  }

  async #track<T>(call: () => MaybePromise<T>): Promise<T> {
    if (this.#isClosed) {
      const { path } = this;
      throw new VolumeError('snapshot-failed', `Snapshot file ${path} is closed`, { path });
    }
    const running = Promise.resolve(call());
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }
}

/**
 * Finds out by trying whether a home can be cloned into a directory.
 *
 * @param homePath undefined where the home is no plain file.
 * @throws {VolumeError} `cannot-clone`
 */
export async function assertCanClone(options: {
  readonly home: string;
  readonly homePath: string | undefined;
  readonly directory: string;
  readonly sizeBytes: number;
}): Promise<void> {
  const { home, homePath, directory, sizeBytes } = options;
  if (homePath === undefined) throw cannotClone(home, directory);
  const device = await openFileDevice({ path: homePath, readOnly: true, syncName: 'home' });
  try {
    const trial = await SnapshotClone.create({ directory, storeId: 'trial' }, sizeBytes);
    try {
      await trial.take(device);
    } finally {
      await trial.remove();
    }
  } finally {
    await device.close();
  }
}

function cannotClone(home: string, place: string): VolumeError {
  const message = `The filesystem cannot clone ${home} to ${place}, wanted both on one with shared blocks such as xfs or btrfs; or snapshots by copy`;
  return new VolumeError('cannot-clone', message, { home });
}
