/**
 * Reads one medium, front to back, once. What is damaged costs what it hits: a record that fails its checksum
 * is left out, behind a broken header the next sound one is looked for, a piece that is not of an announced set,
 * or whose parts do not agree whose it is, is never taken, and a medium that ends early has given everything up
 * to there. What was found wrong is told in `findings`.
 *
 * It puts nothing anywhere and does not know what is wanted.
 */

import { CorruptionError, LIMITS, messageOf } from '../base/index.ts';
import { MediaError } from './errors.ts';
import {
  type AnnouncedSet,
  decodeAnnouncement,
  decodeCatalog,
  decodeMediumHeader,
  decodeNodeHeader,
  type EntryName,
  type MediaCatalog,
  type MediumHeader,
  mediumName,
  type NodeHeader,
  parseEntryName,
} from './medium-format.ts';
import { ByteStream, type MediumInput } from './medium-input.ts';
import {
  decodePieceHeader,
  decodePiecePrefix,
  decodeRecord,
  isTrailerOf,
  type MediaRecord,
  PIECE_PREFIX_BYTES,
  PIECE_TRAILER_BYTES,
  type PieceHeader,
  RECORD_HEAD_BYTES,
  recordRestBytes,
} from './piece-codec.ts';
import { decodeTarHeader, paddingBytes, TAR_BLOCK_BYTES, type TarHeader } from './tar.ts';

export interface SetRecord {
  readonly set: string;
  readonly record: MediaRecord;
}

/** The medium ended before it should have. */
class Cut extends Error {}

type Entry = TarHeader & { readonly parsed: EntryName | undefined };

export class MediumReader {
  readonly place: string;
  readonly header: MediumHeader;
  readonly #stream: ByteStream;
  readonly #findings: string[] = [];
  readonly #announcements = new Map<string, AnnouncedSet>();
  /** The first half of an announcement, until the other is there. */
  #announcing: { readonly set: string; readonly bytes: Buffer } | undefined;
  #node: NodeHeader | undefined;
  #catalog: MediaCatalog | undefined;
  #isWhole = false;
  /** The first entry behind the headers, which only its own header told from them. */
  #pending: Entry | undefined;

  /**
   * Reads the header of a medium, and nothing more.
   *
   * @throws {MediaError} `not-a-medium`, `newer-format` or `io`. @throws {CorruptionError} where it is damaged.
   */
  static async identify(input: MediumInput): Promise<MediumReader> {
    const { place } = input;
    const stream = new ByteStream(input);
    try {
      const block = await stream.take(TAR_BLOCK_BYTES);
      const entry = block === undefined ? undefined : decodeTarHeader(block, `Medium ${place}`);
      if (entry !== undefined && parseEntryName(entry.name)?.kind === 'medium') {
        const text = await takeEntry(stream, entry, TAR_BLOCK_BYTES * 8);
        return new MediumReader(stream, place, decodeMediumHeader(text, place));
      }
    } catch (error) {
      if (!(error instanceof Cut) && !(error instanceof CorruptionError)) throw error;
      throw new MediaError(
        'not-a-medium',
        `${place} is no medium: ${messageOf(error)}`,
        { place },
        { cause: error },
      );
    }
    throw new MediaError('not-a-medium', `${place} is no medium`, { place });
  }

  private constructor(stream: ByteStream, place: string, header: MediumHeader) {
    this.#stream = stream;
    this.place = place;
    this.header = header;
  }

  /** Label and number. */
  get name(): string {
    return mediumName(this.header);
  }

  /** What was found wrong so far, sentences. */
  get findings(): readonly string[] {
    return this.#findings;
  }

  /** Who wrote it; undefined before `begin`, and where it is damaged. */
  get node(): NodeHeader | undefined {
    return this.#node;
  }

  /** The sets that it announces, by id; at its end perhaps more of them than at its beginning. */
  get announcements(): ReadonlyMap<string, AnnouncedSet> {
    return this.#announcements;
  }

  /** Which media hold what; undefined before the end, and where the medium has none. */
  get catalog(): MediaCatalog | undefined {
    return this.#catalog;
  }

