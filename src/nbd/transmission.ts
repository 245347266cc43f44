/**
 * The server's side of the transmission phase of one connection: requests in, device calls, replies out.
 *
 *     bytes -> header -> admission -> payload -> fence -> device -> reply writer -> one send per loop turn
 *                  \-> refused: payload discarded, error reply
 *
 * **Speed.** A request that is whole in a chunk is decoded in place, run at once, and its reply built in
 * place; nothing is allocated but a view of the bytes. Replies of all requests in a chunk, and of all
 * operations that finish in one loop turn, leave in one send, or a few where there is much in them.
 *
 * **Bounds (promise 9).** A request is admitted while the operations of this connection are within the limits
 * that `admission.ts` keeps, and the client takes its replies. Otherwise the transmission is blocked: it keeps
 * the rest of the chunk, and the connection reads no more until `resumeInput`.
 *
 * **Refusals** never touch the device: unknown commands and flags, ranges outside of the export or not
 * whole blocks, payloads over the limit, changes of a read-only export, anything new during a shutdown.
 *
 * **The end.** DISC, the end of the client's stream, and `shutdown` finish what is in flight, send the
 * replies and then ask the port to close. `abort` (the connection died) drops what was not begun; what runs
 * is left to finish as an orphan, which the export's fence knows.
 *
 * It knows no socket: `TransmissionPort` is its way out. What the handshake agreed on comes as
 * `TransmissionTerms`; with extended headers requests are longer and a payload may follow any of them.
 *
 * Source: NBD proto.md § Transmission, § Request types, § Error values; of the branch `extension-ext-header`
 * § Request message.
 */

import { assert, AssertionError, LIMITS, type MaybePromise } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { Admission, type MemoryShare } from './admission.ts';
import { type BufferPool, sharedBuffers } from './buffer-pool.ts';
import { createReplyWriter } from './chunk-writer.ts';
import { heldBytesOf, readSparse, readStatus, readThrough } from './chunked.ts';
import { COMMAND, COMMAND_FLAG, NBD_ERROR } from './codec.ts';
import { CHUNK, decodeStatusFilter } from './codec-chunks.ts';
import { DeviceFailures } from './device-failures.ts';
import type { Fence, StalledReader } from './fence.ts';
import type { NbdLimits } from './limits.ts';
import type { SelectedContext } from './meta-context.ts';
import { isOrdered, Operation, type OperationOwner } from './operation.ts';
import { allowedFlagsOf, refusalOf, type RequestRules, statusRefusal } from './refusal.ts';
import type { Failure, ReplyChunk, ReplyWriter } from './reply-writer.ts';
import { RequestReader } from './request-reader.ts';
import type { TransmissionPort, TransmissionTarget, TransmissionTerms } from './transmission-port.ts';

const PLAIN_TERMS: TransmissionTerms = { replies: 'simple', contexts: [] };

type State = 'header' | 'filter' | 'admission' | 'payload' | 'discard' | 'over';

/** How far beyond the limit a refused payload is still skipped, in multiples of it; then we hang up. */
const DISCARD_FACTOR = 2;

export class Transmission implements OperationOwner, StalledReader {
  readonly #port: TransmissionPort;
  readonly #device: BlockDevice;
  readonly #rules: RequestRules;
  readonly #contexts: readonly SelectedContext[];
  readonly #fence: Fence;
  readonly #resize: TransmissionTarget['resize'];
  readonly #limits: NbdLimits;
  readonly #admission: Admission;
  readonly #replies: ReplyWriter;
  readonly #failures: DeviceFailures;
  readonly #buffers: BufferPool;

  fencedCount = 0;
  isGone = false;

  #state: State = 'header';
  /** The client's bytes; keeps the rest of a chunk while blocked. */
  readonly #reader: RequestReader;
  #isBlocked = false;
  #isPumping = false;
  #isTurnScheduled = false;
  #isClosing = false;
  #isFinished = false;
  /** What the current request asks of block status. */
  #asked: readonly SelectedContext[] = [];
  /** What the request whose payload is being skipped is answered. */
  #discardFailure: Failure | undefined;

