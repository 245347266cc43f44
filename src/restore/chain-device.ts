/**
 * A volume as it was at a set's point, as a block device that can only be read.
 *
 *     read -> track -> frame of the chain -> cache -> unpack, check -> bytes
 *
 * Nothing is copied beforehand: where a track lies is looked up when it is read. What is looked up is a window of the
 * volume at once, since neighbours mostly lie together: the frames that hold its tracks. A frame is unpacked once for
 * all its readers, and kept for a while (`frame-cache.ts`). Behind a stream that reads on and on, the frames ahead are
 * read before they are asked for.
 *
 * Who reads everything should read in the order in which it is stored, which `order` gives: the frames of that order
 * are known then, with all of their tracks, wherever in the volume those are.
 *
 * Every track is checked against its hash by the source before it is here (promise 7 of the design). Damage is an
 * error of those reads that need the damaged track, and of no other.
 *
 * What it does not do: it does not close the source, and does not retry.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  allFinished,
  assert,
  AssertionError,
  CorruptionError,
  LIMITS,
  type MaybePromise,
  MIB,
} from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
} from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { Frame, FrameCache, type FrameContent } from './frame-cache.ts';
import type { ReadPlanEntry, RestoreSource } from './restore-source.ts';

/** Of the volume, whose places are looked up together: a few frames, so that one read by itself is soon there. */
const WINDOW_BYTES = 8 * MIB;
/** Windows whose places are known, 8 bytes a track: more than the cache's frames are in, mostly. */
const WINDOW_COUNT_MAX = 256;
/** Streams that are told apart. */
const STREAM_COUNT_MAX = 8;
/** Tracks whose order is worked out in one go: some 50 ms, in which nobody is answered. */
const ORDER_TRACKS = 2 ** 16;
/** Frames of one batch of the order. */
const BATCH_FRAMES = 64;
/** Batches of which the places are known: the one that is read and the one that was asked for ahead, of two readers. */
const BATCH_COUNT_MAX = 4;
/** Frames that are read ahead in the order. */
const ORDER_AHEAD_FRAMES = 6;

export interface ChainDeviceOptions {
  /** For messages: `set 01K3 of store /backup`. */
  readonly description: string;
  /** Unpacked frames that are kept; `LIMITS.chainCacheBytesMax` where left out. */
  readonly cacheBytesMax?: number;
  /** What is read ahead of a stream; `LIMITS.chainReadAheadBytes` where left out. */
  readonly readAheadBytes?: number;
}

interface Piece {
  readonly track: number;
  readonly inTrack: number;
  readonly target: Buffer;
}

/** Reads that follow each other. */
interface Stream {
  endBytes: number;
  /** The first track that was not read ahead. */
  aheadTrack: number;
}

