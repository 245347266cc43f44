/**
 * The bytes of a block set: what the records of its LMDB file look like. FORMAT.md is the contract.
 *
 * Everything here is pure: records in, bytes out, and back with every field checked. All numbers are
 * big-endian, so that keys sort as numbers do.
 */

import { assert, CorruptionError } from '../base/index.ts';
import { DIGEST_BYTES, digestOf, type LmdbFile } from '../records/index.ts';
import { StoreError } from './errors.ts';

export const FORMAT_VERSION = 1;

/** Tracks of one record of ordering metadata, and of one of hashes: 128 KiB of hashes. */
export const GROUP_TRACKS = 4096;
/** Marks, where a frame number stands, a track of zeroes: it has no content and no hash. */
export const ZERO_FRAME = 0xffff_ffff;

export type SetLevel = 'full' | 'differential' | 'incremental';
export type SetCodec = 'none' | 'zstd';

/** What a set is, fixed when it is begun. */
export interface SetHeader {
  readonly id: string;
  readonly volumeId: string;
  readonly volumeName: string;
  readonly level: SetLevel;
  /** The point that the set's tracks are to be laid over; null for a full set. */
  readonly base: string | null;
  /** The set's own point. */
  readonly point: string;
  /** The own point of the set that was latest for the volume when the session began; null for the first. */
  readonly previous: string | null;
  /** Milliseconds since the Unix epoch; for people, never for order. */
  readonly createdMs: number;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly codec: SetCodec;
  readonly lanes: number;
}

/** What a session reports about itself; kept with the set. */
export interface SessionCounters {
  readonly bytesRead: number;
  readonly diverted: number;
  /** Tracks that were left out because their content at the base is the same. */
  readonly unchanged: number;
}

export interface SetCounters extends SessionCounters {
  /** Tracks in the set, those of zeroes included. */
  readonly tracks: number;
  readonly zeroTracks: number;
  /** Tracks with the content of another track of the set, which is stored once. */
  readonly aliases: number;
  readonly frames: number;
  /** Bytes of all frames as stored. */
  readonly bytesStored: number;
}

export const DATABASES = {
  header: 'header',
  frames: 'frames',
  order: 'order',
  hashes: 'hashes',
  present: 'present',
} as const;

/** The databases whose records the seal covers, in its order: all but the frames. */
export const SEALED_DATABASES = ['header', 'order', 'hashes', 'present'] as const;
export const SEAL_KEY = 'seal';
/** The file's own key, wrapped, where it is encrypted. */
export const KEY_KEY = 'key';
/** Records of `header` that the seal leaves out: itself, and what another store may wrap anew. */
const UNSEALED_KEYS: ReadonlySet<string> = new Set([SEAL_KEY, KEY_KEY]);
/** Lanes of one set; each is a file, and a reader opens all. */
export const LANES_MAX = 64;
/** Where arrival numbers of lane 0 end and those of the next lane begin, in tracks. */
export const LANE_ARRIVALS = 2 ** 32;

export function trackCountOf(header: { sizeBytes: number; trackSizeBytes: number }): number {
  return Math.ceil(header.sizeBytes / header.trackSizeBytes);
}

/** Bytes of one track: the last may be shorter than the others. */
export function trackBytesOf(header: { sizeBytes: number; trackSizeBytes: number }, track: number): number {
  return Math.min(header.trackSizeBytes, header.sizeBytes - track * header.trackSizeBytes);
}

export function u32Key(value: number): Buffer {
  const key = Buffer.allocUnsafe(4);
  key.writeUInt32BE(value);
  return key;
}

function corrupt(where: string, what: string): CorruptionError {
  return new CorruptionError(`Block set ${where} is damaged: ${what}`, { where });
}

// ---- header -------------------------------------------------------------------------------------------

/** The name of a lane's complete file; `.partial` follows while it is written. */
export function laneFileName(id: string, lane: number): string {
  return `${id}-${lane}.cbs`;
}

/** What a lane's file says of itself and of the others (EXAMPLES B13: each names all). */
export interface LaneRecord {
  readonly lane: number;
  /** For each lane the directory of its file, absolute; empty where it lies beside lane 0. */
  readonly directories: readonly string[];
}

