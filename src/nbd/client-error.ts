/** The errors of the client: what a server said no to, and what went wrong on the way. */

import { BlockError } from '../base/index.ts';
import type { ChunkError } from './codec-chunks.ts';
import { type NbdErrorName, nbdErrorName } from './errno.ts';

/** What a request asked for, and the name and value the server answered with. */
export interface RequestRefusal {
  readonly request: string;
  readonly errorName: NbdErrorName;
  readonly errorValue: number;
  /** What the server said about it; empty where it said nothing. */
  readonly serverMessage: string;
  /** Where it failed, in the export, where the server said so. */
  readonly offsetBytes?: number;
}

export interface NbdClientErrorDetails {
  /** No connection: nobody listens, the host is not known, or the time limit passed. */
  'connect-failed': { readonly address: string };
  /** The server sent what the protocol does not allow. */
  'protocol-violation': { readonly address: string };
  /** The server has no such export. */
  'export-unknown': { readonly address: string; readonly exportName: string };
  /** The server insists on TLS, and the address did not ask for it. */
  'tls-required': { readonly address: string };
  /** The address asks for TLS, and the server does not have it. Nothing else was sent to it. */
  'tls-refused': { readonly address: string };
  /** TLS was not agreed on: a certificate or key was not accepted by one side, or the time limit passed. */
  'tls-failed': { readonly address: string };
  /** The server refused an option for another reason; `replyType` is its option reply. */
  'option-refused': { readonly address: string; readonly option: number; readonly replyType: number };
  /** The export cannot be used as a block device. */
  'export-unsuitable': { readonly address: string; readonly sizeBytes: number };
  /** The connection ended before a request was answered; whether the request was done is not known. */
  'connection-lost': { readonly address: string };
  /** The client was disconnected by this program. */
  disconnected: { readonly address: string };
  /** EPERM */
  'read-only': RequestRefusal;
  /** EIO */
  io: RequestRefusal;
  /** ENOMEM */
  'out-of-memory': RequestRefusal;
  /** EINVAL, and values the protocol does not list. */
  'invalid-request': RequestRefusal;
  /** ENOSPC */
  'no-space': RequestRefusal;
  /** EOVERFLOW */
  overflow: RequestRefusal;
  /** ENOTSUP */
  'not-supported': RequestRefusal;
  /** ESHUTDOWN */
  'shutting-down': RequestRefusal;
}

export class NbdClientError<
  Code extends keyof NbdClientErrorDetails = keyof NbdClientErrorDetails,
> extends BlockError<NbdClientErrorDetails, Code> {}

const CODE_BY_NAME = {
  EPERM: 'read-only',
  EIO: 'io',
  ENOMEM: 'out-of-memory',
  EINVAL: 'invalid-request',
  ENOSPC: 'no-space',
  EOVERFLOW: 'overflow',
  ENOTSUP: 'not-supported',
  ESHUTDOWN: 'shutting-down',
} as const satisfies Record<NbdErrorName, keyof NbdClientErrorDetails>;

/** The error for a request that the server answered with an error. */
export function requestRefused(request: string, said: ChunkError): NbdClientError {
  const { error: errorValue, message: serverMessage, offsetBytes } = said;
  const errorName = nbdErrorName(errorValue);
  const message = `The server answered ${request} with ${errorName}${serverMessage === '' ? '' : `: ${serverMessage}`}`;
  return new NbdClientError(CODE_BY_NAME[errorName], message, {
    request,
    errorName,
    errorValue,
    serverMessage,
    ...(offsetBytes === undefined ? {} : { offsetBytes }),
  });
}
