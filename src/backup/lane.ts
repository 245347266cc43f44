/**
 * The lane: reads the tracks of a session's plan and what was diverted from it, and stores each once. Two
 * loops run side by side, and neither waits for the other:
 *
 *     main pass   for each run of the plan: read it from the home, optimistically; confirm: which of these were
 *                 hit? the others are saved by that question; store those
 *     drain       take what was diverted, newest first; store it; give its room back; until the end
 *
 * The next run is read while the last one is stored. That only makes the reading older, and `confirm` comes
 * after it in any case.
 *
 * Zero tracks: in a full set they are left out, absence says zero; in an incremental they are recorded where
 * the base is not zero. A track equal to its effective content at the base is left out too: after an unclean
 * stop every track counts as changed, and few are.
 */

import { LIMITS } from '../base/index.ts';
import { digest } from '../records/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import type { DivertedTrack, Geometry, SessionPlan } from '../volume/index.ts';
import { ZeroRuns } from './zero-runs.ts';
import type { SessionSource } from './source.ts';

/** Where the tracks go: a block set being written. */
export interface SetSink {
  /** Stores a track's content, at most once for each track; the buffer is free when it returns. */
  add(track: number, content: Buffer, hash: Buffer): void;
  /** Records that a track is zero, where its base is not. */
  addZero(track: number): void;
  /** Everything added is handed to the file. */
  flush(): void;
}

/** The effective content at the point the set builds on. */
export interface BaseContent {
  /** Tracks that are not zero. */
  tracks(): TrackSet;
  /** The track's hash; undefined for zero. */
  hashOf(track: number): Buffer | undefined;
}

export interface LaneProgress {
  readonly tracksDone: number;
  readonly tracksTotal: number;
  readonly bytesRead: number;
}

export interface LaneOptions {
  readonly source: SessionSource;
  readonly plan: SessionPlan;
  readonly geometry: Geometry;
  readonly set: SetSink;
  /** Undefined for a full set. */
  readonly base: BaseContent | undefined;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LaneProgress) => void;
  /** Bytes read at a time; LIMITS.sessionRunBytesMax where left out. */
  readonly runBytesMax?: number;
  /** Bytes of diverted content taken at a time; LIMITS.sessionDrainBytesMax where left out. */
  readonly drainBytesMax?: number;
}

export interface LaneResult {
  readonly bytesRead: number;
  readonly divertedCount: number;
}

interface Reading {
  readonly run: TrackRun;
  /** Undefined where the run is known to be zero without reading it. */
  readonly content: Buffer | undefined;
}

export class Lane {
  readonly #options: LaneOptions;
  readonly #zero: Buffer;
  readonly #drainCountMax: number;
  #bytesRead = 0;
  #tracksDone = 0;
  #divertedCount = 0;
  /** One of the two loops has failed. */
  #isStopped = false;

