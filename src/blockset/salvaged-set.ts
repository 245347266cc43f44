/**
 * A damaged set, read as far as it goes: lanes that are missing or cannot be opened are left out, values of metadata
 * count where their own checksum fits, and each track is still checked against its hash when it is read.
 *
 * Which tracks a lost part had is known only by their number: the seal says how many each lane has. Where the tracks
 * that are accounted for are as many as the set has, every other track is not in the set. Where they are fewer, each
 * track that is not accounted for may be one of those that are lost, and counts as lost; so the set never lets an
 * older one speak for a track that it may have had itself.
 *
 * Buffers handed out are the caller's and are not changed afterwards.
 */

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CorruptionError, present } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { StoreError } from './errors.ts';
import { type FramePlan, LaneReader, type StoredTrack } from './lane-reader.ts';
import { type Lease, takeLease } from './leases.ts';
import type { StoredSet } from './lineage.ts';
import type { MasterKey } from './master-key.ts';
import { decodeSeal, laneFileName, type SetHeader, trackCountOf } from './set-format.ts';

export class SalvagedSet {
  readonly id: string;
  /** Of lane 0, which may be missing. */
  readonly path: string;
  readonly header: SetHeader;
  /** The tracks that can be read as far as the metadata tells, those of zeroes included. Not to be changed. */
  readonly present: TrackSet;
  /** Not to be changed. */
  readonly zeroes: TrackSet;
  /** The tracks that the set has or may have, and that cannot be read. Not to be changed. */
  readonly lost: TrackSet;
  /** What is damaged, sentences. */
  readonly findings: readonly string[];
  readonly #lanes: ReadonlyMap<number, LaneReader>;
  readonly #lease: Lease | undefined;

  /**
   * Opens what can be opened of a set, and keeps it from being removed until it is closed.
   *
   * @param set as the store lists it.
   * @throws {CorruptionError} where no lane can be opened.
   * @throws {StoreError} `newer-format`, `key-needed`, or `io` where it cannot be opened.
   */
  static open(set: StoredSet, options: { readonly master?: MasterKey | undefined } = {}): SalvagedSet {
    const lease = existsSync(set.path) ? takeLease(set.path) : undefined;
    const opening = new Opening(set, options.master);
    try {
      opening.openAll();
      return new SalvagedSet(set, opening, lease);
    } catch (error) {
      for (const lane of opening.lanes.values()) void lane.close();
      lease?.release();
      throw error;
    }
  }

  private constructor(set: StoredSet, opening: Opening, lease: Lease | undefined) {
    const lanes = [...opening.lanes.values()];
    const [first] = lanes;
    if (first === undefined) {
      const reasons = opening.findings.join('; ');
      throw new CorruptionError(`Nothing of block set ${set.id} can be read: ${reasons}`, {
        where: set.path,
      });
    }
    this.id = set.id;
    this.path = set.path;
    this.header = first.header;
    this.#lanes = opening.lanes;
    this.#lease = lease;
    const twice = tracksOfSeveral(lanes);
    this.present = TrackSet.union(lanes.map((lane) => lane.present)).difference(twice);
    this.zeroes = TrackSet.union(lanes.map((lane) => lane.zeroes)).difference(twice);
    const known = TrackSet.union([this.present, twice, ...lanes.map((lane) => lane.lost)]);
    const trackCount = opening.trackCount();
    const findings = [...opening.findings, ...lanes.flatMap((lane) => lane.findings)];
    if (trackCount === known.size) {
      this.lost = known.difference(this.present);
    } else {
      this.lost = TrackSet.all(trackCountOf(this.header)).difference(this.present);
      findings.push(
        `Of the ${trackCount ?? 'unknown number of'} tracks of block set ${set.id}, ${known.size} are accounted for, the others may be any`,
      );
    }
    this.findings = findings;
  }

  /** See `SetReader.hashOf`. */
  hashOf(track: number): Buffer | undefined {
    return this.#laneWith(track)?.hashOf(track);
  }

  /** See `SetReader.readPlan`; of tracks that are present. */
  *readPlan(tracks: TrackSet): Generator<FramePlan> {
    for (const lane of this.#lanes.values()) {
      yield* lane.readPlan(tracks.intersection(lane.present).intersection(this.present));
    }
  }

