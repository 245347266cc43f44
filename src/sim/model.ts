/**
 * A model of a volume: for each sector of 512 bytes, everything that may be read there now, and everything
 * that may be there after a power cut.
 *
 * A sector's content is a number over and over, and 0 is zeroes. So content names itself, a torn sector shows,
 * and a set of numbers per sector is all that the model keeps.
 *
 *     settled     what the sector may hold once nothing is in flight; several versions where writes overlapped,
 *                 or after a trim, which may leave the sector as it was or zero it at any later time
 *     in flight   what calls that have not finished may have put there already
 *     after a cut what a power cut may leave: every version since the last flush that covered the sector
 *
 * An image is such a set of versions per sector at one instant: a freeze, or the span of a read.
 */

import { assert, LIMITS } from '../base/index.ts';

export const SECTOR_BYTES = LIMITS.blockSizeBytesMin;
const WORD_BYTES = 4;

/** One change's content for one sector. Two changes may write the same value; they stay two versions. */
export interface Version {
  readonly value: number;
}

/** Everything that a sector may hold. */
export type Possible = Set<Version>;

/** Content of consecutive sectors, one value each. */
export function contentOf(values: readonly number[]): Buffer {
  const words = new Uint32Array((values.length * SECTOR_BYTES) / WORD_BYTES);
  const wordsPerSector = SECTOR_BYTES / WORD_BYTES;
  for (const [place, value] of values.entries()) {
    words.fill(value, place * wordsPerSector, (place + 1) * wordsPerSector);
  }
  return Buffer.from(words.buffer);
}

/** The value of each sector of some content; -1 for a sector that no value gives. */
export function valuesOf(content: Buffer): number[] {
  return Array.from({ length: content.length / SECTOR_BYTES }, (_, place) => {
    const start = place * SECTOR_BYTES;
    const value = content.readUInt32LE(start);
    // A sector is one word over and over exactly where it equals itself moved by one word.
    const isWhole =
      content.compare(
        content,
        start,
        start + SECTOR_BYTES - WORD_BYTES,
        start + WORD_BYTES,
        start + SECTOR_BYTES,
      ) === 0;
    return isWhole ? value : -1;
  });
}

function holds(possible: ReadonlySet<Version>, value: number): boolean {
  for (const version of possible) if (version.value === value) return true;
  return false;
}

/** What each sector may hold, at one instant or within a span. */
export class ModelImage {
  readonly sectors: readonly Possible[];

  constructor(sectors: readonly Possible[]) {
    this.sectors = sectors;
  }

  /** What is wrong with content read from this image, from sector `first` on; undefined where nothing is. */
  mismatch(content: Buffer, first = 0): string | undefined {
    for (const [place, value] of valuesOf(content).entries()) {
      const possible = this.sectors[first + place];
      assert(possible !== undefined, `The image has no sector ${first + place}`);
      if (holds(possible, value)) continue;
      const wanted = [...possible].map((version) => version.value).join(' or ');
      return `sector ${first + place} holds ${value}, wanted ${wanted}`;
    }
    return undefined;
  }

  /** From now on it is known which of the versions it was. */
  narrow(content: Buffer): void {
    for (const [sector, value] of valuesOf(content).entries()) {
      this.sectors[sector]?.clear();
      this.sectors[sector]?.add({ value });
    }
  }
}

/** A change from its issue to its end. */
export interface ModelChange {
  readonly first: number;
  /** One for each sector. */
  readonly versions: readonly Version[];
  readonly isTrim: boolean;
  /** What the sectors may have held, settled, when it was issued: gone for good once it has finished. */
  readonly before: readonly ReadonlySet<Version>[];
  /** With FUA: everything the volume may have held since then. */
  readonly span: ModelImage | undefined;
}

export class ModelVolume {
  readonly sectorCount: number;
  readonly #settled: Possible[];
  readonly #afterCut: Possible[];
  readonly #inFlight = new Set<ModelChange>();
  readonly #spans = new Set<ModelImage>();
  #lastValue = 0;

  /** A volume of zeroes. */
  constructor(sizeBytes: number) {
    this.sectorCount = sizeBytes / SECTOR_BYTES;
    this.#settled = Array.from({ length: this.sectorCount }, () => new Set([{ value: 0 }]));
    this.#afterCut = this.#settled.map((possible) => new Set(possible));
  }

  get inFlightCount(): number {
    return this.#inFlight.size;
  }

  /** Whether a change that has not finished touches these sectors. */
  isBusy(first: number, count: number): boolean {
    for (const change of this.#inFlight) {
      if (change.first < first + count && first < change.first + change.versions.length) return true;
    }
    return false;
  }

  /** Values that were never used before. */
  newValues(count: number): number[] {
    return Array.from({ length: count }, () => {
      this.#lastValue += 1;
      return this.#lastValue;
    });
  }

