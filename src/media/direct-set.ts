/**
 * One set on its way to media while it is made, without a store: a backup straight to tape.
 *
 *     lane --frames--> accumulator --pieces--> writing --> media     while the session goes on
 *     metadata, then the seal, then the announcement in full         at its end
 *
 * Media that begin before the end announce that the set has begun, and which volume it is of. The seal goes out when
 * the session knows that its point is durable, and the last medium, or those that begin after, announce the set with
 * its seal and its tracks: a writing without that is no set, whatever it holds.
 *
 * A lane takes tracks at once and media do not: frames wait here until `drain`, which the lane's user waits for.
 */

import { assert, type Clock, LIMITS } from '../base/index.ts';
import {
  type NewStreamedSet,
  type RawRecord,
  type SessionCounters,
  type SetCounters,
  StreamedSet,
} from '../blockset/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { Accumulator, type PieceThreshold } from './accumulator.ts';
import { gathered } from './export.ts';
import { MediaWriting, type WritingOptions } from './media-writing.ts';
import type { MediaCatalog } from './medium-format.ts';
import { type MediaRecord, type PieceContent, recordBytes } from './piece-codec.ts';

export interface DirectSetOptions extends Omit<WritingOptions, 'store' | 'keys' | 'announcements'> {
  readonly clock: Clock;
  /** When a piece is full; `LIMITS.mediaPieceBytes` where left out. */
  readonly threshold?: PieceThreshold;
}

export class DirectSet {
  /** Its lane takes the tracks. */
  readonly set: StreamedSet;
  readonly writing: MediaWriting;
  readonly #threshold: PieceThreshold;
  readonly #gathering: Accumulator<MediaRecord>;
  #waiting: (readonly MediaRecord[])[] = [];
  /** Settles when everything before it has been written. */
  #tail: Promise<void> = Promise.resolve();
  #frameCount = 0;
  #metadataCount = 0;

  /** Opens no medium yet. @throws {StoreError} `no-space` or `io`. */
  constructor(wanted: NewStreamedSet, options: DirectSetOptions) {
    this.#threshold = options.threshold ?? { bytes: LIMITS.mediaPieceBytes };
    this.#gathering = new Accumulator(this.#threshold);
    this.set = new StreamedSet(wanted, options.clock, (record, { places }) =>
      this.#take({ ...record, places }),
    );
    const { header } = this.set;
    const announcements = [{ id: header.id, header }];
    this.writing = new MediaWriting({ ...options, store: undefined, keys: undefined, announcements });
  }

  get id(): string {
    return this.set.header.id;
  }

  #take(record: MediaRecord): void {
    this.#frameCount += 1;
    const size = { bytes: recordBytes(record), tracks: record.places.length };
    const piece = this.#gathering.add(this.id, record, size);
    if (piece !== undefined) this.#waiting.push(piece.items);
  }

  /**
   * Writes the pieces that are full, loading media where it takes further ones. Calls may overlap.
   *
   * @throws {MediaError} with any code for writing; the set can then only be given up.
   */
  drain(): Promise<void> {
    const pieces = this.#waiting;
    this.#waiting = [];
    this.#tail = this.#tail.then(async () => {
      for (const records of pieces) await this.#write('frames', records);
    });
    return this.#tail;
  }

  /**
   * No track comes any more: writes what is left but the seal.
   *
   * @throws as `drain`; {StoreError} `no-space` or `io`.
   */
  async finish(session: SessionCounters): Promise<SetCounters> {
    const counters = await this.set.finish(session);
    await this.drain();
    for (const piece of this.#gathering.drain()) await this.#write('frames', piece.items);
    for (const records of gathered(bare(this.set.metadata()), this.#threshold.bytes)) {
      this.#metadataCount += records.length;
      await this.#write('metadata', records);
    }
    return counters;
  }

  /**
   * Completes the set and ends the last medium, durably as far as media are. To be called once the set's point is
   * durable in the volume.
   *
   * @throws as `drain`.
   */
  async seal(): Promise<MediaCatalog> {
    const { record, seal, counters, present } = this.set.seal();
    assert(this.#frameCount === counters.frames, 'A set counts its frames');
    await this.#write('metadata', [{ ...record, places: [] }]);
    await this.writing.announce({
      id: this.id,
      seal,
      frames: this.#frameCount,
      metadataRecords: this.#metadataCount + 1,
      content: { header: this.set.header, counters, present, zeroes: TrackSet.empty() },
    });
    return await this.writing.finish();
  }

  #write(content: PieceContent, records: readonly MediaRecord[]): Promise<void> {
    return this.writing.write(this.id, content, records);
  }

  /** Gives up the medium that is open, telling why; a no-op after `seal`. Then `close`. */
  async fail(error: unknown): Promise<void> {
    // Nothing may be written to a medium that is given up.
    try {
      await this.#tail;
    } catch {
      // Whoever waited for it knows.
    }
    await this.writing.fail(error);
  }

  /** Removes what is not on media. */
  async close(): Promise<void> {
    await this.set.close();
  }
}

function* bare(records: Iterable<RawRecord>): Generator<MediaRecord> {
  for (const record of records) yield { ...record, places: [] };
}
