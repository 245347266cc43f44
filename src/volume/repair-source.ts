/**
 * Where the newest content of a track comes from that the home cannot give: the deltas, where they hold all of it, and
 * otherwise the set that they go on from, if the volume's owner knows of a store.
 */

import type { DeltaIndex, DeltaReader } from '../delta/index.ts';
import type { Deltas, HeldLogs } from './deltas.ts';
import type { VolumeIdentity } from './directory.ts';
import { VolumeError } from './errors.ts';
import type { Geometry } from './geometry.ts';
import type { RepairSource } from './repairing-device.ts';
import type { NewestContent, SurvivalPlan } from './survival.ts';

export interface RepairSourceOptions {
  readonly identity: Pick<VolumeIdentity, 'name' | 'volumeId' | 'directory'>;
  readonly geometry: Geometry;
  readonly deltas: Deltas;
  readonly plan: SurvivalPlan | undefined;
}

/** @throws {VolumeError} 'home-lost' where the deltas do not have all that is not backed up; what opening them throws. */
export async function openRepairSource(options: RepairSourceOptions): Promise<RepairSource> {
  const held = await options.deltas.holdWhole();
  let reader: DeltaReader | undefined;
  try {
    reader = await options.deltas.openReader();
    const index = await reader.index(options.deltas.startPoint);
    return new LogsThenSet(options, held, reader, index);
  } catch (error) {
    await reader?.close();
    held.release();
    throw error;
  }
}

class LogsThenSet implements RepairSource {
  readonly #options: RepairSourceOptions;
  readonly #held: HeldLogs;
  readonly #reader: DeltaReader;
  readonly #index: DeltaIndex;
  #newest: NewestContent | undefined;

  constructor(options: RepairSourceOptions, held: HeldLogs, reader: DeltaReader, index: DeltaIndex) {
    this.#options = options;
    this.#held = held;
    this.#reader = reader;
    this.#index = index;
  }

  get description(): string {
    return this.#newest?.side.device.description ?? `the deltas in ${this.#held.places.join(' and ')}`;
  }

  async read(track: number, target: Buffer): Promise<void> {
    if (this.#index.whole().has(track)) return await this.#index.read(track, target);
    const { identity, geometry, plan } = this.#options;
    if (plan === undefined) {
      const message = `Track ${track} of volume ${identity.name} is not in the deltas as a whole, and no store is known; serve it with --survive`;
      throw new VolumeError('home-lost', message, { directory: identity.directory });
    }
    this.#newest ??= await plan.openNewest(identity.volumeId, this.#held.places);
    await this.#newest.side.device.read(target, geometry.offsetOf(track));
  }

  async close(): Promise<void> {
    this.#held.release();
    await this.#newest?.side.close();
    await this.#reader.close();
  }
}
