/**
 * Generic netlink: how programs talk to kernel modules such as `nbd`.
 *
 * A message is a netlink header, a generic header that names the command, and attributes: length, type and
 * value, padded to 4 bytes, perhaps nested. All integers are in the machine's order, which is little-endian
 * on every machine that `native.ts` binds.
 *
 *     u32 length | u16 family | u16 flags | u32 sequence | u32 port || u8 command | u8 version | u16 0 || ...
 *
 * The kernel carries a request out inside the send, so its answers are there when the send has returned; the
 * send goes to Node's thread pool, because some requests wait in the kernel. Announcements to a multicast
 * group that was joined arrive on the same socket with the sequence 0 and are collected.
 *
 * What it does not do: dumps of several parts, several requests at once on one socket.
 *
 * Source: the kernel's documentation "Introduction to Netlink"; linux/netlink.h, linux/genetlink.h.
 */

import { closeSync, readSync, write } from 'node:fs';
import { promisify } from 'node:util';
import { assert } from './assert.ts';
import { systemCode } from './errors.ts';
import { openSocket, setSocketOption } from './native-sockets.ts';
import { NativeError } from './native.ts';

/** The value of an attribute: an integer of a width, bytes, or attributes inside it. */
export type NetlinkValue =
  | { readonly u8: number }
  | { readonly u16: number }
  | { readonly u32: number }
  | { readonly u64: bigint }
  /** Sent with a closing zero. */
  | { readonly text: string }
  | { readonly nested: readonly NetlinkAttribute[] };

export type NetlinkAttribute = readonly [type: number, value: NetlinkValue];

/** An attribute that was received; `value` may hold attributes again. */
export interface ReceivedAttribute {
  readonly type: number;
  readonly value: Buffer;
}

export interface NetlinkMessage {
  readonly command: number;
  readonly attributes: readonly ReceivedAttribute[];
}

export interface NetlinkFamily {
  readonly id: number;
  readonly groups: ReadonlyMap<string, number>;
}

const AF_NETLINK = 16;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0o4000 | 0o2000000;
const NETLINK_GENERIC = 16;
const SOL_NETLINK = 270;
const ADD_MEMBERSHIP = 1;
const EXTENDED_ACK = 11;

const HEADER_BYTES = 16;
const GENERIC_HEADER_BYTES = 4;
const ATTRIBUTE_HEADER_BYTES = 4;
const ATTRIBUTE_BYTES_MAX = 65_535;
const NESTED = 0x8000;
const TYPE_MASK = 0x3fff;
const MESSAGE_ERROR = 2;
const FLAG_REQUEST = 0x01;
const FLAG_ACK = 0x04;
const FLAG_CAPPED = 0x100;
const FLAG_ACK_ATTRIBUTES = 0x200;
const ERROR_MESSAGE = 1;
/** The kernel's longest message to user space. */
const RECEIVE_BYTES = 32 * 1024;

const CONTROL_ID = 16;
const CONTROL_GET_FAMILY = 3;
const CONTROL_FAMILY_ID = 1;
const CONTROL_FAMILY_NAME = 2;
const CONTROL_GROUPS = 7;
const CONTROL_GROUP_NAME = 1;
const CONTROL_GROUP_ID = 2;

const EPROTO = 71;
const ENOENT = 2;

/** @throws AssertionError where an attribute exceeds 65535 bytes or an integer its width. */
export function encodeAttributes(attributes: readonly NetlinkAttribute[]): Buffer {
  return Buffer.concat(attributes.flatMap(encodeAttribute));
}

function encodeAttribute([type, value]: NetlinkAttribute): Buffer[] {
  const bytes = encodeValue(value);
  const lengthBytes = ATTRIBUTE_HEADER_BYTES + bytes.length;
  assert(lengthBytes <= ATTRIBUTE_BYTES_MAX, `An attribute of ${lengthBytes} bytes is too long`);
  const header = Buffer.alloc(ATTRIBUTE_HEADER_BYTES);
  header.writeUInt16LE(lengthBytes, 0);
  header.writeUInt16LE('nested' in value ? type | NESTED : type, 2);
  return [header, bytes, Buffer.alloc(padded(lengthBytes) - lengthBytes)];
}

function encodeValue(value: NetlinkValue): Buffer {
  if ('nested' in value) return encodeAttributes(value.nested);
  if ('text' in value) return Buffer.from(`${value.text}\0`);
  const bytes = Buffer.alloc(8);
  if ('u8' in value) return bytes.subarray(0, bytes.writeUInt8(value.u8));
  if ('u16' in value) return bytes.subarray(0, bytes.writeUInt16LE(value.u16));
  if ('u32' in value) return bytes.subarray(0, bytes.writeUInt32LE(value.u32));
  return bytes.subarray(0, bytes.writeBigUInt64LE(value.u64));
}

