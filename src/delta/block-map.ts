/**
 * Which blocks of 512 bytes were seen, exactly, for who goes through records from the newest to the oldest: what was
 * seen before is of no use any more.
 *
 * A track that was seen whole is one bit, any other a bitmap, in one slab.
 */

import { LIMITS } from '../base/index.ts';
import { TrackBits } from '../tracks/index.ts';

const BLOCK_BYTES = LIMITS.blockSizeBytesMin;
const WORD_BITS = 32;

/** A run of blocks of one track. */
export interface BlockRun {
  readonly first: number;
  readonly count: number;
}

export class BlockMap {
  readonly #blocks: number;
  readonly #words: number;
  readonly #whole = new TrackBits(LIMITS.trackCountMax);
  readonly #parts = new Map<number, number>();
  #slab = new Uint32Array(0);
  #used = 0;

  constructor(trackBytes: number) {
    this.#blocks = trackBytes / BLOCK_BYTES;
    this.#words = Math.ceil(this.#blocks / WORD_BITS);
  }

  isWhole(track: number): boolean {
    return this.#whole.has(track);
  }

  /** Adds blocks of a track. @returns those that are new. */
  add(track: number, first: number, count: number): readonly BlockRun[] {
    if (this.#whole.has(track)) return [];
    const part = this.#parts.get(track);
    if (count === this.#blocks) {
      this.#whole.add(track);
      this.#parts.delete(track);
      return part === undefined ? [{ first, count }] : this.#missing(part, first, count);
    }
    const at = part ?? this.#newPart(track);
    const missing = this.#missing(at, first, count);
    for (const run of missing) this.#set(at, run);
    if (missing.length > 0 && this.#isFull(at)) {
      this.#whole.add(track);
      this.#parts.delete(track);
    }
    return missing;
  }

  get whole(): TrackBits {
    return this.#whole;
  }

  #newPart(track: number): number {
    const at = this.#used;
    this.#used += this.#words;
    if (this.#used > this.#slab.length) {
      const grown = new Uint32Array(Math.max(1024 * this.#words, this.#slab.length * 2));
      grown.set(this.#slab);
      this.#slab = grown;
    }
    this.#parts.set(track, at);
    return at;
  }

  #has(at: number, block: number): boolean {
    return ((this.#slab[at + (block >>> 5)] ?? 0) & (1 << (block & 31))) !== 0;
  }

  #missing(at: number, first: number, count: number): BlockRun[] {
    const runs: BlockRun[] = [];
    const end = first + count;
    for (let block = first; block < end;) {
      if (this.#has(at, block)) {
        block += 1;
        continue;
      }
      const from = block;
      while (block < end && !this.#has(at, block)) block += 1;
      runs.push({ first: from, count: block - from });
    }
    return runs;
  }

  #set(at: number, { first, count }: BlockRun): void {
    for (let block = first; block < first + count; block += 1) {
      const word = at + (block >>> 5);
      this.#slab[word] = (this.#slab[word] ?? 0) | (1 << (block & 31));
    }
  }

  #isFull(at: number): boolean {
    for (let word = 0; word < this.#words; word += 1) {
      const count = Math.min(WORD_BITS, this.#blocks - word * WORD_BITS);
      const mask = count === WORD_BITS ? 0xffffffff : 2 ** count - 1;
      if (this.#slab[at + word] !== mask) return false;
    }
    return true;
  }
}

/** A range of bytes as blocks of tracks. */
export function* blocksOf(
  offsetBytes: number,
  lengthBytes: number,
  trackBytes: number,
): Generator<BlockRun & { readonly track: number }> {
  const end = offsetBytes + lengthBytes;
  for (let at = offsetBytes; at < end;) {
    const track = Math.floor(at / trackBytes);
    const stop = Math.min(end, (track + 1) * trackBytes);
    yield { track, first: (at - track * trackBytes) / BLOCK_BYTES, count: (stop - at) / BLOCK_BYTES };
    at = stop;
  }
}
