/**
 * The serving side of one backup session: from the freeze that fixed its point to done, failed or cancelled.
 *
 * The side that reads and stores (a lane, in a child process) works through these calls; how they travel is
 * `backup/`'s. Whatever happens to that side, ending the session here frees every track and every writer.
 *
 *     running --mayComplete--> completing --complete--> done
 *        |                         |
 *        +--fail, cancel-----------+--fail--> failed
 *
 * A session that is completing can no longer be cancelled: its set may be sealed already.
 */

import type { TrackRun, TrackSet } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';
import type { DivertedTrack } from './protection.ts';
import type { CopiedTarget, CopyRecord } from './state.ts';

export type SessionState = 'running' | 'completing' | 'done' | 'failed';

/** Of a set: everything; what changed since the last full one; what changed since the last one of any level. */
export type SetLevel = 'full' | 'differential' | 'incremental';

/** What the session is to save. */
export interface SessionPlan {
  readonly session: string;
  readonly level: SetLevel;
  /** The point that the session's freeze fixed. */
  readonly point: string;
  /** The point that the set builds on; undefined for a full one. */
  readonly base: string | undefined;
  /** Why it is a full one, where the request was not for one. */
  readonly reason: string | undefined;
  /** The volume's size at the point; it may have grown since. */
  readonly sizeBytes: number;
  /** The tracks to read: everything for a full set, else what changed since the base. */
  readonly tracks: TrackSet;
  /** How long the gate was closed. */
  readonly freezeMs: number;
  /** Where the volume has a delta store. */
  readonly deltas?: PlannedDeltas;
}

/** What a session has to do with the delta store. */
export interface PlannedDeltas {
  /** Tracks of the plan that the closed logs hold whole: to be taken from there, since the home is not protected. */
  readonly tracks: TrackSet;
  /** The members that have the logs: directories, or URIs of devices. */
  readonly places: readonly string[];
  /** Where the oldest log begins. */
  readonly startPoint: string;
  /** Every byte of the chain that the set builds on was checked once, after it was written. */
  readonly isBaseReadable: boolean;
}

/** Room for diverted content: what the session still needs of it, and what there is. */
export interface ContainerUse {
  /** Entries that the session has not acknowledged, wherever they lie. */
  readonly entries: number;
  readonly entriesMax: number;
  /** Slots of the session's own areas ... */
  readonly slots: number;
  /** ... and those in use, for whomever. */
  readonly slotsUsed: number;
}

export interface SessionStatus {
  readonly session: string;
  /** The store's id. */
  readonly consumer: string;
  readonly state: SessionState;
  readonly level: SetLevel;
  readonly point: string;
  readonly tracks: number;
  readonly tracksLeft: number;
  readonly diverted: number;
  readonly containerEntries: number;
  readonly containerEntriesMax: number;
  readonly containerSlots: number;
  readonly containerSlotsUsed: number;
  readonly writesWaiting: number;
}

/** What a session saves, and what of it has been replaced meanwhile: `Protection`, or a snapshot's tracks. */
export interface SessionTracks {
  /** Tracks that are not saved yet. */
  readonly protectedCount: number;
  /** Tracks whose content did not come from the home. */
  readonly divertedCount: number;
  /** Writers' tracks that wait for the session. */
  readonly waitingCount: number;
  readonly containerUse: ContainerUse;
  confirm(runs: readonly TrackRun[]): number[];
  take(countMax: number): Promise<DivertedTrack[]>;
  acknowledge(ids: readonly number[]): void;
  resend(): void;
  end(): Promise<void>;
}

export interface BackupSessionOptions {
  readonly plan: SessionPlan;
  /** The store's id. */
  readonly consumer: string;
  readonly tracks: SessionTracks;
  /** Settles when the point, and everything it closed, is durable. */
  readonly durable: Promise<void>;
  /** The consumer's point moves to the session's; durable when it resolves. */
  readonly saveConsumer: (set: string, copy?: CopyRecord) => Promise<void>;
  /** The consumer's record counts for less from now on; see `beginReplacing`. */
  readonly saveIncomplete: (left: {
    readonly targets?: readonly CopiedTarget[];
    readonly others?: readonly string[];
  }) => Promise<void>;
  /** A readable chain holds what the logs had up to the session's point. */
  readonly onCovered?: () => Promise<void>;
  /** The session's logs are damaged: what they hold has to come from elsewhere. */
  readonly onLogsDamaged?: (reason: string) => void;
  /** The session no longer needs its place on the write path. */
  readonly onEnded: () => void;
}

export class BackupSession {
  readonly plan: SessionPlan;
  readonly #options: BackupSessionOptions;
  #state: SessionState = 'running';
  #isReplacing = false;
  #failure: unknown;
  #ending: Promise<void> | undefined;
  readonly #abort = new AbortController();

  constructor(options: BackupSessionOptions) {
    this.plan = options.plan;
    this.#options = options;
    // A freeze that turns out not to be durable ends the session even while nobody asks.
    options.durable.catch((error: unknown) => this.fail(error));
  }

  /** The id of the store that it is for. */
  get consumer(): string {
    return this.#options.consumer;
  }

