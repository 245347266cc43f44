/**
 * Which tracks a log has anything of, and which it has whole: every byte.
 *
 * A track that came in parts is known by a bitmap of its blocks. Blocks of 512 bytes, or of 4 KiB where tracks are
 * larger than 64 KiB; a part of a block does not count, so a track may seem not to be whole that is, never the other
 * way round. The bitmaps of all logs share one bound; a track beyond it is not known to be whole until it is written
 * as one.
 */

import { KIB, LIMITS } from '../base/index.ts';
import { TrackBits, TrackSet } from '../tracks/index.ts';

/** How many parted tracks may still be known by blocks. */
export interface PartBudget {
  left: number;
}

export function newPartBudget(): PartBudget {
  return { left: LIMITS.deltaPartTrackCountMax };
}

const WORD_BITS = 32;

export class Coverage {
  readonly #trackBytes: number;
  readonly #blockBytes: number;
  readonly #words: number;
  /** The bits of a track that is whole. */
  readonly #wholeMask: readonly number[];
  readonly #budget: PartBudget;
  readonly #touched = new TrackBits(LIMITS.trackCountMax);
  readonly #whole = new TrackBits(LIMITS.trackCountMax);
  /** The blocks of tracks that are not whole, by track: where their words are. */
  readonly #parts = new Map<number, number>();
  #slab = new Uint32Array(0);
  #free: number[] = [];
  #slabCount = 0;

  constructor(trackBytes: number, budget: PartBudget) {
    this.#trackBytes = trackBytes;
    this.#blockBytes = trackBytes > 64 * KIB ? LIMITS.blockSizeBytesPreferred : LIMITS.blockSizeBytesMin;
    const blocks = trackBytes / this.#blockBytes;
    this.#words = Math.ceil(blocks / WORD_BITS);
    this.#wholeMask = Array.from({ length: this.#words }, (_, word) =>
      blocks - word * WORD_BITS >= WORD_BITS ? 0xffffffff : 2 ** (blocks - word * WORD_BITS) - 1,
    );
    this.#budget = budget;
  }

  /** A change of this range is in the log. */
  add(offsetBytes: number, lengthBytes: number): void {
    const trackBytes = this.#trackBytes;
    const endBytes = offsetBytes + lengthBytes;
    let track = Math.floor(offsetBytes / trackBytes);
    for (let at = offsetBytes; at < endBytes; track += 1) {
      const trackAt = track * trackBytes;
      const end = Math.min(endBytes, trackAt + trackBytes);
      this.#touched.add(track);
      if (end - at === trackBytes) this.#addWhole(track);
      else if (!this.#whole.has(track)) this.#addPart(track, at - trackAt, end - trackAt);
      at = end;
    }
  }

  get touched(): TrackSet {
    return this.#touched.toTrackSet();
  }

  /** Nothing is known any more: the bitmaps are free for other logs. */
  release(): void {
    this.#budget.left += this.#parts.size;
    this.#parts.clear();
  }

  /** The tracks that these logs together hold whole. */
  static wholeOf(logs: readonly Coverage[]): TrackSet {
    const whole = TrackSet.union(logs.map((log) => log.#whole.toTrackSet()));
    const seen = new Map<number, number[]>();
    for (const log of logs) {
      for (const [track, at] of log.#parts) {
        if (whole.has(track)) continue;
        const words = seen.get(track);
        if (words === undefined) seen.set(track, [...log.#slab.subarray(at, at + log.#words)]);
        else if (log.#union(words, at)) whole.add(track);
      }
    }
    return whole;
  }

  #addWhole(track: number): void {
    if (!this.#whole.add(track)) return;
    const at = this.#parts.get(track);
    if (at !== undefined) this.#dropPart(track, at);
  }

  #addPart(track: number, from: number, to: number): void {
    const first = Math.ceil(from / this.#blockBytes);
    const end = Math.floor(to / this.#blockBytes);
    if (first >= end) return;
    const at = this.#parts.get(track) ?? this.#newPart(track);
    if (at === undefined) return;
    for (let block = first; block < end;) {
      const bit = block % WORD_BITS;
      const count = Math.min(WORD_BITS - bit, end - block);
      const mask = count === WORD_BITS ? 0xffffffff : ((2 ** count - 1) << bit) >>> 0;
      const word = at + (block - bit) / WORD_BITS;
      this.#slab[word] = (this.#slab[word] ?? 0) | mask;
      block += count;
    }
    if (this.#wholeMask.every((mask, word) => this.#slab[at + word] === mask)) this.#addWhole(track);
  }

  #newPart(track: number): number | undefined {
    if (this.#budget.left === 0) return undefined;
    this.#budget.left -= 1;
    let at = this.#free.pop();
    if (at === undefined) {
      at = this.#slabCount * this.#words;
      this.#slabCount += 1;
      if (at + this.#words > this.#slab.length) this.#growSlab();
    }
    this.#slab.fill(0, at, at + this.#words);
    this.#parts.set(track, at);
    return at;
  }

  #growSlab(): void {
    const grown = new Uint32Array(Math.max(1024 * this.#words, this.#slab.length * 2));
    grown.set(this.#slab);
    this.#slab = grown;
  }

  #dropPart(track: number, at: number): void {
    this.#parts.delete(track);
    this.#free.push(at);
    this.#budget.left += 1;
  }

  /** Adds this log's blocks to those of another. @returns whether they are the whole track now. */
  #union(words: number[], at: number): boolean {
    let isWhole = true;
    for (const [word, mask] of this.#wholeMask.entries()) {
      const bits = ((words[word] ?? 0) | (this.#slab[at + word] ?? 0)) >>> 0;
      words[word] = bits;
      isWhole &&= bits === mask;
    }
    return isWhole;
  }
}
