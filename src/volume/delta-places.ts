/**
 * Where a volume keeps the second copy of what is not yet backed up, as its state records it: the members of its delta
 * store (seeds/1; DESIGN section 4, "Deltas").
 */

import type { DeltaPlace } from '../delta/index.ts';

export interface DeltasRecord {
  /** At least one. A directory, absolute, or the URI of a device. */
  readonly places: readonly DeltaPlace[];
  /** For how long what is backed up stays in the logs, in milliseconds; not at all where left out. */
  readonly keepLogMs?: number;
  /**
   * What the volume was where the first log begins: the point of its content; '' where it was zeroes throughout; an
   * id that no set has where nobody knows.
   */
  readonly since: string;
}

/** What is kept of a delta store that is used. */
export interface DeltasUse {
  /** Members that must not be believed before they were made again. */
  readonly lost: readonly LostDelta[];
  /** Points at which a readable chain has the volume, the last one at the end. */
  readonly readable: readonly string[];
}

/** A member that must not be believed: it lacks what others have. */
export interface LostDelta {
  readonly place: string;
  readonly reason: string;
  readonly atMs: number;
}
