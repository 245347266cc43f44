/**
 * A device as a member, used whole: a block device, a file, or an NBD export. It is cut into slots of one size; the
 * first begins with the header of the device, the others hold a segment each, or begin with zeroes.
 *
 *     slot 0           slot 1           slot 2          ...
 *     device header    segment header   (free)
 *                      records
 *
 * A device that holds something else is not taken: its first block has to be blank or a header of ours.
 */

import { LIMITS } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { CHECKSUM_BYTES, digest } from '../records/index.ts';
import { DeltaError } from './errors.ts';
import { decodeSegmentHeader, SEGMENT_HEADER_BYTES, type SegmentHeader } from './format.ts';
import { type Area, type FoundSegment, type Member, type MemberOptions, segmentBytesFor } from './member.ts';

const MAGIC = Buffer.from('CBDELTAD');
const VERSION = 0;
const HEADER_BYTES = 4096;
const CHECKSUM_AT = HEADER_BYTES - CHECKSUM_BYTES;
const ID_BYTES_MAX = 64;

interface DeviceHeader {
  readonly volumeId: string;
  readonly segmentBytes: number;
  readonly isComplete: boolean;
}

export class DeviceMember implements Member {
  readonly place: string;
  readonly alignBytes: number;
  readonly bytesMax: number;
  readonly #device: BlockDevice;
  readonly #readOnly: boolean;
  #header: DeviceHeader;
  /** By slot, of those that are in use. */
  readonly #used = new Set<number>();

  private constructor(options: MemberOptions, device: BlockDevice, header: DeviceHeader) {
    this.place = options.place;
    this.alignBytes = Math.max(device.blockSizeBytes, LIMITS.blockSizeBytesMin);
    this.#device = device;
    this.#readOnly = options.readOnly;
    this.#header = header;
    const room = Math.min(options.bytesMax ?? device.sizeBytes, device.sizeBytes);
    this.bytesMax = (Math.floor(room / header.segmentBytes) - 1) * header.segmentBytes;
  }

