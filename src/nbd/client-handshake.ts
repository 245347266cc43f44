/**
 * The client's side of the handshake, as a pure state machine.
 *
 *     greeting -> [start TLS] -> wishes -> GO (or EXPORT_NAME, where the server is older) -> ready
 *     greeting -> INFO or LIST -> ABORT -> done
 *
 * Bytes go in, bytes to send and a decision come out; a refusal or a violation is a decision too. One option
 * is in flight at a time, as the protocol asks.
 *
 * Wishes are what a session can do without: extended headers, structured replies, metadata contexts. A server
 * that refuses one is served with less. Without wishes the session has simple replies, which is all that the
 * Linux kernel understands.
 *
 * TLS is no wish: where it is asked for it comes first, and a server that does not have it is not talked to
 * (NBD proto.md § Client-side requirements). The link upgrades its socket and calls `secured`. Bytes that come
 * together with the server's consent were not encrypted, whoever sent them: a violation.
 *
 * Source: NBD proto.md § Fixed newstyle negotiation, § TLS support, § Option types; of the branch `extension-ext-header`
 * NBD_OPT_EXTENDED_HEADERS.
 */

import { LIMITS } from '../base/index.ts';
import { ByteQueue } from './byte-queue.ts';
import {
  CLIENT_FLAG,
  decodeExportNameReply,
  decodeGreeting,
  decodeInfoReply,
  decodeOptionReplyHeader,
  decodeServerEntry,
  decodeString,
  encodeClientFlags,
  encodeInfoRequest,
  encodeOption,
  EXPORT_NAME_REPLY_BYTES,
  EXPORT_NAME_ZEROES_BYTES,
  GREETING_BYTES,
  HANDSHAKE_FLAG,
  INFO,
  OPTION,
  OPTION_REPLY,
  OPTION_REPLY_HEADER_BYTES,
  type OptionReplyHeader,
  type ServerEntry,
  TRANSMISSION_FLAG,
} from './codec.ts';
import type { ReplyMode } from './codec-chunks.ts';
import { decodeMetaContextEntry, encodeMetaContextRequest } from './codec-meta.ts';

/** An export as the server describes it. */
export interface NbdExportInfo {
  /** The server's name of it, where it said one; else the name that was asked for. */
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
  readonly readOnly: boolean;
  readonly canFlush: boolean;
  readonly canFua: boolean;
  readonly canTrim: boolean;
  readonly canWriteZeroes: boolean;
  readonly canMultiConn: boolean;
  /** The protocol's defaults where the server named none: 1, 4096 and 32 MiB. */
  readonly minimumBlockSizeBytes: number;
  readonly preferredBlockSizeBytes: number;
  readonly maximumPayloadBytes: number;
}

export type HandshakeGoal =
  { readonly kind: 'go' | 'info'; readonly exportName: string } | { readonly kind: 'list' };

/** What to ask for before the export; nothing where left out. */
export interface HandshakeWishes {
  /** Not to do without, unlike the others. */
  readonly tls?: boolean;
  readonly structuredReplies?: boolean;
  readonly extendedHeaders?: boolean;
  /** Names of metadata contexts; they need one of the two above. */
  readonly contexts?: readonly string[];
}

/** Which wishes came true. */
export interface ClientTerms {
  readonly replies: ReplyMode;
  /** Names of the selected metadata contexts, by their id. */
  readonly contexts: ReadonlyMap<number, string>;
}

export type ClientDecision =
  | { readonly kind: 'continue' }
  /** Upgrade the socket to TLS, then call `secured` and go on. */
  | { readonly kind: 'start-tls' }
  /** TLS was asked for and the server does not have it. */
  | { readonly kind: 'tls-refused'; readonly reason: string }
  /** `go`: the transmission begins; `info`: the session is over. `rest` arrived behind the handshake. */
  | {
      readonly kind: 'export';
      readonly info: NbdExportInfo;
      readonly terms: ClientTerms;
      readonly rest: Buffer;
    }
  | { readonly kind: 'listed'; readonly entries: readonly ServerEntry[] }
  /** The server said no. */
  | { readonly kind: 'refused'; readonly option: number; readonly replyType: number; readonly reason: string }
  /** NBD_OPT_EXPORT_NAME has no reply that says no: the server just closes. */
  | { readonly kind: 'violation'; readonly reason: string };

