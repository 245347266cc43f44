/**
 * Which regions of a volume were written of late: what its copies may differ in after an unclean stop.
 *
 * Where a write goes to several places, to the delta logs or to the members of a mirror beside the home, they may hold
 * different things after a power cut in what was not flushed. The intent log knows what was written in the open epoch, and
 * an epoch may last for weeks. So there is a second row of segments, in `<volume>/dirty/`, that is turned over now and
 * then:
 *
 *     a write -> region in the segment? -> yes: goes on    no: appended, one shared sync, goes on
 *     a turn  -> the next segment begins, with the regions of the writes since the last turn; writes go by it from now on
 *     a flush that began after the turn succeeds -> the last segment goes: what it alone names is everywhere
 *
 * A region that is written all the time is carried from segment to segment, and costs no sync. The file format is that of
 * the intent log, whose code this uses; the number in the name is that of the segment, not of an epoch.
 */

import { mkdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, LIMITS, syncDirectory, systemCode } from '../base/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';
import { findSegments, IntentLog, type IntentPlace, regionOf, removeSegments } from './intent-log.ts';

/** Of a volume's directory. */
export const DIRTY_FOLDER = 'dirty';

/** A flush that is under way, for `flushed`. */
export interface DirtyTicket {
  readonly segment: number;
}

export class DirtyRegions {
  readonly #place: IntentPlace;
  readonly #clock: Clock;
  #log: IntentLog;
  #begunMs: number;
  /** Regions written since the last turn began. */
  #written: TrackBits;
  #turning: Promise<void> | undefined;
  /** Segments up to this one may go when a flush that begins now has succeeded. */
  #oldest: number;
  #isClosed = false;

  private constructor(place: IntentPlace, clock: Clock, log: IntentLog) {
    this.#place = place;
    this.#clock = clock;
    this.#log = log;
    this.#oldest = log.epoch;
    this.#begunMs = clock.monotonicMs();
    this.#written = new TrackBits(regionCountOf(place));
  }

  /**
   * What the last owner left in doubt, in whole regions: empty after a clean stop; undefined where none was kept.
   *
   * @param volume the volume's own place, that of its intent log.
   */
  static async find(volume: IntentPlace): Promise<TrackSet | undefined> {
    try {
      const segments = await findSegments(placeIn(volume));
      return segments.length === 0 ? undefined : TrackSet.union(segments.map(({ tracks }) => tracks));
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return undefined;
      throw error;
    }
  }

  /**
   * Begins a segment; what the last owner left stays until `settled`. Durable when it resolves.
   *
   * @param doubtful what is in doubt and in no segment, perhaps: an unclean stop before there were any.
   */
  static async begin(volume: IntentPlace, clock: Clock, doubtful: TrackSet): Promise<DirtyRegions> {
    const place = placeIn(volume);
    await mkdir(place.directory, { recursive: true, mode: 0o700 });
    // Or a power cut might bring back the one that a clean stop removed, with what was in doubt before that.
    await syncDirectory('volume-directory', volume.directory);
    const last = Math.max(0, ...(await findSegments(place)).map(({ epoch }) => epoch));
    let number = last;
    if (last === 0 && !doubtful.isEmpty) {
      const { regionTracks } = place;
      const regions = new Set(Array.from(doubtful.toArray(), (track) => regionOf(track, regionTracks)));
      number += 1;
      await (await IntentLog.create(place, number, regions)).close();
    }
    const log = await IntentLog.create(place, number + 1, []);
    return new DirtyRegions(place, clock, log);
  }

  /** What the last owner left in doubt is so no more. */
  async settled(): Promise<void> {
    await removeSegments(this.#place.directory, (segment) => segment < this.#oldest);
  }

  /** Whether the run may be written. */
  covers(run: TrackRun): boolean {
    return this.#log.covers(run);
  }

  /** Makes it durable that the run may be written. @throws where it cannot be. */
  cover(run: TrackRun): Promise<void> {
    return this.#log.cover(run);
  }

  /** The run is about to be written; it is covered. */
  note(run: TrackRun): void {
    const { regionTracks } = this.#place;
    const first = regionOf(run.first, regionTracks);
    const last = regionOf(run.first + run.count - 1, regionTracks);
    if (first === last) this.#written.add(first);
    else this.#written.addRun({ first, count: last - first + 1 });
  }

  flushBegins(): DirtyTicket {
    return { segment: this.#log.epoch };
  }

  /** Everything that had been written when the ticket was made is durable everywhere. */
  flushed({ segment }: DirtyTicket): void {
    if (this.#isClosed) return;
    if (segment > this.#oldest) {
      this.#oldest = segment;
      this.settled().catch(() => {
        // It only makes more doubtful after a crash than is.
      });
    }
    if (this.#turning !== undefined || this.#clock.monotonicMs() - this.#begunMs < LIMITS.dirtyTurnMs) return;
    this.#turning = this.#turn().finally(() => {
      this.#turning = undefined;
    });
  }

  grow(): void {
    this.#log.grow();
    this.#written.grow(regionCountOf(this.#place));
  }

  /** Everything is durable everywhere: nothing is in doubt. To be called at a clean stop, after the last flush. */
  async clear(): Promise<void> {
    await this.#stop();
    await removeSegments(this.#place.directory, () => true);
    await rmdir(this.#place.directory).catch(() => undefined);
  }

  /** Nobody may write any more. */
  async close(): Promise<void> {
    await this.#stop();
    await this.#log.close();
  }

  async #stop(): Promise<void> {
    this.#isClosed = true;
    await this.#turning;
  }

  /** Where it fails, the segment there is goes on. */
  async #turn(): Promise<void> {
    const hot = regionsOf(this.#written);
    this.#begunMs = this.#clock.monotonicMs();
    if (hot.length > LIMITS.intentHotRegionsMax) return;
    this.#written = new TrackBits(regionCountOf(this.#place));
    let next: IntentLog | undefined;
    try {
      next = await IntentLog.create(this.#place, this.#log.epoch + 1, hot);
      // What is in flight when the logs are exchanged must be in the next one: the flush that follows may miss it.
      for (let missing = this.#missingIn(next); missing.length > 0; missing = this.#missingIn(next))
        for (const run of missing) await next.cover(run);
    } catch {
      for (const region of hot) this.#written.add(region);
      await next?.close();
      return;
    }
    const last = this.#log;
    this.#log = next;
    await last.close();
  }

  /** The regions written since the turn began that the log does not have, by a track of each. */
  #missingIn(log: IntentLog): TrackRun[] {
    return regionsOf(this.#written)
      .map((region) => ({ first: region * this.#place.regionTracks, count: 1 }))
      .filter((run) => !log.covers(run));
  }
}

function placeIn(volume: IntentPlace): IntentPlace {
  const { volumeId, regionTracks } = volume;
  return {
    directory: join(volume.directory, DIRTY_FOLDER),
    volumeId,
    regionTracks,
    get trackCount() {
      return volume.trackCount;
    },
  };
}

function regionCountOf({ trackCount, regionTracks }: IntentPlace): number {
  return regionOf(trackCount - 1, regionTracks) + 1;
}

function regionsOf(bits: TrackBits): number[] {
  return bits.toTrackSet().toArray();
}
