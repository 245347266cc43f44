/**
 * The socket of a client, from connecting to closing, and the handshake on it.
 *
 *     connecting -> handshake [-> TLS -> handshake] -> whoever attached
 *
 * A plain socket reads into one buffer that is used again and again; one that becomes encrypted is read as
 * Node's TLS gives it. An address with TLS never sends more than the wish for TLS in the clear.
 */

import { connect, type Socket } from 'node:net';
import { assert, LIMITS, messageOf } from '../base/index.ts';
import type { NbdConnectOptions } from './client.ts';
import { NbdClientError } from './client-error.ts';
import {
  type ClientDecision,
  ClientHandshake,
  type HandshakeGoal,
  type HandshakeWishes,
} from './client-handshake.ts';
import { OPTION_REPLY } from './codec.ts';
import { connectTls } from './tls-client.ts';
import { type ClientCredentials, loadTlsClientCredentials } from './tls-credentials.ts';
import { isTlsError, reasonOf } from './tls-reason.ts';
import { formatNbdUri, type NbdAddress, type NbdTransport } from './uri.ts';

/** One read buffer per connection, reused: replies are copied out of it at once. */
const READ_BUFFER_BYTES = 256 * 1024;

export interface LinkListener {
  /** The chunk is valid during the call only. */
  receive(chunk: Buffer): void;
  /** The peer closed or the socket failed. */
  lost(error: unknown): void;
}

export type Outcome = Extract<ClientDecision, { kind: 'export' | 'listed' }>;
type Failure = Extract<ClientDecision, { kind: 'refused' | 'tls-refused' | 'violation' }>;

const DEAF: LinkListener = { receive: () => {}, lost: () => {} };

export class Link {
  readonly name: string;
  readonly closed: Promise<void>;
  readonly #address: NbdAddress;
  readonly #credentials: ClientCredentials | undefined;
  #socket: Socket;
  #listener: LinkListener = DEAF;
  #isCorked = false;
  #error: unknown;
  /** How far TLS is; `answered` once the server has said something in it. */
  #tls: 'none' | 'secured' | 'answered' = 'none';

  /**
   * Begins to connect.
   *
   * @throws {NbdTlsError} where the address names files for TLS that cannot be used.
   */
  static async open(address: NbdAddress): Promise<Link> {
    return new Link(address, address.tls && (await loadTlsClientCredentials(address.tls)));
  }

