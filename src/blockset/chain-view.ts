/**
 * A volume as it was at a set's point, read through the set's chain.
 *
 * For each track the newest set that has it counts: its content, or its zeroes. A track that no set of the
 * chain has is zero. Which set serves which tracks is worked out once, by set algebra over the sets' bitmaps,
 * so a track costs nothing until it is read.
 *
 * The order of reading is set by set, newest first, and within a set in the order of arrival.
 */

import { assert, CorruptionError } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { type SetHeader, trackBytesOf, trackCountOf } from './set-format.ts';
import type { StoredTrack } from './lane-reader.ts';
import type { SetReader } from './set-reader.ts';

/** Tracks that lie in one frame of one set. */
export interface ChainPlanEntry {
  /** The set's id. */
  readonly set: string;
  readonly lane: number;
  readonly frame: number;
  readonly tracks: readonly number[];
}

interface Link {
  readonly reader: SetReader;
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

  /** @param readers the chain, newest first, at least one; closed by `close`. */
  constructor(readers: readonly SetReader[]) {
    const [newest] = readers;
    assert(newest !== undefined, 'A chain has a set');
    this.header = newest.header;
    this.sizeBytes = newest.header.sizeBytes;
    this.trackSizeBytes = newest.header.trackSizeBytes;
    this.trackCount = trackCountOf(newest.header);
    const open = TrackSet.all(this.trackCount);
    this.#links = readers.map((reader) => {
      const own = reader.present.intersection(open);
      open.deleteAll(own);
      return { reader, serves: own.difference(reader.zeroes) };
    });
    this.#tracks = TrackSet.union(this.#links.map((link) => link.serves));
  }

  /** Ids of the chain's sets, newest first. */
  get sets(): readonly string[] {
    return this.#links.map((link) => link.reader.id);
  }

  /** The tracks whose effective content is not zero; a copy. Every other track of the volume is zero. */
  tracks(): TrackSet {
    return this.#tracks.clone();
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
