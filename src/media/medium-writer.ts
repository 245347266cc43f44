/**
 * Writes one medium: its headers, pieces with marks between them, and its end. What bytes go where is said in
 * FORMAT.md.
 *
 * A medium of a given size always keeps room for its own end: `roomBytes` is what a piece may still take, the
 * rows that it adds to directory and catalog counted. Where the medium itself says that it is full, before or
 * instead of a given size, the output throws `EndOfMedium`. The medium then has no end, on which nothing depends,
 * and the pieces that it did not take whole, which `lostPieces` names, belong on the next one.
 */

import { type Clock } from '../base/index.ts';
import { MediaError } from './errors.ts';
import {
  type AnnouncedSet,
  type CatalogMedium,
  type DirectoryEntry,
  encodeAnnouncement,
  encodeCatalog,
  encodeMediumHeader,
  encodeNodeHeader,
  type EntryKind,
  entryName,
  type MediaCatalog,
  type MediumHeader,
  mediumName,
  type NodeHeader,
  type SetAnnouncement,
  type SetOnMedium,
} from './medium-format.ts';
import { type MediumOutput } from './medium-output.ts';
import {
  encodePiece,
  type MediaRecord,
  PIECE_HEADER_BYTES_MAX,
  PIECE_PREFIX_BYTES,
  PIECE_TRAILER_BYTES,
  type PieceHeader,
} from './piece-codec.ts';
import { encodeTarHeader, entryBytes, paddingBytes, TAR_BLOCK_BYTES, TAR_END_BYTES } from './tar.ts';
import { encodeText } from './text-entry.ts';

/** What a row of a directory takes at most: a name of up to 100 bytes, two numbers, their names. */
const DIRECTORY_ROW_BYTES = 192;
/** What a set's row of the catalog takes at most. */
const CATALOG_ROW_BYTES = 160;
/** The fixed parts of directory, server trailer, catalog and node trailer, with their headers and filling. */
const END_BYTES = 4 * (2 * TAR_BLOCK_BYTES + 512) + TAR_END_BYTES;
/** What a piece takes beside its records, with the mark before it. */
const PIECE_FRAME_BYTES =
  3 * TAR_BLOCK_BYTES + PIECE_PREFIX_BYTES + PIECE_HEADER_BYTES_MAX + PIECE_TRAILER_BYTES;

export interface MediumWriterParts {
  readonly output: MediumOutput;
  /** Bytes that the medium may take; undefined where it says itself when it is full. */
  readonly sizeBytes: number | undefined;
  readonly header: MediumHeader;
  readonly node: NodeHeader;
  readonly announcements: readonly AnnouncedSet[];
  /** What the media before hold. */
  readonly earlier: readonly CatalogMedium[];
  readonly clock: Clock;
}

export class MediumWriter {
  readonly #parts: MediumWriterParts;
  readonly #name: string;
  readonly #directory: DirectoryEntry[] = [];
  readonly #pieces: (PieceHeader & { readonly endBytes: number })[] = [];
  readonly #earlierBytes: number;
  readonly #startedMs: number;
  #writtenBytes = 0;
  #isCut = false;

  constructor(parts: MediumWriterParts) {
    this.#parts = parts;
    this.#name = mediumName(parts.header);
    this.#earlierBytes = JSON.stringify(parts.earlier).length;
    this.#startedMs = parts.clock.now();
  }

  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  get pieceCount(): number {
    return this.#pieces.length;
  }

  /** The numbers of pieces that the medium has not taken whole yet: all of them may be lost where it is full. */
  get lostPieces(): readonly number[] {
    const { takenBytes } = this.#parts.output;
    return this.#pieces.filter(({ endBytes }) => endBytes > takenBytes).map(({ piece }) => piece);
  }

