/**
 * A volume as it was at a set's point, with what delta logs tell since: what a restore takes from both (seeds/1, para 27
 * and 87).
 *
 *     track -> held whole by the logs           -> logs; the set is not read
 *           -> in the set, and partly in the logs -> set, logs laid over it
 *           -> in the set only                  -> set
 *           -> in the logs only                 -> zeroes, logs laid over them
 *
 * Both check what they give: the set each track against its hash, the logs each record against its checksum. It has no
 * hashes of its own, since what comes out of both was never a whole track before.
 *
 * Without a set, for a volume whose logs reach back to its beginning, the rest is zeroes. It closes neither of them.
 */

import { assert, KIB } from '../base/index.ts';
import type { DeltaIndex } from '../delta/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { ReadPlanEntry, RestoredTrack, RestoreSource } from './restore-source.ts';

/** Tracks that come from the logs alone and are read in one go. */
const RUN_BYTES_MAX = 1024 * KIB;

export interface LoggedEntry<Entry extends ReadPlanEntry> extends ReadPlanEntry {
  /** What is read of the set; undefined for tracks that come from the logs alone. */
  readonly entry: Entry | undefined;
}

/** What the logs give; `DeltaIndex` does. */
export type LoggedTracks = Pick<
  DeltaIndex,
  'whole' | 'touched' | 'isZero' | 'overlay' | 'volumeBytes' | 'trackBytes'
>;

export class LoggedSource<Entry extends ReadPlanEntry> implements RestoreSource<LoggedEntry<Entry>> {
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly #set: RestoreSource<Entry> | undefined;
  readonly #logs: LoggedTracks;
  readonly #whole: TrackSet;
  readonly #touched: TrackSet;
  /** That are not zero in the set. */
  readonly #stored: TrackSet;

  constructor(set: RestoreSource<Entry> | undefined, logs: LoggedTracks) {
    assert(
      set === undefined || set.trackSizeBytes === logs.trackBytes,
      `Tracks of ${set?.trackSizeBytes} and ${logs.trackBytes} bytes`,
    );
    this.#set = set;
    this.#logs = logs;
    this.trackSizeBytes = logs.trackBytes;
    this.sizeBytes = Math.max(set?.sizeBytes ?? 0, logs.volumeBytes);
    this.#whole = logs.whole();
    this.#touched = logs.touched();
    this.#stored = set?.tracks() ?? TrackSet.empty();
  }

  tracks(): TrackSet {
    const tracks = TrackSet.union([this.#stored, this.#touched]);
    for (const track of this.#touched) if (this.#logs.isZero(track)) tracks.delete(track);
    return tracks;
  }

  lost(): TrackSet {
    return (this.#set?.lost?.() ?? TrackSet.empty()).difference(this.#whole);
  }

  /** Tracks of these that are read from the set. */
  fromSet(tracks: TrackSet): TrackSet {
    return tracks.intersection(this.#stored).difference(this.#whole);
  }

  *readPlan(tracks: TrackSet): Generator<LoggedEntry<Entry>> {
    const fromSet = this.fromSet(tracks);
    if (this.#set !== undefined && !fromSet.isEmpty) {
      for (const entry of this.#set.readPlan(fromSet)) {
        const { set } = entry;
        yield { tracks: entry.tracks, entry, ...(set === undefined ? {} : { set }) };
      }
    }
    const countMax = Math.max(1, RUN_BYTES_MAX / this.trackSizeBytes);
    for (const { first, count } of tracks.difference(fromSet).runs(countMax))
      yield { tracks: Array.from({ length: count }, (_, index) => first + index), entry: undefined };
  }

  async readFrame({ tracks, entry }: LoggedEntry<Entry>): Promise<readonly RestoredTrack[]> {
    const read = new Map<number, Buffer | undefined>();
    if (entry !== undefined && this.#set !== undefined)
      for (const { track, content } of await this.#set.readFrame(entry)) read.set(track, content);
    else for (const track of tracks) read.set(track, undefined);
    const restored: RestoredTrack[] = [];
    for (const [track, content] of read) restored.push(await this.#laidOver(track, content));
    return restored;
  }

  /** The content may be somebody else's too, and is not changed. */
  async #laidOver(track: number, content: Buffer | undefined): Promise<RestoredTrack> {
    const lengthBytes = Math.min(this.trackSizeBytes, this.sizeBytes - track * this.trackSizeBytes);
    const isTouched = this.#touched.has(track);
    // A volume that grew since has a longer last track than its set.
    if (!isTouched && (content === undefined || content.length === lengthBytes)) return { track, content };
    const target = Buffer.alloc(lengthBytes);
    content?.copy(target);
    if (isTouched) await this.#logs.overlay(track, target);
    return { track, content: target };
  }
}
