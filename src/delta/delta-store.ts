/**
 * The delta store of a volume: N logs of every write that is not yet backed up (DESIGN section 4, "Deltas").
 *
 *     append -> a record, numbered -> each healthy member, side by side -> all have it: acknowledged
 *     flush  -> a flush record     -> each healthy member, one sync each -> all have it: durable
 *
 * **Order.** Records are numbered in the order of the calls and put in that order; writes of several may be under way.
 * Everything up to the number that a record carries as `durable` was durable when it was written, so that a reader can
 * tell the end that a crash cut off from damage.
 *
 * **Members.** A member that fails is lost: the others go on, and what only they have is acknowledged when
 * `onMemberLost` has made the loss durable. Without any member nothing is taken. A member that is full while another is
 * not is lost too; where all are full, writes wait until logs go.
 *
 * **Logs.** One for each epoch, and a new one each time the store is opened. Logs go when they are released, oldest
 * first.
 *
 * What it does not do: decide when an epoch ends, or when a log is no longer needed.
 */

import {
  assert,
  type Deferred,
  deferred,
  LIMITS,
  type MaybePromise,
  messageOf,
  present,
  randomId,
} from '../base/index.ts';
import { SharedFlush } from '../device/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import { chooseKept, rewriteCompacted, segmentCountFor } from './compaction.ts';
import { Coverage, newPartBudget, type PartBudget } from './coverage.ts';
import { DeltaError } from './errors.ts';
import type { RecordHeader, RecordKind } from './format.ts';
import { copyRecords, type CopySource, LogCopier } from './log-copy.ts';
import { logsOf, mergeLogs } from './log-set.ts';
import { Areas } from './log-stream.ts';
import { type Member, openMember } from './member.ts';
import { type LogFacts, MemberWriter } from './member-writer.ts';
import { openLeftLogs } from './opening.ts';
import { RecordEncoder } from './record-encoder.ts';
import { StoreLog } from './store-log.ts';
import type { DeltaChange, DeltaMemberState, DeltaPlace, DeltaStatus, DeltaStoreOptions } from './types.ts';

/** One place, as the store sees it. */
interface Seat {
  readonly place: DeltaPlace;
  state: DeltaMemberState;
  reason: string | undefined;
  member: Member | undefined;
  writer: MemberWriter | undefined;
  /** Settles when its loss is durable. */
  loss: Promise<void> | undefined;
}

/** A change that waits. */
interface Waiting {
  readonly kind: RecordKind;
  readonly source: Buffer | undefined;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly point: string;
  readonly onWaiting: (() => void) | undefined;
  readonly done: Deferred;
  isTold: boolean;
}

type Change = Pick<Waiting, 'kind' | 'source' | 'offsetBytes' | 'lengthBytes' | 'point'>;

/** A member that is made anew catches up in rounds; for what came in one with fewer records the writers wait. */
const CATCH_UP_RECORDS = 256;
const CATCH_UP_ROUNDS = 8;

export class DeltaStore {
  readonly #options: DeltaStoreOptions;
  readonly #seats: Seat[];
  readonly #budget: PartBudget = newPartBudget();
  readonly #encoder = new RecordEncoder();
  #flush = new SharedFlush(() => this.#syncMembers());
  #logs: StoreLog[] = [];
  /** Those of the healthy seats. */
  #writers: MemberWriter[] = [];
  /** Of the open log; a member that is made anew writes it too. */
  #facts: LogFacts | undefined;
  #logId: Buffer = Buffer.alloc(0);
  /** Resolved when logs went, or a member came or went. */
  #roomMade: Deferred | undefined;
  /** Who removes logs, or reads them to write them anew, does so alone. */
  #maintenance: Promise<unknown> = Promise.resolve();
  #sequence = 0;
  #durable = 0;
  #lastMs = 0;
  /** The volume's size as the logs know it. */
  #volumeBytes = 0;
  #lastKind: RecordKind | undefined;
  readonly #inFlight = new Set<Promise<void>>();
  readonly #queue: Waiting[] = [];
  #pumping = false;
  /** Losses that are not durable yet. */
  #losing = 0;
  /** Nothing is put while it is pending. */
  #held: Promise<void> | undefined;
  #letGo: Deferred | undefined;
  #room: Deferred | undefined;
  #failure: { readonly reason: unknown } | undefined;
  #isClosed = false;

