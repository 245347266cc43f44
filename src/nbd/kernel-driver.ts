/**
 * The kernel's nbd driver, as its netlink family offers it.
 *
 * What the driver does with what it is told (Linux 6.1, measured in the virtual machine):
 *
 * - A device holds its sockets by itself. A socket that ends, or does not answer a request in time, is shut
 *   down by the driver in both directions, which `poll` reports as a hang-up to whoever still has a descriptor
 *   of it; and the driver announces to its multicast group that a link of the device is dead.
 * - Requests then wait, up to the time for dead connections, until RECONFIGURE brings sockets. Each takes the
 *   place of one dead socket; one that finds none is passed over in silence. A socket that was taken carries
 *   the device's time limit as its send timeout, which is how the two are told apart here.
 * - Requests that were already sent are sent again only when their own time is over.
 * - RECONFIGURE without sockets changes nothing and fails where the device is not attached: a question.
 *
 * The identifier that CONNECT leaves in `/sys/block/nbdN/backend` (since Linux 5.14) tells whose device it is.
 *
 * Source: linux/nbd-netlink.h.
 */

import { readFileSync } from 'node:fs';
import {
  decodeAttributes,
  findAttribute,
  GenericNetlink,
  getSocketOption,
  type NetlinkAttribute,
  type NetlinkFamily,
  type NetlinkMessage,
  POLL,
  pollDescriptors,
  systemCode,
} from '../base/index.ts';

/** What a device is made of. */
export interface KernelSetup {
  readonly index: number;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly transmissionFlags: number;
  readonly timeoutSeconds: number;
  readonly deadConnectionSeconds: number;
  readonly backend: string;
  readonly descriptors: readonly number[];
}

export interface KernelNews {
  /** Those of the watched sockets that the device has lost. */
  readonly dead: readonly number[];
  /** The driver announced a dead link of the device: perhaps one that is not watched. */
  readonly isLinkDead: boolean;
}

/** The driver; a fake stands in for it in tests. */
export interface KernelDriver {
  isAttached(index: number): Promise<boolean>;
  /** The identifier that the device was attached with, or undefined where there is none. */
  backendOf(index: number): string | undefined;
  sizeBytesOf(index: number): number | undefined;
  connect(setup: KernelSetup): Promise<void>;
  /**
   * Offers sockets to the device in the place of dead ones; with none it only asks.
   *
   * @returns false where the device is not attached with this identifier any more.
   */
  reconfigure(index: number, backend: string, descriptors: readonly number[]): Promise<boolean>;
  disconnect(index: number): Promise<void>;
  /** Whether a device has taken the socket that was offered to it. */
  isTaken(descriptor: number): boolean;
  /** Waits until there are news or the time is over. */
  wait(index: number, descriptors: readonly number[], timeoutMs: number): Promise<KernelNews>;
  close(): void;
}

const FAMILY = 'nbd';
const VERSION = 1;
const GROUP = 'nbd_mc_group';

const COMMAND = { connect: 1, disconnect: 2, reconfigure: 3, linkDead: 4, status: 5 } as const;
const ATTRIBUTE = {
  index: 1,
  sizeBytes: 2,
  blockSizeBytes: 3,
  timeout: 4,
  serverFlags: 5,
  sockets: 7,
  deadConnectionTimeout: 8,
  deviceList: 9,
  backend: 10,
} as const;
const SOCKET_ITEM = 1;
const SOCKET_DESCRIPTOR = 1;
const DEVICE_CONNECTED = 2;

const SOL_SOCKET = 1;
const SO_SNDTIMEO = 21;
const TIMEVAL_BYTES = 16;
const SECTOR_BYTES = 512;

export class NetlinkKernelDriver implements KernelDriver {
  readonly #netlink: GenericNetlink;
  readonly #family: number;
  /** Whether this kernel keeps identifiers, known once one was seen. */
  #keepsBackends = false;
  /** Whether this kernel marks the sockets it takes; where CONNECT left no mark, none can be asked for. */
  #marksSockets = true;

  private constructor(netlink: GenericNetlink, family: NetlinkFamily) {
    this.#netlink = netlink;
    this.#family = family.id;
    const group = family.groups.get(GROUP);
    if (group !== undefined) netlink.join(group);
  }

  /** @throws {NativeError} ENOENT where the module is not loaded, ENOSYS without koffi. */
  static async open(): Promise<NetlinkKernelDriver> {
    const netlink = GenericNetlink.open();
    try {
      return new NetlinkKernelDriver(netlink, await netlink.family(FAMILY));
    } catch (error) {
      netlink.close();
      throw error;
    }
  }

