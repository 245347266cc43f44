/**
 * How a volume fixes points and keeps them: the next epoch's intent log made beforehand, the switch with the gate
 * closed, the durable record afterwards; and which boundaries may fold.
 */

import { type Clock, LIMITS, randomId } from '../base/index.ts';
import type { TrackBits } from '../tracks/index.ts';
import type { ClosedEpoch, EpochHistory } from './epoch-history.ts';
import { IntentLog, type IntentPlace, regionOf, removeSegments } from './intent-log.ts';
import type { VolumeState } from './state.ts';
import type { WritePath } from './write-path.ts';

export interface PointsOptions {
  readonly epochs: EpochHistory;
  readonly state: VolumeState;
  readonly writePath: WritePath;
  readonly intentPlace: IntentPlace;
  readonly clock: Clock;
  /** Whether the open epoch has exactly what was written in it. */
  readonly startedClean: boolean;
}

export class Points {
  readonly #options: PointsOptions;
  /** The next epoch's intent log, where a freeze has prepared it. */
  #nextIntents: IntentLog | undefined;
  /** Points, and logs of closed epochs, on their way to the disk. */
  readonly #recording = new Set<Promise<void>>();
  #isRecorded = true;
  /** The open epoch's tracks are those that were written, and not whole regions that a crash left in doubt. */
  #isExact: boolean;

  constructor(options: PointsOptions) {
    this.#options = options;
    this.#isExact = options.startedClean;
  }

  /** False once a point could not be recorded: after a stop everything must count as changed then. */
  get isRecorded(): boolean {
    return this.#isRecorded;
  }

  /** What the next point needs, made while writes go on: its log begins with the regions that are written now. */
  async prepare(): Promise<void> {
    const { intentPlace, epochs } = this.#options;
    this.#nextIntents ??= await IntentLog.create(intentPlace, epochs.openNumber + 1, this.#hotRegions());
  }

  /**
   * Fixes a point. Called with the gate closed, and prepared.
   *
   * @param planned gets the closed epoch's tracks added.
   */
  fix(planned?: TrackBits): ClosedEpoch {
    const { epochs, clock, writePath } = this.#options;
    const closed = epochs.close(randomId(), clock.now(), planned);
    const last = writePath.intents;
    if (this.#nextIntents !== undefined) writePath.switchIntents(this.#nextIntents);
    this.#nextIntents = undefined;
    this.#isExact = true;
    // Its regions are on the disk; whoever still waits for it finds the next one then.
    if (last !== undefined) void this.#track(last.close());
    return closed;
  }

  /** The second flush, begun after the switch, and the durable record of the point. */
  makeDurable(closed: ClosedEpoch): Promise<void> {
    return this.#track(this.#record(closed));
  }

  /** Finishes when no point is on its way to the disk. */
  async whenRecorded(): Promise<void> {
    await Promise.allSettled(this.#recording);
  }

  async close(): Promise<void> {
    await this.#nextIntents?.close();
  }

  #track(work: Promise<void>): Promise<void> {
    const tracked = work.finally(() => this.#recording.delete(tracked));
    this.#recording.add(tracked);
    return tracked;
  }

  async #record(closed: ClosedEpoch): Promise<void> {
    const { state, epochs, writePath, intentPlace } = this.#options;
    try {
      await writePath.flush();
      await state.savePoint(closed, epochs.drop(LIMITS.pointCountMax));
      await removeSegments(intentPlace.directory, (epoch) => epoch === closed.number);
    } catch (error) {
      this.#isRecorded = false;
      throw error;
    }
  }

  /** None where it is in doubt what was written: the doubt would go from crash to crash, and only grow. */
  #hotRegions(): number[] {
    if (!this.#isExact) return [];
    const { intentPlace, epochs } = this.#options;
    const { trackCount, regionTracks } = intentPlace;
    const regions: number[] = [];
    for (let first = 0; first < trackCount;) {
      const track = epochs.firstOpenIn({ first, count: trackCount - first });
      if (track === undefined) break;
      if (regions.length === LIMITS.intentHotRegionsMax) return [];
      const region = regionOf(track, regionTracks);
      regions.push(region);
      first = (region + 1) * regionTracks;
    }
    return regions;
  }
}
