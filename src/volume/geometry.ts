/**
 * How a volume's bytes fall into tracks. The last track is shorter where the size is no multiple of it.
 *
 * A volume has one object of these, which all its parts share and which `grow` changes, so that they see a new size
 * all at once. A snapshot or a session, whose size is that of its point for ever, has an object of its own.
 */

import { assert, isPowerOfTwo, LIMITS } from '../base/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';

export class Geometry {
  readonly trackSizeBytes: number;
  readonly #shift: number;
  #sizeBytes: number;
  #trackCount: number;

  /** @throws {VolumeError} `invalid-geometry` */
  constructor(sizeBytes: number, trackSizeBytes: number) {
    const { trackSizeBytesMin, trackSizeBytesMax } = LIMITS;
    if (
      !isPowerOfTwo(trackSizeBytes) ||
      trackSizeBytes < trackSizeBytesMin ||
      trackSizeBytes > trackSizeBytesMax
    ) {
      throw new VolumeError(
        'invalid-geometry',
        `Track size ${trackSizeBytes} is not a power of two from ${trackSizeBytesMin} to ${trackSizeBytesMax} bytes`,
        { value: trackSizeBytes },
      );
    }
    this.trackSizeBytes = trackSizeBytes;
    this.#shift = Math.log2(trackSizeBytes);
    this.#trackCount = this.#countFor(sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get trackCount(): number {
    return this.#trackCount;
  }

  /**
   * The volume is that large from now on.
   *
   * @param sizeBytes not less than it was.
   * @throws {VolumeError} `invalid-geometry`
   */
  grow(sizeBytes: number): void {
    assert(sizeBytes >= this.#sizeBytes, `A volume of ${this.#sizeBytes} bytes cannot have ${sizeBytes}`);
    this.#trackCount = this.#countFor(sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  #countFor(sizeBytes: number): number {
    const { blockSizeBytesMin, trackCountMax } = LIMITS;
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % blockSizeBytesMin !== 0) {
      throw new VolumeError(
        'invalid-geometry',
        `Volume size ${sizeBytes} is not a positive multiple of ${blockSizeBytesMin} bytes`,
        { value: sizeBytes },
      );
    }
    const trackCount = Math.ceil(sizeBytes / this.trackSizeBytes);
    if (trackCount > trackCountMax) {
      throw new VolumeError(
        'invalid-geometry',
        `Volume size ${sizeBytes} needs ${trackCount} tracks of ${this.trackSizeBytes} bytes, at most ${trackCountMax}`,
        { value: sizeBytes },
      );
    }
    return trackCount;
  }

  trackAt(offsetBytes: number): number {
    // A shift would truncate offsets beyond 32 bits.
    return offsetBytes < 2 ** 31
      ? offsetBytes >>> this.#shift
      : Math.floor(offsetBytes / this.trackSizeBytes);
  }

  /** The tracks that a range of at least one byte touches. */
  tracksOf(offsetBytes: number, lengthBytes: number): TrackRun {
    const first = this.trackAt(offsetBytes);
    return { first, count: this.trackAt(offsetBytes + lengthBytes - 1) - first + 1 };
  }

  offsetOf(track: number): number {
    return track * this.trackSizeBytes;
  }

  /** Bytes of a run of tracks that lie inside the volume. */
  lengthOf(run: TrackRun): number {
    return (
      Math.min((run.first + run.count) * this.trackSizeBytes, this.#sizeBytes) -
      run.first * this.trackSizeBytes
    );
  }
}
