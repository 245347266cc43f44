/**
 * Reads one block set, whatever its lanes. Opening checks lane 0's seal, then every lane against it; a lane that
 * is missing is named. After that the metadata can be trusted, and each track is checked against its hash when
 * it is read.
 *
 * A lane is looked for beside lane 0, then where the set says that it was written.
 *
 * Buffers handed out are the caller's and are not changed afterwards.
 */

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { assert, CorruptionError, present } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { PackedFrame } from './frame-codec.ts';
import { type FramePlan, LaneReader, type StoredTrack, type TrackPlace } from './lane-reader.ts';
import { type Lease, takeLease } from './leases.ts';
import type { MasterKey } from './master-key.ts';
import { normalise, type Ordering, type StoredObject } from './ordering.ts';
import {
  decodeSeal,
  LANE_ARRIVALS,
  laneFileName,
  type LaneSeal,
  type SetCounters,
  type SetHeader,
  trackCountOf,
} from './set-format.ts';

export interface OpenSetOptions {
  /** The seal that the catalog names; another is corruption. */
  readonly seal?: string;
  /** False under the store's exclusive lock, which keeps the set from being removed by itself. */
  readonly lease?: boolean;
  /** Of the set's store, where that is encrypted. */
  readonly master?: MasterKey | undefined;
}

export class SetReader {
  /** Of lane 0. */
  readonly path: string;
  readonly header: SetHeader;
  readonly counters: SetCounters;
  /** 64 hexadecimal digits. */
  readonly seal: string;
  /** The tracks in the set, those of zeroes included. Not to be changed. */
  readonly present: TrackSet;
  /** The tracks that the set records as zeroes. Not to be changed. */
  readonly zeroes: TrackSet;
  readonly trackCount: number;
  readonly #lanes: readonly LaneReader[];
  readonly #lease: Lease | undefined;

  /**
   * Opens a set that is complete, and keeps it from being removed until it is closed.
   *
   * @param path the file of lane 0.
   * @throws {CorruptionError} where a lane is missing, or a file, its metadata or its seal is damaged.
   * @throws {StoreError} `removed`, `newer-format`, `key-needed`, or `io` where it cannot be opened.
   */
  static open(path: string, options: OpenSetOptions = {}): SetReader {
    const lease = options.lease === false ? undefined : takeLease(path);
    const lanes: LaneReader[] = [];
    try {
      const { seal, sealed } = openFirst(path, options, lanes);
      const [first] = lanes;
      assert(first !== undefined, 'Lane 0 was opened');
      for (let lane = 1; lane < sealed.length; lane += 1) {
        lanes.push(openOther(first, lane, sealed, options.master));
      }
      return new SetReader(seal, lanes, lease);
    } catch (error) {
      for (const lane of lanes) void lane.close();
      lease?.release();
      throw error;
    }
  }

  private constructor(seal: string, lanes: readonly LaneReader[], lease: Lease | undefined) {
    const [first] = lanes;
    assert(first !== undefined, 'A set has a lane');
    this.path = first.path;
    this.header = first.header;
    this.counters = first.counters();
    this.seal = seal;
    this.trackCount = trackCountOf(this.header);
    this.#lanes = lanes;
    this.#lease = lease;
    if (lanes.length !== this.header.lanes) {
      throw damaged(first.path, `its seal has ${lanes.length} lanes, its header ${this.header.lanes}`);
    }
    this.present = TrackSet.union(lanes.map((lane) => lane.present));
    this.zeroes = TrackSet.union(lanes.map((lane) => lane.zeroes));
    if (lanes.reduce((sum, lane) => sum + lane.present.size, 0) !== this.present.size) {
      throw damaged(first.path, 'a track is in several of its lanes');
    }
  }

  get id(): string {
    return this.header.id;
  }

  /** The files of all lanes. */
  get paths(): readonly string[] {
    return this.#lanes.map((lane) => lane.path);
  }

