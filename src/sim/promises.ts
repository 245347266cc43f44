/** The promises that a simulation checks, by name, and how a broken one is said. */

import { messageOf } from '../base/index.ts';

/** Of DESIGN section 4, each with its number there, and those without which none of them could be checked. */
export const PROMISES = {
  'exact points': 'promise 1: a snapshot or backup holds exactly the bytes of its freeze',
  'flushed survives': 'promise 2: what was flushed, or written with FUA, survives a power cut',
  'changes are known': 'promise 3: changedSince misses no track',
  'failure loses nothing':
    'promise 4: a backup that fails loses no change, and none is acknowledged too early',
  'complete or invisible': 'promise 5: a set is complete or invisible, and stays once it is acknowledged',
  'nothing new is lost':
    'promise 6: what is not in a readable chain is in the deltas, which give back every flushed write',
  'restored as saved': 'promise 7: a restore writes what was saved, where it was told to',
  'nobody waits': 'promise 8: only a write that hits a track not yet saved waits for a backup',
  'poison stays': 'promise 10: a failed flush or write ends writing until the volume is checked',
  'reads are right': 'the live volume holds what was written',
  'a cut leaves it whole': 'what was acknowledged opens after a power cut',
  'nothing fails by itself': 'nothing fails that was not made to fail',
} as const;

export type PromiseName = keyof typeof PROMISES;

export interface Breach {
  readonly promise: PromiseName;
  readonly message: string;
}

/** A promise was broken. */
export class BrokenPromise extends Error implements Breach {
  readonly promise: PromiseName;

  constructor(promise: PromiseName, message: string) {
    super(message);
    this.promise = promise;
  }
}

/** @throws {BrokenPromise} */
export function must(promise: PromiseName, holds: boolean, message: string): void {
  if (!holds) throw new BrokenPromise(promise, message);
}

/** What broke, of anything thrown; an error that nobody foresaw is a breach too. */
export function breachOf(error: unknown, otherwise: PromiseName = 'nothing fails by itself'): Breach {
  if (error instanceof BrokenPromise) return { promise: error.promise, message: error.message };
  return { promise: otherwise, message: messageOf(error) };
}
