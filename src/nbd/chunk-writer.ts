/**
 * Structured and extended replies, built in the same slab as simple ones.
 *
 * A read is one chunk: header, offset, data, with DONE set, since everything is read before anything is sent
 * and no error can follow. A success without data is a simple reply where those are allowed, because it is
 * shorter and clients read it in one go; with extended headers it is an empty chunk. A failure is an error
 * chunk that says why and, where it is known, at which offset.
 *
 * Source: NBD proto.md § Structured reply chunk message, § Structured reply types; of the branch
 * `extension-ext-header` § Extended reply chunk message.
 */

import { assert } from '../base/index.ts';
import type { BufferPool } from './buffer-pool.ts';
import { type ReplyAddress, SIMPLE_REPLY_BYTES, writeSimpleReply } from './codec.ts';
import {
  CHUNK,
  CHUNK_DONE,
  DATA_OFFSET_BYTES,
  encodeChunkError,
  EXTENDED_CHUNK_BYTES,
  type ReplyMode,
  STRUCTURED_CHUNK_BYTES,
  writeExtendedChunk,
  writeStructuredChunk,
} from './codec-chunks.ts';
import {
  type Failure,
  type ReplyChunk,
  type ReplyWriter,
  SimpleReplyWriter,
  SlabWriter,
} from './reply-writer.ts';

// Made once: a reply must not cost an object.
const NOTHING_MORE = { flags: CHUNK_DONE, type: CHUNK.none } as const;
const ALL_DATA = { flags: CHUNK_DONE, type: CHUNK.offsetData } as const;

/** The writer of a mode. */
export function createReplyWriter(mode: ReplyMode, buffers: BufferPool): ReplyWriter {
  switch (mode) {
    case 'simple':
      return new SimpleReplyWriter(buffers);
    case 'structured':
      return new StructuredReplyWriter(buffers);
    case 'extended':
      return new ExtendedReplyWriter(buffers);
  }
}

abstract class ChunkWriter extends SlabWriter {
  readonly #headerBytes: number;
  readonly #writeHeader: typeof writeStructuredChunk;

  constructor(headerBytes: number, writeHeader: typeof writeStructuredChunk, buffers: BufferPool) {
    super(headerBytes + DATA_OFFSET_BYTES, buffers);
    this.#headerBytes = headerBytes;
    this.#writeHeader = writeHeader;
  }

  failed(failure: Failure, to: ReplyAddress): void {
    const { error, message, offsetBytes } = failure;
    const payload = encodeChunkError({ error, message, offsetBytes });
    const at = this.allot(this.#headerBytes + payload.length);
    const type = offsetBytes === undefined ? CHUNK.error : CHUNK.errorOffset;
    this.#writeHeader(this.slab, at, { flags: CHUNK_DONE, type }, to, payload.length);
    payload.copy(this.slab, at + this.#headerBytes);
  }

  appendChunks(chunks: readonly ReplyChunk[], to: ReplyAddress): void {
    assert(chunks.length > 0, 'A reply has no chunks');
    const last = chunks.length - 1;
    for (const [index, { type, parts }] of chunks.entries()) {
      const payloadBytes = parts.reduce((sum, part) => sum + part.length, 0);
      const at = this.allot(this.#headerBytes);
      this.#writeHeader(this.slab, at, { flags: index === last ? CHUNK_DONE : 0, type }, to, payloadBytes);
      for (const part of parts) this.append(part);
    }
  }

  protected writeReadPrefix(buffer: Buffer, at: number, to: ReplyAddress, dataBytes: number): void {
    this.#writeHeader(buffer, at, ALL_DATA, to, DATA_OFFSET_BYTES + dataBytes);
    buffer.writeUInt32BE(to.offsetHigh, at + this.#headerBytes);
    buffer.writeUInt32BE(to.offsetLow, at + this.#headerBytes + 4);
  }
}

class StructuredReplyWriter extends ChunkWriter {
  readonly mode = 'structured';

  constructor(buffers: BufferPool) {
    super(STRUCTURED_CHUNK_BYTES, writeStructuredChunk, buffers);
  }

  done(to: ReplyAddress): void {
    const at = this.allot(SIMPLE_REPLY_BYTES);
    writeSimpleReply(this.slab, at, 0, to);
  }
}

class ExtendedReplyWriter extends ChunkWriter {
  readonly mode = 'extended';

  constructor(buffers: BufferPool) {
    super(EXTENDED_CHUNK_BYTES, writeExtendedChunk, buffers);
  }

  done(to: ReplyAddress): void {
    const at = this.allot(EXTENDED_CHUNK_BYTES);
    writeExtendedChunk(this.slab, at, NOTHING_MORE, to, 0);
  }
}
