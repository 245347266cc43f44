/**
 * A set that is made for a sequential medium, without a store: frames leave as they are packed, in the order in
 * which they come; what says where they belong is known at the end, and leaves then.
 *
 *     tracks --> lane --frames--> whoever takes them
 *                     --metadata--> a file in a temporary directory --at the end--> the same
 *
 * That file holds 40 bytes or so for each track, never content, and is removed whatever becomes of the set. It is a
 * lane's file without frames, so the set has the records, the seal and the limits of one in a store, and is that
 * set once it has been imported.
 *
 * It is a full set, since there is no store whose sets it could build on, and not encrypted, since there is no
 * store whose key it could have. It stores tracks of equal content each by itself: a frame that is on a medium
 * cannot be told of a track that comes later.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert, type Clock, makeUlid, present } from '../base/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import { asStoreErrors } from './errors.ts';
import type { Compression } from './frame-codec.ts';
import { type LaneFrame, type LaneParts, LaneWriter } from './lane-writer.ts';
import type { RawRecord } from './raw-set.ts';
import { settleLanes } from './set-assembly.ts';
import {
  decodeSeal,
  laneFileName,
  SEAL_KEY,
  type SessionCounters,
  type SetCounters,
  type SetHeader,
} from './set-format.ts';

/** What a streamed set is; the rest of its header follows. */
export interface NewStreamedSet extends Pick<
  SetHeader,
  'volumeId' | 'volumeName' | 'point' | 'sizeBytes' | 'trackSizeBytes'
> {
  readonly compression: Compression;
}

/** What is known of a set when it is complete. */
export interface StreamedSeal {
  /** The last record. */
  readonly record: RawRecord;
  /** The seal proper, 64 hexadecimal digits. */
  readonly seal: string;
  readonly counters: SetCounters;
  /** The tracks with content; in a full set every other is zero. */
  readonly present: TrackSet;
}

export class StreamedSet {
  readonly header: SetHeader;
  /** What `lane` was made from. */
  readonly parts: LaneParts;
  /** Takes tracks; not aliases. */
  readonly lane: LaneWriter;
  readonly #directory: string;
  #ended: { readonly counters: SetCounters; readonly sealRecord: Buffer } | undefined;

  /**
   * @param takeFrame is called while tracks are added to the lane.
   * @throws {StoreError} `no-space` or `io`.
   */
  constructor(
    wanted: NewStreamedSet,
    clock: Clock,
    takeFrame: (record: RawRecord, frame: LaneFrame) => void,
  ) {
    const { compression, ...volume } = wanted;
    this.header = {
      ...volume,
      id: makeUlid(clock.now()),
      level: 'full',
      base: null,
      previous: null,
      createdMs: clock.now(),
      codec: compression.codec,
      lanes: 1,
    };
    this.#directory = asStoreErrors(tmpdir(), () => mkdtempSync(join(tmpdir(), 'cowbell-set-')));
    const partialPath = join(this.#directory, `${laneFileName(this.header.id, 0)}.partial`);
    this.parts = { header: this.header, lane: 0, directories: [''], partialPath, compression };
    try {
      this.lane = new LaneWriter(this.parts, (frame) =>
        takeFrame({ lane: 0, database: 'frames', key: frame.key, value: frame.value }, frame),
      );
    } catch (error) {
      this.#remove();
      throw error;
    }
  }

  /** No track comes any more; the last frame leaves. @throws {StoreError} `no-space` or `io`. */
  async finish(session: SessionCounters): Promise<SetCounters> {
    assert(this.#ended === undefined, `Set ${this.header.id} is finished`);
    this.#ended = await settleLanes([this.lane], session);
    return this.#ended.counters;
  }

  /** After `finish`: all records but frames and the seal. */
  *metadata(): Generator<RawRecord> {
    for (const record of this.lane.metadata()) yield { lane: 0, ...record };
  }

  /** After `finish`: what makes the set complete. It belongs to the medium once the set's point is durable. */
  seal(): StreamedSeal {
    const { counters, sealRecord: value } = present(this.#ended, 'A set is finished first');
    const { seal } = decodeSeal(value, this.header.id);
    const record: RawRecord = { lane: 0, database: 'header', key: Buffer.from(SEAL_KEY), value };
    return { record, seal, counters, present: this.lane.tracks };
  }

  /** Removes the temporary file; nothing else can be called then. */
  async close(): Promise<void> {
    await this.lane.abort();
    this.#remove();
  }

  #remove(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
