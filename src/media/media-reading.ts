/**
 * One reading: the media of one writing in any order, each opened once and read front to back (MISSION M17).
 *
 * The first medium decides which writing is read. A medium of another writing, or one that was read before, is
 * refused by name and asked for again, a bounded number of times. A medium that cannot be read on is closed,
 * logged and told, and the reading goes on with the next: whether something is missing then is for the reader of
 * the records to know.
 */

import { LIMITS, messageOf } from '../base/index.ts';
import { MediaError } from './errors.ts';
import { type AnnouncedSet, isWhole, type MediaCatalog, mediumName } from './medium-format.ts';
import type { MediumInput } from './medium-input.ts';
import { MediumReader, type SetRecord } from './medium-reader.ts';
import type { MediaSessionOptions } from './media-writing.ts';
import { SessionStates } from './session-states.ts';

export interface WantedInput {
  /** The lowest number that was not read yet. Any other that was not read would do as well. */
  readonly medium: number;
  /** Of the writing, and label and number together; undefined before the first medium. */
  readonly label: string | undefined;
  readonly name: string | undefined;
  /** Numbers that were read already. */
  readonly seen: readonly number[];
  /** Why the medium before was not taken; undefined where it was. */
  readonly refused: MediaError | undefined;
}

/**
 * Opens media of a writing, in any order. It may throw what `refused` says where it has no other to offer.
 *
 * @returns undefined where there is no further medium. @throws {MediaError} `no-medium` or `io`.
 */
export type OpenInput = (wanted: WantedInput) => Promise<MediumInput | undefined>;

export interface ReadingOptions extends MediaSessionOptions {
  readonly openInput: OpenInput;
}

export class MediaReading {
  readonly states: SessionStates;
  readonly #options: ReadingOptions;
  readonly #announcements = new Map<string, AnnouncedSet>();
  readonly #seen = new Set<number>();
  readonly #findings: string[] = [];
  #current: { readonly reader: MediumReader; readonly input: MediumInput } | undefined;
  #first: MediumReader | undefined;
  #catalog: MediaCatalog | undefined;
  #readBytes = 0;

