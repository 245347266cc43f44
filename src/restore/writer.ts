/**
 * Carries out a restore plan: reads the store once, in storage order, and writes each track where it belongs.
 *
 *     store --frame by frame--> reader --pieces--> window of writers --> targets --> flush, then the names
 *
 * One loop reads; up to `writers` writes run at once while the next frame is read. A piece is at most one
 * track, so what is in flight is at most `writers` tracks and the frames that hold them. Pieces never overlap
 * (the table says so), so neither the order of frames nor the number of writers can change the result.
 *
 * Data goes first and zeroes last: damage in the store is then met before anything was zeroed in vain.
 *
 * Promise 7: a source hands out only tracks that agree with their hash, so a damaged one reaches no target.
 * Damage stops the restore; it is never skipped and never replaced by zeroes.
 *
 * Durability: when `writeRestore` has finished, every target is flushed, and the names of created files are
 * durable. When it failed, the error names the targets that were written to and are incomplete.
 */

import {
  assert,
  AssertionError,
  CorruptionError,
  LIMITS,
  type MaybePromise,
  messageOf,
  syncDirectory,
} from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { incompleteNote, RestoreCorruptionError, RestoreError } from './errors.ts';
import type { RestorePlan, RestoreTarget, TrackPiece } from './planner.ts';
import type { ReadPlanEntry, RestoredTrack, RestoreSource } from './restore-source.ts';
import { WriteWindow } from './write-window.ts';

export interface RestoreProgress {
  readonly tracksDone: number;
  readonly trackCount: number;
  /** Bytes written and zeroed so far. */
  readonly bytesWritten: number;
  readonly bytesTotal: number;
}

export interface RestoreOptions {
  /** Writes in flight at once, 1 to `LIMITS.restoreWriterCountMax`; 8 when absent. */
  readonly writers?: number;
  /** Cancels: no new write starts, those running are waited for, then `cancelled` is thrown. */
  readonly signal?: AbortSignal;
  /** Called after each frame and each zeroed piece. Must not throw. */
  readonly onProgress?: (progress: RestoreProgress) => void;
}

export interface RestoreResult {
  /** Tracks read from the store and written. */
  readonly tracks: number;
  /** Bytes of data written. */
  readonly bytesWritten: number;
  /** Bytes zeroed. */
  readonly bytesZeroed: number;
  /** Bytes left alone because they were known to be zero on both sides. */
  readonly bytesSkipped: number;
}

const WRITER_COUNT_DEFAULT = 8;

/**
 * Writes everything that `plan` says and makes it durable. Targets stay open and belong to the caller.
 *
 * @throws {RestoreError} `target-failed` or `cancelled`.
 * @throws {RestoreCorruptionError} when the store is damaged.
 */
export async function writeRestore<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  plan: RestorePlan,
  options: RestoreOptions = {},
): Promise<RestoreResult> {
  const writers = options.writers ?? WRITER_COUNT_DEFAULT;
  assert(
    Number.isInteger(writers) && writers >= 1 && writers <= LIMITS.restoreWriterCountMax,
    `Writer count ${writers} is not 1 to ${LIMITS.restoreWriterCountMax}`,
  );
  const run = new RestoreRun(plan, options, new WriteWindow(writers));
  try {
    await run.writeTracks(source);
    await run.writeZeroes();
    await run.makeDurable();
  } catch (error) {
    await run.settle();
    throw run.explain(error);
  }
  return run.result();
}

/** The failure of one target, before it is known which others are incomplete. */
class TargetFailure extends Error {
  readonly target: RestoreTarget;

  constructor(target: RestoreTarget, action: string, cause: unknown) {
    super(`${action} target ${target.name} (${target.device.description}) failed: ${messageOf(cause)}`, {
      cause,
    });
    this.target = target;
  }
}

class Cancelled extends Error {}

class RestoreRun {
  readonly #plan: RestorePlan;
  readonly #options: RestoreOptions;
  readonly #window: WriteWindow;
  readonly #touched = new Set<RestoreTarget>();
  readonly #done = TrackSet.empty();
  #bytesWritten = 0;
  #bytesZeroed = 0;
  /** Of tracks that turned out to be zero. */
  #bytesSkipped = 0;
  #zeroTracks = 0;

  constructor(plan: RestorePlan, options: RestoreOptions, window: WriteWindow) {
    this.#plan = plan;
    this.#options = options;
    this.#window = window;
  }