export interface ClientStep {
  readonly output: Buffer;
  readonly decision: ClientDecision;
}

type State = 'greeting' | 'reply-header' | 'reply-data' | 'export-name';

const CONTINUE: ClientDecision = { kind: 'continue' };
const NO_DATA = Buffer.alloc(0);

export class ClientHandshake {
  readonly #goal: HandshakeGoal;
  readonly #input = new ByteQueue();
  #output: Buffer[] = [];
  #state: State = 'greeting';
  #option = 0;
  #header: OptionReplyHeader | undefined;
  #zeroes = true;
  readonly #entries: ServerEntry[] = [];
  readonly #wishes: HandshakeWishes;
  /** Options still to be tried before the goal. */
  #wished: number[] = [];
  #replies: ReplyMode = 'simple';
  readonly #contexts = new Map<number, string>();
  #info: Partial<Omit<NbdExportInfo, 'name' | 'description'>> & { name: string; description: string };

  constructor(goal: HandshakeGoal, wishes: HandshakeWishes = {}) {
    this.#goal = goal;
    this.#wishes = wishes;
    this.#info = { name: goal.kind === 'list' ? '' : goal.exportName, description: '' };
  }

  /** True once only NBD_OPT_EXPORT_NAME is outstanding: a close then means the export is not there. */
  get isAwaitingExportName(): boolean {
    return this.#state === 'export-name';
  }

  /** TLS is up. @returns what to send in it. */
  secured(): Buffer {
    this.#sendNext();
    return this.#takeOutput();
  }

  /** Takes what arrived. After any decision but `continue` it must not be called again, or after `secured`. */
  receive(chunk: Buffer): ClientStep {
    this.#input.push(chunk);
    let decision = CONTINUE;
    while (decision.kind === 'continue') {
      const next = this.#advance();
      if (next === undefined) break;
      decision = next;
    }
    return { output: this.#takeOutput(), decision };
  }

  #takeOutput(): Buffer {
    const output = Buffer.concat(this.#output);
    this.#output = [];
    return output;
  }

  #advance(): ClientDecision | undefined {
    const available = this.#input.lengthBytes;
    switch (this.#state) {
      case 'greeting':
        return available < GREETING_BYTES ? undefined : this.#greet(this.#input.take(GREETING_BYTES));
      case 'reply-header':
        if (available < OPTION_REPLY_HEADER_BYTES) return undefined;
        return this.#takeHeader(this.#input.take(OPTION_REPLY_HEADER_BYTES));
      case 'reply-data': {
        const header = this.#header;
        if (header === undefined || available < header.lengthBytes) return undefined;
        this.#state = 'reply-header';
        return this.#takeReply(header, this.#input.take(header.lengthBytes));
      }
      case 'export-name': {
        const wanted = EXPORT_NAME_REPLY_BYTES + (this.#zeroes ? EXPORT_NAME_ZEROES_BYTES : 0);
        if (available < wanted) return undefined;
        Object.assign(this.#info, decodeExportNameReply(this.#input.take(wanted)));
        return this.#ready();
      }
    }
  }

  #greet(bytes: Buffer): ClientDecision {
    const flags = decodeGreeting(bytes);
    if (flags === undefined) return violation('The server does not greet as a newstyle NBD server');
    const isFixed = (flags & HANDSHAKE_FLAG.fixedNewstyle) !== 0;
    const noZeroes = (flags & HANDSHAKE_FLAG.noZeroes) !== 0;
    this.#zeroes = !noZeroes;
    const answer = (isFixed ? CLIENT_FLAG.fixedNewstyle : 0) | (noZeroes ? CLIENT_FLAG.noZeroes : 0);
    this.#output.push(encodeClientFlags(answer));
    const goal = this.#goal;
    if (!isFixed) {
      if (this.#wishes.tls === true) return { kind: 'tls-refused', reason: 'it is too old for TLS' };
      if (goal.kind !== 'go') return violation('The server is too old to describe its exports');
      this.#sendExportName(goal.exportName);
      return CONTINUE;
    }
    this.#state = 'reply-header';
    const { tls, structuredReplies, extendedHeaders, contexts = [] } = this.#wishes;
    if (extendedHeaders === true) this.#wished.push(OPTION.extendedHeaders);
    if (structuredReplies === true) this.#wished.push(OPTION.structuredReply);
    if (contexts.length > 0) this.#wished.push(OPTION.setMetaContext);
    if (tls === true) this.#send(OPTION.startTls, NO_DATA);
    else this.#sendNext();
    return CONTINUE;
  }

  /** The next wish that makes sense, then the goal. */
  #sendNext(): void {
    const goal = this.#goal;
    if (goal.kind === 'list') {
      this.#send(OPTION.list, NO_DATA);
      return;
    }
    for (let option = this.#wished.shift(); option !== undefined; option = this.#wished.shift()) {
      if (option === OPTION.structuredReply && this.#replies === 'extended') continue;
      if (option === OPTION.setMetaContext && this.#replies === 'simple') continue;
      const queries = this.#wishes.contexts ?? [];
      const isChoice = option === OPTION.setMetaContext;
      this.#send(
        option,
        isChoice ? encodeMetaContextRequest({ exportName: goal.exportName, queries }) : NO_DATA,
      );
      return;
    }
    const infos = [INFO.name, INFO.description, INFO.blockSize];
    const data = encodeInfoRequest({ name: Buffer.from(goal.exportName), infos });
    this.#send(goal.kind === 'go' ? OPTION.go : OPTION.info, data);
  }

  #takeHeader(bytes: Buffer): ClientDecision {
    const header = decodeOptionReplyHeader(bytes);
    if (header === undefined) return violation('An option reply does not begin with the reply magic');
    if (header.option !== this.#option) {
      return violation(`Option ${this.#option} was answered with a reply to option ${header.option}`);
    }
    if (header.lengthBytes > LIMITS.nbdOptionBytesMax) {
      return violation(`An option reply of ${header.lengthBytes} bytes is too long`);
    }
    this.#header = header;
    this.#state = 'reply-data';
    return CONTINUE;
  }

  #takeReply(header: OptionReplyHeader, data: Buffer): ClientDecision {
    switch (header.type) {
      case OPTION_REPLY.ack:
        return this.#acknowledged();
      case OPTION_REPLY.info:
        return this.#takeInfo(data);
      case OPTION_REPLY.metaContext:
        return this.#takeContext(data);
      case OPTION_REPLY.server: {
        const entry = decodeServerEntry(data);
        if (entry === undefined) return violation('An entry of the list of exports is malformed');
        if (this.#entries.length >= LIMITS.nbdListedExportCountMax) {
          return violation(`The server lists more than ${LIMITS.nbdListedExportCountMax} exports`);
        }
        this.#entries.push(entry);
        return CONTINUE;
      }
      default:
        return this.#takeError(header, data);
    }
  }

