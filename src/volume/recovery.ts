/**
 * The recovery of a volume: its home is filled from the backup side while it is used (seeds/4; DESIGN section 4,
 * "Recovery").
 *
 *     client -> write path -> [mirrored] -> filling -> home
 *                                  |            |
 *                               mirror      backup side <- fill, media
 *
 * First channel: whoever needs a track that is not there brings it in (`filling-device.ts`). Second channel: `fillAll` goes
 * through all that is missing, in the order that suits the side, and `offer` takes the content of media that have
 * arrived. Both go through one overwrite map, so neither ever replaces what is newer.
 *
 * Where a mirror is kept, what was written since the last flush may be on one of the two only after an unclean stop:
 * before anybody uses the volume the home's content of current tracks is copied over, and that of the side of missing
 * ones. Where the mirror is the side, that holds what the home has lost, and is newer than any medium: such tracks are
 * the side's only.
 */

import { LIMITS, messageOf } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import type { BackupSide, RecoveryRecord } from './backup-side.ts';
import { fillAll, type FillOptions } from './fill-all.ts';
import { FillingDevice } from './filling-device.ts';
import type { Geometry } from './geometry.ts';
import { MirroredDevice } from './mirrored-device.ts';
import type { RecoveryState } from './recovery-state.ts';

export interface RecoveryOptions {
  readonly home: BlockDevice;
  readonly geometry: Geometry;
  readonly side: BackupSide;
  readonly state: RecoveryState;
  readonly record: RecoveryRecord;
  readonly onWarning?: ((sentence: string) => void) | undefined;
  /** The volume's name, for messages. */
  readonly name: string;
}

/** The volume, as far as its recovery must know it. */
export interface RecoveryOwner {
  /** Writing the home failed. */
  readonly onHomeFailed: (error: unknown) => void;
  /** Whether the home may be written. */
  readonly mayWrite: () => boolean;
}

export interface RecoveryStatus extends RecoveryRecord {
  readonly missingTracks: number;
  readonly trackCount: number;
}

export class Recovery {
  /** What the volume has for its home. */
  readonly device: BlockDevice;
  readonly filling: FillingDevice;
  readonly #options: RecoveryOptions;
  readonly #mirrored: MirroredDevice | undefined;
  #record: RecoveryRecord;
  #closing: Promise<void> | undefined;
  /** Tracks that no medium may give. */
  #sideOnly: TrackSet;
  #owner: RecoveryOwner | undefined;
  readonly #over = new AbortController();

  constructor(options: RecoveryOptions) {
    const { home, geometry, side, state, record } = options;
    this.#options = options;
    this.#record = record;
    const { mirror } = side;
    this.#sideOnly = state.sideOnly(geometry.trackCount);
    this.filling = new FillingDevice({
      device: home,
      geometry,
      source: side.device,
      missing: TrackSet.all(geometry.trackCount).difference(state.current(geometry.trackCount)),
      saveMap: (pieces) => state.savePieces(pieces),
      flushBeside: async () => this.#mirrored?.flushMirror(),
      onDeviceFailed: (error) => this.#owner?.onHomeFailed(error),
      mayWrite: () => this.#mayWrite(),
      mayOffer: (track) => !this.#sideOnly.has(track),
    });
    this.#mirrored =
      mirror === undefined || record.mirrorLost !== undefined
        ? undefined
        : new MirroredDevice({
            primary: this.filling,
            mirror,
            flushesMirror: false,
            onMirrorLost: (error) => this.#recordLoss(error),
          });
    this.device = this.#mirrored ?? this.filling;
  }

  /** To be called before the device is used. */
  attach(owner: RecoveryOwner): void {
    this.#owner = owner;
  }