  get state(): SessionState {
    return this.#state;
  }

  /** Aborted with the reason when the session fails or is cancelled. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  status(): SessionStatus {
    const { tracks, consumer } = this.#options;
    const { entries, entriesMax, slots, slotsUsed } = tracks.containerUse;
    return {
      session: this.plan.session,
      consumer,
      state: this.#state,
      level: this.plan.level,
      point: this.plan.point,
      tracks: this.plan.tracks.size,
      tracksLeft: tracks.protectedCount,
      diverted: tracks.divertedCount,
      containerEntries: entries,
      containerEntriesMax: entriesMax,
      containerSlots: slots,
      containerSlotsUsed: slotsUsed,
      writesWaiting: tracks.waitingCount,
    };
  }

  /**
   * The lane has read these tracks: which were hit meanwhile, and are to be thrown away? The others are saved.
   *
   * @throws {VolumeError} `session-ended`, also from the calls below.
   */
  confirm(runs: readonly TrackRun[]): number[] {
    this.#assertRunning();
    return this.#options.tracks.confirm(runs);
  }

  /** See `Protection.take`. */
  async take(countMax: number): Promise<DivertedTrack[]> {
    this.#assertRunning();
    const taken = await this.#options.tracks.take(countMax);
    this.#assertRunning();
    return taken;
  }

  acknowledge(ids: readonly number[]): void {
    this.#assertRunning();
    this.#options.tracks.acknowledge(ids);
  }

  /**
   * The receiver was lost and has come back: what it took and did not acknowledge is to be taken again. It may get
   * tracks that it has stored already, and stores each once.
   */
  resend(): void {
    this.#assertRunning();
    this.#options.tracks.resend();
  }

  /**
   * To be called before the first write of a session that writes over what its consumer has, as a copy does to its
   * targets. From here on until `complete` they hold neither what they held at the base nor what the plan's point
   * holds; durable when it resolves. However it ends then, power cuts included, no later session takes them for
   * current: they count as they were at the base, but for all that changed since, or as unknown where this session
   * has no base.
   *
   * @param others consumers that have something else in the same place: their points count for nothing any more.
   */
  async beginReplacing(others: readonly string[] = []): Promise<void> {
    this.#assertRunning();
    this.#isReplacing = true;
    await this.#options.saveIncomplete({ others });
    this.#assertRunning();
  }

  /**
   * How the targets look that are left half written, so that it can be told whether somebody else changes them.
   * Nothing may write to them any more. Without effect where `beginReplacing` was not called, or the session is done.
   */
  async leaveIncomplete(targets: readonly CopiedTarget[]): Promise<void> {
    if (this.#isReplacing && this.#state !== 'done') await this.#options.saveIncomplete({ targets });
  }

  /**
   * Asks to seal the set: everything was saved, and the point is durable when this resolves. From here on the
   * session cannot be cancelled.
   */
  async mayComplete(): Promise<void> {
    this.#assertRunning();
    const { tracks, durable } = this.#options;
    const left = tracks.protectedCount;
    if (left > 0) throw this.#ended(`${left} tracks are not saved yet`);
    await durable;
    this.#assertRunning();
    this.#state = 'completing';
  }

  /**
   * The set is sealed and catalogued, or the targets hold the point, durably: the consumer's point moves (promise 4).
   *
   * @param copy how the targets of a copy look.
   */
  async complete(set: string, copy?: CopyRecord): Promise<void> {
    if (this.#state !== 'completing') throw this.#ended(`it is ${this.#state}, not completing`);
    await this.#options.saveConsumer(set, copy);
    this.#state = 'done';
    await this.#end();
  }

  /**
   * The set is complete, and every byte of it was read and found as it was written, as was its chain unless the plan says
   * that this had been done: what the logs hold of it may go (promise 6). Without a delta store nothing is done.
   */
  async covered(): Promise<void> {
    if (this.#state !== 'done') throw this.#ended(`it is ${this.#state}, not done`);
    await this.#options.onCovered?.();
  }

  /** A log cannot be read, and with it what the plan takes from there: the next session must not do that. */
  logsDamaged(reason: string): void {
    this.#options.onLogsDamaged?.(reason);
  }

  /** Ends the session without a set, for any reason; without effect once it has ended. */
  fail(error: unknown): void {
    if (this.#state === 'done' || this.#state === 'failed') return;
    this.#state = 'failed';
    this.#failure = error;
    this.#abort.abort(error);
    void this.#end();
  }

  /** Finishes when the session has ended and nothing of it is left on the write path. */
  async whenEnded(): Promise<void> {
    await this.#ending;
  }

  #end(): Promise<void> {
    this.#options.onEnded();
    this.#ending ??= this.#options.tracks.end();
    return this.#ending;
  }

  #assertRunning(): void {
    if (this.#state !== 'running') throw this.#ended(this.#state);
  }

  #ended(reason: string): VolumeError {
    const { session } = this.plan;
    return new VolumeError(
      'session-ended',
      `Session ${session} cannot go on: ${reason}`,
      { session, reason },
      { cause: this.#failure },
    );
  }
}
