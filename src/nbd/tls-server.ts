/**
 * The server's half of TLS: turns an accepted socket into an encrypted one.
 *
 * Node checks clients' certificates only for sockets of a `tls.Server`, and only such a server tells which
 * socket it finished by being asked about one. So each socket gets a server of its own, which never listens:
 * about a millisecond, against several for the handshake itself. It also means that no session of one
 * connection can be resumed on another, where it would pass without its certificate being looked at again.
 *
 * It knows no time limits: whoever gives the socket destroys it when the time is up, and that ends this too.
 */

import type { Socket } from 'node:net';
import { createServer, type TLSSocket } from 'node:tls';
import { systemCode } from '../base/index.ts';
import type { TlsPolicy } from './handshake.ts';
import type { NbdServerCredentials } from './tls-credentials.ts';
import { reasonOf } from './tls-reason.ts';

/** How a listener does TLS. */
export interface NbdListenerTls {
  readonly policy: Exclude<TlsPolicy, 'off'>;
  readonly credentials: NbdServerCredentials;
}

export type TlsOutcome =
  | { readonly kind: 'secured'; readonly socket: TLSSocket; readonly description: string }
  /** The client was told, as far as TLS has words for it, and the socket is being closed. */
  | { readonly kind: 'failed'; readonly reason: string };

/**
 * Runs the handshake on a socket that nobody reads any more; what was read from it and not used is lost.
 * Both sockets end together. The result never rejects; the secured socket does not flow yet.
 */
export function acceptTls(socket: Socket, credentials: NbdServerCredentials): Promise<TlsOutcome> {
  return new Promise((resolve) => {
    const server = createServer(credentials.options);
    // A client that closes half way through the handshake is gone; later it may want its answers.
    const { allowHalfOpen } = socket;
    socket.allowHalfOpen = false;
    server.once('secureConnection', (secured) => {
      secured.allowHalfOpen = allowHalfOpen;
      // A client that asked for new keys over and over would keep this process busy.
      secured.disableRenegotiation();
      // Until its owner listens, which is a turn of the microtasks later.
      secured.on('error', () => {});
      resolve({ kind: 'secured', socket: secured, description: describe(secured) });
    });
    server.on('tlsClientError', (error, refused) => {
      resolve({ kind: 'failed', reason: `TLS was not agreed on: ${whyNot(error, refused)}` });
    });
    server.emit('connection', socket);
  });
}

function whyNot(error: Error, socket: TLSSocket): string {
  const unverified: unknown = socket.authorizationError;
  if (typeof unverified === 'string') return `the client's certificate is not accepted (${unverified})`;
  return systemCode(error) === 'ECONNRESET' ? 'the client hung up' : reasonOf(error);
}

function describe(socket: TLSSocket): string {
  const { subject } = socket.getPeerCertificate();
  const who = subject?.CN === undefined ? '' : `, client ${JSON.stringify(subject.CN)}`;
  return `${socket.getProtocol() ?? 'TLS'} ${socket.getCipher().name}${who}`;
}
