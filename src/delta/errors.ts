/** The operating errors of a delta store. Each code is documented here, with what its details say. */

import { BlockError } from '../base/index.ts';

export interface DeltaErrorDetails {
  /** The logs do not reach back to the point, or one in between is gone. */
  'delta-gap': { readonly point: string };
  /** Only the end of a log is known any more: what came between was given up when it was compacted. */
  'delta-compacted': { readonly wantedMs: number; readonly keptMs: number };
  /** A place cannot be a member, or is one no more. */
  'member-unusable': { readonly place: string };
  /** A place keeps the logs of other volumes, or of several. */
  'wrong-volume': { readonly place: string; readonly volumeIds: readonly string[] };
  /** None of the places has logs of the volume. */
  'no-logs': { readonly places: readonly string[] };
  /** No member is left that takes what is written. */
  'no-members': { readonly places: readonly string[] };
  /** The members have no room for the next log. */
  full: { readonly place: string };
  /** The work was cancelled. */
  cancelled: { readonly place: string };
  closed: object;
}

export type DeltaErrorCode = keyof DeltaErrorDetails;

export class DeltaError<Code extends DeltaErrorCode = DeltaErrorCode> extends BlockError<
  DeltaErrorDetails,
  Code
> {}
