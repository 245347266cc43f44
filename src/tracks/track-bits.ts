/**
 * A flat, chunked set of tracks for the paths that every write takes: the open epoch, what is protected.
 *
 * Roaring's `has` and `add` cross into native code and cost several times a typed array's access; here a
 * chunk of 65 536 tracks is 8 KiB, made when its first track is added. At a freeze the set becomes a
 * `TrackSet`, the form that is kept, combined and stored.
 */

import { assert } from '../base/index.ts';
import { type TrackRun, TrackSet } from './track-set.ts';

const CHUNK_SHIFT = 16;
const CHUNK_TRACKS = 2 ** CHUNK_SHIFT;
const CHUNK_WORDS = 2 ** (CHUNK_SHIFT - 5);
const CHUNK_MASK = 2 ** CHUNK_SHIFT - 1;
const FULL_WORD = 0xffffffff;

export class TrackBits {
  readonly #chunks: (Uint32Array | undefined)[] = [];
  #trackCount: number;
  #size = 0;

  /** @param trackCount tracks of the volume; higher numbers are refused. */
  constructor(trackCount: number) {
    this.#trackCount = trackCount;
  }

  static from(set: TrackSet, trackCount: number): TrackBits {
    if (set.size === trackCount) return TrackBits.all(trackCount);
    const bits = new TrackBits(trackCount);
    for (const track of set.toUint32Array()) bits.add(track);
    return bits;
  }

  /** Every track of the volume. */
  static all(trackCount: number): TrackBits {
    const bits = new TrackBits(trackCount);
    for (let first = 0; first < trackCount; first += 2 ** CHUNK_SHIFT) {
      const chunk = new Uint32Array(CHUNK_WORDS);
      const count = Math.min(trackCount - first, 2 ** CHUNK_SHIFT);
      chunk.fill(FULL_WORD, 0, count >>> 5);
      if ((count & 31) !== 0) chunk[count >>> 5] = 2 ** (count & 31) - 1;
      bits.#chunks.push(chunk);
    }
    bits.#size = trackCount;
    return bits;
  }

  get size(): number {
    return this.#size;
  }

  get trackCount(): number {
    return this.#trackCount;
  }

