/**
 * A device that is used while it is being filled: from its _source_, track by track, in whatever order its users and the
 * fill ask for them (seeds/4, Fig. 2-3).
 *
 *     read, change of a part    the missing tracks are brought in from the source first
 *     change of a whole track   needs nothing of the source, and makes the track current
 *     fill, a medium            brings in what is missing, and passes over what is current
 *
 * So what was written here is never replaced by what the source holds. A track is _missing_, _busy_ (being brought in
 * or written as a whole) or _current_; it is busy for one at a time, and others wait. Once current it stays so.
 *
 * Which tracks are current is the overwrite map. In memory it says what is there; saved it must only say what is durable.
 * So a flush copies the pieces of the map that have changed, flushes the device, and saves the copy. Flushes never
 * overlap: an older copy must not replace a newer one, or a crash would bring in old content over a write that was
 * flushed.
 *
 * It is neither tracked nor protected what is brought in: the content is what the source's point holds, and so does
 * every later point until somebody writes.
 */

import { assert, type Deferred, deferred, LIMITS, type MaybePromise } from '../base/index.ts';
import {
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  SharedFlush,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';
import type { Geometry } from './geometry.ts';
import { mapPieceOf, type MapPieces, tracksOfMapPiece } from './recovery-state.ts';
import { isZero } from './snapshot-store.ts';

export interface FillingDeviceOptions {
  /** What is filled; the volume's content begins at its first byte. */
  readonly device: BlockDevice;
  readonly geometry: Geometry;
  readonly source: Pick<BlockDevice, 'read'>;
  /** The tracks that are not there yet. */
  readonly missing: TrackSet;
  /** Flushed beside the device, before the map is saved. */
  readonly flushBeside?: () => Promise<void>;
  /** Saves pieces of the overwrite map, durably; what they say is durable in the device. Calls do not overlap. */
  readonly saveMap: (pieces: MapPieces) => Promise<void>;
  /** Writing what was brought in failed. */
  readonly onDeviceFailed: (error: unknown) => void;
  /** Whether the device may be written; while it may not, or has no room, what is missing is read past it. */
  readonly mayWrite: () => boolean;
  /** Whether a missing track may come from elsewhere than the source; any may where left out. */
  readonly mayOffer?: (track: number) => boolean;
}

export class FillingDevice implements BlockDevice {
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly blockSizeBytes: number;
  readonly #options: FillingDeviceOptions;
  readonly #missing: TrackBits;
  /** What a busy track is waited for with. */
  readonly #busy = new Map<number, Promise<void>>();
  /** Pieces of the map that were not saved as they are. */
  readonly #unsaved = new Set<number>();
  readonly #flushes = new SharedFlush(() => this.#flush());
  /** Failures of the device to take what was brought in. */
  readonly #unstored = new ErrorSet();
  #askedCount = 0;
  #unasked: Deferred | undefined;

  constructor(options: FillingDeviceOptions) {
    const { device, geometry, missing } = options;
    this.#options = options;
    this.#missing = TrackBits.from(missing, geometry.trackCount);
    this.description = device.description;
    this.blockSizeBytes = device.blockSizeBytes;
    // A part that has to be brought in first is not fast.
    this.capabilities = { ...device.capabilities, fastZero: false };
  }

  get sizeBytes(): number {
    return this.#options.device.sizeBytes;
  }

  /** How many tracks are not current. */
  get missingCount(): number {
    return this.#missing.size;
  }

  /** Users that wait for a track of the source at this moment; the fill is none. */
  get askedCount(): number {
    return this.#askedCount;
  }

  missing(): TrackSet {
    return this.#missing.toTrackSet();
  }

  missingIn(run: TrackRun): TrackSet {
    return this.#missing.tracksIn(run);
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    const { device, geometry } = this.#options;
    const run = geometry.tracksOf(offsetBytes, target.length);
    if (this.#missing.firstIn(run) === undefined) return device.read(target, offsetBytes);
    if (!this.#options.mayWrite()) return this.#readPast(target, offsetBytes);
    return this.#asked(async () => {
      try {
        await this.bringIn(run);
      } catch (error) {
        // The content is there all the same.
        if (!this.#unstored.has(error)) throw error;
        return this.#readPast(target, offsetBytes);
      }
      return device.read(target, offsetBytes);
    });
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    const { device } = this.#options;
    return this.#change(offsetBytes, source.length, () => device.write(source, offsetBytes, options));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    const { device } = this.#options;
    return this.#change(offsetBytes, lengthBytes, () =>
      device.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    const { device } = this.#options;
    return this.#change(offsetBytes, lengthBytes, () => device.trim(offsetBytes, lengthBytes, options));
  }

  /** As the header says. After one that failed, none succeeds any more. */
  flush(): Promise<void> {
    return this.#flushes.flush();
  }

  /** A track that is not there yet is data, whatever the device has in its place. */
  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    const { device, geometry } = this.#options;
    const missing = this.#missing.tracksIn(geometry.tracksOf(offsetBytes, lengthBytes));
    const found = await device.extents(offsetBytes, lengthBytes);
    if (missing.isEmpty) return found;
    const endBytes = offsetBytes + lengthBytes;
    const said: DeviceExtent[] = [];
    let at = offsetBytes;
    for (const run of missing.runs()) {
      const from = Math.max(offsetBytes, geometry.offsetOf(run.first));
      const to = Math.min(endBytes, geometry.offsetOf(run.first) + geometry.lengthOf(run));
      said.push(...within(found, at, from));
      said.push({ offsetBytes: from, lengthBytes: to - from, hole: false, zero: false });
      at = to;
    }
    said.push(...within(found, at, endBytes));
    return said;
  }

  /** Whether a change of the range has nothing to wait for in the source. */
  isReadyFor(offsetBytes: number, lengthBytes: number): boolean {
    const run = this.#options.geometry.tracksOf(offsetBytes, lengthBytes);
    if (this.#missing.firstIn(run) === undefined) return true;
    if (this.#partsOf(offsetBytes, lengthBytes).some((track) => this.#missing.has(track))) return false;
    return this.#firstBusyIn(run) === undefined;
  }

  /** Finishes when nothing is in the way of a change of the range; what comes meanwhile may be. */
  makeReadyFor(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#asked(() => this.#clearTheWay(offsetBytes, lengthBytes));
  }

  /**
   * Makes the tracks of a run current, those of the source that are missing.
   *
   * @throws what reading the source and writing the device throw; some may be current then.
   */
  async bringIn(run: TrackRun): Promise<void> {
    const end = run.first + run.count;
    for (let first = this.#missing.firstIn(run); first !== undefined;) {
      const busy = this.#busy.get(first);
      if (busy === undefined) await this.#fetch(this.#freeRunFrom(first, end));
      else await busy;
      first = this.#missing.firstIn({ first, count: end - first });
    }
  }

  /**
   * Takes a track's content from elsewhere than the source: a medium that has arrived.
   *
   * @param content the whole track's; undefined for one of zeroes.
   * @returns whether it was taken: it was missing, and may come from there.
   */
  async offer(track: number, content: Buffer | undefined): Promise<boolean> {
    if (this.#options.mayOffer?.(track) === false) return false;
    const run = { first: track, count: 1 };
    for (;;) {
      if (!this.#missing.has(track)) return false;
      const busy = this.#busy.get(track);
      if (busy === undefined) break;
      await busy;
    }
    await this.#whileBusy([track], () => this.#store(run, content));
    return true;
  }

  close(): Promise<void> {
    return this.#options.device.close();
  }

  /** Nobody waits for a track any more, or did when this was called. */
  async whenUnasked(): Promise<void> {
    if (this.#askedCount > 0) await (this.#unasked ??= deferred()).promise;
  }

  /** What is missing from the source, the rest from the device. */
  async #readPast(target: Buffer, offsetBytes: number): Promise<void> {
    const { device, source, geometry } = this.#options;
    const endBytes = offsetBytes + target.length;
    const missing = this.#missing.tracksIn(geometry.tracksOf(offsetBytes, target.length));
    for (let at = offsetBytes; at < endBytes;) {
      const { first } = geometry.tracksOf(at, 1);
      const to = Math.min(endBytes, geometry.offsetOf(first + 1));
      const part = target.subarray(at - offsetBytes, to - offsetBytes);
      await (missing.has(first) ? source : device).read(part, at);
      at = to;
    }
  }

  /** One that somebody waits for, who is before the fill. */
  async #asked(body: () => Promise<void>): Promise<void> {
    this.#askedCount += 1;
    try {
      await body();
    } finally {
      this.#askedCount -= 1;
      if (this.#askedCount === 0) {
        this.#unasked?.resolve();
        this.#unasked = undefined;
      }
    }
  }

  #change(offsetBytes: number, lengthBytes: number, perform: () => MaybePromise<void>): MaybePromise<void> {
    const run = this.#options.geometry.tracksOf(offsetBytes, lengthBytes);
    if (this.#missing.firstIn(run) === undefined) return perform();
    return this.#asked(async () => {
      while (!this.isReadyFor(offsetBytes, lengthBytes)) await this.#clearTheWay(offsetBytes, lengthBytes);
      // Nothing is awaited since: whoever wants one of these now waits for this change.
      const whole = this.#missing.tracksIn(run).toArray();
      await this.#whileBusy(whole, async () => {
        await perform();
        for (const track of whole) this.#arrived(track);
      });
    });
  }

  /** The tracks that a change of the range covers in part: none, the first, the last. */
  #partsOf(offsetBytes: number, lengthBytes: number): number[] {
    const { geometry } = this.#options;
    const run = geometry.tracksOf(offsetBytes, lengthBytes);
    const last = run.first + run.count - 1;
    const endBytes = Math.min(geometry.offsetOf(last) + geometry.trackSizeBytes, geometry.sizeBytes);
    const parts = geometry.offsetOf(run.first) === offsetBytes ? [] : [run.first];
    if (offsetBytes + lengthBytes < endBytes) parts.push(last);
    return parts;
  }

  async #clearTheWay(offsetBytes: number, lengthBytes: number): Promise<void> {
    for (const track of this.#partsOf(offsetBytes, lengthBytes))
      await this.bringIn({ first: track, count: 1 });
    await this.#firstBusyIn(this.#options.geometry.tracksOf(offsetBytes, lengthBytes));
  }

  #firstBusyIn(run: TrackRun): Promise<void> | undefined {
    if (this.#busy.size === 0) return undefined;
    for (let track = run.first; track < run.first + run.count; track += 1) {
      const busy = this.#busy.get(track);
      if (busy !== undefined) return busy;
    }
    return undefined;
  }

  /** The missing tracks from one that is free on, as far as they are in a row, free, and fit into one read. */
  #freeRunFrom(first: number, end: number): TrackRun {
    const { trackSizeBytes } = this.#options.geometry;
    const stop = Math.min(end, first + Math.max(1, Math.floor(LIMITS.fillRunBytesMax / trackSizeBytes)));
    let count = 1;
    while (first + count < stop && this.#missing.has(first + count) && !this.#busy.has(first + count))
      count += 1;
    return { first, count };
  }

  /** The run is missing and free. */
  async #fetch(run: TrackRun): Promise<void> {
    const { source, geometry } = this.#options;
    const tracks = Array.from({ length: run.count }, (_, index) => run.first + index);
    await this.#whileBusy(tracks, async () => {
      const content = Buffer.allocUnsafe(geometry.lengthOf(run));
      await source.read(content, geometry.offsetOf(run.first));
      await this.#store(run, content);
    });
  }

  async #whileBusy(tracks: readonly number[], body: () => Promise<void>): Promise<void> {
    const over: Deferred = deferred();
    for (const track of tracks) {
      assert(!this.#busy.has(track), `Track ${track} is busy for two at a time`);
      this.#busy.set(track, over.promise);
    }
    try {
      await body();
    } finally {
      for (const track of tracks) this.#busy.delete(track);
      over.resolve();
    }
  }

  async #store(run: TrackRun, content: Buffer | undefined): Promise<void> {
    const { device, geometry, onDeviceFailed } = this.#options;
    const offsetBytes = geometry.offsetOf(run.first);
    try {
      if (content === undefined || isZero(content))
        await device.writeZeroes(offsetBytes, geometry.lengthOf(run), { mayTrim: true });
      else await device.write(content, offsetBytes);
    } catch (error) {
      this.#unstored.add(error);
      onDeviceFailed(error);
      throw error;
    }
    for (let track = run.first; track < run.first + run.count; track += 1) this.#arrived(track);
  }

  #arrived(track: number): void {
    if (this.#missing.delete(track)) this.#unsaved.add(mapPieceOf(track));
  }

  async #flush(): Promise<void> {
    const { device, geometry, flushBeside, saveMap } = this.#options;
    const pieces = new Map<number, TrackSet>();
    for (const piece of this.#unsaved) {
      const run = tracksOfMapPiece(piece, geometry.trackCount);
      pieces.set(piece, TrackSet.ofRun(run).difference(this.#missing.tracksIn(run)));
    }
    this.#unsaved.clear();
    await Promise.all([device.flush(), flushBeside?.()]);
    await saveMap(pieces);
  }
}

/** Keeps none of them from being forgotten. */
class ErrorSet {
  readonly #errors = new WeakSet();

  add(error: unknown): void {
    if (error instanceof Error) this.#errors.add(error);
  }

  has(error: unknown): boolean {
    return error instanceof Error && this.#errors.has(error);
  }
}

/** The extents of a range, cut out of those of a larger one. */
function within(extents: readonly DeviceExtent[], from: number, to: number): DeviceExtent[] {
  return extents.flatMap((extent) => {
    const start = Math.max(from, extent.offsetBytes);
    const end = Math.min(to, extent.offsetBytes + extent.lengthBytes);
    return start < end ? [{ ...extent, offsetBytes: start, lengthBytes: end - start }] : [];
  });
}