/** The attributes in `bytes`, each a view of it; undefined where they are malformed. */
export function decodeAttributes(bytes: Buffer): ReceivedAttribute[] | undefined {
  const attributes: ReceivedAttribute[] = [];
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < ATTRIBUTE_HEADER_BYTES) return undefined;
    const lengthBytes = bytes.readUInt16LE(at);
    if (lengthBytes < ATTRIBUTE_HEADER_BYTES || at + lengthBytes > bytes.length) return undefined;
    const type = bytes.readUInt16LE(at + 2) & TYPE_MASK;
    attributes.push({ type, value: bytes.subarray(at + ATTRIBUTE_HEADER_BYTES, at + lengthBytes) });
    at += padded(lengthBytes);
  }
  return attributes;
}

/** The first attribute of a type; its value, or undefined. */
export function findAttribute(
  attributes: readonly ReceivedAttribute[] | undefined,
  type: number,
): Buffer | undefined {
  return attributes?.find((attribute) => attribute.type === type)?.value;
}

function padded(lengthBytes: number): number {
  return Math.ceil(lengthBytes / 4) * 4;
}

/** What a datagram held: messages as they lie in it, with their headers. */
interface RawMessage {
  readonly type: number;
  readonly flags: number;
  readonly sequence: number;
  readonly body: Buffer;
}

const writeAsync = promisify(write);

/** One generic netlink socket. */
export class GenericNetlink {
  readonly descriptor: number;
  readonly #buffer = Buffer.alloc(RECEIVE_BYTES);
  readonly #announced: NetlinkMessage[] = [];
  #sequence = 0;
  #isBusy = false;

  private constructor(descriptor: number) {
    this.descriptor = descriptor;
  }

  /** @throws {NativeError} ENOSYS without koffi; EAFNOSUPPORT, EPROTONOSUPPORT where the kernel has none. */
  static open(): GenericNetlink {
    const descriptor = openSocket({
      domain: AF_NETLINK,
      type: SOCK_RAW_NONBLOCK_CLOEXEC,
      protocol: NETLINK_GENERIC,
    });
    try {
      const on = Buffer.alloc(4);
      on.writeInt32LE(1);
      // A refusal then carries the kernel's own sentence about it.
      setSocketOption(descriptor, SOL_NETLINK, EXTENDED_ACK, on);
    } catch {
      // Kernels before 4.12 say the number only.
    }
    return new GenericNetlink(descriptor);
  }

  /**
   * Looks a family up by its name.
   *
   * @throws {NativeError} ENOENT where no module offers it.
   */
  async family(name: string): Promise<NetlinkFamily> {
    const replies = await this.request(CONTROL_ID, CONTROL_GET_FAMILY, 1, [
      [CONTROL_FAMILY_NAME, { text: name }],
    ]);
    const attributes = replies[0]?.attributes;
    const id = findAttribute(attributes, CONTROL_FAMILY_ID);
    if (id === undefined || id.length < 2) throw new NativeError('netlink', ENOENT, `family ${name}`);
    const groups = new Map<string, number>();
    const list = findAttribute(attributes, CONTROL_GROUPS);
    for (const group of (list === undefined ? undefined : decodeAttributes(list)) ?? []) {
      const fields = decodeAttributes(group.value);
      const groupName = findAttribute(fields, CONTROL_GROUP_NAME);
      const groupId = findAttribute(fields, CONTROL_GROUP_ID);
      if (groupName !== undefined && groupId?.length === 4) {
        groups.set(textOf(groupName), groupId.readUInt32LE());
      }
    }
    return { id: id.readUInt16LE(), groups };
  }

  /** From now on the announcements of this group are collected for `announcements`. @throws {NativeError} */
  join(group: number): void {
    const value = Buffer.alloc(4);
    value.writeUInt32LE(group);
    setSocketOption(this.descriptor, SOL_NETLINK, ADD_MEMBERSHIP, value);
  }

