/**
 * The delta store of a volume: N logs of every write that is not yet backed up (DESIGN section 4, "Deltas").
 *
 *     append -> a record, numbered -> each healthy member, side by side -> all have it: acknowledged
 *     flush  -> a flush record     -> each healthy member, one sync each -> all have it: durable
 *
 * **Members** (`seats.ts`). A member that fails is lost: the others go on, and what only they have is acknowledged when
 * `onMemberLost` has made the loss durable. Without any member nothing is taken. A member that is full while another is
 * not is lost too; where all are full, writes wait until logs go.
 *
 * **Logs.** One for each epoch, and a new one each time the store is opened. They go when they are released, the oldest
 * first.
 *
 * What it does not do: decide when an epoch ends, or when a log is no longer needed.
 */

import { assert, LIMITS, type MaybePromise, messageOf, present, randomId } from '../base/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import { chooseKept, rewriteCompacted, segmentCountFor } from './compaction.ts';
import { Coverage, newPartBudget, type PartBudget } from './coverage.ts';
import { DeltaError } from './errors.ts';
import type { RecordHeader } from './format.ts';
import type { CopySource } from './log-copy.ts';
import { logsOf, mergeLogs } from './log-set.ts';
import { Areas } from './log-stream.ts';
import { type Member, openMember } from './member.ts';
import { type LogFacts, MemberWriter } from './member-writer.ts';
import { openLeftLogs } from './opening.ts';
import { type RowChange, RecordRow } from './record-row.ts';
import { clearMember, copyLogs } from './recreation.ts';
import { fullError, type Seat, Seats } from './seats.ts';
import { StoreLog } from './store-log.ts';
import type { DeltaChange, DeltaStatus, DeltaStoreOptions } from './types.ts';

interface StoreParts {
  readonly options: DeltaStoreOptions;
  readonly seats: Seats;
  readonly row: RecordRow;
  readonly budget: PartBudget;
  readonly logs: StoreLog[];
  readonly facts: LogFacts;
  readonly unflushed: TrackSet;
  readonly hasGap: boolean;
}

export class DeltaStore {
  /** Logs that there should have been were not there at the opening. */
  readonly hasGap: boolean;
  /** What the last owner changed and may not have flushed, as far as the logs have it. */
  readonly unflushed: TrackSet;
  readonly #options: DeltaStoreOptions;
  readonly #seats: Seats;
  readonly #row: RecordRow;
  readonly #budget: PartBudget;
  readonly #logs: StoreLog[];
  /** Of the open log. */
  #facts: LogFacts;
  #openLog: StoreLog;
  /** Who removes logs, or reads them to write them anew, does so alone. */
  #maintenance: Promise<unknown> = Promise.resolve();
  #isClosed = false;

  private constructor({ options, seats, row, budget, logs, facts, unflushed, hasGap }: StoreParts) {
    this.hasGap = hasGap;
    this.unflushed = unflushed;
    this.#options = options;
    this.#seats = seats;
    this.#row = row;
    this.#budget = budget;
    this.#logs = logs;
    this.#facts = facts;
    this.#openLog = this.#takeLog(facts);
  }

