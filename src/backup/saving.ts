/**
 * Saves the tracks of a session's plan through its lanes, each once. Loops run side by side, and none waits for
 * another:
 *
 *     main pass, some for each lane   take the next run of the plan; the lane reads it from the home,
 *                                     optimistically; confirm: which of these were hit? the others are saved
 *                                     by that question; the lane stores those
 *     log pass                        tracks that closed delta logs hold whole come from there: the home is neither
 *                                     read nor protected for them
 *     drain                           take what was diverted, newest first; the lanes store it in turn; give its
 *                                     room back; until the end
 *
 * A lane that is slow asks for fewer runs; every track lands in exactly one lane (seeds/2, text after Fig. 33).
 * While one loop of a lane waits for an answer, the lane works for the other.
 *
 * What is left out: tracks hit meanwhile, which come through the container; zero tracks, absence saying zero in a
 * full set, and recorded in others where the base is not zero; tracks equal to their effective content at the
 * base (after an unclean stop every track counts as changed, and few are). Of tracks with equal content one is
 * stored, and the others are said to be as that.
 */

import { allFinished, LIMITS, present } from '../base/index.ts';
import type { SessionCounters } from '../blockset/index.ts';
import { DIGEST_BYTES } from '../records/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { type AlikeRun, type DivertedTrack, Geometry, type SessionPlan, ZeroRuns } from '../volume/index.ts';
import { type HeldTracks, type LaneWorker, partsOf, tracksOf } from './lane-worker.ts';
import type { RateLimit } from './rate-limit.ts';
import { SeenTracks } from './seen-tracks.ts';
import type { SessionSource } from './source.ts';

/** Content of tracks at the session's point, as the delta logs hold it. */
export interface LogReader {
  /** @param target as long as the track. @throws {CorruptionError} where no member has it as it was written. */
  read(track: number, target: Buffer): Promise<void>;
}

/** The effective content at the point the set builds on. */
export interface BaseContent {
  /** Tracks that are not zero. */
  tracks(): TrackSet;
  /** The track's hash; undefined for zero. */
  hashOf(track: number): Buffer | undefined;
}

export interface SavingProgress {
  readonly tracksDone: number;
  readonly tracksTotal: number;
  readonly bytesRead: number;
}

export interface SavingOptions {
  readonly source: SessionSource;
  readonly plan: SessionPlan;
  /** At least one. */
  readonly lanes: readonly LaneWorker[];
  /** Undefined for a full set. */
  readonly base: BaseContent | undefined;
  /** Whether tracks of equal content are stored once; they are where left out. */
  readonly storesAliases?: boolean;
  /** What the plan takes from closed delta logs; needed where that is anything. */
  readonly logs?: LogReader | undefined;
  readonly rate?: RateLimit | undefined;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: SavingProgress) => void;
  /** Loops of the main pass for each lane; 1 where left out. */
  readonly loopsPerLane?: number;
  /** Bytes read at a time; LIMITS.sessionRunBytesMax where left out. */
  readonly runBytesMax?: number;
  /** Bytes of diverted content taken at a time; LIMITS.sessionDrainBytesMax where left out. */
  readonly drainBytesMax?: number;
}

interface Reading {
  readonly run: TrackRun;
  /** Undefined where the run is known to be zero without reading it. */
  readonly held: HeldTracks | undefined;
}

/** What becomes of tracks that a lane holds. */
interface Verdict {
  /** Places in the ticket. */
  readonly keep: readonly number[];
  readonly aliases: readonly { readonly lane: number; readonly track: number; readonly of: number }[];
  readonly zeroes: readonly number[];
}

export class Saving {
  readonly #options: SavingOptions;
  readonly #geometry: Geometry;
  readonly #baseTracks: TrackSet | undefined;
  readonly #seen: SeenTracks;
  readonly #drainCountMax: number;
  readonly #runs: AsyncGenerator<AlikeRun>;
  #bytesRead = 0;
  #tracksDone = 0;
  #divertedCount = 0;
  #unchangedCount = 0;
  /** The lane that takes what was diverted next. */
  #nextLane = 0;
  /** One of the loops has failed. */
  #isStopped = false;

  constructor(options: SavingOptions) {
    const { source, plan, base, drainBytesMax = LIMITS.sessionDrainBytesMax } = options;
    const { trackSizeBytes } = source.volume;
    this.#options = options;
    this.#geometry = new Geometry(plan.sizeBytes, trackSizeBytes);
    this.#baseTracks = base?.tracks();
    this.#seen = new SeenTracks(options.storesAliases === false ? 0 : plan.tracks.size);
    this.#drainCountMax = Math.max(1, Math.floor(drainBytesMax / trackSizeBytes));
    this.#runs = this.#plannedRuns();
  }

