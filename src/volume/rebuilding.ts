/**
 * What a rebuild of a lost home does to the volume: nobody serves it meanwhile, it is marked before the first write, and
 * when the new home holds everything it opens as after a clean stop, with its id, its points and what changed since them.
 *
 *     locked -> marked, durably -> (the home is written) -> home, looks and changed tracks in one commit
 *
 * Where the content comes from is not its business. A volume that was marked and not finished is refused at open.
 */

import type { FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { LIMITS, messageOf, setAttribute, syncDirectory } from '../base/index.ts';
import { createSparseFile } from '../device/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import {
  exists,
  HOME_ATTRIBUTE,
  homePathOf,
  identityOf,
  lockVolume,
  openState,
  type VolumeIdentity,
} from './directory.ts';
import { VolumeError } from './errors.ts';
import { homeStamp } from './file-looks.ts';
import { Geometry } from './geometry.ts';
import { findSegments, removeSegments } from './intent-log.ts';
import type { LoadedEpochs, RebuildRecord, VolumeState } from './state.ts';

export class Rebuilding {
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly #lock: FileHandle;
  readonly #state: VolumeState;
  readonly #loaded: LoadedEpochs;

  private constructor(lock: FileHandle, state: VolumeState, identity: VolumeIdentity, loaded: LoadedEpochs) {
    this.#lock = lock;
    this.#state = state;
    this.#loaded = loaded;
    this.identity = identity;
    this.geometry = new Geometry(identity.sizeBytes, identity.trackSizeBytes);
  }

  /**
   * Takes the ownership of a volume that is not served. Nothing is changed.
   *
   * @throws {VolumeError} `not-a-volume`, `in-use`, `recovering`
   */
  static async open(directory: string): Promise<Rebuilding> {
    const lock = await lockVolume(directory, 'volume rebuild');
    try {
      const state = await openState(directory, { readOnly: false });
      try {
        const identity = identityOf(directory, state);
        assertNotRecovering(identity, state);
        const { trackCount } = new Geometry(identity.sizeBytes, identity.trackSizeBytes);
        const { volumeId } = identity;
        const regionTracks = LIMITS.intentRegionTracks;
        const segments = await findSegments({ directory, volumeId, trackCount, regionTracks });
        return new Rebuilding(lock, state, identity, state.load(trackCount, segments));
      } catch (error) {
        await state.close();
        throw error;
      }
    } catch (error) {
      await lock.close();
      throw error;
    }
  }

  /** One that was interrupted. */
  get unfinished(): RebuildRecord | undefined {
    return this.#state.rebuild;
  }

  /** Of the last point; empty where there is none. */
  get lastPoint(): string {
    return this.#loaded.history.closed.at(-1)?.point ?? '';
  }

  /** Members of the delta store that must not be believed. */
  get lostDeltas(): readonly string[] {
    return this.#state.deltasUse?.lost.map(({ place }) => place) ?? [];
  }

  /** A member of the delta store has failed; durable when it resolves. */
  async deltaLost(place: string, error: unknown, atMs: number): Promise<void> {
    const { lost, readable } = this.#state.deltasUse ?? { lost: [], readable: [] };
    const others = lost.filter((one) => one.place !== place);
    await this.#state.saveDeltasUse({
      readable,
      lost: [...others, { place, reason: messageOf(error), atMs }],
    });
  }

  /** @throws {VolumeError} `has-snapshots`: they need what the home holds now to be what it was. */
  assertNoSnapshots(): void {
    const [snapshot] = this.#state.snapshots();
    if (snapshot === undefined) return;
    const { name, directory } = this.identity;
    const message = `Volume ${name} has the snapshot ${snapshot.name}, which an earlier content of the home would damage; delete its snapshots first`;
    throw new VolumeError('has-snapshots', message, { directory, snapshot: snapshot.name });
  }

  /** From here on the volume is refused until `finish`; durable when it resolves. */
  async begin(record: RebuildRecord): Promise<void> {
    if (this.unfinished?.home === record.home) return;
    await this.#state.saveRebuild({ ...record, upTo: this.unfinished?.upTo ?? record.upTo });
  }

  /**
   * Makes the file of the new home, which is one hole, durably; one that is there stays as it is.
   *
   * @returns whether it was made.
   */
  async makeHome(home: string): Promise<boolean> {
    const { directory, sizeBytes, volumeId } = this.identity;
    const path = homePathOf(directory, home);
    if (path === undefined || (await exists(path))) return false;
    await createSparseFile(path, sizeBytes, 'home-create');
    setAttribute(path, HOME_ATTRIBUTE, volumeId);
    await syncDirectory('volume-directory', dirname(path));
    return true;
  }

  /**
   * The home holds all of the volume, durably.
   *
   * @param changed tracks that hold something else now than the volume did when it was lost.
   */
  async finish(home: string, changed: TrackSet): Promise<void> {
    const { directory } = this.identity;
    const { history } = this.#loaded;
    for (const run of changed.runs()) history.mark(run);
    const path = homePathOf(directory, home);
    const stamp = path === undefined ? undefined : await homeStamp(path);
    await this.#state.saveRebuilt(home === this.identity.home ? undefined : home, this.#loaded, stamp);
    // Their epochs are recorded.
    await removeSegments(directory, () => true);
  }

  async close(): Promise<void> {
    await this.#state.close();
    await this.#lock.close();
  }
}

function assertNotRecovering(
  { name, directory, sizeBytes, trackSizeBytes }: VolumeIdentity,
  state: VolumeState,
): void {
  const { record } = state.recovery;
  if (record === undefined) return;
  const { trackCount } = new Geometry(sizeBytes, trackSizeBytes);
  const message = `Volume ${name} is being recovered already, which goes on when it is served`;
  throw new VolumeError('recovering', message, { directory, missingTracks: trackCount });
}