  /** One of the values that a sector may hold. */
  someValue(sector: number): number {
    return [...(this.#settled[sector] ?? [])][0]?.value ?? 0;
  }

  /** A change is issued, with a value for each sector: from now on each may hold the new one. */
  begin(
    first: number,
    values: readonly number[],
    { isTrim = false, isFua = false }: { readonly isTrim?: boolean; readonly isFua?: boolean } = {},
  ): ModelChange {
    const end = first + values.length;
    const versions = values.map((value) => ({ value }));
    const before = this.#settled.slice(first, end).map((possible) => new Set(possible));
    const change: ModelChange = {
      first,
      versions,
      isTrim,
      before,
      span: isFua ? this.openSpan() : undefined,
    };
    this.#inFlight.add(change);
    for (const [place, version] of versions.entries()) {
      this.#afterCut[first + place]?.add(version);
      for (const span of this.#spans) span.sectors[first + place]?.add(version);
    }
    return change;
  }

  /** The change has finished. What was there when it was issued is gone, unless it was a trim. */
  finish(change: ModelChange): void {
    this.#end(change);
    for (const [place, version] of change.versions.entries()) {
      const sector = change.first + place;
      const settled = this.#settled[sector];
      const before = change.before[place];
      assert(settled !== undefined && before !== undefined, `The model has no sector ${sector}`);
      if (!change.isTrim) for (const old of before) settled.delete(old);
      settled.add(version);
      if (change.span === undefined || change.isTrim) continue;
      for (const old of before) this.#afterCut[sector]?.delete(old);
      this.#bound(sector, change.span.sectors[sector]);
    }
  }

  /** The change failed: each of its sectors may hold either. */
  fail(change: ModelChange): void {
    this.#end(change);
    for (const [place, version] of change.versions.entries()) {
      this.#settled[change.first + place]?.add(version);
    }
  }

  #end(change: ModelChange): void {
    this.#inFlight.delete(change);
    if (change.span !== undefined) this.closeSpan(change.span);
  }

  /** What the volume may hold at this instant. */
  snapshot(): ModelImage {
    const sectors = this.#settled.map((possible) => new Set(possible));
    for (const { first, versions } of this.#inFlight) {
      for (const [place, version] of versions.entries()) sectors[first + place]?.add(version);
    }
    return new ModelImage(sectors);
  }

  /** What may be read from now until `closeSpan`. */
  openSpan(): ModelImage {
    const span = this.snapshot();
    this.#spans.add(span);
    return span;
  }

  closeSpan(span: ModelImage): void {
    this.#spans.delete(span);
  }

  /** A flush that was issued when `span` was opened has succeeded. */
  flushed(span: ModelImage): void {
    this.closeSpan(span);
    for (let sector = 0; sector < this.sectorCount; sector += 1) this.#bound(sector, span.sectors[sector]);
  }

  /** What a power cut now may leave. */
  afterCut(): ModelImage {
    return new ModelImage(this.#afterCut.map((possible) => new Set(possible)));
  }

  /**
   * The content was read while nothing was in flight. A sector that a trim may still zero is left open.
   *
   * @param options.isFinal no trim is left over either.
   */
  observe(content: Buffer, options: { readonly isFinal: boolean }): void {
    assert(this.#inFlight.size === 0, 'The model is observed only while nothing is in flight');
    for (const [sector, value] of valuesOf(content).entries()) {
      const settled = this.#settled[sector];
      assert(settled !== undefined, `The model has no sector ${sector}`);
      const keepsZero = value !== 0 && !options.isFinal;
      for (const version of settled) {
        if (version.value !== value && !(keepsZero && version.value === 0)) settled.delete(version);
      }
      assert(settled.size > 0, `Sector ${sector} holds ${value}, which the model excludes`);
    }
  }

  /**
   * The power was cut and came back: whatever was in flight has ended, and this is what is there now.
   *
   * @returns what is wrong with it; the model takes it over in any case.
   */
  cut(content: Buffer): string | undefined {
    const problem = this.afterCut().mismatch(content);
    this.#inFlight.clear();
    this.#spans.clear();
    for (const [sector, value] of valuesOf(content).entries()) {
      this.#settled[sector] = new Set([{ value }]);
      this.#afterCut[sector] = new Set(this.#settled[sector]);
    }
    return problem;
  }

  /** Sectors of which nothing that they may hold now is what they may have held in the image. */
  differences(image: ModelImage): number[] {
    const now = this.snapshot();
    return image.sectors.flatMap((then, sector) =>
      [...then].some(({ value }) => holds(now.sectors[sector] ?? new Set(), value)) ? [] : [sector],
    );
  }

  #bound(sector: number, possible: ReadonlySet<Version> | undefined): void {
    const afterCut = this.#afterCut[sector];
    assert(afterCut !== undefined && possible !== undefined, `The model has no sector ${sector}`);
    for (const version of afterCut) if (!possible.has(version)) afterCut.delete(version);
  }
}
