/**
 * Collects the replies of a loop turn and hands them over in one go.
 *
 * Replies are built in place in a large buffer, a slab: a read asks for room for its reply, the device reads
 * straight into it, and committing writes the header in front. Nothing is copied, and one system call sends
 * all replies of a turn. A read that has to wait takes its piece of the slab with it and comes back with
 * `appendRead`; large reads get a buffer of their own. Slabs and large buffers come from the pool, and whoever sends
 * them gives them back; a slab is filled again from its beginning once all that was in it was given back.
 *
 * This module and `chunk-writer.ts` are the only ones that know the layout of replies: here are the slab and
 * simple replies (NBD proto.md § Simple reply message), there are structured and extended ones.
 */

import { assert } from '../base/index.ts';
import type { BufferPool } from './buffer-pool.ts';
import { type ReplyAddress, SIMPLE_REPLY_BYTES, writeSimpleReply } from './codec.ts';
import type { ReplyMode } from './codec-chunks.ts';

/** Why a request failed, for people and, where it is known, at which place of the export. */
export interface Failure {
  readonly error: number;
  readonly message: string;
  readonly offsetBytes?: number;
}

/** One chunk of a reply that has several. */
export interface ReplyChunk {
  readonly type: number;
  readonly parts: readonly Buffer[];
}

export interface ReplyWriter {
  readonly mode: ReplyMode;
  /** Bytes that were committed and not yet handed over. */
  readonly queuedBytes: number;
  /** The success of a request that has no data and was no read. */
  done(to: ReplyAddress): void;
  failed(failure: Failure, to: ReplyAddress): void;
  /** Room for a read's data. One at a time: the next call is one of the three below. */
  reserveRead(lengthBytes: number): Buffer;
  commitRead(to: ReplyAddress): void;
  abandonRead(): void;
  /** The reserved room leaves the writer, for a read that goes on after its call. */
  detachRead(): Buffer;
  /** Queues a detached reply whose data is there. */
  appendRead(reply: Buffer, to: ReplyAddress): void;
  /** Queues a reply of several chunks, at least one. Their buffers are the writer's from now on. */
  appendChunks(chunks: readonly ReplyChunk[], to: ReplyAddress): void;
  /** The buffers to send, in order; they belong to the taker, who gives them to the pool when they are sent. */
  take(): Buffer[];
  /** Forgets everything queued: nobody is there to read it. */
  discard(): void;
}

/** More than 32 replies of 4 KiB, so that such a turn is sent from one place. */
const SLAB_BYTES = 256 * 1024;
/** A reply larger than this gets its own buffer, so that a slab's rest is not thrown away for it. */
const SLAB_REPLY_BYTES_MAX = 32 * 1024;

const NO_SLAB = Buffer.alloc(0);

interface Reservation {
  readonly buffer: Buffer;
  readonly startBytes: number;
  readonly endBytes: number;
}

/** The slab, without a layout: what all modes share. */
export abstract class SlabWriter implements ReplyWriter {
  abstract readonly mode: ReplyMode;
  readonly #readPrefixBytes: number;
  readonly #buffers: BufferPool;
  #segments: Buffer[] = [];
  #segmentsBytes = 0;
  #slab: Buffer = NO_SLAB;
  /** The slab holds committed replies from here ... */
  #startBytes = 0;
  /** ... to here. */
  #endBytes = 0;
  #reserved: Reservation | undefined;

  /** @param readPrefixBytes what stands before a read's data. */
  constructor(readPrefixBytes: number, buffers: BufferPool) {
    this.#readPrefixBytes = readPrefixBytes;
    this.#buffers = buffers;
  }

  abstract done(to: ReplyAddress): void;
  abstract failed(failure: Failure, to: ReplyAddress): void;
  abstract appendChunks(chunks: readonly ReplyChunk[], to: ReplyAddress): void;
  /** Writes what stands before `dataBytes` of a read's data, at `at`. */
  protected abstract writeReadPrefix(buffer: Buffer, at: number, to: ReplyAddress, dataBytes: number): void;

  get queuedBytes(): number {
    return this.#segmentsBytes + this.#endBytes - this.#startBytes;
  }

