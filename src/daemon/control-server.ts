/**
 * The server side of the control protocol, on one Unix socket of one volume.
 *
 * Bounded everywhere: connections, bytes of a line, requests of one connection that run at once. A client
 * that does not read its answers is not read either, and is told no progress meanwhile.
 *
 * A connection that ends takes nothing with it: its requests run on and their answers are dropped.
 */

import { createServer, type Server, type Socket } from 'node:net';
import type { DryRun, SavingProgress } from '../backup/index.ts';
import { LIMITS, messageOf } from '../base/index.ts';
import type { BackupOutcome, BackupParams, SnapshotParams } from './backup-params.ts';
import {
  type ControlReply,
  type ControlRequest,
  encodeLine,
  parseRequest,
  type SnapshotChanges,
  type SnapshotClone,
} from './control-protocol.ts';
import type { CopyForecast, CopyOutcome, CopyParams } from './copy-params.ts';
import { DaemonError, toWireError } from './errors.ts';
import type { FillOutcome, FillParams } from './fill-from-media.ts';
import type { ReplaceParams, ScrubParams } from './mirror-params.ts';
import { LineSplitter } from './lines.ts';
import { openSocketPath, removeStaleSocket, restrictSocket, type SocketPath } from './socket-path.ts';

/** Told while a long request runs. */
export interface RequestEvents {
  session(id: string): void;
  progress(progress: SavingProgress): void;
  /** Something that does not end the request, but must be known at once; a sentence. */
  warning(sentence: string): void;
}

/** What the commands do. Results are plain JSON values; errors are answered with their code and message. */
export interface ControlHandlers {
  status(): Promise<unknown>;
  show(): Promise<unknown>;
  /** One outcome for each volume. */
  backup(params: BackupParams, events: RequestEvents): Promise<readonly BackupOutcome[]>;
  backupPlan(params: BackupParams): Promise<readonly DryRun[]>;
  copy(params: CopyParams, events: RequestEvents): Promise<CopyOutcome>;
  copyPlan(params: CopyParams): Promise<CopyForecast>;
  fillFromMedia(params: FillParams, events: RequestEvents): Promise<FillOutcome>;
  snapshotCreate(params: SnapshotParams, events: RequestEvents): Promise<unknown>;
  snapshotList(): Promise<unknown>;
  snapshotDelete(name: string): Promise<unknown>;
  snapshotRollback(name: string, events: RequestEvents): Promise<unknown>;
  snapshotChanges(changes: SnapshotChanges): Promise<unknown>;
  snapshotClone(clone: SnapshotClone, events: RequestEvents): Promise<unknown>;
  cancel(session: string | undefined): Promise<unknown>;
  grow(sizeBytes: number): Promise<unknown>;
  scrub(params: ScrubParams, events: RequestEvents): Promise<unknown>;
  replace(params: ReplaceParams, events: RequestEvents): Promise<unknown>;
}

export class ControlServer {
  readonly #server: Server;
  readonly #place: SocketPath;
  readonly #connections: Set<Connection>;

  private constructor(server: Server, place: SocketPath, connections: Set<Connection>) {
    this.#server = server;
    this.#place = place;
    this.#connections = connections;
  }

  /**
   * Binds the socket, mode 0600. The caller holds the lock of the volume that the path lies in: whatever
   * socket lay there before is removed.
   *
   * @throws {DaemonError} cannot-listen
   */
  static async start(options: {
    readonly path: string;
    readonly handlers: ControlHandlers;
  }): Promise<ControlServer> {
    const { path, handlers } = options;
    await removeStaleSocket(path);
    const place = await openSocketPath(path);
    const connections = new Set<Connection>();
    // Half open: a script may send its requests, close its end and still read the answers.
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      if (connections.size >= LIMITS.controlConnectionCountMax) {
        refuse(socket);
        return;
      }
      const connection = new Connection(socket, handlers);
      connections.add(connection);
      socket.once('close', () => connections.delete(connection));
    });
    try {
      await listen(server, place.address);
      await restrictSocket(path);
    } catch (error) {
      server.close();
      await place.release();
      const message = `Cannot listen on ${path}: ${messageOf(error)}`;
      throw new DaemonError('cannot-listen', message, { address: path }, { cause: error });
    }
    return new ControlServer(server, place, connections);
  }

  /** Accepts nothing more, answers what runs, then ends the connections and unlinks the socket. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    await Promise.all([...this.#connections].map((connection) => connection.finish()));
    await closed;
    await this.#place.release();
  }
}

/** One client. */
class Connection {
  readonly #socket: Socket;
  readonly #handlers: ControlHandlers;
  readonly #splitter = new LineSplitter(LIMITS.controlLineBytesMax);
  readonly #running = new Map<number, Promise<void>>();
  #finishing = false;

  constructor(socket: Socket, handlers: ControlHandlers) {
    this.#socket = socket;
    this.#handlers = handlers;
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('drain', () => socket.resume());
    socket.on('end', () => void this.finish());
    // Whatever ended the connection ends nothing else; 'close' follows.
    socket.on('error', () => undefined);
  }

