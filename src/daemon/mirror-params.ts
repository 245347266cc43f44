/** What is asked for a volume's mirrors: the same words on the command line, in the control protocol and offline. */

import type { MirrorDifference } from '../volume/index.ts';

export interface ScrubParams {
  /** Writes what the first current member holds over the others where they differ. */
  readonly repair: boolean;
  readonly rateBytesPerSecond?: number;
}

export interface ScrubReport {
  readonly volume: string;
  readonly bytesCompared: number;
  /** How many tracks differ. */
  readonly tracks: number;
  readonly repairedTracks: number;
  /** Some of them, in order. */
  readonly differences: readonly MirrorDifference[];
  /** Mirrors with one current member, which there is nothing to compare with. */
  readonly skippedMirrors: number;
}

export interface ReplaceParams {
  /** The member's place, as `volume show` says. */
  readonly member: string;
  /** An absolute path or a URI. */
  readonly place: string;
  readonly rateBytesPerSecond?: number;
}

export interface ReplaceOutcome {
  readonly volume: string;
  readonly member: string;
  readonly place: string;
  readonly bytesWritten: number;
}

export function isScrubReport(value: unknown): value is ScrubReport {
  return hasNumbers(value, ['bytesCompared', 'tracks', 'repairedTracks', 'skippedMirrors']);
}

export function isReplaceOutcome(value: unknown): value is ReplaceOutcome {
  return hasNumbers(value, ['bytesWritten']);
}

function hasNumbers(value: unknown, names: readonly string[]): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const members = new Map(Object.entries(value));
  return names.every((name) => typeof members.get(name) === 'number');
}
