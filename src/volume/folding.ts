/**
 * Which boundaries a volume keeps: those that somebody needs, and a few of the newest. All others fold.
 *
 * Nothing is lost by folding one too many: it is answered with more tracks. So this errs on the side of few.
 */

import { LIMITS } from '../base/index.ts';
import type { EpochHistory } from './epoch-history.ts';

export interface Needs {
  /** Epochs whose points are not recorded yet. */
  readonly unrecorded: ReadonlySet<number>;
  /** Points whose answers must stay what they are, those first that would be missed most. */
  readonly points: Iterable<string>;
}

/** @returns the numbers of the epochs whose points stay boundaries, for `EpochHistory.fold`. */
export function boundariesToKeep(epochs: EpochHistory, { unrecorded, points }: Needs): Set<number> {
  const kept = new Set<number>();
  const { closed } = epochs;
  for (const [index, { number }] of closed.entries()) {
    const next = closed[index + 1];
    const isRecent = index >= closed.length - LIMITS.pointRecentCount;
    // Nor does the one before it fold into it: the tracks would be recorded nowhere until it is.
    const isBeforeUnrecorded = next !== undefined && unrecorded.has(next.number);
    if (isRecent || unrecorded.has(number) || isBeforeUnrecorded) kept.add(number);
  }
  for (const point of points) {
    if (kept.size >= LIMITS.pointCountMax) break;
    const number = epochs.boundaryOf(point);
    if (number !== undefined) kept.add(number);
  }
  return kept;
}
