/**
 * The NBD server: exports, listeners and connections.
 *
 * A server has any number of exports, which may come and go while it serves, and any number of listeners,
 * Unix sockets and TCP. Each connection picks one export in its handshake, of those its listener offers.
 *
 * **One server for one device.** The order of changes between connections (`fence.ts`) is kept for each
 * export of a server, whichever listeners the connections came through. A device that two servers export,
 * or one server under two names, has no such order: so listeners are told what to offer instead.
 *
 * `close` ends cleanly: no new connections, requests in flight are answered, new ones get ESHUTDOWN, then
 * connections are closed. It returns when no device is in use any more; the devices stay the caller's.
 *
 * What it does not do: it does not remove a stale socket file before it listens (only the caller knows
 * whether another process owns it), and it does not know users; a Unix socket is made mode 0600.
 */

import { createServer, type Server, type Socket } from 'node:net';
import type { AssertionError } from '../base/index.ts';
import { decodeString } from './codec.ts';
import { type ConnectionHost, ServerConnection } from './connection.ts';
import { type Export, growerOf, hasFastZeroes, isReadOnly, offerOf } from './export.ts';
import { Fence } from './fence.ts';
import type { ExportOffer } from './handshake.ts';
import { type NbdLimits, nbdLimits } from './limits.ts';
import { type NbdListenPlace, startListening } from './listening.ts';
import type { NbdLog } from './log.ts';
import { NbdServerError } from './server-error.ts';
import type { NbdListenerTls } from './tls-server.ts';
import type { TransmissionTarget } from './transmission-port.ts';
import type { NbdTransport } from './uri.ts';

export interface NbdServerOptions {
  readonly exports?: readonly Export[];
  readonly log?: NbdLog;
  readonly limits?: Partial<NbdLimits>;
  /** Called when a device failed an assertion, after it was logged. Default: the process stops. */
  readonly onProgrammerError?: (error: AssertionError) => void;
}

/** What one listener lets its clients do. */
export interface ListenOptions {
  /**
   * Names of the exports it offers: only these are listed and found, and a single one of them is the default
   * export. A name need not exist yet. The set is asked at each look-up, so the caller may change it; clients
   * that are connected stay. Default: every export.
   */
  readonly exports?: Pick<ReadonlySet<string>, 'has'>;
  /**
   * What the empty name means, asked at each look-up. Default: the only export that the listener offers, where there
   * is just one.
   */
  readonly defaultExport?: string | undefined;
  /** Offers every export read-only. Default: as the export says. */
  readonly readOnly?: boolean;
  /** Encrypts, for those who ask or for everybody. Default: no TLS. */
  readonly tls?: NbdListenerTls;
  /** Ends this listener, and removes the file of its Unix socket; clients that are connected stay. */
  readonly signal?: AbortSignal;
}

/** An export as clients of a listener get it. */
interface Face {
  readonly offer: ExportOffer;
  readonly target: TransmissionTarget;
}

interface Served {
  readonly name: string;
  readonly face: Face;
  /** For listeners that offer everything read-only. */
  readonly readOnlyFace: Face;
}

export class NbdServer {
  readonly #limits: NbdLimits;
  readonly #log: NbdLog;
  readonly #onProgrammerError: (error: AssertionError) => void;
  readonly #exports = new Map<string, Served>();
  readonly #listeners = new Set<Server>();
  readonly #connections = new Set<ServerConnection>();
  /** Each connection until its last operation has finished, which may be after it was closed. */
  readonly #departing = new Set<Promise<void>>();
  #isClosing = false;

  constructor(options: NbdServerOptions = {}) {
    this.#limits = nbdLimits(options.limits);
    this.#log = options.log ?? (() => {});
    this.#onProgrammerError = options.onProgrammerError ?? stopProcess;
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
    if (nameBytes.length > this.#limits.nameBytesMax || decodeString(nameBytes) !== name) {
      const message = `Export name ${JSON.stringify(name)} is no text of up to ${this.#limits.nameBytesMax} bytes`;
      throw new NbdServerError('export-name-invalid', message, { name });
    }
    if (this.#exports.has(name)) {
      throw new NbdServerError('export-exists', `Export ${JSON.stringify(name)} exists already`, { name });
    }
    const fence = new Fence();
    const resize = growerOf(exported);
    const face = (readOnly: boolean): Face => ({
      offer: offerOf(exported, this.#limits.payloadBytesMax, readOnly),
      target: {
        device: exported.device,
        readOnly,
        fastZeroes: hasFastZeroes(exported),
        resize: readOnly ? undefined : resize,
        fence,
      },
    });
    this.#exports.set(name, { name, face: face(isReadOnly(exported)), readOnlyFace: face(true) });
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
   * Accepts clients on a Unix socket, a TCP address (port 0 takes a free one) or a socket that listens already.
   *
   * @returns where clients reach it, with the port that was taken. The path of a Unix socket that was handed
   *   over is empty where the system does not tell it.
   * @throws {NbdServerError} listen-failed, socket-path-too-long, descriptor-unusable, server-closed
   */
  async listen(place: NbdListenPlace, options: ListenOptions = {}): Promise<NbdTransport> {
    this.#assertOpen();
    const host = this.#hostOf(options);
    const listener = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (socket) =>
      this.#accept(socket, host),
    );
    const transport = await startListening(listener, place);
    if (this.#isClosing) {
      listener.close();
      this.#assertOpen();
    }
    this.#listeners.add(listener);
    listener.on('error', (error) => this.#log({ level: 'error', message: 'A listener failed', error }));
    options.signal?.addEventListener('abort', () => {
      if (this.#listeners.delete(listener)) listener.close();
    });
    return transport;
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

  // -------------------------------------------------------------------------------------------------

  /** The server as the clients of one listener see it. */
  #hostOf(options: ListenOptions): ConnectionHost {
    const { exports: names, readOnly = false } = options;
    const faceOf = (served: Served): Face => (readOnly ? served.readOnlyFace : served.face);
    const offered = (): Served[] =>
      [...this.#exports.values()].filter(({ name }) => names === undefined || names.has(name));
    const find = (asked: string): Served | undefined => {
      const name = asked === '' ? (options.defaultExport ?? asked) : asked;
      const served = this.#exports.get(name);
      if (served !== undefined && (names === undefined || names.has(name))) return served;
      // The empty name means the only export, where there is just one.
      const all = name === '' ? offered() : [];
      return all.length === 1 ? all[0] : undefined;
    };
    const connections = this.#connections;
    const { memoryBytesMax } = this.#limits;
    return {
      limits: this.#limits,
      memory: {
        get shareBytes() {
          return Math.floor(memoryBytesMax / Math.max(1, connections.size));
        },
      },
      log: this.#log,
      view: {
        list: () => offered().map((served) => faceOf(served).offer),
        find: (name) => {
          const served = find(name);
          return served && faceOf(served).offer;
        },
        isClosing: () => this.#isClosing,
      },
      target: (exportName) => {
        const served = this.#exports.get(exportName);
        return served && faceOf(served).target;
      },
      tls: options.tls,
      programmerError: this.#onProgrammerError,
    };
  }

  #accept(socket: Socket, host: ConnectionHost): void {
    const peer = peerOf(socket);
    const { connectionCountMax } = this.#limits;
    if (this.#isClosing || this.#connections.size >= connectionCountMax) {
      socket.destroy();
      const message = `A connection beyond ${connectionCountMax} was refused`;
      if (!this.#isClosing) this.#log({ level: 'warning', message, peer });
      return;
    }
    const connection = new ServerConnection(socket, peer, host);
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