  private constructor(options: DeltaStoreOptions) {
    this.#options = options;
    this.#seats = options.members.map((place) => {
      const isLost = options.lostMembers.includes(place.place);
      const reason = isLost ? 'it was lost before' : undefined;
      return {
        place,
        state: isLost ? 'lost' : 'healthy',
        reason,
        member: undefined,
        writer: undefined,
        loss: undefined,
      };
    });
  }

  /**
   * Opens or begins the store of a volume. A new log with the start point is begun, durably, behind those that the last
   * owner left. Members that cannot be used come up as lost, and `onMemberLost` has told so durably when it resolves.
   */
  static async open(options: DeltaStoreOptions): Promise<DeltaStore> {
    const store = new DeltaStore(options);
    await store.#open();
    return store;
  }

  /**
   * Appends a change. Overlapping appends are never in flight at once; they are in the order of calls.
   *
   * Finishes at once where every member takes it at once. Waits where all members are full, after a call of
   * `onWaiting`. A large source becomes several records.
   *
   * @throws {DeltaError} 'no-members' where none is left; what `onMemberLost` failed with.
   */
  append(
    change: DeltaChange,
    offsetBytes: number,
    lengthBytes: number,
    onWaiting?: () => void,
  ): MaybePromise<void> {
    this.#assertOpen();
    const source = change.kind === 'write' ? change.source : undefined;
    if (source !== undefined && source.length !== lengthBytes)
      assert(false, `A change of ${lengthBytes} bytes has ${source.length}`);
    const { kind } = change;
    const isFree = this.#queue.length === 0 && this.#losing === 0 && this.#held === undefined;
    if (isFree && this.#failure === undefined && this.#fits(source?.length ?? 0) && this.#isSizeKnown())
      return this.#put({ kind, source, offsetBytes, lengthBytes, point: '' });
    return this.#appendLater({ kind, source, offsetBytes, lengthBytes, point: '' }, onWaiting);
  }

  /**
   * Makes everything durable that was appended before the call, on all healthy members. Callers share as those of
   * `SharedFlush` do.
   *
   * @throws {DeltaError} 'no-members'
   */
  flush(): Promise<void> {
    this.#assertOpen();
    return this.#flush.flush();
  }

  /** Makes the files of the next log. @throws {DeltaError} 'full' where a member has no room even for that. */
  async prepareSwitch(): Promise<void> {
    this.#assertOpen();
    const number = this.#openLog.number + 1;
    for (const seat of this.#healthy()) {
      try {
        const isThere = await present(seat.writer, 'A healthy member has a writer').prepareLog(number);
        if (isThere) continue;
      } catch (error) {
        if (!(error instanceof DeltaError && error.code === 'full')) {
          await this.#lose(seat, error);
          continue;
        }
      }
      throw this.#full(seat, 'for the next log');
    }
  }

  /**
   * The epoch is closed by this point: what is appended from now on goes to the next log. Nothing is in flight. The
   * point's record is before everything else of the new log, and durable with the next flush.
   */
  switchTo(point: string, createdMs: number): void {
    this.#assertOpen();
    assert(this.#inFlight.size === 0, 'The epoch is closed while changes are in flight');
    this.#beginLog(point, createdMs);
    const change = pointChange({ startPoint: point, pointMs: createdMs });
    const isFree = this.#queue.length === 0 && this.#losing === 0 && this.#held === undefined;
    // A failure is a lost member's, and told by what is appended next.
    if (isFree && this.#fits(undefined)) this.#put(change)?.catch(() => undefined);
    else this.#enqueue(change, undefined, 'first').catch(() => undefined);
  }

  /**
   * Everything before the log that begins at `point` may go, as a readable chain covers it; what was written in the last
   * `keepMs` stays, until this is called again. The oldest goes first, durably. A point that no log begins at lets
   * nothing go.
   */
  async release(point: string, keepMs: number): Promise<void> {
    this.#assertOpen();
    await this.#alone(async () => {
      const end = this.#firstLogOf(point) ?? 0;
      const keptMs = this.#options.clock.now() - keepMs;
      const kept = this.#logs.findIndex((log, index) => index >= end || (keepMs > 0 && log.lastMs > keptMs));
      for (const log of this.#logs.slice(0, kept)) await this.#removeLog(log);
      if (kept > 0) this.#noteRoom();
    });
  }

  /**
   * Rewrites closed logs to their newest content where that frees space. Of one that has records of the last `keepMs`
   * nothing is given up. Nobody may be reading these logs. What a crash leaves is the old log or the new one.
   */
  async compact(keepMs: number): Promise<{ readonly freedBytes: number }> {
    this.#assertOpen();
    const keptMs = this.#options.clock.now() - keepMs;
    const usedBytes = (): number =>
      this.#healthy().reduce((sum, { member }) => sum + (member?.usedBytes ?? 0), 0);
    let freedBytes = 0;
    for (const log of this.#logs.slice(0, -1)) {
      if (log.isCompacted || log.isDamaged || log.lastMs > keptMs) continue;
      await this.#alone(async () => {
        if (!this.#logs.includes(log)) return;
        const before = usedBytes();
        await this.#compactLog(log);
        freedBytes += before - usedBytes();
      });
    }
    if (freedBytes > 0) this.#noteRoom();
    return { freedBytes };
  }

  /**
   * Makes a lost member anew from the healthy ones while they go on, and lets it take part. Where none is healthy the
   * logs begin anew, and reach back to no point.
   *
   * @throws {DeltaError} 'member-unusable', 'cancelled'; what reading and writing failed with. The member is lost then.
   */
  async recreate(place: string, signal?: AbortSignal): Promise<void> {
    this.#assertOpen();
    const seat = this.#seats.find((one) => one.place.place === place);
    if (seat === undefined || seat.state !== 'lost')
      throw new DeltaError('member-unusable', `Delta member ${place} is not a lost one`, { place });
    await seat.loss;
    seat.state = 'recreating';
    try {
      await this.#alone(() => this.#makeAnew(seat, signal));
      seat.state = 'healthy';
      seat.reason = undefined;
    } catch (error) {
      seat.state = 'lost';
      seat.reason = messageOf(error);
      if (signal?.aborted !== true) throw error;
      throw new DeltaError(
        'cancelled',
        `Making delta member ${place} anew was cancelled`,
        { place },
        { cause: error },
      );
    } finally {
      this.#takeWriters();
      this.#hold(undefined);
      this.#noteRoom();
    }
  }

  /**
   * The tracks of which the logs from `startPoint` on hold every byte: up to the beginning of the open epoch, or all.
   * Undefined where the logs do not reach back to the point as a whole. A track may be missing that is held whole.
   */
  wholeTracks(startPoint: string, upTo: 'closed' | 'now'): TrackSet | undefined {
    const end = upTo === 'closed' ? this.#firstLogOf(this.#openLog.startPoint) : this.#logs.length;
    const logs = this.#logsFrom(startPoint, present(end, 'The open log has a start point'));
    return logs === undefined ? undefined : Coverage.wholeOf(logs.map(({ coverage }) => coverage));
  }

  /** All tracks with any change in the logs from `startPoint` on; undefined as `wholeTracks` is. */
  touchedTracks(startPoint: string): TrackSet | undefined {
    const logs = this.#logsFrom(startPoint, this.#logs.length);
    const [first, ...others] = logs ?? [];
    if (first === undefined) return undefined;
    const touched = first.coverage.touched;
    for (const { coverage } of others) touched.addAll(coverage.touched);
    return touched;
  }

  status(): DeltaStatus {
    const members = this.#seats.map(({ place, state, reason, member }) => ({
      place: place.place,
      state,
      ...(reason === undefined ? {} : { reason }),
      bytesUsed: member?.usedBytes ?? 0,
      ...bytesMaxOf(member?.bytesMax ?? place.bytesMax),
    }));
    const limits = members.flatMap(({ state, bytesMax }) =>
      state === 'healthy' && bytesMax !== undefined ? [bytesMax] : [],
    );
    const oldest = this.#logs.find(({ records }) => records > 0);
    return {
      members,
      bytesUsed: Math.max(0, ...members.map(({ bytesUsed }) => bytesUsed)),
      ...bytesMaxOf(limits.length === 0 ? undefined : Math.min(...limits)),
      logs: this.#logs.length,
      records: this.#logs.reduce((sum, { records }) => sum + records, 0),
      ...(oldest === undefined ? {} : { oldestMs: oldest.beganMs }),
      lastSequence: this.#sequence,
      writesWaiting: this.#queue.filter(({ isTold }) => isTold).length,
    };
  }

  /** Gives up the members, and a last log that nothing was appended to. Does not flush. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await Promise.allSettled(this.#inFlight);
    await this.#maintenance;
    const open = this.#openLog;
    for (const seat of this.#seats) {
      try {
        await seat.writer?.close();
        if (seat.state === 'healthy' && !open.hasChanges && this.#isRepeated(open))
          await removeLog(seat.member, open);
        await seat.member?.close();
      } catch (error) {
        // One that is lost cannot be expected to.
        if (seat.state === 'healthy') throw error;
      }
    }
  }

  async #open(): Promise<void> {
    const { volumeId, registry, segmentBytes, trackSizeBytes, startPoint, clock, lostMembers } =
      this.#options;
    for (const seat of this.#seats) {
      if (seat.state !== 'healthy') continue;
      try {
        const options = { ...seat.place, volumeId, readOnly: false, registry, segmentBytes };
        seat.member = await openMember(options);
        if (!(await seat.member.isComplete()))
          throw unusable(seat, 'is a part of what it was to become when it was made anew');
      } catch (error) {
        await this.#lose(seat, error, 'opening');
      }
    }
    const members = this.#healthy().map(({ member }) => present(member, 'A healthy seat has a member'));
    const left = await openLeftLogs(members, trackSizeBytes, this.#budget);
    for (const seat of this.#healthy())
      if (seat.member !== undefined && left.lost.has(seat.member))
        await this.#lose(seat, left.lost.get(seat.member), 'opening');
    this.#logs = [...left.logs];
    this.#sequence = left.end;
    this.#durable = left.end;
    this.#lastMs = left.lastMs;
    this.#volumeBytes = this.#options.sizeBytes();
    const before = this.#logs.findLast((log) => log.startPoint === startPoint);
    const reachesBack = left.logs.length > 0 || (startPoint === '' && lostMembers.length === 0);
    const facts = this.#factsOf(
      left.nextNumber,
      reachesBack ? startPoint : randomId(),
      before?.pointMs ?? clock.now(),
    );
    for (const seat of this.#healthy())
      seat.writer = new MemberWriter(present(seat.member, 'It is open'), facts);
    this.#takeWriters();
    this.#beginLogAs(facts);
    if (this.#writers.length === 0) return;
    await this.#enqueue(pointChange(facts), undefined);
    await this.flush();
  }

  /** Runs what removes or rewrites logs, alone. */
  #alone<T>(perform: () => Promise<T>): Promise<T> {
    const done = this.#maintenance.then(perform);
    this.#maintenance = done.catch(() => undefined);
    return done;
  }

  async #removeLog(log: StoreLog): Promise<void> {
    for (const seat of this.#seats) {
      if (seat.state === 'lost' || seat.member === undefined) continue;
      try {
        await removeLog(seat.member, log);
      } catch (error) {
        await this.#lose(seat, error);
      }
    }
    this.#logs.splice(this.#logs.indexOf(log), 1);
    log.coverage.release();
  }

  async #compactLog(log: StoreLog): Promise<void> {
    const areas = new Areas();
    try {
      const source = await this.#sourceOf(log, areas);
      if (source === undefined) return;
      const kept = await chooseKept(source, this.#options.trackSizeBytes);
      for (const copy of source.log.copies) {
        const { segmentBytes } = copy.member;
        if (segmentCountFor(kept.bytes, segmentBytes, LIMITS.deltaRecordBytesMax) >= copy.segments.length)
          continue;
        if (!copy.member.hasRoom(-LIMITS.deltaSegmentsOverMax)) continue;
        await rewriteCompacted(source, copy, kept);
        log.isCompacted = true;
      }
    } finally {
      await areas.close();
    }
  }

  /** A log as the healthy members have it; undefined where its first record is not written yet. */
  async #sourceOf({ id, number }: StoreLog, areas: Areas): Promise<CopySource | undefined> {
    const members = this.#healthy().flatMap(({ member }) => (member === undefined ? [] : [member]));
    const found = await Promise.all(members.map(async (member) => logsOf(member, await member.find())));
    const log = mergeLogs(found).find((one) => one.id === id);
    const next = this.#logs.find((one) => one.number > number);
    if (log === undefined) return undefined;
    return { log, areas, limit: next?.previous ?? Number.POSITIVE_INFINITY, verifyBeyond: this.#durable };
  }

  async #makeAnew(seat: Seat, signal: AbortSignal | undefined): Promise<void> {
    const { volumeId, registry, segmentBytes } = this.#options;
    await Promise.allSettled([seat.writer?.close()]);
    await Promise.allSettled([seat.member?.close()]);
    seat.writer = undefined;
    const member = await openMember({ ...seat.place, volumeId, readOnly: false, registry, segmentBytes });
    seat.member = member;
    await member.setComplete(false);
    await member.removeBlank();
    await member.remove((await member.find()).map(({ key }) => key));
    if (this.#writers.length === 0) return await this.#beginAnew(seat, member);
    let segmentNumber = -1;
    // Others may be begun meanwhile.
    for (let index = 0; index < this.#logs.length; index += 1)
      segmentNumber = await this.#copyLog(present(this.#logs[index], 'There is a log'), member, signal);
    const facts = present(this.#facts, 'A log is open');
    const writer = new MemberWriter(member, facts);
    writer.continueLog(segmentNumber);
    await writer.prepareNext();
    await member.setComplete(true);
    if (this.#facts !== undefined && this.#facts !== facts) writer.beginLog(this.#facts);
    seat.writer = writer;
  }

  /**
   * Copies a log. Of the open one all but a little while it is written, and the rest while writers wait: nothing is put
   * afterwards until the member takes part.
   *
   * @returns the number of the last segment; -1 where there is none.
   */
  async #copyLog(log: StoreLog, member: Member, signal: AbortSignal | undefined): Promise<number> {
    const areas = new Areas();
    let source = await this.#sourceOf(log, areas);
    const { first } = source?.log.copies[0] ?? {};
    if (source === undefined || first === undefined) return -1;
    const { previous, compactedMs } = source.log;
    const copier = new LogCopier(member, {
      facts: first,
      generation: 0,
      segmentNumber: 0,
      previous,
      compactedMs,
    });
    try {
      let end = previous;
      for (let round = 0; ; round += 1) {
        const isLast = log !== this.#openLog || this.#held !== undefined;
        const before = end;
        end = await copyRecords(source, end, copier, { signal });
        if (isLast) break;
        if (end - before < CATCH_UP_RECORDS || round > CATCH_UP_ROUNDS) {
          this.#hold(deferred());
          await Promise.allSettled(this.#inFlight);
        }
        source = (await this.#sourceOf(log, areas)) ?? source;
      }
      const wanted = log === this.#openLog ? this.#sequence : end;
      assert(end >= wanted || log.isDamaged, `Log ${log.number} was copied up to ${end}, wanted ${wanted}`);
      await copier.finish();
      return copier.segmentNumber - 1;
    } catch (error) {
      await Promise.allSettled([copier.abort()]);
      throw error;
    } finally {
      await areas.close();
    }
  }

  /** Nothing is put until it is called with nothing. */
  #hold(held: Deferred | undefined): void {
    this.#letGo?.resolve();
    this.#letGo = held;
    this.#held = held?.promise;
  }

  /** Nothing was left to make a member from. */
  async #beginAnew(seat: Seat, member: Member): Promise<void> {
    const { clock } = this.#options;
    const facts = this.#factsOf(this.#openLog.number + 1, randomId(), clock.now());
    for (const { coverage } of this.#logs) coverage.release();
    this.#logs = [];
    seat.writer = new MemberWriter(member, facts);
    seat.state = 'healthy';
    this.#takeWriters();
    this.#beginLogAs(facts);
    this.#flush = new SharedFlush(() => this.#syncMembers());
    await this.#enqueue(pointChange(facts), undefined, 'first');
    await this.flush();
    await member.setComplete(true);
  }

  get #openLog(): StoreLog {
    return present(this.#logs.at(-1), 'A store has an open log');
  }

  #healthy(): Seat[] {
    return this.#seats.filter(({ state }) => state === 'healthy');
  }

  #takeWriters(): void {
    this.#writers = this.#healthy().flatMap(({ writer }) => (writer === undefined ? [] : [writer]));
  }

  #factsOf(logNumber: number, startPoint: string, pointMs: number): LogFacts {
    const { volumeId, volumeName, trackSizeBytes, sizeBytes } = this.#options;
    return {
      volumeId,
      volumeName,
      trackSizeBytes,
      volumeBytes: sizeBytes(),
      logNumber,
      logId: randomId(),
      startPoint,
      pointMs,
      beganMs: this.#now(),
    };
  }

  #beginLog(point: string, pointMs: number): void {
    const facts = this.#factsOf(this.#openLog.number + 1, point, pointMs);
    for (const writer of this.#writers) writer.beginLog(facts);
    this.#beginLogAs(facts);
  }

  #beginLogAs(facts: LogFacts): void {
    const { logNumber: number, logId: id, startPoint, pointMs, beganMs, trackSizeBytes } = facts;
    const log = { number, id, startPoint, pointMs, beganMs, previous: this.#sequence };
    this.#logs.push(new StoreLog(log, trackSizeBytes, this.#budget));
    this.#logId = Buffer.from(id, 'hex');
    this.#facts = facts;
  }

  #now(): number {
    this.#lastMs = Math.max(this.#lastMs, Math.floor(this.#options.clock.now()));
    return this.#lastMs;
  }

  #fits(payloadBytes: number | undefined): boolean {
    if (this.#writers.length === 0) return false;
    for (const writer of this.#writers)
      if (!writer.fits(payloadBytes) || (payloadBytes ?? 0) > writer.payloadBytesMax) return false;
    return true;
  }

  #isSizeKnown(): boolean {
    return this.#options.sizeBytes() === this.#volumeBytes;
  }

  /** Numbers a change and puts it on every healthy member, which it fits. */
  #put({ kind, source, offsetBytes, lengthBytes, point }: Change): MaybePromise<void> {
    const record: RecordHeader = {
      kind,
      sequence: this.#sequence + 1,
      previous: this.#sequence,
      durable: this.#durable,
      timeMs: this.#now(),
      offsetBytes,
      lengthBytes,
      point,
    };
    this.#sequence = record.sequence;
    this.#lastKind = kind;
    this.#openLog.note(record);
    const bytes = this.#encoder.encode(record, this.#logId, source);
    let waits: Promise<void>[] | undefined;
    for (const writer of this.#writers) {
      try {
        const written = writer.put(bytes, source?.length ?? 0);
        if (written !== undefined)
          (waits ??= []).push(written.catch((error: unknown) => this.#loseWriter(writer, error)));
      } catch (error) {
        (waits ??= []).push(this.#loseWriter(writer, error));
      }
      if (writer.wantsNext) this.#makeNext(writer);
    }
    return waits === undefined ? undefined : this.#whenPut(waits);
  }

  #whenPut(waits: readonly Promise<void>[]): Promise<void> {
    this.#encoder.keep();
    const put = Promise.all(waits).then(() => undefined);
    this.#inFlight.add(put);
    put
      .catch(() => undefined)
      .finally(() => this.#inFlight.delete(put))
      .catch(() => undefined);
    return put;
  }

  /** In advance, so that nobody has to wait for it; whoever has to tries again, and hears of a failure. */
  #makeNext(writer: MemberWriter): void {
    writer.prepareNext().catch(() => undefined);
  }

  async #appendLater(change: Change, onWaiting: (() => void) | undefined): Promise<void> {
    const { source, offsetBytes } = change;
    if (source === undefined) return await this.#enqueue(change, onWaiting);
    const partBytes = Math.min(source.length, ...this.#writers.map(({ payloadBytesMax }) => payloadBytesMax));
    const parts: Promise<void>[] = [];
    for (let at = 0; at < source.length; at += partBytes) {
      const part = source.subarray(at, Math.min(at + partBytes, source.length));
      const one = { ...change, source: part, offsetBytes: offsetBytes + at, lengthBytes: part.length };
      parts.push(this.#enqueue(one, onWaiting));
    }
    await Promise.all(parts);
  }

  #enqueue(change: Change, onWaiting: (() => void) | undefined, where?: 'first'): Promise<void> {
    const waiting: Waiting = { ...change, onWaiting, done: deferred(), isTold: false };
    if (where === 'first') this.#queue.unshift(waiting);
    else this.#queue.push(waiting);
    if (this.#room !== undefined) tell(waiting);
    if (!this.#pumping) void this.#pump();
    return waiting.done.promise;
  }

  /** Puts what waits, one after the other, as room is made for it. */
  async #pump(): Promise<void> {
    this.#pumping = true;
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      try {
        await this.#makeWay(next);
        // The first one may have been overtaken by a point.
        if (this.#queue[0] !== next) continue;
        if (!this.#isSizeKnown()) this.#putSize();
        else {
          this.#queue.shift();
          const put = this.#put(next);
          if (put === undefined) next.done.resolve();
          else put.then(next.done.resolve, next.done.reject);
        }
      } catch (error) {
        this.#queue.splice(this.#queue.indexOf(next), 1);
        next.done.reject(error);
      }
    }
    this.#pumping = false;
  }

  #putSize(): void {
    this.#volumeBytes = this.#options.sizeBytes();
    const change: Change = {
      kind: 'size',
      source: undefined,
      offsetBytes: 0,
      lengthBytes: this.#volumeBytes,
      point: '',
    };
    this.#put(change)?.catch(() => undefined);
  }

  /** Resolves when a change fits every healthy member, in the same turn in which it does. */
  async #makeWay(change: Waiting): Promise<void> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure.reason;
      if (this.#isClosed) throw new DeltaError('closed', 'The delta store is closed', {});
      if (this.#losing > 0) await this.#lossesDurable();
      else if (this.#held !== undefined) await this.#held;
      else if (this.#writers.length === 0) throw this.#noMembers();
      else if (this.#fits(roomOf(change))) return;
      else await this.#makeRoom(roomOf(change));
    }
  }

  async #makeRoom(payloadBytes: number | undefined): Promise<void> {
    const room = deferred();
    const full: Seat[] = [];
    // Before anything is waited for: room that comes meanwhile counts.
    this.#roomMade = room;
    for (const seat of this.#healthy()) {
      const writer = present(seat.writer, 'A healthy member has a writer');
      if (writer.fits(payloadBytes)) continue;
      try {
        if (!(await writer.prepareNext())) full.push(seat);
      } catch (error) {
        await this.#lose(seat, error);
      }
    }
    if (full.length === 0) return;
    if (full.length < this.#healthy().length) {
      for (const seat of full) await this.#lose(seat, this.#full(seat, 'while others have room'));
      return;
    }
    this.#room = room;
    for (const waiting of this.#queue) tell(waiting);
    await room.promise;
    this.#room = undefined;
  }

  #noteRoom(): void {
    for (const writer of this.#writers) writer.noteRoom();
    this.#roomMade?.resolve();
    this.#options.onRoom?.();
  }

  async #syncMembers(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.reason;
    if (this.#sequence > this.#durable || this.#inFlight.size > 0) {
      // A store that is full syncs without it.
      if (this.#lastKind !== 'flush' && this.#held === undefined && this.#fits(undefined))
        this.#put({ kind: 'flush', source: undefined, offsetBytes: 0, lengthBytes: 0, point: '' })?.catch(
          () => undefined,
        );
      const sequence = this.#sequence;
      await Promise.allSettled(this.#inFlight);
      await Promise.all(
        this.#writers.map((writer) =>
          writer.sync().catch((error: unknown) => this.#loseWriter(writer, error)),
        ),
      );
      await this.#lossesTold();
      this.#durable = Math.max(this.#durable, sequence);
    }
    await this.#lossesTold();
  }

  async #lossesDurable(): Promise<void> {
    for (const { loss } of this.#seats) await loss;
  }

  async #lossesTold(): Promise<void> {
    while (this.#losing > 0) await this.#lossesDurable();
    if (this.#failure !== undefined) throw this.#failure.reason;
    if (this.#writers.length === 0) throw this.#noMembers();
  }

  #loseWriter(writer: MemberWriter, error: unknown): Promise<void> {
    const seat = this.#seats.find((one) => one.writer === writer);
    return seat === undefined ? Promise.resolve() : this.#lose(seat, error);
  }

  /** Goes on without a member. @throws {DeltaError} 'no-members' where it was the last. */
  #lose(seat: Seat, error: unknown, when?: 'opening'): Promise<void> {
    if (seat.state !== 'healthy') return seat.loss ?? Promise.resolve();
    seat.state = 'lost';
    seat.reason = messageOf(error);
    this.#takeWriters();
    this.#losing += 1;
    seat.loss = this.#tellOfLoss(seat, error).finally(() => {
      this.#losing -= 1;
      seat.loss = undefined;
      this.#roomMade?.resolve();
    });
    seat.loss.catch(() => undefined);
    return when === 'opening' ? seat.loss : seat.loss.then(() => this.#assertMembers());
  }

  async #tellOfLoss(seat: Seat, error: unknown): Promise<void> {
    try {
      await this.#options.onMemberLost(seat.place.place, error);
    } catch (reason) {
      this.#failure = { reason };
      throw reason;
    }
  }

  #assertMembers(): void {
    if (this.#writers.length === 0) throw this.#noMembers();
  }

  #noMembers(): DeltaError {
    const places = this.#seats.map(({ place }) => place.place);
    const why = this.#seats.map(({ place, reason }) => `${place.place}: ${reason ?? 'lost'}`).join('; ');
    return new DeltaError('no-members', `No delta member is left of ${places.length} (${why})`, { places });
  }

  #full(seat: Seat, what: string): DeltaError {
    const { place } = seat.place;
    return new DeltaError('full', `Delta member ${place} has no room ${what}`, { place });
  }

  #firstLogOf(point: string): number | undefined {
    const index = this.#logs.findIndex(({ startPoint }) => startPoint === point);
    return index === -1 ? undefined : index;
  }

  #logsFrom(startPoint: string, end: number): readonly StoreLog[] | undefined {
    const first = this.#firstLogOf(startPoint);
    if (first === undefined || first > end) return undefined;
    const logs = this.#logs.slice(first, end);
    return logs.some(({ isDamaged }) => isDamaged) ? undefined : logs;
  }

  /** Another log before it began at the same point: nothing tells of it but its number. */
  #isRepeated({ startPoint, number }: StoreLog): boolean {
    return this.#logs.some((log) => log.startPoint === startPoint && log.number < number);
  }

  #assertOpen(): void {
    assert(!this.#isClosed, 'The delta store is closed');
  }
}

function pointChange({ startPoint, pointMs }: Pick<LogFacts, 'startPoint' | 'pointMs'>): Change {
  return { kind: 'point', source: undefined, offsetBytes: pointMs, lengthBytes: 0, point: startPoint };
}

function bytesMaxOf(bytesMax: number | undefined): { readonly bytesMax?: number } {
  return bytesMax === undefined ? {} : { bytesMax };
}

function tell(waiting: Waiting): void {
  if (waiting.isTold) return;
  waiting.isTold = true;
  waiting.onWaiting?.();
}

/** Changes leave the last of a segment to records that tell of them. */
function roomOf({ kind, source }: Change): number | undefined {
  return kind === 'write' || kind === 'zeroes' ? (source?.length ?? 0) : undefined;
}

function unusable(seat: Seat, why: string): DeltaError {
  const { place } = seat.place;
  return new DeltaError('member-unusable', `Delta member ${place} ${why}`, { place });
}

async function removeLog(member: Member | undefined, log: StoreLog): Promise<void> {
  const segments = (await member?.find()) ?? [];
  const own = segments.filter(({ header }) => header.logId === log.id);
  own.sort((a, b) => a.header.segmentNumber - b.header.segmentNumber);
  await member?.remove(own.map(({ key }) => key));
}
