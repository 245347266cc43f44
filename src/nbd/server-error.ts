/** What can go wrong with a server, apart from what its clients do. */

import { BlockError } from '../base/index.ts';

/** Why a server could not do what it was asked. */
export interface NbdServerErrorDetails {
  /** The address is in use, not allowed, or does not exist; `cause` is the system's error. */
  'listen-failed': { readonly address: string };
  /** Node would cut the path silently. */
  'socket-path-too-long': { readonly path: string; readonly lengthBytes: number };
  /** A descriptor that was handed over is no stream socket that listens. */
  'descriptor-unusable': { readonly descriptor: number };
  'export-exists': { readonly name: string };
  'export-name-invalid': { readonly name: string };
  'server-closed': Record<string, never>;
}

export class NbdServerError<
  Code extends keyof NbdServerErrorDetails = keyof NbdServerErrorDetails,
> extends BlockError<NbdServerErrorDetails, Code> {}
