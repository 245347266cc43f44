/**
 * The server's side of the handshake: fixed newstyle negotiation as a pure state machine.
 *
 *     greeting -> client flags -> option* -> transmission | close
 *                                   \-> start TLS -> option* (in TLS)
 *
 * Bytes go in (`receive`), the bytes to answer and a decision come out. The machine knows no socket, no
 * device and no clock: the connection sends, closes, and limits the time. Exports are seen through
 * `HandshakeView`, which says what each offers.
 *
 * A peer's mistakes are answered in protocol where it has an answer, and end the session where it has none
 * (wrong magic, unknown client flags, NBD_OPT_EXPORT_NAME for an export that is not there). Options that
 * are not known are refused with NBD_REP_ERR_UNSUP and the session goes on.
 *
 * An extension adds its option to `#answer`, its result to `Negotiated`, and, where the stream changes (TLS),
 * a decision.
 *
 * **TLS.** The policy is the listener's. `required` is FORCEDTLS: before TLS only ABORT and STARTTLS are
 * answered in kind, and a client that cannot ask for TLS is hung up on. `optional` is SELECTIVETLS without an
 * export that is TLS-only. STARTTLS ends in a decision; the connection upgrades its socket and calls
 * `secured`, and everything agreed on in the clear is forgotten. Bytes that arrive together with STARTTLS,
 * before it was answered, can only be a mistake or plain text that someone in between wants taken for
 * encrypted: the session ends.
 *
 * **What is agreed on.** Structured replies and extended headers are asked for in any order; extended headers
 * win and cannot be given up again. Metadata contexts need one of the two, and hold for the export they were
 * chosen for; each choice, a failed one too, replaces the one before. Asking twice for the same is answered
 * twice.
 *
 * Source: NBD proto.md § Fixed newstyle negotiation, § TLS support, § Option types, § Option reply types,
 * § Metadata querying;
 * of the branch `extension-ext-header` NBD_OPT_EXTENDED_HEADERS.
 */

import { assert } from '../base/index.ts';
import { ByteQueue } from './byte-queue.ts';
import {
  CLIENT_FLAG,
  CLIENT_FLAGS_BYTES,
  decodeInfoRequest,
  decodeOptionHeader,
  decodeString,
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoReply,
  encodeOptionReply,
  encodeServerEntry,
  HANDSHAKE_FLAG,
  INFO,
  OPTION,
  OPTION_HEADER_BYTES,
  OPTION_REPLY,
  type OptionHeader,
  TRANSMISSION_FLAG,
} from './codec.ts';
import type { ReplyMode } from './codec-chunks.ts';
import { decodeMetaContextRequest, encodeMetaContextEntry, type MetaContextRequest } from './codec-meta.ts';
import type { NbdLimits } from './limits.ts';
import type { ContextCatalog, MetaContext, SelectedContext } from './meta-context.ts';

/** What an export offers to clients. */
export interface ExportOffer {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
  readonly minimumBlockSizeBytes: number;
  readonly preferredBlockSizeBytes: number;
  readonly maximumPayloadBytes: number;
  readonly contexts: ContextCatalog;
}

/** The server as the handshake sees it. */
export interface HandshakeView {
  /** All exports, in the order they are listed. */
  list(): readonly ExportOffer[];
  /** The export a client means by `name`; the empty name means the default export. */
  find(name: string): ExportOffer | undefined;
  /** True once the server is being shut down: options are then refused. */
  isClosing(): boolean;
}

/** What a listener says of TLS: never, whoever asks, or everybody (NBD proto.md § Server-side requirements). */
export type TlsPolicy = 'off' | 'optional' | 'required';

/** What was agreed on for the transmission. */
export interface Negotiated {
  readonly exportName: string;
  readonly replies: ReplyMode;
  /** What block status answers; empty where it was not agreed on. */
  readonly contexts: readonly SelectedContext[];
}

export type HandshakeDecision =
  | { readonly kind: 'continue' }
  /** Send the output, then end the session. */
  | { readonly kind: 'close'; readonly reason: string }
  /** Send the output, upgrade the socket to TLS, then call `secured` and go on. */
  | { readonly kind: 'start-tls' }
  /** Send the output, then serve; `rest` is what arrived behind the handshake. */
  | { readonly kind: 'transmission'; readonly negotiated: Negotiated; readonly rest: Buffer };

