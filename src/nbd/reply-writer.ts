/**
 * Collects the replies of a loop turn and hands them over in one go.
 *
 * Replies are built in place in a large buffer, a slab: a read asks for room for its reply, the device reads
 * straight into it, and committing writes the header in front. Nothing is copied, and one system call sends
 * all replies of a turn. A read that has to wait takes its piece of the slab with it and comes back with
 * `appendRead`; large reads get a buffer of their own. Slabs are never reused while a socket may still hold
 * them, they are left to the garbage collector.
 *
 * This is the only module that knows the layout of replies: `SimpleReplyWriter` writes simple replies (NBD
 * proto.md § Simple reply message), structured ones become another writer of the same interface.
 */

import { assert } from '../base/index.ts';
import { SIMPLE_REPLY_BYTES, writeSimpleReply } from './codec.ts';

export interface ReplyWriter {
  /** Bytes that were committed and not yet handed over. */
  readonly queuedBytes: number;
  /** A reply without data. */
  status(error: number, cookieHigh: number, cookieLow: number): void;
  /** Room for a read's data. One at a time: the next call is one of the three below. */
  reserveRead(lengthBytes: number): Buffer;
  commitRead(cookieHigh: number, cookieLow: number): void;
  abandonRead(): void;
  /** The reserved room leaves the writer, for a read that goes on after its call. */
  detachRead(): Buffer;
  /** Queues a detached reply whose data is there. */
  appendRead(reply: Buffer, cookieHigh: number, cookieLow: number): void;
  /** The buffers to send, in order; they belong to the taker. */
  take(): Buffer[];
  /** Forgets everything queued: nobody is there to read it. */
  discard(): void;
}

const SLAB_BYTES = 128 * 1024;
/** A reply larger than this gets its own buffer, so that a slab's rest is not thrown away for it. */
const SLAB_REPLY_BYTES_MAX = SLAB_BYTES / 4;

interface Reservation {
  readonly buffer: Buffer;
  readonly startBytes: number;
  readonly endBytes: number;
}

export class SimpleReplyWriter implements ReplyWriter {
  #segments: Buffer[] = [];
  #segmentsBytes = 0;
  #slab: Buffer = Buffer.alloc(0);
  /** The slab holds committed replies from here ... */
  #startBytes = 0;
  /** ... to here. */
  #endBytes = 0;
  #reserved: Reservation | undefined;

  get queuedBytes(): number {
    return this.#segmentsBytes + this.#endBytes - this.#startBytes;
  }

  status(error: number, cookieHigh: number, cookieLow: number): void {
    assert(this.#reserved === undefined, 'A reply is written while a read is reserved');
    this.#makeRoom(SIMPLE_REPLY_BYTES);
    writeSimpleReply(this.#slab, this.#endBytes, error, cookieHigh, cookieLow);
    this.#endBytes += SIMPLE_REPLY_BYTES;
  }

  reserveRead(lengthBytes: number): Buffer {
    assert(this.#reserved === undefined, 'A read is reserved while another one is');
    const replyBytes = SIMPLE_REPLY_BYTES + lengthBytes;
    if (replyBytes > SLAB_REPLY_BYTES_MAX) {
      const buffer = Buffer.allocUnsafeSlow(replyBytes);
      this.#reserved = { buffer, startBytes: 0, endBytes: replyBytes };
      return buffer.subarray(SIMPLE_REPLY_BYTES);
    }
    this.#makeRoom(replyBytes);
    const startBytes = this.#endBytes;
    this.#reserved = { buffer: this.#slab, startBytes, endBytes: startBytes + replyBytes };
    return this.#slab.subarray(startBytes + SIMPLE_REPLY_BYTES, startBytes + replyBytes);
  }

  commitRead(cookieHigh: number, cookieLow: number): void {
    const { buffer, startBytes, endBytes } = this.#takeReservation();
    writeSimpleReply(buffer, startBytes, 0, cookieHigh, cookieLow);
    if (buffer === this.#slab) this.#endBytes = endBytes;
    else this.#append(buffer);
  }

  abandonRead(): void {
    this.#takeReservation();
  }

  detachRead(): Buffer {
    const { buffer, startBytes, endBytes } = this.#takeReservation();
    if (buffer !== this.#slab) return buffer;
    this.#closeSegment();
    this.#startBytes = endBytes;
    this.#endBytes = endBytes;
    return buffer.subarray(startBytes, endBytes);
  }

  appendRead(reply: Buffer, cookieHigh: number, cookieLow: number): void {
    writeSimpleReply(reply, 0, 0, cookieHigh, cookieLow);
    this.#append(reply);
  }

  take(): Buffer[] {
    this.#closeSegment();
    const segments = this.#segments;
    this.#segments = [];
    this.#segmentsBytes = 0;
    return segments;
  }

  discard(): void {
    this.take();
  }

  #takeReservation(): Reservation {
    const reserved = this.#reserved;
    assert(reserved !== undefined, 'No read is reserved');
    this.#reserved = undefined;
    return reserved;
  }

  #append(reply: Buffer): void {
    this.#closeSegment();
    this.#segments.push(reply);
    this.#segmentsBytes += reply.length;
  }

  #closeSegment(): void {
    if (this.#endBytes === this.#startBytes) return;
    this.#segments.push(this.#slab.subarray(this.#startBytes, this.#endBytes));
    this.#segmentsBytes += this.#endBytes - this.#startBytes;
    this.#startBytes = this.#endBytes;
  }

  #makeRoom(lengthBytes: number): void {
    if (this.#endBytes + lengthBytes <= this.#slab.length) return;
    this.#closeSegment();
    this.#slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
    this.#startBytes = 0;
    this.#endBytes = 0;
  }
}
