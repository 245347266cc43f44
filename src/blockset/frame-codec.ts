/**
 * Packs the tracks of a frame and unpacks them again. Compression goes into a buffer of our own, sized for
 * the worst case, and decompression into one of exactly the size that the frame's header gives: a damaged
 * frame can neither make memory grow nor come back longer or shorter than it was.
 */

import zstd from 'zstd-napi/binding.js';
import { CorruptionError, LIMITS, messageOf } from '../base/index.ts';
import { decodeFrameHeader, FRAME_HEADER_BYTES, type SetCodec } from './set-format.ts';

/** The level that keeps up with a disk; higher ones cost far more time than they save. */
const LEVEL = 1;

export class FrameCompressor {
  readonly #context = new zstd.CCtx();
  readonly #target = Buffer.allocUnsafeSlow(zstd.compressBound(LIMITS.frameBytesMax));

  /** The compressed bytes, valid until the next call, or undefined where they would not be fewer. */
  compress(raw: Buffer): Buffer | undefined {
    const bytes = this.#context.compress(this.#target, raw, LEVEL);
    return bytes < raw.length ? this.#target.subarray(0, bytes) : undefined;
  }
}

export interface UnpackedFrame {
  readonly codec: SetCodec;
  readonly trackCount: number;
  /** The tracks in the order of arrival, each of the full track size; a view of the value where it was not compressed. */
  readonly raw: Buffer;
}

/** @throws {CorruptionError} where the frame is not what its header says. */
export function unpackFrame(value: Buffer, trackSizeBytes: number, where: string): UnpackedFrame {
  const { codec, trackCount, rawBytes } = decodeFrameHeader(value, where);
  const payload = value.subarray(FRAME_HEADER_BYTES);
  if (trackCount === 0 || rawBytes !== trackCount * trackSizeBytes || rawBytes > LIMITS.frameBytesMax) {
    throw corrupt(where, `it says ${rawBytes} bytes for ${trackCount} tracks`);
  }
  if (codec === 'none') {
    if (payload.length !== rawBytes) throw corrupt(where, `it holds ${payload.length} of ${rawBytes} bytes`);
    return { codec, trackCount, raw: payload };
  }
  const raw = Buffer.allocUnsafeSlow(rawBytes);
  let bytes: number;
  try {
    bytes = zstd.decompress(raw, payload);
  } catch (error) {
    throw corrupt(where, `it cannot be decompressed (${messageOf(error)})`);
  }
  if (bytes !== rawBytes) throw corrupt(where, `it decompressed to ${bytes} of ${rawBytes} bytes`);
  return { codec, trackCount, raw };
}

function corrupt(where: string, what: string): CorruptionError {
  return new CorruptionError(`Frame ${where} is damaged: ${what}`, { where });
}