  constructor(options: LaneOptions) {
    const { trackSizeBytes } = options.geometry;
    this.#options = options;
    this.#zero = Buffer.alloc(trackSizeBytes);
    this.#drainCountMax = Math.max(
      1,
      Math.floor((options.drainBytesMax ?? LIMITS.sessionDrainBytesMax) / trackSizeBytes),
    );
  }

  /** Saves every track of the plan; finishes when the container is empty and nothing is protected any more. */
  async run(): Promise<LaneResult> {
    try {
      await Promise.all([this.#mainPass(), this.#drain()]);
    } finally {
      this.#isStopped = true;
    }
    this.#options.set.flush();
    return { bytesRead: this.#bytesRead, divertedCount: this.#divertedCount };
  }

  async #mainPass(): Promise<void> {
    const runs = this.#runs();
    let reading = await this.#readNext(runs);
    while (reading !== undefined) {
      this.#assertGoing();
      const hits = await this.#options.source.confirm([reading.run]);
      this.#assertGoing();
      const next = this.#readNext(runs);
      // Where storing fails, that is the error; the read that runs beside it must not be left unhandled.
      next.catch(() => undefined);
      this.#store(reading, hits);
      this.#progressed(reading.run.count - hits.length);
      reading = await next;
    }
  }

  async #drain(): Promise<void> {
    const { source, set } = this.#options;
    for (;;) {
      const taken = await source.take(this.#drainCountMax);
      this.#assertGoing();
      if (taken.length === 0) return;
      for (const diverted of taken) {
        this.#storeTrack(diverted.track, diverted.content ?? (await this.#readHeld(diverted)));
      }
      // Room is given back only for what the store has (DESIGN section 4).
      set.flush();
      await source.acknowledge(taken.map(({ id }) => id));
      this.#divertedCount += taken.length;
      this.#progressed(taken.length);
    }
  }

  /** The other loop has failed, or the session was cancelled: nothing more may reach the set. */
  #assertGoing(): void {
    this.#options.signal?.throwIfAborted();
    if (this.#isStopped) throw new Error('The other loop of the lane has failed');
  }

  /** The plan's tracks in runs that are read in one go, or that are zero throughout. */
  async *#runs(): AsyncGenerator<TrackRun & { readonly isZero: boolean }> {
    const { geometry, plan, source } = this.#options;
    const countMax = Math.max(
      1,
      Math.floor((this.#options.runBytesMax ?? LIMITS.sessionRunBytesMax) / geometry.trackSizeBytes),
    );
    const zeroes = new ZeroRuns(geometry, source.home);
    for (const planned of plan.tracks.runs()) {
      let first = planned.first;
      const end = planned.first + planned.count;
      while (first < end) {
        const { isZero, count } = await zeroes.at(first, end - first);
        const taken = isZero ? count : Math.min(count, countMax);
        yield { first, count: taken, isZero };
        first += taken;
      }
    }
  }

  async #readNext(
    runs: AsyncGenerator<TrackRun & { readonly isZero: boolean }>,
  ): Promise<Reading | undefined> {
    const next = await runs.next();
    if (next.done === true) return undefined;
    const { first, count, isZero } = next.value;
    const run = { first, count };
    if (isZero) return { run, content: undefined };
    return { run, content: await this.#read(run) };
  }

  async #read(run: TrackRun): Promise<Buffer> {
    const { geometry, source } = this.#options;
    const content = Buffer.allocUnsafe(geometry.lengthOf(run));
    await source.home.read(content, geometry.offsetOf(run.first));
    this.#bytesRead += content.length;
    return content;
  }

  #store(reading: Reading, hits: readonly number[]): void {
    const { run, content } = reading;
    if (content === undefined) {
      this.#storeZeroes(run, hits);
      return;
    }
    const wasHit = new Set(hits);
    for (let track = run.first; track < run.first + run.count; track += 1) {
      if (!wasHit.has(track)) this.#storeTrack(track, this.#partOf(run, content, track));
    }
  }

  #partOf(run: TrackRun, content: Buffer, track: number): Buffer {
    const start = (track - run.first) * this.#options.geometry.trackSizeBytes;
    return content.subarray(start, start + this.#options.geometry.trackSizeBytes);
  }

  #storeTrack(track: number, content: Buffer): void {
    const { base, set } = this.#options;
    if (content.equals(this.#zero.subarray(0, content.length))) {
      this.#storeZeroes({ first: track, count: 1 }, []);
      return;
    }
    const hash = digest(content);
    if (base?.hashOf(track)?.equals(hash) === true) return;
    set.add(track, content, hash);
  }

  /** Zero tracks matter only where the base has something else. */
  #storeZeroes(run: TrackRun, hits: readonly number[]): void {
    const { base, set } = this.#options;
    if (base === undefined) return;
    const tracks = TrackSet.ofRun(run).intersection(base.tracks());
    for (const track of hits) tracks.delete(track);
    for (const track of tracks) set.addZero(track);
  }

  /** The home still holds the track's content: the writer waits until it is stored. */
  #readHeld(diverted: DivertedTrack): Promise<Buffer> {
    return this.#read({ first: diverted.track, count: 1 });
  }

  #progressed(tracks: number): void {
    this.#tracksDone += tracks;
    this.#options.onProgress?.({
      tracksDone: this.#tracksDone,
      tracksTotal: this.#options.plan.tracks.size,
      bytesRead: this.#bytesRead,
    });
  }
}
