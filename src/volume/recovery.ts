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
 * the home's content of current tracks is copied over before anybody uses the volume.
 */

import { allFinished, LIMITS, messageOf } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import type { BackupSide, RecoveryRecord } from './backup-side.ts';
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

export interface FillOptions {
  /** What is brought in before the rest, in this order. */
  readonly first?: readonly TrackRun[];
  /** Waits until so many more bytes may be read; at once where left out. */
  readonly take?: (bytes: number) => Promise<void>;
  readonly signal?: AbortSignal;
  /** Called after each run, with the tracks still missing. Must not throw. */
  readonly onProgress?: (missingCount: number) => void;
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
  #losing: Promise<void> | undefined;
  #owner: RecoveryOwner | undefined;
  readonly #over = new AbortController();

  constructor(options: RecoveryOptions) {
    const { home, geometry, side, state, record } = options;
    this.#options = options;
    this.#record = record;
    const { mirror } = side;
    this.filling = new FillingDevice({
      device: home,
      geometry,
      source: side.device,
      missing: TrackSet.all(geometry.trackCount).difference(state.current(geometry.trackCount)),
      saveMap: (pieces) => state.savePieces(pieces),
      flushBeside: async () => this.#mirrored?.flushMirror(),
      onDeviceFailed: (error) => this.#owner?.onHomeFailed(error),
      mayWrite: () => this.#mayWrite(),
    });
    this.#mirrored =
      mirror === undefined || record.mirrorLost !== undefined
        ? undefined
        : new MirroredDevice({
            primary: this.filling,
            mirror,
            flushesMirror: false,
            onMirrorLost: (error) => this.#loseMirror(error),
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

  /** See the header. @param written what may have been written since the last flush. */
  async reconcile(written: TrackSet): Promise<void> {
    const { geometry, side, home } = this.#options;
    const mirror = this.#mirrored === undefined ? undefined : side.mirror;
    if (mirror === undefined) return;
    const runTracks = Math.max(1, Math.floor(LIMITS.fillRunBytesMax / geometry.trackSizeBytes));
    const buffer = Buffer.allocUnsafe(runTracks * geometry.trackSizeBytes);
    for (const run of written.difference(this.filling.missing()).runs(runTracks)) {
      const content = buffer.subarray(0, geometry.lengthOf(run));
      await home.read(content, geometry.offsetOf(run.first));
      try {
        await mirror.write(content, geometry.offsetOf(run.first));
      } catch (error) {
        await this.#loseMirror(error);
        return;
      }
    }
    await this.#mirrored?.flushMirror();
  }

  /**
   * Brings in everything that is missing. Whoever waits for a track comes first.
   *
   * A track that the side cannot give is left out, and the others go on; then this fails, with the first reason, and
   * may be called again.
   */
  async fillAll(options: FillOptions = {}): Promise<void> {
    const failures = new FillFailures();
    const running = new Set<Promise<void>>();
    try {
      for await (const runs of this.#fillOrder(options.first ?? []))
        await this.#startRuns(runs, { options, failures, running });
    } finally {
      await Promise.allSettled(running);
    }
    await allFinished([...running]);
    failures.throwFirst();
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

  async *#fillOrder(first: readonly TrackRun[]): AsyncGenerator<Iterable<TrackRun>, void, undefined> {
    yield first;
    const { side } = this.#options;
    const missing = this.filling.missing();
    if (side.order === undefined) yield missing.runs();
    else yield* side.order(missing);
  }

  /** Starts what of the runs is missing; what is under way then goes on beside what comes after. */
  async #startRuns(
    runs: Iterable<TrackRun>,
    {
      options,
      failures,
      running,
    }: {
      readonly options: FillOptions;
      readonly failures: FillFailures;
      readonly running: Set<Promise<void>>;
    },
  ): Promise<void> {
    const { signal, take, onProgress } = options;
    const { geometry } = this.#options;
    const runTracks = Math.max(1, Math.floor(LIMITS.fillRunBytesMax / geometry.trackSizeBytes));
    for (const whole of runs) {
      for (const run of this.filling.missingIn(whole).runs(runTracks)) {
        signal?.throwIfAborted();
        await this.filling.whenUnasked();
        await take?.(geometry.lengthOf(run));
        const filled = this.#fillRun(run, failures).then(() => {
          running.delete(filled);
          onProgress?.(this.filling.missingCount);
        });
        // It is looked at later.
        filled.catch(() => undefined);
        running.add(filled);
        // One that has failed stays, and ends the fill here.
        if (running.size >= LIMITS.fillRunCountMax) await Promise.race(running);
      }
    }
  }

  /** @param failures is told what the side could not give. */
  async #fillRun(run: TrackRun, failures: FillFailures): Promise<void> {
    try {
      await this.filling.bringIn(run);
      failures.succeeded();
    } catch (error) {
      if (!this.#mayWrite()) throw error;
      // One of them may be damaged; the others are not.
      if (run.count === 1) failures.add(error);
      else
        for (let track = run.first; track < run.first + run.count; track += 1)
          await this.#fillRun({ first: track, count: 1 }, failures);
    }
  }

  /** Finishes when it is on record, for everybody who finds the mirror lost. */
  #loseMirror(error: unknown): Promise<void> {
    this.#losing ??= this.#recordLoss(error);
    return this.#losing;
  }

  async #recordLoss(error: unknown): Promise<void> {
    const { state, name, onWarning } = this.#options;
    this.#record = { ...this.#record, mirrorLost: messageOf(error) };
    const { mirror = 'its mirror' } = this.#record;
    onWarning?.(`Volume ${name} is no longer mirrored to ${mirror}: ${messageOf(error)}`);
    await state.saveRecord(this.#record);
  }
}

/** Tracks that the side could not give. */
class FillFailures {
  #first: { readonly error: unknown } | undefined;
  #inARow = 0;

  succeeded(): void {
    this.#inARow = 0;
  }

  /** @throws the error, where it seems that nothing can be read any more. */
  add(error: unknown): void {
    this.#first ??= { error };
    this.#inARow += 1;
    if (this.#inARow >= LIMITS.fillFailuresInARowMax) throw error;
  }

  throwFirst(): void {
    if (this.#first !== undefined) throw this.#first.error;
  }
}
