/**
 * The row of records that a delta store appends to: it numbers each and puts it on every healthy member.
 *
 *     append -> fits everywhere and nobody waits: put at once
 *            -> else: queue -> room made, losses durable, nothing held -> put, in the order of calls
 *
 * Numbers are given when a record is put, so that they are in the order of the places on every member. Everything up to
 * the number that a record carries as `durable` was durable when it was put: a reader can tell the end that a crash cut
 * off from damage.
 */

import { assert, type Clock, type Deferred, deferred, type MaybePromise, present } from '../base/index.ts';
import { SharedFlush } from '../device/index.ts';
import { DeltaError } from './errors.ts';
import type { RecordHeader, RecordKind } from './format.ts';
import { RecordEncoder } from './record-encoder.ts';
import { fullError, type Seat, type Seats } from './seats.ts';

export interface RowChange {
  readonly kind: RecordKind;
  /** Of a write. */
  readonly source: Buffer | undefined;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly point: string;
}

/** A change that waits. */
interface Waiting extends RowChange {
  readonly onWaiting: (() => void) | undefined;
  readonly done: Deferred;
  isTold: boolean;
}

export interface RowOptions {
  readonly seats: Seats;
  readonly clock: Clock;
  /** Of the volume as it is. */
  readonly sizeBytes: () => number;
  /** A record has its number. */
  readonly onPut: (record: RecordHeader) => void;
  /** The last record that there is, durably, and its time. */
  readonly end: number;
  readonly lastMs: number;
}

export class RecordRow {
  readonly #options: RowOptions;
  readonly #seats: Seats;
  readonly #encoder = new RecordEncoder();
  #flush = new SharedFlush(() => this.#sync());
  #logId: Buffer = Buffer.alloc(0);
  #sequence: number;
  #durable: number;
  #lastMs: number;
  /** The volume's size as the logs know it. */
  #volumeBytes: number;
  #lastKind: RecordKind | undefined;
  readonly #inFlight = new Set<Promise<void>>();
  readonly #queue: Waiting[] = [];
  /** Changes that are not in the queue and wait for room: `roomFor`. */
  #outsideCount = 0;
  #isPumping = false;
  /** Nothing is put while it is pending. */
  #held: Deferred | undefined;
  /** Every member is full: resolved when logs went, or a member came or went. */
  #room: Deferred | undefined;
  #isFull = false;
  #isClosed = false;
  #isStopping = false;
  #makingRoom: Promise<void> | undefined;

  constructor(options: RowOptions) {
    this.#options = options;
    this.#seats = options.seats;
    this.#sequence = options.end;
    this.#durable = options.end;
    this.#lastMs = options.lastMs;
    this.#volumeBytes = options.sizeBytes();
  }

  get sequence(): number {
    return this.#sequence;
  }

  /** Every member is full, and somebody waits for room. */
  get isFull(): boolean {
    return this.#isFull;
  }

  get durable(): number {
    return this.#durable;
  }

  /** Changes that wait for room, in the queue or before it. */
  get waitingCount(): number {
    return this.#queue.filter(({ isTold }) => isTold).length + this.#outsideCount;
  }

  /** Time that never decreases. */
  now(): number {
    this.#lastMs = Math.max(this.#lastMs, Math.floor(this.#options.clock.now()));
    return this.#lastMs;
  }

  /** Leaves a number out: whoever reads across it knows that something is missing. */
  skipNumber(): void {
    this.#sequence += 1;
  }

  /** What comes is of another log. */
  beginLog(logId: string): void {
    this.#logId = Buffer.from(logId, 'hex');
  }

