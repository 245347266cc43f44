/**
 * How a server gets a socket that listens: it binds one, or takes one that was handed to the process.
 *
 * Node says nothing of a socket it was handed: no path, and it would listen on anything (a pipe passes for a
 * Unix socket, and a TCP socket that was never bound gets a port by chance). So the socket is asked itself.
 * Where the C library cannot be called (see `base/native.ts`), descriptors are refused: no guess is made.
 *
 * A path is unlinked when its listener closes only where it was bound here: that is libuv's rule too.
 */

import { chmodSync, fstatSync, readFileSync } from 'node:fs';
import type { AddressInfo, Server } from 'node:net';
import { getSocketOption, LIMITS, messageOf } from '../base/index.ts';
import { NbdServerError } from './server-error.ts';
import type { NbdTransport } from './uri.ts';

/** Where a server listens: an address of its own, or a descriptor (socket activation). */
export type NbdListenPlace = NbdTransport | NbdDescriptor;

/**
 * A stream socket, Unix or TCP, that already listens, by its descriptor. It is the server's from `listen` on,
 * which closes it in the end; a `descriptor-unusable` stays the caller's.
 */
export interface NbdDescriptor {
  readonly kind: 'descriptor';
  readonly descriptor: number;
}

const SOL_SOCKET = 1;
const SO_TYPE = 3;
const SO_ACCEPTCONN = 30;
const SO_DOMAIN = 39;
const SOCK_STREAM = 1;
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;

/**
 * Lets the listener accept clients.
 *
 * @returns where clients reach it, with the port that was taken.
 * @throws {NbdServerError} listen-failed, socket-path-too-long, descriptor-unusable
 */
export async function startListening(listener: Server, place: NbdListenPlace): Promise<NbdTransport> {
  switch (place.kind) {
    case 'unix':
      assertSocketPath(place.path);
      await listening(listener, place.path, () => {
        listener.listen({ path: place.path });
        // The socket is bound when `listen` returns: nobody else can connect from here on.
        if (listener.listening) chmodSync(place.path, 0o600);
      });
      return place;
    case 'tcp': {
      const { host, port } = place;
      await listening(listener, `${host}:${port}`, () => listener.listen({ host, port }));
      return { ...place, port: tcpAddress(listener).port };
    }
    case 'descriptor': {
      const { descriptor } = place;
      const isUnix = isUnixListener(descriptor);
      const path = isUnix ? boundPath(descriptor) : '';
      await listening(listener, `descriptor ${descriptor}`, () => listener.listen({ fd: descriptor }));
      if (isUnix) return { kind: 'unix', path };
      const { address, port } = tcpAddress(listener);
      return { kind: 'tcp', host: address, port };
    }
  }
}

function assertSocketPath(path: string): void {
  const lengthBytes = Buffer.byteLength(path);
  if (lengthBytes <= LIMITS.socketPathBytesMax) return;
  const message = `Socket path ${path} has ${lengthBytes} bytes, at most ${LIMITS.socketPathBytesMax} are possible`;
  throw new NbdServerError('socket-path-too-long', message, { path, lengthBytes });
}

function listening(listener: Server, address: string, start: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: unknown): void => {
      const message = `Cannot listen on ${address}: ${messageOf(error)}`;
      reject(new NbdServerError('listen-failed', message, { address }, { cause: error }));
    };
    listener.once('error', fail);
    listener.once('listening', () => {
      listener.off('error', fail);
      resolve();
    });
    start();
  });
}

function tcpAddress(listener: Server): AddressInfo {
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new TypeError('The listener has no TCP address');
  return address;
}

/** Whether the socket is a Unix one; refuses all that cannot accept connections of either kind. */
function isUnixListener(descriptor: number): boolean {
  const option = (name: number): number => getSocketOption(descriptor, SOL_SOCKET, name, 4).readInt32LE(0);
  let found: string;
  try {
    const domain = option(SO_DOMAIN);
    const isListening = option(SO_TYPE) === SOCK_STREAM && option(SO_ACCEPTCONN) !== 0;
    const isKnown = domain === AF_UNIX || domain === AF_INET || domain === AF_INET6;
    if (isListening && isKnown) return domain === AF_UNIX;
    found = isKnown ? 'a socket that does not listen for streams' : `a socket of family ${domain}`;
  } catch (error) {
    found = messageOf(error);
  }
  const message = `Cannot listen on descriptor ${descriptor}: ${found}, wanted a Unix or TCP socket that listens`;
  throw new NbdServerError('descriptor-unusable', message, { descriptor });
}

/**
 * The path a Unix socket was bound to, which the kernel lists by the socket's inode; empty where it has none
 * or is not told. An abstract address comes as the kernel writes it, with `@` in front.
 */
function boundPath(descriptor: number): string {
  try {
    const inode = String(fstatSync(descriptor).ino);
    // Num RefCount Protocol Flags Type St Inode Path; what is behind the seventh blank run is the path.
    for (const line of readFileSync('/proc/self/net/unix', 'utf8').split('\n')) {
      const match = /^(?:\S+\s+){6}(\d+) (.+)$/.exec(line);
      if (match?.[1] === inode) return match[2] ?? '';
    }
  } catch {
    // Not to know a path does not keep clients from using it.
  }
  return '';
}