export class ChainDevice<Entry extends ReadPlanEntry> implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes = LIMITS.blockSizeBytesMin;
  readonly capabilities: DeviceCapabilities = { readOnly: true, trim: false, extents: true };
  readonly description: string;
  readonly #source: RestoreSource<Entry>;
  readonly #trackSizeBytes: number;
  readonly #trackCount: number;
  readonly #tracks: TrackSet;
  readonly #readAheadBytes: number;
  readonly #cache: FrameCache<Entry>;
  /** The frames of each window's tracks, by its number, in the order of their last use. */
  readonly #windows = new Map<number, readonly (Frame<Entry> | undefined)[]>();
  /** The frames of the last batches of an order. */
  readonly #batches: ReadonlyMap<number, Frame<Entry>>[] = [];
  readonly #streams: Stream[] = [];

  /** @param source stays the caller's, and must stay open; its `readPlan` must not begin to read. */
  constructor(source: RestoreSource<Entry>, options: ChainDeviceOptions) {
    const { cacheBytesMax = LIMITS.chainCacheBytesMax, readAheadBytes = LIMITS.chainReadAheadBytes } =
      options;
    this.sizeBytes = source.sizeBytes;
    this.description = options.description;
    this.#source = source;
    this.#trackSizeBytes = source.trackSizeBytes;
    this.#trackCount = Math.ceil(source.sizeBytes / source.trackSizeBytes);
    this.#tracks = source.tracks();
    this.#readAheadBytes = Math.min(readAheadBytes, cacheBytesMax / 2);
    this.#cache = new FrameCache({
      read: (entry) => source.readFrame(entry),
      bytesMax: cacheBytesMax,
      loadCountMax: LIMITS.chainLoadCountMax,
    });
    assert(this.sizeBytes % this.blockSizeBytes === 0, `Volume size ${this.sizeBytes} is no whole blocks`);
  }

  /** Unpacked frames that are kept now, in bytes. */
  get cachedBytes(): number {
    return this.#cache.keptBytes;
  }

  /**
   * The tracks that are not known to be zero; a copy.
   */
  tracks(): TrackSet {
    return this.#tracks.clone();
  }

  /** @throws {CorruptionError} where a track of the range is damaged; what the source throws. */
  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    const waiting: Promise<void>[] = [];
    let isOrdered = false;
    for (const piece of this.#pieces(target, offsetBytes)) {
      if (!this.#tracks.has(piece.track)) {
        piece.target.fill(0);
        continue;
      }
      let frame: Frame<Entry>;
      try {
        frame = this.#frameOf(piece.track);
      } catch (error) {
        // Other pieces are being filled: the read may not end before them.
        waiting.push(Promise.reject(error));
        continue;
      }
      isOrdered ||= frame.isOrdered;
      const content = this.#cache.get(frame);
      if (content instanceof Promise) waiting.push(this.#fillLater(piece, frame, content));
      else fill(piece, content);
      this.#goOn(frame);
    }
    if (!isOrdered) this.#readAhead(offsetBytes, offsetBytes + target.length);
    if (waiting.length === 0) return undefined;
    return allFinished(waiting).then(() => undefined);
  }

  /** Without reading: what no set of the chain has is a hole. */
  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const size = this.#trackSizeBytes;
    const endBytes = offsetBytes + lengthBytes;
    const first = Math.floor(offsetBytes / size);
    const inRange = TrackSet.ofRun({ first, count: Math.ceil(endBytes / size) - first });
    const extents: DeviceExtent[] = [];
    let atBytes = offsetBytes;
    const push = (toBytes: number, isHole: boolean): void => {
      const length = toBytes - atBytes;
      if (length > 0) extents.push({ offsetBytes: atBytes, lengthBytes: length, hole: isHole, zero: isHole });
      atBytes = Math.max(atBytes, toBytes);
    };
    for (const run of inRange.intersection(this.#tracks).runs()) {
      push(run.first * size, true);
      push(Math.min((run.first + run.count) * size, endBytes), false);
    }
    push(endBytes, true);
    return Promise.resolve(extents);
  }

  /**
   * Runs of the given tracks in the order in which they are stored, each track with content once, the tracks of a frame
   * together. Read through this device in that order, at most a batch ahead, each frame is unpacked once; but for those
   * whose tracks lie 2^16 tracks apart. Tracks of zeroes are left out.
   */
  async *order(tracks: TrackSet): AsyncGenerator<readonly TrackRun[], void, undefined> {
    let last: Frame<Entry> | undefined;
    for (const part of slicesOf(tracks.intersection(this.#tracks), this.#trackCount)) {
      await nextTurn();
      let batch = new Map<number, Frame<Entry>>();
      let frameCount = 0;
      let runs: TrackRun[] = [];
      for (const entry of this.#source.readPlan(part)) {
        const frame = new Frame(entry, true);
        if (last !== undefined) last.next = frame;
        last = frame;
        for (const track of entry.tracks) batch.set(track, frame);
        runs.push(...runsOf(entry.tracks));
        frameCount += 1;
        if (frameCount < BATCH_FRAMES) continue;
        this.#know(batch);
        yield runs;
        [batch, runs, frameCount] = [new Map(), [], 0];
      }
      if (runs.length === 0) continue;
      this.#know(batch);
      yield runs;
    }
  }

  write(): never {
    throw new AssertionError(`${this.description} is read-only`);
  }

  writeZeroes(): never {
    throw new AssertionError(`${this.description} is read-only`);
  }

  trim(): never {
    throw new AssertionError(`${this.description} is read-only`);
  }

  /** There is nothing that could be lost. */
  flush(): Promise<void> {
    return Promise.resolve();
  }

  /** The source stays open. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  *#pieces(target: Buffer, offsetBytes: number): Generator<Piece> {
    for (let at = 0; at < target.length;) {
      const inTrack = (offsetBytes + at) % this.#trackSizeBytes;
      const length = Math.min(this.#trackSizeBytes - inTrack, target.length - at);
      const track = (offsetBytes + at - inTrack) / this.#trackSizeBytes;
      yield { track, inTrack, target: target.subarray(at, at + length) };
      at += length;
    }
  }

  async #fillLater(piece: Piece, frame: Frame<Entry>, loading: Promise<FrameContent>): Promise<void> {
    let content: FrameContent;
    try {
      content = await loading;
    } catch (error) {
      if (!(error instanceof CorruptionError) || frame.entry.tracks.length === 1) throw error;
      // Which of its tracks are damaged is of no account to those who read the others.
      content = await this.#readAlone(piece.track);
    }
    fill(piece, content);
  }

  async #readAlone(track: number): Promise<FrameContent> {
    const content = new Map<number, Buffer | undefined>();
    for (const entry of this.#source.readPlan(TrackSet.of([track]))) {
      for (const read of await this.#cache.readAlone(entry)) content.set(read.track, read.content);
    }
    return content;
  }

  #frameOf(track: number): Frame<Entry> {
    for (const batch of this.#batches) {
      const frame = batch.get(track);
      if (frame !== undefined) return frame;
    }
    const windowTracks = Math.max(1, WINDOW_BYTES / this.#trackSizeBytes);
    const number = Math.floor(track / windowTracks);
    const first = number * windowTracks;
    const window = this.#windows.get(number) ?? this.#lookUp(first, windowTracks);
    this.#windows.delete(number);
    this.#windows.set(number, window);
    for (const oldest of this.#windows.keys()) {
      if (this.#windows.size <= WINDOW_COUNT_MAX) break;
      this.#windows.delete(oldest);
    }
    const frame = window[track - first];
    if (frame !== undefined) return frame;
    throw new CorruptionError(`Track ${track} of ${this.description} is nowhere`, {
      where: this.description,
      tracks: [track],
    });
  }

  #lookUp(first: number, count: number): readonly (Frame<Entry> | undefined)[] {
    const window: (Frame<Entry> | undefined)[] = Array.from({ length: count }, () => undefined);
    const wanted = TrackSet.ofRun({ first, count }).intersection(this.#tracks);
    for (const entry of this.#source.readPlan(wanted)) {
      const frame = new Frame(entry, false);
      for (const track of entry.tracks) window[track - first] = frame;
    }
    return window;
  }

  #know(batch: ReadonlyMap<number, Frame<Entry>>): void {
    this.#batches.unshift(batch);
    this.#batches.length = Math.min(this.#batches.length, BATCH_COUNT_MAX);
  }

  /** Begins with what follows in the order, as far as that is known. */
  #goOn(frame: Frame<Entry>): void {
    let next = frame.next;
    for (let count = 0; next !== undefined && count < ORDER_AHEAD_FRAMES; count += 1) {
      this.#cache.begin(next);
      next = next.next;
    }
  }

  /** Where the read goes on with what was read before, begins with what is read after it. */
  #readAhead(fromBytes: number, toBytes: number): void {
    const ahead = this.#readAheadBytes;
    // Requests of one stream overtake each other a little.
    const stream = this.#streams.find(
      ({ endBytes }) => fromBytes >= endBytes - ahead && fromBytes <= endBytes + ahead / 4,
    );
    const size = this.#trackSizeBytes;
    if (stream === undefined) {
      this.#streams.unshift({ endBytes: toBytes, aheadTrack: 0 });
      this.#streams.length = Math.min(this.#streams.length, STREAM_COUNT_MAX);
      return;
    }
    if (toBytes <= stream.endBytes) return;
    stream.endBytes = toBytes;
    const end = Math.min(Math.ceil((toBytes + ahead) / size), this.#trackCount);
    const first = Math.max(stream.aheadTrack, Math.ceil(toBytes / size));
    stream.aheadTrack = Math.max(first, end);
    try {
      for (let track = first; track < end; track += 1) {
        if (this.#tracks.has(track)) this.#cache.begin(this.#frameOf(track));
      }
    } catch (error) {
      // Damage to where things lie is met by who reads them.
      if (!(error instanceof CorruptionError)) throw error;
    }
  }
}

function fill({ track, inTrack, target }: Piece, content: FrameContent): void {
  const bytes = content.get(track);
  if (bytes === undefined) {
    assert(content.has(track), `Track ${track} is not in the frame that was read for it`);
    target.fill(0);
    return;
  }
  assert(inTrack + target.length <= bytes.length, `Track ${track} has ${bytes.length} bytes only`);
  bytes.copy(target, 0, inTrack, inTrack + target.length);
}

/** Parts of a set, ascending, each of a bounded range of tracks. */
function* slicesOf(tracks: TrackSet, trackCount: number): Generator<TrackSet> {
  for (let first = 0; first < trackCount; first += ORDER_TRACKS) {
    const count = Math.min(ORDER_TRACKS, trackCount - first);
    const part = tracks.intersection(TrackSet.ofRun({ first, count }));
    if (!part.isEmpty) yield part;
  }
}

/** Tracks in their order as runs; only neighbours that follow each other are one. */
function runsOf(tracks: readonly number[]): TrackRun[] {
  const runs: { first: number; count: number }[] = [];
  for (const track of tracks) {
    const last = runs.at(-1);
    if (last !== undefined && track === last.first + last.count) last.count += 1;
    else runs.push({ first: track, count: 1 });
  }
  return runs;
}
