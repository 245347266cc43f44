/** What a session came to, from its plan and what its set counted. */

import type { SetCounters } from '../blockset/index.ts';
import type { SessionPlan } from '../volume/index.ts';
import type { SetOutcome } from './messages.ts';
import type { SessionSource } from './source.ts';

export function outcomeOf(
  { volume }: SessionSource,
  { level, reason, point, base, freezeMs }: SessionPlan,
  made: { readonly set: string; readonly counters: SetCounters; readonly lanes: number },
): Omit<SetOutcome, 'durationMs'> {
  const { tracks, bytesRead, bytesStored, unchanged, aliases, diverted } = made.counters;
  return {
    set: made.set,
    volume: volume.name,
    level,
    reason,
    point,
    base,
    tracks,
    bytesRead,
    bytesStored,
    unchanged,
    aliases,
    lanes: made.lanes,
    diverted,
    freezeMs,
  };
}
