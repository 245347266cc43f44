/**
 * One place that keeps the logs: a directory or a device. What both kinds give is the same: areas of one size, each
 * of them for one segment, known by the header at its beginning.
 *
 * An area without a whole header is free. So a segment comes into being when its header is written, and goes away when
 * that is erased, whatever else is there; who needs the segment whole at once writes the header last.
 */

import { stat } from 'node:fs/promises';
import { assert, LIMITS, messageOf, systemCode } from '../base/index.ts';
import { type BlockDevice, type DeviceRegistry, parseDeviceAddress } from '../device/index.ts';
import { DeviceMember } from './device-member.ts';
import { DirectoryMember } from './directory-member.ts';
import { DeltaError } from './errors.ts';
import type { SegmentHeader } from './format.ts';

/** Where one segment is, or will be. */
export interface Area {
  /** Names it on its member: a file, or a slot. */
  readonly key: string;
  readonly device: BlockDevice;
  /** Where it begins on the device. */
  readonly baseBytes: number;
  readonly sizeBytes: number;
  /** Gives back what the area alone has open. */
  close(): Promise<void>;
}

export interface FoundSegment {
  readonly key: string;
  readonly header: SegmentHeader;
}

export interface Member {
  readonly place: string;
  readonly alignBytes: number;
  /** Of each area. */
  readonly segmentBytes: number;
  /** What its areas take. */
  readonly usedBytes: number;
  /** What they may take; undefined where only the disk says. */
  readonly bytesMax: number | undefined;
  /** Whose logs are here; empty where none are. */
  readonly volumeIds: readonly string[];
  /** False while it is made anew: what is here is a part, and an old one perhaps. */
  isComplete(): Promise<boolean>;
  /** Durable when it resolves. */
  setComplete(isComplete: boolean): Promise<void>;
  /** The segments of the volume, in no order. */
  find(): Promise<readonly FoundSegment[]>;
  /** Removes areas that no segment ever began in, as a crash leaves them. Nobody may be about to begin one. */
  removeBlank(): Promise<void>;
  /** Whether a segment, or without a key the member, is still found by its name; what fails says nothing of it. */
  has(key: string | undefined): Promise<boolean>;
  /** Opens a segment for reading. @throws {DeviceError} 'not-found' where it is gone. */
  open(key: string): Promise<Area>;
  /** Whether another area is allowed. @param spare how many have to be left after it; less than 0 for some too many. */
  hasRoom(spare: number): boolean;
  /**
   * Makes an area without a header, durable by name and with all of its space.
   *
   * @param name its numbers, by which a directory calls it.
   */
  create(name: { readonly logNumber: number; readonly segmentNumber: number }): Promise<Area>;
  /** Removes segments, durably: the first one is gone before any other goes. */
  remove(keys: readonly string[]): Promise<void>;
  /** Makes what was written to the areas durable. */
  sync(areas: Iterable<Area>): Promise<void>;
  close(): Promise<void>;
}

export interface MemberOptions {
  readonly place: string;
  /** Whose logs; without it those of the one volume that is there. */
  readonly volumeId?: string | undefined;
  readonly readOnly: boolean;
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly bytesMax?: number | undefined;
  /** Of a segment that is made; LIMITS.deltaSegmentBytes where left out, less where the room is small. */
  readonly segmentBytes?: number | undefined;
}

/**
 * Opens a place as a member. Nothing is made where it is open for reading only.
 *
 * @throws {DeltaError} 'member-unusable', 'wrong-volume'
 * @throws {DeviceError} what its registry says.
 */
export async function openMember(options: MemberOptions): Promise<Member> {
  const directory = await directoryOf(options.place);
  if (directory !== undefined) return await DirectoryMember.open(options, directory);
  assert(options.bytesMax === undefined || options.bytesMax > 0, `Room of ${options.bytesMax} bytes`);
  return await DeviceMember.open(options);
}

/** The path where the place is a directory. */
async function directoryOf(place: string): Promise<string | undefined> {
  const { scheme, target, piece } = parseDeviceAddress(place);
  if (scheme !== 'file' || piece !== undefined) return undefined;
  try {
    return (await stat(target)).isDirectory() ? target : undefined;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    throw new DeltaError(
      'member-unusable',
      `Delta place ${place} cannot be used: ${messageOf(error)}`,
      { place },
      { cause: error },
    );
  }
}

/** The size of segments for a member of so much room. */
export function segmentBytesFor(wanted: number | undefined, roomBytes: number | undefined): number {
  const size = wanted ?? LIMITS.deltaSegmentBytes;
  if (roomBytes === undefined) return size;
  const share = Math.floor(roomBytes / LIMITS.deltaSegmentCountMin / 4096) * 4096;
  return Math.min(size, Math.max(share, LIMITS.deltaSegmentBytesMin));
}
