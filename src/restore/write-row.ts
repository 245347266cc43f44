/**
 * Bytes that lie in a row in memory and on a target, so that one write takes them.
 *
 * The tracks of a frame are unpacked into one buffer and mostly follow each other on the target too: a write for each
 * of them would cost a call of the thread pool for 64 KiB.
 */

import { LIMITS } from '../base/index.ts';
import type { RestoreTarget, TrackPiece } from './planner.ts';

export class WriteRow {
  readonly target: RestoreTarget;
  readonly targetOffsetBytes: number;
  /** Not copied; not to be changed until it is written. */
  readonly bytes: Buffer;

  constructor(piece: Pick<TrackPiece, 'target' | 'targetOffsetBytes'>, bytes: Buffer) {
    this.target = piece.target;
    this.targetOffsetBytes = piece.targetOffsetBytes;
    this.bytes = bytes;
  }

  /** The row with one more piece at its end; undefined where that does not follow on both sides, or is too much. */
  with(piece: Pick<TrackPiece, 'target' | 'targetOffsetBytes'>, bytes: Buffer): WriteRow | undefined {
    const lengthBytes = this.bytes.length + bytes.length;
    const follows =
      piece.target === this.target &&
      piece.targetOffsetBytes === this.targetOffsetBytes + this.bytes.length &&
      bytes.buffer === this.bytes.buffer &&
      bytes.byteOffset === this.bytes.byteOffset + this.bytes.length &&
      lengthBytes <= LIMITS.restoreWriteBytesMax;
    if (!follows) return undefined;
    return new WriteRow(this, Buffer.from(bytes.buffer, this.bytes.byteOffset, lengthBytes));
  }
}
