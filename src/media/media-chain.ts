/**
 * A volume as it was at a set's point, read straight from media, without a store: what a restore reads from.
 *
 * The media are read once, front to back, in any order, so tracks come when they come, those of an older set
 * perhaps after those of a newer one. Every medium announces all sets with their tracks, so it is known from
 * the first medium on which set of the chain each track is taken from: that is the overwrite map, worked out
 * in advance, and content that a newer set replaces is passed over wherever it lies.
 *
 * Every track is checked against its hash before it is handed out (promise 7). What no medium gave is said at
 * the end, track by track; what was found was handed out before.
 */

import { assert, CorruptionError } from '../base/index.ts';
import {
  chainOf,
  selectSet,
  type SetHeader,
  type StoredSet,
  trackBytesOf,
  trackCountOf,
  unpackFrame,
} from '../blockset/index.ts';
import { digest } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { MediaError } from './errors.ts';
import { MediaReading, type ReadingOptions } from './media-reading.ts';
import type { SetAnnouncement, SetContent } from './medium-format.ts';
import type { SetRecord } from './medium-reader.ts';

/** The next frame that a medium gives, whichever that is. */
export interface MediaPlanEntry {
  readonly tracks: readonly number[];
}

export interface MediaTrack {
  readonly track: number;
  readonly content: Buffer;
}

interface Link {
  readonly header: SetHeader;
  /** The tracks with content that the chain takes from this set and that were not handed out yet. */
  readonly wanted: TrackSet;
}

export class MediaChain {
  readonly header: SetHeader;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  /** Ids of the chain's sets, newest first. */
  readonly sets: readonly string[];
  readonly #reading: MediaReading;
  readonly #records: AsyncGenerator<SetRecord>;
  readonly #links: ReadonlyMap<string, Link>;
  readonly #tracks: TrackSet;
  #isEnded = false;

  /**
   * Opens the first medium and finds the set and its chain among those that it announces.
   *
   * @param selector as for a store: an id or unique prefix, `latest`, `latest:<volume id or name>`.
   * @throws {MediaError} with any code for reading, or `encrypted`.
   * @throws {StoreError} `unknown-set`, `ambiguous-set` or `missing-base`.
   */
  static async open(selector: string, options: ReadingOptions): Promise<MediaChain> {
    const reading = await MediaReading.open(options);
    try {
      const sets = [...reading.announcements.values()].map(asStored);
      const chain = chainOf(sets, knownSet(sets, selector).id);
      return new MediaChain(
        reading,
        chain.map(({ id }) => contentOf(reading.announcements.get(id), id)),
      );
    } catch (error) {
      await reading.close();
      throw error;
    }
  }

  private constructor(reading: MediaReading, chain: readonly SetContent[]) {
    const [newest] = chain;
    assert(newest !== undefined, 'A chain has a set');
    this.header = newest.header;
    this.sizeBytes = newest.header.sizeBytes;
    this.trackSizeBytes = newest.header.trackSizeBytes;
    this.sets = chain.map(({ header }) => header.id);
    this.#reading = reading;
    this.#records = reading.records();
    const open = TrackSet.all(trackCountOf(newest.header));
    const links = new Map<string, Link>();
    for (const { header, present, zeroes } of chain) {
      const own = present.intersection(open);
      open.deleteAll(own);
      links.set(header.id, { header, wanted: own.difference(zeroes) });
    }
    this.#links = links;
    this.#tracks = TrackSet.union([...links.values()].map(({ wanted }) => wanted));
  }

  /** What was found wrong on the media so far, sentences. */
  get findings(): readonly string[] {
    return this.#reading.findings;
  }

  /** The tracks whose effective content is not zero; a copy. Every other track of the volume is zero. */
  tracks(): TrackSet {
    return this.#tracks.clone();
  }

