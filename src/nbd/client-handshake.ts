/**
 * The client's side of the handshake, as a pure state machine.
 *
 *     greeting -> GO (or EXPORT_NAME, where the server is older) -> ready
 *     greeting -> INFO or LIST -> ABORT -> done
 *
 * Bytes go in, bytes to send and a decision come out; a refusal or a violation is a decision too. One option
 * is in flight at a time, as the protocol asks.
 *
 * Source: NBD proto.md § Fixed newstyle negotiation, § Option types.
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

export type ClientDecision =
  | { readonly kind: 'continue' }
  /** `go`: the transmission begins; `info`: the session is over. `rest` arrived behind the handshake. */
  | { readonly kind: 'export'; readonly info: NbdExportInfo; readonly rest: Buffer }
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
  #info: Partial<Omit<NbdExportInfo, 'name' | 'description'>> & { name: string; description: string };

  constructor(goal: HandshakeGoal) {
    this.#goal = goal;
    this.#info = { name: goal.kind === 'list' ? '' : goal.exportName, description: '' };
  }

  /** True once only NBD_OPT_EXPORT_NAME is outstanding: a close then means the export is not there. */
  get isAwaitingExportName(): boolean {
    return this.#state === 'export-name';
  }

  /** Takes what arrived. After any decision but `continue` it must not be called again. */
  receive(chunk: Buffer): ClientStep {
    this.#input.push(chunk);
    let decision = CONTINUE;
    while (decision.kind === 'continue') {
      const next = this.#advance();
      if (next === undefined) break;
      decision = next;
    }
    const output = Buffer.concat(this.#output);
    this.#output = [];
    return { output, decision };
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
      if (goal.kind !== 'go') return violation('The server is too old to describe its exports');
      this.#sendExportName(goal.exportName);
      return CONTINUE;
    }
    this.#state = 'reply-header';
    if (goal.kind === 'list') {
      this.#send(OPTION.list, NO_DATA);
      return CONTINUE;
    }
    const infos = [INFO.name, INFO.description, INFO.blockSize];
    const data = encodeInfoRequest({ name: Buffer.from(goal.exportName), infos });
    this.#send(goal.kind === 'go' ? OPTION.go : OPTION.info, data);
    return CONTINUE;
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

  #takeError(header: OptionReplyHeader, data: Buffer): ClientDecision {
    const { option, type } = header;
    if (type < 0x8000_0000) return violation(`Option ${option} was answered with reply type ${type}`);
    if (type === OPTION_REPLY.errorUnsupported && this.#goal.kind === 'go' && option === OPTION.go) {
      this.#sendExportName(this.#goal.exportName);
      return CONTINUE;
    }
    this.#abort();
    const said = decodeString(data);
    const reason = said === undefined || said === '' ? `reply 0x${type.toString(16)}` : said;
    return { kind: 'refused', option, replyType: type, reason };
  }

  #acknowledged(): ClientDecision {
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
    return { kind: 'export', info, rest: this.#input.take(this.#input.lengthBytes) };
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
