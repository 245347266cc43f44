/**
 * The NBD server: exports, listeners and connections.
 *
 * A server has any number of exports, which may come and go while it serves, and any number of listeners,
 * Unix sockets and TCP, which all serve all exports. Each connection picks one export in its handshake.
 *
 * `close` ends cleanly: no new connections, requests in flight are answered, new ones get ESHUTDOWN, then
 * connections are closed. It returns when no device is in use any more; the devices stay the caller's.
 *
 * What it does not do: it does not remove a stale socket file before it listens (only the caller knows
 * whether another process owns it), and it does not know users; a Unix socket is made mode 0600.
 */

import { chmodSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { type AssertionError, BlockError, LIMITS, messageOf } from '../base/index.ts';
import { decodeString } from './codec.ts';
import { type ConnectionHost, ServerConnection } from './connection.ts';
import { type Export, hasFastZeroes, isReadOnly, offerOf } from './export.ts';
import { Fence } from './fence.ts';
import type { ExportOffer, HandshakeView } from './handshake.ts';
import { type NbdLimits, nbdLimits } from './limits.ts';
import type { NbdLog } from './log.ts';
import type { TransmissionTarget } from './transmission.ts';
import type { NbdTransport } from './uri.ts';

/** Why a server could not do what it was asked. */
export interface NbdServerErrorDetails {
  /** The address is in use, not allowed, or does not exist; `cause` is the system's error. */
  'listen-failed': { readonly address: string };
  /** Node would cut the path silently. */
  'socket-path-too-long': { readonly path: string; readonly lengthBytes: number };
  'export-exists': { readonly name: string };
  'export-name-invalid': { readonly name: string };
  'server-closed': Record<string, never>;
}

export class NbdServerError<
  Code extends keyof NbdServerErrorDetails = keyof NbdServerErrorDetails,
> extends BlockError<NbdServerErrorDetails, Code> {}

export interface NbdServerOptions {
  readonly exports?: readonly Export[];
  readonly log?: NbdLog;
  readonly limits?: Partial<NbdLimits>;
  /** Called when a device failed an assertion, after it was logged. Default: the process stops. */
  readonly onProgrammerError?: (error: AssertionError) => void;
}

interface Served {
  readonly exported: Export;
  readonly offer: ExportOffer;
  readonly target: TransmissionTarget;
}

export class NbdServer implements ConnectionHost {
  readonly limits: NbdLimits;
  readonly log: NbdLog;
  readonly view: HandshakeView;
  readonly #onProgrammerError: (error: AssertionError) => void;
  readonly #exports = new Map<string, Served>();
  readonly #listeners = new Set<Server>();
  readonly #connections = new Set<ServerConnection>();
  /** Each connection until its last operation has finished, which may be after it was closed. */
  readonly #departing = new Set<Promise<void>>();
  #isClosing = false;

  constructor(options: NbdServerOptions = {}) {
    this.limits = nbdLimits(options.limits);
    this.log = options.log ?? (() => {});
    this.#onProgrammerError = options.onProgrammerError ?? stopProcess;
    this.view = {
      list: () => [...this.#exports.values()].map(({ offer }) => offer),
      find: (name) => this.#find(name)?.offer,
      isClosing: () => this.#isClosing,
    };
    for (const exported of options.exports ?? []) this.addExport(exported);
  }

  get connectionCount(): number {
    return this.#connections.size;
  }

  /** Connections in transmission on one export. */
  connectionCountOf(exportName: string): number {
    let count = 0;
    for (const connection of this.#connections) if (connection.exportName === exportName) count += 1;
    return count;
  }

  /**
   * Offers an export from now on.
   *
   * @throws {NbdServerError} export-exists, export-name-invalid
   */
  addExport(exported: Export): void {
    const { name } = exported;
    const nameBytes = Buffer.from(name);
    if (nameBytes.length > this.limits.nameBytesMax || decodeString(nameBytes) !== name) {
      const message = `Export name ${JSON.stringify(name)} is no text of up to ${this.limits.nameBytesMax} bytes`;
      throw new NbdServerError('export-name-invalid', message, { name });
    }
    if (this.#exports.has(name)) {
      throw new NbdServerError('export-exists', `Export ${JSON.stringify(name)} exists already`, { name });
    }
    const target = {
      device: exported.device,
      readOnly: isReadOnly(exported),
      fastZeroes: hasFastZeroes(exported),
      fence: new Fence(),
    };
    this.#exports.set(name, { exported, offer: offerOf(exported, this.limits.payloadBytesMax), target });
  }

  /**
   * Withdraws an export, as `close` does for all: its connections are shut down.
   *
   * @returns when its device is not in use any more. An unknown name is no error.
   */
  async removeExport(name: string): Promise<void> {
    if (!this.#exports.delete(name)) return;
    const leaving = [...this.#connections].filter((connection) => connection.exportName === name);
    await Promise.all(leaving.map((connection) => shutDown(connection)));
  }

  /**
   * Accepts clients on a Unix socket or a TCP address; port 0 takes a free one.
   *
   * @returns the transport with the port that was taken.
   * @throws {NbdServerError} listen-failed, socket-path-too-long, server-closed
   */
  async listen(transport: NbdTransport): Promise<NbdTransport> {
    this.#assertOpen();
    if (transport.kind === 'unix') assertSocketPath(transport.path);
    const listener = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#accept(socket));
    await startListening(listener, transport);
    if (this.#isClosing) {
      listener.close();
      this.#assertOpen();
    }
    this.#listeners.add(listener);
    listener.on('error', (error) => this.log({ level: 'error', message: 'A listener failed', error }));
    if (transport.kind === 'unix') return transport;
    return { ...transport, port: tcpAddress(listener).port };
  }

  /**
   * Closes cleanly. May be called again; every call returns when all is over.
   *
   * A device call that never finishes keeps it waiting: only then is a device safe to close.
   */
  async close(): Promise<void> {
    this.#isClosing = true;
    const listeners = [...this.#listeners];
    this.#listeners.clear();
    const closing = listeners.map((listener) => new Promise<void>((done) => listener.close(() => done())));
    for (const connection of this.#connections) connection.shutdown();
    await Promise.all([...this.#departing, ...closing]);
  }

  // ConnectionHost

  target(exportName: string): TransmissionTarget | undefined {
    return this.#exports.get(exportName)?.target;
  }

  programmerError(error: AssertionError): void {
    this.#onProgrammerError(error);
  }

  // -------------------------------------------------------------------------------------------------

  /** The empty name means the only export, where there is just one. */
  #find(name: string): Served | undefined {
    const served = this.#exports.get(name);
    if (served !== undefined || name !== '' || this.#exports.size !== 1) return served;
    return [...this.#exports.values()][0];
  }

  #accept(socket: Socket): void {
    const peer = peerOf(socket);
    if (this.#isClosing || this.#connections.size >= this.limits.connectionCountMax) {
      socket.destroy();
      const message = `A connection beyond ${this.limits.connectionCountMax} was refused`;
      if (!this.#isClosing) this.log({ level: 'warning', message, peer });
      return;
    }
    const connection = new ServerConnection(socket, peer, this);
    this.#connections.add(connection);
    socket.once('close', () => this.#connections.delete(connection));
    const departed: Promise<void> = connection.whenClosed().then(() => {
      this.#departing.delete(departed);
    });
    this.#departing.add(departed);
  }

  #assertOpen(): void {
    if (this.#isClosing) throw new NbdServerError('server-closed', 'The server is closed', {});
  }
}

async function shutDown(connection: ServerConnection): Promise<void> {
  connection.shutdown();
  await connection.whenClosed();
}

function assertSocketPath(path: string): void {
  const lengthBytes = Buffer.byteLength(path);
  if (lengthBytes <= LIMITS.socketPathBytesMax) return;
  const message = `Socket path ${path} has ${lengthBytes} bytes, at most ${LIMITS.socketPathBytesMax} are possible`;
  throw new NbdServerError('socket-path-too-long', message, { path, lengthBytes });
}

function startListening(listener: Server, transport: NbdTransport): Promise<void> {
  const address = transport.kind === 'unix' ? transport.path : `${transport.host}:${transport.port}`;
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
    if (transport.kind === 'tcp') {
      listener.listen({ host: transport.host, port: transport.port });
      return;
    }
    listener.listen({ path: transport.path });
    // The socket is bound when `listen` returns: nobody else can connect from here on.
    if (listener.listening) chmodSync(transport.path, 0o600);
  });
}

function tcpAddress(listener: Server): AddressInfo {
  const address = listener.address();
  if (address === null || typeof address === 'string') throw new TypeError('The listener has no TCP address');
  return address;
}

function peerOf(socket: Socket): string {
  const { remoteAddress, remotePort } = socket;
  return remoteAddress === undefined ? 'unix' : `tcp ${remoteAddress}:${remotePort}`;
}

/** An assertion that failed in a device: thrown where nobody catches it. */
function stopProcess(error: AssertionError): void {
  queueMicrotask(() => {
    throw error;
  });
}
