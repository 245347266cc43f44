/**
 * The server's side of the transmission phase of one connection: requests in, device calls, replies out.
 *
 *     bytes -> header -> admission -> payload -> fence -> device -> reply writer -> one send per loop turn
 *                  \-> refused: payload discarded, error reply
 *
 * **Speed.** A request that is whole in a chunk is decoded in place, run at once, and its reply built in
 * place; nothing is allocated but a view of the bytes. Replies of all requests in a chunk, and of all
 * operations that finish in one loop turn, leave in one send.
 *
 * **Bounds (promise 9).** A request is admitted while the operations of this connection are within limits:
 * running requests and their bytes, waiting writes and their bytes (promise 8: writes that called
 * `onWaiting`, or that the fence holds, are counted apart, so that reads behind them go on), and replies the
 * client has not taken. Otherwise the transmission is blocked: it keeps the rest of the chunk, and the
 * connection reads no more until `resumeInput`.
 *
 * **Refusals** never touch the device: unknown commands and flags, ranges outside of the export or not
 * whole blocks, payloads over the limit, changes of a read-only export, anything new during a shutdown.
 *
 * **The end.** DISC, the end of the client's stream, and `shutdown` finish what is in flight, send the
 * replies and then ask the port to close. `abort` (the connection died) drops what was not begun; what runs
 * is left to finish as an orphan, which the export's fence knows.
 *
 * It knows no socket: `TransmissionPort` is its way out. Extensions add commands to `#refusal` and `#call`
 * and another `ReplyWriter`.
 *
 * Source: NBD proto.md § Transmission, § Request types, § Error values.
 */

import { assert, AssertionError, type MaybePromise, messageOf } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import {
  COMMAND,
  COMMAND_FLAG,
  decodeRequest,
  emptyRequest,
  NBD_ERROR,
  REQUEST_BYTES,
  type Request,
} from './codec.ts';
import { nbdErrorOf } from './errno.ts';
import type { Fence } from './fence.ts';
import type { NbdLimits } from './limits.ts';
import { Operation, type OperationOwner } from './operation.ts';
import { type ReplyWriter, SimpleReplyWriter } from './reply-writer.ts';

/** What the transmission needs of its connection. */
export interface TransmissionPort {
  /** Sends the buffers, in order; they must not be changed afterwards. */
  send(buffers: readonly Buffer[]): void;
  /** Bytes handed to `send` that the peer has not taken yet. */
  unsentBytes(): number;
  /** The connection is known to be broken: nothing more will be sent. */
  isBroken(): boolean;
  /** The transmission was blocked and takes input again. */
  resumeInput(): void;
  /** Everything is answered; the connection may be closed once the replies are sent. */
  finished(): void;
  /** The peer broke the protocol in a way that leaves no common ground. */
  hangUp(reason: string): void;
  log(level: 'warning' | 'error', message: string, error?: unknown): void;
  /** A device failed an assertion. The process must not go on as if nothing had happened. */
  programmerError(error: AssertionError): void;
}

/** The export being served. */
export interface TransmissionTarget {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  /** Shared by all connections of the export. */
  readonly fence: Fence;
}

type State = 'header' | 'admission' | 'payload' | 'discard' | 'over';

/** Writes that keep their input chunk in memory; further ones are copied, since a chunk may be large. */
const PINNED_WRITE_COUNT_MAX = 16;
/** How far beyond the limit a refused payload is still skipped, in multiples of it; then we hang up. */
const DISCARD_FACTOR = 2;

export class Transmission implements OperationOwner {
  readonly #port: TransmissionPort;
  readonly #device: BlockDevice;
  readonly #readOnly: boolean;
  readonly #fence: Fence;
  readonly #limits: NbdLimits;
  readonly #replies: ReplyWriter = new SimpleReplyWriter();

  fencedCount = 0;
  isGone = false;

  #state: State = 'header';
  /** The chunk being read, and how far; kept while blocked. */
  #input: Buffer | undefined;
  #atBytes = 0;
  #isBlocked = false;
  #isPumping = false;
  #isTurnScheduled = false;
  #isClosing = false;
  #isFinished = false;
  /** A header that arrived in pieces. */
  readonly #header = Buffer.alloc(REQUEST_BYTES);
  #headerBytes = 0;
  readonly #request: Request = emptyRequest();
  #payload: Buffer | undefined;
  #payloadFilledBytes = 0;
  #discardLeftBytes = 0;
  #discardError = 0;

