/**
 * Cuts a server's stream into replies and puts them together: simple replies, structured chunks, extended
 * chunks, whichever the handshake agreed on.
 *
 *     bytes -> header -> payload, or data straight into the target of a read -> last chunk -> settled
 *
 * Chunks of one reply may come in any order and between those of others. What a server must not send ends the
 * session: unknown kinds, cookies that no request has, data outside of its request or twice, a success that
 * leaves bytes or contexts out.
 *
 * Source: NBD proto.md § Simple reply message, § Structured reply chunk message, § Structured reply types; of
 * the branch `extension-ext-header` § Extended reply chunk message.
 */

import { decodeSimpleReply, readUint64, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC } from './codec.ts';
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_ERROR_BIT,
  type ChunkError,
  type ChunkHeader,
  DATA_OFFSET_BYTES,
  decodeBlockStatus,
  decodeChunkError,
  decodeExtendedChunk,
  decodeHole,
  decodeStructuredChunk,
  EXTENDED_CHUNK_BYTES,
  type ReplyMode,
  type StatusExtent,
  STRUCTURED_CHUNK_BYTES,
  STRUCTURED_CHUNK_MAGIC,
} from './codec-chunks.ts';

/** Extents by the id of their context. */
export type StatusById = ReadonlyMap<number, readonly StatusExtent[]>;

/** A request that waits for its reply. */
export interface Pending {
  /** For messages: `a read of 512 bytes at 0`. */
  readonly name: string;
  readonly offsetBytes: number;
  /** Where a read's bytes go. */
  readonly target: Buffer | undefined;
  /** The contexts that a block status must answer. */
  readonly contextIds: ReadonlySet<number> | undefined;
  resolve(statuses: StatusById): void;
  /** The server said no. */
  refuse(error: ChunkError): void;
}

/** The client as the reader sees it. */
export interface ReplySink {
  find(cookie: number): Pending | undefined;
  /** The reply is complete: the cookie is free again. */
  forget(cookie: number): void;
  violate(what: string): void;
}

/** A reply of which some came. */
interface Partial {
  readonly cookie: number;
  readonly pending: Pending;
  readonly covered: Coverage;
  readonly statuses: Map<number, readonly StatusExtent[]>;
  error: ChunkError | undefined;
}

/** Data that is arriving for a read. */
interface Filling {
  readonly partial: Partial;
  readonly target: Buffer;
  readonly isLast: boolean;
  filledBytes: number;
}

/** A chunk's payload, or the part of it that comes before data, that is arriving. */
interface Collecting {
  readonly partial: Partial;
  readonly header: ChunkHeader;
  readonly payload: Buffer;
  filledBytes: number;
}

const UINT32 = 2 ** 32;
/** Where the magic number decides which header it is. */
const MAGIC_BYTES = 4;
/** A status of 2^20 extents, more than which the text asks servers not to send. */
const STATUS_BYTES_MAX = 8 + 16 * 2 ** 20;
/** An error with the longest message, and room for fields that are not known yet. */
const ERROR_BYTES_MAX = 8192;

export class ReplyReader {
  readonly #mode: ReplyMode;
  readonly #sink: ReplySink;
  readonly #partials = new Map<number, Partial>();
  readonly #header = Buffer.alloc(EXTENDED_CHUNK_BYTES);
  #headerBytes = 0;
  #wantedBytes: number;
  #collecting: Collecting | undefined;
  #filling: Filling | undefined;
  #isOver = false;

  constructor(mode: ReplyMode, sink: ReplySink) {
    this.#mode = mode;
    this.#sink = sink;
    this.#wantedBytes = this.#firstBytes;
  }

  /** The chunk is used during the call only. */
  receive(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && !this.#isOver) {
      if (this.#filling !== undefined) at += this.#fill(this.#filling, chunk, at);
      else if (this.#collecting !== undefined) at += this.#collect(this.#collecting, chunk, at);
      else at += this.#readHeader(chunk, at);
    }
  }

  /** Takes nothing more: the session is over. */
  stop(): void {
    this.#isOver = true;
    this.#filling = undefined;
    this.#collecting = undefined;
    this.#partials.clear();
  }

  get #firstBytes(): number {
    if (this.#mode === 'extended') return EXTENDED_CHUNK_BYTES;
    return this.#mode === 'structured' ? MAGIC_BYTES : SIMPLE_REPLY_BYTES;
  }

  #readHeader(chunk: Buffer, at: number): number {
    const copied = chunk.copy(
      this.#header,
      this.#headerBytes,
      at,
      at + this.#wantedBytes - this.#headerBytes,
    );
    this.#headerBytes += copied;
    if (this.#headerBytes < this.#wantedBytes) return copied;
    if (this.#wantedBytes === MAGIC_BYTES) {
      this.#wantedBytes = this.#bytesOfMagic(this.#header.readUInt32BE(0));
      return copied;
    }
    this.#headerBytes = 0;
    const isSimple = this.#wantedBytes === SIMPLE_REPLY_BYTES;
    this.#wantedBytes = this.#firstBytes;
    if (isSimple) this.#takeSimple();
    else this.#takeChunk();
    return copied;
  }

  #bytesOfMagic(magic: number): number {
    if (magic === SIMPLE_REPLY_MAGIC) return SIMPLE_REPLY_BYTES;
    if (magic !== STRUCTURED_CHUNK_MAGIC) this.#violate('a reply does not begin with a reply magic');
    return STRUCTURED_CHUNK_BYTES;
  }