  /**
   * Reads on until all of `tracks` were handed out or the media end: each entry stands for the next frame, and
   * its tracks show only when it is read. To be called once.
   */
  *readPlan(tracks: TrackSet): Generator<MediaPlanEntry> {
    for (const { wanted } of this.#links.values()) wanted.deleteAll(wanted.difference(tracks));
    while (!this.#isEnded && this.#isWanting()) yield { tracks: [] };
  }

  #isWanting(): boolean {
    for (const { wanted } of this.#links.values()) if (!wanted.isEmpty) return true;
    return false;
  }

  /**
   * The wanted tracks of the next frame that has any; none where the media have ended and nothing is missing.
   *
   * @throws {CorruptionError} where the media ended before all was found, with the tracks.
   */
  async readFrame(): Promise<readonly MediaTrack[]> {
    for (let next = await this.#records.next(); next.done !== true; next = await this.#records.next()) {
      const tracks = this.#take(next.value);
      if (tracks.length > 0) return tracks;
    }
    this.#isEnded = true;
    const missing = TrackSet.union([...this.#links.values()].map(({ wanted }) => wanted));
    if (missing.isEmpty) return [];
    throw this.#lacking(missing.toArray());
  }

  #lacking(tracks: readonly number[]): CorruptionError {
    const { missingMedia, findings, label } = this.#reading;
    const shown =
      tracks.length > 8
        ? `${tracks.slice(0, 8).join(', ')} and ${tracks.length - 8} more`
        : tracks.join(', ');
    const media = missingMedia.length > 0 ? `; medium ${missingMedia.join(', ')} was not read` : '';
    const note = findings.length > 0 ? `; ${findings[0]}` : '';
    const message = `The media of ${label} lack track ${shown} of set ${this.header.id}${media}${note}`;
    return new CorruptionError(message, { where: label, tracks });
  }

  #take({ set, record }: SetRecord): MediaTrack[] {
    const link = this.#links.get(set);
    if (link === undefined || record.database !== 'frames') return [];
    const places = record.places.filter(({ track }) => link.wanted.has(track));
    if (places.length === 0) return [];
    const { header } = link;
    let raw: Buffer;
    try {
      raw = unpackFrame(record.value, header.trackSizeBytes, `of set ${set}`).raw;
    } catch (error) {
      // Left wanted: another medium may have it, and if not the end says so.
      if (error instanceof CorruptionError) return [];
      throw error;
    }
    const taken: MediaTrack[] = [];
    for (const { track, position, hash } of places) {
      const start = position * header.trackSizeBytes;
      const content = raw.subarray(start, start + trackBytesOf(header, track));
      if (!digest(content).equals(hash)) continue;
      link.wanted.delete(track);
      taken.push({ track, content: this.#sized(track, content) });
    }
    return taken;
  }

  /** The last track of a set that was taken before the volume grew is shorter than the track is now. */
  #sized(track: number, content: Buffer): Buffer {
    const wanted = trackBytesOf(this, track);
    if (content.length === wanted) return content;
    if (content.length > wanted) return content.subarray(0, wanted);
    return Buffer.concat([content], wanted);
  }

  async close(): Promise<void> {
    await this.#records.return(undefined);
    await this.#reading.close();
  }
}

/** Announced sets stand in for those of a store where one is chosen. */
function asStored({ id, seal, content }: SetAnnouncement): StoredSet {
  const { header, counters } = content ?? { header: undefined, counters: undefined };
  return { id, path: id, header, counters, seal, lanePaths: [], lengthBytes: 0, damage: undefined };
}

function knownSet(sets: readonly StoredSet[], selector: string): StoredSet {
  const [first] = sets;
  if (first !== undefined && sets.every(({ header }) => header === undefined)) throw encrypted(first.id);
  const found = selectSet(sets, selector);
  if (found.header !== undefined) return found;
  throw encrypted(found.id);
}

function contentOf(announcement: SetAnnouncement | undefined, id: string): SetContent {
  if (announcement?.content === undefined) throw encrypted(id);
  return announcement.content;
}

function encrypted(set: string): MediaError {
  return new MediaError('encrypted', `Set ${set} is encrypted, wanted an import into a store first`, { set });
}
