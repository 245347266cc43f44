/**
 * Reads one lane of a block set. Opening checks, in this order: the file's length and structure (before LMDB maps
 * it), the format, and all metadata read anew against the digest that the set's seal has of it. After that the
 * metadata can be trusted, and each track is checked against its hash when it is read.
 *
 * The order of tracks and the hashes are read group by group as they are needed, a few groups kept; the sets
 * of tracks, present and zero, are in memory.
 *
 * Buffers handed out are the caller's and are not changed afterwards.
 */

import { assert, CorruptionError, present } from '../base/index.ts';
import {
  digest,
  DIGEST_BYTES,
  type LmdbDatabaseView,
  LmdbError,
  type LmdbFile,
  openLmdb,
} from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { asStoreErrors } from './errors.ts';
import { type PackedFrame, readPacked, unpackFrame } from './frame-codec.ts';
import { fileCipher, type MasterKey } from './master-key.ts';
import { getObject, type StoredObject } from './ordering.ts';
import {
  checkFormat,
  DATABASES,
  decodeCounters,
  decodeHeader,
  decodeLaneRecord,
  decodeRuns,
  digestMetadata,
  GROUP_TRACKS,
  KEY_KEY,
  type LaneRecord,
  ORDER_END,
  orderKey,
  type OrderRun,
  SEAL_KEY,
  type SetCounters,
  type SetHeader,
  trackBytesOf,
  trackCountOf,
  u32Key,
  ZERO_FRAME,
} from './set-format.ts';
import { encryptedFile, type ValueCipher } from './value-cipher.ts';

/** Groups kept by a reader, up to 200 KiB each. */
const GROUPS_MAX = 64;
/** Tracks planned at once: bounds the memory of a plan, and keeps it in storage order for what one session wrote in order. */
const PLAN_TRACKS = 2 ** 20;

/** Where a track's content is: the frame, by the arrival number of its first track, and the place in it. */
export interface TrackPlace {
  readonly frame: number;
  readonly position: number;
}

/** Tracks of one frame of one lane, in the order in which they lie there. */
export interface FramePlan {
  readonly lane: number;
  readonly frame: number;
  readonly tracks: readonly number[];
}

export interface StoredTrack {
  readonly track: number;
  readonly content: Buffer;
}

interface Group {
  readonly runs: readonly OrderRun[];
  /** For each run, the number of stored tracks of the group before it. */
  readonly ranks: readonly number[];
  readonly hashes: Buffer;
}

/** Compares the digest of a lane's metadata with what the seal says; lanes but lane 0 have no seal of their own. */
export type LaneCheck = (digest: Buffer, sealRecord: Buffer | undefined) => void;

/**
 * How a lane is opened whose metadata is damaged: `strict` refuses it, `salvage` goes on with the values that are
 * what was written, each by its own checksum.
 */
export type LaneMode = 'strict' | 'salvage';

export class LaneReader {
  readonly path: string;
  readonly header: SetHeader;
  readonly record: LaneRecord;
  /** The tracks in the lane, those of zeroes included. Not to be changed. */
  readonly present: TrackSet;
  /** The tracks that the lane records as zeroes. Not to be changed. */
  readonly zeroes: TrackSet;
  /** The tracks of the lane whose order or hashes are damaged, as far as it can say; none of them is in `present`. */
  readonly lost: TrackSet;
  /** What a salvage found damaged of the metadata, sentences. */
  readonly findings: readonly string[];
  /** Decrypted on the way where it is encrypted. */
  readonly #file: LmdbFile;
  readonly #cipher: ValueCipher | undefined;
  readonly #trackCount: number;
  readonly #frames: LmdbDatabaseView;
  readonly #order: LmdbDatabaseView;
  readonly #hashes: LmdbDatabaseView;
  readonly #groups = new Map<number, Group>();
  /** Arrival numbers at which frames begin, ascending; made when arrivals are first asked for. */
  #frameStarts: Float64Array | undefined;

  /**
   * Opens a lane's file that is complete.
   *
   * @param check given the digest of the metadata and the seal's record, before any of it is used; throws where
   *   they do not agree.
   * @param master of an encrypted store.
   * @param mode in a salvage `check` is not called where there is no digest or seal record to give.
   * @throws {CorruptionError} where the file or its metadata is damaged; in a salvage where the file cannot be read at
   *   all, or does not say which lane of which set it is.
   * @throws {StoreError} `newer-format`, `key-needed`, or `io` where it cannot be opened.
   */
  static open(path: string, check: LaneCheck, master?: MasterKey, mode: LaneMode = 'strict'): LaneReader {
    const file = asStoreErrors(path, () => openLmdb(path, { readOnly: true, whole: true, ownLock: true }));
    try {
      return asDamage(path, () => new LaneReader(path, { file, check, master, mode }));
    } catch (error) {
      void file.close();
      throw error;
    }
  }