  /** The volume has more tracks now; none of the new ones is in the set. */
  grow(trackCount: number): void {
    assert(trackCount >= this.#trackCount, `A set of ${this.#trackCount} tracks cannot have ${trackCount}`);
    this.#trackCount = trackCount;
  }

  has(track: number): boolean {
    const chunk = this.#chunks[track >>> CHUNK_SHIFT];
    if (chunk === undefined) return false;
    return ((chunk[(track & CHUNK_MASK) >>> 5] ?? 0) & (1 << (track & 31))) !== 0;
  }

  /** @returns whether the track was new. */
  add(track: number): boolean {
    // Putting the sentence together takes longer than all the rest.
    if (track < 0 || track >= this.#trackCount)
      assert(false, `Track ${track} is not below ${this.#trackCount}`);
    const index = track >>> CHUNK_SHIFT;
    const chunk = (this.#chunks[index] ??= new Uint32Array(CHUNK_WORDS));
    const word = (track & CHUNK_MASK) >>> 5;
    const bit = 1 << (track & 31);
    const before = chunk[word] ?? 0;
    if ((before & bit) !== 0) return false;
    chunk[word] = before | bit;
    this.#size += 1;
    return true;
  }

  /** @returns whether the track was there. */
  delete(track: number): boolean {
    const chunk = this.#chunks[track >>> CHUNK_SHIFT];
    if (chunk === undefined) return false;
    const word = (track & CHUNK_MASK) >>> 5;
    const bit = 1 << (track & 31);
    const before = chunk[word] ?? 0;
    if ((before & bit) === 0) return false;
    chunk[word] = before & ~bit;
    this.#size -= 1;
    return true;
  }

  addRun(run: TrackRun): void {
    const end = run.first + run.count;
    if (end > this.#trackCount) assert(false, `Track ${end - 1} is not below ${this.#trackCount}`);
    for (let track = run.first; track < end;) {
      // Whole words at once: what a volume grows by may be many millions of tracks.
      if ((track & 31) === 0 && track + 32 <= end) {
        const index = track >>> CHUNK_SHIFT;
        const chunk = (this.#chunks[index] ??= new Uint32Array(CHUNK_WORDS));
        const word = (track & CHUNK_MASK) >>> 5;
        this.#size += 32 - bitCount(chunk[word] ?? 0);
        chunk[word] = FULL_WORD;
        track += 32;
      } else {
        this.add(track);
        track += 1;
      }
    }
  }

  /** Adds every track of `other`, a word at a time: a matter of a millisecond for a volume of 1 TiB. */
  addAll(other: TrackBits): void {
    assert(other.trackCount === this.trackCount, `Sets of ${other.trackCount} and ${this.trackCount} tracks`);
    for (const [index, source] of other.#chunks.entries()) {
      if (source === undefined) continue;
      const target = (this.#chunks[index] ??= new Uint32Array(CHUNK_WORDS));
      for (let word = 0; word < CHUNK_WORDS; word += 1) {
        const before = target[word] ?? 0;
        const added = (source[word] ?? 0) & ~before;
        if (added === 0) continue;
        target[word] = before | added;
        this.#size += bitCount(added);
      }
    }
  }

  /** The lowest track of the run that is in the set. */
  firstIn(run: TrackRun): number | undefined {
    if (this.#size === 0) return undefined;
    const end = run.first + run.count;
    for (let track = run.first; track < end;) {
      const chunk = this.#chunks[track >>> CHUNK_SHIFT];
      if (chunk === undefined) {
        track = (Math.floor(track / CHUNK_TRACKS) + 1) * CHUNK_TRACKS;
        continue;
      }
      const word = chunk[(track & CHUNK_MASK) >>> 5] ?? 0;
      if (word === 0) {
        track += 32 - (track & 31);
        continue;
      }
      if ((word & (1 << (track & 31))) !== 0) return track;
      track += 1;
    }
    return undefined;
  }

  toTrackSet(): TrackSet {
    return this.tracksIn({ first: 0, count: this.trackCount });
  }

  /** The tracks of the run that are in the set; takes time by the length of the run, not of the volume. */
  tracksIn(run: TrackRun): TrackSet {
    const set = TrackSet.empty();
    const end = run.first + run.count;
    for (let first = run.first; first < end;) {
      const index = Math.floor(first / CHUNK_TRACKS);
      const chunkFirst = index * CHUNK_TRACKS;
      const stop = Math.min(end, chunkFirst + CHUNK_TRACKS);
      const chunk = this.#chunks[index];
      if (chunk !== undefined) {
        const isWhole = stop - first === CHUNK_TRACKS && chunk.every((word) => word === FULL_WORD);
        if (isWhole) set.addRun({ first, count: CHUNK_TRACKS });
        else set.addAll(TrackSet.of(tracksBetween(chunk, chunkFirst, first, stop)));
      }
      first = stop;
    }
    return set;
  }
}

/** The tracks of one chunk from `from` up to but not including `end`, ascending. */
function tracksBetween(chunk: Uint32Array, chunkFirst: number, from: number, end: number): Uint32Array {
  const tracks = new Uint32Array(end - from);
  let count = 0;
  const lastWord = (end - 1 - chunkFirst) >>> 5;
  for (let word = (from - chunkFirst) >>> 5; word <= lastWord; word += 1) {
    const wordFirst = chunkFirst + word * 32;
    let bits = chunk[word] ?? 0;
    // Only the first and the last word reach beyond the run; a shift by 32 would be one by 0.
    if (wordFirst < from) bits &= FULL_WORD << (from - wordFirst);
    if (wordFirst + 32 > end) bits &= FULL_WORD >>> (wordFirst + 32 - end);
    while (bits !== 0) {
      tracks[count] = wordFirst + 31 - Math.clz32(bits & -bits);
      count += 1;
      bits &= bits - 1;
    }
  }
  return tracks.subarray(0, count);
}

/** Bits set in a 32-bit word. */
function bitCount(word: number): number {
  let count = word - ((word >>> 1) & 0x55555555);
  count = (count & 0x33333333) + ((count >>> 2) & 0x33333333);
  return Math.imul((count + (count >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
