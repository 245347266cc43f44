/**
 * A directory as a member: a file for each segment, `<volume id>/<log number>-<segment number>.delta`, made with all
 * of its space, so that what is appended later finds room.
 *
 * The directory itself must be there: where a disk is not mounted, an empty one in its place is found out by what the
 * other members have.
 */

import { type FileHandle, mkdir, open, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { allFinished, LIMITS, syncDirectory, systemCode } from '../base/index.ts';
import { createSparseFile, openFileDevice } from '../device/index.ts';
import { DeltaError } from './errors.ts';
import { decodeSegmentHeader, SEGMENT_HEADER_BYTES } from './format.ts';
import { type Area, type FoundSegment, type Member, type MemberOptions, segmentBytesFor } from './member.ts';

const VOLUME_ID = /^[0-9a-f]{32}$/;
const SEGMENT_NAME = /^\d{10,}-\d+\.delta$/;
const LOG_DIGITS = 10;
/** There while the member is made anew. */
const INCOMPLETE = 'incomplete';

export class DirectoryMember implements Member {
  readonly place: string;
  readonly alignBytes = LIMITS.blockSizeBytesMin;
  readonly segmentBytes: number;
  readonly bytesMax: number | undefined;
  readonly volumeIds: readonly string[];
  readonly #directory: string;
  /** Bytes of each file, by its name. */
  readonly #sizes: Map<string, number>;

  private constructor(
    options: MemberOptions,
    directory: string,
    volumeIds: readonly string[],
    sizes: Map<string, number>,
  ) {
    this.place = options.place;
    this.bytesMax = options.bytesMax;
    this.segmentBytes = segmentBytesFor(options.segmentBytes, options.bytesMax);
    this.volumeIds = volumeIds;
    this.#directory = directory;
    this.#sizes = sizes;
  }

  /** See `openMember`. */
  static async open(options: MemberOptions, place: string): Promise<DirectoryMember> {
    const volumeIds = (await readdir(place)).filter((name) => VOLUME_ID.test(name)).toSorted();
    const volumeId = options.volumeId ?? volumeIds[0];
    if (volumeId === undefined)
      throw new DeltaError('wrong-volume', `Delta place ${place} has no logs, wanted those of a volume`, {
        place,
        volumeIds,
      });
    if (options.volumeId === undefined && volumeIds.length > 1) {
      const message = `Delta place ${place} has logs of ${volumeIds.length} volumes, wanted one named: ${volumeIds.join(', ')}`;
      throw new DeltaError('wrong-volume', message, { place, volumeIds });
    }
    const directory = join(place, volumeId);
    if (!options.readOnly) {
      await mkdir(directory, { recursive: true, mode: 0o700 });
      await syncDirectory('delta-directory', place);
    }
    return new DirectoryMember(options, directory, volumeIds, await sizesIn(directory));
  }

  get usedBytes(): number {
    return [...this.#sizes.values()].reduce((sum, bytes) => sum + bytes, 0);
  }

  async isComplete(): Promise<boolean> {
    return !(await namesIn(this.#directory)).includes(INCOMPLETE);
  }

  async setComplete(isComplete: boolean): Promise<void> {
    const path = join(this.#directory, INCOMPLETE);
    if (isComplete) await rm(path, { force: true });
    else await writeFile(path, '', { mode: 0o600 });
    await syncDirectory('delta-directory', this.#directory);
  }

  async find(): Promise<readonly FoundSegment[]> {
    const found: FoundSegment[] = [];
    for (const key of await namesIn(this.#directory)) {
      if (!SEGMENT_NAME.test(key)) continue;
      const header = await readHeader(join(this.#directory, key));
      if (header !== undefined) found.push({ key, header });
    }
    return found;
  }

  async removeBlank(): Promise<void> {
    const found = new Set((await this.find()).map(({ key }) => key));
    await this.remove([...this.#sizes.keys()].filter((key) => !found.has(key)));
  }

  async has(key: string | undefined): Promise<boolean> {
    try {
      await stat(join(this.#directory, key ?? ''));
      return true;
    } catch (error) {
      const code = systemCode(error);
      return code !== 'ENOENT' && code !== 'ENOTDIR';
    }
  }

  async open(key: string): Promise<Area> {
    const path = join(this.#directory, key);
    const device = await openFileDevice({ path, readOnly: true, syncName: 'delta' });
    return { key, device, baseBytes: 0, sizeBytes: device.sizeBytes, close: () => device.close() };
  }

  hasRoom(spare: number): boolean {
    if (this.bytesMax === undefined) return true;
    return this.usedBytes + (1 + spare) * this.segmentBytes <= this.bytesMax;
  }

  async create(name: { readonly logNumber: number; readonly segmentNumber: number }): Promise<Area> {
    const key = `${String(name.logNumber).padStart(LOG_DIGITS, '0')}-${name.segmentNumber}.delta`;
    const path = join(this.#directory, key);
    await createSparseFile(path, this.segmentBytes, 'delta-create');
    this.#sizes.set(key, this.segmentBytes);
    const device = await openFileDevice({ path, readOnly: false, syncName: 'delta' });
    try {
      await device.writeZeroes(0, this.segmentBytes, { mayTrim: false });
      await syncDirectory('delta-directory', this.#directory);
    } catch (error) {
      await device.close();
      await this.remove([key]);
      throw error;
    }
    return { key, device, baseBytes: 0, sizeBytes: this.segmentBytes, close: () => device.close() };
  }

  async remove(keys: readonly string[]): Promise<void> {
    const [first, ...others] = keys;
    if (first === undefined) return;
    for (const some of [[first], others]) {
      if (some.length === 0) continue;
      for (const key of some) {
        await rm(join(this.#directory, key), { force: true });
        this.#sizes.delete(key);
      }
      await syncDirectory('delta-directory', this.#directory);
    }
  }

  async sync(areas: Iterable<Area>): Promise<void> {
    await allFinished([...areas].map((area) => area.device.flush()));
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory)).toSorted();
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return [];
    throw error;
  }
}

async function sizesIn(directory: string): Promise<Map<string, number>> {
  const sizes = new Map<string, number>();
  for (const name of await namesIn(directory)) {
    if (!SEGMENT_NAME.test(name)) continue;
    const file = await openIfThere(join(directory, name));
    if (file === undefined) continue;
    sizes.set(name, (await file.stat()).size);
    await file.close();
  }
  return sizes;
}

/** The header of a file; undefined where it has none, or is gone meanwhile. */
async function readHeader(path: string): Promise<ReturnType<typeof decodeSegmentHeader>> {
  const file = await openIfThere(path);
  if (file === undefined) return undefined;
  try {
    const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES);
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0);
    return decodeSegmentHeader(bytes.subarray(0, bytesRead));
  } finally {
    await file.close();
  }
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, 'r');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
