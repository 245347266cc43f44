/**
 * How a volume fixes points and keeps them: the next epoch's intent log made beforehand, the switch with the gate
 * closed, the durable record afterwards; and which of them stay boundaries.
 *
 * A point stays one while a consumer's record or a snapshot names it. The record may lag behind the store: a crash
 * between the catalog and the record leaves a set that the volume was not told of. So the point of a session, and
 * its base, are _claimed_ for its store, durably before the set is sealed, until that store is asked again or the
 * record has moved. All else folds, in the transaction that records a point or a consumer.
 */

import { type Clock, LIMITS, randomId } from '../base/index.ts';
import type { TrackBits } from '../tracks/index.ts';
import type { Deltas } from './deltas.ts';
import type { ClosedEpoch, EpochHistory, Fold } from './epoch-history.ts';
import { boundariesToKeep } from './folding.ts';
import { IntentLog, type IntentPlace, regionOf, removeSegments } from './intent-log.ts';
import type { Snapshots } from './snapshots.ts';
import type { Claim, Consumer, CopiedTarget, CopyRecord, VolumeState } from './state.ts';
import type { WritePath } from './write-path.ts';

export interface PointsOptions {
  readonly epochs: EpochHistory;
  readonly state: VolumeState;
  readonly snapshots: Pick<Snapshots, 'points'>;
  readonly writePath: WritePath;
  readonly intentPlace: IntentPlace;
  readonly deltas: Pick<Deltas, 'prepareSwitch' | 'switchTo'> | undefined;
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
  /** Epochs that are closed, and whose points are not recorded yet. */
  readonly #unrecorded = new Set<number>();
  /** By consumer, that which claimed last at the end. */
  readonly #claims: Map<string, Claim>;
  readonly #held = new Set<{ readonly point: string }>();

  constructor(options: PointsOptions) {
    this.#options = options;
    this.#isExact = options.startedClean;
    this.#claims = new Map(options.state.claims().map((claim) => [claim.name, claim]));
  }

  /** False once a point could not be recorded: after a stop everything must count as changed then. */
  get isRecorded(): boolean {
    return this.#isRecorded;
  }

  /** What the next point needs, made while writes go on: its log begins with the regions that are written now. */
  async prepare(): Promise<void> {
    const { intentPlace, epochs, deltas } = this.#options;
    await deltas?.prepareSwitch();
    this.#nextIntents ??= await IntentLog.create(intentPlace, epochs.openNumber + 1, this.#hotRegions());
  }

