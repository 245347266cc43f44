/**
 * Reads an accepted socket into buffers of our choice, and lets it hold large replies.
 *
 * Left to itself Node allocates 64 KiB for each read of a socket, and a large write arrives as a row of them, to
 * be copied together. A socket with `onread` reads into a buffer it is given: the same one again and again for
 * small requests, and a large write's bytes straight to where the device takes them from. Node offers `onread` to
 * sockets that connect, but not to those that a server accepts; so the accepted socket's handle is given to a new
 * socket, as `net.Server` itself does when it makes the first one. Should a version of Node hide the handle, the
 * accepted socket is used as it is, only slower.
 *
 * A Unix socket holds what its sender's buffer allows, 208 KiB unless asked: a reply of 1 MiB then takes five
 * turns of both processes. TCP sizes its buffers itself, better than a fixed number would.
 */

import { Socket } from 'node:net';
import { LIMITS, setSocketOption } from '../base/index.ts';

/** Who takes a socket's bytes. */
export interface SocketReader {
  /** Where the next read puts its bytes; asked before the first read and after each one. */
  inputTarget(): Buffer;
  /** The first `lengthBytes` of `target`, what `inputTarget` gave last, were read. @returns false to pause. */
  received(lengthBytes: number, target: Buffer): boolean;
}

const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_SNDBUFFORCE = 32;

/** The name under which a socket keeps what libuv knows it by. */
const HANDLE = '_handle';

/** What a handle tells. */
interface Inside {
  readonly fd?: number;
}

/**
 * @param accepted a half-open socket of a server that was made with `pauseOnConnect`; it is destroyed when the
 *   new socket has closed, so that its server counts it.
 * @returns a socket that reads through `reader` and has no 'data' events, or undefined where that is not possible.
 */
export function readInto(accepted: Socket, reader: SocketReader): Socket | undefined {
  const isUnix = accepted.remoteAddress === undefined;
  const handle = takeHandle(accepted);
  if (handle === undefined) return undefined;
  if (isUnix && handle.fd !== undefined) holdMore(handle.fd);
  const options = {
    handle,
    allowHalfOpen: true,
    onread: {
      buffer: () => reader.inputTarget(),
      callback: (lengthBytes: number, target: Buffer) => reader.received(lengthBytes, target),
    },
  };
  const socket = new Socket(options);
  socket.once('close', () => accepted.destroy());
  return socket;
}

/** The system's number of an open socket; undefined where Node does not tell. */
export function descriptorOf(socket: Socket): number | undefined {
  const descriptor = handleOf(socket)?.fd;
  return descriptor !== undefined && descriptor >= 0 ? descriptor : undefined;
}

function handleOf(socket: object): Inside | undefined {
  if (!(HANDLE in socket)) return undefined;
  const handle = socket[HANDLE];
  return typeof handle === 'object' && handle !== null ? handle : undefined;
}

/** The handle of a socket, which is left without one. */
function takeHandle(socket: object): Inside | undefined {
  const handle = handleOf(socket);
  if (handle !== undefined && HANDLE in socket) socket[HANDLE] = null;
  return handle;
}

/** Raises the send buffer as far as this user may: root beyond the system's limit, others up to it. */
function holdMore(descriptor: number): void {
  const size = Buffer.alloc(4);
  size.writeInt32LE(LIMITS.nbdSendBufferBytes);
  for (const option of [SO_SNDBUFFORCE, SO_SNDBUF]) {
    try {
      setSocketOption(descriptor, SOL_SOCKET, option, size);
      return;
    } catch {
      // Slower, and nothing else.
    }
  }
}
