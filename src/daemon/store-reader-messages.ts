/**
 * What the process that reads a set of a store and its parent say to each other, over Node's IPC channel (advanced
 * serialisation, so bytes travel as bytes). The bytes of the volume do not go this way, but over NBD.
 *
 *     parent -> child    start, calls (order, more, leave, why), end
 *     child -> parent    ready or failed, once; an answer for each call
 *
 * Calls have a number, which their answers carry. An order is named by the number of the call that began it. The
 * channel's end is the end of the child as well. Both ends are of one version, so nothing that arrives is checked.
 */

import type { WireError } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { LogsPlace } from '../volume/index.ts';
import type { SetFacts } from './set-facts.ts';

/** Delta logs that a set is read with. */
export interface LogsWish {
  /** The members that keep them. */
  readonly places: readonly string[];
  /** Whose; the one volume's that is there where left out. */
  readonly volumeId?: string;
  /**
   * Where they go on from: the set's point, or '' for the beginning of the volume, and then there is no set. Where left
   * out, the set is the newest one that the logs go on from, of the volume of the one that is named.
   */
  readonly startPoint?: string;
  /** Records of an earlier time only, in milliseconds since 1970; and sets of points before that, where one is chosen. */
  readonly beforeMs?: number;
  /** Records up to this sequence number only. */
  readonly upTo?: number;
}

export interface StartMessage {
  readonly kind: 'start';
  readonly storePath: string;
  /** As it was typed; empty for none, with logs that reach back to the beginning of the volume. */
  readonly set: string;
  readonly key: StoreKey | undefined;
  /** What has changed since the set; nothing where left out. */
  readonly logs: LogsWish | undefined;
  /** Where the volume is served; a directory for nobody else. */
  readonly socketPath: string;
}

export type CallMessage = { readonly kind: 'call'; readonly id: number } & (
  | { readonly name: 'order'; /** Serialised. */ readonly tracks: Uint8Array }
  /** The next batch of an order; an empty one is the last. */
  | { readonly name: 'more'; readonly order: number }
  /** Nobody wants the rest of an order. */
  | { readonly name: 'leave'; readonly order: number }
  /** What a read of this range failed with. */
  | { readonly name: 'why'; readonly offsetBytes: number; readonly lengthBytes: number }
);

export type ParentMessage = StartMessage | CallMessage | { readonly kind: 'end' };

/** For `why`, the error; undefined where it is not known any more. For `more`, the runs. */
export type CallGives = readonly TrackRun[] | WireError | undefined;

export type ChildMessage =
  | {
      readonly kind: 'ready';
      readonly set: SetFacts;
      /** The logs that are read with it, as they were found. */
      readonly logs: LogsPlace | undefined;
      /** Serialised: the tracks that are not zero. */
      readonly tracks: Uint8Array;
    }
  | { readonly kind: 'failed'; readonly error: WireError }
  | { readonly kind: 'answer'; readonly id: number; readonly gives: CallGives }
  | { readonly kind: 'answer'; readonly id: number; readonly error: WireError };

export function isParentMessage(value: unknown): value is ParentMessage {
  return typeof value === 'object' && value !== null && 'kind' in value;
}

export function isChildMessage(value: unknown): value is ChildMessage {
  return typeof value === 'object' && value !== null && 'kind' in value;
}