  /**
   * Fixes a point. Called with the gate closed, and prepared.
   *
   * @param planned gets the closed epoch's tracks added.
   */
  fix(planned?: TrackBits): ClosedEpoch {
    const { epochs, clock, writePath, deltas } = this.#options;
    const closed = epochs.close(randomId(), clock.now(), planned);
    deltas?.switchTo(closed.point, closed.createdMs);
    this.#unrecorded.add(closed.number);
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

  /** Until it is released, the answers for the point stay what they are now. */
  hold(point: string): () => void {
    const held = { point };
    this.#held.add(held);
    return () => this.#held.delete(held);
  }

  /**
   * From now on the point is kept for a store that may get a set of it, and so is the set's base; durable with the
   * next record. Where the store was asked what it has, it has nothing newer than the base.
   */
  claim(claim: {
    readonly consumer: string;
    readonly point: string;
    /** What the store's next sets may build on, beside the point: the base, and the last full set's point. */
    readonly bases: readonly string[];
    readonly wasAsked: boolean;
  }): void {
    const { consumer: name, point, bases, wasAsked } = claim;
    const before = wasAsked ? [] : (this.#claims.get(name)?.points ?? []);
    const points = [...new Set([...before, ...bases, point])];
    this.#claims.delete(name);
    this.#claims.set(name, { name, points: points.slice(-LIMITS.pointClaimCountMax) });
    for (const oldest of this.#claims.keys()) {
      if (this.#claims.size <= LIMITS.pointClaimantCountMax) break;
      this.#claims.delete(oldest);
    }
  }

  /** Makes the claims durable where no point is recorded with them. */
  saveClaims(): Promise<void> {
    return this.#track(this.#options.state.saveClaims([...this.#claims.values()]));
  }

  /** The point of the consumer's last full set, as far as its record says. */
  lastFullOf(consumer: string): string | undefined {
    return this.#options.state.consumers().find(({ name }) => name === consumer)?.full;
  }

  /** Moves a consumer's point; see `VolumeState.saveConsumer`. Its claim ends, and what it needed may fold. */
  async saveConsumer(consumer: Consumer): Promise<void> {
    const claim = this.#claims.get(consumer.name);
    const claims = [...this.#claims.values()].filter((one) => one !== claim);
    const others = this.#options.state.consumers().filter(({ name }) => name !== consumer.name);
    const dropped = consumer.copy === undefined ? [] : copiesTooMany(others);
    const kept = others.filter(({ name }) => !dropped.includes(name));
    const fold = this.#fold(consumer.point, claims, [consumer, ...kept]);
    await this.#options.state.saveConsumer(consumer, { fold, claims, dropped });
    if (this.#claims.get(consumer.name) === claim) this.#claims.delete(consumer.name);
  }

  /**
   * The targets of a copy no longer hold what the record says, or what they hold is not known to the record. Durable
   * when it resolves.
   *
   * @param base what they held; undefined where what they held does not count, and the record goes.
   * @param left.targets how they were left; nobody has looked yet where left out.
   * @param left.others consumers that have something else there, and whose records go.
   */
  async saveIncomplete(
    name: string,
    base: string | undefined,
    left: { readonly targets?: readonly CopiedTarget[]; readonly others?: readonly string[] },
  ): Promise<void> {
    const { state } = this.#options;
    const { targets, others = [] } = left;
    const record = state.consumers().find((one) => one.name === name);
    if (record === undefined && others.length === 0) return;
    if (record === undefined || record.point !== base) {
      await state.replaceConsumers([...others, name], undefined);
    } else {
      const copy: CopyRecord = { targets: targets ?? unwatched(record), isIncomplete: true };
      await state.replaceConsumers(others, { ...record, copy });
    }
  }

  /** The volume has more tracks now. Not during a freeze. */
  grow(): void {
    this.#nextIntents?.grow();
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

  /** Called right before the transaction that records the outcome: nothing is awaited in between. */
  #fold(point: string, claims: readonly Claim[], consumers: readonly Consumer[]): Fold {
    const { epochs, snapshots } = this.#options;
    const newestFirst = consumers.toSorted((a, b) => b.atMs - a.atMs);
    const points = [
      point,
      ...Array.from(this.#held, (held) => held.point),
      ...snapshots.points(),
      ...claims.toReversed().flatMap((claim) => claim.points),
      ...newestFirst.map((consumer) => consumer.point),
      ...newestFirst.flatMap(({ full }) => (full === undefined ? [] : [full])),
    ];
    return epochs.fold(boundariesToKeep(epochs, { unrecorded: this.#unrecorded, points }));
  }

  async #record(closed: ClosedEpoch): Promise<void> {
    const { state, epochs, writePath, intentPlace } = this.#options;
    try {
      await writePath.flush();
      this.#unrecorded.delete(closed.number);
      const claims = [...this.#claims.values()];
      await state.savePoint(closed, { fold: this.#fold(closed.point, claims, state.consumers()), claims });
      await removeSegments(intentPlace.directory, (epoch) => epoch === closed.number);
    } catch (error) {
      this.#isRecorded = false;
      this.#unrecorded.delete(closed.number);
      epochs.withdraw(closed);
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

/** The copies' records that have to go for one more: those that were complete longest ago. */
function copiesTooMany(consumers: readonly Consumer[]): string[] {
  return consumers
    .filter(({ copy }) => copy !== undefined)
    .toSorted((a, b) => b.atMs - a.atMs)
    .slice(LIMITS.copyRecordCountMax - 1)
    .map(({ name }) => name);
}

/** The targets of a copy, changed since anybody looked. */
function unwatched({ copy }: Consumer): readonly CopiedTarget[] {
  return copy?.targets.map(({ place, sizeBytes }) => ({ place, sizeBytes })) ?? [];
}