  async writeTracks<Entry extends ReadPlanEntry>(source: RestoreSource<Entry>): Promise<void> {
    if (this.#plan.tracks.isEmpty) return;
    for (const entry of source.readPlan(this.#plan.tracks)) {
      this.#checkCancelled();
      for (const restored of await source.readFrame(entry)) await this.#writeTrack(source, restored);
      this.#report();
      // Reads and writes that finish at once would starve timers and signals.
      await loopTurn();
    }
    this.#checkComplete();
  }

  async writeZeroes(): Promise<void> {
    for (const range of this.#plan.zeroRanges()) {
      const endBytes = range.offsetBytes + range.lengthBytes;
      for (let offsetBytes = range.offsetBytes; offsetBytes < endBytes;) {
        this.#checkCancelled();
        const lengthBytes = Math.min(endBytes - offsetBytes, LIMITS.restoreZeroBytesMax);
        await this.#zero(range.target, offsetBytes, lengthBytes);
        offsetBytes += lengthBytes;
        this.#report();
        await loopTurn();
      }
    }
  }

  /** Waits for the last writes, flushes the targets, then makes the names of created ones durable. */
  async makeDurable(): Promise<void> {
    await this.#window.drain();
    this.#checkCancelled();
    for (const target of this.#plan.targets) {
      await named(target, 'Flushing', () => target.device.flush());
    }
    const directories = new Set<string>();
    for (const target of this.#plan.targets) {
      const { createdIn } = target;
      if (createdIn === undefined || directories.has(createdIn)) continue;
      directories.add(createdIn);
      await named(target, 'Syncing the directory of', () => syncDirectory('restore-target', createdIn));
    }
    this.#report();
  }

  settle(): Promise<void> {
    return this.#window.settle();
  }

  result(): RestoreResult {
    return {
      tracks: this.#done.size - this.#zeroTracks,
      bytesWritten: this.#bytesWritten,
      bytesZeroed: this.#bytesZeroed,
      bytesSkipped: this.#plan.skippedBytes + this.#bytesSkipped,
    };
  }

  /** The error that the caller gets for what stopped the run. */
  explain(error: unknown): unknown {
    const incompleteTargets = [...this.#touched].map((target) => target.name);
    const note = incompleteNote(incompleteTargets);
    if (error instanceof CorruptionError) return new RestoreCorruptionError(error, incompleteTargets);
    if (error instanceof Cancelled) {
      return new RestoreError('cancelled', `Restore was cancelled${note}`, { incompleteTargets });
    }
    if (error instanceof TargetFailure) {
      const details = { target: error.target.name, incompleteTargets };
      return new RestoreError('target-failed', error.message + note, details, { cause: error.cause });
    }
    return error;
  }

  async #writeTrack(source: { readonly trackSizeBytes: number }, restored: RestoredTrack): Promise<void> {
    const { track, content } = restored;
    assert(this.#plan.tracks.has(track), `Source gave track ${track}, which was not asked for`);
    assert(!this.#done.has(track), `Source gave track ${track} twice`);
    this.#done.add(track);
    if (content === undefined) {
      this.#zeroTracks += 1;
      for (const piece of this.#plan.piecesOf(track)) await this.#zeroPiece(piece);
      return;
    }
    for (const piece of this.#plan.piecesOf(track)) {
      const endBytes = piece.offsetInTrackBytes + piece.lengthBytes;
      if (endBytes > content.length) {
        throw new CorruptionError(`Track ${track} ends at byte ${content.length}, wanted ${endBytes}`, {
          where: `track ${track} of ${source.trackSizeBytes} bytes`,
          tracks: [track],
        });
      }
      this.#checkCancelled();
      await this.#writePiece(piece, content.subarray(piece.offsetInTrackBytes, endBytes));
    }
  }

  /** As `writeZeroes` does it: what is zero already stays as it is. */
  async #zeroPiece({ target, targetOffsetBytes, lengthBytes }: TrackPiece): Promise<void> {
    this.#checkCancelled();
    if (target.knownZero) this.#bytesSkipped += lengthBytes;
    else await this.#zero(target, targetOffsetBytes, lengthBytes);
  }

  #writePiece(piece: TrackPiece, content: Buffer): Promise<void> {
    const { target, targetOffsetBytes, lengthBytes } = piece;
    return this.#window.start(() => {
      this.#touched.add(target);
      return counted(
        named(target, 'Writing to', () => target.device.write(content, targetOffsetBytes)),
        () => {
          this.#bytesWritten += lengthBytes;
        },
      );
    });
  }

  #zero(target: RestoreTarget, offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#window.start(() => {
      this.#touched.add(target);
      return counted(
        named(target, 'Zeroing', () =>
          target.device.writeZeroes(offsetBytes, lengthBytes, { mayTrim: true }),
        ),
        () => {
          this.#bytesZeroed += lengthBytes;
        },
      );
    });
  }

  /** A track that no entry of the read plan held must not pass as restored. */
  #checkComplete(): void {
    const missing = this.#plan.tracks.difference(this.#done);
    if (missing.isEmpty) return;
    const tracks = missing.toArray();
    throw new CorruptionError(`Set lists ${tracks.length} tracks that it does not hold, first ${tracks[0]}`, {
      where: `track ${tracks[0]}`,
      tracks,
    });
  }

  #checkCancelled(): void {
    if (this.#options.signal?.aborted === true) throw new Cancelled('Cancelled');
  }

  #report(): void {
    this.#options.onProgress?.({
      tracksDone: this.#done.size,
      trackCount: this.#plan.tracks.size,
      bytesWritten: this.#bytesWritten + this.#bytesZeroed + this.#bytesSkipped,
      bytesTotal: this.#plan.dataBytes + this.#plan.zeroBytes,
    });
  }
}

/** Runs a call of a device; its failure, thrown or rejected, names the target. */
function named(target: RestoreTarget, action: string, call: () => Promise<void>): Promise<void>;
function named(target: RestoreTarget, action: string, call: () => MaybePromise<void>): MaybePromise<void>;
function named(target: RestoreTarget, action: string, call: () => MaybePromise<void>): MaybePromise<void> {
  const fail = (error: unknown): never => {
    if (error instanceof AssertionError) throw error;
    throw new TargetFailure(target, action, error);
  };
  try {
    return call()?.catch(fail);
  } catch (error) {
    return fail(error);
  }
}

/** Calls `count` when the call has succeeded. */
function counted(running: MaybePromise<void>, count: () => void): MaybePromise<void> {
  if (running !== undefined) return running.then(count);
  count();
}

function loopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
