/**
 * Takes sets from media into a store. Records go straight into a partial set as they are found, whatever the
 * order of media and pieces; a set that has all its records is checked against its seal and becomes visible,
 * the same set as it was, with its id and seal. A set that stays incomplete leaves nothing behind, and what it
 * lacks is told, as tracks where that can be known.
 *
 * Needs nothing but the media and the directory of the store.
 */

import { CorruptionError } from '../base/index.ts';
import type { LostStore, RawRecord, RawSetWriter, Store } from '../blockset/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { MediaError } from './errors.ts';
import { MediaReading, type ReadingOptions } from './media-reading.ts';
import { type AnnouncedSet, isWhole, type MediaCatalog, type SetAnnouncement } from './medium-format.ts';
import type { MediaRecord } from './piece-codec.ts';

export interface ImportOptions extends ReadingOptions {
  readonly onProgress?: (progress: ImportProgress) => void;
}

export type OpenStore = (from: LostStore | undefined) => Promise<Store>;

export interface ImportProgress {
  readonly framesDone: number;
  readonly framesTotal: number;
  readonly medium: number;
}

/** What a set lacks that could not be imported. */
export interface IncompleteSet {
  readonly set: string;
  /** Tracks with content that no medium gave; undefined where only the set itself would say. */
  readonly missingTracks: TrackSet | undefined;
  readonly missingFrames: number;
  readonly missingMetadata: number;
  /** Why the set was not taken, where that is not for records that are missing; undefined where it is. */
  readonly damage: string | undefined;
}

export interface ImportResult {
  readonly writing: string;
  readonly label: string;
  readonly imported: readonly string[];
  /** Sets that the store had already. */
  readonly skipped: readonly string[];
  readonly incomplete: readonly IncompleteSet[];
  /** Media that were not read, as far as is known; those that could hold what is missing. */
  readonly missingMedia: readonly number[];
  /** What was found wrong on the media. */
  readonly findings: readonly string[];
  /** Which media hold what; undefined where no medium said. */
  readonly catalog: MediaCatalog | undefined;
}

/**
 * Imports all sets of a writing. Complete ones are in the store, durably, when it returns, whether or not others
 * are incomplete: `incompleteError` makes an error of those.
 *
 * @param openStore gives the store once it is known which store the sets come from, so that one can be made in its
 *   place; undefined where no medium says.
 * @throws {MediaError} with any code for reading, or `other-set`.
 * @throws {StoreError} with any code for writing, `key-needed` where the sets are encrypted and the store is not.
 */
export async function importMedia(openStore: OpenStore, options: ImportOptions): Promise<ImportResult> {
  const reading = await MediaReading.open(options);
  try {
    const { store: id, keys } = reading;
    const lost = keys === undefined ? {} : { keys: Buffer.from(keys) };
    const store = await openStore(id === undefined ? undefined : { id, ...lost });
    const run = new ImportRun(store, reading, options);
    try {
      await run.read();
      return await run.result();
    } finally {
      await run.close();
      await store.enterComplete();
    }
  } finally {
    await reading.close();
  }
}

interface Taking {
  readonly writer: RawSetWriter;
  readonly tracks: TrackSet;
}

class ImportRun {
  readonly #store: Store;
  readonly #reading: MediaReading;
  readonly #options: ImportOptions;
  readonly #taking = new Map<string, Taking>();
  readonly #imported = new Set<string>();
  readonly #skipped = new Set<string>();
  readonly #damaged = new Map<string, string>();
  #framesDone = 0;

  constructor(store: Store, reading: MediaReading, options: ImportOptions) {
    this.#store = store;
    this.#reading = reading;
    this.#options = options;
  }

  async read(): Promise<void> {
    await this.#skipKnown();
    const isDone = async (): Promise<boolean> => {
      await this.#sealAnnounced();
      return this.#isDone();
    };
    for await (const { set, record } of this.#reading.records(isDone)) {
      if (!this.#isSettled(set)) await this.#take(set, record);
    }
  }

  async #skipKnown(): Promise<void> {
    for (const { id, seal } of await this.#store.list()) {
      const announced = this.#reading.announcements.get(id);
      if (announced === undefined) continue;
      // Of a set that is only begun here there is nothing else that its id could mean.
      if (isWhole(announced) && announced.seal !== seal) {
        throw new MediaError('other-set', `Set ${id} is in the store already, with another seal`, {
          set: id,
        });
      }
      this.#skipped.add(id);
    }
  }