  #mayWrite(): boolean {
    return this.#owner?.mayWrite() === true;
  }

  get record(): RecoveryRecord {
    return this.#record;
  }

  /** Fires when nothing is missing any more, whoever brought the last of it in, and that is on record. */
  get over(): AbortSignal {
    return this.#over.signal;
  }

  /** Whether a mirror gets every change. */
  get isMirrored(): boolean {
    return this.#mirrored?.isMirroring === true;
  }

  get isComplete(): boolean {
    return this.filling.missingCount === 0;
  }

  status(): RecoveryStatus {
    const { trackCount } = this.#options.geometry;
    return { ...this.#record, missingTracks: this.filling.missingCount, trackCount };
  }

  /** See the header. To be called before `attach`. @param written what may have been written since the last flush. */
  async reconcile(written: TrackSet): Promise<void> {
    const { side, home, state } = this.#options;
    const mirrored = this.#mirrored;
    if (mirrored === undefined) return;
    const missing = this.filling.missing();
    await this.#copyRuns(written.difference(missing), async (content, offsetBytes) => {
      await home.read(content, offsetBytes);
      await mirrored.onMirror((mirror) => mirror.write(content, offsetBytes));
    });
    const lost = written.intersection(missing);
    if (side.mirror === side.device) {
      this.#sideOnly = TrackSet.union([this.#sideOnly, lost]).intersection(missing);
      await state.saveSideOnly(this.#sideOnly);
    } else {
      // What the side cannot give now, the mirror cannot be made equal to.
      await this.#copyRuns(lost, (content, offsetBytes) =>
        mirrored.onMirror(async (mirror) => {
          await side.device.read(content, offsetBytes);
          await mirror.write(content, offsetBytes);
        }),
      );
    }
    await mirrored.flushMirror();
  }

  /** As long as there is a mirror to copy to. */
  async #copyRuns(
    tracks: TrackSet,
    copy: (content: Buffer, offsetBytes: number) => Promise<void>,
  ): Promise<void> {
    const { geometry } = this.#options;
    const runTracks = Math.max(1, Math.floor(LIMITS.fillRunBytesMax / geometry.trackSizeBytes));
    const buffer = Buffer.allocUnsafe(runTracks * geometry.trackSizeBytes);
    for (const run of tracks.runs(runTracks)) {
      if (!this.isMirrored) return;
      await copy(buffer.subarray(0, geometry.lengthOf(run)), geometry.offsetOf(run.first));
    }
  }

  /**
   * Brings in everything that is missing. Whoever waits for a track comes first.
   *
   * A track that the side cannot give is left out, and the others go on; then this fails, with the first reason, and
   * may be called again.
   */
  async fillAll(options: FillOptions = {}): Promise<void> {
    const { geometry } = this.#options;
    const { filling } = this;
    const order = (): AsyncGenerator<Iterable<TrackRun>> => this.#order();
    await fillAll({ filling, geometry, mayWrite: () => this.#mayWrite(), order }, options);
  }

  async *#order(): AsyncGenerator<Iterable<TrackRun>, void, undefined> {
    const { side } = this.#options;
    const missing = this.filling.missing();
    if (side.order === undefined) yield missing.runs();
    else yield* side.order(missing);
  }

  /** See `FillingDevice.offer`. */
  offer(track: number, content: Buffer | undefined): Promise<boolean> {
    return this.filling.offer(track, content);
  }

  /** Ends the recovery, durably: nothing is missing any more. */
  async end(): Promise<void> {
    const { state, geometry } = this.#options;
    await this.device.flush();
    await state.end(geometry.trackCount);
    this.#over.abort(new Error('The recovery is over'));
  }

  /** Nothing may be missing any more, or be in flight. A second call waits for the first. */
  closeSide(): Promise<void> {
    this.#closing ??= this.#options.side.close();
    return this.#closing;
  }

  async #recordLoss(error: unknown): Promise<void> {
    const { state, name, onWarning } = this.#options;
    this.#record = { ...this.#record, mirrorLost: messageOf(error) };
    const { mirror = 'its mirror' } = this.#record;
    onWarning?.(`Volume ${name} is no longer mirrored to ${mirror}: ${messageOf(error)}`);
    await state.saveRecord(this.#record);
  }
}