  /** Reads no more, lets the requests finish, and says goodbye. A client that does not read is cut off. */
  async finish(): Promise<void> {
    this.#finishing = true;
    await Promise.all(this.#running.values());
    if (this.#socket.destroyed) return;
    const closed = new Promise((resolve) => this.#socket.once('close', resolve));
    if (this.#socket.writableNeedDrain) this.#socket.destroy();
    else this.#socket.end(() => this.#socket.destroy());
    await closed;
  }

  #receive(chunk: Buffer): void {
    if (this.#finishing) return;
    const { lines, overflow } = this.#splitter.push(chunk);
    for (const line of lines) if (line.trim() !== '') this.#accept(line);
    if (overflow) {
      const reason = `A line is longer than ${LIMITS.controlLineBytesMax} bytes`;
      this.#send({
        id: null,
        event: 'error',
        error: toWireError(new DaemonError('bad-request', reason, { reason })),
      });
      this.#socket.end();
      this.#finishing = true;
    }
  }

  #accept(line: string): void {
    const request = parseRequest(line);
    if ('error' in request) {
      this.#send({ id: request.id, event: 'error', error: toWireError(request.error) });
      return;
    }
    const { id } = request;
    const refusal = this.#refusal(id);
    if (refusal !== undefined) {
      this.#send({ id, event: 'error', error: toWireError(refusal) });
      return;
    }
    const running = this.#answer(request).finally(() => this.#running.delete(id));
    this.#running.set(id, running);
  }

  #refusal(id: number): DaemonError | undefined {
    if (this.#running.has(id)) {
      const reason = `Request ${id} still runs, wanted an id of its own`;
      return new DaemonError('bad-request', reason, { reason });
    }
    const limit = LIMITS.controlInFlightCountMax;
    if (this.#running.size < limit) return undefined;
    return new DaemonError('too-many', `${limit} requests of this connection run already, wanted fewer`, {
      limit,
    });
  }

  async #answer(request: ControlRequest): Promise<void> {
    const { id } = request;
    try {
      const result = await this.#perform(request);
      this.#send({ id, event: 'done', result });
    } catch (error) {
      this.#send({ id, event: 'error', error: toWireError(error) });
    }
  }

  #perform(request: ControlRequest): Promise<unknown> {
    switch (request.command) {
      case 'status':
        return this.#handlers.status();
      case 'show':
        return this.#handlers.show();
      case 'cancel':
        return this.#handlers.cancel(request.params.session);
      case 'grow':
        return this.#handlers.grow(request.params.sizeBytes);
      case 'scrub':
        return this.#handlers.scrub(request.params, this.#eventsOf(request.id));
      case 'replace':
        return this.#handlers.replace(request.params, this.#eventsOf(request.id));
      case 'backup':
        return this.#handlers.backup(request.params, this.#eventsOf(request.id));
      case 'backup-plan':
        return this.#handlers.backupPlan(request.params);
      case 'copy':
        return this.#handlers.copy(request.params, this.#eventsOf(request.id));
      case 'copy-plan':
        return this.#handlers.copyPlan(request.params);
      case 'fill':
        return this.#handlers.fillFromMedia(request.params, this.#eventsOf(request.id));
      case 'snapshot-create':
        return this.#handlers.snapshotCreate(request.params, this.#eventsOf(request.id));
      case 'snapshot-list':
        return this.#handlers.snapshotList();
      case 'snapshot-delete':
        return this.#handlers.snapshotDelete(request.params.name);
      case 'snapshot-rollback':
        return this.#handlers.snapshotRollback(request.params.name, this.#eventsOf(request.id));
      case 'snapshot-changes':
        return this.#handlers.snapshotChanges(request.params);
      case 'snapshot-clone':
        return this.#handlers.snapshotClone(request.params, this.#eventsOf(request.id));
    }
  }

  #eventsOf(id: number): RequestEvents {
    return {
      session: (session) => this.#send({ id, event: 'session', session }),
      progress: (progress) => this.#tell({ id, event: 'progress', progress }),
      warning: (warning) => this.#send({ id, event: 'warning', warning }),
    };
  }

  /** Sends what may be lost: nothing while the client does not read. */
  #tell(reply: ControlReply): void {
    if (!this.#socket.writableNeedDrain) this.#send(reply);
  }

  #send(reply: ControlReply): void {
    if (!this.#socket.writable) return;
    if (!this.#socket.write(encodeLine(reply))) this.#socket.pause();
  }
}

function refuse(socket: Socket): void {
  const limit = LIMITS.controlConnectionCountMax;
  const error = new DaemonError('too-many', `${limit} control connections are open already, wanted fewer`, {
    limit,
  });
  socket.on('error', () => undefined);
  socket.end(encodeLine({ id: null, event: 'error', error: toWireError(error) }));
}

function listen(server: Server, address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(address, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
