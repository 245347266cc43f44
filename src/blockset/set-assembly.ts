/**
 * Brings the lanes of a set to one end: complete and visible, or removed.
 *
 * Write order, each step durable before the next (DESIGN section 5):
 *
 *     finish: frames and metadata of every lane, fdatasync each           sync `set-data`
 *     seal:   the seal, naming every lane, into lane 0, fdatasync         sync `set-seal`
 *             rename to `<id>-<lane>.cbs`, lane 0 last, fsync             sync `set-directory`
 *             catalog record, fdatasync                                   sync `catalog`
 *
 * Lane 0's seal decides: a set that was cut before it is removed at the next open of the store; one that was
 * cut after it is finished there.
 */

import { existsSync, renameSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { allFinished, assert, present, syncDirectory } from '../base/index.ts';
import { asStoreErrorsLater, StoreError } from './errors.ts';
import type { LaneCounts, LaneEnd } from './lane-writer.ts';
import {
  decodeSeal,
  encodeSeal,
  type SealedSet,
  type SessionCounters,
  type SetCounters,
  type SetHeader,
} from './set-format.ts';

/** One lane's file, while it is written and when it is complete. */
export interface LaneFile {
  readonly partialPath: string;
  readonly path: string;
  /** As the lanes' records name it: empty where it lies beside lane 0. */
  readonly directory: string;
}

export interface SetAssemblyParts {
  readonly header: SetHeader;
  readonly lanes: readonly LaneEnd[];
  readonly files: readonly LaneFile[];
  /**
   * Runs `name`, which gives the sealed set's files their names, and makes the catalog name the set, durably; both
   * under the store's lock, so that nobody who opens the store meets files that are let go and not named yet.
   */
  readonly publish: (name: () => Promise<SealedSet>) => Promise<void>;
}

export class SetAssembly {
  readonly header: SetHeader;
  readonly #parts: SetAssemblyParts;
  #state: 'open' | 'finished' | 'sealed' | 'aborted' = 'open';
  #sealRecord: Buffer | undefined;
  #counters: SetCounters | undefined;

  constructor(parts: SetAssemblyParts) {
    assert(
      parts.lanes.length === parts.header.lanes && parts.files.length === parts.header.lanes,
      `Set ${parts.header.id} has ${parts.lanes.length} of ${parts.header.lanes} lanes`,
    );
    this.header = parts.header;
    this.#parts = parts;
  }

  get id(): string {
    return this.header.id;
  }

  /**
   * Writes the metadata of all lanes and makes everything durable except the seal.
   *
   * @throws {StoreError} `no-space` or `io`; the set can then only be aborted.
   */
  async finish(session: SessionCounters): Promise<SetCounters> {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    const { counters, sealRecord } = await settleLanes(this.#parts.lanes, session);
    this.#sealRecord = sealRecord;
    this.#counters = counters;
    this.#state = 'finished';
    return counters;
  }

  /**
   * Seals the set, gives it its names and enters it into the catalog. Afterwards it is complete, visible and
   * never changed. To be called once the set's point is durable in the volume.
   *
   * @throws {StoreError} `no-space` or `io`. Whether the set is complete then shows when the store is opened
   *   again: it is if the seal was durable.
   */
  async seal(): Promise<SealedSet> {
    const record = this.#sealRecord;
    const counters = this.#counters;
    const { lanes, files, header, publish } = this.#parts;
    const [first] = lanes;
    const [firstFile] = files;
    assert(
      this.#state === 'finished' && record !== undefined && counters !== undefined && first !== undefined,
      'A set is finished first',
    );
    assert(firstFile !== undefined, 'A set has a lane');
    for (const [lane, { partialPath }] of files.entries()) assertThere(lane, partialPath);
    const { seal } = decodeSeal(record, firstFile.path);
    let sealed: SealedSet | undefined;
    await asStoreErrorsLater(firstFile.partialPath, async () => {
      await first.seal(record);
      await publish(async () => {
        for (const lane of lanes) await lane.release();
        await renameLanes(files);
        this.#state = 'sealed';
        const sizes = files.map(({ path, directory }) => ({ directory, lengthBytes: statSync(path).size }));
        sealed = { header, counters, seal, lanes: sizes };
        return sealed;
      });
    });
    return present(sealed, 'A set that was published is sealed');
  }

  /** Removes what was written, if it was not sealed; afterwards, or after `seal`, a no-op. Never throws for a missing file. */
  async abort(): Promise<void> {
    if (this.#state === 'aborted' || this.#state === 'sealed') return;
    this.#state = 'aborted';
    // Lane 0 goes last, so that a cut leaves it to tell of the others.
    for (const lane of this.#parts.lanes.toReversed()) await lane.abort();
  }
}

/** A disk that was taken away is better met before the seal than after it. */
function assertThere(lane: number, path: string): void {
  if (existsSync(path)) return;
  throw new StoreError('io', `Lane ${lane} of the set has gone: there is no ${path}`, { path });
}

/**
 * Writes the metadata of all lanes, and makes everything durable but the seal.
 *
 * @returns the set's counters, which lane 0 has now, and the record that seals the set.
 * @throws {StoreError} `no-space` or `io`; the lanes can then only be aborted.
 */
export async function settleLanes(
  lanes: readonly LaneEnd[],
  session: SessionCounters,
): Promise<{ readonly counters: SetCounters; readonly sealRecord: Buffer }> {
  const counts = await allFinished(lanes.map((lane) => lane.finish()));
  const counters = sumOf(counts, session);
  const digests = await allFinished(
    lanes.map((lane, number) => lane.settle(number === 0 ? counters : undefined)),
  );
  const sealRecord = encodeSeal(
    counts.map(({ frames, tracks }, lane) => ({
      frames,
      tracks,
      metadata: present(digests[lane], 'Each lane has a digest'),
    })),
  );
  return { counters, sealRecord };
}

/**
 * Gives complete lanes their names, durably, lane 0 last: from then on the set is visible. Those that have
 * theirs already are left out.
 */
export async function renameLanes(files: readonly Pick<LaneFile, 'partialPath' | 'path'>[]): Promise<void> {
  const [first, ...others] = files;
  const directories = new Set<string>();
  for (const { partialPath, path } of others) {
    renameSync(partialPath, path);
    directories.add(dirname(path));
  }
  for (const directory of directories) await syncDirectory('set-directory', directory);
  if (first === undefined) return;
  renameSync(first.partialPath, first.path);
  await syncDirectory('set-directory', dirname(first.path));
}

function sumOf(counts: readonly LaneCounts[], session: SessionCounters): SetCounters {
  const sum = (member: keyof LaneCounts): number => counts.reduce((total, lane) => total + lane[member], 0);
  return {
    tracks: sum('tracks'),
    zeroTracks: sum('zeroTracks'),
    aliases: sum('aliases'),
    frames: sum('frames'),
    bytesStored: sum('bytesStored'),
    ...session,
  };
}
