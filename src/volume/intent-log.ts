/**
 * Which regions of a volume were written in one epoch, known after any crash (DESIGN section 4, "Changed tracks
 * that survive a crash").
 *
 *     a write -> covers its tracks? -> yes: goes on
 *                                   -> no:  region appended, fdatasync shared by all that wait, goes on
 *
 * A region is 128 tracks (`intentRegionTracks`). Its number is in the log, durably, before the first write of the epoch into it. After an
 * unclean stop the tracks of all regions in the log count as changed: more than were, never fewer.
 *
 * A segment is one file for one epoch, `intent-<epoch>.log`, a row of batches (FORMAT.md). A batch begins on a
 * sector and is never touched again, so that a torn write harms only the batch that was being written, and of that
 * one nobody has been told. The next batch is begun when the sync of the last one has finished; so a bad batch in
 * front of a good one is damage and not a crash, and the reader says so. So is a last batch of which every sector is
 * there, since a crash leaves sectors out and never changes one; and a segment in use without its first batch.
 *
 * It keeps no set of tracks; that is `epoch-history.ts`. It does not know when an epoch ends.
 */

import { type FileHandle, open, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  assert,
  type Deferred,
  deferred,
  LIMITS,
  syncDirectory,
  syncFile,
  systemCode,
} from '../base/index.ts';
import { checksum, CHECKSUM_BYTES } from '../records/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';

const SECTOR_BYTES = 512;
const MAGIC = Buffer.from('CBINTENT');
/** Magic, epoch, tracks of a region, number of regions. */
const FIXED_BYTES = MAGIC.length + 12;
const HEADER_BYTES = FIXED_BYTES + CHECKSUM_BYTES;
const NAME = /^intent-(\d{10})\.log$/;
const NUMBER_DIGITS = 10;

/** Whose log it is: a segment that was copied from elsewhere is not taken for this volume's. */
export interface IntentPlace {
  readonly directory: string;
  readonly volumeId: string;
  /** Of the volume as it is: may become more. */
  readonly trackCount: number;
  /** Tracks of one region. */
  readonly regionTracks: number;
}

/** What a segment on disk says. */
export interface FoundSegment {
  readonly epoch: number;
  /** The tracks that may have been written, in whole regions; all where the segment is damaged. */
  readonly tracks: TrackSet;
  /** `torn` at its end, as a crash leaves it; `damaged` as none does. */
  readonly condition: 'whole' | 'torn' | 'damaged';
  /** Its first batch is there: without it nobody has written by this segment, or it is damaged. */
  readonly isBegun: boolean;
}

export class IntentLog {
  readonly epoch: number;
  readonly #place: IntentPlace;
  readonly #path: string;
  readonly #file: FileHandle;
  /** Regions whose number is durable. */
  readonly #logged: TrackBits;
  #lengthBytes = 0;
  /** Regions for the next batch, and who waits for it. */
  #next = new Set<number>();
  #nextDurable: Deferred = deferred();
  /** The regions of the batch being written. */
  #current: ReadonlySet<number> = new Set();
  #currentDurable: Promise<void> = Promise.resolve();
  #writing: Promise<void> | undefined;
  /** A batch could not be made durable: what the disk has of it is not known, nor would another sync tell. */
  #failure: { readonly error: unknown } | undefined;

  private constructor(place: IntentPlace, epoch: number, path: string, file: FileHandle) {
    this.#place = place;
    this.epoch = epoch;
    this.#path = path;
    this.#file = file;
    this.#logged = new TrackBits(regionCountOf(place));
  }

