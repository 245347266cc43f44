/**
 * Writes sets of a store to media (EXAMPLES B12): records arrive from several sets in turn, gather into pieces
 * of one set each, and go out as each piece is full; the metadata of these sets follows. Then come the next sets.
 *
 *     store --records, set by set in turn--> accumulator --pieces--> writing --> media
 *
 * Whatever is read is checked against its checksum on the way: a damaged set fails the export and does not reach
 * a medium unnoticed. Memory is some pieces, whatever the sets hold. The sets are leased while they are written.
 */

import { assert, LIMITS } from '../base/index.ts';
import { RawSet, type SetReader, type Store, type StoredSet } from '../blockset/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { Accumulator, type PieceThreshold } from './accumulator.ts';
import { MediaWriting, type WritingOptions } from './media-writing.ts';
import type { MediaCatalog, SetAnnouncement } from './medium-format.ts';
import { type MediaRecord, recordBytes } from './piece-codec.ts';

/** A record as it comes from one of the sets that are written at once. */
export interface Arrival {
  readonly set: string;
  readonly record: MediaRecord;
}

export interface ExportOptions extends Omit<WritingOptions, 'store' | 'keys' | 'announcements'> {
  /** When a piece is full; `LIMITS.mediaPieceBytes` where left out. */
  readonly threshold?: PieceThreshold;
  /** Sets that are written at once, up to `LIMITS.mediaStreamCountMax`. */
  readonly streams?: number;
  readonly onProgress?: (progress: ExportProgress) => void;
}

export interface ExportProgress {
  /** Bytes of the sets' frames that went out, and of all. */
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly medium: number;
}

export interface ExportResult {
  readonly catalog: MediaCatalog;
  readonly sets: readonly string[];
  /** Bytes on all media. */
  readonly bytesWritten: number;
}

interface OpenSet {
  readonly id: string;
  readonly reader: SetReader;
  readonly raw: RawSet;
}

/**
 * Exports sets. When it returns, all media have ended and those that are files are durable.
 *
 * @param sets as the store lists them; written in this order.
 * @throws {MediaError} with any code for writing. @throws {CorruptionError} where a set is damaged.
 */
export async function exportSets(
  store: Store,
  sets: readonly StoredSet[],
  options: ExportOptions,
): Promise<ExportResult> {
  assert(sets.length <= LIMITS.mediaSetCountMax, `A writing of ${sets.length} sets is asked for`);
  const opened: OpenSet[] = [];
  try {
    for (const set of sets) opened.push({ id: set.id, reader: store.openSet(set), raw: RawSet.open(set) });
    const announcements = opened.map(announcementOf);
    const writing = new MediaWriting({ ...options, store: store.id, keys: store.keysCopy(), announcements });
    const streams = Math.min(options.streams ?? LIMITS.mediaStreamCountMax, LIMITS.mediaStreamCountMax);
    const run = new ExportRun(writing, options, opened);
    try {
      for (let at = 0; at < opened.length; at += streams)
        await run.writeGroup(opened.slice(at, at + streams));
    } catch (error) {
      await writing.fail(error);
      throw error;
    }
    const catalog = await writing.finish();
    return { catalog, sets: sets.map(({ id }) => id), bytesWritten: writing.writtenBytes };
  } finally {
    for (const { reader, raw } of opened) {
      await raw.close();
      await reader.close();
    }
  }
}

function announcementOf({ id, reader, raw }: OpenSet): SetAnnouncement {
  const { header, counters, seal, present, zeroes } = reader;
  const content = raw.isEncrypted ? undefined : { header, counters, present, zeroes };
  return { id, seal, frames: raw.frameCount, metadataRecords: raw.metadataCount, content };
}

class ExportRun {
  readonly #writing: MediaWriting;
  readonly #options: ExportOptions;
  readonly #bytesTotal: number;
  #bytesDone = 0;

  constructor(writing: MediaWriting, options: ExportOptions, sets: readonly OpenSet[]) {
    this.#writing = writing;
    this.#options = options;
    this.#bytesTotal = sets.reduce((sum, { reader }) => sum + reader.counters.bytesStored, 0);
  }

