/**
 * The NBD client: one connection to one export, with any number of requests in flight.
 *
 * Requests are sent as they are made and answered in any order; each call's promise is settled by its own
 * reply. Headers and payloads of one loop turn leave in one go. A read's bytes are copied from the socket's
 * buffer straight into the caller's target.
 *
 * What it does not do: it does not reconnect (whether a lost request was done is only for the caller to
 * find out), it does not split requests that exceed the server's limits (`NbdDevice` does), and it does not
 * bound the requests in flight: each holds the caller's own buffer.
 *
 * Source: NBD proto.md § Transmission.
 */

import { connect, type Socket } from 'node:net';
import { assert, LIMITS, messageOf } from '../base/index.ts';
import { NbdClientError, requestRefused } from './client-error.ts';
import {
  type ClientDecision,
  ClientHandshake,
  type HandshakeGoal,
  type NbdExportInfo,
} from './client-handshake.ts';
import {
  COMMAND,
  COMMAND_FLAG,
  decodeSimpleReply,
  encodeRequest,
  OPTION_REPLY,
  type ServerEntry,
  SIMPLE_REPLY_BYTES,
} from './codec.ts';
import { formatNbdUri, type NbdAddress, type NbdTransport, parseNbdUri } from './uri.ts';

export interface NbdConnectOptions {
  /** How long the connection and its handshake may take together. */
  readonly timeoutMs?: number;
}

export interface NbdWriteOptions {
  /** The bytes are durable when the promise resolves. The export must offer it. */
  readonly fua?: boolean;
}

export interface NbdZeroOptions extends NbdWriteOptions {
  /** The server may make a hole of the range; default true. */
  readonly mayTrim?: boolean;
}

interface Pending {
  readonly name: string;
  /** Where a read's bytes go. */
  readonly target: Buffer | undefined;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** A read whose bytes are arriving. */
interface Filling {
  readonly pending: Pending;
  readonly target: Buffer;
  filledBytes: number;
}

/** What a command sends and expects. */
interface Command {
  readonly type: number;
  readonly name: string;
  readonly flags?: number;
  readonly offsetBytes?: number;
  readonly lengthBytes?: number;
  readonly source?: Buffer;
  readonly target?: Buffer;
}

/** One read buffer per connection, reused: replies are copied out of it at once. */
const READ_BUFFER_BYTES = 256 * 1024;
const UINT32 = 2 ** 32;

export class NbdClient {
  readonly address: NbdAddress;
  /** The export as the server described it. */
  readonly exportInfo: NbdExportInfo;
  readonly #link: Link;
  readonly #pending = new Map<number, Pending>();
  #nextCookie = 0;
  #failure: Error | undefined;
  /** A reply's header that arrived in pieces. */
  readonly #header = Buffer.alloc(SIMPLE_REPLY_BYTES);
  #headerBytes = 0;
  #filling: Filling | undefined;

  private constructor(address: NbdAddress, link: Link, info: NbdExportInfo) {
    this.address = address;
    this.#link = link;
    this.exportInfo = info;
  }

  /**
   * Connects and enters the transmission.
   *
   * @throws {NbdClientError} connect-failed, export-unknown, tls-required, option-refused, protocol-violation
   * @throws {NbdUriError} uri-invalid
   */
  static async connect(target: string | NbdAddress, options: NbdConnectOptions = {}): Promise<NbdClient> {
    const address = typeof target === 'string' ? parseNbdUri(target) : target;
    const goal: HandshakeGoal = { kind: 'go', exportName: address.exportName };
    const link = new Link(address);
    const decision = await link.negotiate(goal, options);
    assert(decision.kind === 'export', 'A go ends with an export');
    const client = new NbdClient(address, link, decision.info);
    link.attach({
      receive: (chunk) => client.#receive(chunk),
      lost: (error) => client.#lose(error),
    });
    if (decision.rest.length > 0) client.#receive(decision.rest);
    return client;
  }

  /** Asks what an export offers, and disconnects. Throws as `connect`. */
  static async info(target: string | NbdAddress, options: NbdConnectOptions = {}): Promise<NbdExportInfo> {
    const address = typeof target === 'string' ? parseNbdUri(target) : target;
    const goal: HandshakeGoal = { kind: 'info', exportName: address.exportName };
    const decision = await new Link(address).negotiate(goal, options);
    assert(decision.kind === 'export', 'An info ends with an export');
    return decision.info;
  }

  /** Lists a server's exports, and disconnects. The export name of `target` is not used. Throws as `connect`. */
  static async list(
    target: string | NbdAddress,
    options: NbdConnectOptions = {},
  ): Promise<readonly ServerEntry[]> {
    const address = typeof target === 'string' ? parseNbdUri(target) : target;
    const decision = await new Link(address).negotiate({ kind: 'list' }, options);
    assert(decision.kind === 'listed', 'A list ends with a list');
    return decision.entries;
  }

  /** Whether requests can still be made. */
  get isConnected(): boolean {
    return this.#failure === undefined;
  }

  get inFlightCount(): number {
    return this.#pending.size;
  }