  private constructor(
    path: string,
    parts: {
      readonly file: LmdbFile;
      readonly check: LaneCheck;
      readonly master: MasterKey | undefined;
      readonly mode: LaneMode;
    },
  ) {
    const findings: string[] = [];
    const orNothing = <T>(read: () => T): T | undefined => {
      if (parts.mode === 'strict') return read();
      try {
        return asDamage(path, read);
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
        findings.push(error.message);
        return undefined;
      }
    };
    this.findings = findings;
    this.path = path;
    const stored = parts.file.database(DATABASES.header);
    checkFormat(stored.get('format'), path);
    orNothing(() => parts.check(digestMetadata(parts.file), stored.get(SEAL_KEY)));
    this.#cipher = fileCipher(stored.get(KEY_KEY), parts.master, path);
    const file = encryptedFile(parts.file, this.#cipher);
    this.#file = file;
    const records = file.database(DATABASES.header);
    this.header = decodeHeader(records.get('set'), path);
    this.record = decodeLaneRecord(records.get('lane'), this.header.lanes, path);
    this.#trackCount = trackCountOf(this.header);
    this.#frames = file.database(DATABASES.frames);
    this.#order = file.database(DATABASES.order);
    this.#hashes = file.database(DATABASES.hashes);
    const told = orNothing(() => this.#readPresent());
    if (parts.mode === 'strict') {
      this.present = told ?? TrackSet.empty();
      this.zeroes = this.#readZeroes();
      this.lost = TrackSet.empty();
      return;
    }
    const { ordered, zeroes } = this.#readGroups(orNothing);
    this.present = told === undefined ? ordered : told.intersection(ordered);
    this.zeroes = zeroes.intersection(this.present);
    this.lost = told === undefined ? TrackSet.empty() : told.difference(ordered);
  }

  /** The tracks of the groups whose order and hashes are whole. */
  #readGroups(orNothing: <T>(read: () => T) => T | undefined): { ordered: TrackSet; zeroes: TrackSet } {
    const ordered = TrackSet.empty();
    const zeroes = TrackSet.empty();
    for (const key of orNothing(() => [...this.#order.keys()]) ?? []) {
      if (key.length !== orderKey(0).length || Buffer.compare(key, ORDER_END) >= 0) continue;
      const group = orNothing(() => this.#group(key.readUInt32BE(1) * GROUP_TRACKS));
      for (const run of group?.runs ?? []) {
        ordered.addRun(run);
        if (run.frame === ZERO_FRAME) zeroes.addRun(run);
      }
    }
    return { ordered, zeroes };
  }

  /** The set's counters, which lane 0 has. */
  counters(): SetCounters {
    return decodeCounters(this.#file.database(DATABASES.header).get('counters'), this.path);
  }

  #readPresent(): TrackSet {
    const chunks = [...this.#file.database(DATABASES.present).range()].map((entry) => entry.value);
    return TrackSet.deserialize(Buffer.concat(chunks), this.path, this.#trackCount);
  }

  /** Reads all ordering metadata once, and checks that it speaks of the tracks that are present. */
  #readZeroes(): TrackSet {
    const zeroes = TrackSet.empty();
    const ordered = TrackSet.empty();
    for (const run of this.#allRuns()) {
      ordered.addRun(run);
      if (run.frame === ZERO_FRAME) zeroes.addRun(run);
    }
    if (!ordered.equals(this.present)) {
      const missing = this.present.difference(ordered).toArray();
      throw new CorruptionError(`Block set ${this.path} is damaged: ${missing.length} tracks have no order`, {
        where: this.path,
        tracks: missing,
      });
    }
    return zeroes;
  }

  *#allRuns(): Generator<OrderRun> {
    for (const { key, value } of this.#order.range({ end: ORDER_END })) {
      yield* decodeRuns(value, {
        where: this.path,
        group: key.readUInt32BE(1),
        trackCount: this.#trackCount,
      });
    }
  }

  #group(track: number): Group {
    const number = Math.floor(track / GROUP_TRACKS);
    const known = this.#groups.get(number);
    if (known !== undefined) return known;
    const runs = decodeRuns(this.#order.get(orderKey(number)) ?? Buffer.alloc(0), {
      where: this.path,
      group: number,
      trackCount: this.#trackCount,
    });
    const ranks: number[] = [];
    let rank = 0;
    for (const run of runs) {
      ranks.push(rank);
      if (run.frame !== ZERO_FRAME) rank += run.count;
    }
    const hashes = this.#hashes.get(u32Key(number)) ?? Buffer.alloc(0);
    if (hashes.length !== rank * DIGEST_BYTES) {
      throw new CorruptionError(`Block set ${this.path} is damaged: group ${number} lacks hashes`, {
        where: this.path,
      });
    }
    const group = { runs, ranks, hashes };
    if (this.#groups.size >= GROUPS_MAX) {
      for (const oldest of [...this.#groups.keys()].slice(0, GROUPS_MAX / 2)) this.#groups.delete(oldest);
    }
    this.#groups.set(number, group);
    return group;
  }

  /** The run of a track with content, its place in the group, and the rank of its first hash; undefined for any other track. */
  #locate(track: number): { group: Group; run: OrderRun; rank: number } | undefined {
    const group = this.#group(track);
    let low = 0;
    let high = group.runs.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const run = present(group.runs[middle], 'A run between two');
      if (track < run.first) high = middle - 1;
      else if (track >= run.first + run.count) low = middle + 1;
      else if (run.frame === ZERO_FRAME) return undefined;
      else return { group, run, rank: present(group.ranks[middle], 'Each run has a rank') };
    }
    return undefined;
  }

  /** Where the track's content is; undefined for a track of zeroes and for one that is not in the set. */
  placeOf(track: number): TrackPlace | undefined {
    const found = this.#locate(track);
    if (found === undefined) return undefined;
    return { frame: found.run.frame, position: found.run.position + track - found.run.first };
  }

  /** The BLAKE3 of the track's content; undefined for a track of zeroes and for one that is not in the set. */
  hashOf(track: number): Buffer | undefined {
    const found = this.#locate(track);
    if (found === undefined) return undefined;
    const start = (found.rank + track - found.run.first) * DIGEST_BYTES;
    return found.group.hashes.subarray(start, start + DIGEST_BYTES);
  }

  /**
   * Where the given tracks are stored: each once, frame by frame in the order of arrival. Tracks without
   * content are left out. Volumes beyond 2^20 tracks are planned in windows of that many, each in order.
   */
  *readPlan(tracks: TrackSet): Generator<FramePlan> {
    let window: number[] = [];
    let base = 0;
    for (const track of tracks) {
      if (track >= base + PLAN_TRACKS) {
        yield* this.#planWindow(window);
        window = [];
        base = track - (track % PLAN_TRACKS);
      }
      window.push(track);
    }
    yield* this.#planWindow(window);
  }

  *#planWindow(tracks: readonly number[]): Generator<FramePlan> {
    // One number per track, arrival above the track's place in the window, sorts faster than objects do.
    const keys = new Float64Array(tracks.length);
    let count = 0;
    for (const [index, track] of tracks.entries()) {
      const place = this.placeOf(track);
      if (place === undefined) continue;
      keys[count] = (place.frame + place.position) * PLAN_TRACKS + index;
      count += 1;
    }
    let plan: { lane: number; frame: number; tracks: number[] } | undefined;
    const { lane } = this.record;
    for (const key of keys.subarray(0, count).sort()) {
      const track = present(tracks[key % PLAN_TRACKS], 'A track of the window');
      const { frame } = present(this.placeOf(track), 'It had a place before');
      if (plan?.frame === frame) {
        plan.tracks.push(track);
        continue;
      }
      if (plan !== undefined) yield plan;
      plan = { lane, frame, tracks: [track] };
    }
    if (plan !== undefined) yield plan;
  }

  /**
   * Reads tracks of one frame, each checked against its hash.
   *
   * @throws {CorruptionError} naming the set and, in `place.tracks`, the tracks that are damaged.
   */
  readFrame(plan: FramePlan): StoredTrack[] {
    const raw = this.#unpack(plan.frame, plan.tracks);
    const { trackSizeBytes } = this.header;
    const damaged: number[] = [];
    const read: StoredTrack[] = [];
    for (const track of plan.tracks) {
      const place = this.placeOf(track);
      const hash = this.hashOf(track);
      assert(
        place?.frame === plan.frame && hash !== undefined,
        `Track ${track} is not in frame ${plan.frame}`,
      );
      const start = place.position * trackSizeBytes;
      const content = raw.subarray(start, start + trackBytesOf(this.header, track));
      if (digest(content).equals(hash)) read.push({ track, content });
      else damaged.push(track);
    }
    if (damaged.length > 0) throw this.#damagedTracks(damaged, 'the content does not match its hash');
    return read;
  }

  /** Reads one track, checked; undefined where it is zeroes or not in the set. @throws {CorruptionError} as `readFrame`. */
  readTrack(track: number): Buffer | undefined {
    const place = this.placeOf(track);
    if (place === undefined) return undefined;
    return this.readFrame({ lane: this.record.lane, frame: place.frame, tracks: [track] })[0]?.content;
  }

  /**
   * The frame as it is stored, with the plan's tracks and their hashes. Its content is checked by the frame's
   * checksum only.
   *
   * @throws {CorruptionError} as `readFrame`.
   */
  packedFrame(plan: FramePlan): PackedFrame {
    const value = this.#frameValue(plan.frame, plan.tracks);
    const places = plan.tracks.map((track) => {
      const place = this.placeOf(track);
      const hash = this.hashOf(track);
      assert(
        place?.frame === plan.frame && hash !== undefined,
        `Track ${track} is not in frame ${plan.frame}`,
      );
      return { track, position: place.position, hash };
    });
    return { ...readPacked(value, this.header.trackSizeBytes, `${plan.frame} of ${this.path}`), places };
  }

  #unpack(frame: number, tracks: readonly number[]): Buffer {
    const value = this.#frameValue(frame, tracks);
    try {
      return unpackFrame(value, this.header.trackSizeBytes, `${frame} of ${this.path}`).raw;
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      throw this.#damagedTracks(tracks, error.message, error);
    }
  }