export interface HandshakeStep {
  readonly output: Buffer;
  readonly decision: HandshakeDecision;
}

const CONTINUE: HandshakeDecision = { kind: 'continue' };
const TLS_REQUIRED = 'TLS is required before anything else';
const NO_DATA = Buffer.alloc(0);

type State =
  | { readonly kind: 'client-flags' }
  | { readonly kind: 'option-header' }
  | { readonly kind: 'option-data'; readonly header: OptionHeader }
  /** Data of an option that is too big to be kept. */
  | { readonly kind: 'discard'; readonly header: OptionHeader; readonly leftBytes: number }
  | { readonly kind: 'over' };

/** What the data of NBD_OPT_INFO and NBD_OPT_GO came to. */
type InfoAnswer = { readonly offer: ExportOffer } | { readonly failed: true };

export class ServerHandshake {
  readonly #view: HandshakeView;
  readonly #limits: NbdLimits;
  readonly #input = new ByteQueue();
  #output: Buffer[] = [];
  #state: State = { kind: 'client-flags' };
  #fixedNewstyle = false;
  #zeroes = true;
  #optionCount = 0;
  readonly #tls: TlsPolicy;
  #isSecured = false;
  #replies: ReplyMode = 'simple';
  /** The contexts of the last choice, and the export it was made for. */
  #chosen: { readonly exportName: string; readonly contexts: readonly SelectedContext[] } | undefined;

  constructor(view: HandshakeView, limits: NbdLimits, tls: TlsPolicy = 'off') {
    this.#view = view;
    this.#limits = limits;
    this.#tls = tls;
  }

  /** The bytes that open the session, sent before anything is received. */
  greeting(): Buffer {
    return encodeGreeting(HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes);
  }

  /** Whether no option is half received: the moment at which a closing server may hang up. */
  get isBetweenOptions(): boolean {
    return this.#input.lengthBytes === 0 && this.#state.kind !== 'option-data';
  }

  /** TLS is up: what arrives from now on was decrypted. */
  secured(): void {
    assert(this.#state.kind === 'over' && !this.#isSecured, 'TLS was not agreed on');
    this.#isSecured = true;
    this.#state = { kind: 'option-header' };
    this.#replies = 'simple';
    this.#chosen = undefined;
  }

  /** Takes what arrived. After any decision but `continue` it must not be called again, or after `secured`. */
  receive(chunk: Buffer): HandshakeStep {
    this.#input.push(chunk);
    let decision = CONTINUE;
    while (decision.kind === 'continue') {
      const next = this.#advance();
      if (next === undefined) break;
      decision = next;
    }
    if (decision.kind !== 'continue') this.#state = { kind: 'over' };
    const output = this.#output.length === 1 ? (this.#output[0] ?? NO_DATA) : Buffer.concat(this.#output);
    this.#output = [];
    return { output, decision };
  }

  /** One step; undefined where more bytes are needed. */
  #advance(): HandshakeDecision | undefined {
    const state = this.#state;
    switch (state.kind) {
      case 'client-flags':
        if (this.#input.lengthBytes < CLIENT_FLAGS_BYTES) return undefined;
        return this.#takeClientFlags(this.#input.take(CLIENT_FLAGS_BYTES).readUInt32BE(0));
      case 'option-header':
        if (this.#input.lengthBytes < OPTION_HEADER_BYTES) return undefined;
        return this.#takeOptionHeader(this.#input.take(OPTION_HEADER_BYTES));
      case 'option-data':
        if (this.#input.lengthBytes < state.header.lengthBytes) return undefined;
        this.#state = { kind: 'option-header' };
        return this.#answer(state.header.option, this.#input.take(state.header.lengthBytes));
      case 'discard':
        return this.#discard(state.header, state.leftBytes);
      case 'over':
        return undefined;
    }
  }

  /** NBD proto.md § Client flags: unknown flags end the session. */
  #takeClientFlags(flags: number): HandshakeDecision {
    const known = CLIENT_FLAG.fixedNewstyle | CLIENT_FLAG.noZeroes;
    if ((flags & ~known) !== 0) return close(`Client flags 0x${flags.toString(16)} are not known`);
    this.#fixedNewstyle = (flags & CLIENT_FLAG.fixedNewstyle) !== 0;
    this.#zeroes = (flags & CLIENT_FLAG.noZeroes) === 0;
    if (this.#needsTls && !this.#fixedNewstyle) {
      return close('TLS is required, and a client without fixed newstyle cannot ask for it');
    }
    this.#state = { kind: 'option-header' };
    return CONTINUE;
  }

  #takeOptionHeader(bytes: Buffer): HandshakeDecision {
    const header = decodeOptionHeader(bytes);
    if (header === undefined) return close('An option does not begin with the option magic');
    this.#optionCount += 1;
    if (this.#optionCount > this.#limits.optionCountMax) {
      return close(`More than ${this.#limits.optionCountMax} options were sent`);
    }
    if (!this.#fixedNewstyle && header.option !== OPTION.exportName) {
      return close(`Option ${header.option} was sent without fixed newstyle`);
    }
    if (header.lengthBytes <= this.#limits.optionBytesMax) {
      this.#state = { kind: 'option-data', header };
      return CONTINUE;
    }
    if (header.option === OPTION.exportName) {
      return close(`An export name of ${header.lengthBytes} bytes was sent`);
    }
    this.#state = { kind: 'discard', header, leftBytes: header.lengthBytes };
    return CONTINUE;
  }

  #discard(header: OptionHeader, leftBytes: number): HandshakeDecision | undefined {
    const left = leftBytes - this.#input.drop(leftBytes);
    if (left > 0) {
      this.#state = { kind: 'discard', header, leftBytes: left };
      return undefined;
    }
    this.#state = { kind: 'option-header' };
    if (this.#needsTls && header.option !== OPTION.startTls) {
      this.#reply(header.option, OPTION_REPLY.errorTlsRequired, TLS_REQUIRED);
      return CONTINUE;
    }
    const message = `${header.lengthBytes} bytes of option data are more than ${this.#limits.optionBytesMax}`;
    this.#reply(header.option, OPTION_REPLY.errorTooBig, message);
    return CONTINUE;
  }

