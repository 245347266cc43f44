/**
 * Packs the tracks of a frame and unpacks them again. Compression goes into a buffer of our own, sized for
 * the worst case, and decompression into one of exactly the size that the frame's header gives: a damaged
 * frame can neither make memory grow nor come back longer or shorter than it was.
 */

import zstd from 'zstd-napi/binding.js';
import { CorruptionError, LIMITS, messageOf } from '../base/index.ts';
import { CHECKSUM_BYTES } from '../records/index.ts';
import { decodeFrameHeader, FRAME_HEADER_BYTES, type SetCodec } from './set-format.ts';

/** The level that keeps up with a disk; higher ones cost far more time than they save. */
export const LEVEL_DEFAULT = 1;

/** What a thread keeps of memory for frames. */
const SPARE_COUNT_MAX = 4;

/** How the frames of a set are packed: not at all, or by zstd at a level, of which reading needs to know nothing. */
export type Compression = { readonly codec: 'none' } | { readonly codec: 'zstd'; readonly level?: number };

/**
 * What zstd's level 1 gets for frames of 1 MiB of disk content: 3 % smaller at the same speed. The window is the
 * frame, the table is larger than the level's own, and shorter matches are not worth their time.
 */
const DEFAULT_LEVEL_PARAMETERS = [
  [zstd.CParameter.windowLog, 20],
  [zstd.CParameter.hashLog, 15],
  [zstd.CParameter.minMatch, 6],
] as const;

/** The same for the fast levels, below 0: a tenth faster at the same size. Tables stay in the processor's first cache. */
const FAST_LEVEL_PARAMETERS = [
  [zstd.CParameter.windowLog, 20],
  [zstd.CParameter.hashLog, 12],
  [zstd.CParameter.minMatch, 7],
] as const;

function parametersOf(level: number) {
  if (level < 0) return FAST_LEVEL_PARAMETERS;
  return level === LEVEL_DEFAULT ? DEFAULT_LEVEL_PARAMETERS : [];
}

export function compressionOf(codec: SetCodec, level: number | undefined): Compression {
  return codec === 'zstd' && level !== undefined ? { codec, level } : { codec };
}

/** Beside the content: the frame's header before it, and what LMDB's module puts behind it. */
const FRAME_ROOM_BYTES = FRAME_HEADER_BYTES + CHECKSUM_BYTES;

/** A buffer in which content of at most that many bytes becomes a frame where it lies. */
export function frameRoom(contentBytesMax: number): Buffer {
  return Buffer.allocUnsafeSlow(FRAME_ROOM_BYTES + contentBytesMax);
}

/** The content's part of such a buffer, or of its beginning. */
export function frameContent(frame: Buffer): Buffer {
  return frame.subarray(FRAME_HEADER_BYTES, -CHECKSUM_BYTES);
}

/** The beginning of such a buffer that holds so many bytes of content, with the room behind them. */
export function frameOf(room: Buffer, contentBytes: number): Buffer {
  return room.subarray(0, FRAME_ROOM_BYTES + contentBytes);
}

export class FrameCompressor {
  readonly #context = new zstd.CCtx();
  readonly #target = frameRoom(zstd.compressBound(LIMITS.frameBytesMax));

  /** @param level -7 (fast) to 19 (small). */
  constructor(level: number) {
    this.#context.setParameter(zstd.CParameter.compressionLevel, level);
    for (const [parameter, value] of parametersOf(level)) this.#context.setParameter(parameter, value);
  }

  /** The compressed bytes with a frame's room around them, valid until the next call; undefined where not fewer. */
  compress(raw: Buffer): Buffer | undefined {
    const bytes = this.#context.compress2(frameContent(this.#target), raw);
    return bytes < raw.length ? frameOf(this.#target, bytes) : undefined;
  }
}

/** A frame as it is stored, for copying without unpacking. */
export interface PackedFrame {
  readonly codec: SetCodec;
  /** Positions in the frame; some may hold what nobody wants any more. */
  readonly trackCount: number;
  readonly rawBytes: number;
  /** The caller's. */
  readonly payload: Buffer;
  /** The tracks in it that are meant. */
  readonly places: readonly { readonly track: number; readonly position: number; readonly hash: Buffer }[];
}

export interface UnpackedFrame {
  readonly codec: SetCodec;
  readonly trackCount: number;
  /** The tracks in the order of arrival, each of the full track size; a view of the value where it was not compressed. */
  readonly raw: Buffer;
}

/** The frame's header and what it packs. @throws {CorruptionError} where they do not fit each other. */
export function readPacked(
  value: Buffer,
  trackSizeBytes: number,
  where: string,
): Omit<PackedFrame, 'places'> {
  const { codec, trackCount, rawBytes } = decodeFrameHeader(value, where);
  const payload = value.subarray(FRAME_HEADER_BYTES);
  if (trackCount === 0 || rawBytes !== trackCount * trackSizeBytes || rawBytes > LIMITS.frameBytesMax) {
    throw corrupt(where, `it says ${rawBytes} bytes for ${trackCount} tracks`);
  }
  if (codec === 'none' && payload.length !== rawBytes) {
    throw corrupt(where, `it holds ${payload.length} of ${rawBytes} bytes`);
  }
  return { codec, trackCount, rawBytes, payload };
}

/** Of this thread: making one for each frame costs as much as a tenth of the frame. */
let decompressor: zstd.DCtx | undefined;

/** Memory of frames that nobody needs any more, of this thread. */
const spare: ArrayBuffer[] = [];

/**
 * Gives memory back for a frame that is unpacked later: memory that is touched for the first time is slow, and the
 * garbage collector has none of this to look after.
 *
 * @param room from a frame of `unpackFrame`; nobody may use it any more.
 */
export function reuseFrameRoom(room: ArrayBuffer): void {
  if (spare.length < SPARE_COUNT_MAX) spare.push(room);
}

function roomFor(bytes: number): Buffer {
  const found = spare.findIndex(({ byteLength }) => byteLength === bytes);
  const [room] = found === -1 ? [] : spare.splice(found, 1);
  return room === undefined ? Buffer.allocUnsafeSlow(bytes) : Buffer.from(room);
}

/** @throws {CorruptionError} where the frame is not what its header says. */
export function unpackFrame(value: Buffer, trackSizeBytes: number, where: string): UnpackedFrame {
  const { codec, trackCount, rawBytes, payload } = readPacked(value, trackSizeBytes, where);
  if (codec === 'none') return { codec, trackCount, raw: payload };
  const raw = roomFor(rawBytes);
  let bytes: number;
  try {
    decompressor ??= new zstd.DCtx();
    bytes = decompressor.decompress(raw, payload);
  } catch (error) {
    throw corrupt(where, `it cannot be decompressed (${messageOf(error)})`);
  }
  if (bytes !== rawBytes) throw corrupt(where, `it decompressed to ${bytes} of ${rawBytes} bytes`);
  return { codec, trackCount, raw };
}

function corrupt(where: string, what: string): CorruptionError {
  return new CorruptionError(`Frame ${where} is damaged: ${what}`, { where });
}