  reserveRead(lengthBytes: number): Buffer {
    assert(this.#reserved === undefined, 'A read is reserved while another one is');
    const replyBytes = this.#readPrefixBytes + lengthBytes;
    if (replyBytes > SLAB_REPLY_BYTES_MAX) {
      const buffer = this.#buffers.acquire(lengthBytes, this.#readPrefixBytes);
      this.#reserved = { buffer, startBytes: 0, endBytes: replyBytes };
      return buffer.subarray(this.#readPrefixBytes);
    }
    this.#makeRoom(replyBytes);
    const startBytes = this.#endBytes;
    this.#reserved = { buffer: this.#slab, startBytes, endBytes: startBytes + replyBytes };
    return this.#slab.subarray(startBytes + this.#readPrefixBytes, startBytes + replyBytes);
  }

  commitRead(to: ReplyAddress): void {
    const { buffer, startBytes, endBytes } = this.#takeReservation();
    this.writeReadPrefix(buffer, startBytes, to, endBytes - startBytes - this.#readPrefixBytes);
    if (buffer === this.#slab) this.#endBytes = endBytes;
    else this.append(buffer);
  }

  abandonRead(): void {
    const { buffer } = this.#takeReservation();
    if (buffer !== this.#slab) this.#buffers.release(buffer);
  }

  detachRead(): Buffer {
    const { buffer, startBytes, endBytes } = this.#takeReservation();
    if (buffer !== this.#slab) return buffer;
    this.#closeSegment();
    this.#startBytes = endBytes;
    this.#endBytes = endBytes;
    this.#buffers.share(buffer);
    return buffer.subarray(startBytes, endBytes);
  }

  appendRead(reply: Buffer, to: ReplyAddress): void {
    this.writeReadPrefix(reply, 0, to, reply.length - this.#readPrefixBytes);
    this.append(reply);
  }

  take(): Buffer[] {
    this.#closeSegment();
    const segments = this.#segments;
    this.#segments = [];
    this.#segmentsBytes = 0;
    return segments;
  }

  discard(): void {
    for (const buffer of this.take()) this.#buffers.release(buffer);
  }

  /** Queues a buffer as it is. */
  protected append(reply: Buffer): void {
    this.#closeSegment();
    this.#segments.push(reply);
    this.#segmentsBytes += reply.length;
  }

  /** Room in the slab for `lengthBytes` of a small reply, which are committed by this; `slab` and where. */
  protected allot(lengthBytes: number): number {
    assert(this.#reserved === undefined, 'A reply is written while a read is reserved');
    this.#makeRoom(lengthBytes);
    const at = this.#endBytes;
    this.#endBytes += lengthBytes;
    return at;
  }

  /** Where `allot` made room; another one after the next call. */
  protected get slab(): Buffer {
    return this.#slab;
  }

  #takeReservation(): Reservation {
    const reserved = this.#reserved;
    assert(reserved !== undefined, 'No read is reserved');
    this.#reserved = undefined;
    return reserved;
  }

  #closeSegment(): void {
    if (this.#endBytes === this.#startBytes) return;
    this.#segments.push(this.#slab.subarray(this.#startBytes, this.#endBytes));
    this.#buffers.share(this.#slab);
    this.#segmentsBytes += this.#endBytes - this.#startBytes;
    this.#startBytes = this.#endBytes;
  }

  #makeRoom(lengthBytes: number): void {
    const isEmpty = this.#endBytes === this.#startBytes;
    if (isEmpty && this.#endBytes > 0 && !this.#buffers.isShared(this.#slab)) this.#startAt(this.#slab);
    if (this.#endBytes + lengthBytes <= this.#slab.length) return;
    this.#closeSegment();
    this.#buffers.release(this.#slab);
    this.#startAt(this.#buffers.acquire(SLAB_BYTES));
  }

  #startAt(slab: Buffer): void {
    this.#slab = slab;
    this.#startBytes = 0;
    this.#endBytes = 0;
  }
}

export class SimpleReplyWriter extends SlabWriter {
  readonly mode = 'simple';

  constructor(buffers: BufferPool) {
    super(SIMPLE_REPLY_BYTES, buffers);
  }

  done(to: ReplyAddress): void {
    const at = this.allot(SIMPLE_REPLY_BYTES);
    writeSimpleReply(this.slab, at, 0, to);
  }

  /** A simple reply has no room for more than the number. */
  failed(failure: Failure, to: ReplyAddress): void {
    const at = this.allot(SIMPLE_REPLY_BYTES);
    writeSimpleReply(this.slab, at, failure.error, to);
  }

  appendChunks(): void {
    assert(false, 'A simple reply has no chunks');
  }

  protected writeReadPrefix(buffer: Buffer, at: number, to: ReplyAddress): void {
    writeSimpleReply(buffer, at, 0, to);
  }
}
