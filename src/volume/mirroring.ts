/**
 * A new backup side, brought up from a volume that is used meanwhile (seeds/4, para 64: the recovery with the roles
 * exchanged).
 *
 *     client -> write path -> [mirrored] -> home
 *                                  |
 *                              filling -> the new side
 *                                  ^
 *                                  +---- home, or a medium with a point of the volume
 *
 * Every change goes to both; what the side still lacks is brought in behind, from the home or from media, through a map of
 * its own, so that nothing newer is replaced. When nothing is missing the two are equal, and stay so for as long as the
 * volume is open.
 *
 * The map is in memory only: a side that was away is brought up again from the beginning.
 */

import { messageOf } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { fillAll, type FillOptions } from './fill-all.ts';
import { FillingDevice } from './filling-device.ts';
import type { Geometry } from './geometry.ts';
import { MirroredDevice } from './mirrored-device.ts';

export interface MirroringOptions {
  readonly home: BlockDevice;
  /** Whatever it holds; at least as large as the volume. Closed by `close`. */
  readonly mirror: BlockDevice;
  readonly geometry: Geometry;
  readonly startedMs: number;
  /** The volume's name, for messages. */
  readonly name: string;
  readonly onWarning?: ((sentence: string) => void) | undefined;
}

export interface MirroringStatus {
  readonly mirror: string;
  readonly startedMs: number;
  /** Why it gets no changes any more. */
  readonly lost?: string;
  readonly missingTracks: number;
  readonly trackCount: number;
}

export class Mirroring {
  /** What the volume has for its home. */
  readonly device: MirroredDevice;
  readonly filling: FillingDevice;
  readonly startedMs: number;
  readonly #options: MirroringOptions;
  #lost: string | undefined;

  constructor(options: MirroringOptions) {
    const { home, mirror, geometry } = options;
    this.#options = options;
    this.startedMs = options.startedMs;
    this.filling = new FillingDevice({
      device: mirror,
      geometry,
      source: home,
      missing: TrackSet.all(geometry.trackCount),
      saveMap: async () => undefined,
      onDeviceFailed: () => undefined,
      mayWrite: () => this.device.isMirroring,
    });
    this.device = new MirroredDevice({
      primary: home,
      mirror: this.filling,
      onMirrorLost: (error) => this.#lose(error),
    });
  }

  status(): MirroringStatus {
    const { mirror, geometry } = this.#options;
    return {
      mirror: mirror.description,
      startedMs: this.startedMs,
      missingTracks: this.filling.missingCount,
      trackCount: geometry.trackCount,
      ...(this.#lost === undefined ? {} : { lost: this.#lost }),
    };
  }

  /** Whether both hold the same. */
  get isEqual(): boolean {
    return this.device.isMirroring && this.filling.missingCount === 0;
  }

  /**
   * Brings in everything that is missing, and makes it durable there. Whoever waits for a track comes first.
   *
   * @throws what the home, or the mirror, which is lost then, fails with.
   */
  async fillAll(options: FillOptions): Promise<void> {
    const { filling } = this;
    const { geometry } = this.#options;
    async function* order(): AsyncGenerator<Iterable<TrackRun>, void, undefined> {
      yield filling.missing().runs();
    }
    const mayWrite = (): boolean => this.device.isMirroring;
    try {
      await fillAll({ filling, geometry, mayWrite, order }, options);
      await this.filling.flush();
    } catch (error) {
      // One that cannot be filled never becomes equal, and holds writes up for nothing.
      if (options.signal?.aborted !== true)
        await this.device.onMirror(async () => {
          throw error;
        });
      throw error;
    }
  }

  /** See `FillingDevice.offer`. */
  offer(track: number, content: Buffer | undefined): Promise<boolean> {
    return this.filling.offer(track, content);
  }

  close(): Promise<void> {
    return this.#options.mirror.close();
  }

  async #lose(error: unknown): Promise<void> {
    this.#lost = messageOf(error);
    const { name, mirror, onWarning } = this.#options;
    onWarning?.(`Volume ${name} is no longer mirrored to ${mirror.description}: ${this.#lost}`);
  }
}
