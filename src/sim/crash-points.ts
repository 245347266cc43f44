/** The points at which a simulation cuts the power, by name. */

import { SYNC_NAMES, type SyncName } from '../base/index.ts';

/** Files of LMDB, whose commits may or may not have reached the disk. */
const COMMITTED = ['volume-state', 'catalog', 'set'] as const;
/**
 * `before` a sync: asked for and not issued. `after`: durable, and nobody has heard of it. `commit`: in the page
 * cache. `step`: between two things that a client does. `end`: after everything.
 */
export type CrashPoint =
  `${'before' | 'after'} ${SyncName}` | `commit ${(typeof COMMITTED)[number]}` | 'step' | 'end';

export const CRASH_POINTS: readonly CrashPoint[] = [
  ...SYNC_NAMES.flatMap((name): CrashPoint[] => [`before ${name}`, `after ${name}`]),
  ...COMMITTED.map((name): CrashPoint => `commit ${name}`),
  'step',
  'end',
];