  /**
   * Sends one command and waits until the kernel has carried it out. One at a time.
   *
   * @returns the messages that answered it, mostly none or one.
   * @throws {NativeError} with the errno of the kernel's refusal, and its sentence where it has one.
   */
  async request(
    family: number,
    command: number,
    version: number,
    attributes: readonly NetlinkAttribute[],
  ): Promise<NetlinkMessage[]> {
    assert(!this.#isBusy, 'A netlink socket carries one request at a time');
    this.#isBusy = true;
    try {
      this.#sequence += 1;
      const sequence = this.#sequence;
      const message = encodeRequest({ family, command, version, sequence, attributes });
      await writeAsync(this.descriptor, message);
      return this.#takeReplies(sequence, `command ${command} of family ${family}`);
    } finally {
      this.#isBusy = false;
    }
  }

  /** The announcements that came since the last call; the kernel may drop some where many come. */
  announcements(): NetlinkMessage[] {
    while (this.#receive().length > 0);
    return this.#announced.splice(0);
  }

  close(): void {
    closeSync(this.descriptor);
  }

  #takeReplies(sequence: number, what: string): NetlinkMessage[] {
    const replies: NetlinkMessage[] = [];
    for (;;) {
      const messages = this.#receive();
      if (messages.length === 0) throw new NativeError('netlink', EPROTO, `no answer to ${what}`);
      for (const message of messages) {
        if (message.sequence !== sequence) continue;
        if (message.type !== MESSAGE_ERROR) {
          replies.push(decodeMessage(message));
          continue;
        }
        const errno = -message.body.readInt32LE(0);
        if (errno === 0) return replies;
        const said = refusalOf(message);
        throw new NativeError('netlink', errno, said === '' ? what : `${what}: ${said}`);
      }
    }
  }

  /** One datagram's messages; announcements are put aside. None where nothing is there. */
  #receive(): RawMessage[] {
    for (;;) {
      try {
        const lengthBytes = readSync(this.descriptor, this.#buffer);
        // Copied, because the messages are kept and the buffer is not.
        const messages = splitMessages(Buffer.from(this.#buffer.subarray(0, lengthBytes)));
        for (const message of messages) {
          if (message.sequence === 0 && message.type >= CONTROL_ID)
            this.#announced.push(decodeMessage(message));
        }
        return messages;
      } catch (error) {
        if (systemCode(error) === 'EAGAIN') return [];
        // Announcements were dropped because nobody took them; the rest is still there.
        if (systemCode(error) !== 'ENOBUFS') throw error;
      }
    }
  }
}

/** One request as it is sent. */
export function encodeRequest(request: {
  readonly family: number;
  readonly command: number;
  readonly version: number;
  readonly sequence: number;
  readonly attributes: readonly NetlinkAttribute[];
}): Buffer {
  const attributes = encodeAttributes(request.attributes);
  const header = Buffer.alloc(HEADER_BYTES + GENERIC_HEADER_BYTES);
  header.writeUInt32LE(header.length + attributes.length, 0);
  header.writeUInt16LE(request.family, 4);
  header.writeUInt16LE(FLAG_REQUEST | FLAG_ACK, 6);
  header.writeUInt32LE(request.sequence, 8);
  header.writeUInt8(request.command, 16);
  header.writeUInt8(request.version, 17);
  return Buffer.concat([header, attributes]);
}

function splitMessages(bytes: Buffer): RawMessage[] {
  const messages: RawMessage[] = [];
  for (let at = 0; at + HEADER_BYTES <= bytes.length;) {
    const lengthBytes = bytes.readUInt32LE(at);
    if (lengthBytes < HEADER_BYTES || at + lengthBytes > bytes.length) break;
    messages.push({
      type: bytes.readUInt16LE(at + 4),
      flags: bytes.readUInt16LE(at + 6),
      sequence: bytes.readUInt32LE(at + 8),
      body: bytes.subarray(at + HEADER_BYTES, at + lengthBytes),
    });
    at += padded(lengthBytes);
  }
  return messages;
}

function decodeMessage(message: RawMessage): NetlinkMessage {
  const { body } = message;
  const attributes = decodeAttributes(body.subarray(GENERIC_HEADER_BYTES)) ?? [];
  return { command: body[0] ?? 0, attributes };
}

/** What the kernel says about a refusal, behind the errno and as much of the request as it repeats. */
function refusalOf(message: RawMessage): string {
  if ((message.flags & FLAG_ACK_ATTRIBUTES) === 0) return '';
  const isCapped = (message.flags & FLAG_CAPPED) !== 0;
  const repeated = isCapped ? HEADER_BYTES : padded(message.body.readUInt32LE(4));
  const said = findAttribute(decodeAttributes(message.body.subarray(4 + repeated)), ERROR_MESSAGE);
  return said === undefined ? '' : textOf(said);
}

function textOf(value: Buffer): string {
  const end = value.indexOf(0);
  return value.toString('utf8', 0, end < 0 ? value.length : end);
}
