/**
 * What a session's set is to build on: the best of the points that the store offers and the volume still knows.
 *
 *     full            on nothing
 *     incremental     on the newest point of any level
 *     differential    on the newest full set's point
 *     auto            as incremental, and full where the chain has become long
 *
 * Where nothing fits a full set is taken and the reason said: a backup that was asked for is never refused for
 * want of a base. How long a chain may become is a matter of `auto` alone.
 */

import { LIMITS } from '../base/index.ts';
import type { SetLevel } from './session.ts';

/** A point that the store has a complete, undamaged chain for. */
export interface BaseCandidate {
  readonly point: string;
  /** Whether a set of this point needs no other. */
  readonly isFull: boolean;
  /** Sets that its content is read from; 1 for a full one. */
  readonly chainSetCount: number;
}

export interface ChosenBase {
  readonly level: SetLevel;
  /** Undefined for a full set. */
  readonly base: string | undefined;
  /** Why it is a full one, where the request was not for one. */
  readonly reason: string | undefined;
  /** The point of the newest full set that the store has and the volume knows. */
  readonly lastFull: string | undefined;
}

export interface BaseWish {
  readonly level: 'auto' | SetLevel;
  /** The best base first. */
  readonly candidates: readonly BaseCandidate[];
  /** Why there are no candidates, where the store knows. */
  readonly reason?: string;
  readonly fullEvery?: number;
}

export interface KnownPoints {
  /** Whether the volume knows the point. */
  readonly knows: (point: string) => boolean;
  /** The last full set's point by the volume's own record. */
  readonly lastFull: string | undefined;
}

export function chooseBase(wish: BaseWish, known: KnownPoints): ChosenBase {
  const { level, candidates, fullEvery = LIMITS.chainSetCountDefault } = wish;
  const usable = candidates.filter(({ point }) => known.knows(point));
  const newestFull = usable.find(({ isFull }) => isFull)?.point;
  const lastFull = newestFull ?? known.lastFull;
  const full = (reason: string | undefined): ChosenBase => ({
    level: 'full',
    base: undefined,
    reason,
    lastFull,
  });
  if (level === 'full') return full(undefined);
  const newest = usable[0];
  const base = level === 'differential' ? newestFull : newest?.point;
  if (newest === undefined || base === undefined) return full(wish.reason ?? whyNone(wish));
  if (level === 'auto' && newest.chainSetCount >= fullEvery)
    return full(`the chain has ${newest.chainSetCount} sets, and a full one is taken every ${fullEvery}`);
  return { level: level === 'differential' ? level : 'incremental', base, reason: undefined, lastFull };
}

function whyNone({ level, candidates }: BaseWish): string {
  if (candidates.length === 0) return 'the store has no set of this volume yet';
  if (level !== 'differential') return 'the volume knows no point that the store has a set of';
  return candidates.some(({ isFull }) => isFull)
    ? 'the volume knows no point that the store has a full set of'
    : 'the store has no full set of this volume';
}
