/**
 * The client side of the control protocol.
 *
 * Finding that nobody serves is no error: the command then opens the volume itself (DESIGN section 6). A
 * socket file without a listener is the leftover of a process that was killed; only the next holder of the
 * volume's lock removes it.
 */

import type { Socket } from 'node:net';
import { join } from 'node:path';
import { deferred, type Deferred, LIMITS, messageOf, systemCode } from '../base/index.ts';
import { type ControlReply, type ControlRequest, encodeLine, parseReply } from './control-protocol.ts';
import { DaemonError, fromWireError } from './errors.ts';
import { LineSplitter } from './lines.ts';
import { connectTo, openSocketPath } from './socket-path.ts';

export const CONTROL_SOCKET_NAME = 'control.sock';

type WithoutId<T> = T extends unknown ? Omit<T, 'id'> : never;

export interface RequestListener {
  readonly onSession?: (session: string) => void;
  readonly onProgress?: (progress: unknown) => void;
  readonly onWarning?: (sentence: string) => void;
}

interface Waiting {
  readonly answer: Deferred<unknown>;
  readonly listener: RequestListener;
}

export class ControlClient {
  readonly #socket: Socket;
  readonly #path: string;
  readonly #splitter = new LineSplitter(LIMITS.controlLineBytesMax);
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 1;
  #failure: Error | undefined;

  private constructor(socket: Socket, path: string) {
    this.#socket = socket;
    this.#path = path;
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (error) => this.#fail(this.#lost(error)));
    socket.on('close', () => this.#fail(this.#lost()));
  }

  /** Connects to the process that serves the volume; undefined where none does. */
  static async connect(volumeDirectory: string): Promise<ControlClient | undefined> {
    const path = join(volumeDirectory, CONTROL_SOCKET_NAME);
    try {
      const place = await openSocketPath(path);
      try {
        return new ControlClient(await connectTo(place.address), path);
      } finally {
        await place.release();
      }
    } catch (error) {
      const code = systemCode(error);
      if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ECONNREFUSED') return undefined;
      const message = `Cannot talk to the server of ${volumeDirectory}: ${messageOf(error)}`;
      throw new DaemonError('control-lost', message, { path }, { cause: error });
    }
  }

  /**
   * Sends a request and waits for its answer; several may run at once.
   *
   * @throws {RemoteError} with the code of the server's error; {CorruptionError} for damage met there;
   *   {DaemonError} control-lost when the connection ends first, bad-reply.
   */
  async request(request: WithoutId<ControlRequest>, listener: RequestListener = {}): Promise<unknown> {
    if (this.#failure !== undefined) throw this.#failure;
    const id = this.#nextId;
    this.#nextId += 1;
    const answer = deferred<unknown>();
    this.#waiting.set(id, { answer, listener });
    this.#socket.write(encodeLine({ ...request, id }));
    return answer.promise;
  }

  /** Ends the connection; what still runs there runs on. */
  close(): void {
    this.#socket.destroy();
  }

  #receive(chunk: Buffer): void {
    const { lines, overflow } = this.#splitter.push(chunk);
    try {
      for (const line of lines) this.#dispatch(parseReply(line));
      if (overflow) throw new RangeError(`A line is longer than ${LIMITS.controlLineBytesMax} bytes`);
    } catch (error) {
      const reason = messageOf(error);
      const message = `What answers on ${this.#path} is no server of this version: ${reason}`;
      this.#fail(new DaemonError('bad-reply', message, { reason }, { cause: error }));
      this.#socket.destroy();
    }
  }

  #dispatch(reply: ControlReply): void {
    if (reply.id === null) {
      // Said about the connection as a whole: nothing that waits will be answered.
      if (reply.event === 'error') this.#fail(fromWireError(reply.error));
      return;
    }
    const waiting = this.#waiting.get(reply.id);
    if (waiting === undefined) return;
    if (reply.event === 'session') waiting.listener.onSession?.(reply.session);
    else if (reply.event === 'warning') waiting.listener.onWarning?.(reply.warning);
    else if (reply.event === 'progress') waiting.listener.onProgress?.(reply.progress);
    else {
      this.#waiting.delete(reply.id);
      if (reply.event === 'done') waiting.answer.resolve(reply.result);
      else waiting.answer.reject(fromWireError(reply.error));
    }
  }

  #lost(cause?: Error): DaemonError<'control-lost'> {
    const why = cause === undefined ? 'the server went away' : cause.message;
    const message = `The connection to ${this.#path} ended before the answer: ${why}`;
    return new DaemonError('control-lost', message, { path: this.#path }, { cause });
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const waiting of this.#waiting.values()) waiting.answer.reject(error);
    this.#waiting.clear();
  }
}