  #runningCount = 0;
  #runningBytes = 0;
  #waitingCount = 0;
  #waitingBytes = 0;
  #pinnedCount = 0;
  /** Operations whose call returned a promise or that are held. */
  readonly #operations = new Set<Operation>();
  #spare: Operation | undefined;
  #idleWaiters: (() => void)[] = [];

  constructor(target: TransmissionTarget, limits: NbdLimits, port: TransmissionPort) {
    this.#device = target.device;
    this.#readOnly = target.readOnly;
    this.#fence = target.fence;
    this.#limits = limits;
    this.#port = port;
  }

  /** True while no input is taken; `resumeInput` follows. */
  get isBlocked(): boolean {
    return this.#isBlocked;
  }

  /** Everything was answered, or nothing more will be. */
  get isFinished(): boolean {
    return this.#isFinished;
  }

  /** Requests that run or wait. */
  get inFlightCount(): number {
    return this.#operations.size;
  }

  /**
   * Takes a chunk of the client's stream. The chunk is the transmission's from now on: a write may keep it
   * until it has finished. Must not be called while blocked.
   */
  receive(chunk: Buffer): void {
    if (this.#state === 'over') return;
    assert(this.#input === undefined, 'Input arrived while the transmission is blocked');
    this.#input = chunk;
    this.#atBytes = 0;
    this.#pump();
  }

  /** The client has sent its last byte. What it asked for before is still answered. */
  end(): void {
    this.isGone = true;
    this.#finishIfDone();
  }

  /** The server closes: what is in flight is answered, what is new gets ESHUTDOWN. */
  shutdown(): void {
    this.#isClosing = true;
    this.#scheduleTurn();
  }

  /** The connection is dead. */
  abort(): void {
    this.isGone = true;
    this.#state = 'over';
    this.#isFinished = true;
    this.#input = undefined;
    this.#payload = undefined;
    this.#replies.discard();
    for (const operation of this.#operations) {
      if (operation.blockerCount > 0) this.#settle(operation, NBD_ERROR.ESHUTDOWN);
    }
  }

  /** Resolves when no operation of this connection runs against the device any more. */
  whenIdle(): Promise<void> {
    if (this.#operations.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  /** The peer took replies: a transmission that was blocked by them may go on. */
  outputDrained(): void {
    if (this.#isBlocked) this.#scheduleTurn();
  }

  operationWaits(operation: Operation): void {
    if (operation.isWaiting) return;
    operation.isWaiting = true;
    this.#runningCount -= 1;
    this.#runningBytes -= operation.payloadBytes;
    this.#waitingCount += 1;
    this.#waitingBytes += operation.payloadBytes;
    if (this.#isBlocked) this.#scheduleTurn();
  }

  operationResumes(operation: Operation): void {
    if (!operation.isWaiting) return;
    operation.isWaiting = false;
    this.#runningCount += 1;
    this.#runningBytes += operation.payloadBytes;
    this.#waitingCount -= 1;
    this.#waitingBytes -= operation.payloadBytes;
    if (this.#isBlocked) this.#scheduleTurn();
  }

  operationReleased(operation: Operation): void {
    this.operationResumes(operation);
    this.#run(operation);
  }

  // -------------------------------------------------------------------------------------------------
  // Reading requests.

  #pump(): void {
    this.#isBlocked = false;
    this.#isPumping = true;
    try {
      while (this.#advance());
    } finally {
      this.#isPumping = false;
    }
    if (!this.#isBlocked) this.#input = undefined;
    this.#sendReplies();
    this.#finishIfDone();
  }

  /** One step; false where more bytes are needed or the limits are reached. */
  #advance(): boolean {
    switch (this.#state) {
      case 'header':
        return this.#readHeader();
      case 'admission':
        return this.#admit();
      case 'payload':
        return this.#readPayload();
      case 'discard':
        return this.#discardPayload();
      case 'over':
        return false;
    }
  }

  get #leftBytes(): number {
    return this.#input === undefined ? 0 : this.#input.length - this.#atBytes;
  }

  #readHeader(): boolean {
    const input = this.#input;
    if (input === undefined || this.#leftBytes === 0) return false;
    if (!this.#hasRoomForReplies()) return this.#block();
    let isRequest: boolean;
    if (this.#headerBytes === 0 && this.#leftBytes >= REQUEST_BYTES) {
      isRequest = decodeRequest(input, this.#atBytes, this.#request);
      this.#atBytes += REQUEST_BYTES;
    } else {
      const copied = input.copy(this.#header, this.#headerBytes, this.#atBytes);
      this.#headerBytes += copied;
      this.#atBytes += copied;
      if (this.#headerBytes < REQUEST_BYTES) return false;
      this.#headerBytes = 0;
      isRequest = decodeRequest(this.#header, 0, this.#request);
    }
    if (!isRequest) return this.#hangUp('A request does not begin with the request magic');
    return this.#consider();
  }

  /** Decides what becomes of the request whose header was read. */
  #consider(): boolean {
    if (this.#request.type === COMMAND.disconnect) {
      // NBD proto.md § Request types, NBD_CMD_DISC: nothing may follow.
      this.#state = 'over';
      this.isGone = true;
      return false;
    }
    const error = this.#refusal();
    if (error !== 0) return this.#refuse(error);
    if (this.#request.lengthBytes === 0 && this.#request.type !== COMMAND.flush) {
      // Unspecified by the protocol; nothing is nothing, and devices are not sent empty ranges.
      return this.#refuse(0);
    }
    this.#state = 'admission';
    return true;
  }

  /** The error of a request that must not reach the device, or 0 (NBD proto.md § Error values). */
  #refusal(): number {
    const { type, flags, offsetBytes, lengthBytes } = this.#request;
    const allowed = ALLOWED_FLAGS.get(type);
    if (allowed === undefined || (flags & ~allowed) !== 0) return NBD_ERROR.EINVAL;
    if (this.#isClosing) return NBD_ERROR.ESHUTDOWN;
    if (type === COMMAND.flush) return 0;
    const isChange = type !== COMMAND.read;
    if (isChange && this.#readOnly) return NBD_ERROR.EPERM;
    if (type === COMMAND.trim && !this.#device.capabilities.trim) return NBD_ERROR.EINVAL;
    const hasPayload = type === COMMAND.read || type === COMMAND.write;
    if (hasPayload && lengthBytes > this.#limits.payloadBytesMax) return NBD_ERROR.EINVAL;
    if (offsetBytes + lengthBytes > this.#device.sizeBytes) {
      return type === COMMAND.write || type === COMMAND.writeZeroes ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL;
    }
    const blockSizeBytes = this.#device.blockSizeBytes;
    if (offsetBytes % blockSizeBytes !== 0 || lengthBytes % blockSizeBytes !== 0) return NBD_ERROR.EINVAL;
    return 0;
  }

  /** Answers without the device; a write's payload is skipped first, so that the stream stays in step. */
  #refuse(error: number): boolean {
    const { type, lengthBytes } = this.#request;
    if (type === COMMAND.write && lengthBytes > 0) {
      if (lengthBytes > this.#limits.payloadBytesMax * DISCARD_FACTOR) {
        return this.#hangUp(`A write of ${lengthBytes} bytes is too large to be skipped`);
      }
      this.#state = 'discard';
      this.#discardLeftBytes = lengthBytes;
      this.#discardError = error;
      return true;
    }
    this.#state = 'header';
    this.#replies.status(error, this.#request.cookieHigh, this.#request.cookieLow);
    return true;
  }

  #discardPayload(): boolean {
    const skipped = Math.min(this.#leftBytes, this.#discardLeftBytes);
    this.#atBytes += skipped;
    this.#discardLeftBytes -= skipped;
    if (this.#discardLeftBytes > 0) return false;
    this.#state = 'header';
    this.#replies.status(this.#discardError, this.#request.cookieHigh, this.#request.cookieLow);
    return true;
  }

  #admit(): boolean {
    if (this.#isClosing) return this.#refuse(NBD_ERROR.ESHUTDOWN);
    const { type, lengthBytes } = this.#request;
    const payloadBytes = type === COMMAND.read || type === COMMAND.write ? lengthBytes : 0;
    if (!this.#hasRoomFor(payloadBytes)) return this.#block();
    this.#runningCount += 1;
    this.#runningBytes += payloadBytes;
    if (type === COMMAND.write) {
      this.#state = 'payload';
      return true;
    }
    this.#state = 'header';
    this.#submit(this.#takeOperation(payloadBytes));
    return true;
  }

  #hasRoomFor(payloadBytes: number): boolean {
    const limits = this.#limits;
    const fits = this.#runningBytes + payloadBytes <= limits.inFlightBytesMax || this.#runningCount === 0;
    return (
      fits &&
      this.#runningCount < limits.inFlightCountMax &&
      this.#waitingBytes < limits.waitingBytesMax &&
      this.#waitingCount < limits.waitingCountMax
    );
  }

  /** Whether the client takes its replies; those collected so far are sent first where it matters. */
  #hasRoomForReplies(): boolean {
    const max = this.#limits.replyBytesMax;
    if (this.#replies.queuedBytes + this.#port.unsentBytes() < max) return true;
    this.#sendReplies();
    return this.#port.unsentBytes() < max;
  }

  /** A write's bytes go to the device when all are there: a stalled client then holds nothing. */
  #readPayload(): boolean {
    const input = this.#input;
    const { lengthBytes } = this.#request;
    if (input === undefined) return false;
    const isWhole = this.#payload === undefined && this.#leftBytes >= lengthBytes;
    if (isWhole && this.#pinnedCount < PINNED_WRITE_COUNT_MAX) {
      const source = input.subarray(this.#atBytes, this.#atBytes + lengthBytes);
      this.#atBytes += lengthBytes;
      this.#submitWrite(source, true);
      return true;
    }
    this.#payload ??= Buffer.allocUnsafeSlow(lengthBytes);
    const copied = input.copy(this.#payload, this.#payloadFilledBytes, this.#atBytes);
    this.#atBytes += copied;
    this.#payloadFilledBytes += copied;
    if (this.#payloadFilledBytes < lengthBytes) return false;
    const source = this.#payload;
    this.#payload = undefined;
    this.#payloadFilledBytes = 0;
    this.#submitWrite(source, false);
    return true;
  }

  #submitWrite(source: Buffer, pinsInput: boolean): void {
    this.#state = 'header';
    const operation = this.#takeOperation(source.length);
    operation.source = source;
    operation.pinsInput = pinsInput;
    this.#submit(operation);
  }

  #block(): false {
    this.#isBlocked = true;
    return false;
  }

  #hangUp(reason: string): false {
    this.#state = 'over';
    this.#sendReplies();
    this.#isFinished = true;
    this.#port.hangUp(reason);
    return false;
  }

  // -------------------------------------------------------------------------------------------------
  // Running operations.

  /** An operation for the current request. */
  #takeOperation(payloadBytes: number): Operation {
    const operation = this.#spare ?? new Operation(this);
    this.#spare = undefined;
    const request = this.#request;
    operation.command = request.type;
    operation.cookieHigh = request.cookieHigh;
    operation.cookieLow = request.cookieLow;
    operation.offsetBytes = request.offsetBytes;
    operation.lengthBytes = request.lengthBytes;
    operation.fua = (request.flags & COMMAND_FLAG.fua) !== 0;
    operation.mayTrim = (request.flags & COMMAND_FLAG.noHole) === 0;
    operation.payloadBytes = payloadBytes;
    operation.pinsInput = false;
    operation.isSettled = false;
    return operation;
  }

  #submit(operation: Operation): void {
    if (operation.command !== COMMAND.read && !this.#fence.admit(operation)) {
      this.#goOn(operation);
      this.operationWaits(operation);
      return;
    }
    this.#run(operation);
  }

  /** Enters an operation that outlives its call. */
  #goOn(operation: Operation): void {
    operation.isUsedUp = true;
    if (this.#operations.has(operation)) return;
    this.#operations.add(operation);
    if (operation.pinsInput) this.#pinnedCount += 1;
  }

  #run(operation: Operation): void {
    let pending: MaybePromise<void>;
    try {
      pending = this.#call(operation);
    } catch (error) {
      if (operation.command === COMMAND.read) this.#replies.abandonRead();
      this.#settle(operation, this.#errorValue(operation, error));
      return;
    }
    if (pending === undefined) {
      if (operation.command === COMMAND.read) {
        this.#replies.commitRead(operation.cookieHigh, operation.cookieLow);
      }
      this.#settle(operation, 0);
      return;
    }
    if (operation.command === COMMAND.read) operation.reply = this.#replies.detachRead();
    else if (operation.command !== COMMAND.flush) this.#fence.enter(operation);
    this.#goOn(operation);
    pending.then(
      () => this.#settle(operation, 0),
      (error: unknown) => this.#settle(operation, this.#errorValue(operation, error)),
    );
  }

  #call(operation: Operation): MaybePromise<void> {
    const { command, offsetBytes, lengthBytes } = operation;
    switch (command) {
      case COMMAND.read:
        return this.#device.read(this.#replies.reserveRead(lengthBytes), offsetBytes);
      case COMMAND.write:
        assert(operation.source !== undefined, 'A write has no bytes');
        return this.#device.write(operation.source, offsetBytes, operation);
      case COMMAND.writeZeroes:
        return this.#device.writeZeroes(offsetBytes, lengthBytes, operation);
      case COMMAND.trim:
        return this.#device.trim(offsetBytes, lengthBytes, operation);
      default:
        assert(command === COMMAND.flush, `Command ${command} was not refused`);
        // A device that cannot be written to has nothing to make durable.
        return this.#device.capabilities.readOnly ? undefined : this.#device.flush();
    }
  }

  /** Ends an operation: counts, fence, reply. */
  #settle(operation: Operation, error: number): void {
    assert(!operation.isSettled, 'An operation finished twice');
    operation.isSettled = true;
    this.operationResumes(operation);
    this.#runningCount -= 1;
    this.#runningBytes -= operation.payloadBytes;
    operation.source = undefined;
    this.#reply(operation, error);
    if (this.#operations.delete(operation) && operation.pinsInput) this.#pinnedCount -= 1;
    this.#fence.leave(operation);
    if (!operation.isUsedUp) this.#spare = operation;
    if (!this.#isPumping) this.#scheduleTurn();
    if (this.#operations.size === 0) this.#tellIdle();
  }

  #reply(operation: Operation, error: number): void {
    const { cookieHigh, cookieLow, reply } = operation;
    operation.reply = undefined;
    if (this.#isFinished) {
      // Nobody is there to read it; a read that was committed into the slab is forgotten too.
      this.#replies.discard();
      return;
    }
    if (error !== 0) this.#replies.status(error, cookieHigh, cookieLow);
    else if (operation.command !== COMMAND.read) this.#replies.status(0, cookieHigh, cookieLow);
    else if (reply !== undefined) this.#replies.appendRead(reply, cookieHigh, cookieLow);
  }

  #errorValue(operation: Operation, error: unknown): number {
    if (error instanceof AssertionError) {
      this.#port.log('error', `An assertion failed in ${this.#device.description}`, error);
      this.#port.programmerError(error);
      return NBD_ERROR.EIO;
    }
    return nbdErrorOf(error, () => {
      const range = `${operation.offsetBytes}+${operation.lengthBytes}`;
      this.#port.log('error', `Command ${operation.command} on ${range} failed: ${messageOf(error)}`, error);
    });
  }

  // -------------------------------------------------------------------------------------------------
  // Turns of the loop.

  /** At the end of this turn of the loop: send what finished in it, and read on where that was blocked. */
  #scheduleTurn(): void {
    if (this.#isTurnScheduled) return;
    this.#isTurnScheduled = true;
    setImmediate(() => {
      this.#isTurnScheduled = false;
      this.#turn();
    });
  }

  #turn(): void {
    // Replies first: sending to a client that is gone fails, and what it had sent behind is then not begun.
    this.#sendReplies();
    if (this.#isBlocked && !this.#port.isBroken()) {
      this.#pump();
      if (!this.#isBlocked) this.#port.resumeInput();
      return;
    }
    this.#finishIfDone();
  }

  #sendReplies(): void {
    if (this.#replies.queuedBytes > 0) this.#port.send(this.#replies.take());
  }

  #finishIfDone(): void {
    const inputIsOver =
      this.#state === 'over' || this.#isClosing || (this.isGone && this.#input === undefined);
    if (!inputIsOver || this.#isFinished || this.#operations.size > 0) return;
    this.#sendReplies();
    this.#isFinished = true;
    this.#state = 'over';
    this.#input = undefined;
    this.#isBlocked = false;
    this.#port.finished();
  }

  #tellIdle(): void {
    const waiters = this.#idleWaiters;
    this.#idleWaiters = [];
    for (const resolve of waiters) resolve();
  }
}

const { fua, noHole } = COMMAND_FLAG;

/** The flags each known command may carry. FUA is allowed on every command. */
const ALLOWED_FLAGS: ReadonlyMap<number, number> = new Map([
  [COMMAND.read, fua],
  [COMMAND.write, fua],
  [COMMAND.flush, fua],
  [COMMAND.trim, fua],
  [COMMAND.writeZeroes, fua | noHole],
]);