  /** The files of all lanes, with the directory as the set names it. */
  laneFiles(): readonly { readonly path: string; readonly directory: string }[] {
    const { directories } = present(this.#lanes[0], 'A set has a lane').record;
    return this.#lanes.map(({ path }, lane) => ({ path, directory: directories[lane] ?? '' }));
  }

  /** The tracks of one lane. Not to be changed. */
  tracksOfLane(lane: number): TrackSet {
    return present(this.#lanes[lane], `Set ${this.id} has no lane ${lane}`).present;
  }

  #laneWith(track: number): LaneReader | undefined {
    if (this.#lanes.length === 1) return this.#lanes[0];
    return this.#lanes.find((lane) => lane.present.has(track));
  }

  /** Where the track's content is in its lane; undefined for a track of zeroes and for one that is not in the set. */
  placeOf(track: number): (TrackPlace & { readonly lane: number }) | undefined {
    const lane = this.#laneWith(track);
    const place = lane?.placeOf(track);
    return lane === undefined || place === undefined ? undefined : { lane: lane.record.lane, ...place };
  }

  /** The BLAKE3 of the track's content; undefined for a track of zeroes and for one that is not in the set. */
  hashOf(track: number): Buffer | undefined {
    return this.#laneWith(track)?.hashOf(track);
  }

  /**
   * Where the given tracks are stored: each once, in each lane frame by frame in the order of arrival, the lanes
   * in turn. Tracks without content are left out. See `LaneReader.readPlan`.
   */
  *readPlan(tracks: TrackSet): Generator<FramePlan> {
    let plans = this.#lanes.map((lane) => lane.readPlan(tracks.intersection(lane.present)));
    while (plans.length > 0) {
      const going: typeof plans = [];
      for (const plan of plans) {
        const next = plan.next();
        if (next.done === true) continue;
        yield next.value;
        going.push(plan);
      }
      plans = going;
    }
  }

  /**
   * Reads tracks of one frame, each checked against its hash.
   *
   * @throws {CorruptionError} naming the set and, in `place.tracks`, the tracks that are damaged.
   */
  readFrame(plan: FramePlan): StoredTrack[] {
    return this.#lane(plan).readFrame(plan);
  }

  /** The frame as it is stored, for copying without unpacking. @throws {CorruptionError} as `readFrame`. */
  packedFrame(plan: FramePlan): PackedFrame {
    return this.#lane(plan).packedFrame(plan);
  }

  /** Reads one track, checked; undefined where it is zeroes or not in the set. @throws {CorruptionError} as `readFrame`. */
  readTrack(track: number): Buffer | undefined {
    return this.#laneWith(track)?.readTrack(track);
  }

  #lane({ lane }: FramePlan): LaneReader {
    return present(this.#lanes[lane], `Set ${this.id} has no lane ${lane}`);
  }

  /**
   * The object's ordering metadata, as stored; lane 0 has it.
   *
   * @throws {CorruptionError} where there is none; nothing is guessed.
   */
  object(name: string): StoredObject {
    return present(this.#lanes[0], 'A set has a lane').object(name);
  }

  /**
   * The object's ordering in blocks, from whichever form the set has. Arrivals in a further lane count from a
   * multiple of 2^32 tracks.
   *
   * @throws {CorruptionError} as `object`.
   */
  orderingOf(object: StoredObject): Ordering {
    const perTrack = this.header.trackSizeBytes / object.blockSizeBytes;
    if (!Number.isInteger(perTrack) || perTrack < 1) {
      throw damaged(this.path, `its object ${object.name} has blocks of ${object.blockSizeBytes} bytes`);
    }
    const labels = (address: number): { arrival: number; count: number } | undefined => {
      const track = Math.floor(address / perTrack);
      const into = address % perTrack;
      for (const [number, lane] of this.#lanes.entries()) {
        const found = lane.arrivalOf(track);
        if (found === undefined) continue;
        const arrival = (number * LANE_ARRIVALS + found.arrival) * perTrack + into;
        return { arrival, count: found.count * perTrack - into };
      }
      return undefined;
    };
    return normalise(object.ordering, labels, `${this.path}, object ${object.name}`);
  }

  /**
   * The object's content, block by block in its own order.
   *
   * @throws {CorruptionError} where metadata or a block is damaged or missing.
   */
  *readObject(name: string): Generator<Buffer> {
    const object = this.object(name);
    const perTrack = this.header.trackSizeBytes / object.blockSizeBytes;
    for (const row of this.orderingOf(object)) {
      for (let arrival = row.arrival; arrival < row.arrival + row.count; arrival += 1) {
        const track = this.readArrival(Math.floor(arrival / perTrack));
        const start = (arrival % perTrack) * object.blockSizeBytes;
        yield track.subarray(start, start + object.blockSizeBytes);
      }
    }
  }

  /** See `LaneReader.readArrival`; numbers as `orderingOf` counts them. */
  readArrival(arrival: number): Buffer {
    const lane = this.#lanes[Math.floor(arrival / LANE_ARRIVALS)];
    if (lane === undefined) {
      throw damaged(this.path, `it has no track that arrived as number ${arrival}`);
    }
    return lane.readArrival(arrival % LANE_ARRIVALS);
  }

  /** Releases the files and the lease. */
  async close(): Promise<void> {
    for (const lane of this.#lanes) await lane.close();
    this.#lease?.release();
  }
}

function openFirst(
  path: string,
  options: OpenSetOptions,
  lanes: LaneReader[],
): { seal: string; sealed: readonly LaneSeal[] } {
  let read: ReturnType<typeof decodeSeal> | undefined;
  const first = LaneReader.open(
    path,
    (digest, sealRecord) => {
      read = decodeSeal(sealRecord ?? Buffer.alloc(0), path);
      if (options.seal !== undefined && options.seal !== read.seal) {
        throw new CorruptionError(`Block set ${path} is not the one that the catalog names`, {
          where: path,
          expected: options.seal,
          found: read.seal,
        });
      }
      checkDigest(path, digest, read.lanes[0]);
    },
    options.master,
  );
  lanes.push(first);
  const { seal, lanes: sealed } = present(read, 'Lane 0 was checked');
  if (first.record.lane !== 0) throw damaged(path, `it is lane ${first.record.lane}, wanted lane 0`);
  return { seal, sealed };
}

function openOther(
  first: LaneReader,
  lane: number,
  sealed: readonly LaneSeal[],
  master: MasterKey | undefined,
): LaneReader {
  const places = lanePaths(first, lane);
  const path = places.find((place) => existsSync(place));
  if (path === undefined) {
    const message = `Block set ${first.header.id} lacks lane ${lane}: there is no ${places.join(' and no ')}`;
    throw new CorruptionError(message, { where: first.path });
  }
  return LaneReader.open(path, (digest) => checkDigest(path, digest, sealed[lane]), master);
}

/** Where a lane of a set may lie. */
export function lanePaths(first: LaneReader, lane: number): readonly string[] {
  const name = laneFileName(first.header.id, lane);
  const directory = first.record.directories[lane] ?? '';
  const beside = join(dirname(first.path), name);
  return directory === '' ? [beside] : [beside, join(directory, name)];
}

function checkDigest(path: string, found: Buffer, sealed: LaneSeal | undefined): void {
  if (sealed?.metadata.equals(found) === true) return;
  throw new CorruptionError(`Block set ${path} is damaged: its metadata is not what was sealed`, {
    where: path,
    expected: sealed?.metadata.toString('hex') ?? 'none',
    found: found.toString('hex'),
  });
}

function damaged(path: string, what: string): CorruptionError {
  return new CorruptionError(`Block set ${path} is damaged: ${what}`, { where: path });
}
