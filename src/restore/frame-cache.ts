/**
 * Frames that were read and unpacked, kept up to a number of bytes: the one used longest ago goes first.
 *
 * Whoever asks for a frame that is on its way waits for the same reading of it. Few are on their way at once; the
 * others wait here, so that memory is bounded by what is kept, those few, and what is still being copied out.
 *
 * Damage is not kept: whoever asks again has it read again, and gets the same error.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { type MaybePromise, Slots } from '../base/index.ts';
import type { ReadPlanEntry, RestoredTrack } from './restore-source.ts';

/** The bytes of each track; undefined for zeroes. Nobody changes them. */
export type FrameContent = ReadonlyMap<number, Buffer | undefined>;

/** Tracks that are read in one go. The content belongs to the cache. */
export class Frame<Entry extends ReadPlanEntry> {
  readonly entry: Entry;
  /** It was planned as part of an order that somebody reads in. */
  readonly isOrdered: boolean;
  /** What is read after it, where that is known. */
  next: Frame<Entry> | undefined;
  content: FrameContent | undefined;
  loading: Promise<FrameContent> | undefined;

  constructor(entry: Entry, isOrdered: boolean) {
    this.entry = entry;
    this.isOrdered = isOrdered;
  }
}

export interface FrameCacheOptions<Entry> {
  readonly read: (entry: Entry) => MaybePromise<readonly RestoredTrack[]>;
  /** A frame that is larger is not kept. */
  readonly bytesMax: number;
  /** Frames on their way at once, at least 1. */
  readonly loadCountMax: number;
}

export class FrameCache<Entry extends ReadPlanEntry> {
  readonly #options: FrameCacheOptions<Entry>;
  readonly #slots: Slots;
  /** In the order of their last use, with their bytes. */
  readonly #kept = new Map<Frame<Entry>, number>();
  #keptBytes = 0;

  constructor(options: FrameCacheOptions<Entry>) {
    this.#options = options;
    this.#slots = new Slots(options.loadCountMax);
  }

  /** What is kept now. */
  get keptBytes(): number {
    return this.#keptBytes;
  }

  /** The frame's tracks, at once where they are there. Rejects with what reading throws. */
  get(frame: Frame<Entry>): MaybePromise<FrameContent> {
    const bytes = this.#kept.get(frame);
    if (bytes !== undefined && frame.content !== undefined) {
      this.#kept.delete(frame);
      this.#kept.set(frame, bytes);
      return frame.content;
    }
    frame.loading ??= this.#load(frame);
    return frame.loading;
  }

  /** Begins to read the frame, unless it is there or on its way. What goes wrong is met by who reads it. */
  begin(frame: Frame<Entry>): void {
    if (frame.content !== undefined || frame.loading !== undefined) return;
    frame.loading = this.#load(frame);
    frame.loading.catch(() => undefined);
  }

  /** Reads an entry past the cache, within the same bounds. */
  async readAlone(entry: Entry): Promise<readonly RestoredTrack[]> {
    return await this.#slots.run(async () => await this.#options.read(entry));
  }

  async #load(frame: Frame<Entry>): Promise<FrameContent> {
    try {
      const content = await this.#slots.run(async () => {
        // A source that reads at once would hold everything up with many frames in a row.
        await nextTurn();
        return compact(await this.#options.read(frame.entry));
      });
      this.#keep(frame, content);
      return content;
    } finally {
      frame.loading = undefined;
    }
  }

  #keep(frame: Frame<Entry>, content: FrameContent): void {
    let bytes = 0;
    for (const part of content.values()) bytes += part?.length ?? 0;
    if (bytes > this.#options.bytesMax) return;
    frame.content = content;
    this.#kept.set(frame, bytes);
    this.#keptBytes += bytes;
    for (const [oldest, oldestBytes] of this.#kept) {
      if (this.#keptBytes <= this.#options.bytesMax) break;
      this.#kept.delete(oldest);
      this.#keptBytes -= oldestBytes;
      oldest.content = undefined;
    }
  }
}

/** Tracks are views of the frame they were in: of a frame that is mostly of no use they are copied. */
function compact(tracks: readonly RestoredTrack[]): FrameContent {
  const behind = new Set<ArrayBufferLike>();
  let usedBytes = 0;
  let heldBytes = 0;
  for (const { content } of tracks) {
    if (content === undefined) continue;
    usedBytes += content.length;
    if (!behind.has(content.buffer)) heldBytes += content.buffer.byteLength;
    behind.add(content.buffer);
  }
  const isMostlyUsed = heldBytes <= 2 * usedBytes;
  return new Map(
    tracks.map(({ track, content }) => [
      track,
      content === undefined || isMostlyUsed ? content : Buffer.from(content),
    ]),
  );
}
