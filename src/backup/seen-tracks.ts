/**
 * Which contents a session has stored, so that a track with the same content as another is stored once.
 *
 * A table of fixed size: each content has four places in it, and where all are taken a later one drives out one of
 * them. What was driven out is stored again when it comes again, which costs room and nothing else; so memory is
 * bounded whatever the volume's size. Contents are told apart by their whole BLAKE3.
 */

import { DIGEST_BYTES } from '../records/index.ts';

/** Places of the largest table, 10 MiB: the distinct contents of 16 GiB in tracks of 64 KiB. */
const PLACES_MAX = 2 ** 18;
const PLACES_MIN = 2 ** 8;
const WAYS = 4;

export interface SeenTrack {
  readonly lane: number;
  readonly track: number;
}

export class SeenTracks {
  readonly #mask: number;
  readonly #hashes: Buffer;
  readonly #tracks: Uint32Array;
  /** Lane plus one; 0 where the place is free. */
  readonly #lanes: Uint8Array;

  /** @param trackCount the tracks that may come at the most. */
  constructor(trackCount: number) {
    let places = PLACES_MIN;
    while (places < PLACES_MAX && places < 2 * trackCount) places *= 2;
    this.#mask = places - 1;
    this.#hashes = Buffer.alloc(places * DIGEST_BYTES);
    this.#tracks = new Uint32Array(places);
    this.#lanes = new Uint8Array(places);
  }

  /** The track that has this content, if it is remembered; otherwise `track` is remembered for it from now on. */
  findOrAdd(hash: Buffer, seen: SeenTrack): SeenTrack | undefined {
    const first = hash.readUInt32LE(0) & this.#mask & ~(WAYS - 1);
    let free = first + (hash.readUInt8(4) & (WAYS - 1));
    for (let place = first; place < first + WAYS; place += 1) {
      const at = place * DIGEST_BYTES;
      const lane = this.#lanes[place] ?? 0;
      if (lane === 0) {
        free = place;
        break;
      }
      if (this.#hashes.compare(hash, 0, DIGEST_BYTES, at, at + DIGEST_BYTES) === 0) {
        return { lane: lane - 1, track: this.#tracks[place] ?? 0 };
      }
    }
    hash.copy(this.#hashes, free * DIGEST_BYTES, 0, DIGEST_BYTES);
    this.#tracks[free] = seen.track;
    this.#lanes[free] = seen.lane + 1;
    return undefined;
  }
}
