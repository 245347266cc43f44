/**
 * Carries out a restore plan: reads the store once, in storage order, and writes each track where it belongs.
 *
 *     store --frame by frame--> reader --pieces--> window of writers --> targets --> flush, then the names
 *
 * One loop reads; up to `writers` writes run at once while the next frame is read. Tracks of a frame that lie in a
 * row go in one write, so what is in flight is at most `writers` frames. Pieces never overlap
 * (the table says so), so neither the order of frames nor the number of writers can change the result.
 *
 * Data goes first and zeroes last: damage in the store is then met before anything was zeroed in vain.
 *
 * Promise 7: a source hands out only tracks that agree with their hash, so a damaged one reaches no target.
 * Damage stops the restore; it is never skipped and never replaced by zeroes. Only where salvage was asked for it is
 * passed over: its ranges are left alone on the target and named in the result.
 *
 * With a checkpoint, the targets are flushed from time to time, and told is which tracks are durable on them, so that
 * a restore that was interrupted goes on from there; so also when it is cancelled.
 *
 * Durability: when `writeRestore` has finished, every target is flushed, and the names of created files are
 * durable. When it failed, the error names the targets that were written to and are incomplete.
 */

import { assert, AssertionError, CorruptionError, LIMITS, syncDirectory } from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { incompleteNote, RestoreCorruptionError, RestoreError } from './errors.ts';
import { GoodReads } from './good-reads.ts';
import type { PieceDigests } from './piece-digests.ts';
import type { RestorePlan, RestoreTarget, TrackPiece } from './planner.ts';
import type { SourceRange } from './remap-table.ts';
import type { ReadPlanEntry, RestoredTrack, RestoreSource } from './restore-source.ts';
import { counted, loopTurn, named, TargetFailure } from './target-calls.ts';
import { WriteRow } from './write-row.ts';
import { TargetsWriteBehind } from './write-behind.ts';
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
  /** Pass over what is damaged or missing in the source, and say what that was, instead of stopping. */
  readonly salvage?: boolean;
  readonly checkpoint?: RestoreCheckpoint;
  /** Keeps the digests of what is written, to compare what is read back with. */
  readonly digests?: PieceDigests;
}

/** How a restore can go on after an interruption. */
export interface RestoreCheckpoint {
  /** Tracks that an earlier run has written durably: they are not written again. */
  readonly before: TrackSet;
  /** Bytes written between two calls of `record`. */
  readonly everyBytes: number;
  /** Called with all tracks that are durable on the targets by now, those from before included. */
  readonly record: (durable: TrackSet) => Promise<void>;
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
  /** Tracks that an earlier run had written already. */
  readonly tracksBefore: number;
  /** What a salvage has not found: ranges of the volume, ascending, left alone on the targets. */
  readonly missing: readonly SourceRange[];
  /** Why, one sentence each; not all of them where they are many. */
  readonly findings: readonly string[];
}

/** What was written, for who reads it back. */
export interface Written {
  readonly result: RestoreResult;
  /** Tracks with content that are on the targets now, those from before included. */
  readonly tracks: TrackSet;
  /** Tracks that turned out to be zero when they were read. */
  readonly zeroTracks: TrackSet;
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
  return (await writePlan(source, plan, options)).result;
}

/** As `writeRestore`, and says which tracks are where. */
export async function writePlan<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  plan: RestorePlan,
  options: RestoreOptions,
): Promise<Written> {
  const run = new RestoreRun(plan, options, new WriteWindow(writerCount(options)));
  try {
    await run.writeTracks(source);
    await run.writeZeroes();
    await run.makeDurable();
  } catch (error) {
    await run.settle();
    if (error instanceof Cancelled) await run.saveProgress();
    throw explained(error, run.touched);
  }
  return run.written();
}

