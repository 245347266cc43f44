/**
 * A home whose tracks are repaired when they cannot be read: with the newest content that the deltas, and the set that they
 * go on from, have of them (seeds/1, para 87; MISSION M23). Its reader hears nothing of it but the time that it takes.
 *
 *     a read fails -> its tracks one by one -> one that cannot be read
 *       -> writes are held until those under way have ended -> newest content -> written to the home, read back -> go on
 *
 * A disk remaps a bad sector when it is written. What cannot be written, or read again then, is no bad sector, and is not
 * tried again. `LIMITS.repairBadTrackCountMax` of those are a bad disk, and so are more repairs than
 * `LIMITS.repairTrackCountMax` at one opening: then reads fail at once, with their own reasons. Somebody may be waiting to
 * take over.
 *
 * Changes are held, all of them, because what is written to the home must be what the deltas have then: a change is in the
 * log before it comes here, or while it is under way. It is neither tracked nor protected: the content is the same.
 */

import { type Deferred, deferred, LIMITS, type MaybePromise, messageOf } from '../base/index.ts';
import {
  type BlockDevice,
  isRefusal,
  LayerDevice,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';
import type { Geometry } from './geometry.ts';

/** Newest content of tracks, opened for one repair. */
export interface RepairSource {
  /** For the report: where it comes from. */
  readonly description: string;
  /** @throws where it is not to be had. */
  read(track: number, target: Buffer): Promise<void>;
  close(): Promise<void>;
}

export interface RepairingDeviceOptions {
  readonly device: BlockDevice;
  readonly geometry: Geometry;
  /** @throws where there is none. */
  readonly openSource: () => Promise<RepairSource>;
  /** A track was repaired; one sentence's clause says what with. */
  readonly onRepaired: (track: number, reason: unknown, source: string) => void;
}

export class RepairingDevice extends LayerDevice {
  readonly #options: RepairingDeviceOptions;
  #repairedCount = 0;
  /** Tracks that the disk did not take back. */
  readonly #bad = new Set<number>();
  /** One repair after the other. */
  #repairing: Promise<void> = Promise.resolve();
  /** Changes wait while it is there. */
  #held: Deferred | undefined;
  #underWay = 0;
  #idle: Deferred | undefined;

  constructor(options: RepairingDeviceOptions) {
    super(options.device);
    this.#options = options;
  }

  /** Tracks that were repaired. */
  get repairedCount(): number {
    return this.#repairedCount;
  }

  override read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    let done: MaybePromise<void>;
    try {
      done = this.below.read(target, offsetBytes);
    } catch (error) {
      return this.#readRepaired(target, offsetBytes, error);
    }
    return done?.catch((error: unknown) => this.#readRepaired(target, offsetBytes, error));
  }

  override write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.#change(() => this.below.write(source, offsetBytes, options));
  }

  override writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    return this.#change(() => this.below.writeZeroes(offsetBytes, lengthBytes, options));
  }

  override trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.#change(() => this.below.trim(offsetBytes, lengthBytes, options));
  }

  #change(perform: () => MaybePromise<void>): MaybePromise<void> {
    if (this.#held !== undefined) return this.#changeLater(perform);
    const done = perform();
    return done === undefined ? undefined : this.#counted(done);
  }

  async #changeLater(perform: () => MaybePromise<void>): Promise<void> {
    while (this.#held !== undefined) await this.#held.promise;
    await this.#counted(perform());
  }

  async #counted(done: MaybePromise<void>): Promise<void> {
    this.#underWay += 1;
    try {
      await done;
    } finally {
      this.#underWay -= 1;
      if (this.#underWay === 0) this.#idle?.resolve();
    }
  }

  /** @throws the error, where it is not for a repair or none can be made. */
  async #readRepaired(target: Buffer, offsetBytes: number, error: unknown): Promise<void> {
    if (isRefusal(error)) throw error;
    const { geometry } = this.#options;
    const endBytes = offsetBytes + target.length;
    for (let at = offsetBytes; at < endBytes;) {
      const { first: track } = geometry.tracksOf(at, 1);
      const to = Math.min(endBytes, geometry.offsetOf(track + 1));
      const part = target.subarray(at - offsetBytes, to - offsetBytes);
      try {
        await this.below.read(part, at);
      } catch (reason) {
        await this.#repairInTurn(track, reason);
        await this.below.read(part, at);
      }
      at = to;
    }
  }

  /** @throws the reason, where the track is not repaired. */
  #repairInTurn(track: number, reason: unknown): Promise<void> {
    const repaired = this.#repairing.then(() => this.#repair(track, reason));
    this.#repairing = repaired.catch(() => undefined);
    return repaired;
  }

  async #repair(track: number, reason: unknown): Promise<void> {
    const { geometry, onRepaired, openSource } = this.#options;
    const offsetBytes = geometry.offsetOf(track);
    const content = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
    if (await this.#isReadable(content, offsetBytes)) return;
    const isBadDisk =
      this.#repairedCount >= LIMITS.repairTrackCountMax || this.#bad.size >= LIMITS.repairBadTrackCountMax;
    if (isBadDisk || this.#bad.has(track)) throw reason;
    const held = deferred();
    this.#held = held;
    try {
      await this.#whenIdle();
      const source = await openSource();
      try {
        await source.read(track, content);
      } finally {
        await source.close();
      }
      await this.#writeBack(track, content);
      this.#repairedCount += 1;
      onRepaired(track, reason, source.description);
    } catch (failure) {
      // The reader's own reason counts; why there is no repair stands behind it.
      if (reason instanceof Error && reason.cause === undefined) reason.cause = failure;
      throw reason instanceof Error ? reason : new Error(messageOf(reason), { cause: failure });
    } finally {
      this.#held = undefined;
      held.resolve();
    }
  }

  /** @throws where the disk does not take it, or not give it back. */
  async #writeBack(track: number, content: Buffer): Promise<void> {
    const offsetBytes = this.#options.geometry.offsetOf(track);
    try {
      await this.below.write(content, offsetBytes);
      await this.below.read(Buffer.allocUnsafe(content.length), offsetBytes);
    } catch (error) {
      this.#bad.add(track);
      throw error;
    }
  }

  /** Somebody else has repaired it, or it can be read after all. */
  async #isReadable(target: Buffer, offsetBytes: number): Promise<boolean> {
    try {
      await this.below.read(target, offsetBytes);
      return true;
    } catch {
      return false;
    }
  }

  async #whenIdle(): Promise<void> {
    while (this.#underWay > 0) {
      this.#idle = deferred();
      await this.#idle.promise;
    }
    this.#idle = undefined;
  }
}