  #answer(option: number, data: Buffer): HandshakeDecision {
    if (option === OPTION.abort) {
      this.#reply(option, OPTION_REPLY.ack);
      return close('The client aborted the handshake');
    }
    if (this.#needsTls && option !== OPTION.startTls) {
      if (option === OPTION.exportName) return close('An export was named before TLS, which is required');
      this.#reply(option, OPTION_REPLY.errorTlsRequired, TLS_REQUIRED);
      return CONTINUE;
    }
    if (this.#view.isClosing()) {
      if (option === OPTION.exportName) return close('The server is shutting down');
      this.#reply(option, OPTION_REPLY.errorShutdown, 'The server is shutting down');
      return CONTINUE;
    }
    switch (option) {
      case OPTION.exportName:
        return this.#chooseByName(data);
      case OPTION.startTls:
        return this.#startTls(data);
      case OPTION.list:
        this.#list(data);
        return CONTINUE;
      case OPTION.info:
        this.#describe(option, data);
        return CONTINUE;
      case OPTION.go: {
        const answer = this.#describe(option, data);
        return 'offer' in answer ? this.#begin(answer.offer) : CONTINUE;
      }
      case OPTION.structuredReply:
      case OPTION.extendedHeaders:
        this.#upgrade(option, data);
        return CONTINUE;
      case OPTION.listMetaContext:
      case OPTION.setMetaContext:
        this.#answerContexts(option, data);
        return CONTINUE;
      default:
        this.#reply(option, OPTION_REPLY.errorUnsupported, `Option ${option} is not supported`);
        return CONTINUE;
    }
  }

  get #needsTls(): boolean {
    return this.#tls === 'required' && !this.#isSecured;
  }

  #startTls(data: Buffer): HandshakeDecision {
    const { errorInvalid, errorPolicy } = OPTION_REPLY;
    if (this.#tls === 'off') {
      this.#reply(OPTION.startTls, errorPolicy, 'TLS is not offered here');
      return CONTINUE;
    }
    if (this.#isSecured || data.length > 0) {
      const message = this.#isSecured ? 'The session is encrypted already' : 'The option takes no data';
      this.#reply(OPTION.startTls, errorInvalid, message);
      return CONTINUE;
    }
    if (this.#input.lengthBytes > 0) {
      return close(`${this.#input.lengthBytes} bytes in plain text follow the wish for TLS`);
    }
    this.#reply(OPTION.startTls, OPTION_REPLY.ack);
    return { kind: 'start-tls' };
  }

  /** NBD_OPT_EXPORT_NAME: no error can be returned, so a name that is not there ends the session. */
  #chooseByName(data: Buffer): HandshakeDecision {
    if (this.#replies === 'extended')
      return close('An export was named with EXPORT_NAME after extended headers');
    const name = data.length > this.#limits.nameBytesMax ? undefined : decodeString(data);
    const offer = name === undefined ? undefined : this.#view.find(name);
    if (offer === undefined) return close(`Export ${JSON.stringify(name ?? '')} does not exist`);
    const basics = { sizeBytes: offer.sizeBytes, transmissionFlags: this.#flagsOf(offer) };
    this.#output.push(encodeExportNameReply(basics, this.#zeroes));
    return this.#begin(offer);
  }

  #list(data: Buffer): void {
    if (data.length > 0) {
      this.#reply(OPTION.list, OPTION_REPLY.errorInvalid, 'A list takes no data');
      return;
    }
    for (const { name, description } of this.#view.list()) {
      const entry = encodeServerEntry({ name, description });
      this.#output.push(encodeOptionReply(OPTION.list, OPTION_REPLY.server, entry));
    }
    this.#reply(OPTION.list, OPTION_REPLY.ack);
  }

  /**
   * NBD_OPT_INFO and NBD_OPT_GO share this. Block sizes are sent whether asked for or not: this server
   * enforces a minimum of its own, and clients must ignore what they did not ask for.
   */
  #describe(option: number, data: Buffer): InfoAnswer {
    const request = decodeInfoRequest(data);
    if (request === undefined) return this.#fail(option, OPTION_REPLY.errorInvalid, 'The lengths do not fit');
    if (request.name.length > this.#limits.nameBytesMax) {
      return this.#fail(
        option,
        OPTION_REPLY.errorTooBig,
        `A name of ${request.name.length} bytes is too long`,
      );
    }
    const name = decodeString(request.name);
    if (name === undefined)
      return this.#fail(option, OPTION_REPLY.errorInvalid, 'The name is no UTF-8 string');
    const offer = this.#view.find(name);
    if (offer === undefined) {
      return this.#fail(option, OPTION_REPLY.errorUnknown, `Export ${JSON.stringify(name)} does not exist`);
    }
    const infos = [
      encodeInfoReply({
        kind: 'export',
        sizeBytes: offer.sizeBytes,
        transmissionFlags: this.#flagsOf(offer),
      }),
    ];
    if (request.infos.includes(INFO.name)) infos.push(encodeInfoReply({ kind: 'name', text: offer.name }));
    if (request.infos.includes(INFO.description) && offer.description !== '') {
      infos.push(encodeInfoReply({ kind: 'description', text: offer.description }));
    }
    infos.push(
      encodeInfoReply({
        kind: 'block-size',
        minimumBytes: offer.minimumBlockSizeBytes,
        preferredBytes: offer.preferredBlockSizeBytes,
        maximumPayloadBytes: offer.maximumPayloadBytes,
      }),
    );
    for (const info of infos) this.#output.push(encodeOptionReply(option, OPTION_REPLY.info, info));
    this.#reply(option, OPTION_REPLY.ack);
    return { offer };
  }

  #begin(offer: ExportOffer): HandshakeDecision {
    const rest = this.#input.take(this.#input.lengthBytes);
    const negotiated = {
      exportName: offer.name,
      replies: this.#replies,
      contexts: this.#contextsFor(offer),
    };
    return { kind: 'transmission', negotiated, rest };
  }

  /** NBD proto.md § Transmission flags: what depends on what was agreed on. */
  #flagsOf(offer: ExportOffer): number {
    let flags = offer.transmissionFlags;
    if (this.#replies !== 'simple') flags |= TRANSMISSION_FLAG.sendDf;
    if (this.#replies === 'extended' && this.#contextsFor(offer).length > 0) {
      flags |= TRANSMISSION_FLAG.blockStatusPayload;
    }
    return flags;
  }

  #contextsFor(offer: ExportOffer): readonly SelectedContext[] {
    return this.#chosen?.exportName === offer.name ? this.#chosen.contexts : [];
  }

  /** NBD_OPT_STRUCTURED_REPLY and NBD_OPT_EXTENDED_HEADERS. */
  #upgrade(option: number, data: Buffer): void {
    if (data.length > 0) {
      this.#reply(option, OPTION_REPLY.errorInvalid, 'The option takes no data');
      return;
    }
    if (option === OPTION.structuredReply && this.#replies === 'extended') {
      const message = 'Extended headers were agreed on and include structured replies';
      this.#reply(option, OPTION_REPLY.errorExtendedHeadersRequired, message);
      return;
    }
    this.#replies = option === OPTION.extendedHeaders ? 'extended' : 'structured';
    this.#reply(option, OPTION_REPLY.ack);
  }

  #answerContexts(option: number, data: Buffer): void {
    const isChoice = option === OPTION.setMetaContext;
    if (isChoice) this.#chosen = undefined;
    const request = decodeMetaContextRequest(data);
    const refusal = this.#contextRefusal(request);
    if (refusal !== undefined || request === undefined) {
      this.#reply(option, refusal?.type ?? OPTION_REPLY.errorInvalid, refusal?.message);
      return;
    }
    const offer = this.#view.find(request.exportName);
    if (offer === undefined) {
      const message = `Export ${JSON.stringify(request.exportName)} does not exist`;
      this.#reply(option, OPTION_REPLY.errorUnknown, message);
      return;
    }
    const found = matchingContexts(offer.contexts, request.queries, isChoice);
    for (const [index, { name }] of found.entries()) {
      const entry = encodeMetaContextEntry({ id: isChoice ? index + 1 : 0, name });
      this.#output.push(encodeOptionReply(option, OPTION_REPLY.metaContext, entry));
    }
    if (isChoice) {
      const contexts = found.map((context, index) => ({ id: index + 1, context }));
      this.#chosen = { exportName: offer.name, contexts };
    }
    this.#reply(option, OPTION_REPLY.ack);
  }

  #contextRefusal(
    request: MetaContextRequest | undefined,
  ): { readonly type: number; readonly message: string } | undefined {
    const { errorInvalid, errorTooBig } = OPTION_REPLY;
    if (this.#replies === 'simple') {
      return { type: errorInvalid, message: 'Metadata contexts need structured replies or extended headers' };
    }
    if (request === undefined) return { type: errorInvalid, message: 'The lengths or texts are not right' };
    const max = this.#limits.metaContextCountMax;
    if (request.queries.length > max) {
      return { type: errorTooBig, message: `${request.queries.length} queries are more than ${max}` };
    }
    const malformed = request.queries.find((query) => query.indexOf(':') < 1);
    if (malformed === undefined) return undefined;
    return { type: errorInvalid, message: `Query ${JSON.stringify(malformed)} has no namespace and colon` };
  }

  #fail(option: number, type: number, message: string): InfoAnswer {
    this.#reply(option, type, message);
    return { failed: true };
  }

  #reply(option: number, type: number, message = ''): void {
    this.#output.push(encodeOptionReply(option, type, Buffer.from(message)));
  }
}

function close(reason: string): HandshakeDecision {
  return { kind: 'close', reason };
}

/**
 * The contexts that queries mean. No query chooses nothing and lists all; a query that ends in a colon chooses
 * nothing and lists everything that begins with it; what is not there is no error (NBD proto.md § Metadata
 * querying).
 */
function matchingContexts(
  catalog: ContextCatalog,
  queries: readonly string[],
  isChoice: boolean,
): readonly MetaContext[] {
  let list: readonly MetaContext[] | undefined;
  const listed = (): readonly MetaContext[] => (list ??= catalog.list());
  const byName = new Map<string, MetaContext>();
  const add = (context: MetaContext | undefined): void => {
    if (context !== undefined) byName.set(context.name, context);
  };
  for (const query of queries) {
    if (!query.endsWith(':')) add(catalog.find(query) ?? listed().find(({ name }) => name === query));
    else if (!isChoice) for (const context of listed()) if (context.name.startsWith(query)) add(context);
  }
  if (queries.length === 0 && !isChoice) for (const context of listed()) add(context);
  return [...byName.values()];
}