export function encodeJson(value: SetHeader | SetCounters | LaneRecord): Buffer {
  return Buffer.from(JSON.stringify(value));
}

type Json = Readonly<Record<string, unknown>>;

function parseRecord(bytes: Buffer | undefined, where: string): Json {
  if (bytes === undefined) throw corrupt(where, 'a part of its header is missing');
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString());
  } catch {
    // Said below, with the place.
  }
  return asRecord(value, where);
}

function asRecord(value: unknown, where: string): Json {
  if (typeof value === 'object' && value !== null) return { ...value };
  throw corrupt(where, 'its header is no record');
}

/** Reads one field at a time, each with the check of its type. */
class Fields {
  readonly #record: Json;
  readonly #where: string;

  constructor(record: Json, where: string) {
    this.#record = record;
    this.#where = where;
  }

  text(name: string): string {
    const value = this.#record[name];
    if (typeof value !== 'string') throw corrupt(this.#where, `${name} is ${typeof value}, wanted text`);
    return value;
  }

  textOrNull(name: string): string | null {
    return this.#record[name] === null ? null : this.text(name);
  }

  count(name: string): number {
    const value = this.#record[name];
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
    throw corrupt(this.#where, `${name} is ${JSON.stringify(value)}, wanted a count`);
  }

  oneOf<const T extends string>(name: string, values: readonly T[]): T {
    const text = this.text(name);
    const found = values.find((value) => value === text);
    if (found === undefined) throw corrupt(this.#where, `${name} is ${text}`);
    return found;
  }
}

/** @throws {CorruptionError} where a field is missing or of another type. */
export function decodeHeader(bytes: Buffer | undefined, where: string): SetHeader {
  return headerOf(parseRecord(bytes, where), where);
}

function headerOf(record: Json, where: string): SetHeader {
  const fields = new Fields(record, where);
  const header: SetHeader = {
    id: fields.text('id'),
    volumeId: fields.text('volumeId'),
    volumeName: fields.text('volumeName'),
    level: fields.oneOf('level', ['full', 'differential', 'incremental']),
    base: fields.textOrNull('base'),
    point: fields.text('point'),
    previous: fields.textOrNull('previous'),
    createdMs: fields.count('createdMs'),
    sizeBytes: fields.count('sizeBytes'),
    trackSizeBytes: fields.count('trackSizeBytes'),
    codec: fields.oneOf('codec', ['none', 'zstd']),
    lanes: fields.count('lanes'),
  };
  if (header.lanes < 1 || header.lanes > LANES_MAX) throw corrupt(where, `it has ${header.lanes} lanes`);
  if ((header.level === 'full') !== (header.base === null)) {
    throw corrupt(where, `its level is ${header.level} and its base ${header.base ?? 'none'}`);
  }
  if (header.trackSizeBytes < 1) throw corrupt(where, 'its track size is zero');
  return header;
}

/** @throws {CorruptionError} where a field is missing or of another type. */
export function decodeCounters(bytes: Buffer | undefined, where: string): SetCounters {
  return countersOf(parseRecord(bytes, where), where);
}

function countersOf(record: Json, where: string): SetCounters {
  const fields = new Fields(record, where);
  return {
    tracks: fields.count('tracks'),
    zeroTracks: fields.count('zeroTracks'),
    frames: fields.count('frames'),
    bytesStored: fields.count('bytesStored'),
    aliases: fields.count('aliases'),
    bytesRead: fields.count('bytesRead'),
    diverted: fields.count('diverted'),
    unchanged: fields.count('unchanged'),
  };
}

/** @throws {CorruptionError} where the record does not fit a set of that many lanes. */
export function decodeLaneRecord(bytes: Buffer | undefined, lanes: number, where: string): LaneRecord {
  const record = parseRecord(bytes, where);
  const lane = new Fields(record, where).count('lane');
  const { directories } = record;
  if (!Array.isArray(directories) || directories.length !== lanes || lane >= lanes) {
    throw corrupt(where, `it does not name its ${lanes} lanes`);
  }
  const places = directories.map((directory: unknown) => {
    if (typeof directory !== 'string') throw corrupt(where, 'it names a lane by no text');
    return directory;
  });
  return { lane, directories: places };
}

/** Where a lane's complete file is, for the catalog. */
export interface SealedLane {
  /** Absolute; empty where it lies beside lane 0. */
  readonly directory: string;
  readonly lengthBytes: number;
}

/** A complete set as the catalog knows it. */
export interface SealedSet {
  readonly header: SetHeader;
  readonly counters: SetCounters;
  /** 64 hexadecimal digits. */
  readonly seal: string;
  readonly lanes: readonly SealedLane[];
}

export function encodeSealedSet(set: SealedSet): Buffer {
  return Buffer.from(JSON.stringify(set));
}

/** @throws {CorruptionError} where a field is missing or of another type. */
export function decodeSealedSet(bytes: Buffer, where: string): SealedSet {
  const record = parseRecord(bytes, where);
  const header = headerOf(asRecord(record['header'], where), where);
  const { lanes } = record;
  if (!Array.isArray(lanes) || lanes.length !== header.lanes) throw corrupt(where, 'it lacks lanes');
  return {
    header,
    counters: countersOf(asRecord(record['counters'], where), where),
    seal: new Fields(record, where).text('seal'),
    lanes: lanes.map((lane: unknown) => {
      const fields = new Fields(asRecord(lane, where), where);
      return { directory: fields.text('directory'), lengthBytes: fields.count('lengthBytes') };
    }),
  };
}

export function encodeFormat(): Buffer {
  return u32Key(FORMAT_VERSION);
}

/** @throws {StoreError} `newer-format`. @throws {CorruptionError} where there is none. */
export function checkFormat(bytes: Buffer | undefined, path: string): void {
  if (bytes?.length !== 4) throw corrupt(path, 'it does not say its format');
  const format = bytes.readUInt32BE(0);
  if (format <= FORMAT_VERSION) return;
  throw new StoreError(
    'newer-format',
    `Block set ${path} has format ${format}, this version reads up to ${FORMAT_VERSION}`,
    { path, format },
  );
}

// ---- frames -------------------------------------------------------------------------------------------

export const FRAME_HEADER_BYTES = 12;

export interface FrameHeader {
  readonly codec: SetCodec;
  readonly trackCount: number;
  /** Bytes of the tracks before compression. */
  readonly rawBytes: number;
}

/** Into the first FRAME_HEADER_BYTES of `target`, which it returns. */
export function encodeFrameHeader(
  header: FrameHeader,
  target: Buffer = Buffer.alloc(FRAME_HEADER_BYTES),
): Buffer {
  target.fill(0, 0, FRAME_HEADER_BYTES);
  target.writeUInt8(header.codec === 'zstd' ? 1 : 0, 0);
  target.writeUInt32BE(header.trackCount, 4);
  target.writeUInt32BE(header.rawBytes, 8);
  return target;
}

/** @throws {CorruptionError} where the header is not one. */
export function decodeFrameHeader(value: Buffer, where: string): FrameHeader {
  if (value.length < FRAME_HEADER_BYTES)
    throw corrupt(where, `a frame of ${value.length} bytes has no header`);
  const codec = value.readUInt8(0);
  if (codec > 1) throw corrupt(where, `a frame has codec ${codec}`);
  return {
    codec: codec === 1 ? 'zstd' : 'none',
    trackCount: value.readUInt32BE(4),
    rawBytes: value.readUInt32BE(8),
  };
}

// ---- order --------------------------------------------------------------------------------------------

const RUN_BYTES = 16;

/**
 * Consecutive tracks at consecutive positions of one frame; the frame is named by the arrival number of its
 * first track, so that frame plus position is the arrival number. `ZERO_FRAME` says that they are zeroes.
 */
export interface OrderRun {
  readonly first: number;
  readonly count: number;
  readonly frame: number;
  readonly position: number;
}

/** The key of a group's runs: kind 0, then the group's number. */
export function orderKey(group: number): Buffer {
  const key = Buffer.alloc(5);
  key.writeUInt32BE(group, 1);
  return key;
}

/** The first key after those of the groups. */
export const ORDER_END = Buffer.from([1]);

export function encodeRuns(runs: readonly OrderRun[]): Buffer {
  const bytes = Buffer.allocUnsafe(runs.length * RUN_BYTES);
  let at = 0;
  for (const run of runs) {
    bytes.writeUInt32BE(run.first, at);
    bytes.writeUInt32BE(run.count, at + 4);
    bytes.writeUInt32BE(run.frame, at + 8);
    bytes.writeUInt32BE(run.position, at + 12);
    at += RUN_BYTES;
  }
  return bytes;
}

/** @throws {CorruptionError} where runs overlap, are out of order or leave their group or the volume. */
export function decodeRuns(
  bytes: Buffer,
  place: { where: string; group: number; trackCount: number },
): OrderRun[] {
  const { where, group, trackCount } = place;
  if (bytes.length % RUN_BYTES !== 0) throw corrupt(where, 'its ordering metadata is not whole');
  const runs: OrderRun[] = [];
  let next = group * GROUP_TRACKS;
  const end = Math.min(next + GROUP_TRACKS, trackCount);
  for (let at = 0; at < bytes.length; at += RUN_BYTES) {
    const run = {
      first: bytes.readUInt32BE(at),
      count: bytes.readUInt32BE(at + 4),
      frame: bytes.readUInt32BE(at + 8),
      position: bytes.readUInt32BE(at + 12),
    };
    if (run.count === 0 || run.first < next || run.first + run.count > end) {
      throw corrupt(where, `its ordering metadata has tracks ${run.first}+${run.count} out of place`);
    }
    runs.push(run);
    next = run.first + run.count;
  }
  return runs;
}

// ---- seal ---------------------------------------------------------------------------------------------

/** BLAKE3 of all metadata records as stored, in key order, seal and key excepted; memory is one record. */
export function digestMetadata(file: LmdbFile): Buffer {
  return digestOf(metadataParts(file));
}

function* metadataParts(file: LmdbFile): Generator<Buffer> {
  for (const name of SEALED_DATABASES) {
    yield Buffer.from(`${name}\0`);
    for (const { key, value } of file.database(name).range()) {
      if (name === 'header' && UNSEALED_KEYS.has(key.toString('latin1'))) continue;
      yield u32Key(key.length);
      yield key;
      yield u32Key(value.length);
      yield value;
    }
  }
}

/** What the seal says about one lane. */
export interface LaneSeal {
  readonly frames: number;
  readonly tracks: number;
  readonly metadata: Buffer;
}

const LANE_BYTES = 16 + DIGEST_BYTES;

/** Lane count, each lane's counts and metadata digest, then the seal: the BLAKE3 of all that. */
export function encodeSeal(lanes: readonly LaneSeal[]): Buffer {
  const bytes = Buffer.alloc(4 + lanes.length * LANE_BYTES + DIGEST_BYTES);
  bytes.writeUInt32BE(lanes.length, 0);
  let at = 4;
  for (const lane of lanes) {
    assert(lane.metadata.length === DIGEST_BYTES, 'A lane has no digest');
    bytes.writeBigUInt64BE(BigInt(lane.frames), at);
    bytes.writeBigUInt64BE(BigInt(lane.tracks), at + 8);
    lane.metadata.copy(bytes, at + 16);
    at += LANE_BYTES;
  }
  digestOf([bytes.subarray(0, at)]).copy(bytes, at);
  return bytes;
}

/** @returns the seal proper, 64 hexadecimal digits. @throws {CorruptionError} where the record is not whole. */
export function decodeSeal(bytes: Buffer, where: string): { seal: string; lanes: readonly LaneSeal[] } {
  const count = bytes.length < 4 ? 0 : bytes.readUInt32BE(0);
  const end = 4 + count * LANE_BYTES;
  if (count === 0 || bytes.length !== end + DIGEST_BYTES) throw corrupt(where, 'its seal is not whole');
  const seal = bytes.subarray(end);
  if (!digestOf([bytes.subarray(0, end)]).equals(seal)) throw corrupt(where, 'its seal is broken');
  const lanes: LaneSeal[] = [];
  for (let at = 4; at < end; at += LANE_BYTES) {
    lanes.push({
      frames: Number(bytes.readBigUInt64BE(at)),
      tracks: Number(bytes.readBigUInt64BE(at + 8)),
      metadata: bytes.subarray(at + 16, at + LANE_BYTES),
    });
  }
  return { seal: seal.toString('hex'), lanes };
}