  /** Whether the medium was read up to its trailer. */
  get isWhole(): boolean {
    return this.#isWhole;
  }

  get readBytes(): number {
    return this.#stream.readBytes;
  }

  /** Reads the node header and the announcements. @throws {MediaError} `io`. */
  async begin(): Promise<void> {
    await this.#untilCut(async () => {
      for (let entry = await this.#next(); entry !== undefined; entry = await this.#next()) {
        const { parsed } = entry;
        if (parsed?.kind === 'node') {
          const bytes = await this.#takeText(entry);
          this.#noting(() => {
            this.#node = decodeNodeHeader(bytes, this.#where(entry));
          });
        } else if (parsed?.kind === 'set' || parsed?.kind === 'tracks') {
          await this.#takeAnnouncement(entry);
        } else {
          this.#pending = entry;
          return;
        }
      }
    });
  }

  async #takeAnnouncement(entry: Entry): Promise<void> {
    const { set, kind } = entry.parsed ?? {};
    if (kind === 'set' && set !== undefined) {
      this.#announcing = { set, bytes: await this.#takeText(entry) };
      return;
    }
    const tracks = await takeEntry(this.#stream, entry, LIMITS.mediaTracksBytesMax);
    const text = this.#announcing;
    this.#announcing = undefined;
    if (text !== undefined && text.set === set) this.#announce(text.bytes, tracks, entry);
  }

  #announce(text: Buffer, tracks: Buffer, entry: Entry): void {
    this.#noting(() => {
      const announcement = decodeAnnouncement(text, tracks, this.#where(entry));
      if (announcement.id !== entry.parsed?.set) {
        throw new CorruptionError(`${this.#where(entry)} announces set ${announcement.id}`, {
          where: this.place,
        });
      }
      this.#announcements.set(announcement.id, announcement);
    });
  }

  /**
   * Reads on to the end of the medium.
   *
   * @param known the sets that are announced on any medium; pieces of others are not taken.
   * @throws {MediaError} `io`; everything before was good.
   */
  async *records(known: ReadonlyMap<string, AnnouncedSet>): AsyncGenerator<SetRecord> {
    try {
      let entry = this.#pending;
      this.#pending = undefined;
      for (entry ??= await this.#next(); entry !== undefined; entry = await this.#next()) {
        const kind = entry.parsed?.kind;
        if (kind === 'frames' || kind === 'metadata') yield* this.#piece(entry, known);
        else if (kind === 'catalog') await this.#readCatalog(entry);
        else if (kind === 'set' || kind === 'tracks') await this.#takeAnnouncement(entry);
        else await this.#skip(entry.sizeBytes + paddingBytes(entry.sizeBytes));
        if (kind === 'trailer') this.#isWhole = true;
      }
    } catch (error) {
      this.#cutAt(error);
    }
    if (!this.#isWhole) this.#findings.push(`Medium ${this.name} (${this.place}) ends before its trailer`);
  }

  async *#piece(entry: Entry, known: ReadonlyMap<string, AnnouncedSet>): AsyncGenerator<SetRecord> {
    const where = this.#where(entry);
    let left = entry.sizeBytes;
    const take = async (lengthBytes: number): Promise<Buffer> => {
      if (lengthBytes > left) throw new CorruptionError(`${where} ends too early`, { where });
      left -= lengthBytes;
      return await this.#take(lengthBytes);
    };
    try {
      const text = await take(decodePiecePrefix(await take(PIECE_PREFIX_BYTES), where));
      const header = decodePieceHeader(text, where);
      this.#checkPiece(header, entry, known);
      const sums: Buffer[] = [];
      for (let index = 0; index < header.records; index += 1) {
        const head = await take(RECORD_HEAD_BYTES);
        const restBytes = recordRestBytes(head);
        if (restBytes === undefined)
          throw new CorruptionError(`${where} has a record without end`, { where });
        const found = decodeRecord(head, await take(restBytes));
        if (found === undefined) {
          this.#findings.push(`Record ${index + 1} of ${where} is damaged`);
          continue;
        }
        sums.push(found.sum);
        yield { set: header.set, record: found.record };
      }
      const isEnded = isTrailerOf(await take(PIECE_TRAILER_BYTES), text, sums);
      if (!isEnded && sums.length === header.records) this.#findings.push(`${where} has another's trailer`);
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.#findings.push(error.message);
    }
    await this.#skip(left + paddingBytes(entry.sizeBytes));
  }

  /** Name and header must agree whose the piece is. */
  #checkPiece(header: PieceHeader, entry: Entry, known: ReadonlyMap<string, AnnouncedSet>): void {
    const where = this.#where(entry);
    const { parsed } = entry;
    const isOurs = header.writing === this.header.writing && known.has(header.set);
    if (isOurs && header.set === parsed?.set && header.content === parsed.kind) return;
    throw new CorruptionError(`${where} is not taken: it says that it is of set ${header.set}`, { where });
  }

  async #readCatalog(entry: Entry): Promise<void> {
    const bytes = await this.#takeText(entry);
    this.#noting(() => {
      const catalog = decodeCatalog(bytes, this.#where(entry));
      if (catalog.writing === this.header.writing) this.#catalog = catalog;
    });
  }

  #where(entry: TarHeader): string {
    return `Entry ${entry.name} of medium ${this.place}`;
  }

  async #next(): Promise<Entry | undefined> {
    const where = `Medium ${this.place}`;
    const block = await this.#take(TAR_BLOCK_BYTES);
    try {
      const header = decodeTarHeader(block, where);
      return header === undefined ? undefined : named(header);
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.#findings.push(error.message);
      return await this.#nextSound();
    }
  }

  /** Goes on at the next block that is a header of this medium; what is in between is lost with its own. */
  async #nextSound(): Promise<Entry> {
    for (;;) {
      const block = await this.#take(TAR_BLOCK_BYTES);
      if (block.toString('latin1', 0, this.name.length + 1) !== `${this.name}/`) continue;
      try {
        const header = decodeTarHeader(block, this.place);
        const entry = header === undefined ? undefined : named(header);
        if (entry?.parsed !== undefined) return entry;
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
      }
    }
  }

  async #take(lengthBytes: number): Promise<Buffer> {
    const bytes = await this.#stream.take(lengthBytes);
    if (bytes === undefined) throw new Cut(`Medium ${this.place} ended`);
    return bytes;
  }

  async #skip(lengthBytes: number): Promise<void> {
    if (!(await this.#stream.skip(lengthBytes))) throw new Cut(`Medium ${this.place} ended`);
  }

  #takeText(entry: Entry): Promise<Buffer> {
    return takeEntry(this.#stream, entry, LIMITS.mediaTextBytesMax);
  }

  /** Damage to a text is noted; what it would have said is then not known from here. */
  #noting(body: () => void): void {
    try {
      body();
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.#findings.push(error.message);
    }
  }

  async #untilCut(body: () => Promise<void>): Promise<void> {
    try {
      await body();
    } catch (error) {
      this.#cutAt(error);
    }
  }

  /** Where the frame of the medium is broken there is no way on: it counts as its end. */
  #cutAt(error: unknown): void {
    if (error instanceof CorruptionError) this.#findings.push(error.message);
    else if (!(error instanceof Cut)) throw error;
  }
}

function named(header: TarHeader & { readonly isFile: boolean }): Entry {
  return { ...header, parsed: header.isFile ? parseEntryName(header.name) : undefined };
}

/** @throws {CorruptionError} where the entry is larger than any of its kind. @throws {Cut} */
async function takeEntry(stream: ByteStream, entry: TarHeader, limitBytes: number): Promise<Buffer> {
  if (entry.sizeBytes > limitBytes) {
    const where = `Entry ${entry.name}`;
    throw new CorruptionError(`${where} has ${entry.sizeBytes} bytes, wanted at most ${limitBytes}`, {
      where,
    });
  }
  const bytes = await stream.take(entry.sizeBytes);
  if (bytes === undefined || !(await stream.skip(paddingBytes(entry.sizeBytes)))) throw new Cut('It ended');
  return bytes;
}