  /**
   * Opens the first medium and reads its headers.
   *
   * @throws {MediaError} `no-medium`, `not-a-medium`, `newer-format`, `io` or `cancelled`.
   */
  static async open(options: ReadingOptions): Promise<MediaReading> {
    const reading = new MediaReading(options);
    if (!(await reading.#nextMedium()))
      throw new MediaError('no-medium', 'No medium is given', { missing: [] });
    return reading;
  }

  private constructor(options: ReadingOptions) {
    this.#options = options;
    this.states = new SessionStates('read', options);
  }

  get writing(): string {
    return this.#header().writing;
  }

  get label(): string {
    return this.#header().label;
  }

  get createdMs(): number {
    return this.#header().createdMs;
  }

  /** The store that the sets come from; undefined where no medium says. */
  get store(): string | undefined {
    return this.#first?.node?.store;
  }

  /** A copy of that store's keys; undefined where it is not encrypted. */
  get keys(): string | undefined {
    return this.#first?.node?.keys;
  }

  /** The sets of the writing, as announced on the media read so far, by id: in full, or that they had begun. */
  get announcements(): ReadonlyMap<string, AnnouncedSet> {
    return this.#announcements;
  }

  /** What was found wrong on media, sentences. */
  get findings(): readonly string[] {
    return this.#findings;
  }

  /** Which media hold what, as the latest medium read knew; undefined where none had an end. */
  get catalog(): MediaCatalog | undefined {
    return this.#catalog;
  }

  get readBytes(): number {
    return this.#readBytes + (this.#current?.reader.readBytes ?? 0);
  }

  /** Numbers of media that were not read; the last one named may stand for further ones where no catalog was the last. */
  get missingMedia(): readonly number[] {
    const known = [...this.#seen, ...(this.#catalog?.media.map(({ medium }) => medium) ?? [])];
    const last = Math.max(0, ...known) + (this.#catalog?.isLast === true ? 0 : 1);
    const missing: number[] = [];
    for (let medium = 1; medium <= last; medium += 1) if (!this.#seen.has(medium)) missing.push(medium);
    return missing;
  }

  #header(): MediumReader['header'] {
    if (this.#first === undefined) throw new MediaError('no-medium', 'No medium is given', { missing: [] });
    return this.#first.header;
  }

  /**
   * All records of all media, in the order in which they are found. Ends with the last medium of the writing,
   * or where `openInput` has no further one; leaving the loop before closes the medium.
   *
   * @param isDone asked at the end of each medium whether the media that were not read are not needed.
   * @throws {MediaError} `wrong-medium` or `not-a-medium` after so many attempts, `no-medium`, `cancelled`.
   */
  async *records(isDone: () => boolean | Promise<boolean> = () => false): AsyncGenerator<SetRecord> {
    try {
      for (let isOpen = this.#current !== undefined; isOpen; isOpen = await this.#nextMedium()) {
        yield* this.#mediumRecords();
        if ((await isDone()) || this.missingMedia.length === 0) return;
      }
    } finally {
      await this.close();
    }
  }

  async *#mediumRecords(): AsyncGenerator<SetRecord> {
    const current = this.#current;
    if (current === undefined) return;
    const { reader } = current;
    try {
      for await (const record of reader.records(this.#announcements)) {
        this.#checkCancelled();
        yield record;
      }
    } catch (error) {
      await this.#failed(error);
      if (!(error instanceof MediaError) || error.code !== 'io') throw error;
      this.#findings.push(error.message);
      return;
    }
    await this.#ended();
  }

  async #ended(): Promise<void> {
    const current = this.#current;
    if (current === undefined) return;
    this.states.endMedium();
    await this.#leave();
    this.states.closeMedium();
  }

  async #failed(error: unknown): Promise<void> {
    if (this.#current === undefined) return;
    const reason = messageOf(error);
    const { medium } = this.#current.reader.header;
    // Headers that cannot be read are an error of the transfer as well: the medium is no longer at its beginning.
    if (this.states.state === 'beginning-of-medium') this.states.transfer();
    this.states.fail(reason);
    await this.#leave();
    await this.#options.onFailure?.({ medium, reason });
    this.states.closeMedium();
  }

  /** Takes from the medium what it knew, and closes it. */
  async #leave(): Promise<void> {
    const current = this.#current;
    this.#current = undefined;
    if (current === undefined) return;
    const { reader, input } = current;
    await input.close();
    this.#announced(reader);
    this.#findings.push(...reader.findings);
    this.#readBytes += reader.readBytes;
    const { catalog } = reader;
    if (catalog !== undefined && catalog.media.length >= (this.#catalog?.media.length ?? 0))
      this.#catalog = catalog;
  }

  /** @returns whether there is a further medium; it is at its data then. */
  async #nextMedium(): Promise<boolean> {
    let refused: MediaError | undefined;
    for (let attempt = 0; attempt < LIMITS.mediaLoadAttemptsMax; attempt += 1) {
      this.#checkCancelled();
      const input = await this.#options.openInput(this.#wanted(refused));
      if (input === undefined) return false;
      try {
        const reader = await MediumReader.identify(input);
        refused = this.#refusal(reader);
        if (refused === undefined) {
          await this.#begin(reader, input);
          return true;
        }
      } catch (error) {
        if (!(error instanceof MediaError) || error.code !== 'not-a-medium') {
          if (this.#current === undefined) await input.close();
          throw error;
        }
        refused = error;
      }
      await input.close();
    }
    throw refused ?? new MediaError('no-medium', 'No medium is given', { missing: this.missingMedia });
  }

  #wanted(refused: MediaError | undefined): WantedInput {
    let medium = 1;
    while (this.#seen.has(medium)) medium += 1;
    const label = this.#first?.header.label;
    const name = label === undefined ? undefined : mediumName({ label, medium });
    return { medium, label, name, seen: [...this.#seen], refused };
  }

  #refusal(reader: MediumReader): MediaError | undefined {
    const { place, name, header } = reader;
    const first = this.#first?.header;
    const wanted = this.#wanted(undefined).name ?? 'any';
    if (first !== undefined && header.writing !== first.writing) {
      const message = `Medium ${place} is ${name} of writing ${header.writing}, wanted ${wanted} of ${first.writing}`;
      return new MediaError('wrong-medium', message, { place, found: name, wanted });
    }
    if (!this.#seen.has(header.medium)) return undefined;
    const message = `Medium ${place} is ${name}, which was read already, wanted ${wanted}`;
    return new MediaError('wrong-medium', message, { place, found: name, wanted });
  }

  async #begin(reader: MediumReader, input: MediumInput): Promise<void> {
    this.states.beginMedium(reader.header.medium);
    this.#seen.add(reader.header.medium);
    this.#current = { reader, input };
    this.#first ??= reader;
    try {
      await reader.begin();
    } catch (error) {
      await this.#failed(error);
      throw error;
    }
    this.#announced(reader);
    this.states.transfer();
  }

  #announced(reader: MediumReader): void {
    for (const [id, announcement] of reader.announcements) {
      const known = this.#announcements.get(id);
      if (known === undefined || (!isWhole(known) && isWhole(announcement))) {
        this.#announcements.set(id, announcement);
      }
    }
  }

  #checkCancelled(): void {
    if (this.#options.signal?.aborted !== true) return;
    throw new MediaError('cancelled', 'Reading the media was cancelled', { medium: this.states.medium });
  }

  /** Closes the medium that is open, if one is; what was read of it counts as its end. */
  async close(): Promise<void> {
    await this.#ended();
  }
}
