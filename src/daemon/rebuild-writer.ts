/** Writes the home of a rebuild: what the old one does not have, checked before it is written. */

import type { ChainPlanEntry, ChainView } from '../blockset/index.ts';
import type { BlockDevice } from '../device/index.ts';
import type { LoggedSource } from '../restore/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { Geometry } from '../volume/index.ts';
import { readSure } from './rebuild-blueprint.ts';

export interface RebuildWriterOptions {
  readonly geometry: Geometry;
  readonly target: BlockDevice;
  readonly source: LoggedSource<ChainPlanEntry>;
  /** The target is zeroes throughout. */
  readonly isBlank: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly bytesDone: number; readonly bytesTotal: number }) => void;
}

export class RebuildWriter {
  readonly #options: RebuildWriterOptions;
  #bytesWritten = 0;
  #bytesTotal = 0;

  constructor(options: RebuildWriterOptions) {
    this.#options = options;
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  /**
   * Writes every track; not durable before a flush.
   *
   * @param sure tracks that the old home holds.
   * @param old where they are copied from; they are there already where left out.
   */
  async write(
    sure: TrackSet,
    old: { readonly device: BlockDevice | undefined; readonly chain: ChainView | undefined } | undefined,
  ): Promise<void> {
    const { geometry, source, isBlank } = this.#options;
    const all = TrackSet.all(geometry.trackCount);
    const content = source.tracks().intersection(all);
    const rest = content.difference(sure);
    this.#bytesTotal = (old === undefined ? rest : content).size * geometry.trackSizeBytes;
    if (!isBlank) await this.#zero(all.difference(content));
    if (old !== undefined) rest.addAll(await this.#copy(sure, old));
    for (const entry of source.readPlan(rest)) {
      for (const { track, content: bytes } of await source.readFrame(entry)) {
        if (bytes === undefined) await this.#zero(TrackSet.of([track]));
        else await this.#put(track, bytes);
      }
    }
  }

  /** @returns the tracks that are not any more what they were a moment ago. */
  async #copy(
    sure: TrackSet,
    { device, chain }: { readonly device: BlockDevice | undefined; readonly chain: ChainView | undefined },
  ): Promise<TrackSet> {
    const failed = TrackSet.empty();
    for (const track of sure) {
      const content = device && chain && (await readSure(device, chain, track));
      if (content === undefined) failed.add(track);
      else await this.#put(track, content);
    }
    return failed;
  }

  /** @param content of a smaller volume's last track it may be a part: the rest is zeroes. */
  async #put(track: number, content: Buffer): Promise<void> {
    const { geometry, target, signal, onProgress } = this.#options;
    signal?.throwIfAborted();
    const lengthBytes = geometry.lengthOf({ first: track, count: 1 });
    const bytes = content.length < lengthBytes ? Buffer.concat([content], lengthBytes) : content;
    await target.write(bytes.subarray(0, lengthBytes), geometry.offsetOf(track));
    this.#bytesWritten += lengthBytes;
    onProgress?.({ bytesDone: Math.min(this.#bytesWritten, this.#bytesTotal), bytesTotal: this.#bytesTotal });
  }

  async #zero(tracks: TrackSet): Promise<void> {
    const { geometry, target, signal } = this.#options;
    for (const run of tracks.runs(ZERO_TRACKS)) {
      signal?.throwIfAborted();
      await target.writeZeroes(geometry.offsetOf(run.first), geometry.lengthOf(run), { mayTrim: true });
    }
  }
}

/** Zeroed in one go, so that a cancellation is not held up. */
const ZERO_TRACKS = 512;