  /** What this medium holds so far. */
  get catalogued(): CatalogMedium {
    const lost = new Set(this.#isCut ? this.lostPieces : []);
    const sets = new Map<string, SetOnMedium>();
    for (const { set, content, records, piece } of this.#pieces) {
      if (lost.has(piece)) continue;
      const known = sets.get(set) ?? { set, pieces: 0, frames: 0, metadataRecords: 0 };
      const isFrames = content === 'frames';
      sets.set(set, {
        set,
        pieces: known.pieces + 1,
        frames: known.frames + (isFrames ? records : 0),
        metadataRecords: known.metadataRecords + (isFrames ? 0 : records),
      });
    }
    return { medium: this.#parts.header.medium, sets: [...sets.values()] };
  }

  /** The medium is full: it stays without an end. */
  cut(): void {
    this.#isCut = true;
  }

  /** Bytes of records that a piece of `set` may have here; negative where there is no room for any. */
  get roomBytes(): number {
    const { sizeBytes } = this.#parts;
    if (sizeBytes === undefined) return Number.POSITIVE_INFINITY;
    const directoryBytes = (this.#directory.length + 6) * DIRECTORY_ROW_BYTES;
    const catalogBytes = this.#earlierBytes + (this.#parts.announcements.length + 1) * CATALOG_ROW_BYTES;
    return sizeBytes - this.#writtenBytes - directoryBytes - catalogBytes - END_BYTES - PIECE_FRAME_BYTES;
  }

  /** Writes medium header, node header and the announcements of the sets. @throws {EndOfMedium} */
  async begin(): Promise<void> {
    const { header, node, announcements } = this.#parts;
    await this.#writeEntry('medium', undefined, [encodeMediumHeader(header)]);
    await this.#writeEntry('node', undefined, [encodeNodeHeader(node)]);
    for (const announcement of announcements) await this.#writeAnnouncement(announcement);
  }

  /**
   * Announces a set that was only begun when the medium was.
   *
   * @returns whether there was room; nothing is written where there is none. @throws {EndOfMedium}
   */
  async announce(set: SetAnnouncement): Promise<boolean> {
    const { text, tracks } = encodeAnnouncement(set);
    const wantedBytes = entryBytes(text.length) + entryBytes(tracks.length) + 2 * DIRECTORY_ROW_BYTES;
    if (wantedBytes > this.roomBytes) return false;
    await this.#writeAnnouncement(set);
    return true;
  }

  async #writeAnnouncement(set: AnnouncedSet): Promise<void> {
    const { text, tracks } = encodeAnnouncement(set);
    await this.#writeEntry('set', set.id, [text]);
    await this.#writeEntry('tracks', set.id, [tracks]);
  }

  /** Writes a piece, after a mark where one was before. @throws {EndOfMedium} where it did not fit. */
  async writePiece(header: PieceHeader, records: readonly MediaRecord[]): Promise<void> {
    const { parts } = encodePiece(header, records);
    if (this.#pieces.length > 0) await this.#writeEntry('mark', undefined, []);
    await this.#writeEntry(header.content, header.set, parts);
    this.#pieces.push({ ...header, endBytes: this.#writtenBytes });
  }

  /** Writes directory, server trailer, catalog and node trailer. @throws {EndOfMedium} where they did not fit. */
  async end(isLast: boolean): Promise<MediaCatalog> {
    const { header, earlier, clock, output } = this.#parts;
    const { writing, label, medium } = header;
    const catalog: MediaCatalog = {
      writing,
      label,
      createdMs: header.createdMs,
      isLast,
      media: [...earlier, this.catalogued],
    };
    const directory = { writing, medium, entries: this.#directory };
    await this.#writeEntry('directory', undefined, [encodeText(directory)]);
    const server = {
      writing,
      medium,
      startedMs: this.#startedMs,
      endedMs: clock.now(),
      pieces: this.#pieces.length,
      bytes: this.#writtenBytes,
    };
    await this.#writeEntry('server', undefined, [encodeText(server)]);
    await this.#writeEntry('catalog', undefined, [encodeCatalog(catalog)]);
    const next = isLast ? null : medium + 1;
    await this.#writeEntry('trailer', undefined, [encodeText({ writing, medium, next })]);
    await output.write([Buffer.alloc(TAR_END_BYTES)]);
    this.#writtenBytes += TAR_END_BYTES;
    return catalog;
  }

  async #writeEntry(kind: EntryKind, set: string | undefined, parts: readonly Buffer[]): Promise<void> {
    const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0);
    const name = entryName(this.#name, { entry: this.#directory.length, kind, set });
    const modifiedSeconds = Math.floor(this.#parts.clock.now() / 1000);
    const head = encodeTarHeader({ name, sizeBytes, modifiedSeconds });
    await this.#parts.output.write([head, ...parts, Buffer.alloc(paddingBytes(sizeBytes))]);
    this.#directory.push({ name, offsetBytes: this.#writtenBytes, sizeBytes });
    this.#writtenBytes += entryBytes(sizeBytes);
  }
}

/** A medium that cannot take its headers and one record is of no use. */
export function mediumTooSmall(place: string, sizeBytes: number, wantedBytes: number): MediaError {
  return new MediaError(
    'medium-too-small',
    `Medium ${place} has ${sizeBytes} bytes, wanted at least ${wantedBytes} for its headers and one record`,
    { place, wantedBytes },
  );
}
