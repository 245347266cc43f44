/**
 * Writes one lane of a block set: tracks in any order, then the metadata that says where each belongs, then,
 * in lane 0, the seal over all lanes.
 *
 * The file is `<id>-<lane>.cbs.partial` until its set is sealed. The writer holds an flock on it for as long as
 * it lives, so that opening the store elsewhere neither removes nor finishes what is still being written; the
 * kernel drops the lock with the process.
 *
 * Tracks gather in one frame buffer, and a frame is one transaction. What `flush` has committed is in the
 * file's pages and the caller may forget its own copy, though only `settle` makes it durable.
 *
 * LMDB works synchronously here: lanes belong into threads of a child process.
 *
 * Frames may go elsewhere (`takeFrame`), to a sequential medium: then the file holds the metadata only, which is
 * complete only at the end, and is of no further use once `metadata` has been read.
 */

import { closeSync, rmSync } from 'node:fs';
import { assert, LIMITS } from '../base/index.ts';
import { CHECKSUM_BYTES, digest, type LmdbDatabaseView, type LmdbFile } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { asStoreErrors, asStoreErrorsLater } from './errors.ts';
import {
  type Compression,
  FrameCompressor,
  frameContent,
  frameOf,
  frameRoom,
  LEVEL_DEFAULT,
  type PackedFrame,
} from './frame-codec.ts';
import type { SetKey } from './master-key.ts';
import { newLaneFile, type NewLaneFile } from './new-lane-file.ts';
import { putObject, type StoredObject } from './ordering.ts';
import {
  DATABASES,
  digestMetadata,
  encodeFormat,
  encodeFrameHeader,
  encodeJson,
  FRAME_HEADER_BYTES,
  KEY_KEY,
  SEAL_KEY,
  SEALED_DATABASES,
  type SetCodec,
  type SetCounters,
  type SetHeader,
  trackBytesOf,
  trackCountOf,
  u32Key,
  ZERO_FRAME,
} from './set-format.ts';
import { TrackGroups } from './track-groups.ts';
import { encryptedFile, ValueCipher } from './value-cipher.ts';

/** Bytes of one record of the bitmap of tracks. */
const PRESENT_CHUNK_BYTES = 1024 * 1024;

/** What a lane is made from; plain data, so that it can travel to a thread. */
export interface LaneParts {
  readonly header: SetHeader;
  readonly lane: number;
  /** For each lane the directory of its file; empty where it lies beside lane 0. */
  readonly directories: readonly string[];
  readonly partialPath: string;
  readonly compression: Compression;
  /** The file's own, where the store is encrypted. */
  readonly key?: SetKey | undefined;
}

export interface LaneCounts {
  readonly tracks: number;
  readonly zeroTracks: number;
  readonly aliases: number;
  readonly frames: number;
  readonly bytesStored: number;
}

/** A frame on its way elsewhere than to the lane's file. */
export interface LaneFrame {
  readonly key: Buffer;
  /** As it would be stored; the receiver's. */
  readonly value: Buffer;
  readonly places: readonly { readonly track: number; readonly position: number; readonly hash: Buffer }[];
}

/** A record of a lane that is no frame. */
export interface LaneMetadata {
  readonly database: (typeof SEALED_DATABASES)[number];
  readonly key: Buffer;
  readonly value: Buffer;
}

/** The end of a lane, wherever it is written: here, or in a thread. Called in this order. */
export interface LaneEnd {
  /** No track comes any more: writes the metadata. @throws {StoreError} */
  finish(): Promise<LaneCounts>;
  /**
   * Makes everything durable but the seal.
   *
   * @param counters the set's, for lane 0.
   * @returns the digest of the lane's metadata.
   */
  settle(counters: SetCounters | undefined): Promise<Buffer>;
  /** Lane 0 only: puts the seal, durable when it resolves. */
  seal(record: Buffer): Promise<void>;
  /** Lets go of the file; it stays. */
  release(): Promise<void>;
  /** Removes what was written. */
  abort(): Promise<void>;
}

export class LaneWriter implements LaneEnd {
  readonly header: SetHeader;
  readonly #path: string;
  /** As it is stored. */
  readonly #stored: LmdbFile;
  /** The same, encrypted on the way where it is to be. */
  readonly #file: LmdbFile;
  readonly #cipher: ValueCipher | undefined;
  readonly #lock: number;
  readonly #frames: LmdbDatabaseView;
  readonly #order: LmdbDatabaseView;
  readonly #groups: TrackGroups;
  readonly #compressor: FrameCompressor | undefined;
  readonly #present = TrackSet.empty();
  /** Where tracks gather, with a frame's room around them. */
  readonly #room: Buffer;
  /** The tracks' part of it. */
  readonly #frame: Buffer;
  readonly #takeFrame: ((frame: LaneFrame) => void) | undefined;
  /** The tracks in `#frame`, where the frame goes elsewhere. */
  #places: LaneFrame['places'][number][] = [];
  /** Bytes of `#frame` that hold tracks. */
  #filled = 0;
  /** Arrival number of the frame's first track, which names the frame. */
  #frameNumber = 0;
  #counts = { tracks: 0, zeroTracks: 0, aliases: 0, frames: 0, bytesStored: 0 };
  #state: 'open' | 'finished' | 'settled' | 'closed' = 'open';

