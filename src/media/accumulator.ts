/**
 * Gathers what arrives for several sets at once into pieces of one set each, so that a medium is written in
 * long stretches and its reader finds one set at a time.
 *
 * Items of a set gather until they reach a threshold; then they leave as a piece, last in first out, since
 * what came last is most likely still in a cache. What is left at the end leaves as smaller pieces, in the
 * order in which the sets began. Memory is a threshold, and one item more, for each set.
 */

import { assert } from '../base/index.ts';

export interface AccumulatedPiece<Item> {
  readonly set: string;
  /** Last in first out. */
  readonly items: readonly Item[];
}

/** What one item counts. */
export interface ItemSize {
  readonly bytes: number;
  readonly tracks: number;
}

/** A piece leaves when it has reached either. */
export interface PieceThreshold {
  readonly bytes: number;
  readonly tracks?: number;
}

interface Gathering<Item> {
  items: Item[];
  bytes: number;
  tracks: number;
}

export class Accumulator<Item> {
  readonly #threshold: PieceThreshold;
  readonly #gathering = new Map<string, Gathering<Item>>();

  constructor(threshold: PieceThreshold) {
    assert(threshold.bytes > 0 && (threshold.tracks ?? 1) > 0, 'A threshold is positive');
    this.#threshold = threshold;
  }

  /** @returns the piece that the item has made full, if it has. */
  add(set: string, item: Item, size: ItemSize): AccumulatedPiece<Item> | undefined {
    const gathering = this.#gathering.get(set) ?? { items: [], bytes: 0, tracks: 0 };
    this.#gathering.set(set, gathering);
    gathering.items.push(item);
    gathering.bytes += size.bytes;
    gathering.tracks += size.tracks;
    const { bytes, tracks = Number.POSITIVE_INFINITY } = this.#threshold;
    if (gathering.bytes < bytes && gathering.tracks < tracks) return undefined;
    return this.#take(set, gathering);
  }

  /** What is left, set by set. */
  *drain(): Generator<AccumulatedPiece<Item>> {
    for (const [set, gathering] of this.#gathering) {
      if (gathering.items.length > 0) yield this.#take(set, gathering);
    }
    this.#gathering.clear();
  }

  #take(set: string, gathering: Gathering<Item>): AccumulatedPiece<Item> {
    const items = gathering.items.toReversed();
    gathering.items = [];
    gathering.bytes = 0;
    gathering.tracks = 0;
    return { set, items };
  }
}