  #takeSimple(): void {
    const reply = decodeSimpleReply(this.#header, 0);
    if (reply === undefined) {
      this.#violate('a reply does not begin with the reply magic');
      return;
    }
    const partial = this.#partialOf(reply.cookieHigh * UINT32 + reply.cookieLow);
    if (partial === undefined) return;
    const { target, name } = partial.pending;
    if (reply.error !== 0) partial.error = { error: reply.error, message: '', offsetBytes: undefined };
    else if (target !== undefined && this.#mode !== 'simple') {
      this.#violate(`${name} was answered with a simple reply`);
      return;
    } else if (target !== undefined && target.length > 0) {
      partial.covered.add(0, target.length);
      this.#filling = { partial, target, isLast: true, filledBytes: 0 };
      return;
    }
    this.#finish(partial);
  }

  #takeChunk(): void {
    const header =
      this.#mode === 'extended'
        ? decodeExtendedChunk(this.#header, 0)
        : decodeStructuredChunk(this.#header, 0);
    if (header === undefined) {
      this.#violate('a reply does not begin with the reply magic');
      return;
    }
    const partial = this.#partialOf(header.cookieHigh * UINT32 + header.cookieLow);
    if (partial === undefined) return;
    const { name, offsetBytes } = partial.pending;
    if (header.offsetBytes !== undefined && header.offsetBytes !== offsetBytes) {
      this.#violate(`${name} was answered with a reply at ${header.offsetBytes}`);
      return;
    }
    if (!this.#fits(header, partial.pending)) {
      this.#violate(`${name} was answered with ${header.payloadBytes} bytes of type ${header.type}`);
      return;
    }
    const collectedBytes = header.type === CHUNK.offsetData ? DATA_OFFSET_BYTES : header.payloadBytes;
    const payload = Buffer.allocUnsafeSlow(collectedBytes);
    if (collectedBytes === 0) this.#takePayload(partial, header, payload);
    else this.#collecting = { partial, header, payload, filledBytes: 0 };
  }

  /** Whether the type may answer the request, with as many bytes. */
  #fits({ type, flags, payloadBytes }: ChunkHeader, pending: Pending): boolean {
    if ((type & CHUNK_ERROR_BIT) !== 0) return payloadBytes >= 6 && payloadBytes <= ERROR_BYTES_MAX;
    const dataBytes = pending.target?.length ?? 0;
    switch (type) {
      case CHUNK.none:
        return payloadBytes === 0 && (flags & CHUNK_DONE) !== 0;
      case CHUNK.offsetData:
        return payloadBytes > DATA_OFFSET_BYTES && payloadBytes <= DATA_OFFSET_BYTES + dataBytes;
      case CHUNK.offsetHole:
        return payloadBytes === 12 && dataBytes > 0;
      case CHUNK.blockStatus:
      case CHUNK.blockStatusExtended: {
        const wanted = this.#mode === 'extended' ? CHUNK.blockStatusExtended : CHUNK.blockStatus;
        return type === wanted && pending.contextIds !== undefined && payloadBytes <= STATUS_BYTES_MAX;
      }
      default:
        return false;
    }
  }