  /**
   * Opens or begins the store of a volume. A new log with the start point is begun, durably, behind those that the last
   * owner left. Members that cannot be used come up as lost, and `onMemberLost` has told so durably when it resolves.
   *
   * Where there should be logs and are none, those that come begin at a point that nobody knows, and can be joined from the
   * next switch on; `hasGap` tells.
   */
  static async open(options: DeltaStoreOptions): Promise<DeltaStore> {
    const { volumeId, registry, segmentBytes, trackSizeBytes, startPoint, clock, isNew, sizeBytes } = options;
    // The members' losses before there is a store concern nobody who waits.
    const later: { store?: { noteMembers(): void; noteRecord(record: RecordHeader): void } } = {};
    const seats = new Seats({ ...options, onChange: () => later.store?.noteMembers() });
    const lose = (seat: Seat, error: unknown): Promise<void> => seats.lose(seat, error);
    for (const seat of seats.healthy) {
      try {
        seat.member = await openMember({ ...seat.place, volumeId, readOnly: false, registry, segmentBytes });
        if (!(await seat.member.isComplete())) throw isPart(seat);
      } catch (error) {
        await lose(seat, error);
      }
    }
    const budget = newPartBudget();
    const members = seats.healthy.flatMap(({ member }) => (member === undefined ? [] : [member]));
    const left = await openLeftLogs(members, trackSizeBytes, budget);
    for (const seat of seats.healthy)
      if (seat.member !== undefined && left.lost.has(seat.member))
        await lose(seat, left.lost.get(seat.member));
    const { end, lastMs } = left;
    const row = new RecordRow({
      seats,
      clock,
      sizeBytes,
      end,
      lastMs,
      onPut: (record) => later.store?.noteRecord(record),
    });
    // It goes on with the epoch of the last one; whether the volume knows its point by now is no matter.
    const last = left.logs.at(-1);
    const hasGap = left.logs.length === 0 && !isNew;
    const facts: LogFacts = {
      ...factsOf(
        options,
        row,
        last?.startPoint ?? (hasGap ? randomId() : startPoint),
        last?.pointMs ?? clock.now(),
      ),
      logNumber: left.nextNumber,
    };
    for (const seat of seats.healthy)
      seat.writer = new MemberWriter(present(seat.member, 'A healthy member is open'), facts);
    seats.changed();
    const { logs, unflushed } = left;
    const store = new DeltaStore({ options, seats, row, budget, logs: [...logs], facts, unflushed, hasGap });
    later.store = {
      noteMembers: () => store.#row.noteRoom(),
      noteRecord: (record) => store.#openLog.note(record),
    };
    try {
      await prepareFirstLog(seats, facts);
    } catch (error) {
      await store.close();
      throw error;
    }
    if (seats.writers.length === 0) return store;
    await row.append(pointChange(facts));
    await row.flush();
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
    return this.#row.append({ kind: change.kind, source, offsetBytes, lengthBytes, point: '' }, onWaiting);
  }

  /**
   * Makes everything durable that was appended before the call, on all healthy members. Callers share as those of
   * `SharedFlush` do.
   *
   * @throws {DeltaError} 'no-members'
   */
  flush(): Promise<void> {
    this.#assertOpen();
    return this.#row.flush();
  }

  /** What was appended before this call is on every healthy member, or has failed. Not durable, before a flush. */
  async whenAppended(): Promise<void> {
    await this.#row.whenAppended();
  }

  /** Whether any member takes part. */
  get hasMembers(): boolean {
    return this.#seats.writers.length > 0;
  }

  /** Every member is full, and somebody waits for room. */
  get isFull(): boolean {
    return this.#row.isFull;
  }

  /** Whether the logs tell all that has changed since the point, up to now. */
  reaches(point: string): boolean {
    return this.#logsFrom(point, this.#logs.length) !== undefined;
  }