  /**
   * Fills `target` from `offsetBytes`. The target must not be used until the promise settles.
   *
   * @throws {NbdClientError} the code of the server's error; connection-lost; disconnected. So do all below.
   */
  read(target: Buffer, offsetBytes: number): Promise<void> {
    const name = `a read of ${target.length} bytes at ${offsetBytes}`;
    return this.#request({ type: COMMAND.read, name, offsetBytes, lengthBytes: target.length, target });
  }

  /** Writes `source`, which must not be changed until the promise settles. */
  write(source: Buffer, offsetBytes: number, options: NbdWriteOptions = {}): Promise<void> {
    const name = `a write of ${source.length} bytes at ${offsetBytes}`;
    const flags = this.#fuaFlag(options);
    return this.#request({
      type: COMMAND.write,
      name,
      flags,
      offsetBytes,
      lengthBytes: source.length,
      source,
    });
  }

  /** Zeroes a range. The export must offer it. */
  writeZeroes(offsetBytes: number, lengthBytes: number, options: NbdZeroOptions = {}): Promise<void> {
    assert(this.exportInfo.canWriteZeroes, 'The export does not offer NBD_CMD_WRITE_ZEROES');
    const name = `zeroes of ${lengthBytes} bytes at ${offsetBytes}`;
    const flags = this.#fuaFlag(options) | (options.mayTrim === false ? COMMAND_FLAG.noHole : 0);
    return this.#request({ type: COMMAND.writeZeroes, name, flags, offsetBytes, lengthBytes });
  }

  /** Tells that a range is not needed. What it reads as afterwards is the server's affair. */
  trim(offsetBytes: number, lengthBytes: number, options: NbdWriteOptions = {}): Promise<void> {
    assert(this.exportInfo.canTrim, 'The export does not offer NBD_CMD_TRIM');
    const name = `a trim of ${lengthBytes} bytes at ${offsetBytes}`;
    return this.#request({
      type: COMMAND.trim,
      name,
      flags: this.#fuaFlag(options),
      offsetBytes,
      lengthBytes,
    });
  }

  /** Makes every write that was answered before this call durable. The export must offer it. */
  flush(): Promise<void> {
    assert(this.exportInfo.canFlush, 'The export does not offer NBD_CMD_FLUSH');
    return this.#request({ type: COMMAND.flush, name: 'a flush' });
  }

  /**
   * Says goodbye and closes. Requests still in flight fail with `disconnected`: wait for them first.
   * May be called again.
   */
  async disconnect(): Promise<void> {
    if (this.#failure === undefined) {
      const message = `The client of ${this.#link.name} was disconnected`;
      this.#fail(new NbdClientError('disconnected', message, { address: this.#link.name }));
      this.#link.send(encodeRequest({ ...NO_REQUEST, type: COMMAND.disconnect }));
      this.#link.end();
    }
    await this.#link.closed;
  }

  // -------------------------------------------------------------------------------------------------

  #fuaFlag(options: NbdWriteOptions): number {
    if (options.fua !== true) return 0;
    assert(this.exportInfo.canFua, 'The export does not offer NBD_CMD_FLAG_FUA');
    return COMMAND_FLAG.fua;
  }

  #request(command: Command): Promise<void> {
    const { type, name, flags = 0, offsetBytes = 0, lengthBytes = 0, source, target } = command;
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const cookie = this.#nextCookie;
    this.#nextCookie = (cookie + 1) % Number.MAX_SAFE_INTEGER;
    return new Promise((resolve, reject) => {
      const [cookieHigh, cookieLow] = [Math.floor(cookie / UINT32), cookie % UINT32];
      const header = encodeRequest({ flags, type, cookieHigh, cookieLow, offsetBytes, lengthBytes });
      this.#pending.set(cookie, { name, target, resolve, reject });
      this.#link.send(header);
      if (source !== undefined) this.#link.send(source);
    });
  }

  #receive(chunk: Buffer): void {
    let atBytes = 0;
    while (atBytes < chunk.length && this.#failure === undefined) {
      const filling = this.#filling;
      if (filling !== undefined) {
        atBytes += this.#fill(filling, chunk, atBytes);
        continue;
      }
      const copied = chunk.copy(this.#header, this.#headerBytes, atBytes);
      this.#headerBytes += copied;
      atBytes += copied;
      if (this.#headerBytes < SIMPLE_REPLY_BYTES) return;
      this.#headerBytes = 0;
      this.#takeReply();
    }
  }

  #fill(filling: Filling, chunk: Buffer, atBytes: number): number {
    const copied = chunk.copy(filling.target, filling.filledBytes, atBytes);
    filling.filledBytes += copied;
    if (filling.filledBytes === filling.target.length) {
      this.#filling = undefined;
      filling.pending.resolve();
    }
    return copied;
  }

  #takeReply(): void {
    const reply = decodeSimpleReply(this.#header, 0);
    if (reply === undefined) {
      this.#violate('a reply does not begin with the reply magic');
      return;
    }
    const cookie = reply.cookieHigh * UINT32 + reply.cookieLow;
    const pending = this.#pending.get(cookie);
    if (pending === undefined) {
      this.#violate(`a reply carries the cookie ${cookie}, which no request in flight has`);
      return;
    }
    this.#pending.delete(cookie);
    if (reply.error !== 0) pending.reject(requestRefused(pending.name, reply.error));
    else if (pending.target === undefined || pending.target.length === 0) pending.resolve();
    else this.#filling = { pending, target: pending.target, filledBytes: 0 };
  }

  #violate(what: string): void {
    const { name } = this.#link;
    const message = `The server at ${name} broke the protocol: ${what}`;
    this.#fail(new NbdClientError('protocol-violation', message, { address: name }));
    this.#link.destroy();
  }

  #lose(cause: unknown): void {
    const { name } = this.#link;
    const message = `The connection to ${name} was lost${cause === undefined ? '' : `: ${messageOf(cause)}`}`;
    this.#fail(new NbdClientError('connection-lost', message, { address: name }, { cause }));
    this.#link.destroy();
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    const failed = [...this.#pending.values()];
    if (this.#filling !== undefined) failed.push(this.#filling.pending);
    this.#filling = undefined;
    this.#pending.clear();
    for (const pending of failed) pending.reject(error);
  }
}

