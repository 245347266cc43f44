/**
 * One client's connection: the socket, and the two machines that take turns on it.
 *
 *     accepted -> handshake [-> TLS -> handshake] (with a time limit) -> transmission -> closing -> closed
 *
 * This is the only module that touches the sockets of the server. It turns their events into calls of the
 * machines and their decisions into calls of the socket: read, pause, send, close.
 *
 * The socket is read into one buffer, again and again, and into a large write's own buffer where its bytes are
 * what comes next; a buffer that requests still use after their turn is left to them and replaced.
 *
 * **Closing.** After the last reply our side is ended and the client may take its time to read it; once the
 * server itself wants to close, `closeMsMax` bounds that. The socket allows half-open connections, so a
 * client that shut down its sending side still gets its answers.
 */

import type { Socket } from 'node:net';
import { assert, type AssertionError, hasPeerClosed, KIB, LIMITS } from '../base/index.ts';
import type { MemoryShare } from './admission.ts';
import { sharedBuffers } from './buffer-pool.ts';
import { busyPoll } from './busy-poll.ts';
import { type HandshakeView, type Negotiated, ServerHandshake } from './handshake.ts';
import type { NbdLimits } from './limits.ts';
import type { NbdLog } from './log.ts';
import { descriptorOf, readInto, type SocketReader } from './socket-input.ts';
import { sendAtOnce } from './socket-output.ts';
import { acceptTls, type NbdListenerTls } from './tls-server.ts';
import { Transmission } from './transmission.ts';
import type { TransmissionPort, TransmissionTarget } from './transmission-port.ts';

/** A payload's rest that is at least this long is read into its place; a shorter one is copied there. */
const DIRECT_BYTES_MIN = 32 * KIB;
/** What is read behind a large payload. */
const SHORT_INPUT_BYTES = 4 * KIB;

/** What a connection needs of its server. */
export interface ConnectionHost {
  readonly limits: NbdLimits;
  readonly view: HandshakeView;
  readonly log: NbdLog;
  /** How the listener does TLS; undefined where it does none. */
  readonly tls: NbdListenerTls | undefined;
  /** What this connection may hold, beside the others of its server. */
  readonly memory: MemoryShare;
  programmerError(error: AssertionError): void;
  /** The export to serve; undefined where it was removed since it was offered. */
  target(exportName: string): TransmissionTarget | undefined;
}

export class ServerConnection implements TransmissionPort, SocketReader {
  readonly peer: string;
  readonly #host: ConnectionHost;
  /** The accepted one, until TLS takes its place. */
  #socket: Socket;
  /** That of the system, under TLS too. */
  readonly #descriptor: number | undefined;
  /** The same while no TLS is between: replies may be written to it. */
  #plain: number | undefined;
  readonly #handshake: ServerHandshake;
  #transmission: Transmission | undefined;
  #exportName: string | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isClosing = false;
  readonly #closed: Promise<void>;
  /** What the socket is read into. */
  #input: Buffer | undefined;
  /** The last read went, or the next one goes, straight into a write's payload. */
  #readsPayload = false;