  async writeGroup(sets: readonly OpenSet[]): Promise<void> {
    const threshold = this.#options.threshold ?? { bytes: LIMITS.mediaPieceBytes };
    const arrivals = inTurn(sets.map(({ id, reader, raw }) => ({ id, records: framesOf(reader, raw) })));
    for await (const piece of piecesOf(arrivals, threshold)) {
      await this.#writing.write(piece.set, 'frames', piece.records);
      this.#report(piece.records);
    }
    for (const { id, raw } of sets) {
      for (const records of gathered(metadataOf(raw), threshold.bytes)) {
        await this.#writing.write(id, 'metadata', records);
      }
    }
  }

  #report(records: readonly MediaRecord[]): void {
    this.#bytesDone += records.reduce((sum, { value }) => sum + value.length, 0);
    this.#options.onProgress?.({
      bytesDone: Math.min(this.#bytesDone, this.#bytesTotal),
      bytesTotal: this.#bytesTotal,
      medium: this.#writing.states.medium,
    });
  }
}

/** Pieces of what arrives for several sets at once, each last in first out. */
export async function* piecesOf(
  arrivals: Iterable<Arrival> | AsyncIterable<Arrival>,
  threshold: PieceThreshold,
): AsyncGenerator<{ readonly set: string; readonly records: readonly MediaRecord[] }> {
  const accumulator = new Accumulator<MediaRecord>(threshold);
  for await (const { set, record } of arrivals) {
    const piece = accumulator.add(set, record, { bytes: recordBytes(record), tracks: record.places.length });
    if (piece !== undefined) yield { set: piece.set, records: piece.items };
  }
  for (const piece of accumulator.drain()) yield { set: piece.set, records: piece.items };
}

/** One record of each set in turn. */
function* inTurn(
  sets: readonly { readonly id: string; readonly records: Iterator<MediaRecord> }[],
): Generator<Arrival> {
  let open = [...sets];
  while (open.length > 0) {
    const going: typeof open = [];
    for (const set of open) {
      const next = set.records.next();
      if (next.done === true) continue;
      going.push(set);
      yield { set: set.id, record: next.value };
    }
    open = going;
  }
}

/**
 * The frames of a set in the order of their arrival, each with its tracks. One that a set larger than a plan's
 * window uses in several windows comes once for each, with the tracks of that window.
 */
function* framesOf(reader: SetReader, raw: RawSet): Generator<MediaRecord> {
  const given = Array.from({ length: raw.laneCount }, () => TrackSet.empty());
  // Of an encrypted set nothing but its records may show on a medium.
  const tracks = raw.isEncrypted ? TrackSet.empty() : reader.present;
  for (const plan of reader.readPlan(tracks)) {
    given[plan.lane]?.add(plan.frame);
    const places = plan.tracks.flatMap((track) => {
      const place = reader.placeOf(track);
      const hash = reader.hashOf(track);
      return place === undefined || hash === undefined ? [] : [{ track, position: place.position, hash }];
    });
    yield { ...raw.frame(plan.lane, plan.frame), places };
  }
  // Frames that no track uses any more belong to what was sealed all the same.
  for (const [lane, frames] of given.entries()) {
    for (const frame of raw.frameNumbers(lane)) {
      if (!frames.has(frame)) yield { ...raw.frame(lane, frame), places: [] };
    }
  }
}

function* metadataOf(raw: RawSet): Generator<MediaRecord> {
  for (const record of raw.metadata()) yield { ...record, places: [] };
}

/** Records in order, in groups of about so many bytes. */
export function* gathered(records: Iterable<MediaRecord>, bytes: number): Generator<readonly MediaRecord[]> {
  let group: MediaRecord[] = [];
  let size = 0;
  for (const record of records) {
    group.push(record);
    size += recordBytes(record);
    if (size < bytes) continue;
    yield group;
    group = [];
    size = 0;
  }
  if (group.length > 0) yield group;
}