/** The number of calls to targets that run at once. */
export function writerCount({ writers = WRITER_COUNT_DEFAULT }: RestoreOptions): number {
  assert(
    Number.isInteger(writers) && writers >= 1 && writers <= LIMITS.restoreWriterCountMax,
    `Writer count ${writers} is not 1 to ${LIMITS.restoreWriterCountMax}`,
  );
  return writers;
}

/** Thrown where a run notices that it was cancelled. */
export class Cancelled extends Error {}

/** The error that the caller gets for what stopped a run. */
function explained(error: unknown, incompleteTargets: readonly string[]): unknown {
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

class RestoreRun {
  readonly #plan: RestorePlan;
  readonly #options: RestoreOptions;
  readonly #window: WriteWindow;
  readonly #behind = new TargetsWriteBehind();
  readonly #touched = new Set<RestoreTarget>();
  /** Tracks that need not be written, or whose writes were started. */
  readonly #done: TrackSet;
  readonly #before: TrackSet;
  readonly #bytesBefore: number;
  #findings: readonly string[] = [];
  #bytesRecorded = 0;
  #areNamesDurable = false;
  #bytesWritten = 0;
  #bytesZeroed = 0;
  /** Of tracks that turned out to be zero. */
  #bytesSkipped = 0;
  readonly #zeroTracks = TrackSet.empty();

  constructor(plan: RestorePlan, options: RestoreOptions, window: WriteWindow) {
    this.#plan = plan;
    this.#options = options;
    this.#window = window;
    this.#before = plan.tracks.intersection(options.checkpoint?.before ?? TrackSet.empty());
    this.#done = this.#before.clone();
    this.#bytesBefore = bytesOf(plan, this.#before);
  }

  async writeTracks<Entry extends ReadPlanEntry>(source: RestoreSource<Entry>): Promise<void> {
    const tracks = this.#plan.tracks.difference(this.#done);
    const reads = new GoodReads(source, { salvage: this.#options.salvage === true });
    for (const entry of tracks.isEmpty ? [] : source.readPlan(tracks)) {
      this.#checkCancelled();
      const read = await reads.read(entry);
      if (read === 'ended') break;
      await this.#writeFrame(source, read);
      this.#report();
      await this.#checkpoint();
      // Reads and writes that finish at once would starve timers and signals.
      await loopTurn();
    }
    this.#findings = reads.findings;
    if (this.#options.salvage !== true) this.#checkComplete();
  }

  /** Makes what was written durable, and has it recorded, when it is time for that. */
  async #checkpoint(): Promise<void> {
    const { checkpoint } = this.#options;
    if (checkpoint === undefined || this.#bytesWritten - this.#bytesRecorded < checkpoint.everyBytes) return;
    await this.#window.drain();
    await this.#record(checkpoint);
  }

  async #record(checkpoint: RestoreCheckpoint): Promise<void> {
    this.#bytesRecorded = this.#bytesWritten;
    await this.#flush();
    await checkpoint.record(this.#done.clone());
  }

  /**
   * The last checkpoint of a run that was cancelled; nothing runs any more. What fails here leaves the one before,
   * which is as true.
   */
  async saveProgress(): Promise<void> {
    const { checkpoint } = this.#options;
    if (checkpoint === undefined) return;
    try {
      await this.#window.drain();
      await this.#record(checkpoint);
    } catch (error) {
      if (error instanceof AssertionError) throw error;
    }
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
    await this.#flush();
    this.#report();
  }

  async #flush(): Promise<void> {
    for (const target of this.#plan.targets) {
      await named(target, 'Flushing', () => target.device.flush());
    }
    if (this.#areNamesDurable) return;
    const directories = new Set<string>();
    for (const target of this.#plan.targets) {
      const { createdIn } = target;
      if (createdIn === undefined || directories.has(createdIn)) continue;
      directories.add(createdIn);
      await named(target, 'Syncing the directory of', () => syncDirectory('restore-target', createdIn));
    }
    this.#areNamesDurable = true;
  }

  settle(): Promise<void> {
    return this.#window.settle();
  }

  written(): Written {
    const { lost, skippedBytes, tracks } = this.#plan;
    const missing = TrackSet.union([lost, tracks.difference(this.#done)]);
    const withContent = this.#done.difference(this.#zeroTracks);
    const result = {
      tracks: withContent.size - this.#before.size,
      bytesWritten: this.#bytesWritten,
      bytesZeroed: this.#bytesZeroed,
      bytesSkipped: skippedBytes + this.#bytesSkipped,
      tracksBefore: this.#before.size,
      missing: this.#plan.rangesOf(missing),
      findings: this.#findings,
    };
    return { result, tracks: withContent, zeroTracks: this.#zeroTracks };
  }

  /** The names of the targets that something may have been written to. */
  get touched(): string[] {
    return [...this.#touched].map(({ name }) => name);
  }

  /** Writes tracks that came together; what lies in a row in memory and on a target goes in one write. */
  async #writeFrame(
    source: Pick<RestoreSource, 'trackSizeBytes' | 'recycle'>,
    read: readonly RestoredTrack[],
  ): Promise<void> {
    const rows = new RowsInFlight(() => source.recycle?.(read));
    let row: WriteRow | undefined;
    // Tracks of which the last piece is in the row: they are not begun as long as it is not.
    const begun = TrackSet.empty();
    const writeRow = async (): Promise<void> => {
      if (row !== undefined) await this.#writeRow(row, rows);
      row = undefined;
      this.#done.addAll(begun);
    };
    for (const { track, content } of read) {
      assert(this.#plan.tracks.has(track), `Source gave track ${track}, which was not asked for`);
      assert(!this.#done.has(track) && !begun.has(track), `Source gave track ${track} twice`);
      if (content === undefined) {
        for (const piece of this.#plan.piecesOf(track)) await this.#zeroPiece(piece);
        this.#zeroTracks.add(track);
        this.#done.add(track);
        continue;
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
        const bytes = content.subarray(piece.offsetInTrackBytes, endBytes);
        this.#options.digests?.note(piece, bytes);
        const longer: WriteRow | undefined = row?.with(piece, bytes);
        if (longer === undefined) await writeRow();
        row = longer ?? new WriteRow(piece, bytes);
      }
      begun.add(track);
    }
    await writeRow();
    rows.end();
  }

  /** As `writeZeroes` does it: what is zero already stays as it is. */
  async #zeroPiece({ target, targetOffsetBytes, lengthBytes }: TrackPiece): Promise<void> {
    this.#checkCancelled();
    if (target.knownZero) this.#bytesSkipped += lengthBytes;
    else await this.#zero(target, targetOffsetBytes, lengthBytes);
  }

  #writeRow({ target, targetOffsetBytes, bytes }: WriteRow, rows: RowsInFlight): Promise<void> {
    rows.begin();
    return this.#window.start(() => {
      this.#touched.add(target);
      return counted(
        named(target, 'Writing to', () => target.device.write(bytes, targetOffsetBytes)),
        () => {
          this.#bytesWritten += bytes.length;
          rows.end();
          this.#behind.note(target, targetOffsetBytes, bytes.length);
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
      bytesWritten: this.#bytesBefore + this.#bytesWritten + this.#bytesZeroed + this.#bytesSkipped,
      bytesTotal: this.#plan.dataBytes + this.#plan.zeroBytes,
    });
  }
}

function bytesOf(plan: RestorePlan, tracks: TrackSet): number {
  return plan.rangesOf(tracks).reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
}

/** The writes of one frame: when the last has succeeded, nobody needs the frame any more. */
class RowsInFlight {
  readonly #onOver: () => void;
  /** One for those that are still to begin. */
  #count = 1;

  constructor(onOver: () => void) {
    this.#onOver = onOver;
  }

  begin(): void {
    this.#count += 1;
  }

  /** Called for each that has succeeded, and when none will begin any more. */
  end(): void {
    this.#count -= 1;
    if (this.#count === 0) this.#onOver();
  }
}
