/**
 * The NBD client: one connection to one export, with any number of requests in flight.
 *
 * Requests are sent as they are made and answered in any order; each call's promise is settled by its own
 * reply. Headers and payloads of one loop turn leave in one go. A read's bytes are copied from the socket's
 * buffer straight into the caller's target.
 *
 * It asks for extended headers, then for structured replies, and takes what the server has; `replies` says
 * which. Metadata contexts are selected when connecting and read with `blockStatus`.
 *
 * What it does not do: it does not reconnect (whether a lost request was done is only for the caller to
 * find out), it does not split requests that exceed the server's limits (`NbdDevice` does), and it does not
 * bound the requests in flight: each holds the caller's own buffer.
 *
 * Source: NBD proto.md § Transmission.
 */

import { assert, messageOf } from '../base/index.ts';
import { NbdClientError, requestRefused } from './client-error.ts';
import type { ClientTerms, HandshakeGoal, NbdExportInfo } from './client-handshake.ts';
import {
  COMMAND,
  COMMAND_FLAG,
  encodeRequest,
  type RequestToSend,
  type ServerEntry,
  TRANSMISSION_FLAG,
} from './codec.ts';
import {
  encodeExtendedRequest,
  encodeStatusFilter,
  type ReplyMode,
  type StatusExtent,
} from './codec-chunks.ts';
import { Link } from './link.ts';
import { type Pending, ReplyReader, type StatusById } from './reply-reader.ts';
import { type NbdAddress, parseNbdUri } from './uri.ts';

export interface NbdConnectOptions {
  /** How long the connection and its handshake may take together. */
  readonly timeoutMs?: number;
  /** Whether to ask for structured replies; default true. */
  readonly structuredReplies?: boolean;
  /** Whether to ask for extended headers; default true. */
  readonly extendedHeaders?: boolean;
  /** Metadata contexts to select, by name; those the server does not have are left out. */
  readonly contexts?: readonly string[];
}

export interface NbdWriteOptions {
  /** The bytes are durable when the promise resolves. The export must offer it. */
  readonly fua?: boolean;
}

export interface NbdZeroOptions extends NbdWriteOptions {
  /** The server may make a hole of the range; default true. */
  readonly mayTrim?: boolean;
  /** Fails with `not-supported` where it would be no faster than a write. The export must offer it. */
  readonly fast?: boolean;
}

export interface NbdBlockStatusOptions {
  /** Only the first extent of each context, no longer than the range. */
  readonly requestOne?: boolean;
  /** Only these of the selected contexts. */
  readonly contexts?: readonly string[];
}

/** What a command sends and expects. */
interface Command {
  readonly type: number;
  readonly name: string;
  readonly flags?: number;
  readonly offsetBytes?: number;
  readonly lengthBytes?: number;
  /** Follows the header. */
  readonly source?: Buffer;
  readonly target?: Buffer;
  readonly contextIds?: ReadonlySet<number>;
}

const UINT32 = 2 ** 32;

export class NbdClient {
  readonly address: NbdAddress;
  /** The export as the server described it. */
  readonly exportInfo: NbdExportInfo;
  readonly #link: Link;
  readonly #terms: ClientTerms;
  readonly #replies: ReplyReader;
  readonly #pending = new Map<number, Pending & { reject(error: Error): void }>();
  #nextCookie = 0;
  #failure: Error | undefined;

