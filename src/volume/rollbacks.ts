/**
 * The record around a rollback: it is durable before the first write, and taken back after the last one is, so that
 * one that was interrupted is finished at the next opening, before anybody reads the volume.
 */

import { messageOf } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import type { VolumeIdentity } from './directory.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import type { Geometry } from './geometry.ts';
import { rollBack } from './rollback.ts';
import type { Snapshot } from './snapshot-member.ts';
import type { Snapshots } from './snapshots.ts';
import type { VolumeState } from './state.ts';
import type { WritePath } from './write-path.ts';

export interface RollbacksOptions {
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly snapshots: Snapshots;
  readonly state: VolumeState;
  readonly epochs: EpochHistory;
  readonly writePath: WritePath;
  /** The volume itself: a rollback is writes like any other. */
  readonly volume: Pick<BlockDevice, 'write' | 'extents' | 'writeZeroes' | 'flush'>;
}

export class Rollbacks {
  readonly #options: RollbacksOptions;

  constructor(options: RollbacksOptions) {
    this.#options = options;
  }

  /** The number of the snapshot that the volume is being rolled back to, or was in part. */
  get unfinished(): number | undefined {
    return this.#options.state.rollback;
  }

  /** Makes the volume what the snapshot holds, which the caller holds. @returns how many tracks were written. */
  async begin(snapshot: Snapshot, onProgress?: (done: number, total: number) => void): Promise<number> {
    await this.#record(snapshot.number);
    return this.#run(snapshot, onProgress);
  }

  async #record(number: number): Promise<void> {
    const { state } = this.#options;
    try {
      await state.saveRollback(number);
    } catch (error) {
      // The record may be there all the same: the next opening would undo what is written from now on.
      await state.saveRollback(undefined);
      throw error;
    }
  }

  async #run(
    snapshot: Snapshot,
    onProgress: (done: number, total: number) => void = () => undefined,
  ): Promise<number> {
    const { snapshots, geometry, epochs, state, writePath, volume } = this.#options;
    await writePath.voidTrims();
    const written = await rollBack({
      snapshots,
      snapshot,
      geometry,
      tracks: epochs.changedSince(snapshot.point),
      write: (content, offsetBytes) => volume.write(content, offsetBytes),
      extents: (offsetBytes, lengthBytes) => volume.extents(offsetBytes, lengthBytes),
      writeZeroes: (offsetBytes, lengthBytes) =>
        volume.writeZeroes(offsetBytes, lengthBytes, { mayTrim: true }),
      onProgress,
    });
    await volume.flush();
    await state.saveRollback(undefined);
    return written;
  }

  /** What a rollback was interrupted in is neither the one thing nor the other, and reading it only cannot finish it. */
  refuseUnfinished(): void {
    if (this.unfinished === undefined) return;
    const { name, directory } = this.#options.identity;
    const message = `Volume ${name} was being rolled back when its process ended; open it for writing, which finishes that`;
    throw new VolumeError('rollback-unfinished', message, { directory });
  }

  /** One that was interrupted, if any, is carried through. @throws {VolumeError} `rollback-unfinished` */
  async finish(): Promise<void> {
    const number = this.unfinished;
    if (number === undefined) return;
    const { snapshots, identity } = this.#options;
    const found = snapshots.list().find((one) => one.number === number);
    try {
      if (found === undefined) throw new Error(`there is no snapshot number ${number}`);
      const { snapshot, release } = snapshots.hold(found.name, { isPinned: true });
      try {
        await this.#run(snapshot);
      } finally {
        release();
      }
    } catch (error) {
      const message = `Volume ${identity.name} was being rolled back, and that cannot be finished: ${messageOf(error)}`;
      throw new VolumeError(
        'rollback-unfinished',
        message,
        { directory: identity.directory },
        {
          cause: error,
        },
      );
    }
  }
}
