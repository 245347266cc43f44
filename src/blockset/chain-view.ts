/**
 * A volume as it was at a set's point, read through the set's chain.
 *
 * For each track the newest set that has it counts: its content, or its zeroes. A track that no set of the
 * chain has is zero. Which set serves which tracks is worked out once, by set algebra over the sets' bitmaps,
 * so a track costs nothing until it is read.
 *
 * The order of reading is set by set, newest first, and within a set in the order of arrival.
 *
 * In a salvage a set may lack tracks. Such a track is lost, also where an older set of the chain has it: what it was
 * then is not what it was at the point.
 */

import { assert, CorruptionError } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { type SetHeader, trackBytesOf, trackCountOf } from './set-format.ts';
import type { FramePlan, StoredTrack } from './lane-reader.ts';

/** Tracks that lie in one frame of one set. */
export interface ChainPlanEntry {
  /** The set's id. */
  readonly set: string;
  readonly lane: number;
  readonly frame: number;
  readonly tracks: readonly number[];
}

/** What a chain needs of a set: a `SetReader`, or a set that is salvaged. */
export interface ChainSet {
  readonly id: string;
  readonly path: string;
  readonly header: SetHeader;
  /** The tracks that can be read, those of zeroes included. */
  readonly present: TrackSet;
  readonly zeroes: TrackSet;
  /** The tracks that the set has, or may have, and that cannot be read; none when absent. */
  readonly lost?: TrackSet;
  hashOf(track: number): Buffer | undefined;
  readPlan(tracks: TrackSet): Iterable<FramePlan>;
  readFrame(plan: FramePlan): StoredTrack[];
  readTrack(track: number): Buffer | undefined;
  close(): Promise<void>;
}

/** What of a chain could not be opened. */
export interface ChainDamage {
  /** An older set is missing: what no set of the chain has is lost. */
  readonly isCut: boolean;
  readonly findings: readonly string[];
}

interface Link {
  readonly reader: ChainSet;
  /** The tracks with content that the chain takes from this set. */
  readonly serves: TrackSet;
}

export class ChainView {
  /** The header of the set that the view was opened for. */
  readonly header: SetHeader;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly trackCount: number;
  readonly #links: readonly Link[];
  readonly #tracks: TrackSet;
  readonly #lost: TrackSet;
  /** What was found damaged when the chain was opened to be salvaged, sentences. */
  readonly findings: readonly string[];

  /** @param readers the chain, newest first, at least one; closed by `close`. */
  constructor(readers: readonly ChainSet[], damage: ChainDamage = { isCut: false, findings: [] }) {
    const [newest] = readers;
    assert(newest !== undefined, 'A chain has a set');
    this.header = newest.header;
    this.sizeBytes = newest.header.sizeBytes;
    this.trackSizeBytes = newest.header.trackSizeBytes;
    this.trackCount = trackCountOf(newest.header);
    const open = TrackSet.all(this.trackCount);
    const lost: TrackSet[] = [];
    this.#links = readers.map((reader) => {
      const own = reader.present.intersection(open);
      open.deleteAll(own);
      if (reader.lost !== undefined) {
        lost.push(reader.lost.intersection(open));
        open.deleteAll(reader.lost);
      }
      return { reader, serves: own.difference(reader.zeroes) };
    });
    this.#tracks = TrackSet.union(this.#links.map((link) => link.serves));
    if (damage.isCut) lost.push(open);
    this.#lost = TrackSet.union(lost);
    this.findings = damage.findings;
  }

  /** Ids of the chain's sets, newest first. */
  get sets(): readonly string[] {
    return this.#links.map((link) => link.reader.id);
  }

  /** The tracks whose effective content is not zero; a copy. Every other track of the volume is zero, or lost. */
  tracks(): TrackSet {
    return this.#tracks.clone();
  }

  /** The tracks that are lost; a copy. Empty but in a salvage, and never one of `tracks`. */
  lost(): TrackSet {
    return this.#lost.clone();
  }

  /**
   * The BLAKE3 of the track's effective content; undefined for a track of zeroes, and for one that the volume did not
   * have yet. The buffer is not to be changed.
   */
  hashOf(track: number): Buffer | undefined {
    return this.#serving(track)?.reader.hashOf(track);
  }

  #serving(track: number): Link | undefined {
    return this.#links.find((link) => link.serves.has(track));
  }

  /** Where the tracks are stored, each once, in storage order; tracks of zeroes are left out. */
  *readPlan(tracks: TrackSet): Generator<ChainPlanEntry> {
    for (const { reader, serves } of this.#links) {
      for (const plan of reader.readPlan(serves.intersection(tracks))) yield { set: reader.id, ...plan };
    }
  }

  /**
   * Reads one entry of a plan, every track checked against its hash (promise 7).
   *
   * @returns the tracks in the entry's order; fresh buffers that nobody changes afterwards.
   * @throws {CorruptionError} naming the set and the damaged tracks.
   */
  readFrame(entry: ChainPlanEntry): StoredTrack[] {
    const link = this.#links.find(({ reader }) => reader.id === entry.set);
    assert(link !== undefined, `Set ${entry.set} is not in the chain`);
    return link.reader
      .readFrame(entry)
      .map(({ track, content }) => ({ track, content: this.#sized(track, content) }));
  }

  /** The last track of a set that was taken before the volume grew is shorter than the track is now. */
  #sized(track: number, content: Buffer): Buffer {
    const wanted = trackBytesOf(this, track);
    if (content.length === wanted) return content;
    if (content.length > wanted) return content.subarray(0, wanted);
    return Buffer.concat([content], wanted);
  }

  /** Reads one track; undefined where it is zeroes. @throws {CorruptionError} as `readFrame`. */
  readTrack(track: number): Buffer | undefined {
    assert(track >= 0 && track < this.trackCount, `Track ${track} is not below ${this.trackCount}`);
    const link = this.#serving(track);
    if (link === undefined) return undefined;
    const content = link.reader.readTrack(track);
    if (content === undefined) {
      const where = link.reader.path;
      throw new CorruptionError(`Block set ${link.reader.id} lacks track ${track}`, {
        where,
        tracks: [track],
      });
    }
    return this.#sized(track, content);
  }

  async close(): Promise<void> {
    for (const { reader } of this.#links) await reader.close();
  }
}