  #frameValue(frame: number, tracks: readonly number[]): Buffer {
    let value: Buffer | undefined;
    try {
      value = asDamage(this.path, () => this.#frames.get(u32Key(frame)));
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      throw this.#damagedTracks(tracks, error.message, error);
    }
    if (value !== undefined) return value;
    throw this.#damagedTracks(tracks, `frame ${frame} is missing`);
  }

  #damagedTracks(tracks: readonly number[], reason: string, cause?: unknown): CorruptionError {
    const shown =
      tracks.length > 8
        ? `${tracks.slice(0, 8).join(', ')} and ${tracks.length - 8} more`
        : tracks.join(', ');
    const message = `Block set ${this.header.id} is damaged in track ${shown}: ${reason}`;
    return new CorruptionError(message, { where: this.path, tracks }, { cause });
  }

  /**
   * The object's ordering metadata, as stored.
   *
   * @throws {CorruptionError} where there is none; nothing is guessed.
   */
  object(name: string): StoredObject {
    const storedName = this.#cipher?.hideName(name) ?? name;
    return asDamage(this.path, () => getObject(this.#order, { name, storedName }, this.path));
  }

  /** Where a track with content stands among the lane's arrivals, and how many tracks follow in step. */
  arrivalOf(track: number): { arrival: number; count: number } | undefined {
    const found = track < this.#trackCount ? this.#locate(track) : undefined;
    if (found === undefined) return undefined;
    const { run } = found;
    const into = track - run.first;
    return { arrival: run.frame + run.position + into, count: run.count - into };
  }

  /**
   * The content of the track that arrived as number `arrival`, at its full track size. Checked by the frame's
   * checksum only: which track it is, and so its hash, is not known here.
   *
   * @throws {CorruptionError} where no track arrived under that number, or its frame is damaged.
   */
  readArrival(arrival: number): Buffer {
    const starts = (this.#frameStarts ??= this.#readFrameStarts());
    let low = 0;
    let high = starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((starts[middle] ?? 0) <= arrival) low = middle + 1;
      else high = middle;
    }
    const frame = starts[low - 1];
    const raw = frame === undefined ? Buffer.alloc(0) : this.#unpack(frame, []);
    const start = (arrival - (frame ?? 0)) * this.header.trackSizeBytes;
    if (start >= raw.length) {
      throw new CorruptionError(
        `Block set ${this.header.id} has no track that arrived as number ${arrival}`,
        {
          where: this.path,
        },
      );
    }
    return raw.subarray(start, start + this.header.trackSizeBytes);
  }

  #readFrameStarts(): Float64Array {
    const starts = new Set<number>();
    for (const run of this.#allRuns()) if (run.frame !== ZERO_FRAME) starts.add(run.frame);
    return Float64Array.from(starts).sort();
  }

  /** Releases the file. */
  async close(): Promise<void> {
    await this.#file.close();
  }
}

/** In a file that is never written, LMDB finding fault with a page is damage and not an operating error. */
function asDamage<T>(path: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (!(error instanceof LmdbError)) throw error;
    const message = `Block set ${path} is damaged: ${error.message}`;
    throw new CorruptionError(message, { where: path }, { cause: error });
  }
}
