/**
 * The operating errors of the room `restore`.
 *
 * Damaged bytes in the store are no operating error: they stop a restore with `RestoreCorruptionError`,
 * which is a `CorruptionError` that also says what had already been written when the damage was met.
 */

import { BlockError, CorruptionError } from '../base/index.ts';

export interface RestoreErrorDetails {
  /** Rows of a remap table contradict each other or are no ranges of blocks; `row` counts from 0 as given. */
  'bad-table': { readonly row: number; readonly reason: string };
  /** A remap file cannot be used; `place` is a path into the document, such as `rows[3].offset`. */
  'bad-remap-file': { readonly file: string; readonly place: string; readonly value: unknown };
  /** A row asks for bytes that the set's volume does not have. */
  'outside-source': {
    readonly offsetBytes: number;
    readonly lengthBytes: number;
    readonly sizeBytes: number;
  };
  /** A row names a target that was not given. */
  'unknown-target': { readonly target: string };
  /** The room that the metadata wants is not there. Nothing was written. */
  'target-too-small': { readonly target: string; readonly sizeBytes: number; readonly wantedBytes: number };
  'target-read-only': { readonly target: string };
  /** A row cannot be written in whole blocks of its target. */
  misaligned: { readonly target: string; readonly row: RowPlace; readonly blockSizeBytes: number };
  /** Somebody uses the target: mounted, swapped to, locked, attached, the home of a volume, or named twice. */
  'target-in-use': { readonly target: string; readonly path: string; readonly by: string };
  /** The target is nothing that can be restored to, such as a directory, or cannot be opened. */
  'bad-target': { readonly target: string; readonly path: string; readonly reason: string };
  /** A progress file cannot be used: it is not one, or is of another set, table or target. Nothing was written. */
  'bad-progress-file': { readonly file: string; readonly reason: string };
  /** A target is not as an earlier run has left it. Nothing was written. */
  'target-changed': { readonly target: string; readonly reason: string };
  /** A write, zero or flush of a target failed while the restore ran. */
  'target-failed': { readonly target: string; readonly incompleteTargets: readonly string[] };
  /** Delta logs go on from no set that there is. */
  'no-base': { readonly volumeId: string };
  /** The restore was cancelled. */
  cancelled: { readonly incompleteTargets: readonly string[] };
}

export interface RowPlace {
  readonly sourceOffsetBytes: number;
  readonly lengthBytes: number;
  readonly targetOffsetBytes: number;
}

export type RestoreErrorCode = keyof RestoreErrorDetails;

export class RestoreError<Code extends RestoreErrorCode = RestoreErrorCode> extends BlockError<
  RestoreErrorDetails,
  Code
> {}

/** Whether `error` is a `RestoreError` of this code; its details are then typed. */
export function isRestoreError<Code extends RestoreErrorCode>(
  error: unknown,
  code: Code,
): error is RestoreError<Code> {
  return error instanceof RestoreError && error.code === code;
}

/** Damage met after targets had been written to: they are `incompleteTargets`, and must not be used. */
export class RestoreCorruptionError extends CorruptionError {
  readonly incompleteTargets: readonly string[];

  constructor(cause: CorruptionError, incompleteTargets: readonly string[]) {
    super(cause.message + incompleteNote(incompleteTargets), cause.place, { cause });
    this.incompleteTargets = incompleteTargets;
  }
}

/** The end of a message that says what a stopped restore has left behind. */
export function incompleteNote(incompleteTargets: readonly string[]): string {
  if (incompleteTargets.length === 0) return '; no target was written';
  const [noun, verb] = incompleteTargets.length === 1 ? ['target', 'is'] : ['targets', 'are'];
  return `; ${noun} ${incompleteTargets.join(', ')} ${verb} incomplete`;
}
