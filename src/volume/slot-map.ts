/**
 * Where each kept track lies: 4 bytes a track, in chunks that are made when their first track comes. A plain `Map`
 * takes some ten times as much, and a snapshot of a large volume may keep many millions of tracks.
 */

const CHUNK_SHIFT = 12;
const CHUNK_TRACKS = 2 ** CHUNK_SHIFT;

export class SlotMap {
  readonly #chunks: (Uint32Array | undefined)[] = [];
  #size = 0;

  /** Tracks that have a slot. */
  get size(): number {
    return this.#size;
  }

  /** @returns 0 where the track has none. */
  get(track: number): number {
    return this.#chunks[track >>> CHUNK_SHIFT]?.[track & (CHUNK_TRACKS - 1)] ?? 0;
  }

  /** @param slot from 1 to 2^32 - 1. A track's later slot replaces the earlier one. */
  set(track: number, slot: number): void {
    const chunk = (this.#chunks[track >>> CHUNK_SHIFT] ??= new Uint32Array(CHUNK_TRACKS));
    const place = track & (CHUNK_TRACKS - 1);
    if (chunk[place] === 0) this.#size += 1;
    chunk[place] = slot;
  }

  /** The tracks that have a slot, ascending. */
  *tracks(): Generator<number> {
    for (const [index, chunk] of this.#chunks.entries()) {
      if (chunk === undefined) continue;
      for (const [place, slot] of chunk.entries()) if (slot !== 0) yield index * CHUNK_TRACKS + place;
    }
  }
}
