/**
 * Writes one block set: tracks in any order, then the metadata that says where each belongs, then the seal.
 *
 * The file is `<id>-0.cbs.partial` until it is sealed. The writer holds an flock on it for as long as it
 * lives, so that opening the store elsewhere neither removes nor finishes what is still being written; the
 * kernel drops the lock with the process.
 *
 * Write order, each step durable before the next (DESIGN section 5):
 *
 *     finish: frames and metadata, fdatasync        sync `set-data`
 *     seal:   seal into the header, fdatasync       sync `set-seal`
 *             rename to `<id>-0.cbs`, fsync         sync `set-directory`
 *             catalog record, fdatasync             sync `catalog`
 *
 * A set that was cut before its seal is removed at the next open of the store; one that was cut after it is
 * finished there. Tracks gather in one frame buffer; each frame is one transaction, so what `flush` has
 * committed is in the file's pages and the caller may forget its own copy, though only `finish` makes it
 * durable.
 *
 * LMDB works synchronously here: writers belong into a child process.
 */

import { closeSync, openSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { assert, LIMITS, syncDirectory, tryLock } from '../base/index.ts';
import { digest, type LmdbDatabaseView, type LmdbFile, openLmdb } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { asStoreErrors, asStoreErrorsLater } from './errors.ts';
import { FrameCompressor } from './frame-codec.ts';
import { putObject, type StoredObject } from './ordering.ts';
import {
  DATABASES,
  digestMetadata,
  decodeSeal,
  encodeFormat,
  encodeFrameHeader,
  encodeJson,
  encodeSeal,
  SEAL_KEY,
  type SessionCounters,
  type SetCounters,
  type SetHeader,
  trackBytesOf,
  trackCountOf,
  u32Key,
  ZERO_FRAME,
} from './set-format.ts';
import { TrackGroups } from './track-groups.ts';

/** Bytes of one record of the bitmap of tracks. */
const PRESENT_CHUNK_BYTES = 1024 * 1024;

export interface SealedSet {
  readonly header: SetHeader;
  readonly counters: SetCounters;
  /** 64 hexadecimal digits. */
  readonly seal: string;
  readonly lengthBytes: number;
}

export interface SetWriterParts {
  readonly header: SetHeader;
  readonly partialPath: string;
  readonly path: string;
  /** Makes the catalog name the set, durably. */
  readonly catalogue: (set: SealedSet) => Promise<void>;
}

type WriterState = 'open' | 'finished' | 'sealed' | 'aborted';

export class SetWriter {
  readonly header: SetHeader;
  readonly #parts: SetWriterParts;
  readonly #file: LmdbFile;
  readonly #lock: number;
  readonly #frames: LmdbDatabaseView;
  readonly #order: LmdbDatabaseView;
  readonly #groups: TrackGroups;
  readonly #compressor: FrameCompressor | undefined;
  readonly #present = TrackSet.empty();
  readonly #frame: Buffer;
  /** Bytes of `#frame` that hold tracks. */
  #filled = 0;
  /** Arrival number of the frame's first track, which names the frame. */
  #frameNumber = 0;
  #counts = { tracks: 0, zeroTracks: 0, frames: 0, bytesStored: 0 };
  #sealRecord: Buffer | undefined;
  #counters: SetCounters | undefined;
  #sealed: SealedSet | undefined;
  #state: WriterState = 'open';

  /**
   * Begins the file and takes its lock. Called under the store's lock.
   *
   * @throws {StoreError} `no-space` or `io`.
   */
  constructor(parts: SetWriterParts) {
    this.header = parts.header;
    this.#parts = parts;
    const { partialPath } = parts;
    assert(
      parts.header.trackSizeBytes <= LIMITS.frameBytesMax,
      `A track of ${parts.header.trackSizeBytes} bytes does not fit a frame`,
    );
    const opened = asStoreErrors(partialPath, () => beginFile(partialPath, parts.header));
    this.#file = opened.file;
    this.#lock = opened.lock;
    this.#frames = this.#file.database(DATABASES.frames);
    this.#order = this.#file.database(DATABASES.order);
    this.#groups = new TrackGroups({
      order: this.#order,
      hashes: this.#file.database(DATABASES.hashes),
      trackCount: trackCountOf(parts.header),
      where: partialPath,
    });
    const { trackSizeBytes } = parts.header;
    this.#frame = Buffer.alloc(LIMITS.frameBytesMax - (LIMITS.frameBytesMax % trackSizeBytes));
    this.#compressor = parts.header.codec === 'zstd' ? new FrameCompressor() : undefined;
  }

  get id(): string {
    return this.header.id;
  }

  /** Bytes of frames stored so far; what `bytesStored` will say. */
  get bytesStored(): number {
    return this.#counts.bytesStored;
  }

  /** The tracks added so far. Not to be changed. */
  get tracks(): TrackSet {
    return this.#present;
  }

  /**
   * Adds a track, each at most once. The content is copied, and the buffer is the caller's again.
   *
   * @param content the whole track; the last track of a volume may be shorter than the others.
   * @param hash the BLAKE3 of the content, where the caller has it already.
   * @throws {StoreError} `no-space` or `io`; the writer can then only be aborted.
   */
  add(track: number, content: Buffer, hash: Buffer = digest(content)): void {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    const wanted = trackBytesOf(this.header, track);
    assert(content.length === wanted, `Track ${track} has ${content.length} bytes, wanted ${wanted}`);
    const { trackSizeBytes } = this.header;
    this.#groups.add(track, {
      frame: this.#frameNumber,
      position: this.#filled / trackSizeBytes,
      hash,
    });
    this.#present.add(track);
    this.#counts.tracks += 1;
    content.copy(this.#frame, this.#filled);
    if (wanted < trackSizeBytes) this.#frame.fill(0, this.#filled + wanted, this.#filled + trackSizeBytes);
    this.#filled += trackSizeBytes;
    if (this.#filled === this.#frame.length) this.flush();
  }

  /** Records that a track is zeroes; it takes no room, and hides what older sets hold for it. */
  addZero(track: number): void {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    this.#groups.addZero(track);
    this.#present.add(track);
    this.#counts.tracks += 1;
    this.#counts.zeroTracks += 1;
    if (this.#groups.isCrowded) this.flush();
  }

  /** Records how an object of the volume is put together from the set's blocks. */
  putObject(object: StoredObject): void {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    this.#commit(() => putObject(this.#order, object));
  }

  /**
   * Commits what was added: afterwards it is in the file, though not yet durable. A frame that is not full is
   * stored as it is.
   *
   * @throws {StoreError} `no-space` or `io`; the writer can then only be aborted.
   */
  flush(): void {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    if (this.#filled === 0 && !this.#groups.isCrowded) return;
    this.#commit(() => {
      if (this.#filled > 0) this.#putFrame(this.#frame.subarray(0, this.#filled));
      if (this.#groups.isCrowded) this.#groups.spill();
    });
    this.#frameNumber += this.#filled / this.header.trackSizeBytes;
    assert(this.#frameNumber < ZERO_FRAME - 1, 'Arrival numbers are used up');
    this.#filled = 0;
  }

  #putFrame(raw: Buffer): void {
    const compressed = this.#compressor?.compress(raw);
    const payload = compressed ?? raw;
    const head = encodeFrameHeader({
      codec: compressed === undefined ? 'none' : 'zstd',
      trackCount: raw.length / this.header.trackSizeBytes,
      rawBytes: raw.length,
    });
    this.#frames.append(u32Key(this.#frameNumber), head, payload);
    this.#counts.frames += 1;
    this.#counts.bytesStored += head.length + payload.length;
  }

  #commit(body: () => void): void {
    asStoreErrors(this.#parts.partialPath, () => this.#file.transaction(body));
  }

  /**
   * Writes the metadata and makes everything durable except the seal.
   *
   * @throws {StoreError} `no-space` or `io`; the writer can then only be aborted.
   */
  async finish(session: SessionCounters): Promise<SetCounters> {
    this.flush();
    this.#state = 'finished';
    const counters: SetCounters = { ...this.#counts, ...session };
    const header = this.#file.database(DATABASES.header);
    const present = this.#file.database(DATABASES.present);
    this.#commit(() => {
      this.#groups.writeAll();
      const bytes = this.#present.serialize();
      for (let start = 0; start < bytes.length; start += PRESENT_CHUNK_BYTES) {
        const chunk = bytes.subarray(start, start + PRESENT_CHUNK_BYTES);
        present.append(u32Key(start / PRESENT_CHUNK_BYTES), chunk);
      }
      header.put('counters', encodeJson(counters));
    });
    const metadata = digestMetadata(this.#file);
    const record = encodeSeal([{ frames: counters.frames, tracks: counters.tracks, metadata }]);
    await asStoreErrorsLater(this.#parts.partialPath, () => this.#file.sync('set-data'));
    this.#sealRecord = record;
    this.#counters = counters;
    return counters;
  }

  /**
   * Seals the set, gives it its name and enters it into the catalog. Afterwards it is complete, visible and
   * never changed. To be called once the set's point is durable in the volume.
   *
   * @throws {StoreError} `no-space` or `io`. Whether the set is complete then shows when the store is opened
   *   again: it is if the seal was durable.
   */
  async seal(): Promise<SealedSet> {
    const record = this.#sealRecord;
    const counters = this.#counters;
    assert(
      this.#state === 'finished' && record !== undefined && counters !== undefined,
      'A set is finished first',
    );
    const { partialPath, path } = this.#parts;
    await asStoreErrorsLater(partialPath, async () => {
      this.#file.transaction(() => this.#file.database(DATABASES.header).put(SEAL_KEY, record));
      await this.#file.sync('set-seal');
      await this.#file.close();
      renameSync(partialPath, path);
      await syncDirectory('set-directory', dirname(path));
    });
    this.#state = 'sealed';
    const { seal } = decodeSeal(record, path);
    const lengthBytes = statSync(path).size;
    this.#sealed = { header: this.header, counters, seal, lengthBytes };
    await this.#parts.catalogue(this.#sealed);
    closeSync(this.#lock);
    return this.#sealed;
  }

  /** Removes what was written, if it was not sealed; afterwards, or after `seal`, a no-op. Never throws for a missing file. */
  async abort(): Promise<void> {
    if (this.#state === 'aborted' || this.#sealed !== undefined) return;
    this.#state = 'aborted';
    await this.#file.close();
    rmSync(this.#parts.partialPath, { force: true });
    closeSync(this.#lock);
  }
}

/** Makes the file, locks it and puts what is known of the set from the start. */
function beginFile(partialPath: string, header: SetHeader): { file: LmdbFile; lock: number } {
  const lock = openSync(partialPath, 'wx', 0o600);
  let file: LmdbFile | undefined;
  try {
    assert(tryLock(lock, 'exclusive'), `The new file ${partialPath} is locked`);
    const opened = openLmdb(partialPath, { create: true, bulk: true, ownLock: true });
    file = opened;
    const records = opened.database(DATABASES.header);
    for (const name of Object.values(DATABASES)) opened.database(name);
    opened.transaction(() => {
      records.put('format', encodeFormat());
      records.put('set', encodeJson(header));
    });
    return { file: opened, lock };
  } catch (error) {
    // The file is of no use and nobody else knows it; LMDB's mapping of it goes with the process at the latest.
    void file?.close();
    rmSync(partialPath, { force: true });
    rmSync(`${partialPath}-lock`, { force: true });
    closeSync(lock);
    throw error;
  }
}
