/** The operating errors of a backup session. */

import { BlockError } from '../base/index.ts';

export interface BackupErrorDetails {
  /** The user, or the server's stop, ended the session. */
  cancelled: { readonly volume: string };
  /** The child process ended without a result. */
  'worker-died': {
    readonly volume: string;
    readonly exitCode: number | null;
    readonly signal: string | null;
  };
  /** The child reported an error of its own; `workerCode` is that error's code where it had one. */
  'worker-failed': { readonly volume: string; readonly workerCode: string | undefined };
}

export type BackupErrorCode = keyof BackupErrorDetails;

export class BackupError<Code extends BackupErrorCode = BackupErrorCode> extends BlockError<
  BackupErrorDetails,
  Code
> {}