  /** What other clients left unread was looked after since this batch of input arrived. */
  #hasDroppedStale = false;
  /** Writes that use bytes of their input chunk after its turn. */
  #pinnedCount = 0;
  #keepsInput = false;
  /** Operations whose call returned a promise or that are held. */
  readonly #operations = new Set<Operation>();
  #spare: Operation | undefined;
  #idleWaiters: (() => void)[] = [];

  constructor(
    target: TransmissionTarget,
    limits: NbdLimits,
    port: TransmissionPort,
    terms: TransmissionTerms = PLAIN_TERMS,
    memory?: MemoryShare,
    buffers: BufferPool = sharedBuffers,
  ) {
    const { device, readOnly, fastZeroes } = target;
    const { replies: mode, contexts } = terms;
    this.#device = device;
    this.#rules = {
      device,
      readOnly,
      fastZeroes,
      payloadBytesMax: limits.payloadBytesMax,
      mode,
      contextCount: contexts.length,
      allowedFlags: allowedFlagsOf(mode, {
        blockStatus: contexts.length > 0,
        resize: target.resize !== undefined,
      }),
    };
    this.#contexts = contexts;
    this.#reader = new RequestReader(mode === 'extended', buffers);
    this.#replies = createReplyWriter(mode, buffers);
    this.#buffers = buffers;
    this.#fence = target.fence;
    this.#resize = target.resize;
    this.#limits = limits;
    this.#admission = new Admission(limits, memory);
    this.#port = port;
    this.#failures = new DeviceFailures((level, message, error) => port.log(level, message, error));
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
   * Takes a chunk of the client's stream. Must not be called while blocked.
   *
   * The chunk may be used again for other bytes after this call, unless `keepsInput` says otherwise.
   */
  receive(chunk: Buffer): void {
    this.#keepsInput = false;
    if (this.#state === 'over') return;
    assert(!this.#reader.hasInput, 'Input arrived while the transmission is blocked');
    this.#reader.give(chunk);
    this.#pump();
  }

  /** The last chunk is still in use: by a write that goes on, or by requests that wait for their turn. */
  get keepsInput(): boolean {
    return this.#keepsInput || this.#reader.hasInput;
  }

  /**
   * Where the next bytes of the stream belong, where they are the rest of a large payload; `receivedInPlace`
   * follows instead of `receive` once some of them are there. Not to be asked for while blocked.
   */
  get payloadTarget(): Buffer | undefined {
    return this.#state === 'payload' ? this.#reader.payloadRest : undefined;
  }

  /** The first `lengthBytes` of `payloadTarget` have arrived. */
  receivedInPlace(lengthBytes: number): void {
    this.#reader.filledPayload(lengthBytes);
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
    this.#fence.readsOn(this);
    this.#reader.dropInput();
    this.#reader.dropPayload();
    this.#replies.discard();
    for (const operation of this.#operations) {
      if (operation.blockerCount > 0) this.#settle(operation, SHUTDOWN);
    }
  }

  isClientGone(): boolean {
    return this.#port.isPeerGone();
  }

  giveUp(): void {
    this.abort();
    this.#port.hangUp('The client closed the connection and left requests unread, which are dropped');
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
    this.#admission.suspend(operation.payloadBytes);
    if (this.#isBlocked) this.#scheduleTurn();
  }

  operationResumes(operation: Operation): void {
    if (!operation.isWaiting) return;
    operation.isWaiting = false;
    this.#admission.resume(operation.payloadBytes);
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
    this.#hasDroppedStale = false;
    this.#fence.readsOn(this);
    try {
      while (this.#advance());
    } finally {
      this.#isPumping = false;
    }
    if (!this.#isBlocked) this.#reader.dropInput();
    this.#sendReplies();
    this.#finishIfDone();
  }

  /** One step; false where more bytes are needed or the limits are reached. */
  #advance(): boolean {
    switch (this.#state) {
      case 'header':
        return this.#readHeader();
      case 'filter':
        return this.#readFilter();
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

  #readHeader(): boolean {
    if (this.#reader.leftBytes === 0) return false;
    if (!this.#hasRoomForReplies()) return this.#block();
    const isRequest = this.#reader.readHeader();
    if (isRequest === undefined) return false;
    if (!isRequest) return this.#hangUp('A request does not begin with the request magic');
    return this.#consider();
  }

  /** Decides what becomes of the request whose header was read. */
  #consider(): boolean {
    const request = this.#reader.request;
    if (request.type === COMMAND.disconnect) {
      // NBD proto.md § Request types, NBD_CMD_DISC: nothing may follow.
      this.#state = 'over';
      this.isGone = true;
      return false;
    }
    const failure = this.#isClosing ? SHUTDOWN : refusalOf(request, this.#rules);
    if (failure !== undefined) return this.#refuse(failure);
    if (request.type === COMMAND.blockStatus) {
      this.#asked = this.#contexts;
      this.#state = this.#reader.payloadBytes > 0 ? 'filter' : 'admission';
      return true;
    }
    if (request.lengthBytes === 0 && request.type !== COMMAND.flush && request.type !== COMMAND.resize) {
      // Unspecified by the protocol; nothing is nothing, and devices are not sent empty ranges.
      this.#answerNothing();
      return true;
    }
    this.#state = 'admission';
    return true;
  }

  /** The success of a request for nothing. With chunks a read must not be answered otherwise. */
  #answerNothing(): void {
    const isRead = this.#reader.request.type === COMMAND.read;
    if (isRead && this.#replies.mode !== 'simple')
      this.#replies.appendChunks([NO_DATA], this.#reader.request);
    else this.#replies.done(this.#reader.request);
  }

  /** The contexts that a block status request names in its payload, and its length. */
  #readFilter(): boolean {
    const payload = this.#reader.collectPayload();
    if (payload === undefined) return false;
    const filter = decodeStatusFilter(payload);
    this.#buffers.release(payload);
    const ids = new Set(filter?.contextIds);
    const asked = this.#contexts.filter(({ id }) => ids.has(id));
    if (filter === undefined || asked.length !== filter.contextIds.length) {
      const message = 'A block status names a context twice or one that was not agreed on';
      return this.#refuse({ error: NBD_ERROR.EINVAL, message });
    }
    this.#reader.request.lengthBytes = filter.lengthBytes;
    this.#asked = asked;
    const failure = statusRefusal(this.#reader.request, this.#device);
    if (failure !== undefined) return this.#refuse(failure);
    this.#state = 'admission';
    return true;
  }

  /** Answers without the device; a payload is skipped first, so that the stream stays in step. */
  #refuse(failure: Failure): boolean {
    const { payloadBytes } = this.#reader;
    if (payloadBytes > 0) {
      // The branch asks to hang up beyond the maximum; compact writes are given some room.
      const factor = this.#rules.mode === 'extended' ? 1 : DISCARD_FACTOR;
      if (payloadBytes > this.#limits.payloadBytesMax * factor) {
        return this.#hangUp(`A payload of ${payloadBytes} bytes is too large to be skipped`);
      }
      this.#state = 'discard';
      this.#discardFailure = failure;
      return true;
    }
    this.#state = 'header';
    this.#replies.failed(failure, this.#reader.request);
    return true;
  }

  #discardPayload(): boolean {
    if (!this.#reader.skipPayload()) return false;
    const failure = this.#discardFailure;
    assert(failure !== undefined, 'A payload is skipped for no reason');
    this.#discardFailure = undefined;
    return this.#refuse(failure);
  }

  #admit(): boolean {
    if (this.#isClosing) return this.#refuse(SHUTDOWN);
    const { blockSizeBytes } = this.#device;
    const heldBytes = heldBytesOf(this.#reader.request, blockSizeBytes, this.#asked.length, this.#limits);
    if (!this.#hasRoomFor(heldBytes)) return this.#block();
    this.#admission.begin(heldBytes);
    if (this.#reader.request.type === COMMAND.write) {
      this.#state = 'payload';
      return true;
    }
    this.#state = 'header';
    this.#submit(this.#takeOperation(heldBytes));
    // The client takes this while the next requests are served, and the bytes are still in the processor's cache.
    if (this.#replies.queuedBytes >= LIMITS.nbdReplyBatchBytes) this.#sendReplies();
    return true;
  }

  /** Whether one more request may begin; replies collected so far are sent first where it matters. */
  #hasRoomFor(heldBytes: number): boolean {
    const replyBytes = this.#replies.queuedBytes + this.#port.unsentBytes();
    if (this.#admission.hasRoomFor(heldBytes, replyBytes)) return true;
    this.#sendReplies();
    return this.#admission.hasRoomFor(heldBytes, this.#port.unsentBytes());
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
    // A write that goes on keeps its whole chunk in memory: the next ones then take a copy of their bytes.
    const inPlace = this.#pinnedCount === 0 ? this.#reader.takePayloadInPlace() : undefined;
    const source = inPlace ?? this.#reader.collectPayload();
    if (source === undefined) return false;
    this.#submitWrite(source, inPlace !== undefined);
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
    this.#fence.stalls(this);
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
    const request = this.#reader.request;
    operation.command = request.type;
    operation.cookieHigh = request.cookieHigh;
    operation.cookieLow = request.cookieLow;
    operation.offsetBytes = request.offsetBytes;
    operation.offsetHigh = request.offsetHigh;
    operation.offsetLow = request.offsetLow;
    operation.lengthBytes = request.lengthBytes;
    operation.flags = request.flags;
    operation.fua = (request.flags & COMMAND_FLAG.fua) !== 0;
    operation.mayTrim = (request.flags & COMMAND_FLAG.noHole) === 0;
    operation.fast = (request.flags & COMMAND_FLAG.fastZero) !== 0;
    operation.payloadBytes = payloadBytes;
    if (request.type === COMMAND.blockStatus) operation.contexts = this.#asked;
    operation.pinsInput = false;
    operation.isSettled = false;
    return operation;
  }

  #submit(operation: Operation): void {
    const isInOrder = isOrdered(operation);
    if (isInOrder && !this.#hasDroppedStale) {
      this.#hasDroppedStale = true;
      this.#fence.dropStale(this);
    }
    if (isInOrder && !this.#fence.admit(operation)) {
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
    if (!operation.pinsInput) return;
    this.#pinnedCount += 1;
    this.#keepsInput = true;
  }

  #run(operation: Operation): void {
    const isRead = operation.command === COMMAND.read;
    if (isRead && operation.lengthBytes >= this.#limits.sparseReadBytesMin && this.#mayFragment(operation)) {
      this.#runInChunks(operation, readSparse(this.#device, operation));
      return;
    }
    let pending: MaybePromise<void>;
    try {
      pending = this.#call(operation);
    } catch (error) {
      if (isRead) this.#replies.abandonRead();
      this.#settle(operation, this.#failureOf(operation, error));
      return;
    }
    if (pending === undefined) {
      if (isRead) this.#replies.commitRead(operation);
      this.#settle(operation, undefined);
      return;
    }
    if (isRead) operation.reply = this.#replies.detachRead();
    else if (operation.command !== COMMAND.flush && isOrdered(operation)) this.#fence.enter(operation);
    this.#goOn(operation);
    pending.then(
      () => this.#settle(operation, undefined),
      (error: unknown) => this.#settle(operation, this.#failureOf(operation, error)),
    );
  }

  #mayFragment(operation: Operation): boolean {
    const isWanted = this.#replies.mode !== 'simple' && (operation.flags & COMMAND_FLAG.df) === 0;
    return isWanted && this.#device.capabilities.extents;
  }

  #runInChunks(operation: Operation, pending: Promise<readonly ReplyChunk[]>): void {
    this.#goOn(operation);
    pending.then(
      (chunks) => {
        operation.chunks = chunks;
        this.#settle(operation, undefined);
      },
      (error: unknown) => this.#settle(operation, this.#failureOf(operation, error)),
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
      case COMMAND.cache:
        return readThrough(this.#device, operation, this.#limits.cacheBytesMax);
      case COMMAND.blockStatus:
        return readStatus(this.#device, operation, this.#limits, this.#replies.mode);
      case COMMAND.resize:
        return this.#resize?.(offsetBytes);
      default:
        assert(command === COMMAND.flush, `Command ${command} was not refused`);
        // A device that cannot be written to has nothing to make durable.
        return this.#device.capabilities.readOnly ? undefined : this.#device.flush();
    }
  }

  /** Ends an operation: counts, fence, reply. */
  #settle(operation: Operation, failure: Failure | undefined): void {
    assert(!operation.isSettled, 'An operation finished twice');
    operation.isSettled = true;
    this.operationResumes(operation);
    this.#admission.end(operation.payloadBytes);
    if (operation.source !== undefined && !operation.pinsInput) this.#buffers.release(operation.source);
    operation.source = undefined;
    this.#reply(operation, failure);
    if (this.#operations.delete(operation) && operation.pinsInput) this.#pinnedCount -= 1;
    this.#fence.leave(operation);
    if (!operation.isUsedUp) this.#spare = operation;
    if (!this.#isPumping) this.#scheduleTurn();
    if (this.#operations.size === 0) this.#tellIdle();
  }

  #reply(operation: Operation, failure: Failure | undefined): void {
    const { reply, chunks } = operation;
    operation.reply = undefined;
    operation.chunks = undefined;
    if (this.#isFinished) {
      // Nobody is there to read it; a read that was committed into the slab is forgotten too.
      if (reply !== undefined) this.#buffers.release(reply);
      this.#replies.discard();
      return;
    }
    if (failure !== undefined) {
      if (reply !== undefined) this.#buffers.release(reply);
      this.#replies.failed(failure, operation);
    } else if (chunks !== undefined) this.#replies.appendChunks(chunks, operation);
    else if (operation.command !== COMMAND.read) this.#replies.done(operation);
    else if (reply !== undefined) this.#replies.appendRead(reply, operation);
  }

  #failureOf(operation: Operation, error: unknown): Failure {
    if (error instanceof AssertionError) {
      this.#port.log('error', `An assertion failed in ${this.#device.description}`, error);
      this.#port.programmerError(error);
      return { error: NBD_ERROR.EIO, message: 'The server failed an assertion' };
    }
    return this.#failures.failureOf(operation, error);
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
    const inputIsOver = this.#state === 'over' || this.#isClosing || (this.isGone && !this.#reader.hasInput);
    if (!inputIsOver || this.#isFinished || this.#operations.size > 0) return;
    this.#sendReplies();
    this.#isFinished = true;
    this.#state = 'over';
    this.#reader.dropInput();
    this.#isBlocked = false;
    this.#fence.readsOn(this);
    this.#port.finished();
  }

  #tellIdle(): void {
    const waiters = this.#idleWaiters;
    this.#idleWaiters = [];
    for (const resolve of waiters) resolve();
  }
}

const SHUTDOWN: Failure = { error: NBD_ERROR.ESHUTDOWN, message: 'The server is shutting down' };
const NO_DATA: ReplyChunk = { type: CHUNK.none, parts: [] };
