/**
 * What a session's main thread and the threads of its lanes say to each other: calls of a `LaneWorker`, and their
 * answers. A lane takes its calls in order.
 */

import type { LaneCounts, LaneParts, SetCounters } from '../blockset/index.ts';
import type { TrackRun } from '../tracks/index.ts';

/** What a lane's thread is started with. */
export interface LaneThreadData {
  readonly parts: LaneParts;
  /** A file or block device that the thread reads itself; undefined where all content is brought to it. */
  readonly homePath: string | undefined;
}

/** Both ends are of one version. */
export function isLaneThreadData(value: unknown): value is LaneThreadData {
  return typeof value === 'object' && value !== null && 'parts' in value;
}

/** The calls by name: what they take and what they give. Buffers travel as plain bytes. */
export interface LaneCalls {
  read: { readonly takes: TrackRun; readonly gives: WireHeld };
  hold: {
    readonly takes: { readonly tracks: readonly number[]; readonly contents: readonly Uint8Array[] };
    readonly gives: WireHeld;
  };
  store: {
    readonly takes: { readonly ticket: number; readonly keep: readonly number[] };
    readonly gives: undefined;
  };
  storeAliases: {
    readonly takes: readonly { readonly track: number; readonly of: number }[];
    readonly gives: undefined;
  };
  storeZeroes: { readonly takes: readonly number[]; readonly gives: undefined };
  flush: { readonly takes: undefined; readonly gives: undefined };
  finish: { readonly takes: undefined; readonly gives: LaneCounts };
  settle: { readonly takes: SetCounters | undefined; readonly gives: Uint8Array };
  seal: { readonly takes: Uint8Array; readonly gives: undefined };
  release: { readonly takes: undefined; readonly gives: undefined };
  abort: { readonly takes: undefined; readonly gives: undefined };
}

export interface WireHeld {
  readonly ticket: number;
  readonly hashes: Uint8Array;
  readonly zeroes: Uint8Array;
}

export type LaneCallName = keyof LaneCalls;

export type LaneCall = {
  [Name in LaneCallName]: { readonly name: Name; readonly takes: LaneCalls[Name]['takes'] };
}[LaneCallName];
