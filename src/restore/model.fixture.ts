/**
 * Tests only: a source and a target whose bytes are plain arrays.
 *
 * The source stores its tracks in any order, several to a frame, and checks nothing but what a test tells it
 * to find damaged. The target finishes its calls at once, or later in an order drawn from a seed, keeps a
 * log, and fails where it is told to.
 */

import { CorruptionError, type MaybePromise, SeededRandom } from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
} from '../device/index.ts';
import { digest } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { RestoredTrack, RestoreSource } from './restore-source.ts';

export interface ModelEntry {
  readonly tracks: readonly number[];
  readonly set?: string;
}

export interface ModelSourceOptions {
  /** The set that the frames are in. */
  readonly set?: string;
  /** Tracks that are lost, whatever their content. */
  readonly lost?: readonly number[];
  /** The source has no hashes, and is read once. */
  readonly isReadOnce?: boolean;
}

export class ModelSource implements RestoreSource<ModelEntry> {
  readonly content: Buffer;
  readonly trackSizeBytes: number;
  /** Track numbers in the order in which they are stored, non-zero ones; several to a frame. */
  readonly frames: readonly (readonly number[])[];
  readonly damaged = new Set<number>();
  readonly reads: number[] = [];
  readonly hashOf?: (track: number) => Buffer | undefined;
  readonly #lost: TrackSet;
  readonly #set: string | undefined;

  constructor(
    content: Buffer,
    trackSizeBytes: number,
    frames?: readonly (readonly number[])[],
    options: ModelSourceOptions = {},
  ) {
    this.content = content;
    this.trackSizeBytes = trackSizeBytes;
    this.#lost = TrackSet.of(options.lost ?? []);
    this.#set = options.set;
    if (options.isReadOnce !== true) this.hashOf = (track) => digest(this.trackContent(track));
    this.frames = frames ?? [this.tracks().toArray()];
  }

  get sizeBytes(): number {
    return this.content.length;
  }

  tracks(): TrackSet {
    const set = TrackSet.empty();
    for (let track = 0; track * this.trackSizeBytes < this.sizeBytes; track += 1) {
      if (this.trackContent(track).some((byte) => byte !== 0)) set.add(track);
    }
    return set.difference(this.#lost);
  }

  lost(): TrackSet {
    return this.#lost.clone();
  }

  *readPlan(tracks: TrackSet): Generator<ModelEntry> {
    for (const frame of this.frames) {
      const wanted = frame.filter((track) => tracks.has(track));
      if (wanted.length > 0) yield { tracks: wanted, ...(this.#set === undefined ? {} : { set: this.#set }) };
    }
  }

  readFrame(entry: ModelEntry): RestoredTrack[] {
    return entry.tracks.map((track) => {
      this.reads.push(track);
      if (this.damaged.has(track)) {
        throw new CorruptionError(`Track ${track} of the model is damaged`, {
          where: 'model',
          tracks: [track],
        });
      }
      return { track, content: Buffer.from(this.trackContent(track)) };
    });
  }

  /** Whoever gives content back too early writes this. */
  recycle(read: readonly RestoredTrack[]): void {
    for (const { content } of read) content?.fill(0xee);
  }

  trackContent(track: number): Buffer {
    return this.content.subarray(track * this.trackSizeBytes, (track + 1) * this.trackSizeBytes);
  }
}

export interface ModelTargetOptions {
  readonly blockSizeBytes?: number;
  readonly readOnly?: boolean;
  /** Calls finish later, in an order drawn from this seed; at once when absent. */
  readonly seed?: number;
  /** Called before each write; a throw makes it fail. */
  readonly beforeWrite?: (offsetBytes: number) => void;
}

export class ModelTarget implements BlockDevice {
  readonly bytes: Buffer;
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly log: string[] = [];
  inFlightMax = 0;
  closed = false;
  /** Whether everything written has been flushed since. */
  flushed = true;
  #inFlight = 0;
  readonly #random: SeededRandom | undefined;
  readonly #beforeWrite: ((offsetBytes: number) => void) | undefined;

  constructor(bytes: Buffer, options: ModelTargetOptions = {}) {
    this.bytes = bytes;
    this.blockSizeBytes = options.blockSizeBytes ?? 512;
    this.capabilities = { readOnly: options.readOnly ?? false, trim: false, extents: false };
    this.description = `model of ${bytes.length} bytes`;
    this.#random = options.seed === undefined ? undefined : new SeededRandom(options.seed);
    this.#beforeWrite = options.beforeWrite;
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  read(target: Buffer, offsetBytes: number): void {
    assertRange(this, offsetBytes, target.length);
    this.bytes.copy(target, 0, offsetBytes);
  }

  write(source: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, source.length);
    this.log.push(`write ${offsetBytes}+${source.length}`);
    this.#beforeWrite?.(offsetBytes);
    return this.#later(() => {
      source.copy(this.bytes, offsetBytes);
    });
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, lengthBytes);
    this.log.push(`zero ${offsetBytes}+${lengthBytes}`);
    return this.#later(() => {
      this.bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
    });
  }

  trim(): never {
    throw new Error('A restore does not trim');
  }

  async flush(): Promise<void> {
    this.log.push('flush');
    this.flushed = this.#inFlight === 0;
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<DeviceExtent[]> {
    return [{ offsetBytes, lengthBytes, hole: false, zero: false }];
  }

  async close(): Promise<void> {
    this.closed = true;
  }

  #later(apply: () => void): MaybePromise<void> {
    this.flushed = false;
    const random = this.#random;
    if (random === undefined) return apply();
    this.#inFlight += 1;
    this.inFlightMax = Math.max(this.inFlightMax, this.#inFlight);
    return this.#turns(random.below(4), apply);
  }

  async #turns(count: number, apply: () => void): Promise<void> {
    for (let turn = 0; turn <= count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    apply();
    this.#inFlight -= 1;
  }
}
