/**
 * Randomness. Identifiers come from the operating system; simulations and tests use a seeded generator,
 * so that a failure can be run again from its printed seed. A simulation gives the identifiers a seed too
 * (`seedIds`), since the order of names decides what happens first.
 */

import { randomBytes } from 'node:crypto';

/** Gives 16 bytes. */
export type IdSource = () => Buffer;

let idBytes: IdSource = () => randomBytes(16);

/** Where the identifiers of this process come from, tests only; undefined gives them back to the system. */
export function seedIds(source: IdSource | undefined): void {
  idBytes = source ?? (() => randomBytes(16));
}

/** 128 random bits as 32 hexadecimal digits: volume ids and points. */
export function randomId(): string {
  return idBytes().toString('hex');
}

const CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/**
 * A ULID: 48 bits of time and 80 random bits, 26 characters, sorting by time of creation.
 * Ids made in the same millisecond do not sort; lineage never relies on the order (DESIGN section 5).
 */
export function makeUlid(nowMs: number): string {
  let time = '';
  for (let rest = nowMs, digit = 0; digit < 10; digit += 1) {
    time = (CROCKFORD[rest % 32] ?? '') + time;
    rest = Math.floor(rest / 32);
  }
  let random = '';
  for (const byte of idBytes()) random += CROCKFORD[byte % 32] ?? '';
  return time + random;
}

/** A seeded generator (mulberry32): small, fast, the same sequence everywhere. Not for secrets. */
export class SeededRandom {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A number in [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  }

  /** A whole number in [0, bound). */
  below(bound: number): number {
    return Math.floor(this.next() * bound);
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new RangeError('Cannot pick from an empty list');
    return item;
  }
}
