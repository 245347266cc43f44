/**
 * A volume as it was at a set's point, read straight from media, without a store: what a restore reads from.
 *
 * The media are read once, front to back, in any order, so tracks come when they come, those of an older set
 * perhaps after those of a newer one. Every medium announces all sets with their tracks, so it is known from
 * the first medium on which set of the chain each track is taken from: that is the overwrite map, worked out
 * in advance, and content that a newer set replaces is passed over wherever it lies.
 *
 * A set that was written to media while it was made is announced with its tracks only on the last of them. Until
 * then each of its tracks may come, and which are zero is known at the end: those are handed out last. Where no
 * medium says that the set was completed, that is said at the end as well, and the restore fails.
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
import { UNFINISHED } from './import.ts';
import { MediaReading, type ReadingOptions } from './media-reading.ts';
import { type AnnouncedSet, isWhole, type SetContent } from './medium-format.ts';
import type { SetRecord } from './medium-reader.ts';

/** The next frame that a medium gives, whichever that is. */
export interface MediaPlanEntry {
  readonly tracks: readonly number[];
}

export interface MediaTrack {
  readonly track: number;
  /** Undefined for zeroes. */
  readonly content: Buffer | undefined;
}

interface Link {
  readonly header: SetHeader;
  /** The tracks with content that the chain takes from this set and that were not handed out yet. */
  readonly wanted: TrackSet;
}

interface ChainSet {
  readonly header: SetHeader;
  /** Undefined where the set is only begun. */
  readonly content: SetContent | undefined;
}

/** Tracks of zeroes that are handed out together. */
const ZEROES_AT_ONCE = 4096;
/** Missing tracks that are named. */
const SHOWN_MAX = 8;

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
  /** The full set whose tracks show only at the end. */
  readonly #begun: Link | undefined;
  #isEnded = false;
  /** What is left of the set that was begun is zero. */
  #zeroes: TrackSet | undefined;

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
        chain.map(({ id }) => linkOf(reading.announcements.get(id), id)),
      );
    } catch (error) {
      await reading.close();
      throw error;
    }
  }

  private constructor(reading: MediaReading, chain: readonly ChainSet[]) {
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
    for (const { header, content } of chain) {
      const own = content?.present.intersection(open) ?? open.clone();
      open.deleteAll(own);
      const wanted = content === undefined ? own : own.difference(content.zeroes);
      links.set(header.id, { header, wanted });
    }
    this.#links = links;
    this.#begun = chain.every(({ content }) => content !== undefined)
      ? undefined
      : links.get(newest.header.id);
    this.#tracks = TrackSet.union([...links.values()].map(({ wanted }) => wanted));
  }

  /** What was found wrong on the media so far, sentences. */
  get findings(): readonly string[] {
    return this.#reading.findings;
  }

  /** The tracks whose effective content is not known to be zero; a copy. Every other track of the volume is zero. */
  tracks(): TrackSet {
    return this.#tracks.clone();
  }

  /**
   * Reads on until all of `tracks` were handed out or the media end: each entry stands for the next frame, and
   * its tracks show only when it is read. To be called once.
   */
  *readPlan(tracks: TrackSet): Generator<MediaPlanEntry> {
    for (const { wanted } of this.#links.values()) wanted.deleteAll(wanted.difference(tracks));
    while (this.#isWanting()) yield { tracks: [] };
  }

  #isWanting(): boolean {
    // That the set was completed has to be seen, though nothing of it is missing.
    if (this.#begun !== undefined && !this.#isEnded) return true;
    for (const { wanted } of this.#links.values()) if (!wanted.isEmpty) return true;
    return false;
  }

  /**
   * The wanted tracks of the next frame that has any, or zeroes; none where the media have ended and nothing is
   * missing.
   *
   * @throws {CorruptionError} where the media ended before all was found, with the tracks.
   */
  async readFrame(): Promise<readonly MediaTrack[]> {
    if (this.#isEnded) return this.#takeZeroes();
    for (let next = await this.#records.next(); next.done !== true; next = await this.#records.next()) {
      const tracks = this.#take(next.value);
      if (tracks.length > 0) return tracks;
    }
    this.#isEnded = true;
    if (this.#begun !== undefined) this.#learnZeroes(this.#begun);
    const missing = TrackSet.union([...this.#links.values()].map(({ wanted }) => wanted));
    if (this.#zeroes !== undefined) missing.deleteAll(this.#zeroes);
    if (missing.isEmpty) return this.#takeZeroes();
    throw this.#lacking(
      `track ${shownTracks(missing.toArray())} of set ${this.header.id}`,
      missing.toArray(),
    );
  }

  #learnZeroes({ header, wanted }: Link): void {
    const announced = this.#reading.announcements.get(header.id);
    const content = announced === undefined || !isWhole(announced) ? undefined : announced.content;
    if (content === undefined) throw this.#lacking(`set ${header.id} as a whole: ${UNFINISHED}`, []);
    this.#zeroes = wanted.difference(content.present);
  }

  /** Some of the tracks that are known to be zero now. */
  #takeZeroes(): MediaTrack[] {
    const { wanted } = this.#begun ?? {};
    if (this.#zeroes === undefined || wanted === undefined) return [];
    for (const { first, count } of this.#zeroes.runs()) {
      const run = { first, count: Math.min(count, ZEROES_AT_ONCE) };
      const taken = TrackSet.ofRun(run);
      this.#zeroes.deleteAll(taken);
      wanted.deleteAll(taken);
      return taken.toArray().map((track) => ({ track, content: undefined }));
    }
    return [];
  }

  #lacking(what: string, tracks: readonly number[]): CorruptionError {
    const { missingMedia, findings, label } = this.#reading;
    const media = missingMedia.length > 0 ? `; medium ${missingMedia.join(', ')} was not read` : '';
    const note = findings.length > 0 ? `; ${findings[0]}` : '';
    return new CorruptionError(`The media of ${label} lack ${what}${media}${note}`, { where: label, tracks });
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

function shownTracks(tracks: readonly number[]): string {
  if (tracks.length <= SHOWN_MAX) return tracks.join(', ');
  return `${tracks.slice(0, SHOWN_MAX).join(', ')} and ${tracks.length - SHOWN_MAX} more`;
}

/** Announced sets stand in for those of a store where one is chosen. */
function asStored(set: AnnouncedSet): StoredSet {
  const { id } = set;
  const common = { id, path: id, lanePaths: [], lengthBytes: 0, damage: undefined };
  if (!isWhole(set)) return { ...common, header: set.header, counters: undefined, seal: undefined };
  const { header, counters } = set.content ?? { header: undefined, counters: undefined };
  return { ...common, header, counters, seal: set.seal };
}

function knownSet(sets: readonly StoredSet[], selector: string): StoredSet {
  const [first] = sets;
  if (first !== undefined && sets.every(({ header }) => header === undefined)) throw encrypted(first.id);
  const found = selectSet(sets, selector);
  if (found.header !== undefined) return found;
  throw encrypted(found.id);
}

function linkOf(set: AnnouncedSet | undefined, id: string): ChainSet {
  if (set === undefined) throw encrypted(id);
  if (!isWhole(set)) return { header: set.header, content: undefined };
  if (set.content === undefined) throw encrypted(id);
  return { header: set.content.header, content: set.content };
}

function encrypted(set: string): MediaError {
  return new MediaError('encrypted', `Set ${set} is encrypted, wanted an import into a store first`, { set });
}
