/**
 * Cuts a client's stream into request headers and payloads.
 *
 * A header or payload that is whole in a chunk is taken in place, without a copy; one that arrives in pieces is
 * collected. There is one current request; its payload must be taken or skipped before the next header is read,
 * which the transmission sees to.
 *
 * Source: NBD proto.md § Request message; of the branch `extension-ext-header` the same section.
 */

import type { BufferPool } from './buffer-pool.ts';
import { COMMAND, COMMAND_FLAG, decodeRequest, emptyRequest, REQUEST_BYTES, type Request } from './codec.ts';
import { decodeExtendedRequest, EXTENDED_REQUEST_BYTES } from './codec-chunks.ts';

export class RequestReader {
  /** The current request. */
  readonly request: Request = emptyRequest();
  /** What follows the current request's header and was not taken yet. */
  payloadBytes = 0;
  readonly #buffers: BufferPool;
  readonly #isExtended: boolean;
  readonly #requestBytes: number;
  /** The chunk being read, and how far. */
  #input: Buffer | undefined;
  #atBytes = 0;
  /** A header that arrives in pieces. */
  readonly #header = Buffer.alloc(EXTENDED_REQUEST_BYTES);
  #headerBytes = 0;
  #payload: Buffer | undefined;
  #payloadFilledBytes = 0;

  constructor(isExtended: boolean, buffers: BufferPool) {
    this.#buffers = buffers;
    this.#isExtended = isExtended;
    this.#requestBytes = isExtended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
  }

  /** Whether a chunk is being read, though all of it may be taken. */
  get hasInput(): boolean {
    return this.#input !== undefined;
  }

  get leftBytes(): number {
    return this.#input === undefined ? 0 : this.#input.length - this.#atBytes;
  }

  /** The next chunk, after the one before was dropped. It is the reader's from now on. */
  give(chunk: Buffer): void {
    this.#input = chunk;
    this.#atBytes = 0;
  }

  dropInput(): void {
    this.#input = undefined;
  }

  /** Forgets a payload that was being collected. Its memory may still be where the socket reads to. */
  dropPayload(): void {
    if (this.#payload !== undefined) this.#buffers.forget(this.#payload);
    this.#payload = undefined;
  }

  /** Where the rest of a payload belongs that is being collected: the socket may be read into it. */
  get payloadRest(): Buffer | undefined {
    return this.#payload?.subarray(this.#payloadFilledBytes);
  }

  /** The next `lengthBytes` of the rest were put in place. */
  filledPayload(lengthBytes: number): void {
    this.#payloadFilledBytes += lengthBytes;
  }

  /** @returns undefined where more bytes are needed, false where the stream is lost. */
  readHeader(): boolean | undefined {
    const input = this.#input;
    if (input === undefined) return undefined;
    const wantedBytes = this.#requestBytes;
    const at = this.#atBytes;
    if (this.#headerBytes === 0 && input.length - at >= wantedBytes) {
      this.#atBytes = at + wantedBytes;
      return this.#decode(input, at);
    }
    const copied = input.copy(this.#header, this.#headerBytes, at, at + wantedBytes - this.#headerBytes);
    this.#headerBytes += copied;
    this.#atBytes += copied;
    if (this.#headerBytes < wantedBytes) return undefined;
    this.#headerBytes = 0;
    return this.#decode(this.#header, 0);
  }

  /** The payload as part of the chunk, where all of it is there and none was collected; it pins the chunk. */
  takePayloadInPlace(): Buffer | undefined {
    const { payloadBytes } = this;
    if (this.#input === undefined || this.#payload !== undefined || this.leftBytes < payloadBytes)
      return undefined;
    const payload = this.#input.subarray(this.#atBytes, this.#atBytes + payloadBytes);
    this.#atBytes += payloadBytes;
    this.payloadBytes = 0;
    return payload;
  }

  /** The payload once all of it is there, in a buffer of the pool that the caller gives back. */
  collectPayload(): Buffer | undefined {
    this.#payload ??= this.#buffers.acquire(this.payloadBytes);
    const payload = this.#payload;
    if (this.#input !== undefined) {
      const copied = this.#input.copy(payload, this.#payloadFilledBytes, this.#atBytes);
      this.#atBytes += copied;
      this.#payloadFilledBytes += copied;
    }
    if (this.#payloadFilledBytes < payload.length) return undefined;
    this.#payload = undefined;
    this.#payloadFilledBytes = 0;
    this.payloadBytes = 0;
    return payload;
  }

  /** @returns whether all of the payload is skipped. */
  skipPayload(): boolean {
    const skipped = Math.min(this.leftBytes, this.payloadBytes);
    this.#atBytes += skipped;
    this.payloadBytes -= skipped;
    return this.payloadBytes === 0;
  }

  #decode(buffer: Buffer, at: number): boolean {
    const { request } = this;
    if (this.#isExtended) {
      const isRequest = decodeExtendedRequest(buffer, at, request);
      const hasPayload = (request.flags & COMMAND_FLAG.payloadLength) !== 0;
      this.payloadBytes = hasPayload ? request.lengthBytes : 0;
      return isRequest;
    }
    const isRequest = decodeRequest(buffer, at, request);
    this.payloadBytes = request.type === COMMAND.write ? request.lengthBytes : 0;
    return isRequest;
  }
}
