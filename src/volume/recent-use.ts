/**
 * Which parts of a volume were used of late: where a recovery begins, since they will be wanted first.
 *
 * The volume is cut into regions, of which there are so few that one stamp for each is a small table; noting a use is one
 * store into it, for every read and write passes here. A stamp counts uses by the thousand: it tells what was used
 * after what, and no time.
 *
 * It is advice. It is saved now and then, may be older than the volume, and nothing is wrong without it.
 */

import { LIMITS } from '../base/index.ts';

/** Uses of one stamp. */
const USES_OF_STAMP = 1024;

/** As it is kept: the regions used last, the last one first. */
export interface RecentRecord {
  readonly regionBytes: number;
  readonly regions: readonly number[];
}

export class RecentUse {
  #stamps: Uint32Array;
  #regionBytes: number;
  #stamp = 1;
  #usesLeft = USES_OF_STAMP;
  #isChanged = false;

  /** @param before what was kept, of the same volume. */
  constructor(sizeBytes: number, before?: RecentRecord) {
    this.#regionBytes = regionBytesOf(sizeBytes);
    this.#stamps = new Uint32Array(Math.ceil(sizeBytes / this.#regionBytes));
    if (before?.regionBytes !== this.#regionBytes) return;
    this.#stamp = before.regions.length + 1;
    for (const [index, region] of before.regions.entries())
      this.#stamps[region] = before.regions.length - index;
  }

  note(offsetBytes: number): void {
    // Behind the end of the table a store has no effect.
    this.#stamps[Math.floor(offsetBytes / this.#regionBytes)] = this.#stamp;
    this.#usesLeft -= 1;
    if (this.#usesLeft > 0) return;
    this.#usesLeft = USES_OF_STAMP;
    this.#stamp = Math.min(this.#stamp + 1, 2 ** 32 - 1);
    this.#isChanged = true;
  }

  /** What is to be kept; undefined where that is what was asked for last. */
  takeChanged(): RecentRecord | undefined {
    if (!this.#isChanged && this.#usesLeft === USES_OF_STAMP) return undefined;
    this.#isChanged = false;
    this.#usesLeft = USES_OF_STAMP;
    this.#stamp += 1;
    return this.record();
  }

  /** Keeps it, durably, where it has changed. */
  async saveChanged(state: { saveRecent(recent: RecentRecord): Promise<void> }): Promise<void> {
    const recent = this.takeChanged();
    if (recent !== undefined) await state.saveRecent(recent);
  }

  record(): RecentRecord {
    const used: number[] = [];
    for (const [region, stamp] of this.#stamps.entries()) if (stamp > 0) used.push(region);
    const stampOf = (region: number): number => this.#stamps[region] ?? 0;
    used.sort((a, b) => stampOf(b) - stampOf(a) || a - b);
    return { regionBytes: this.#regionBytes, regions: used.slice(0, LIMITS.recentRegionCountMax) };
  }

  /** The volume has another size now; what is new was not used. */
  grow(sizeBytes: number): void {
    const regionBytes = regionBytesOf(sizeBytes);
    const stamps = new Uint32Array(Math.ceil(sizeBytes / regionBytes));
    for (const [region, stamp] of this.#stamps.entries()) {
      const at = Math.floor((region * this.#regionBytes) / regionBytes);
      stamps[at] = Math.max(stamps[at] ?? 0, stamp);
    }
    this.#stamps = stamps;
    this.#regionBytes = regionBytes;
  }
}

/** The ranges of bytes that a record names, below the end of a volume. */
export function recentRanges(
  { regionBytes, regions }: RecentRecord,
  sizeBytes: number,
): { readonly offsetBytes: number; readonly lengthBytes: number }[] {
  return regions
    .map((region) => region * regionBytes)
    .filter((offsetBytes) => offsetBytes < sizeBytes)
    .map((offsetBytes) => ({ offsetBytes, lengthBytes: Math.min(regionBytes, sizeBytes - offsetBytes) }));
}

function regionBytesOf(sizeBytes: number): number {
  let regionBytes: number = LIMITS.recentRegionBytesMin;
  while (sizeBytes / regionBytes > LIMITS.recentStampCountMax) regionBytes *= 2;
  return regionBytes;
}
