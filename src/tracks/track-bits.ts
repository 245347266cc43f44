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
const CHUNK_WORDS = 2 ** (CHUNK_SHIFT - 5);
const CHUNK_MASK = 2 ** CHUNK_SHIFT - 1;

export class TrackBits {
  readonly #chunks: (Uint32Array | undefined)[] = [];
  readonly trackCount: number;
  #size = 0;

  /** @param trackCount tracks of the volume; higher numbers are refused. */
  constructor(trackCount: number) {
    this.trackCount = trackCount;
  }

  static from(set: TrackSet, trackCount: number): TrackBits {
    const bits = new TrackBits(trackCount);
    for (const track of set) bits.add(track);
    return bits;
  }

  get size(): number {
    return this.#size;
  }

  has(track: number): boolean {
    const chunk = this.#chunks[track >>> CHUNK_SHIFT];
    if (chunk === undefined) return false;
    return ((chunk[(track & CHUNK_MASK) >>> 5] ?? 0) & (1 << (track & 31))) !== 0;
  }

  /** @returns whether the track was new. */
  add(track: number): boolean {
    assert(track >= 0 && track < this.trackCount, `Track ${track} is not below ${this.trackCount}`);
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
    for (let track = run.first; track < run.first + run.count; track += 1) this.add(track);
  }

  /** Whether any track of the run is in the set. */
  hasAny(run: TrackRun): boolean {
    if (this.#size === 0) return false;
    for (let track = run.first; track < run.first + run.count; track += 1) {
      if (this.has(track)) return true;
    }
    return false;
  }

  toTrackSet(): TrackSet {
    const set = TrackSet.empty();
    const tracks: number[] = [];
    for (const [index, chunk] of this.#chunks.entries()) {
      if (chunk !== undefined) collect(chunk, index * 2 ** CHUNK_SHIFT, tracks);
    }
    set.addAll(TrackSet.of(tracks));
    return set;
  }
}

/** Appends the tracks of one chunk, ascending. */
function collect(chunk: Uint32Array, base: number, tracks: number[]): void {
  for (let word = 0; word < chunk.length; word += 1) {
    let bits = chunk[word] ?? 0;
    while (bits !== 0) {
      const lowest = 31 - Math.clz32(bits & -bits);
      tracks.push(base + word * 32 + lowest);
      bits &= bits - 1;
    }
  }
}