  /** Starts at once: sends the greeting and reads. The socket is the connection's from now on. */
  constructor(accepted: Socket, peer: string, host: ConnectionHost) {
    this.peer = peer;
    this.#host = host;
    this.#handshake = new ServerHandshake(host.view, host.limits, host.tls?.policy);
    const socket = readInto(accepted, this) ?? accepted;
    this.#socket = socket;
    this.#descriptor = descriptorOf(socket);
    this.#plain = this.#descriptor;
    this.#closed = new Promise((resolve) => socket.once('close', () => resolve()));
    this.#listen();
    this.#destroyAfter(host.limits.handshakeMsMax, 'The handshake took too long');
    socket.write(this.#handshake.greeting());
  }

  /** The export being served, undefined during the handshake. */
  get exportName(): string | undefined {
    return this.#exportName;
  }

  /** Resolves when the socket is closed and no operation of this connection runs any more. */
  async whenClosed(): Promise<void> {
    await this.#closed;
    await this.#transmission?.whenIdle();
  }

  /** Answers what is in flight, refuses what is new, and closes. */
  shutdown(): void {
    if (this.#transmission === undefined) {
      // The protocol lets a closing server refuse further options; a client in between has none to refuse.
      if (this.#handshake.isBetweenOptions) this.#close();
      return;
    }
    this.#isClosing = true;
    if (this.#transmission.isFinished) this.#close();
    else this.#transmission.shutdown();
  }

  // -------------------------------------------------------------------------------------------------
  // TransmissionPort

  send(buffers: readonly Buffer[]): void {
    const socket = this.#socket;
    if (this.isBroken()) return;
    const plain = socket.writableLength === 0 ? this.#plain : undefined;
    const rest = plain === undefined ? buffers : sendAtOnce(plain, buffers);
    if (rest.length === 0) {
      this.#sent(buffers, undefined);
      return;
    }
    const last = rest.length - 1;
    if (last > 0) socket.cork();
    for (const [index, buffer] of rest.entries()) {
      if (index === last) socket.write(buffer, (error) => this.#sent(buffers, error));
      else socket.write(buffer);
    }
    if (last > 0) socket.uncork();
  }

  #sent(buffers: readonly Buffer[], error: Error | null | undefined): void {
    for (const buffer of buffers) {
      // Of a socket that broke it is not said what it still holds.
      if (error === null || error === undefined) sharedBuffers.release(buffer);
      else sharedBuffers.forget(buffer);
    }
    this.#transmission?.outputDrained();
  }

  unsentBytes(): number {
    return this.#socket.writableLength;
  }

  isBroken(): boolean {
    return this.#socket.destroyed || this.#socket.errored !== null || this.#socket.writableEnded;
  }

  isPeerGone(): boolean {
    if (this.#socket.destroyed) return true;
    return this.#descriptor !== undefined && hasPeerClosed(this.#descriptor);
  }

  resumeInput(): void {
    if (!this.#socket.destroyed) this.#socket.resume();
  }

  finished(): void {
    if (this.#isClosing) this.#close();
    else this.#socket.end(() => this.#destroyAfter(this.#host.limits.closeMsMax, 'The client did not close'));
    this.#socket.resume();
  }

  hangUp(reason: string): void {
    this.log('warning', reason);
    this.#socket.destroy();
  }

  log(level: 'info' | 'warning' | 'error', message: string, error?: unknown): void {
    const { peer } = this;
    const exportName = this.#exportName;
    this.#host.log({
      level,
      message,
      peer,
      ...(exportName === undefined ? {} : { exportName }),
      ...(error === undefined ? {} : { error }),
    });
  }

  programmerError(error: AssertionError): void {
    this.#host.programmerError(error);
  }

  // -------------------------------------------------------------------------------------------------
  // SocketReader

  inputTarget(): Buffer {
    const payload = this.#transmission?.payloadTarget;
    if (payload !== undefined && payload.length >= DIRECT_BYTES_MIN) {
      this.#readsPayload = true;
      return payload;
    }
    this.#input ??= Buffer.allocUnsafeSlow(LIMITS.nbdInputBytesMax);
    if (!this.#readsPayload) return this.#input;
    // Another large write is likely: what is read beyond its header would have to be copied.
    this.#readsPayload = false;
    return this.#input.subarray(0, SHORT_INPUT_BYTES);
  }

  received(lengthBytes: number, target: Buffer): boolean {
    busyPoll.arrived();
    if (this.#readsPayload) {
      this.#transmission?.receivedInPlace(lengthBytes);
    } else {
      this.#receive(target.subarray(0, lengthBytes));
      if (this.#transmission?.keepsInput === true) this.#input = undefined;
    }
    busyPoll.served();
    return this.#transmission?.isBlocked !== true;
  }

  // -------------------------------------------------------------------------------------------------

  #listen(): void {
    const socket = this.#socket;
    // Only a socket that could not be made to read into our buffers, or TLS, has 'data' events.
    socket.on('data', this.#onData);
    socket.on('end', this.#onEnd);
    socket.on('error', (error) => this.log('info', 'The connection broke', error));
    socket.on('close', () => {
      clearTimeout(this.#timer);
      this.#transmission?.abort();
    });
  }

  readonly #onData = (chunk: Buffer): void => this.#receive(chunk);
  readonly #onEnd = (): void => this.#end();

  #receive(chunk: Buffer): void {
    if (this.#socket.writableEnded || this.#socket.destroyed) return;
    if (this.#transmission === undefined) {
      this.#negotiate(chunk);
      return;
    }
    this.#transmission.receive(chunk);
    if (this.#transmission.isBlocked) this.#socket.pause();
  }

  #negotiate(chunk: Buffer): void {
    // The machine keeps what is not a whole message yet.
    const { output, decision } = this.#handshake.receive(Buffer.from(chunk));
    if (output.length > 0) this.#socket.write(output);
    switch (decision.kind) {
      case 'continue':
        return;
      case 'close':
        this.log('info', decision.reason);
        this.#close();
        return;
      case 'start-tls':
        this.#startTls();
        return;
      case 'transmission':
        this.#transmit(decision.negotiated, decision.rest);
    }
  }

  /** Leaves the plain socket to TLS and goes on with what comes out of it, under the same time limit. */
  #startTls(): void {
    const { tls } = this.#host;
    const plain = this.#socket;
    assert(tls !== undefined, 'TLS was agreed on and is not offered');
    this.#plain = undefined;
    plain.off('data', this.#onData).off('end', this.#onEnd).pause();
    void acceptTls(plain, tls.credentials).then((outcome) => {
      if (outcome.kind === 'failed') {
        this.log('warning', outcome.reason);
        this.#close();
        return;
      }
      this.log('info', outcome.description);
      this.#handshake.secured();
      this.#socket = outcome.socket;
      this.#listen();
    });
  }

  #transmit(negotiated: Negotiated, rest: Buffer): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const target = this.#host.target(negotiated.exportName);
    assert(target !== undefined, `Export ${negotiated.exportName} was offered and does not exist`);
    this.#exportName = negotiated.exportName;
    this.#transmission = new Transmission(target, this.#host.limits, this, negotiated, this.#host.memory);
    if (rest.length > 0) this.#receive(rest);
  }

  #end(): void {
    if (this.#transmission === undefined) this.#close();
    else this.#transmission.end();
  }

  /** Sends what is queued, then closes; a client that does not take it, or stays, is cut off. */
  #close(): void {
    this.#destroyAfter(this.#host.limits.closeMsMax, undefined);
    this.#socket.end();
    this.#socket.resume();
  }

  #destroyAfter(milliseconds: number, reason: string | undefined): void {
    if (this.#socket.destroyed) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (reason !== undefined) this.log('info', reason);
      this.#socket.destroy();
    }, milliseconds);
  }
}
