/** The operating errors of sequential media. Damaged bytes are `CorruptionError`s, with the tracks that are lost. */

import { BlockError, messageOf, systemCode } from '../base/index.ts';

export interface MediaErrorDetails {
  /** What was opened is no medium of ours. */
  readonly 'not-a-medium': { readonly place: string };
  /** The medium was written by a later version. */
  readonly 'newer-format': { readonly place: string; readonly format: number };
  /** A medium of another writing, or one that was read already. */
  readonly 'wrong-medium': { readonly place: string; readonly found: string; readonly wanted: string };
  /** There is no further medium: `missing` are the numbers of those that would be needed, where they are known. */
  readonly 'no-medium': { readonly missing: readonly number[] };
  /** A medium cannot hold its headers and one record. */
  readonly 'medium-too-small': { readonly place: string; readonly wantedBytes: number };
  /** A file that was to become a medium is there already. */
  readonly exists: { readonly place: string };
  /** The system refused an operation on a medium. */
  readonly io: { readonly place: string };
  /** The writing holds no such set. */
  readonly 'unknown-set': { readonly selector: string };
  /** A set of this id is in the store already, with another seal. */
  readonly 'other-set': { readonly set: string };
  /** What the set is on the media can be known with its key only: it has to be imported. */
  readonly encrypted: { readonly set: string };
  /** Cancelled by the caller. */
  readonly cancelled: { readonly medium: number };
}

export class MediaError extends BlockError<MediaErrorDetails> {}

/** The operation on `place` failed for a reason of the system's; what is an error of ours passes unchanged. */
export function mediumError(error: unknown, action: string, place: string): unknown {
  const code = systemCode(error);
  if (error instanceof BlockError || code === undefined || !/^E[A-Z0-9]+$/.test(code)) return error;
  if (code === 'EEXIST') {
    return new MediaError(
      'exists',
      `${place} exists already, wanted a new file`,
      { place },
      { cause: error },
    );
  }
  const message = `${action} medium ${place} failed: ${messageOf(error)}`;
  return new MediaError('io', message, { place }, { cause: error });
}