  /**
   * Begins the file and takes its lock. Called under the store's lock.
   *
   * @param takeFrame takes each frame in the place of the file; tracks cannot be aliases then, nor come packed.
   * @throws {StoreError} `no-space` or `io`.
   */
  constructor(parts: LaneParts, takeFrame?: (frame: LaneFrame) => void) {
    const { header, partialPath, compression } = parts;
    this.header = header;
    this.#path = partialPath;
    this.#takeFrame = takeFrame;
    const { trackSizeBytes } = header;
    assert(trackSizeBytes <= LIMITS.frameBytesMax, `A track of ${trackSizeBytes} bytes does not fit a frame`);
    const opened = asStoreErrors(partialPath, () => beginFile(parts));
    this.#stored = opened.file;
    this.#cipher = parts.key === undefined ? undefined : new ValueCipher(parts.key.secret);
    this.#file = encryptedFile(opened.file, this.#cipher);
    this.#lock = opened.lock;
    this.#frames = this.#file.database(DATABASES.frames);
    this.#order = this.#file.database(DATABASES.order);
    this.#groups = new TrackGroups({
      order: this.#order,
      hashes: this.#file.database(DATABASES.hashes),
      trackCount: trackCountOf(header),
      where: partialPath,
    });
    this.#room = frameRoom(LIMITS.frameBytesMax - (LIMITS.frameBytesMax % trackSizeBytes));
    this.#frame = frameContent(this.#room);
    this.#compressor =
      compression.codec === 'zstd' ? new FrameCompressor(compression.level ?? LEVEL_DEFAULT) : undefined;
  }

  /** Bytes of frames stored so far. */
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
    this.#assertOpen();
    const wanted = trackBytesOf(this.header, track);
    assert(content.length === wanted, `Track ${track} has ${content.length} bytes, wanted ${wanted}`);
    const { trackSizeBytes } = this.header;
    const position = this.#filled / trackSizeBytes;
    this.#groups.add(track, { frame: this.#frameNumber, position, hash });
    // The caller's hash may be part of a buffer that is used again.
    if (this.#takeFrame !== undefined) this.#places.push({ track, position, hash: Buffer.from(hash) });
    this.#count(track);
    content.copy(this.#frame, this.#filled);
    if (wanted < trackSizeBytes) this.#frame.fill(0, this.#filled + wanted, this.#filled + trackSizeBytes);
    this.#filled += trackSizeBytes;
    if (this.#filled === this.#frame.length) this.flush();
  }

  /** Records that a track is zeroes; it takes no room, and hides what older sets hold for it. */
  addZero(track: number): void {
    this.#assertOpen();
    this.#groups.addZero(track);
    this.#count(track);
    this.#counts.zeroTracks += 1;
    if (this.#groups.isCrowded) this.flush();
  }

  /** Records that a track has the content of another of this lane, added before and of the same length. */
  addAlias(track: number, of: number): void {
    this.#assertOpen();
    assert(this.#takeFrame === undefined, 'A frame that went elsewhere gets no further tracks');
    this.#groups.add(track, this.#groups.placeOf(of));
    this.#count(track);
    this.#counts.aliases += 1;
    if (this.#groups.isCrowded) this.flush();
  }

  /** Adds tracks as a frame of their own that is packed already, and stays as it is. */
  addPacked(frame: PackedFrame): void {
    this.#assertOpen();
    assert(this.#takeFrame === undefined, 'A packed frame goes to the file');
    this.flush();
    const first = this.#frameNumber;
    this.#commit(() => this.#frames.append(u32Key(first), encodeFrameHeader(frame), frame.payload));
    this.#countFrame(frame.trackCount, FRAME_HEADER_BYTES + frame.payload.length);
    const seen = new Set<number>();
    for (const { track, position, hash } of frame.places) {
      this.#groups.add(track, { frame: first, position, hash });
      this.#count(track);
      if (seen.has(position)) this.#counts.aliases += 1;
      seen.add(position);
    }
  }

  /** Records how an object of the volume is put together from the set's blocks. */
  putObject(object: StoredObject): void {
    this.#assertOpen();
    // A name stands in the records' keys, which are not encrypted.
    const name = this.#cipher?.hideName(object.name) ?? object.name;
    this.#commit(() => putObject(this.#order, { ...object, name }));
  }

  /**
   * Commits what was added: afterwards it is in the file, though not yet durable. A frame that is not full is
   * stored as it is.
   *
   * @throws {StoreError} `no-space` or `io`; the writer can then only be aborted.
   */
  flush(): void {
    this.#assertOpen();
    if (this.#filled > 0) this.#putFrame();
    if (this.#groups.isCrowded) this.#commit(() => this.#groups.spill());
  }

  async finish(): Promise<LaneCounts> {
    this.flush();
    this.#state = 'finished';
    const present = this.#file.database(DATABASES.present);
    this.#commit(() => {
      this.#groups.writeAll();
      const bytes = this.#present.serialize();
      for (let start = 0; start < bytes.length; start += PRESENT_CHUNK_BYTES) {
        const chunk = bytes.subarray(start, start + PRESENT_CHUNK_BYTES);
        present.append(u32Key(start / PRESENT_CHUNK_BYTES), chunk);
      }
    });
    return { ...this.#counts };
  }

  async settle(counters: SetCounters | undefined): Promise<Buffer> {
    assert(this.#state === 'finished', `Lane ${this.#path} is ${this.#state}, wanted finished`);
    if (counters !== undefined) {
      this.#commit(() => this.#file.database(DATABASES.header).put('counters', encodeJson(counters)));
    }
    const metadata = digestMetadata(this.#stored);
    await asStoreErrorsLater(this.#path, () => this.#file.sync('set-data'));
    this.#state = 'settled';
    return metadata;
  }

  /** All records but frames and the seal, as stored; once the lane has settled. */
  *metadata(): Generator<LaneMetadata> {
    assert(this.#state === 'settled', `Lane ${this.#path} is ${this.#state}, wanted settled`);
    for (const database of SEALED_DATABASES) {
      for (const { key, value } of this.#stored.database(database).range()) yield { database, key, value };
    }
  }

  async seal(record: Buffer): Promise<void> {
    assert(this.#state === 'settled', `Lane ${this.#path} is ${this.#state}, wanted settled`);
    this.#commit(() => this.#file.database(DATABASES.header).put(SEAL_KEY, record));
    await asStoreErrorsLater(this.#path, () => this.#file.sync('set-seal'));
  }

  async release(): Promise<void> {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    await this.#file.close();
    closeSync(this.#lock);
  }

  async abort(): Promise<void> {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    await this.#file.close();
    rmSync(this.#path, { force: true });
    closeSync(this.#lock);
  }

  #assertOpen(): void {
    assert(this.#state === 'open', `Lane ${this.#path} is ${this.#state}, wanted open`);
  }

  #count(track: number): void {
    this.#present.add(track);
    this.#counts.tracks += 1;
  }

  /** Packs what has gathered, with a frame's room around it: valid until the next track is added. */
  #packFrame(): Buffer {
    const trackCount = this.#filled / this.header.trackSizeBytes;
    const compressed = this.#compressor?.compress(this.#frame.subarray(0, this.#filled));
    const frame = compressed ?? frameOf(this.#room, this.#filled);
    this.#filled = 0;
    const codec: SetCodec = compressed === undefined ? 'none' : 'zstd';
    encodeFrameHeader({ codec, trackCount, rawBytes: trackCount * this.header.trackSizeBytes }, frame);
    return frame;
  }

  /** To the file, together with groups that wait, or to whoever takes frames. */
  #putFrame(): void {
    const key = u32Key(this.#frameNumber);
    const trackCount = this.#filled / this.header.trackSizeBytes;
    const frame = this.#packFrame();
    const bytes = frame.length - CHECKSUM_BYTES;
    if (this.#takeFrame === undefined) {
      this.#commit(() => {
        this.#frames.appendInPlace(key, frame);
        if (this.#groups.isCrowded) this.#groups.spill();
      });
    } else {
      this.#takeFrame({ key, value: Buffer.from(frame.subarray(0, bytes)), places: this.#places });
      this.#places = [];
    }
    this.#countFrame(trackCount, bytes);
  }

  /** Numbers the tracks that come after a frame. */
  #countFrame(trackCount: number, bytes: number): void {
    this.#counts.frames += 1;
    this.#counts.bytesStored += bytes;
    this.#frameNumber += trackCount;
    assert(this.#frameNumber < ZERO_FRAME - 1, 'Arrival numbers are used up');
  }

  #commit(body: () => void): void {
    asStoreErrors(this.#path, () => this.#file.transaction(body));
  }
}

/** Makes the file with what is known of the set from the start. */
function beginFile({ partialPath, header, lane, directories, key }: LaneParts): NewLaneFile {
  return newLaneFile(partialPath, (file) => {
    const cipher = key === undefined ? undefined : new ValueCipher(key.secret);
    const records = encryptedFile(file, cipher).database(DATABASES.header);
    file.transaction(() => {
      records.put('format', encodeFormat());
      if (key !== undefined) records.put(KEY_KEY, Buffer.from(key.record));
      records.put('set', encodeJson(header));
      records.put('lane', encodeJson({ lane, directories }));
    });
  });
}