  /** See `DeltaStore.append`. */
  append(change: RowChange, onWaiting?: () => void): MaybePromise<void> {
    const { source } = change;
    if (this.#isFree && this.#fits(source?.length ?? 0) && this.#options.sizeBytes() === this.#volumeBytes)
      return this.#put(change);
    if (source === undefined) return this.#enqueue(change, onWaiting);
    return this.#appendParts(change, source, onWaiting);
  }

  get pieceBytesMax(): number {
    return Math.min(...this.#seats.writers.map(({ payloadBytesMax }) => payloadBytesMax));
  }

  /** See `DeltaStore.hasRoomFor`. */
  hasRoomFor(payloadBytes: number): boolean {
    return this.#isFree && this.#fits(payloadBytes);
  }

  /** One attempt: what was in the way is not there any more, or something else is. @throws as `DeltaStore.whenRoom`. */
  async roomFor(payloadBytes: number): Promise<void> {
    if (this.#isStopping || this.#isClosed)
      throw new DeltaError('closed', 'The delta store is being closed', {});
    this.#outsideCount += 1;
    try {
      await this.#outsideTurn(payloadBytes);
    } finally {
      this.#outsideCount -= 1;
    }
  }

  async #outsideTurn(payloadBytes: number): Promise<void> {
    if (this.#seats.isLosing) await this.#seats.settled().catch(ignoreNoMembers);
    else if (this.#held !== undefined) await this.#held.promise;
    else if (this.#queue.length > 0) await this.#queue.at(-1)?.done.promise.catch(() => undefined);
    else if (this.#seats.hasFailed) this.#seats.assertSome();
    else await this.#makeRoom(payloadBytes);
  }

  stopWaiting(): void {
    this.#isStopping = true;
    this.#room?.resolve();
  }

  /** The first record of a log: nothing comes before it. What it fails with is told by what comes next. */
  beginWith(change: RowChange): void {
    if (this.#isFree && this.#fits(undefined)) this.#put(change)?.catch(() => undefined);
    else this.#enqueue(change, undefined, 'first').catch(() => undefined);
  }

  /** As `SharedFlush.flush`. @throws {DeltaError} 'no-members' */
  flush(): Promise<void> {
    return this.#flush.flush();
  }

  /** Members that had all been lost begin anew: what a flush failed with before is no matter to them. */
  forgetFailedFlush(): void {
    this.#flush = new SharedFlush(() => this.#sync());
  }

  /** Puts nothing until `letGo`; resolves when nothing is under way. */
  async hold(): Promise<void> {
    this.#held ??= deferred();
    await this.whenQuiet();
  }

  get isHeld(): boolean {
    return this.#held !== undefined;
  }

  letGo(): void {
    this.#held?.resolve();
    this.#held = undefined;
    this.noteRoom();
  }

  /** There may be room. */
  noteRoom(): void {
    for (const writer of this.#seats.writers) writer.noteRoom();
    this.#room?.resolve();
  }

  /** What was appended before this call is on every member that is not lost, or has failed. */
  async whenAppended(): Promise<void> {
    await Promise.allSettled([...this.#inFlight, ...this.#queue.map(({ done }) => done.promise)]);
  }

  async whenQuiet(): Promise<void> {
    await Promise.allSettled(this.#inFlight);
  }

  /** Nothing is put any more; what waits fails. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.letGo();
    await this.whenQuiet();
  }

  get #isFree(): boolean {
    if (this.#queue.length > 0 || this.#held !== undefined || this.#isClosed) return false;
    return !this.#seats.isLosing && !this.#seats.hasFailed;
  }

  /** @param payloadBytes undefined for records that tell of others. */
  #fits(payloadBytes: number | undefined): boolean {
    const { writers } = this.#seats;
    if (writers.length === 0) return false;
    for (const writer of writers)
      if (!writer.fits(payloadBytes) || (payloadBytes ?? 0) > writer.payloadBytesMax) return false;
    return true;
  }

  /** Numbers a change and puts it on every healthy member, which it fits. */
  #put({ kind, source, offsetBytes, lengthBytes, point }: RowChange): MaybePromise<void> {
    const record: RecordHeader = {
      kind,
      sequence: this.#sequence + 1,
      previous: this.#sequence,
      durable: this.#durable,
      timeMs: this.now(),
      offsetBytes,
      lengthBytes,
      point,
    };
    this.#sequence = record.sequence;
    this.#lastKind = kind;
    this.#options.onPut(record);
    const bytes = this.#encoder.encode(record, this.#logId, source);
    let waits: Promise<void>[] | undefined;
    for (const writer of this.#seats.writers) {
      try {
        const written = writer.put(bytes, source?.length ?? 0);
        if (written !== undefined)
          (waits ??= []).push(written.catch((error: unknown) => this.#seats.loseWriter(writer, error)));
      } catch (error) {
        (waits ??= []).push(this.#seats.loseWriter(writer, error));
      }
      // In advance; whoever has to wait for it tries again, and hears of a failure.
      if (writer.wantsNext) writer.prepareNext().catch(() => undefined);
    }
    return waits === undefined ? undefined : this.#whenPut(waits);
  }

  #whenPut(waits: readonly Promise<void>[]): Promise<void> {
    this.#encoder.keep();
    const put = Promise.all(waits).then(() => undefined);
    this.#inFlight.add(put);
    const settled = put.finally(() => this.#inFlight.delete(put));
    // The caller has the other one.
    settled.catch(() => undefined);
    return put;
  }

  /** In as many records as it takes. */
  async #appendParts(change: RowChange, source: Buffer, onWaiting: (() => void) | undefined): Promise<void> {
    const sizes = this.#seats.writers.map(({ payloadBytesMax }) => payloadBytesMax);
    const partBytes = Math.min(source.length, ...sizes);
    const parts: Promise<void>[] = [];
    for (let at = 0; at < source.length; at += partBytes) {
      const part = source.subarray(at, Math.min(at + partBytes, source.length));
      const offsetBytes = change.offsetBytes + at;
      parts.push(
        this.#enqueue({ ...change, source: part, offsetBytes, lengthBytes: part.length }, onWaiting),
      );
    }
    await Promise.all(parts);
  }

  #enqueue(change: RowChange, onWaiting: (() => void) | undefined, where?: 'first'): Promise<void> {
    const waiting: Waiting = { ...change, onWaiting, done: deferred(), isTold: false };
    if (where === 'first') this.#queue.unshift(waiting);
    else this.#queue.push(waiting);
    if (this.#isFull) tell(waiting);
    if (!this.#isPumping) void this.#pump();
    return waiting.done.promise;
  }

  /** Puts what waits, one after the other, as room is made for it. */
  async #pump(): Promise<void> {
    this.#isPumping = true;
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      try {
        await this.#makeWay(next);
        // It may have been overtaken by a point, or a flush have taken the room, in the turn in between.
        if (this.#queue[0] !== next || !this.#fits(roomOf(next))) continue;
        if (this.#options.sizeBytes() !== this.#volumeBytes) {
          this.#putSize();
          continue;
        }
        this.#queue.shift();
        const put = this.#put(next);
        if (put === undefined) next.done.resolve();
        else put.then(next.done.resolve, next.done.reject);
      } catch (error) {
        this.#queue.splice(this.#queue.indexOf(next), 1);
        next.done.reject(error);
      }
    }
    this.#isPumping = false;
  }

  #putSize(): void {
    this.#volumeBytes = this.#options.sizeBytes();
    this.#put({
      kind: 'size',
      source: undefined,
      offsetBytes: 0,
      lengthBytes: this.#volumeBytes,
      point: '',
    })?.catch(() => undefined);
  }

  /** Resolves when a change fits every healthy member, in the turn in which it does. */
  async #makeWay(change: Waiting): Promise<void> {
    for (;;) {
      if (this.#isClosed) throw new DeltaError('closed', 'The delta store is closed', {});
      if (this.#seats.isLosing) await this.#seats.settled();
      else if (this.#held !== undefined) await this.#held.promise;
      else {
        this.#seats.assertSome();
        const payloadBytes = roomOf(change);
        if (this.#fits(payloadBytes)) return;
        await this.#makeRoom(payloadBytes);
      }
    }
  }

  /** One at a time: who comes meanwhile looks again when it has ended. */
  #makeRoom(payloadBytes: number | undefined): Promise<void> {
    this.#makingRoom ??= this.#tryForRoom(payloadBytes).finally(() => {
      this.#makingRoom = undefined;
    });
    return this.#makingRoom;
  }

  async #tryForRoom(payloadBytes: number | undefined): Promise<void> {
    // Before anything is waited for: room that comes meanwhile counts.
    const room = deferred();
    this.#room = room;
    const full: Seat[] = [];
    for (const seat of this.#seats.healthy) {
      const writer = present(seat.writer, 'A healthy member has a writer');
      if (writer.fits(payloadBytes)) continue;
      try {
        if (!(await writer.prepareNext())) full.push(seat);
      } catch (error) {
        await this.#seats.lose(seat, error);
      }
    }
    if (full.length === 0) return;
    if (full.length < this.#seats.healthy.length) {
      for (const seat of full) await this.#seats.lose(seat, fullError(seat, 'while others have some'));
      return;
    }
    this.#isFull = true;
    for (const waiting of this.#queue) tell(waiting);
    await room.promise;
    this.#isFull = false;
  }

  async #sync(): Promise<void> {
    this.#seats.assertSome();
    if (this.#sequence > this.#durable || this.#inFlight.size > 0) {
      // A store that is full syncs without it.
      if (this.#lastKind !== 'flush' && this.#isFlushPutNow) this.#putFlush();
      const sequence = this.#sequence;
      await this.whenQuiet();
      const { writers } = this.#seats;
      await Promise.all(
        writers.map((writer) =>
          writer.sync().catch((error: unknown) => this.#seats.loseWriter(writer, error)),
        ),
      );
      await this.#seats.settled();
      this.#durable = Math.max(this.#durable, sequence);
    }
    await this.#seats.settled();
  }

  get #isFlushPutNow(): boolean {
    return this.#held === undefined && !this.#seats.isLosing && this.#fits(undefined);
  }

  #putFlush(): void {
    const flush: RowChange = { kind: 'flush', source: undefined, offsetBytes: 0, lengthBytes: 0, point: '' };
    this.#put(flush)?.catch(() => undefined);
  }

  /** The next log may begin: nothing of the last one is under way. */
  assertQuiet(): void {
    assert(this.#inFlight.size === 0, 'The epoch is closed while changes are in flight');
  }
}

/** Without members there is nothing to wait for. */
function ignoreNoMembers(error: unknown): void {
  if (!(error instanceof DeltaError && error.code === 'no-members')) throw error;
}

function tell(waiting: Waiting): void {
  if (waiting.isTold) return;
  waiting.isTold = true;
  waiting.onWaiting?.();
}

/** Changes leave the last of a segment to records that tell of them. */
function roomOf({ kind, source }: RowChange): number | undefined {
  return kind === 'write' || kind === 'zeroes' ? (source?.length ?? 0) : undefined;
}
