/**
 * A connection that ends its handshake in this process and goes on in the kernel.
 *
 * The handshake ends with an answer of the server, and a server sends nothing more until it is asked: so no
 * byte is lost as long as this process stops reading there. A server that has sent more broke the protocol.
 * Nothing is wished for in the handshake: simple replies are all that the kernel understands.
 * The kernel holds the socket by itself once it was given it; the descriptor here stays open only to see the
 * socket hang up.
 */

import { setSocketOption } from '../base/index.ts';
import type { NbdExportInfo } from './client-handshake.ts';
import { NbdClientError } from './client-error.ts';
import { Link } from './link.ts';
import { formatNbdUri, type NbdAddress } from './uri.ts';

const SOL_SOCKET = 1;
const SO_LINGER = 13;
/** `struct linger`: int on, int seconds. */
const LINGER_NOT_AT_ALL = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]);

export interface KernelSocket {
  readonly descriptor: number;
  readonly exportInfo: NbdExportInfo;
  /** Closes this process's descriptor; what the kernel holds goes on. */
  close(): void;
}

export type OpenKernelSocket = (address: NbdAddress) => Promise<KernelSocket>;

/**
 * Connects, chooses the export and stops reading.
 *
 * @throws {NbdClientError} connect-failed, export-unknown, tls-required, option-refused, protocol-violation
 */
export async function openKernelSocket(address: NbdAddress): Promise<KernelSocket> {
  const link = await Link.open(address);
  const decision = await link.negotiate({ kind: 'go', exportName: address.exportName }, {});
  const descriptor = link.release();
  // The kernel sends a lost connection's requests again on another one, and lets the old socket go just before.
  // What is still unsent then must not arrive later, over blocks that were written anew: so the close drops it.
  setSocketOption(descriptor, SOL_SOCKET, SO_LINGER, LINGER_NOT_AT_ALL);
  if (decision.kind !== 'export' || decision.rest.length > 0) {
    link.destroy();
    const name = formatNbdUri(address);
    const message = `The server at ${name} broke the protocol: it sent bytes that nobody asked for`;
    throw new NbdClientError('protocol-violation', message, { address: name });
  }
  return { descriptor, exportInfo: decision.info, close: () => link.destroy() };
}
