/**
 * Unix sockets whose path may be too long for a socket address.
 *
 * Linux takes 107 bytes, and Node cuts a longer path silently. `/proc/self/fd/<directory>/<name>` names the
 * same place through an open descriptor of its directory, in a few bytes; it works for binding and for
 * connecting alike. The descriptor stays open as long as the socket listens, because closing a listening
 * socket unlinks the path it was bound to.
 */

import { constants } from 'node:fs';
import { chmod, lstat, open, unlink } from 'node:fs/promises';
import { createConnection, type Socket } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { LIMITS, messageOf, systemCode } from '../base/index.ts';
import { DaemonError } from './errors.ts';

export interface SocketPath {
  /** Where the socket is, for people. */
  readonly path: string;
  /** What to bind or connect to: the path, or its short form. */
  readonly address: string;
  /** Gives the directory's descriptor back. The address must not be used afterwards. */
  release(): Promise<void>;
}

/**
 * The address of a Unix socket at `path`.
 *
 * @throws {DaemonError} cannot-listen when even the short form is too long; the system's errors when the
 *   directory cannot be opened.
 */
export async function openSocketPath(path: string): Promise<SocketPath> {
  if (Buffer.byteLength(path) <= LIMITS.socketPathBytesMax) {
    return { path, address: path, release: async () => undefined };
  }
  const directory = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  const address = join('/proc/self/fd', String(directory.fd), basename(path));
  if (Buffer.byteLength(address) > LIMITS.socketPathBytesMax) {
    await directory.close();
    const message = `The socket's name ${basename(path)} is too long, wanted a name that fits in ${LIMITS.socketPathBytesMax} bytes`;
    throw new DaemonError('cannot-listen', message, { address: path });
  }
  return { path, address, release: () => directory.close() };
}

/**
 * Clears the place for a default socket: whatever lies there is the leftover of a former owner. Only the
 * holder of the volume's lock may call this, since nobody else can tell a leftover from a live socket.
 *
 * @throws {DaemonError} cannot-listen when something else than a socket lies there.
 */
export async function removeStaleSocket(path: string): Promise<void> {
  let isSocket: boolean;
  try {
    isSocket = (await lstat(path)).isSocket();
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return;
    throw error;
  }
  if (!isSocket) {
    throw new DaemonError('cannot-listen', `Cannot listen on ${path}: a file that is no socket lies there`, {
      address: path,
    });
  }
  await unlink(path);
}

/**
 * Clears the place for a socket that no lock guards (`--socket`): a socket that nobody answers on goes.
 *
 * @throws {DaemonError} cannot-listen when somebody listens there, or something else lies there.
 */
export async function removeDeadSocket(path: string): Promise<void> {
  const place = await openSocketPath(path);
  try {
    const socket = await connectTo(place.address);
    socket.destroy();
  } catch (error) {
    const code = systemCode(error);
    if (code === 'ENOENT') return;
    if (code === 'ECONNREFUSED' || code === 'ENOTSOCK') {
      await removeStaleSocket(path);
      return;
    }
    throw new DaemonError(
      'cannot-listen',
      `Cannot listen on ${path}: ${messageOf(error)}`,
      { address: path },
      { cause: error },
    );
  } finally {
    await place.release();
  }
  throw new DaemonError('cannot-listen', `Cannot listen on ${path}: another process listens there`, {
    address: path,
  });
}

/** Only the owner may talk to the server: there is no other authentication on a Unix socket. */
export async function restrictSocket(path: string): Promise<void> {
  await chmod(path, 0o600);
}

/** Connects to a Unix socket; rejects with the system's error. */
export function connectTo(address: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path: address });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });
}