  /** See `openMember`. */
  static async open(options: MemberOptions): Promise<DeviceMember> {
    const { place, readOnly } = options;
    const device = await options.registry.open(place, {
      readOnly,
      syncName: 'delta',
      ...(readOnly ? {} : { lock: 'exclusive', exclusive: true }),
    });
    try {
      const header = (await readDeviceHeader(device, place)) ?? newHeader(device, options);
      if (options.volumeId !== undefined && header.volumeId !== options.volumeId)
        throw new DeltaError(
          'wrong-volume',
          `Delta place ${place} has logs of volume ${header.volumeId}, wanted ${options.volumeId}`,
          { place, volumeIds: [header.volumeId] },
        );
      const member = new DeviceMember(options, device, header);
      await member.#takeSlots();
      return member;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  get segmentBytes(): number {
    return this.#header.segmentBytes;
  }

  get usedBytes(): number {
    return this.#used.size * this.segmentBytes;
  }

  get volumeIds(): readonly string[] {
    return [this.#header.volumeId];
  }

  isComplete(): Promise<boolean> {
    return Promise.resolve(this.#header.isComplete);
  }

  async setComplete(isComplete: boolean): Promise<void> {
    this.#header = { ...this.#header, isComplete };
    await this.#writeHeader();
  }

  async find(): Promise<readonly FoundSegment[]> {
    const found: FoundSegment[] = [];
    for (let slot = 1; slot < this.#slotCount; slot += 1) {
      const header = await this.#headerIn(slot);
      if (header !== undefined) found.push({ key: String(slot), header });
    }
    return found;
  }

  removeBlank(): Promise<void> {
    // A slot without a header is free.
    return Promise.resolve();
  }

  /** A device tells by failing. */
  has(): Promise<boolean> {
    return Promise.resolve(true);
  }

  open(key: string): Promise<Area> {
    return Promise.resolve(this.#area(Number(key)));
  }

  hasRoom(spare: number): boolean {
    return this.usedBytes + (1 + spare) * this.segmentBytes <= this.bytesMax;
  }

  async create(): Promise<Area> {
    const slot = this.#freeSlot();
    if (slot === undefined)
      throw new DeltaError('full', `Delta place ${this.place} has no slot left of ${this.#slotCount - 1}`, {
        place: this.place,
      });
    this.#used.add(slot);
    // Only now that something is kept here: to look at a device must not change it.
    if ((await readDeviceHeader(this.#device, this.place)) === undefined) await this.#writeHeader();
    return this.#area(slot);
  }

  async remove(keys: readonly string[]): Promise<void> {
    const [first, ...others] = keys.map(Number);
    for (const slots of [first === undefined ? [] : [first], others]) {
      for (const slot of slots)
        await this.#device.write(Buffer.alloc(SEGMENT_HEADER_BYTES), slot * this.segmentBytes);
      if (slots.length > 0) await this.#device.flush();
      for (const slot of slots) this.#used.delete(slot);
    }
  }

  sync(): Promise<void> {
    return this.#device.flush();
  }

  close(): Promise<void> {
    return this.#device.close();
  }

  get #slotCount(): number {
    // Of the whole device: it may have been allowed more before.
    return Math.floor(this.#device.sizeBytes / this.segmentBytes);
  }

  /** What of a header is there is in use, until `remove`; a slot that somebody's data is in is not. */
  async #takeSlots(): Promise<void> {
    if (this.#readOnly) return;
    for (const { key } of await this.find()) this.#used.add(Number(key));
  }

  #freeSlot(): number | undefined {
    for (let slot = 1; slot < this.#slotCount; slot += 1) if (!this.#used.has(slot)) return slot;
    return undefined;
  }

  #area(slot: number): Area {
    return {
      key: String(slot),
      device: this.#device,
      baseBytes: slot * this.segmentBytes,
      sizeBytes: this.segmentBytes,
      close: () => Promise.resolve(),
    };
  }

  async #headerIn(slot: number): Promise<SegmentHeader | undefined> {
    const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES);
    await this.#device.read(bytes, slot * this.segmentBytes);
    const header = decodeSegmentHeader(bytes);
    return header?.volumeId === this.#header.volumeId ? header : undefined;
  }

  async #writeHeader(): Promise<void> {
    const { volumeId, segmentBytes, isComplete } = this.#header;
    const bytes = Buffer.alloc(HEADER_BYTES);
    MAGIC.copy(bytes);
    bytes.writeUInt32BE(VERSION, 8);
    bytes.writeUInt32BE(isComplete ? 1 : 0, 12);
    bytes.writeBigUInt64BE(BigInt(segmentBytes), 16);
    bytes.writeUInt16BE(bytes.write(volumeId, 26, 'utf8'), 24);
    digest(bytes.subarray(0, CHECKSUM_AT)).copy(bytes, CHECKSUM_AT, 0, CHECKSUM_BYTES);
    await this.#device.write(bytes, 0);
    await this.#device.flush();
  }
}

/** Undefined where the device is blank. @throws {DeltaError} 'member-unusable' */
async function readDeviceHeader(device: BlockDevice, place: string): Promise<DeviceHeader | undefined> {
  const unusable = (why: string): DeltaError =>
    new DeltaError('member-unusable', `Delta place ${place} ${why}`, { place });
  if (device.blockSizeBytes > SEGMENT_HEADER_BYTES)
    throw unusable(`has blocks of ${device.blockSizeBytes} bytes, wanted at most ${SEGMENT_HEADER_BYTES}`);
  if (device.sizeBytes < LIMITS.deltaSegmentBytesMin * 4)
    throw unusable(`has ${device.sizeBytes} bytes, wanted at least ${LIMITS.deltaSegmentBytesMin * 4}`);
  const bytes = Buffer.alloc(HEADER_BYTES);
  await device.read(bytes, 0);
  if (bytes.every((byte) => byte === 0)) return undefined;
  if (!bytes.subarray(0, MAGIC.length).equals(MAGIC))
    throw unusable('holds something else, wanted logs or zeroes at its beginning');
  const expected = digest(bytes.subarray(0, CHECKSUM_AT)).subarray(0, CHECKSUM_BYTES);
  if (!expected.equals(bytes.subarray(CHECKSUM_AT))) throw unusable('has a damaged header');
  if (bytes.readUInt32BE(8) !== VERSION)
    throw unusable(`has format ${bytes.readUInt32BE(8)}, wanted ${VERSION}`);
  const idBytes = bytes.readUInt16BE(24);
  const segmentBytes = Number(bytes.readBigUInt64BE(16));
  const isSensible = idBytes <= ID_BYTES_MAX && segmentBytes >= LIMITS.deltaSegmentBytesMin;
  if (!isSensible || segmentBytes > device.sizeBytes) throw unusable('has a header that cannot be');
  return {
    volumeId: bytes.toString('utf8', 26, 26 + idBytes),
    segmentBytes,
    isComplete: bytes.readUInt32BE(12) === 1,
  };
}

function newHeader(device: BlockDevice, options: MemberOptions): DeviceHeader {
  const { place, volumeId, readOnly } = options;
  if (volumeId === undefined || readOnly)
    throw new DeltaError('wrong-volume', `Delta place ${place} has no logs, wanted those of a volume`, {
      place,
      volumeIds: [],
    });
  return {
    volumeId,
    segmentBytes: segmentBytesFor(
      options.segmentBytes,
      Math.min(options.bytesMax ?? Infinity, device.sizeBytes),
    ),
    isComplete: true,
  };
}