  #takeInfo(data: Buffer): ClientDecision {
    const info = decodeInfoReply(data);
    switch (info?.kind) {
      case undefined:
        return violation('An information about the export is malformed');
      case 'export':
        Object.assign(this.#info, { sizeBytes: info.sizeBytes, transmissionFlags: info.transmissionFlags });
        return CONTINUE;
      case 'name':
      case 'description':
        this.#info[info.kind] = info.text;
        return CONTINUE;
      case 'block-size':
        Object.assign(this.#info, {
          minimumBlockSizeBytes: info.minimumBytes,
          preferredBlockSizeBytes: info.preferredBytes,
          maximumPayloadBytes: info.maximumPayloadBytes,
        });
        return CONTINUE;
      case 'other':
        return CONTINUE;
    }
  }

  #takeContext(data: Buffer): ClientDecision {
    const entry = decodeMetaContextEntry(data);
    if (this.#option !== OPTION.setMetaContext || entry === undefined || this.#contexts.has(entry.id)) {
      return violation('A metadata context was not asked for, is malformed or has the id of another one');
    }
    if (this.#contexts.size >= LIMITS.nbdMetaContextCountMax) {
      return violation(`The server selects more than ${LIMITS.nbdMetaContextCountMax} metadata contexts`);
    }
    this.#contexts.set(entry.id, entry.name);
    return CONTINUE;
  }

  #takeError(header: OptionReplyHeader, data: Buffer): ClientDecision {
    const { option, type } = header;
    if (type < 0x8000_0000) return violation(`Option ${option} was answered with reply type ${type}`);
    const isFinal = type === OPTION_REPLY.errorTlsRequired || type === OPTION_REPLY.errorShutdown;
    if (isWish(option) && !isFinal) {
      if (option === OPTION.setMetaContext) this.#contexts.clear();
      this.#sendNext();
      return CONTINUE;
    }
    if (option === OPTION.startTls) {
      this.#abort();
      return { kind: 'tls-refused', reason: reasonOf(header, data) };
    }
    const mayFallBack = option === OPTION.go && this.#replies !== 'extended';
    if (type === OPTION_REPLY.errorUnsupported && mayFallBack && this.#goal.kind === 'go') {
      this.#sendExportName(this.#goal.exportName);
      return CONTINUE;
    }
    this.#abort();
    return { kind: 'refused', option, replyType: type, reason: reasonOf(header, data) };
  }

  #acknowledged(): ClientDecision {
    if (this.#option === OPTION.startTls) {
      const extraBytes = this.#input.lengthBytes;
      if (extraBytes === 0) return { kind: 'start-tls' };
      return violation(`${extraBytes} bytes in plain text follow the consent to TLS`);
    }
    if (isWish(this.#option)) {
      if (this.#option === OPTION.extendedHeaders) this.#replies = 'extended';
      if (this.#option === OPTION.structuredReply) this.#replies = 'structured';
      this.#sendNext();
      return CONTINUE;
    }
    if (this.#goal.kind === 'list') {
      this.#abort();
      return { kind: 'listed', entries: this.#entries };
    }
    if (this.#info.sizeBytes === undefined) return violation('The server did not say the size of the export');
    if (this.#goal.kind === 'info') this.#abort();
    return this.#ready();
  }

  #ready(): ClientDecision {
    const flags = this.#info.transmissionFlags ?? 0;
    const has = (flag: number): boolean => (flags & flag) !== 0;
    const info: NbdExportInfo = {
      minimumBlockSizeBytes: 1,
      preferredBlockSizeBytes: LIMITS.blockSizeBytesPreferred,
      maximumPayloadBytes: LIMITS.nbdPayloadBytesMax,
      sizeBytes: 0,
      ...this.#info,
      transmissionFlags: flags,
      readOnly: has(TRANSMISSION_FLAG.readOnly),
      canFlush: has(TRANSMISSION_FLAG.sendFlush),
      canFua: has(TRANSMISSION_FLAG.sendFua),
      canTrim: has(TRANSMISSION_FLAG.sendTrim),
      canWriteZeroes: has(TRANSMISSION_FLAG.sendWriteZeroes),
      canMultiConn: has(TRANSMISSION_FLAG.canMultiConn),
    };
    if (!Number.isSafeInteger(info.sizeBytes)) return violation('The export is larger than 2^53 bytes');
    if (!areSane(info)) return violation('The block sizes of the export contradict the protocol');
    const terms = { replies: this.#replies, contexts: this.#contexts };
    return { kind: 'export', info, terms, rest: this.#input.take(this.#input.lengthBytes) };
  }

  #sendExportName(exportName: string): void {
    this.#state = 'export-name';
    this.#send(OPTION.exportName, Buffer.from(exportName));
  }

  /** A polite end; the answer is not waited for. */
  #abort(): void {
    this.#send(OPTION.abort, NO_DATA);
  }

  #send(option: number, data: Buffer): void {
    this.#option = option;
    this.#output.push(encodeOption(option, data));
  }
}

function reasonOf(header: OptionReplyHeader, data: Buffer): string {
  const said = decodeString(data);
  return said === undefined || said === '' ? `reply 0x${header.type.toString(16)}` : said;
}

/** Options that a session can do without. */
function isWish(option: number): boolean {
  const { extendedHeaders, structuredReply, setMetaContext } = OPTION;
  return option === extendedHeaders || option === structuredReply || option === setMetaContext;
}

/** NBD proto.md § Size constraints. */
function areSane(info: NbdExportInfo): boolean {
  const { minimumBlockSizeBytes: minimum, preferredBlockSizeBytes: preferred } = info;
  return (
    minimum > 0 &&
    Number.isInteger(Math.log2(minimum)) &&
    minimum <= 65_536 &&
    preferred >= minimum &&
    info.maximumPayloadBytes >= minimum
  );
}

function violation(reason: string): ClientDecision {
  return { kind: 'violation', reason };
}
