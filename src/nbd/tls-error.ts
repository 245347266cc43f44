/** What is wrong with the files that TLS needs: found before anyone is connected to or listened for. */

import { BlockError } from '../base/index.ts';

export interface NbdTlsErrorDetails {
  /** A file or directory that is needed is not there. */
  'tls-file-missing': { readonly path: string };
  /** It is there and cannot be read; `cause` is the system's error. */
  'tls-file-unreadable': { readonly path: string };
  /** Its content cannot be used, alone or together with that of another file. */
  'tls-file-invalid': { readonly path: string };
  /** The file of keys has none for the user. */
  'tls-user-unknown': { readonly path: string; readonly username: string };
}

export class NbdTlsError<Code extends keyof NbdTlsErrorDetails = keyof NbdTlsErrorDetails> extends BlockError<
  NbdTlsErrorDetails,
  Code
> {}