  async isAttached(index: number): Promise<boolean> {
    const replies = await this.#request(COMMAND.status, [[ATTRIBUTE.index, { u32: index }]]);
    const list = findAttribute(replies[0]?.attributes, ATTRIBUTE.deviceList);
    const [item] = (list === undefined ? undefined : decodeAttributes(list)) ?? [];
    if (item === undefined) return false;
    const connected = findAttribute(decodeAttributes(item.value), DEVICE_CONNECTED);
    return connected?.[0] === 1;
  }

  backendOf(index: number): string | undefined {
    const backend = readSysfs(index, 'backend');
    if (backend !== undefined) this.#keepsBackends = true;
    return backend;
  }

  sizeBytesOf(index: number): number | undefined {
    const sectors = readSysfs(index, 'size');
    return sectors === undefined ? undefined : Number(sectors) * SECTOR_BYTES;
  }

  async connect(setup: KernelSetup): Promise<void> {
    await this.#request(COMMAND.connect, connectAttributes(setup));
    this.backendOf(setup.index);
    this.#marksSockets = setup.descriptors.every(hasSendTimeout);
  }

  async reconfigure(index: number, backend: string, descriptors: readonly number[]): Promise<boolean> {
    const found = this.backendOf(index);
    if (found !== backend && this.#keepsBackends) return false;
    const attributes: NetlinkAttribute[] = [
      [ATTRIBUTE.index, { u32: index }],
      [ATTRIBUTE.backend, { text: backend }],
    ];
    if (descriptors.length > 0) attributes.push(socketsAttribute(descriptors));
    try {
      await this.#request(COMMAND.reconfigure, attributes);
      return true;
    } catch (error) {
      // The driver's answer for a device that is not attached, and for one with another identifier.
      if (systemCode(error) === 'EINVAL') return false;
      throw error;
    }
  }

  async disconnect(index: number): Promise<void> {
    await this.#request(COMMAND.disconnect, [[ATTRIBUTE.index, { u32: index }]]);
  }

  isTaken(descriptor: number): boolean {
    return !this.#marksSockets || hasSendTimeout(descriptor);
  }

  async wait(index: number, descriptors: readonly number[], timeoutMs: number): Promise<KernelNews> {
    const requests = [
      { descriptor: this.#netlink.descriptor, events: POLL.readable },
      ...descriptors.map((descriptor) => ({ descriptor, events: 0 })),
    ];
    const [, ...happened] = await pollDescriptors(requests, timeoutMs);
    const dead = descriptors.filter((_, at) => ((happened[at] ?? 0) & POLL.hangUp) !== 0);
    const announced = this.#netlink.announcements().filter(({ command }) => command === COMMAND.linkDead);
    const isLinkDead = announced.some(({ attributes }) => {
      const about = findAttribute(attributes, ATTRIBUTE.index);
      return about?.length === 4 && about.readUInt32LE() === index;
    });
    return { dead, isLinkDead };
  }

  close(): void {
    this.#netlink.close();
  }

  #request(command: number, attributes: readonly NetlinkAttribute[]): Promise<NetlinkMessage[]> {
    return this.#netlink.request(this.#family, command, VERSION, attributes);
  }
}

/** The attributes of CONNECT. Exported for the test of their bytes. */
export function connectAttributes(setup: KernelSetup): NetlinkAttribute[] {
  return [
    [ATTRIBUTE.index, { u32: setup.index }],
    [ATTRIBUTE.sizeBytes, { u64: BigInt(setup.sizeBytes) }],
    [ATTRIBUTE.blockSizeBytes, { u64: BigInt(setup.blockSizeBytes) }],
    [ATTRIBUTE.timeout, { u64: BigInt(setup.timeoutSeconds) }],
    [ATTRIBUTE.deadConnectionTimeout, { u64: BigInt(setup.deadConnectionSeconds) }],
    [ATTRIBUTE.serverFlags, { u64: BigInt(setup.transmissionFlags) }],
    [ATTRIBUTE.backend, { text: setup.backend }],
    socketsAttribute(setup.descriptors),
  ];
}

function socketsAttribute(descriptors: readonly number[]): NetlinkAttribute {
  const items = descriptors.map((descriptor): NetlinkAttribute => {
    return [SOCKET_ITEM, { nested: [[SOCKET_DESCRIPTOR, { u32: descriptor }]] }];
  });
  return [ATTRIBUTE.sockets, { nested: items }];
}

function hasSendTimeout(descriptor: number): boolean {
  return getSocketOption(descriptor, SOL_SOCKET, SO_SNDTIMEO, TIMEVAL_BYTES).some((byte) => byte !== 0);
}

function readSysfs(index: number, name: string): string | undefined {
  try {
    return readFileSync(`/sys/block/nbd${index}/${name}`, 'utf8').trimEnd();
  } catch {
    return undefined;
  }
}
