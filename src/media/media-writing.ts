/**
 * One writing: pieces in, media out, each opened when the one before has ended (MISSION M17).
 *
 * Pieces are numbered through all media. A piece that does not fit is cut: what fits ends the medium, the rest
 * begins the next. Where a medium turns out to be full, the pieces that it has not taken whole are written again
 * on the next: those that an output may still hold back are kept in memory until it has passed them on.
 *
 * A failure closes the medium, tells the operator and the log through `onFailure`, and ends the writing: what
 * earlier media hold stays readable, what was on the way does not become a set anywhere.
 */

import { assert, type Clock, messageOf, present, randomId } from '../base/index.ts';
import { MediaError } from './errors.ts';
import {
  type AnnouncedSet,
  type CatalogMedium,
  isLabel,
  type MediaCatalog,
  mediumName,
  type SetAnnouncement,
} from './medium-format.ts';
import { EndOfMedium, type MediumOutput } from './medium-output.ts';
import { mediumTooSmall, MediumWriter } from './medium-writer.ts';
import { type MediaRecord, type PieceContent, recordBytes } from './piece-codec.ts';
import { type SessionStep, SessionStates } from './session-states.ts';

export interface WantedOutput {
  /** From 1. */
  readonly medium: number;
  readonly label: string;
  /** Label and number, as people call it. */
  readonly name: string;
}

/** Opens the media of a writing, one after the other. @throws {MediaError} `no-medium`, `exists` or `io`. */
export type OpenOutput = (wanted: WantedOutput) => Promise<MediumOutput>;

export interface MediaFailure {
  readonly medium: number;
  readonly reason: string;
}

export interface MediaSessionOptions {
  readonly clock: Clock;
  readonly signal?: AbortSignal;
  /** Called with each step of the session's states. */
  readonly onStep?: (step: SessionStep) => void;
  /** Writes the log and tells the operator; waited for before the session goes on or ends. */
  readonly onFailure?: (failure: MediaFailure) => Promise<void>;
}

export interface WritingOptions extends MediaSessionOptions {
  readonly openOutput: OpenOutput;
  readonly label: string;
  /** Bytes of one medium; undefined where media say themselves when they are full. */
  readonly mediumSizeBytes?: number;
  /** Id of the store that the sets come from; undefined where they come from none. */
  readonly store: string | undefined;
  /** A copy of its keys, where it is encrypted. */
  readonly keys: Buffer | undefined;
  readonly announcements: readonly AnnouncedSet[];
  /** Called when a medium has ended durably, with all that is known then. */
  readonly onMedium?: (catalog: MediaCatalog) => Promise<void>;
}

interface PieceItem {
  readonly set: string;
  readonly content: PieceContent;
  readonly records: readonly MediaRecord[];
}

export class MediaWriting {
  readonly id = randomId();
  readonly states: SessionStates;
  readonly #options: WritingOptions;
  readonly #media: CatalogMedium[] = [];
  #announcements: readonly AnnouncedSet[];
  readonly #createdMs: number;
  #current: { readonly writer: MediumWriter; readonly output: MediumOutput } | undefined;
  /** Pieces of this medium that its output may still hold back, by their numbers. */
  readonly #unsettled = new Map<number, PieceItem>();
  #pieceCount = 0;
  #bytes = 0;
  #isEnded = false;

  constructor(options: WritingOptions) {
    assert(isLabel(options.label), `Label ${options.label} is none`);
    this.#options = options;
    this.#announcements = options.announcements;
    this.#createdMs = options.clock.now();
    this.states = new SessionStates('write', options);
  }

  /** Bytes on all media so far. */
  get writtenBytes(): number {
    return this.#bytes + (this.#current?.writer.writtenBytes ?? 0);
  }

  /**
   * Writes records of one set as a piece, or as several where a medium ends.
   *
   * @throws {MediaError} with any code for writing; the writing has failed then, and has been logged.
   */
  async write(set: string, content: PieceContent, records: readonly MediaRecord[]): Promise<void> {
    await this.#guarded(() => this.#writeAll([{ set, content, records }]));
  }