  #isSettled(set: string): boolean {
    return this.#imported.has(set) || this.#skipped.has(set) || this.#damaged.has(set);
  }

  /** Whether nothing is left to be found; media that were not read are not needed then. */
  #isDone(): boolean {
    for (const id of this.#reading.announcements.keys()) if (!this.#isSettled(id)) return false;
    return true;
  }

  async #take(set: string, record: MediaRecord): Promise<void> {
    const announcement = this.#reading.announcements.get(set);
    if (announcement === undefined) return;
    const taking = this.#taking.get(set) ?? { writer: this.#store.takeSet(set), tracks: TrackSet.empty() };
    this.#taking.set(set, taking);
    const { writer } = taking;
    const before = writer.frameCount;
    writer.put(bare(record));
    for (const { track } of record.places) taking.tracks.add(track);
    if (writer.frameCount > before) this.#report();
    await this.#sealWhole(announcement, taking);
  }

  /** Sets whose end became known on a medium that had none of their records behind it. */
  async #sealAnnounced(): Promise<void> {
    for (const [set, taking] of this.#taking) {
      const announcement = this.#reading.announcements.get(set);
      if (announcement !== undefined) await this.#sealWhole(announcement, taking);
    }
  }

  async #sealWhole(announcement: AnnouncedSet, { writer }: Taking): Promise<void> {
    if (!isWhole(announcement)) return;
    const { frames, metadataRecords } = announcement;
    if (writer.frameCount !== frames || writer.metadataCount !== metadataRecords) return;
    await this.#seal(announcement, writer);
  }

  #report(): void {
    this.#framesDone += 1;
    const wanted = [...this.#reading.announcements.values()].filter(({ id }) => !this.#skipped.has(id));
    // Of a set that is only begun no more is known than what has been found.
    const framesTotal = wanted.reduce(
      (sum, set) => sum + (isWhole(set) ? set.frames : (this.#taking.get(set.id)?.writer.frameCount ?? 0)),
      0,
    );
    this.#options.onProgress?.({
      framesDone: this.#framesDone,
      framesTotal,
      medium: this.#reading.states.medium,
    });
  }

  async #seal({ id: set, seal }: SetAnnouncement, writer: RawSetWriter): Promise<void> {
    this.#taking.delete(set);
    try {
      await writer.seal(seal);
      this.#imported.add(set);
    } catch (error) {
      await writer.abort();
      if (!(error instanceof CorruptionError)) throw error;
      this.#damaged.set(set, error.message);
    }
  }

  async result(): Promise<ImportResult> {
    await this.#reading.close();
    const { writing, label, missingMedia, findings, catalog } = this.#reading;
    const incomplete: IncompleteSet[] = [];
    for (const announcement of this.#reading.announcements.values()) {
      const { id } = announcement;
      if (this.#imported.has(id) || this.#skipped.has(id)) continue;
      incomplete.push(this.#incomplete(announcement, this.#damaged.get(id)));
    }
    const imported = [...this.#imported];
    return {
      writing,
      label,
      imported,
      skipped: [...this.#skipped],
      incomplete,
      missingMedia,
      findings,
      catalog,
    };
  }

  #incomplete(announcement: AnnouncedSet, damage: string | undefined): IncompleteSet {
    const { id: set } = announcement;
    const nothing = { missingTracks: undefined, missingFrames: 0, missingMetadata: 0 };
    if (damage !== undefined) return { set, ...nothing, damage };
    if (!isWhole(announcement)) return { set, ...nothing, damage: `it lacks ${UNFINISHED}` };
    const { frames, metadataRecords, content } = announcement;
    const taking = this.#taking.get(set);
    const wanted = content?.present.difference(content.zeroes);
    return {
      set,
      missingTracks: wanted?.difference(taking?.tracks ?? TrackSet.empty()),
      missingFrames: frames - (taking?.writer.frameCount ?? 0),
      missingMetadata: metadataRecords - (taking?.writer.metadataCount ?? 0),
      damage: undefined,
    };
  }

  /** Removes what is incomplete. */
  async close(): Promise<void> {
    for (const { writer } of this.#taking.values()) await writer.abort();
  }
}

function bare({ lane, database, key, value }: MediaRecord): RawRecord {
  return { lane, database, key, value };
}

/** The error for an import that left sets out; undefined where it left none. */
export function incompleteError(result: ImportResult): CorruptionError | MediaError | undefined {
  const [first] = result.incomplete;
  if (first === undefined) return undefined;
  const others = result.incomplete.length > 1 ? `, and ${result.incomplete.length - 1} more sets are` : '';
  const what = `Set ${first.set} is incomplete on the media${others}: ${lackOf(first)}`;
  if (result.findings.length === 0 && result.missingMedia.length > 0) {
    const missing = result.missingMedia;
    return new MediaError('no-medium', `${what}; medium ${missing.join(', ')} was not read`, { missing });
  }
  const tracks = first.missingTracks?.toArray() ?? [];
  return new CorruptionError(`${what}${first.damage === undefined ? noteOf(result.findings) : ''}`, {
    where: `media of ${result.label}`,
    tracks,
  });
}

function noteOf(findings: readonly string[]): string {
  return findings.length === 0 ? '' : `; ${findings[0]}`;
}

/** What a set lacks that is only begun on the media that were read. */
export const UNFINISHED =
  'the end of the backup that wrote it, which failed or is on a medium that was not read';

/** What is missing, in words. */
export function lackOf(set: IncompleteSet): string {
  if (set.damage !== undefined) return set.damage;
  const tracks = set.missingTracks;
  const metadata = set.missingMetadata > 0 ? `${set.missingMetadata} records of metadata` : '';
  if (tracks === undefined || tracks.isEmpty) {
    return [set.missingFrames > 0 ? `${set.missingFrames} frames` : '', metadata]
      .filter(Boolean)
      .join(' and ');
  }
  const lost = `track${tracks.size === 1 ? '' : 's'} ${rangesOf(tracks)}`;
  return [lost, metadata].filter(Boolean).join(' and ');
}

const RANGES_SHOWN_MAX = 8;

function rangesOf(tracks: TrackSet): string {
  const shown: string[] = [];
  for (const { first, count } of tracks.runs()) {
    if (shown.length === RANGES_SHOWN_MAX) return `${shown.join(', ')} and others, ${tracks.size} in all`;
    shown.push(count === 1 ? String(first) : `${first} to ${first + count - 1}`);
  }
  return shown.join(', ');
}