  /** Where the oldest log begins: what the logs tell, they tell since then. */
  get startPoint(): string {
    return present(this.#logs[0], 'A store has a log').startPoint;
  }

  /** The most that one change may write, for `hasRoomFor` ever to be true. */
  get pieceBytesMax(): number {
    return this.#row.pieceBytesMax;
  }

  /**
   * Whether a change that comes now waits for nobody. Who must not wait once it has begun asks this before. Where no member
   * is left there is nothing to wait for.
   *
   * @param payloadBytes 0 for zeroes.
   */
  hasRoomFor(payloadBytes: number): boolean {
    return !this.hasMembers || this.#row.hasRoomFor(payloadBytes);
  }

  /** Finishes when there is room, or no member any more. @throws {DeltaError} 'closed' from `stopWaiting` on. */
  async whenRoom(payloadBytes: number): Promise<void> {
    while (!this.hasRoomFor(payloadBytes)) await this.#row.roomFor(payloadBytes);
  }

  /** Whoever waits for room does so in vain from now on. */
  stopWaiting(): void {
    this.#row.stopWaiting();
  }

  /** Makes the files of the next log. @throws {DeltaError} 'full' where a member has no room even for that. */
  async prepareSwitch(): Promise<void> {
    this.#assertOpen();
    const number = this.#openLog.number + 1;
    for (const seat of this.#seats.healthy) {
      let isThere = false;
      try {
        isThere = await present(seat.writer, 'A healthy member has a writer').prepareLog(number);
      } catch (error) {
        const isFull = error instanceof DeltaError && error.code === 'full';
        if (!isFull) {
          await this.#seats.lose(seat, error);
          continue;
        }
      }
      if (!isThere) throw fullError(seat, 'for the next log');
    }
    this.#seats.assertSome();
  }

  /**
   * The epoch is closed by this point: what is appended from now on goes to the next log. Nothing is in flight. The
   * point's record is before everything else of the new log, and durable with the next flush.
   */
  switchTo(point: string, createdMs: number): void {
    this.#assertOpen();
    this.#row.assertQuiet();
    const logNumber = this.#openLog.number + 1;
    this.#facts = { ...factsOf(this.#options, this.#row, point, createdMs), logNumber };
    for (const writer of this.#seats.writers) writer.beginLog(this.#facts);
    this.#openLog = this.#takeLog(this.#facts);
    this.#row.beginWith(pointChange(this.#facts));
  }

  /**
   * As `switchTo`, where something has changed that was not logged: nobody can read across from here on, and what there is
   * stays as it is until it is released.
   */
  breakOff(point: string, createdMs: number): void {
    this.#openLog.isDamaged = true;
    this.#row.skipNumber();
    this.switchTo(point, createdMs);
  }

  /**
   * The tracks of which the logs from `startPoint` on hold every byte: up to the beginning of the open epoch, or all.
   * Undefined where the logs do not reach back to the point as a whole. A track may be missing that is held whole.
   */
  wholeTracks(startPoint: string, upTo: 'closed' | 'now'): TrackSet | undefined {
    const openEpoch = present(this.#firstLogOf(this.#openLog.startPoint), 'The open log has a start point');
    const logs = this.#logsFrom(startPoint, upTo === 'closed' ? openEpoch : this.#logs.length);
    return logs === undefined ? undefined : Coverage.wholeOf(logs.map(({ coverage }) => coverage));
  }

  /** All tracks with any change in the logs from `startPoint` on; undefined as `wholeTracks` is. */
  touchedTracks(startPoint: string): TrackSet | undefined {
    const [first, ...others] = this.#logsFrom(startPoint, this.#logs.length) ?? [];
    if (first === undefined) return undefined;
    const touched = first.coverage.touched;
    for (const { coverage } of others) touched.addAll(coverage.touched);
    return touched;
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
      this.#seats.healthy.reduce((sum, { member }) => sum + (member?.usedBytes ?? 0), 0);
    let freedBytes = 0;
    for (const log of this.#logs.slice(0, -1)) {
      if (log.isCompacted || log.isDamaged || log.lastMs > keptMs) continue;
      await this.#alone(async () => {
        if (!this.#logs.includes(log)) return;
        const before = usedBytes();
        await this.#compactLog(log);
        freedBytes += Math.max(0, before - usedBytes());
      });
    }
    if (freedBytes > 0) this.#noteRoom();
    return { freedBytes };
  }

  /** Looks whether the members are where they were; those that are not are lost. @throws as a loss that fails does. */
  look(): Promise<void> {
    return this.#seats.look();
  }

  /**
   * Makes a lost member anew from the healthy ones while they go on, and lets it take part. Where none is healthy the
   * logs begin anew, and reach back to no point.
   *
   * @throws {DeltaError} 'member-unusable', 'cancelled'; what reading and writing failed with. The member is lost then.
   */
  async recreate(place: string, signal?: AbortSignal): Promise<void> {
    this.#assertOpen();
    const seat = this.#seats.all.find((one) => one.place.place === place);
    if (seat?.state !== 'lost')
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
      const message = `Making delta member ${place} anew was cancelled`;
      throw new DeltaError('cancelled', message, { place }, { cause: error });
    } finally {
      this.#seats.changed();
      this.#row.letGo();
      this.#noteRoom();
    }
  }

  status(): DeltaStatus {
    const members = this.#seats.status();
    const bounds = members.flatMap(({ state, bytesMax }) =>
      state === 'healthy' && bytesMax !== undefined ? [bytesMax] : [],
    );
    const oldest = this.#logs.find(({ records }) => records > 0);
    return {
      members,
      bytesUsed: Math.max(0, ...members.map(({ bytesUsed }) => bytesUsed)),
      ...(bounds.length === 0 ? {} : { bytesMax: Math.min(...bounds) }),
      logs: this.#logs.length,
      records: this.#logs.reduce((sum, { records }) => sum + records, 0),
      ...(oldest === undefined ? {} : { oldestMs: oldest.beganMs }),
      lastSequence: this.#row.sequence,
      writesWaiting: this.#row.waitingCount,
    };
  }

  /** Gives up the members, and a last log that nothing was appended to. Does not flush. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#row.close();
    await this.#maintenance;
    const open = this.#openLog;
    // Its point is told by another log too.
    const isNeedless = !open.hasChanges && this.#firstLogOf(open.startPoint) !== this.#logs.length - 1;
    for (const seat of this.#seats.all) {
      try {
        await seat.writer?.close();
        if (seat.state === 'healthy' && isNeedless) await removeLog(seat.member, open);
        await seat.member?.close();
      } catch (error) {
        // One that is lost cannot be expected to.
        if (seat.state === 'healthy') throw error;
      }
    }
  }

  #takeLog(facts: LogFacts): StoreLog {
    const { logNumber: number, logId: id, startPoint, pointMs, beganMs, trackSizeBytes } = facts;
    const log = new StoreLog(
      { number, id, startPoint, pointMs, beganMs, previous: this.#row.sequence },
      trackSizeBytes,
      this.#budget,
    );
    this.#logs.push(log);
    this.#row.beginLog(id);
    return log;
  }

  /** Runs what removes or rewrites logs, alone. */
  #alone<T>(perform: () => Promise<T>): Promise<T> {
    const done = this.#maintenance.then(perform);
    this.#maintenance = done.catch(() => undefined);
    return done;
  }