  private constructor(address: NbdAddress, credentials: ClientCredentials | undefined) {
    this.name = formatNbdUri(address);
    this.#address = address;
    this.#credentials = credentials;
    const { transport } = address;
    this.#socket = credentials === undefined ? openSocket(transport, this.#receive) : openStream(transport);
    this.closed = new Promise((resolve) => this.#socket.once('close', () => resolve()));
    this.#listen();
  }

  attach(listener: LinkListener): void {
    this.#listener = listener;
    if (this.#socket.destroyed) listener.lost(this.#error);
  }

  /** Collects what is sent in this turn of the loop and hands it over in one go. */
  send(bytes: Buffer): void {
    const socket = this.#socket;
    if (socket.destroyed || bytes.length === 0) return;
    if (!this.#isCorked) {
      this.#isCorked = true;
      socket.cork();
      queueMicrotask(() => {
        this.#isCorked = false;
        socket.uncork();
      });
    }
    socket.write(bytes);
  }

  /** Sends what is queued and closes, without waiting for the server to close. */
  end(): void {
    this.#socket.destroySoon();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  /**
   * Stops reading, so that the descriptor can be given to someone else, and gives it. It stays this link's
   * to close. What had arrived behind the handshake is in the decision's `rest`, all else is still unread.
   * An encrypted link has no descriptor that would be of use.
   */
  release(): number {
    assert(this.#credentials === undefined, 'An encrypted link cannot be given away');
    // A socket that reads into a buffer of its own stops at once; the next bytes stay in the kernel.
    this.#socket.pause();
    const handle: unknown = Reflect.get(this.#socket, '_handle');
    const descriptor: unknown = typeof handle === 'object' && handle !== null && Reflect.get(handle, 'fd');
    assert(typeof descriptor === 'number' && descriptor >= 0, 'An open socket has a descriptor');
    return descriptor;
  }

  /** Runs the handshake; the link is closed unless the goal was the transmission and was reached. */
  negotiate(goal: HandshakeGoal, options: NbdConnectOptions, wishes: HandshakeWishes = {}): Promise<Outcome> {
    const handshake = new ClientHandshake(goal, { ...wishes, tls: this.#credentials !== undefined });
    const timeoutMs = options.timeoutMs ?? LIMITS.nbdConnectMsMax;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        fail(this.#connectFailed(`no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const fail = (error: Error): void => {
        clearTimeout(timer);
        this.#listener = DEAF;
        // A connection that is not there yet has nothing to say goodbye to.
        if (this.#socket.connecting) this.destroy();
        else this.end();
        reject(error);
      };
      const talking: LinkListener = {
        receive: (chunk) => {
          const { output, decision } = handshake.receive(Buffer.from(chunk));
          this.send(output);
          if (decision.kind === 'continue') return;
          this.#listener = DEAF;
          if (decision.kind === 'start-tls') {
            this.#secure().then(() => {
              this.#listener = talking;
              this.send(handshake.secured());
            }, fail);
            return;
          }
          if (decision.kind !== 'export' && decision.kind !== 'listed') {
            fail(this.#refused(decision));
            return;
          }
          clearTimeout(timer);
          if (goal.kind !== 'go') this.end();
          resolve(decision);
        },
        lost: (error) => fail(handshake.isAwaitingExportName ? this.#unknown() : this.#hungUp(error)),
      };
      this.#listener = talking;
    });
  }

  // -------------------------------------------------------------------------------------------------

  readonly #receive = (chunk: Buffer): void => {
    if (this.#tls === 'secured') this.#tls = 'answered';
    this.#listener.receive(chunk);
  };

  #listen(): void {
    const socket = this.#socket;
    socket.on('error', (error) => {
      this.#error = error;
    });
    socket.on('end', () => this.#listener.lost(this.#error));
    socket.on('close', () => this.#listener.lost(this.#error));
    if (this.#credentials !== undefined) socket.on('data', this.#receive);
    // A socket whose reads go to `onread` still ends like a stream: nothing is left to be read from it.
    socket.resume();
  }

  /** Puts TLS between the socket and everything else. */
  async #secure(): Promise<void> {
    const plain = this.#socket;
    assert(this.#credentials !== undefined, 'TLS was asked for without credentials');
    plain.off('data', this.#receive);
    plain.pause();
    const { transport, tls } = this.#address;
    const name = tls?.hostname ?? (transport.kind === 'tcp' ? transport.host : undefined);
    try {
      this.#socket = await connectTls(plain, this.#credentials, name);
    } catch (error) {
      plain.destroy();
      throw this.#tlsFailed(error);
    }
    this.#tls = 'secured';
    this.#listen();
  }

  #refused(decision: Failure): NbdClientError {
    const address = this.name;
    if (decision.kind === 'violation') {
      const message = `The server at ${address} broke the protocol: ${decision.reason}`;
      return new NbdClientError('protocol-violation', message, { address });
    }
    if (decision.kind === 'tls-refused') {
      const message = `The server at ${address} has no TLS: ${decision.reason}`;
      return new NbdClientError('tls-refused', message, { address });
    }
    const { option, replyType, reason } = decision;
    if (replyType === OPTION_REPLY.errorUnknown) return this.#unknown();
    if (replyType === OPTION_REPLY.errorTlsRequired) {
      const message = `The server at ${address} insists on TLS, wanted an address that begins with nbds`;
      return new NbdClientError('tls-required', message, { address });
    }
    const message = `The server at ${address} refused option ${option}: ${reason}`;
    return new NbdClientError('option-refused', message, { address, option, replyType });
  }

  #unknown(): NbdClientError {
    const { exportName } = this.#address;
    const message = `The server at ${this.name} has no export ${JSON.stringify(exportName)}`;
    return new NbdClientError('export-unknown', message, { address: this.name, exportName });
  }

  #hungUp(error: unknown): NbdClientError {
    if (isTlsError(error)) return this.#tlsFailed(error);
    if (this.#tls === 'secured') {
      // In TLS 1.3 a client is done before its certificate was looked at, and not every server says no.
      return this.#tlsFailed(new Error('the server hung up, it may not accept what this client showed'));
    }
    return this.#connectFailed(error === undefined ? 'the server hung up' : messageOf(error), error);
  }

  #tlsFailed(cause: unknown): NbdClientError {
    const message = `TLS with ${this.name} was not agreed on: ${reasonOf(cause)}`;
    return new NbdClientError('tls-failed', message, { address: this.name }, { cause });
  }

  #connectFailed(why: string, cause?: unknown): NbdClientError {
    const message = `Cannot connect to ${this.name}: ${why}`;
    return new NbdClientError('connect-failed', message, { address: this.name }, { cause });
  }
}

function openSocket(transport: NbdTransport, receive: (chunk: Buffer) => void): Socket {
  const buffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES);
  const onread = {
    buffer,
    callback: (lengthBytes: number): boolean => {
      receive(buffer.subarray(0, lengthBytes));
      return true;
    },
  };
  if (transport.kind === 'unix') return connect({ path: transport.path, onread });
  const { host, port } = transport;
  return connect({ host, port, noDelay: true, onread });
}

/** TLS takes over sockets that are read as streams. */
function openStream(transport: NbdTransport): Socket {
  if (transport.kind === 'unix') return connect({ path: transport.path });
  const { host, port } = transport;
  return connect({ host, port, noDelay: true });
}