  /**
   * Begins an epoch's segment, durable and with `regions` in it when the promise resolves. What an older segment of
   * that epoch says is given up.
   */
  static async create(place: IntentPlace, epoch: number, regions: Iterable<number>): Promise<IntentLog> {
    const path = join(place.directory, segmentName(epoch));
    const file = await open(path, 'w', 0o600);
    try {
      const log = new IntentLog(place, epoch, path, file);
      await log.#append(new Set(regions), 'first');
      await syncDirectory('volume-directory', place.directory);
      return log;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Whether all tracks of the run may be written: a write asks this each time. */
  covers(run: TrackRun): boolean {
    const { regionTracks } = this.#place;
    const first = regionOf(run.first, regionTracks);
    const last = regionOf(run.first + run.count - 1, regionTracks);
    for (let region = first; region <= last; region += 1) if (!this.#logged.has(region)) return false;
    return true;
  }

  /**
   * Makes it durable that the tracks of the run may have been written. Callers share batches: one that comes while a
   * batch is being written is in the next one.
   *
   * @throws where the segment could not be written or synced. After a failed sync no other region is taken any more.
   */
  async cover(run: TrackRun): Promise<void> {
    const waits: Promise<void>[] = [];
    const { regionTracks } = this.#place;
    const last = regionOf(run.first + run.count - 1, regionTracks);
    for (let region = regionOf(run.first, regionTracks); region <= last; region += 1) {
      if (this.#logged.has(region)) continue;
      if (this.#current.has(region)) {
        waits.push(this.#currentDurable);
        continue;
      }
      this.#next.add(region);
      this.#addAhead(region);
      waits.push(this.#nextDurable.promise);
    }
    if (this.#next.size > 0) this.#writing ??= this.#write();
    await Promise.all(waits);
  }

  /** The place has more tracks now. A region that reached beyond the old end has its new tracks too. */
  grow(): void {
    this.#logged.grow(regionCountOf(this.#place));
  }

  /** Waits for what is being written. Nobody may cover anything any more. */
  async close(): Promise<void> {
    await this.#writing;
    await this.#file.close();
  }

  /** A stream that reached a region will reach the next ones. */
  #addAhead(region: number): void {
    if (region === 0 || !this.#logged.has(region - 1)) return;
    const end = Math.min(region + LIMITS.intentAheadRegions, this.#logged.trackCount);
    for (let ahead = region + 1; ahead < end; ahead += 1) {
      if (!this.#logged.has(ahead) && !this.#current.has(ahead)) this.#next.add(ahead);
    }
  }

  /** Batch after batch while there is something to write. */
  async #write(): Promise<void> {
    while (this.#next.size > 0) {
      const durable = this.#nextDurable;
      this.#current = this.#next;
      this.#currentDurable = durable.promise;
      this.#next = new Set();
      this.#nextDurable = deferred();
      // Somebody waits for each batch, but nobody has to.
      durable.promise.catch(() => undefined);
      try {
        await this.#append(this.#current);
        durable.resolve();
      } catch (error) {
        durable.reject(error);
      }
      this.#current = new Set();
    }
    this.#writing = undefined;
  }

  async #append(regions: ReadonlySet<number>, place: 'first' | 'later' = 'later'): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.error;
    // The first one is there in any case, so that a segment that lost it is told from a new one.
    if (regions.size > 0 || place === 'first') {
      const batch = encodeBatch(this.#place, this.epoch, this.#lengthBytes, regions);
      await writeWhole(this.#file, batch, this.#lengthBytes);
      this.#lengthBytes += batch.length;
    }
    try {
      await syncFile(place === 'first' ? 'intent-log-create' : 'intent-log', this.#file.fd, this.#path);
    } catch (error) {
      this.#failure = { error };
      throw error;
    }
    for (const region of regions) this.#logged.add(region);
  }
}

/** The region of a track. */
export function regionOf(track: number, regionTracks: number): number {
  return Math.floor(track / regionTracks);
}

function regionCountOf(place: IntentPlace): number {
  return regionOf(place.trackCount - 1, place.regionTracks) + 1;
}

/** The tracks of a region, as far as they lie in the volume. */
export function tracksOfRegion(region: number, { trackCount, regionTracks }: IntentPlace): TrackRun {
  const first = region * regionTracks;
  return { first, count: Math.min(regionTracks, trackCount - first) };
}

/** The segments that the last owner left, oldest first. */
export async function findSegments(place: IntentPlace): Promise<FoundSegment[]> {
  const epochs = await epochsIn(place.directory);
  return await Promise.all(
    epochs.map(async (epoch) => ({
      epoch,
      ...readBatches(await readFile(join(place.directory, segmentName(epoch))), place, epoch),
    })),
  );
}

/**
 * Removes the segments of which `isDone` says that the epochs' tracks are kept elsewhere, durably. One that cannot be
 * removed does no harm: its epoch is recorded.
 */
export async function removeSegments(directory: string, isDone: (epoch: number) => boolean): Promise<void> {
  try {
    for (const epoch of await epochsIn(directory)) {
      if (isDone(epoch)) await rm(join(directory, segmentName(epoch)), { force: true });
    }
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  }
}

async function epochsIn(directory: string): Promise<number[]> {
  const names = await readdir(directory);
  return names
    .map((name) => NAME.exec(name)?.[1])
    .filter((digits) => digits !== undefined)
    .map(Number)
    .toSorted((a, b) => a - b);
}

/** The file of an epoch's segment. */
export function segmentName(epoch: number): string {
  return `intent-${String(epoch).padStart(NUMBER_DIGITS, '0')}.log`;
}

function encodeBatch(
  place: IntentPlace,
  epoch: number,
  atBytes: number,
  unordered: ReadonlySet<number>,
): Buffer {
  // Ascending, so that no sector but the first can be all zeroes: `isTorn` tells by that which were written.
  const regions = [...unordered].toSorted((a, b) => a - b);
  const usedBytes = HEADER_BYTES + regions.length * 4;
  const batch = Buffer.alloc(Math.ceil(usedBytes / SECTOR_BYTES) * SECTOR_BYTES);
  MAGIC.copy(batch);
  batch.writeUInt32BE(epoch, MAGIC.length);
  batch.writeUInt32BE(place.regionTracks, MAGIC.length + 4);
  batch.writeUInt32BE(regions.length, MAGIC.length + 8);
  for (const [index, region] of regions.entries()) batch.writeUInt32BE(region, HEADER_BYTES + index * 4);
  checksumOf(batch, place.volumeId, atBytes, usedBytes).copy(batch, FIXED_BYTES);
  return batch;
}

/** Over the volume, the place in the file, and everything of the batch but the checksum itself. */
function checksumOf(batch: Buffer, volumeId: string, atBytes: number, usedBytes: number): Buffer {
  const place = Buffer.alloc(6);
  place.writeUIntBE(atBytes, 0, 6);
  return checksum(
    Buffer.from(volumeId),
    place,
    batch.subarray(0, FIXED_BYTES),
    batch.subarray(HEADER_BYTES, usedBytes),
  );
}

/** The tracks of all whole batches; all tracks where one is damaged. */
function readBatches(bytes: Buffer, place: IntentPlace, epoch: number): Omit<FoundSegment, 'epoch'> {
  const tracks = TrackSet.empty();
  let hasTornBatch = false;
  let isBegun = false;
  const damaged = (): Omit<FoundSegment, 'epoch'> => ({
    tracks: TrackSet.all(place.trackCount),
    condition: 'damaged',
    isBegun,
  });
  for (let at = 0; at + SECTOR_BYTES <= bytes.length;) {
    const batch = decodeBatch(bytes, at, place.volumeId, epoch);
    if (batch === undefined) {
      if (!hasTornBatch && !isTorn(bytes, at, epoch)) return damaged();
      hasTornBatch = true;
      at += SECTOR_BYTES;
      continue;
    }
    if (hasTornBatch) return damaged();
    isBegun = true;
    const batchPlace = { ...place, regionTracks: batch.regionTracks };
    for (const region of batch.regions) tracks.addRun(tracksOfRegion(region, batchPlace));
    at += batch.lengthBytes;
  }
  const isCut = bytes.length % SECTOR_BYTES !== 0;
  return { tracks, condition: hasTornBatch || isCut ? 'torn' : 'whole', isBegun };
}

/** Whether a crash can have left a bad batch like this: some of its sectors are as they were written, others not there. */
function isTorn(bytes: Buffer, at: number, epoch: number): boolean {
  const first = bytes.subarray(at, at + SECTOR_BYTES);
  if (isBlank(first)) return true;
  if (!isHeader(first, epoch)) return false;
  const usedBytes = HEADER_BYTES + first.readUInt32BE(MAGIC.length + 8) * 4;
  for (let last = -1, place = HEADER_BYTES; place + 4 <= Math.min(usedBytes, SECTOR_BYTES); place += 4) {
    const region = first.readUInt32BE(place);
    if (region <= last) return false;
    last = region;
  }
  if (at + usedBytes > bytes.length) return true;
  for (let sector = SECTOR_BYTES; sector < usedBytes; sector += SECTOR_BYTES)
    if (isBlank(bytes.subarray(at + sector, at + sector + SECTOR_BYTES))) return true;
  return false;
}

function isBlank(sector: Buffer): boolean {
  return sector.every((byte) => byte === 0);
}

function isHeader(header: Buffer, epoch: number): boolean {
  return header.subarray(0, MAGIC.length).equals(MAGIC) && header.readUInt32BE(MAGIC.length) === epoch;
}

interface Batch {
  readonly regionTracks: number;
  readonly regions: readonly number[];
  readonly lengthBytes: number;
}

function decodeBatch(bytes: Buffer, at: number, volumeId: string, epoch: number): Batch | undefined {
  const header = bytes.subarray(at, at + HEADER_BYTES);
  if (!isHeader(header, epoch)) return undefined;
  const count = header.readUInt32BE(MAGIC.length + 8);
  const usedBytes = HEADER_BYTES + count * 4;
  if (at + usedBytes > bytes.length) return undefined;
  const batch = bytes.subarray(at, at + usedBytes);
  const expected = checksumOf(batch, volumeId, at, usedBytes);
  if (!expected.equals(batch.subarray(FIXED_BYTES, HEADER_BYTES))) return undefined;
  return {
    regionTracks: header.readUInt32BE(MAGIC.length + 4),
    regions: Array.from({ length: count }, (_, index) => batch.readUInt32BE(HEADER_BYTES + index * 4)),
    lengthBytes: Math.ceil(usedBytes / SECTOR_BYTES) * SECTOR_BYTES,
  };
}

async function writeWhole(file: FileHandle, bytes: Buffer, atBytes: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, atBytes + done);
    assert(bytesWritten > 0, 'Nothing was written of a batch of the intent log');
    done += bytesWritten;
  }
}
