/**
 * A set of track numbers: which tracks changed, are protected, are in a block set.
 *
 * Wraps a roaring bitmap, so that a set costs what it holds and not what the volume measures, and gives it
 * the vocabulary of runs. For the sets that every write touches there is the flat `TrackBits`.
 *
 * Serialised form: see FORMAT.md. Roaring's own reader accepts nearly every damaged input, so a checksum
 * and the count stand around the portable roaring bytes, and both are checked before the bytes are parsed.
 */

import roaring, { type RoaringBitmap32 as Bitmap } from 'roaring';
import { assert, CorruptionError, LIMITS } from '../base/index.ts';
import { checksum, CHECKSUM_BYTES } from '../records/index.ts';

// The package is CommonJS whose names Node cannot see at import.
const { RoaringBitmap32 } = roaring;

/** Tracks `first` to `first + count - 1`. */
export interface TrackRun {
  readonly first: number;
  readonly count: number;
}

const MAGIC = 0x43425453; // "CBTS"
const VERSION = 0;
const HEADER_BYTES = 16;

function assertTrack(track: number): void {
  assert(
    Number.isInteger(track) && track >= 0 && track < LIMITS.trackCountMax,
    `Track ${track} is not a uint32`,
  );
}

export class TrackSet implements Iterable<number> {
  readonly #bitmap: Bitmap;

  private constructor(bitmap: Bitmap) {
    this.#bitmap = bitmap;
  }

  static empty(): TrackSet {
    return new TrackSet(new RoaringBitmap32());
  }

  static of(tracks: Iterable<number>): TrackSet {
    return new TrackSet(new RoaringBitmap32(tracks));
  }

  static ofRun(run: TrackRun): TrackSet {
    const set = TrackSet.empty();
    set.addRun(run);
    return set;
  }

  /** Tracks 0 to `count - 1`. */
  static all(count: number): TrackSet {
    return count === 0 ? TrackSet.empty() : TrackSet.ofRun({ first: 0, count });
  }

  static union(sets: readonly TrackSet[]): TrackSet {
    return new TrackSet(RoaringBitmap32.orMany(sets.map((set) => set.#bitmap)));
  }

  get size(): number {
    return this.#bitmap.size;
  }

  get isEmpty(): boolean {
    return this.#bitmap.isEmpty;
  }

  has(track: number): boolean {
    return this.#bitmap.has(track);
  }

  add(track: number): void {
    assertTrack(track);
    this.#bitmap.add(track);
  }

  addRun(run: TrackRun): void {
    assertTrack(run.first);
    assert(run.count > 0 && run.first + run.count <= LIMITS.trackCountMax, `Run of ${run.count} tracks`);
    this.#bitmap.addRange(run.first, run.first + run.count);
  }

  delete(track: number): void {
    this.#bitmap.delete(track);
  }

  addAll(other: TrackSet): void {
    this.#bitmap.orInPlace(other.#bitmap);
  }

  deleteAll(other: TrackSet): void {
    this.#bitmap.andNotInPlace(other.#bitmap);
  }

  /** The tracks of this set that are in `other` too. */
  intersection(other: TrackSet): TrackSet {
    return new TrackSet(RoaringBitmap32.and(this.#bitmap, other.#bitmap));
  }

  /** The tracks of this set that are not in `other`. */
  difference(other: TrackSet): TrackSet {
    return new TrackSet(RoaringBitmap32.andNot(this.#bitmap, other.#bitmap));
  }

  clone(): TrackSet {
    return new TrackSet(this.#bitmap.clone());
  }

  equals(other: TrackSet): boolean {
    return this.#bitmap.isEqual(other.#bitmap);
  }

  /** The highest track, or undefined in the empty set. */
  get last(): number | undefined {
    return this.#bitmap.isEmpty ? undefined : this.#bitmap.maximum();
  }

  /** Ascending. The set must not change meanwhile. */
  [Symbol.iterator](): Iterator<number> {
    return this.#bitmap[Symbol.iterator]();
  }

  /** The set as ascending runs, each cut at `countMax` tracks. The set must not change meanwhile. */
  *runs(countMax: number = LIMITS.trackCountMax): Generator<TrackRun> {
    let first = -1;
    let count = 0;
    for (const track of this.#bitmap) {
      if (count > 0 && track === first + count && count < countMax) {
        count += 1;
        continue;
      }
      if (count > 0) yield { first, count };
      first = track;
      count = 1;
    }
    if (count > 0) yield { first, count };
  }

  /** Ascending; the array belongs to the caller. */
  toUint32Array(): Uint32Array {
    return this.#bitmap.toUint32Array();
  }

  toArray(): number[] {
    return this.#bitmap.toArray();
  }

  /** The bytes described in FORMAT.md; a fresh buffer that belongs to the caller. */
  serialize(): Buffer {
    this.#bitmap.runOptimize();
    const body = this.#bitmap.serialize('portable');
    const bytes = Buffer.alloc(HEADER_BYTES + body.length + CHECKSUM_BYTES);
    bytes.writeUInt32BE(MAGIC, 0);
    bytes.writeUInt32BE(VERSION, 4);
    bytes.writeBigUInt64BE(BigInt(this.#bitmap.size), 8);
    bytes.set(body, HEADER_BYTES);
    checksumOf(bytes).copy(bytes, HEADER_BYTES + body.length);
    return bytes;
  }

  /**
   * Reads what `serialize` wrote.
   *
   * @param where names the source in the error.
   * @param trackCount tracks of the volume; a higher track number is corruption.
   * @throws {CorruptionError} where checksum, count or range do not agree.
   */
  static deserialize(bytes: Buffer, where: string, trackCount: number = LIMITS.trackCountMax): TrackSet {
    const corrupt = (what: string): CorruptionError =>
      new CorruptionError(`Track set ${what} in ${where}`, { where });
    if (bytes.length < HEADER_BYTES + CHECKSUM_BYTES) throw corrupt('is cut short');
    if (bytes.readUInt32BE(0) !== MAGIC) throw corrupt('has no magic');
    if (bytes.readUInt32BE(4) !== VERSION)
      throw corrupt(`has version ${bytes.readUInt32BE(4)}, wanted ${VERSION}`);
    const end = bytes.length - CHECKSUM_BYTES;
    if (!checksumOf(bytes).equals(bytes.subarray(end))) throw corrupt('fails its checksum');
    const bitmap = RoaringBitmap32.deserialize(bytes.subarray(HEADER_BYTES, end), 'portable');
    if (BigInt(bitmap.size) !== bytes.readBigUInt64BE(8)) throw corrupt('does not hold its count');
    if (!bitmap.isEmpty && bitmap.maximum() >= trackCount)
      throw corrupt(`goes beyond track ${trackCount - 1}`);
    return new TrackSet(bitmap);
  }
}

/** The checksum over everything before the place where it stands. */
function checksumOf(bytes: Buffer): Buffer {
  return checksum(bytes.subarray(0, bytes.length - CHECKSUM_BYTES));
}
