/**
 * The requests that are answered in several chunks or read more than they send: block status, large reads
 * that leave out zeroes, and the cache hint.
 *
 * All of them are promises, off the path of small requests. What they hold in memory is bounded by the
 * limits and counted by the transmission before they begin.
 *
 * Source: NBD proto.md § Structured reply types, § Request types.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { allFinished, AssertionError, MIB } from '../base/index.ts';
import type { BlockDevice, DeviceExtent } from '../device/index.ts';
import { COMMAND, COMMAND_FLAG, type Request, writeUint64 } from './codec.ts';
import {
  CHUNK,
  DATA_OFFSET_BYTES,
  encodeBlockStatus,
  encodeExtendedBlockStatus,
  encodeHole,
  type ReplyMode,
} from './codec-chunks.ts';
import type { NbdLimits } from './limits.ts';
import { statusOf } from './meta-context.ts';
import type { Operation } from './operation.ts';
import type { ReplyChunk } from './reply-writer.ts';

export interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** What is read at once for a cache hint. */
const CACHE_PIECE_BYTES = MIB;
/** More runs than this are not worth their chunks: the read is then sent as it is. */
const SPARSE_RUN_COUNT_MAX = 16;
/** An extent in a reply of extended headers. */
const EXTENT_BYTES = 16;

/** The bytes that a request will hold in memory while it runs, its reply's included. */
export function heldBytesOf(
  request: Readonly<Request>,
  blockSizeBytes: number,
  contextCount: number,
  limits: NbdLimits,
): number {
  const { type, flags, lengthBytes } = request;
  switch (type) {
    case COMMAND.read:
    case COMMAND.write:
      return lengthBytes;
    case COMMAND.cache:
      return Math.min(lengthBytes, CACHE_PIECE_BYTES);
    case COMMAND.blockStatus: {
      const extentCountMax = Math.min(lengthBytes / blockSizeBytes, extentCountMaxOf(flags, limits));
      return extentCountMax * EXTENT_BYTES * contextCount;
    }
    default:
      return 0;
  }
}

/** How many extents a block status with these flags may answer. */
function extentCountMaxOf(flags: number, limits: NbdLimits): number {
  return (flags & COMMAND_FLAG.requestOne) === 0 ? limits.extentCountMax : 1;
}

/** NBD_CMD_BLOCK_STATUS: one chunk for each context the operation asks, left in the operation. */
export async function readStatus(
  device: BlockDevice,
  operation: Operation,
  limits: NbdLimits,
  mode: ReplyMode,
): Promise<void> {
  const isExtended = mode === 'extended';
  const bounds = {
    offsetBytes: operation.offsetBytes,
    lengthBytes: operation.lengthBytes,
    countMax: extentCountMaxOf(operation.flags, limits),
    blockSizeBytes: device.blockSizeBytes,
  };
  operation.chunks = await allFinished(
    operation.contexts.map(async ({ id, context }) => {
      const status = { contextId: id, extents: await statusOf(context, bounds) };
      return isExtended
        ? { type: CHUNK.blockStatusExtended, parts: [encodeExtendedBlockStatus(status)] }
        : { type: CHUNK.blockStatus, parts: [encodeBlockStatus(status)] };
    }),
  );
}

/**
 * A large read: zeroes the device knows of become hole chunks, everything else data chunks.
 *
 * The extents are asked for first, so a write that comes between is concurrent with this read. Where they
 * cannot be had, all is read.
 */
export async function readSparse(device: BlockDevice, range: Range): Promise<readonly ReplyChunk[]> {
  const runs = await sparseRuns(device, range);
  return allFinished(
    runs.map(async (run) => {
      if (run.zero) return { type: CHUNK.offsetHole, parts: [encodeHole(run)] };
      const payload = Buffer.allocUnsafeSlow(DATA_OFFSET_BYTES + run.lengthBytes);
      writeUint64(payload, run.offsetBytes, 0);
      await device.read(payload.subarray(DATA_OFFSET_BYTES), run.offsetBytes);
      return { type: CHUNK.offsetData, parts: [payload] };
    }),
  );
}

interface Run extends Range {
  readonly zero: boolean;
}

async function sparseRuns(device: BlockDevice, range: Range): Promise<readonly Run[]> {
  const whole = [{ ...range, zero: false }];
  let extents: readonly DeviceExtent[];
  try {
    extents = await device.extents(range.offsetBytes, range.lengthBytes);
  } catch (error) {
    if (error instanceof AssertionError) throw error;
    // The read itself says what is wrong, if something is.
    return whole;
  }
  const runs: Run[] = [];
  for (const { offsetBytes, lengthBytes, zero } of extents) {
    const last = runs.at(-1);
    if (last?.zero === zero) runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
    else runs.push({ offsetBytes, lengthBytes, zero });
    if (runs.length > SPARSE_RUN_COUNT_MAX) return whole;
  }
  return runs;
}

/** NBD_CMD_CACHE: reads the range, up to `bytesMax`, and throws it away; what is below keeps it if it wants. */
export async function readThrough(device: BlockDevice, range: Range, bytesMax: number): Promise<void> {
  const totalBytes = Math.min(range.lengthBytes, bytesMax - (bytesMax % device.blockSizeBytes));
  const buffer = Buffer.allocUnsafeSlow(Math.min(totalBytes, CACHE_PIECE_BYTES));
  for (let at = 0; at < totalBytes; at += buffer.length) {
    if (at > 0) await nextTurn();
    await device.read(buffer.subarray(0, Math.min(buffer.length, totalBytes - at)), range.offsetBytes + at);
  }
}