  async #writeAll(items: readonly PieceItem[]): Promise<void> {
    const waiting = [...items];
    for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) {
      this.#checkCancelled();
      const { writer, output } = this.#current ?? (await this.#beginMedium());
      const fitting = fittingCount(item.records, writer.roomBytes);
      if (fitting === 0) {
        if (writer.pieceCount === 0) throw this.#tooSmall(output, writer, item);
        waiting.unshift(item, ...(await this.#endMedium(false)));
        continue;
      }
      const fits = { ...item, records: item.records.slice(0, fitting) };
      const rest = { ...item, records: item.records.slice(fitting) };
      if (rest.records.length > 0) waiting.unshift(rest);
      try {
        await this.#writePiece(writer, fits);
      } catch (error) {
        if (!(error instanceof EndOfMedium)) throw error;
        if (writer.pieceCount === 0)
          throw mediumTooSmall(output.place, output.takenBytes, neededBytes(writer, fits));
        waiting.unshift(...(await this.#cutMedium()), fits);
      }
    }
  }

  async #writePiece(writer: MediumWriter, item: PieceItem): Promise<void> {
    const { set, content, records } = item;
    const piece = this.#pieceCount + 1;
    await writer.writePiece({ writing: this.id, set, piece, content, records: records.length }, records);
    this.#pieceCount = piece;
    this.#unsettled.set(piece, item);
    const lost = new Set(writer.lostPieces);
    for (const number of this.#unsettled.keys()) if (!lost.has(number)) this.#unsettled.delete(number);
  }

  #checkCancelled(): void {
    if (this.#options.signal?.aborted !== true) return;
    throw new MediaError('cancelled', 'Writing the media was cancelled', { medium: this.states.medium });
  }

  #tooSmall(output: MediumOutput, writer: MediumWriter, item: PieceItem): MediaError {
    const sizeBytes = this.#options.mediumSizeBytes ?? output.takenBytes;
    const record = present(item.records[0], 'A piece has a record');
    return mediumTooSmall(
      output.place,
      sizeBytes,
      sizeBytes - Math.min(0, writer.roomBytes - recordBytes(record)),
    );
  }

  async #beginMedium(): Promise<{ writer: MediumWriter; output: MediumOutput }> {
    const { label, store, keys, clock } = this.#options;
    const announcements = this.#announcements;
    const medium = this.states.medium + 1;
    const name = mediumName({ label, medium });
    const output = await this.#options.openOutput({ medium, label, name });
    this.states.beginMedium(medium);
    const writer = new MediumWriter({
      output,
      sizeBytes: this.#options.mediumSizeBytes,
      header: { writing: this.id, label, medium, createdMs: this.#createdMs },
      node: { store, sets: announcements.map((announcement) => announcement.id), keys: keys?.toString() },
      announcements,
      earlier: [...this.#media],
      clock,
    });
    this.#current = { writer, output };
    try {
      await writer.begin();
    } catch (error) {
      if (!(error instanceof EndOfMedium)) throw error;
      throw mediumTooSmall(output.place, output.takenBytes, writer.writtenBytes + 1);
    }
    this.states.transfer();
    return this.#current;
  }

  /**
   * The end of the data ends a medium as its physical end does.
   *
   * @returns what has to be written again, where the medium turned out to be full.
   */
  async #endMedium(isLast: boolean): Promise<readonly PieceItem[]> {
    const { writer, output } = present(this.#current, 'A medium is open');
    this.states.endMedium();
    try {
      const catalog = await writer.end(isLast);
      await output.finish();
      await this.#closed(writer, catalog);
      this.#isEnded = isLast;
      return [];
    } catch (error) {
      if (!(error instanceof EndOfMedium)) throw error;
      if (writer.pieceCount === 0) throw mediumTooSmall(output.place, output.takenBytes, writer.writtenBytes);
      return await this.#closeCut(writer, output);
    }
  }

  async #cutMedium(): Promise<readonly PieceItem[]> {
    const { writer, output } = present(this.#current, 'A medium is open');
    this.states.endMedium();
    return await this.#closeCut(writer, output);
  }

  async #closeCut(writer: MediumWriter, output: MediumOutput): Promise<readonly PieceItem[]> {
    // Without one piece that stays there would be no progress from medium to medium.
    if (writer.lostPieces.length === writer.pieceCount) {
      throw mediumTooSmall(output.place, output.takenBytes, writer.writtenBytes);
    }
    writer.cut();
    await output.abandon();
    const lost = writer.lostPieces.map((piece) =>
      present(this.#unsettled.get(piece), 'A piece not taken yet'),
    );
    await this.#closed(writer, this.#catalog([...this.#media, writer.catalogued], false));
    return lost;
  }

  async #closed(writer: MediumWriter, catalog: MediaCatalog): Promise<void> {
    this.#current = undefined;
    this.#unsettled.clear();
    this.#media.push(writer.catalogued);
    this.#bytes += writer.writtenBytes;
    this.states.closeMedium();
    await this.#options.onMedium?.(catalog);
  }

  #catalog(media: readonly CatalogMedium[], isLast: boolean): MediaCatalog {
    return { writing: this.id, label: this.#options.label, createdMs: this.#createdMs, isLast, media };
  }

  /**
   * Announces a set that was only begun when the writing was, all of whose records have been written; on a medium of
   * its own where the present one has no room.
   *
   * @throws as `write`.
   */
  async announce(set: SetAnnouncement): Promise<void> {
    // Media that begin from now on announce it at their beginning.
    this.#announcements = this.#announcements.map((known) => (known.id === set.id ? set : known));
    await this.#guarded(async () => {
      this.#checkCancelled();
      const current = this.#current;
      if (current === undefined) {
        await this.#beginRoomy();
        return;
      }
      let lost: readonly PieceItem[] = [];
      try {
        if (await current.writer.announce(set)) return;
        lost = await this.#endMedium(false);
      } catch (error) {
        if (!(error instanceof EndOfMedium)) throw error;
        lost = await this.#cutMedium();
      }
      await this.#beginRoomy();
      await this.#writeAll(lost);
    });
  }

  /** Begins a medium that may get nothing but its headers and its end. */
  async #beginRoomy(): Promise<void> {
    const { writer, output } = await this.#beginMedium();
    const { mediumSizeBytes = 0 } = this.#options;
    if (writer.roomBytes >= 0) return;
    throw mediumTooSmall(output.place, mediumSizeBytes, mediumSizeBytes - writer.roomBytes);
  }

  /** Ends the last medium; a writing without any data has one medium all the same. @throws as `write`. */
  async finish(): Promise<MediaCatalog> {
    await this.#guarded(async () => {
      if (this.#current === undefined) await this.#beginMedium();
      // A last medium without room for its end is not the last.
      for (let isEnded = false; !isEnded;) {
        await this.#writeAll(await this.#endMedium(true));
        isEnded = this.#isEnded;
        if (!isEnded && this.#current === undefined) await this.#beginMedium();
      }
    });
    return this.#catalog(this.#media, true);
  }

  async #guarded(body: () => Promise<void>): Promise<void> {
    try {
      await body();
    } catch (error) {
      await this.fail(error);
      throw error;
    }
  }

  /** Gives the open medium up, if there is one; a no-op after `finish`. */
  async fail(error: unknown): Promise<void> {
    const current = this.#current;
    this.#current = undefined;
    if (current === undefined) return;
    const reason = messageOf(error);
    // Headers that could not be written are an error of the transfer as well: the medium is no longer at its beginning.
    if (this.states.state === 'beginning-of-medium') this.states.transfer();
    if (this.states.state === 'write') this.states.fail(reason);
    await current.output.abandon();
    await this.#options.onFailure?.({ medium: this.states.medium, reason });
    this.states.closeMedium();
  }
}

/** What a medium without a piece would have to take for the first record. */
function neededBytes(writer: MediumWriter, { records: [record] }: PieceItem): number {
  return writer.writtenBytes + recordBytes(present(record, 'A piece has a record'));
}

function fittingCount(records: readonly MediaRecord[], roomBytes: number): number {
  let bytes = 0;
  for (const [index, record] of records.entries()) {
    bytes += recordBytes(record);
    if (bytes > roomBytes) return index;
  }
  return records.length;
}