  /** Saves every track of the plan; finishes when the container is empty and nothing is protected any more. */
  async run(): Promise<SessionCounters> {
    const { lanes, loopsPerLane = 1 } = this.#options;
    const passes = lanes.flatMap((lane, number) =>
      Array.from({ length: loopsPerLane }, () => this.#stopping(() => this.#mainPass(lane, number))),
    );
    // Those that go on when one has failed may wait for what only the session's end brings.
    const logPass = this.#stopping(() => this.#logPass());
    await Promise.all([...passes, logPass, this.#stopping(() => this.#drain())]);
    for (const lane of lanes) await lane.flush();
    return {
      bytesRead: this.#bytesRead,
      diverted: this.#divertedCount,
      unchanged: this.#unchangedCount,
    };
  }

  /** A loop that fails stops the others. */
  async #stopping(loop: () => Promise<void>): Promise<void> {
    try {
      await loop();
    } catch (error) {
      this.#isStopped = true;
      throw error;
    }
  }

  async #mainPass(lane: LaneWorker, number: number): Promise<void> {
    let reading = await this.#readNext(lane);
    while (reading !== undefined) {
      this.#assertGoing();
      const { run, held } = reading;
      const hits = await this.#options.source.confirm([run]);
      this.#assertGoing();
      // The next run is read while this one is stored. That only makes the reading older.
      const next = this.#readNext(lane);
      // Where storing fails, that is the error; the read that runs beside it must not be left unhandled.
      next.catch(() => undefined);
      if (held === undefined) await this.#storeZeroRun(run, hits);
      else await this.#store({ lane, number, tracks: tracksOf(run), held, hits });
      this.#progressed(run.count - hits.length);
      reading = await next;
    }
  }

  async #logPass(): Promise<void> {
    const { plan, lanes, logs, rate, runBytesMax = LIMITS.sessionRunBytesMax } = this.#options;
    const countMax = Math.max(1, Math.floor(runBytesMax / this.#geometry.trackSizeBytes));
    let number = 0;
    for (const run of plan.deltas?.tracks.runs(countMax) ?? []) {
      this.#assertGoing();
      await rate?.take(this.#geometry.lengthOf(run));
      const tracks = tracksOf(run);
      const contents: Buffer[] = [];
      for (const track of tracks) {
        const content = Buffer.allocUnsafe(this.#geometry.lengthOf({ first: track, count: 1 }));
        await present(logs, 'A session that takes tracks from logs').read(track, content);
        contents.push(content);
      }
      const lane = present(lanes[number], 'One of the lanes');
      const held = await lane.hold(tracks, contents);
      this.#assertGoing();
      await this.#store({ lane, number, tracks, held, hits: [] });
      this.#progressed(run.count);
      number = (number + 1) % lanes.length;
    }
  }

  async #drain(): Promise<void> {
    const { source } = this.#options;
    for (;;) {
      const taken = await source.take(this.#drainCountMax);
      this.#assertGoing();
      if (taken.length === 0) return;
      await this.#storeDiverted(taken);
      await source.acknowledge(taken.map(({ id }) => id));
      this.#divertedCount += taken.length;
      this.#progressed(taken.length);
    }
  }

  /** Another loop has failed, or the session was cancelled: nothing more may reach the set. */
  #assertGoing(): void {
    this.#options.signal?.throwIfAborted();
    if (this.#isStopped) throw new Error('Another loop of the session has failed');
  }

  /** The plan's tracks in runs that are read in one go, or that are zero throughout. */
  async *#plannedRuns(): AsyncGenerator<AlikeRun> {
    const geometry = this.#geometry;
    const { plan, source, runBytesMax = LIMITS.sessionRunBytesMax } = this.#options;
    const countMax = Math.max(1, Math.floor(runBytesMax / geometry.trackSizeBytes));
    const tracks = plan.deltas === undefined ? plan.tracks : plan.tracks.difference(plan.deltas.tracks);
    for await (const { isZero, first, count } of new ZeroRuns(geometry, source.home).split(tracks)) {
      const step = isZero ? count : countMax;
      for (let at = 0; at < count; at += step) {
        yield { first: first + at, count: Math.min(step, count - at), isZero };
      }
    }
  }

  async #readNext(lane: LaneWorker): Promise<Reading | undefined> {
    const next = await this.#runs.next();
    if (next.done === true) return undefined;
    const { first, count, isZero } = next.value;
    const run = { first, count };
    if (isZero) return { run, held: undefined };
    await this.#options.rate?.take(this.#geometry.lengthOf(run));
    return { run, held: await this.#read(lane, run) };
  }

  async #read(lane: LaneWorker, run: TrackRun): Promise<HeldTracks> {
    this.#bytesRead += this.#geometry.lengthOf(run);
    if (this.#options.source.isHomeWhole) return lane.read(run);
    const content = await this.#readHome(run);
    return lane.hold(tracksOf(run), partsOf(content, this.#geometry.trackSizeBytes));
  }

  async #readHome(run: TrackRun): Promise<Buffer> {
    const content = Buffer.allocUnsafe(this.#geometry.lengthOf(run));
    await this.#options.source.home.read(content, this.#geometry.offsetOf(run.first));
    return content;
  }

  /** Finishes when the lane has it in its file, so that its room may be given back (DESIGN section 4). */
  async #storeDiverted(taken: readonly DivertedTrack[]): Promise<void> {
    const { lanes } = this.#options;
    const number = this.#nextLane;
    this.#nextLane = (this.#nextLane + 1) % lanes.length;
    const lane = present(lanes[number], 'One of the lanes');
    const contents: Buffer[] = [];
    for (const { track, content } of taken) contents.push(content ?? (await this.#readWaiting(track)));
    const tracks = taken.map(({ track }) => track);
    const held = await lane.hold(tracks, contents);
    this.#assertGoing();
    const others = await this.#store({ lane, number, tracks, held, hits: [] });
    await lane.flush();
    for (const other of others) await lanes[other]?.flush();
  }

  /** The home still holds the track's content: the writer waits until it is stored. */
  #readWaiting(track: number): Promise<Buffer> {
    const run = { first: track, count: 1 };
    this.#bytesRead += this.#geometry.lengthOf(run);
    return this.#readHome(run);
  }

  /** @returns the other lanes that got something. */
  async #store(at: {
    readonly lane: LaneWorker;
    readonly number: number;
    readonly tracks: readonly number[];
    readonly held: HeldTracks;
    readonly hits: readonly number[];
  }): Promise<readonly number[]> {
    const { lanes } = this.#options;
    const { keep, aliases, zeroes } = this.#decide(at);
    // All are called before any is waited for: an alias must come after the track that it names.
    const stored = [at.lane.store(at.held.ticket, keep)];
    const others = [...new Set(aliases.map(({ lane }) => lane))];
    for (const other of others) {
      const own = aliases.filter(({ lane }) => lane === other);
      stored.push(present(lanes[other], 'One of the lanes').storeAliases(own));
    }
    if (zeroes.length > 0) stored.push(this.#storeZeroes(zeroes));
    await allFinished(stored);
    return zeroes.length > 0 ? [...others, 0] : others;
  }

  #decide(at: {
    readonly number: number;
    readonly tracks: readonly number[];
    readonly held: HeldTracks;
    readonly hits: readonly number[];
  }): Verdict {
    const { base, storesAliases = true } = this.#options;
    const hits = new Set(at.hits);
    const keep: number[] = [];
    const aliases: { lane: number; track: number; of: number }[] = [];
    const zeroes: number[] = [];
    for (const [index, track] of at.tracks.entries()) {
      if (hits.has(track)) continue;
      if (at.held.zeroes[index] === 1) {
        if (this.#baseTracks?.has(track) === true) zeroes.push(track);
        continue;
      }
      const hash = at.held.hashes.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
      if (base?.hashOf(track)?.equals(hash) === true) {
        this.#unchangedCount += 1;
        continue;
      }
      const same = storesAliases ? this.#seen.findOrAdd(hash, { lane: at.number, track }) : undefined;
      if (same === undefined) keep.push(index);
      else aliases.push({ lane: same.lane, track, of: same.track });
    }
    return { keep, aliases, zeroes };
  }

  /** Zero tracks matter only where the base has something else. */
  async #storeZeroRun(run: TrackRun, hits: readonly number[]): Promise<void> {
    if (this.#baseTracks === undefined) return;
    const tracks = TrackSet.ofRun(run).intersection(this.#baseTracks);
    for (const track of hits) tracks.delete(track);
    if (!tracks.isEmpty) await this.#storeZeroes(tracks.toArray());
  }

  /** Lane 0 has them: they take no time. */
  #storeZeroes(tracks: readonly number[]): Promise<void> {
    return present(this.#options.lanes[0], 'A session has a lane').storeZeroes(tracks);
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