  private constructor(address: NbdAddress, link: Link, info: NbdExportInfo, terms: ClientTerms) {
    this.address = address;
    this.#link = link;
    this.exportInfo = info;
    this.#terms = terms;
    this.#replies = new ReplyReader(terms.replies, {
      find: (cookie) => this.#pending.get(cookie),
      forget: (cookie) => void this.#pending.delete(cookie),
      violate: (what) => this.#violate(what),
    });
  }

  /**
   * Connects and enters the transmission.
   *
   * @throws {NbdClientError} connect-failed, export-unknown, tls-required, tls-refused, tls-failed,
   *   option-refused, protocol-violation
   * @throws {NbdUriError} uri-invalid
   * @throws {NbdTlsError} where the files that the address names for TLS cannot be used
   */
  static async connect(target: string | NbdAddress, options: NbdConnectOptions = {}): Promise<NbdClient> {
    const address = typeof target === 'string' ? parseNbdUri(target) : target;
    const goal: HandshakeGoal = { kind: 'go', exportName: address.exportName };
    const link = await Link.open(address);
    const { structuredReplies = true, extendedHeaders = true, contexts = [] } = options;
    const decision = await link.negotiate(goal, options, { structuredReplies, extendedHeaders, contexts });
    assert(decision.kind === 'export', 'A go ends with an export');
    const client = new NbdClient(address, link, decision.info, decision.terms);
    link.attach({
      receive: (chunk) => client.#replies.receive(chunk),
      lost: (error) => client.#lose(error),
    });
    if (decision.rest.length > 0) client.#replies.receive(decision.rest);
    return client;
  }

  /** Asks what an export offers, and disconnects. Throws as `connect`. */
  static async info(target: string | NbdAddress, options: NbdConnectOptions = {}): Promise<NbdExportInfo> {
    const address = typeof target === 'string' ? parseNbdUri(target) : target;
    const goal: HandshakeGoal = { kind: 'info', exportName: address.exportName };
    const decision = await (await Link.open(address)).negotiate(goal, options);
    assert(decision.kind === 'export', 'An info ends with an export');
    return decision.info;
  }

  /** Lists a server's exports, and disconnects. The export name of `target` is not used. Throws as `connect`. */
  static async list(
    target: string | NbdAddress,
    options: NbdConnectOptions = {},
  ): Promise<readonly ServerEntry[]> {
    const address = typeof target === 'string' ? parseNbdUri(target) : target;
    const decision = await (await Link.open(address)).negotiate({ kind: 'list' }, options);
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

  /** How the server answers, as agreed on. */
  get replies(): ReplyMode {
    return this.#terms.replies;
  }

  /** The metadata contexts that were selected; none where the server has none. */
  get contexts(): readonly string[] {
    return [...this.#terms.contexts.values()];
  }

  /** Whether `cache` may be called. */
  get canCache(): boolean {
    return this.#offers(TRANSMISSION_FLAG.sendCache);
  }

  /** Whether zeroes may be asked to be `fast`. */
  get canFastZero(): boolean {
    return this.#offers(TRANSMISSION_FLAG.sendFastZero);
  }

  /** Whether `resize` may be called. */
  get canResize(): boolean {
    return this.#offers(TRANSMISSION_FLAG.sendResize);
  }

  /** The longest range of a request without payload: with extended headers there is no limit. */
  get rangeBytesMax(): number {
    return this.replies === 'extended' ? Number.MAX_SAFE_INTEGER : UINT32 - 1;
  }

  /**
   * Fills `target` from `offsetBytes`. The target must not be used until the promise settles.
   *
   * @throws {NbdClientError} the code of the server's error; connection-lost; disconnected. So do all below.
   */
  read(target: Buffer, offsetBytes: number): Promise<void> {
    const name = `a read of ${target.length} bytes at ${offsetBytes}`;
    return this.#order({ type: COMMAND.read, name, offsetBytes, lengthBytes: target.length, target });
  }

  /** Writes `source`, which must not be changed until the promise settles. */
  write(source: Buffer, offsetBytes: number, options: NbdWriteOptions = {}): Promise<void> {
    const name = `a write of ${source.length} bytes at ${offsetBytes}`;
    const isExtended = this.replies === 'extended';
    const flags = this.#fuaFlag(options) | (isExtended ? COMMAND_FLAG.payloadLength : 0);
    return this.#order({
      type: COMMAND.write,
      name,
      flags,
      offsetBytes,
      lengthBytes: source.length,
      source,
    });
  }

  /** Zeroes a range of at most `rangeBytesMax`. The export must offer it. */
  writeZeroes(offsetBytes: number, lengthBytes: number, options: NbdZeroOptions = {}): Promise<void> {
    assert(this.exportInfo.canWriteZeroes, 'The export does not offer NBD_CMD_WRITE_ZEROES');
    const name = `zeroes of ${lengthBytes} bytes at ${offsetBytes}`;
    const { mayTrim = true, fast = false } = options;
    assert(!fast || this.canFastZero, 'The export does not offer NBD_CMD_FLAG_FAST_ZERO');
    const flags =
      this.#fuaFlag(options) | (mayTrim ? 0 : COMMAND_FLAG.noHole) | (fast ? COMMAND_FLAG.fastZero : 0);
    return this.#order({ type: COMMAND.writeZeroes, name, flags, offsetBytes, lengthBytes });
  }

  /** Tells that a range is not needed. What it reads as afterwards is the server's affair. */
  trim(offsetBytes: number, lengthBytes: number, options: NbdWriteOptions = {}): Promise<void> {
    assert(this.exportInfo.canTrim, 'The export does not offer NBD_CMD_TRIM');
    const name = `a trim of ${lengthBytes} bytes at ${offsetBytes}`;
    return this.#order({
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
    return this.#order({ type: COMMAND.flush, name: 'a flush' });
  }

  /** Tells that a range will be used soon. The export must offer it. */
  cache(offsetBytes: number, lengthBytes: number): Promise<void> {
    assert(this.canCache, 'The export does not offer NBD_CMD_CACHE');
    const name = `a cache hint of ${lengthBytes} bytes at ${offsetBytes}`;
    return this.#order({ type: COMMAND.cache, name, offsetBytes, lengthBytes });
  }

  /**
   * Asks for another size of the export, which must offer it. Once it has resolved, requests may reach up to
   * there; until then none may go beyond the smaller of both sizes. `exportInfo` stays as it was. Servers
   * may refuse to shrink; this package's do, with `read-only`. Experimental in the protocol.
   */
  resize(sizeBytes: number): Promise<void> {
    assert(this.canResize, 'The export does not offer NBD_CMD_RESIZE');
    return this.#order({
      type: COMMAND.resize,
      name: `a resize to ${sizeBytes} bytes`,
      offsetBytes: sizeBytes,
    });
  }

  /**
   * What the selected contexts say of a range of at most `rangeBytesMax`: for each, by its name, extents from
   * `offsetBytes` on without gaps, at least one. They may end before the range does, and the last one may
   * end behind it.
   */
  async blockStatus(
    offsetBytes: number,
    lengthBytes: number,
    options: NbdBlockStatusOptions = {},
  ): Promise<ReadonlyMap<string, readonly StatusExtent[]>> {
    const { requestOne = false, contexts: wanted = this.contexts } = options;
    const names = new Map([...this.#terms.contexts].filter(([, name]) => wanted.includes(name)));
    assert(names.size > 0, `None of the contexts ${wanted.join(', ')} was selected`);
    const name = `a block status of ${lengthBytes} bytes at ${offsetBytes}`;
    const flags = requestOne ? COMMAND_FLAG.requestOne : 0;
    const command = { type: COMMAND.blockStatus, name, flags, offsetBytes, lengthBytes };
    const mayFilter = this.#offers(TRANSMISSION_FLAG.blockStatusPayload);
    const isFiltered = names.size < this.#terms.contexts.size && mayFilter;
    const contextIds = new Set((isFiltered ? names : this.#terms.contexts).keys());
    const statuses = await this.#request(
      isFiltered
        ? { ...command, ...filterOf(lengthBytes, contextIds, flags), contextIds }
        : { ...command, contextIds },
    );
    const byName = new Map<string, readonly StatusExtent[]>();
    for (const [id, extents] of statuses) {
      const context = names.get(id);
      if (context !== undefined) byName.set(context, extents);
    }
    return byName;
  }

  /**
   * Says goodbye and closes. Requests still in flight fail with `disconnected`: wait for them first.
   * May be called again.
   */
  async disconnect(): Promise<void> {
    if (this.#failure === undefined) {
      const message = `The client of ${this.#link.name} was disconnected`;
      this.#fail(new NbdClientError('disconnected', message, { address: this.#link.name }));
      this.#link.send(this.#encode({ ...NO_REQUEST, type: COMMAND.disconnect }));
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

  #offers(flag: number): boolean {
    return (this.exportInfo.transmissionFlags & flag) !== 0;
  }

  #encode(request: RequestToSend): Buffer {
    return this.replies === 'extended' ? encodeExtendedRequest(request) : encodeRequest(request);
  }

  /** A request whose answer is only that it was done. */
  async #order(command: Command): Promise<void> {
    await this.#request(command);
  }

  #request(command: Command): Promise<StatusById> {
    const { type, name, flags = 0, offsetBytes = 0, lengthBytes = 0, source, target, contextIds } = command;
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const cookie = this.#nextCookie;
    this.#nextCookie = (cookie + 1) % Number.MAX_SAFE_INTEGER;
    return new Promise((resolve, reject) => {
      const [cookieHigh, cookieLow] = [Math.floor(cookie / UINT32), cookie % UINT32];
      const header = this.#encode({ flags, type, cookieHigh, cookieLow, offsetBytes, lengthBytes });
      const refuse: Pending['refuse'] = (error) => reject(requestRefused(name, error));
      this.#pending.set(cookie, { name, offsetBytes, target, contextIds, resolve, refuse, reject });
      this.#link.send(header);
      if (source !== undefined) this.#link.send(source);
    });
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
    this.#replies.stop();
    const failed = [...this.#pending.values()];
    this.#pending.clear();
    for (const pending of failed) pending.reject(error);
  }
}

/** What makes a block status ask for some contexts only. */
function filterOf(
  lengthBytes: number,
  contextIds: ReadonlySet<number>,
  flags: number,
): Pick<Command, 'flags' | 'lengthBytes' | 'source'> {
  const source = encodeStatusFilter({ lengthBytes, contextIds: [...contextIds] });
  return { flags: flags | COMMAND_FLAG.payloadLength, lengthBytes: source.length, source };
}

const NO_REQUEST = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offsetBytes: 0, lengthBytes: 0 };
