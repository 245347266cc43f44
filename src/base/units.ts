/**
 * Sizes as people write them, and the small types that keep one number from being taken for another.
 *
 * Sizes are bytes or take K, M, G, T: powers of 1024, as everywhere in Cowbell's command line.
 */

/** What a call may do: finish at once and return the value, or return a promise of it. */
export type MaybePromise<T> = T | Promise<T>;

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

const FACTORS: Readonly<Record<string, number>> = { '': 1, K: KIB, M: MIB, G: GIB, T: 1024 * GIB };

/**
 * Parses `64K`, `1.5G`, `4096`.
 *
 * @returns whole bytes, or undefined where the text is no size, is not a whole number of bytes or is
 *   beyond the safe integers.
 */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)([KMGT]?)(?:iB|B)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const bytes = Number(match[1]) * (FACTORS[(match[2] ?? '').toUpperCase()] ?? Number.NaN);
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Formats bytes for people: `64 KiB`, `1.5 GiB`, `4096 B` only below one KiB multiple. */
export function formatSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let index = 0;
  while (value >= 1024 && index < units.length - 1) {
    value /= 1024;
    index += 1;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[index]}`;
}

export function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}

/** `value` rounded up to a multiple of `step`. */
export function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}