  #noteRoom(): void {
    this.#row.noteRoom();
    this.#options.onRoom?.();
  }

  async #removeLog(log: StoreLog): Promise<void> {
    for (const seat of this.#seats.all) {
      if (seat.state === 'lost' || seat.member === undefined) continue;
      try {
        await removeLog(seat.member, log);
      } catch (error) {
        await this.#seats.lose(seat, error);
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
      for (const writer of this.#seats.writers) await writer.dropUnused();
      const kept = await chooseKept(source, this.#options.trackSizeBytes);
      for (const copy of source.log.copies) {
        const { member, segments } = copy;
        const count = segmentCountFor(kept, member.segmentBytes);
        if (count >= segments.length || !member.hasRoom(-LIMITS.deltaSegmentsOverMax)) continue;
        await rewriteCompacted(source, copy, kept);
        log.isCompacted = true;
      }
    } finally {
      await areas.close();
    }
  }

  /** A log as the healthy members have it; undefined where its first record is not written yet. */
  async #sourceOf({ id, number }: StoreLog, areas: Areas): Promise<CopySource | undefined> {
    const members = this.#seats.healthy.flatMap(({ member }) => (member === undefined ? [] : [member]));
    const found = await Promise.all(members.map(async (member) => logsOf(member, await member.find())));
    const log = mergeLogs(found).find((one) => one.id === id);
    const next = this.#logs.find((one) => one.number > number);
    if (log === undefined) return undefined;
    const limit = next?.previous ?? Number.POSITIVE_INFINITY;
    return { log, areas, limit, verifyBeyond: this.#row.durable };
  }

  async #makeAnew(seat: Seat, signal: AbortSignal | undefined): Promise<void> {
    const { volumeId, registry, segmentBytes } = this.#options;
    await Promise.allSettled([seat.writer?.close()]);
    await Promise.allSettled([seat.member?.close()]);
    seat.writer = undefined;
    const member = await openMember({ ...seat.place, volumeId, readOnly: false, registry, segmentBytes });
    seat.member = member;
    await clearMember(member);
    if (this.#seats.writers.length === 0) return await this.#beginAnew(seat, member);
    const source = {
      row: this.#row,
      logs: this.#logs,
      find: (log: StoreLog, areas: Areas) => this.#sourceOf(log, areas),
      makeAreas: () => new Areas(),
      signal,
    };
    const segmentNumber = await copyLogs(source, member);
    const facts = this.#facts;
    const writer = new MemberWriter(member, facts);
    writer.continueLog(segmentNumber);
    await writer.prepareNext();
    await member.setComplete(true);
    if (this.#facts !== facts) writer.beginLog(this.#facts);
    seat.writer = writer;
  }

  /** Nothing was left to make a member from. */
  async #beginAnew(seat: Seat, member: Member): Promise<void> {
    const { clock } = this.#options;
    const logNumber = this.#openLog.number + 1;
    this.#facts = { ...factsOf(this.#options, this.#row, randomId(), clock.now()), logNumber };
    for (const { coverage } of this.#logs) coverage.release();
    this.#logs.length = 0;
    seat.writer = new MemberWriter(member, this.#facts);
    seat.state = 'healthy';
    this.#seats.changed();
    this.#openLog = this.#takeLog(this.#facts);
    this.#row.forgetFailedFlush();
    this.#row.beginWith(pointChange(this.#facts));
    await this.#row.flush();
    await member.setComplete(true);
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

  #assertOpen(): void {
    assert(!this.#isClosed, 'The delta store is closed');
  }
}

/** What the headers of a log say that is begun now. */
/**
 * Makes the first segment of the log of an opening. Members without room get one beyond it, as where an epoch ends: what
 * would make room needs an open volume.
 *
 * @throws {DeltaError} 'full' where no member has room even for that.
 */
async function prepareFirstLog(seats: Seats, facts: LogFacts): Promise<void> {
  const full: Seat[] = [];
  for (const seat of seats.healthy) {
    const writer = present(seat.writer, 'A healthy member has a writer');
    try {
      if (await writer.prepareLog(facts.logNumber)) writer.beginLog(facts);
      else full.push(seat);
    } catch (error) {
      if (error instanceof DeltaError && error.code === 'full') full.push(seat);
      else await seats.lose(seat, error);
    }
  }
  const [first] = full;
  if (first !== undefined && full.length === seats.healthy.length) throw fullError(first, 'to begin a log');
  for (const seat of full) await seats.lose(seat, fullError(seat, 'while others have some'));
}

function factsOf(
  { volumeId, volumeName, trackSizeBytes, sizeBytes }: DeltaStoreOptions,
  row: RecordRow,
  startPoint: string,
  pointMs: number,
): Omit<LogFacts, 'logNumber'> {
  return {
    volumeId,
    volumeName,
    trackSizeBytes,
    volumeBytes: sizeBytes(),
    logId: randomId(),
    startPoint,
    pointMs,
    beganMs: row.now(),
  };
}

function pointChange({ startPoint, pointMs }: Pick<LogFacts, 'startPoint' | 'pointMs'>): RowChange {
  return { kind: 'point', source: undefined, offsetBytes: pointMs, lengthBytes: 0, point: startPoint };
}

function isPart({ place: { place } }: Seat): DeltaError {
  const message = `Delta member ${place} is a part of what it was to become when it was made anew`;
  return new DeltaError('member-unusable', message, { place });
}

async function removeLog(member: Member | undefined, log: StoreLog): Promise<void> {
  const segments = (await member?.find()) ?? [];
  const own = segments.filter(({ header }) => header.logId === log.id);
  own.sort((a, b) => a.header.segmentNumber - b.header.segmentNumber);
  await member?.remove(own.map(({ key }) => key));
}
