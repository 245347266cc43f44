/**
 * How backup sessions begin: the choice of the base, the plan, what is protected; of a freeze, or of a snapshot.
 *
 * Several may run on a volume, one for each store. What a session does once it has begun is `session.ts`, what they
 * share is `protections.ts`.
 */

import { assert, type Clock, present, randomId, type Timer } from '../base/index.ts';
import { type ContainerArea, IntermediateContainer } from '../container/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';
import { type BaseCandidate, chooseBase, type ChosenBase } from './base-choice.ts';
import type { Deltas } from './deltas.ts';
import type { VolumeIdentity } from './directory.ts';
import type { ClosedEpoch, EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import type { PointUse } from './freeze.ts';
import { Geometry } from './geometry.ts';
import type { Points } from './points.ts';
import { Protection, type ProtectionOptions } from './protection.ts';
import { Protections } from './protections.ts';
import {
  BackupSession,
  type BackupSessionOptions,
  type PlannedDeltas,
  type SessionPlan,
  type SetLevel,
} from './session.ts';
import { SnapshotTracks } from './snapshot-tracks.ts';
import type { Snapshot } from './snapshot-member.ts';
import type { Snapshots } from './snapshots.ts';
import type { WritePath } from './write-path.ts';

export interface SessionRequest {
  /** The session's id, where its owner has one for it. */
  readonly session?: string;
  /** The consumer: the store's id. */
  readonly consumer: string;
  readonly level: 'auto' | SetLevel;
  /** Points the consumer has complete sets of, the best base first. */
  readonly candidates: readonly BaseCandidate[];
  /** Why no candidate could be used, where the consumer knows. */
  readonly reason?: string;
  /** `auto` is full where the chain has so many sets; LIMITS.chainSetCountDefault where left out. */
  readonly fullEvery?: number;
  /** Room for diverted content; none at all is allowed. The session closes the areas. */
  readonly areas: readonly ContainerArea[];
  /** The session fails where a write has to wait longer than this for room; without it writes wait. */
  readonly waitMsMax?: number;
  /** Saves this snapshot's content instead of that of a freeze. */
  readonly snapshot?: string;
  /** What closed delta logs hold whole is not protected: the session takes it from there. */
  readonly takesLogs?: boolean;
}

/** What a session would save that began now. */
export interface SessionPreview extends Pick<
  SessionPlan,
  'level' | 'base' | 'reason' | 'tracks' | 'sizeBytes'
> {}

/** What a freeze fixed for a session. */
interface FixedSession {
  readonly closed: ClosedEpoch;
  readonly protection: Protection;
  readonly geometry: Geometry;
  readonly deltas: PlannedDeltas | undefined;
}

/** What a session is made of. */
interface SessionParts extends Omit<
  BackupSessionOptions,
  'saveConsumer' | 'saveIncomplete' | 'onCovered' | 'onLogsDamaged' | 'onEnded'
> {
  /** The point of the last full set that the store has with this session's. */
  readonly full: string | undefined;
}

export interface SessionsOptions {
  readonly identity: VolumeIdentity;
  readonly geometry: Geometry;
  readonly home: BlockDevice;
  readonly epochs: EpochHistory;
  readonly snapshots: Snapshots;
  readonly writePath: WritePath;
  readonly points: Points;
  readonly deltas: Deltas | undefined;
  readonly clock: Clock;
  readonly timer?: Timer;
  /** Throws where no session may begin. */
  readonly refuse: () => void;
}

export class Sessions {
  readonly #options: SessionsOptions;
  readonly #protections: Protections;
  /** In the order in which they began. */
  readonly #running = new Set<BackupSession>();
  /** Those whose freeze is under way. */
  readonly #starting = new Set<SessionRequest>();

  constructor(options: SessionsOptions) {
    this.#options = options;
    const { geometry, home, writePath } = options;
    this.#protections = new Protections({
      geometry,
      readHome: (target, track) => home.read(target, geometry.offsetOf(track)),
      writePath,
    });
  }

  get running(): readonly BackupSession[] {
    return [...this.#running];
  }

  /** Fails all that run. */
  fail(reason: unknown): void {
    for (const session of this.running) session.fail(reason);
  }

  /** Ends all that run, and finishes when nothing of any session is left. */
  async end(reason: unknown): Promise<void> {
    const running = this.running;
    this.fail(reason);
    await Promise.all(running.map((session) => session.whenEnded()));
    await this.#protections.whenClosed();
  }

  /** What a freeze does for a session; it has the areas from now on. */
  prepare(request: SessionRequest): PointUse<BackupSession> {
    const { points } = this.#options;
    const container = new IntermediateContainer(request.areas);
    let chosen: ChosenBase | undefined;
    let planned: TrackBits | undefined;
    // What is planned and what is protected must be the same tracks.
    let release: (() => void) | undefined;
    let fixed: FixedSession | undefined;
    // A copy may fail before the session has begun.
    const begun: { session?: BackupSession; failure?: unknown } = {};
    const onFailed = (error: unknown): void => {
      if (begun.session === undefined) begun.failure = error;
      else begun.session.fail(error);
    };
    return {
      // Who would have to wait for another freeze first is told at once.
      admit: () => this.#refuseSecond(request),
      prepare: () => {
        this.#starting.add(request);
        chosen = this.#chooseBase(request);
        release = chosen.base === undefined ? undefined : points.hold(chosen.base);
        planned = this.#planSince(chosen.base);
      },
      fix: () => {
        const tracks = present(planned, 'A session was not prepared');
        const closed = points.fix(tracks);
        const deltas = this.#planDeltas(request, chosen?.base);
        for (const run of deltas?.tracks.runs() ?? []) deleteRun(tracks, run);
        const { sizeBytes, trackSizeBytes } = this.#options.geometry;
        // The session's size stays what it is now.
        const geometry = new Geometry(sizeBytes, trackSizeBytes);
        const { waitMsMax } = request;
        const protection = this.#protect({
          tracks,
          container,
          geometry,
          onFailed,
          ...(waitMsMax === undefined ? {} : { waitMsMax }),
        });
        fixed = { closed, geometry, protection, deltas };
      },
      abandon: async () => {
        this.#starting.delete(request);
        release?.();
        await container.close();
      },
      begin: (freezeMs) => {
        assert(chosen !== undefined && fixed !== undefined, 'A session was not fixed');
        const { closed, protection, geometry, deltas } = fixed;
        this.#starting.delete(request);
        const { point } = closed;
        const plan = this.#planOf(request, { point, geometry, chosen, freezeMs, deltas });
        const full = fullOf(plan, chosen);
        this.#claim(request, plan, full);
        release?.();
        const { consumer } = request;
        const durable = points.makeDurable(closed);
        const session = this.#begin({ plan, full, consumer, tracks: protection, durable });
        begun.session = session;
        if (begun.failure !== undefined) session.fail(begun.failure);
        return session;
      },
    };
  }

  /** See `Volume.beginSession`. */
  async beginOfSnapshot(name: string, request: SessionRequest): Promise<BackupSession> {
    // Nothing is diverted: the snapshot keeps it.
    for (const area of request.areas) await area.close();
    // From here on nothing is awaited, so that no other session can begin in between.
    const { snapshots, points, refuse } = this.#options;
    refuse();
    this.#refuseSecond(request);
    const { snapshot, release } = snapshots.hold(name);
    try {
      this.#refuseBehind(request, snapshot);
      const { point, geometry } = snapshot;
      const chosen = this.#chooseBase(request);
      const deltas = this.#planDeltas({ ...request, takesLogs: false }, chosen.base);
      const plan = this.#planOf(request, { point, geometry, chosen, freezeMs: 0, deltas });
      const tracks = TrackBits.from(plan.tracks, geometry.trackCount);
      const full = fullOf(plan, chosen);
      this.#claim(request, plan, full);
      return this.#begin({
        plan,
        full,
        consumer: request.consumer,
        tracks: new SnapshotTracks({ snapshots, snapshot, tracks, release }),
        durable: points.saveClaims(),
      });
    } catch (error) {
      release();
      throw error;
    }
  }

  /** See `Volume.previewSession`. */
  preview(request: Omit<SessionRequest, 'areas'>): SessionPreview {
    const { snapshots, epochs, geometry } = this.#options;
    const wish: SessionRequest = { ...request, areas: [] };
    const fixed = { chosen: this.#chooseBase(wish), freezeMs: 0 };
    if (request.snapshot !== undefined) {
      const snapshot = snapshots.find(request.snapshot);
      this.#refuseBehind(wish, snapshot);
      return this.#planOf(wish, { ...fixed, point: snapshot.point, geometry: snapshot.geometry });
    }
    const { level, base, reason } = fixed.chosen;
    const { sizeBytes, trackCount } = geometry;
    const tracks = base === undefined ? TrackSet.all(trackCount) : epochs.changedSince(base);
    return { level, base, reason, tracks, sizeBytes };
  }

  #begin({ full, ...parts }: SessionParts): BackupSession {
    const { points, clock, deltas } = this.#options;
    const { consumer } = parts;
    const { point, base } = parts.plan;
    // What it reads there must stay.
    const release = deltas?.hold();
    const session: BackupSession = new BackupSession({
      ...parts,
      saveConsumer: (set, copy) =>
        points.saveConsumer({
          name: consumer,
          point,
          set,
          atMs: clock.now(),
          // Nobody asks for what changed since the first copy.
          ...(full === undefined || copy !== undefined ? {} : { full }),
          ...(copy === undefined ? {} : { copy }),
        }),
      saveIncomplete: (left) => points.saveIncomplete(consumer, base, left),
      onCovered: async () => deltas?.covered(point),
      onLogsDamaged: (reason) => deltas?.distrust(reason),
      onEnded: () => {
        this.#running.delete(session);
        release?.();
      },
    });
    this.#running.add(session);
    return session;
  }

  /** The points that the session's store may have sets of, once it has ended in whatever way. */
  #claim({ consumer, level }: SessionRequest, { point, base }: SessionPlan, full: string | undefined): void {
    const bases = [full, base].filter((one) => one !== undefined);
    // For a full set nobody looks what the store has.
    this.#options.points.claim({ consumer, point, bases, wasAsked: level !== 'full' });
  }

  /** From here on no write passes one of these tracks unsaved. */
  #protect(options: Omit<ProtectionOptions, 'group' | 'timer'>): Protection {
    const { timer } = this.#options;
    const group = this.#protections;
    const protection = new Protection({ ...options, group, ...(timer === undefined ? {} : { timer }) });
    group.join(protection);
    return protection;
  }

  /** The tracks that a session since `base` saves, but for those of the epoch that its freeze closes. */
  #planSince(base: string | undefined): TrackBits {
    const { geometry, epochs } = this.#options;
    return base === undefined
      ? TrackBits.all(geometry.trackCount)
      : TrackBits.from(epochs.closedSince(base), geometry.trackCount);
  }

  #planOf(
    request: SessionRequest,
    fixed: {
      readonly point: string;
      /** Of the volume at the point. */
      readonly geometry: Geometry;
      readonly chosen: ChosenBase;
      readonly freezeMs: number;
      readonly deltas?: PlannedDeltas | undefined;
    },
  ): SessionPlan {
    const { point, freezeMs } = fixed;
    const { sizeBytes, trackCount } = fixed.geometry;
    const { level, base, reason } = fixed.chosen;
    const { session = randomId().slice(0, 8) } = request;
    const all = TrackSet.all(trackCount);
    // What is known only roughly may reach into tracks that a snapshot does not have yet.
    const tracks =
      base === undefined ? all : this.#options.epochs.changedBetween(base, point).intersection(all);
    const plan = { session, level, point, base, reason, sizeBytes, tracks, freezeMs };
    const { deltas } = fixed;
    if (deltas === undefined) return plan;
    return { ...plan, deltas: { ...deltas, tracks: deltas.tracks.intersection(tracks) } };
  }

  /** Called right after the point was fixed, with nothing awaited in between: closed logs are those up to the point. */
  #planDeltas({ takesLogs = false }: SessionRequest, base: string | undefined): PlannedDeltas | undefined {
    const plan = this.#options.deltas?.plan(base);
    return takesLogs || plan === undefined ? plan : { ...plan, tracks: TrackSet.empty() };
  }

  #chooseBase(request: SessionRequest): ChosenBase {
    const { epochs, points } = this.#options;
    return chooseBase(request, {
      knows: (point) => epochs.knows(point),
      lastFull: points.lastFullOf(request.consumer),
    });
  }

  /** A store's sets go forward in time: `latest` must not become older than it is. */
  #refuseBehind({ candidates }: SessionRequest, { name, point }: Snapshot): void {
    const { epochs, identity } = this.#options;
    const later = candidates.find(
      ({ point: one }) => one === point || (epochs.knows(one) && !epochs.isBefore(one, point)),
    )?.point;
    if (later === undefined) return;
    const message =
      later === point
        ? `The store has a set of snapshot ${name} of volume ${identity.name} already`
        : `The store has a set of volume ${identity.name} that is later than its snapshot ${name}`;
    throw new VolumeError('snapshot-behind', message, { name });
  }

  #refuseSecond({ consumer }: SessionRequest): void {
    const running = this.running.find((session) => session.consumer === consumer);
    const starting = [...this.#starting].find((request) => request.consumer === consumer);
    if (running === undefined && starting === undefined) return;
    const session = running?.plan.session ?? starting?.session ?? 'starting';
    throw new VolumeError(
      'session-running',
      `Volume ${this.#options.identity.name} has session ${session} to the same store running, wanted one at a time for each store; cancel it or wait`,
      { session },
    );
  }
}

function deleteRun(tracks: TrackBits, { first, count }: TrackRun): void {
  for (let track = first; track < first + count; track += 1) tracks.delete(track);
}

/** The last full set's point once the session's set is in the store: what the next differential builds on. */
function fullOf({ level, point, base }: SessionPlan, { lastFull }: ChosenBase): string | undefined {
  if (level === 'full') return point;
  return level === 'differential' ? base : lastFull;
}
