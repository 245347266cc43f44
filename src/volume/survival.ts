/**
 * How a volume goes on when its home is lost while it is used: a new home is made, and filled from the backup side and the
 * delta logs while the volume is served, as a recovery (`recovery.ts`; seeds/1, para 27 and 87).
 *
 *     the home fails, or is seen to be gone
 *       -> the newest content is opened: the newest set that the logs join, and what they tell since
 *       -> a new home, and the record of a recovery onto it, in one transaction
 *       -> what failed is asked again, of the home that is being filled
 *
 * Everything that was acknowledged is in the logs or in the set: a change is logged before it is acknowledged, and a log
 * stays until a readable set has what is in it. Where a log is missing nothing is taken over, and the home's failure is the
 * volume's. Logs stay until the recovery is over.
 */

import { messageOf, present, setAttribute, syncDirectory } from '../base/index.ts';
import { type BlockDevice, createSparseFile, type DeviceRegistry } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { dirname } from 'node:path';
import type { BackupSide, RecoveryRecord } from './backup-side.ts';
import type { HeldLogs } from './deltas.ts';
import { HOME_ATTRIBUTE, type VolumeIdentity } from './directory.ts';
import type { Geometry } from './geometry.ts';
import { Recovery } from './recovery.ts';
import { ReplaceableDevice } from './replaceable-device.ts';
import type { VolumeState } from './state.ts';

/** What the owner of a volume provides so that it survives the loss of its home. */
export interface SurvivalPlan {
  /**
   * Opens the newest content there is without the home, everything included that the logs have now.
   *
   * @param places the members of the delta store that have everything.
   * @throws where there is none that is whole.
   */
  openNewest(volumeId: string, places: readonly string[]): Promise<NewestContent>;
  /** Where the new home goes: the path of a file that is not there. */
  newHome(): string;
}

export interface NewestContent {
  readonly record: Omit<RecoveryRecord, 'startedMs'>;
  readonly side: BackupSide;
  /** The tracks that may not be zero. */
  readonly tracks: TrackSet;
}

export interface SurvivalOptions {
  readonly plan: SurvivalPlan;
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly state: VolumeState;
  readonly home: BlockDevice;
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly nowMs: () => number;
  readonly onWarning?: ((sentence: string) => void) | undefined;
}

/** The volume, as far as the survival must know it. */
export interface SurvivingVolume {
  /**
   * The members of its delta store that have everything that was acknowledged, and everything that the lost home has.
   *
   * @throws where none has, so that it cannot go on.
   */
  readonly holdLogs: () => Promise<HeldLogs>;
  /** The volume has another home, which is being filled; called before anything is asked of it. */
  readonly takeOver: (recovery: Recovery, home: string) => void;
}

export class Survival {
  /** What the volume has for its home. */
  readonly device: ReplaceableDevice;
  readonly #options: SurvivalOptions;
  #volume: SurvivingVolume | undefined;

  constructor(options: SurvivalOptions) {
    this.#options = options;
    this.device = new ReplaceableDevice({
      device: options.home,
      replace: (error) => this.#replace(error),
    });
  }

  /** To be called before the device is used. */
  attach(volume: SurvivingVolume): void {
    this.#volume = volume;
  }

  async #replace(error: unknown): Promise<BlockDevice> {
    const { identity, onWarning } = this.#options;
    try {
      if (this.#volume === undefined) throw new Error('it is only being opened');
      // What comes from now on waits, so nothing is acknowledged that only the old home and a later log have.
      const { places, release } = await this.#volume.holdLogs();
      try {
        return await this.#goOn(places, error);
      } finally {
        release();
      }
    } catch (reason) {
      onWarning?.(
        `Volume ${identity.name} cannot go on without its home ${identity.home}: ${messageOf(reason)}`,
      );
      throw reason;
    }
  }

  async #goOn(places: readonly string[], error: unknown): Promise<BlockDevice> {
    const { plan, identity, nowMs } = this.#options;
    const { record, side, tracks } = await plan.openNewest(identity.volumeId, places);
    try {
      return await this.#begin({ ...record, startedMs: nowMs() }, side, tracks, error);
    } catch (reason) {
      await side.close();
      throw reason;
    }
  }

  async #begin(
    record: RecoveryRecord,
    side: BackupSide,
    tracks: TrackSet,
    error: unknown,
  ): Promise<BlockDevice> {
    const { plan, identity, geometry, state, registry, onWarning } = this.#options;
    const { name, volumeId } = identity;
    const path = plan.newHome();
    await createSparseFile(path, geometry.sizeBytes, 'home-create');
    setAttribute(path, HOME_ATTRIBUTE, volumeId);
    await syncDirectory('volume-directory', dirname(path));
    const home = await registry.open(path, { readOnly: false, syncName: 'home', lock: 'exclusive' });
    try {
      // A file that was made just now is zeroes throughout.
      const current = TrackSet.all(geometry.trackCount).difference(tracks);
      await state.saveTakenOver(path, { record, current, trackCount: geometry.trackCount });
      const recovery = new Recovery({ home, geometry, side, state: state.recovery, record, name, onWarning });
      present(this.#volume, 'A volume that survives').takeOver(recovery, path);
      onWarning?.(
        `Volume ${name} has lost its home ${identity.home}, and goes on in ${path}: ${messageOf(error)}`,
      );
      return recovery.device;
    } catch (reason) {
      await home.close();
      throw reason;
    }
  }
}
