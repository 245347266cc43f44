/**
 * The client's half of TLS: turns a connected socket into an encrypted one.
 *
 * The server's certificate must be signed by the trusted authority and have the name that was connected to; a
 * Unix socket has no name, so there only the signature counts unless a name is given. With a pre-shared key
 * the server shows that it has the key too, and no certificate is taken in its place.
 */

import { isIP, type Socket } from 'node:net';
import { connect, type ConnectionOptions, type TLSSocket } from 'node:tls';
import { type ClientCredentials, PSK_CIPHERS } from './tls-credentials.ts';
import { isTlsError } from './tls-reason.ts';

/** A server that also has certificates goes on with one, which no client with a key accepts. */
const KEY_NOT_TAKEN = 'the server did not take the pre-shared key, it may not know the user';

/**
 * Runs the handshake on a socket that nobody reads any more. Both sockets end together.
 *
 * @param name what the server's certificate must be for; undefined for any.
 * @returns the secured socket, which does not flow yet. Rejects with Node's error where TLS fails.
 */
export function connectTls(
  socket: Socket,
  credentials: ClientCredentials,
  name: string | undefined,
): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const secured = connect({ socket, minVersion: 'TLSv1.2', ...optionsOf(credentials, name) });
    secured.once('secureConnect', () => resolve(secured));
    // Stays: an error after the promise is settled is told by 'close' too.
    secured.on('error', (error) => {
      const hasShownCertificate = credentials.psk !== undefined && !isTlsError(error);
      reject(hasShownCertificate ? new Error(KEY_NOT_TAKEN, { cause: error }) : error);
    });
    secured.once('close', () => reject(new Error('the server hung up')));
  });
}

function optionsOf(credentials: ClientCredentials, name: string | undefined): ConnectionOptions {
  const { psk, verifyPeer, ca, crl, cert, key } = credentials;
  const anyName = { checkServerIdentity: () => undefined };
  if (psk !== undefined) return { ca: [], ciphers: PSK_CIPHERS, pskCallback: () => psk, ...anyName };
  return {
    rejectUnauthorized: verifyPeer,
    ...(ca === undefined ? {} : { ca }),
    ...(crl === undefined ? {} : { crl }),
    ...(cert === undefined || key === undefined ? {} : { cert, key }),
    ...(name === undefined ? anyName : { host: name }),
    // The extension carries names only, no addresses (RFC 6066, section 3).
    ...(name === undefined || isIP(name) !== 0 ? {} : { servername: name }),
  };
}