const NO_REQUEST = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offsetBytes: 0, lengthBytes: 0 };

interface LinkListener {
  /** The chunk is valid during the call only. */
  receive(chunk: Buffer): void;
  /** The peer closed or the socket failed. */
  lost(error: unknown): void;
}

type Outcome = Exclude<ClientDecision, { kind: 'continue' | 'refused' | 'violation' }>;

/** The socket of a client, from connecting to closing. */
export class Link {
  readonly name: string;
  readonly closed: Promise<void>;
  readonly #exportName: string;
  readonly #socket: Socket;
  #listener: LinkListener = { receive: () => {}, lost: () => {} };
  #isCorked = false;
  #error: unknown;

  constructor(address: NbdAddress) {
    this.name = formatNbdUri(address);
    this.#exportName = address.exportName;
    this.#socket = openSocket(address.transport, (chunk) => this.#listener.receive(chunk));
    const socket = this.#socket;
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.on('error', (error) => {
      this.#error = error;
    });
    socket.on('end', () => this.#listener.lost(undefined));
    socket.on('close', () => this.#listener.lost(this.#error));
    // A socket whose reads go to `onread` still ends like a stream: nothing is left to be read from it.
    socket.resume();
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
   */
  release(): number {
    // A socket that reads into a buffer of its own stops at once; the next bytes stay in the kernel.
    this.#socket.pause();
    const handle: unknown = Reflect.get(this.#socket, '_handle');
    const descriptor: unknown = typeof handle === 'object' && handle !== null && Reflect.get(handle, 'fd');
    assert(typeof descriptor === 'number' && descriptor >= 0, 'An open socket has a descriptor');
    return descriptor;
  }

  /** Runs the handshake; the link is closed unless the goal was the transmission and was reached. */
  negotiate(goal: HandshakeGoal, options: NbdConnectOptions): Promise<Outcome> {
    const handshake = new ClientHandshake(goal);
    const timeoutMs = options.timeoutMs ?? LIMITS.nbdConnectMsMax;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        fail(this.#connectFailed(`no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const fail = (error: Error): void => {
        clearTimeout(timer);
        // A connection that is not there yet has nothing to say goodbye to.
        if (this.#socket.connecting) this.destroy();
        else this.end();
        reject(error);
      };
      this.#listener = {
        receive: (chunk) => {
          const { output, decision } = handshake.receive(Buffer.from(chunk));
          this.send(output);
          if (decision.kind === 'continue') return;
          this.#listener = { receive: () => {}, lost: () => {} };
          if (decision.kind === 'refused' || decision.kind === 'violation') {
            fail(this.#refused(decision));
            return;
          }
          clearTimeout(timer);
          if (goal.kind !== 'go') this.end();
          resolve(decision);
        },
        lost: (error) => fail(handshake.isAwaitingExportName ? this.#unknown() : this.#hungUp(error)),
      };
    });
  }

  #refused(decision: Extract<ClientDecision, { kind: 'refused' | 'violation' }>): NbdClientError {
    const address = this.name;
    if (decision.kind === 'violation') {
      const message = `The server at ${address} broke the protocol: ${decision.reason}`;
      return new NbdClientError('protocol-violation', message, { address });
    }
    const { option, replyType, reason } = decision;
    if (replyType === OPTION_REPLY.errorUnknown) return this.#unknown();
    if (replyType === OPTION_REPLY.errorTlsRequired) {
      return new NbdClientError('tls-required', `The server at ${address} insists on TLS`, { address });
    }
    const message = `The server at ${address} refused option ${option}: ${reason}`;
    return new NbdClientError('option-refused', message, { address, option, replyType });
  }

  #unknown(): NbdClientError {
    const exportName = this.#exportName;
    const message = `The server at ${this.name} has no export ${JSON.stringify(exportName)}`;
    return new NbdClientError('export-unknown', message, { address: this.name, exportName });
  }

  #hungUp(error: unknown): NbdClientError {
    return this.#connectFailed(error === undefined ? 'the server hung up' : messageOf(error), error);
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