  /** @throws {CorruptionError} naming the set and, in `place.tracks`, the tracks that are damaged. */
  readFrame(plan: FramePlan): StoredTrack[] {
    return present(this.#lanes.get(plan.lane), `Set ${this.id} has no lane ${plan.lane}`).readFrame(plan);
  }

  /** See `SetReader.readTrack`; of a track that is present. */
  readTrack(track: number): Buffer | undefined {
    return this.#laneWith(track)?.readTrack(track);
  }

  #laneWith(track: number): LaneReader | undefined {
    if (!this.present.has(track)) return undefined;
    for (const lane of this.#lanes.values()) if (lane.present.has(track)) return lane;
    return undefined;
  }

  async close(): Promise<void> {
    for (const lane of this.#lanes.values()) await lane.close();
    this.#lease?.release();
  }
}

/** Finds and opens the lanes of a set. */
class Opening {
  readonly lanes = new Map<number, LaneReader>();
  readonly findings: string[] = [];
  readonly #set: StoredSet;
  readonly #master: MasterKey | undefined;
  /** How many tracks the seal says that all lanes have. */
  #sealedTracks: number | undefined;

  constructor(set: StoredSet, master: MasterKey | undefined) {
    this.#set = set;
    this.#master = master;
  }

  openAll(): void {
    const { header, lanePaths } = this.#set;
    // Lane 0 knows the others, and each of them where all are; before one is open, only the catalog does.
    let laneCount = header?.lanes ?? Math.max(1, lanePaths.length);
    for (let lane = 0; lane < laneCount; lane += 1) {
      this.#openLane(lane);
      laneCount = this.#anyLane()?.header.lanes ?? laneCount;
    }
  }

  /** How many tracks the set has, by its seal, or else by its counters; undefined where neither can be read. */
  trackCount(): number | undefined {
    return this.#sealedTracks ?? this.#countedTracks() ?? this.#set.counters?.tracks;
  }

  #countedTracks(): number | undefined {
    try {
      return this.lanes.get(0)?.counters().tracks;
    } catch (error) {
      if (error instanceof CorruptionError) return undefined;
      throw error;
    }
  }

  #anyLane(): LaneReader | undefined {
    for (const lane of this.lanes.values()) return lane;
    return undefined;
  }

  #openLane(lane: number): void {
    const { id } = this.#set;
    const places = this.#placesOf(lane);
    const path = places.find((place) => existsSync(place));
    if (path === undefined) {
      this.findings.push(`Block set ${id} lacks lane ${lane}: there is no ${places.join(' and no ')}`);
      return;
    }
    let reader: LaneReader;
    try {
      reader = LaneReader.open(
        path,
        (digest, seal) => this.#check(lane, { path, digest, seal }),
        this.#master,
        'salvage',
      );
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.findings.push(`Lane ${lane} of block set ${id} cannot be opened: ${error.message}`);
      return;
    }
    const first = this.#anyLane();
    const isOurs =
      reader.header.id === id &&
      reader.record.lane === lane &&
      (first === undefined || JSON.stringify(first.header) === JSON.stringify(reader.header));
    if (isOurs) {
      this.lanes.set(lane, reader);
      return;
    }
    void reader.close();
    this.findings.push(`File ${path} is not lane ${lane} of block set ${id}`);
  }

  /** Where a lane may lie: beside lane 0, where another lane says, where the catalog says. */
  #placesOf(lane: number): readonly string[] {
    const { id, path, lanePaths } = this.#set;
    const name = laneFileName(id, lane);
    const directory = this.#anyLane()?.record.directories[lane] ?? '';
    const places = [join(dirname(path), name)];
    if (directory !== '') places.push(join(directory, name));
    const listed = lanePaths[lane];
    if (listed !== undefined) places.push(listed);
    return [...new Set(places)];
  }

  /** What does not agree becomes a finding; the lane is read all the same. */
  #check(lane: number, of: { path: string; digest: Buffer; seal: Buffer | undefined }): void {
    if (lane !== 0) return;
    const { seal, lanes } = decodeSeal(of.seal ?? Buffer.alloc(0), of.path);
    const { seal: wanted } = this.#set;
    if (wanted !== undefined && wanted !== seal) {
      throw new CorruptionError(`Block set ${of.path} is not the one that the catalog names`, {
        where: of.path,
        expected: wanted,
        found: seal,
      });
    }
    this.#sealedTracks = lanes.reduce((sum, { tracks }) => sum + tracks, 0);
    if (lanes[0]?.metadata.equals(of.digest) === true) return;
    throw new CorruptionError(`Block set ${of.path} is damaged: its metadata is not what was sealed`, {
      where: of.path,
    });
  }
}

/** Tracks that more than one lane claims: which of them is right cannot be known. */
function tracksOfSeveral(lanes: readonly LaneReader[]): TrackSet {
  const seen = TrackSet.empty();
  const twice = TrackSet.empty();
  for (const lane of lanes) {
    twice.addAll(lane.present.intersection(seen));
    seen.addAll(lane.present);
  }
  return twice;
}

/** Whether a set cannot be opened for its own sake, so that another may stand in its place. */
export function isUnreadable(error: unknown): boolean {
  return error instanceof CorruptionError || (error instanceof StoreError && error.code === 'removed');
}
