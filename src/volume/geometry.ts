/** How a volume's bytes fall into tracks. The last track is shorter where the size is no multiple of it. */

import { isPowerOfTwo, LIMITS } from '../base/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';

export class Geometry {
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly trackCount: number;
  readonly #shift: number;

  /** @throws {VolumeError} `invalid-geometry` */
  constructor(sizeBytes: number, trackSizeBytes: number) {
    const { trackSizeBytesMin, trackSizeBytesMax, blockSizeBytesMin, trackCountMax } = LIMITS;
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
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % blockSizeBytesMin !== 0) {
      throw new VolumeError(
        'invalid-geometry',
        `Volume size ${sizeBytes} is not a positive multiple of ${blockSizeBytesMin} bytes`,
        { value: sizeBytes },
      );
    }
    this.sizeBytes = sizeBytes;
    this.trackSizeBytes = trackSizeBytes;
    this.trackCount = Math.ceil(sizeBytes / trackSizeBytes);
    this.#shift = Math.log2(trackSizeBytes);
    if (this.trackCount > trackCountMax) {
      throw new VolumeError(
        'invalid-geometry',
        `Volume size ${sizeBytes} needs ${this.trackCount} tracks of ${trackSizeBytes} bytes, at most ${trackCountMax}`,
        { value: sizeBytes },
      );
    }
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
      Math.min((run.first + run.count) * this.trackSizeBytes, this.sizeBytes) -
      run.first * this.trackSizeBytes
    );
  }
}
