/**
 * What the process that reads media for a fill and its parent say to each other, over Node's IPC channel (advanced
 * serialisation, so bytes travel as bytes).
 *
 *     parent -> child    start, then wanted (which tracks), then more, once for each batch
 *     child -> parent    begun, then a batch for each `more`; failed in the place of any of them
 *
 * A batch without tracks is the last. The channel's end is the end of the child as well. Both ends are of one version.
 */

import type { WireError } from '../base/index.ts';
import type { SetFacts } from './set-facts.ts';

export interface MediaPlaces {
  /** Files, pipes and devices, absolute, in turn. */
  readonly places: readonly string[];
  /** Command that loads a medium, run before each. */
  readonly load?: string;
}

export type FeedParentMessage =
  | { readonly kind: 'start'; readonly media: MediaPlaces; readonly set: string }
  /** Serialised. */
  | { readonly kind: 'wanted'; readonly tracks: Uint8Array }
  | { readonly kind: 'more' };

export type FeedChildMessage =
  | { readonly kind: 'begun'; readonly set: SetFacts }
  | { readonly kind: 'batch'; readonly tracks: readonly FedTrack[] }
  | { readonly kind: 'warning'; readonly sentence: string }
  | { readonly kind: 'failed'; readonly error: WireError };

export interface FedTrack {
  readonly track: number;
  /** Undefined for zeroes. */
  readonly content: Uint8Array | undefined;
}

export function isFeedChildMessage(value: unknown): value is FeedChildMessage {
  return typeof value === 'object' && value !== null && 'kind' in value;
}

export function isFeedParentMessage(value: unknown): value is FeedParentMessage {
  return typeof value === 'object' && value !== null && 'kind' in value;
}