  #collect(collecting: Collecting, chunk: Buffer, at: number): number {
    const { partial, header, payload } = collecting;
    const copied = chunk.copy(payload, collecting.filledBytes, at);
    collecting.filledBytes += copied;
    if (collecting.filledBytes === payload.length) {
      this.#collecting = undefined;
      this.#takePayload(partial, header, payload);
    }
    return copied;
  }

  #takePayload(partial: Partial, header: ChunkHeader, payload: Buffer): void {
    const { name } = partial.pending;
    const isLast = (header.flags & CHUNK_DONE) !== 0;
    if (header.type === CHUNK.offsetData) {
      const target = this.#claim(partial, readUint64(payload, 0), header.payloadBytes - DATA_OFFSET_BYTES);
      if (target !== undefined) this.#filling = { partial, target, isLast, filledBytes: 0 };
      return;
    }
    if (header.type === CHUNK.offsetHole) {
      const hole = decodeHole(payload);
      const target = this.#claim(partial, hole.offsetBytes, hole.lengthBytes);
      if (target === undefined) return;
      target.fill(0);
    } else if ((header.type & CHUNK_ERROR_BIT) !== 0) {
      const error = decodeChunkError(header.type, payload);
      if (error === undefined) {
        this.#violate(`${name} was answered with an error whose message does not fit`);
        return;
      }
      partial.error ??= error;
    } else if (header.type !== CHUNK.none && !this.#takeStatus(partial, header.type, payload)) {
      return;
    }
    if (isLast) this.#finish(partial);
  }

  /** The part of a read's target that a content chunk is for; undefined where it has no right to it. */
  #claim(partial: Partial, offsetBytes: number, lengthBytes: number): Buffer | undefined {
    const { target, name, offsetBytes: startBytes } = partial.pending;
    const from = offsetBytes - startBytes;
    const to = from + lengthBytes;
    const isInside = target !== undefined && from >= 0 && to <= target.length && lengthBytes > 0;
    if (!isInside || !partial.covered.add(from, to)) {
      this.#violate(`${name} was answered with ${offsetBytes}+${lengthBytes}, outside of it or twice`);
      return undefined;
    }
    return target.subarray(from, to);
  }

  #takeStatus(partial: Partial, type: number, payload: Buffer): boolean {
    const { name, contextIds } = partial.pending;
    const status = decodeBlockStatus(type, payload);
    if (status === undefined || contextIds?.has(status.contextId) !== true) {
      this.#violate(`${name} was answered with a status that is malformed or of a context not asked for`);
      return false;
    }
    if (partial.statuses.has(status.contextId)) {
      this.#violate(`${name} was answered twice for context ${status.contextId}`);
      return false;
    }
    partial.statuses.set(status.contextId, status.extents);
    return true;
  }

  #fill(filling: Filling, chunk: Buffer, at: number): number {
    const copied = chunk.copy(filling.target, filling.filledBytes, at);
    filling.filledBytes += copied;
    if (filling.filledBytes === filling.target.length) {
      this.#filling = undefined;
      if (filling.isLast) this.#finish(filling.partial);
    }
    return copied;
  }

  #finish(partial: Partial): void {
    const { pending, statuses, error } = partial;
    if (error === undefined) {
      const wantedBytes = pending.target?.length ?? 0;
      const wantedStatuses = pending.contextIds?.size ?? 0;
      if (partial.covered.totalBytes !== wantedBytes || statuses.size !== wantedStatuses) {
        this.#violate(`${pending.name} was answered in part only, without an error`);
        return;
      }
    }
    this.#partials.delete(partial.cookie);
    this.#sink.forget(partial.cookie);
    if (error === undefined) pending.resolve(statuses);
    else pending.refuse(error);
  }

  #partialOf(cookie: number): Partial | undefined {
    const known = this.#partials.get(cookie);
    if (known !== undefined) return known;
    const pending = this.#sink.find(cookie);
    if (pending === undefined) {
      this.#violate(`a reply carries the cookie ${cookie}, which no request in flight has`);
      return undefined;
    }
    const partial = { cookie, pending, covered: new Coverage(), statuses: new Map(), error: undefined };
    this.#partials.set(cookie, partial);
    return partial;
  }

  #violate(what: string): void {
    this.stop();
    this.#sink.violate(what);
  }
}

/** Which bytes of a read have come: runs in order, neighbours made one, so that there are few. */
class Coverage {
  totalBytes = 0;
  readonly #runs: { from: number; to: number }[] = [];

  /** @returns false where some of the bytes had come before. */
  add(from: number, to: number): boolean {
    const runs = this.#runs;
    let index = runs.length;
    // Nearly always the last one: servers send in order.
    while (index > 0 && (runs[index - 1]?.from ?? 0) >= from) index -= 1;
    const before = runs[index - 1];
    const after = runs[index];
    if ((before !== undefined && before.to > from) || (after !== undefined && after.from < to)) return false;
    this.totalBytes += to - from;
    const joinsBefore = before?.to === from;
    const joinsAfter = after?.from === to;
    const joined = { from: joinsBefore ? before.from : from, to: joinsAfter ? after.to : to };
    runs.splice(joinsBefore ? index - 1 : index, Number(joinsBefore) + Number(joinsAfter), joined);
    return true;
  }
}
