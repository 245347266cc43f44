/**
 * Digests of what was written, piece by piece, for sources that are read once and cannot be asked again what a track
 * should be. About a hundred bytes of memory for each track.
 */

import { digest } from '../records/index.ts';
import type { RestoreTarget, TrackPiece } from './planner.ts';

export class PieceDigests {
  readonly #byTarget = new Map<RestoreTarget, Map<number, Buffer>>();

  /** @param bytes of the piece; not kept. */
  note({ target, targetOffsetBytes }: TrackPiece, bytes: Buffer): void {
    let digests = this.#byTarget.get(target);
    if (digests === undefined) {
      digests = new Map();
      this.#byTarget.set(target, digests);
    }
    digests.set(targetOffsetBytes, digest(bytes));
  }

  /** Undefined for a piece that was not noted. */
  of({ target, targetOffsetBytes }: TrackPiece): Buffer | undefined {
    return this.#byTarget.get(target)?.get(targetOffsetBytes);
  }
}
