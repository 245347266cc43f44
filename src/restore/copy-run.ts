/**
 * Moves the tracks of a session's plan to the targets of a copy, each once. Loops run side by side, and none waits
 * for another:
 *
 *     main pass, some    take the next run of the plan; read it from the home, optimistically; confirm: which of its
 *                        tracks were hit meanwhile? write the others where the table says
 *     drain              take what was diverted, newest first; write it; give its room back; until the end
 *
 * Each byte of a target is written by one track at the most (the table says so), and each track by one of the loops,
 * so that no order of theirs changes the result.
 *
 * Zeroes become holes where the target can, and are left out where the target was made for this copy. The loop that
 * fails ends the session, which wakes those that wait for it.
 */

import {
  allFinished,
  AssertionError,
  LIMITS,
  type MaybePromise,
  messageOf,
  syncDirectory,
} from '../base/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import {
  type AlikeRun,
  type BackupSession,
  type DivertedTrack,
  Geometry,
  isZero,
  type Volume,
  ZeroRuns,
} from '../volume/index.ts';
import { incompleteNote, RestoreError } from './errors.ts';
import type { RestoreTarget } from './planner.ts';
import type { RemapTable, SourceRange } from './remap-table.ts';

export interface CopyProgress {
  readonly tracksDone: number;
  readonly tracksTotal: number;
  readonly bytesRead: number;
}

export interface CopyCounters {
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly bytesZeroed: number;
  /** Bytes of zeroes left alone, on targets that were made for the copy. */
  readonly bytesSkipped: number;
  /** Tracks whose content came from the container, or from the snapshot's store. */
  readonly diverted: number;
}

export interface CopyRunOptions {
  readonly volume: Pick<Volume, 'read' | 'extents' | 'geometry'>;
  readonly session: BackupSession;
  readonly table: RemapTable;
  /** Those that the table names. */
  readonly targets: readonly RestoreTarget[];
  /** Bytes of the volume from here on must be zero: the targets have no room for them. */
  readonly roomBytes: number;
  /** Holds the main pass to a rate; what was diverted never waits for it. */
  readonly rate?: { take(bytes: number): Promise<void> } | undefined;
  /** Stops the loops with its reason. */
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: CopyProgress) => void) | undefined;
}

export class CopyRun {
  readonly #options: CopyRunOptions;
  readonly #geometry: Geometry;
  readonly #byName: ReadonlyMap<string, RestoreTarget>;
  /** Those that were written to, with the bytes since the last flush. */
  readonly #touched = new Map<RestoreTarget, number>();
  readonly #runs: AsyncGenerator<AlikeRun>;
  #bytesRead = 0;
  #bytesWritten = 0;
  #bytesZeroed = 0;
  #bytesSkipped = 0;
  #diverted = 0;
  #tracksDone = 0;

  constructor(options: CopyRunOptions) {
    const { volume, session, targets } = options;
    this.#options = options;
    // The plan's size stays what it was at the freeze.
    this.#geometry = new Geometry(session.plan.sizeBytes, volume.geometry.trackSizeBytes);
    this.#byName = new Map(targets.map((target) => [target.name, target]));
    this.#runs = this.#plannedRuns();
  }

  counters(): CopyCounters {
    return {
      bytesRead: this.#bytesRead,
      bytesWritten: this.#bytesWritten,
      bytesZeroed: this.#bytesZeroed,
      bytesSkipped: this.#bytesSkipped,
      diverted: this.#diverted,
    };
  }

  /**
   * Writes every track of the plan. Nothing of it runs any more when this has ended, however it has.
   *
   * @throws {RestoreError} `target-failed`, `target-too-small`; the signal's reason; what the volume throws.
   */
  async run(): Promise<void> {
    const passes = Array.from({ length: LIMITS.copyRunCountMax }, () =>
      this.#ending(() => this.#mainPass(Buffer.allocUnsafe(this.#runBytes))),
    );
    await allFinished([...passes, this.#ending(() => this.#drain())]);
  }

  /** Makes what was written durable: the content, then the names of targets that were made. */
  async makeDurable(): Promise<void> {
    const { targets } = this.#options;
    for (const target of targets) await this.#on(target, 'Flushing', () => target.device.flush());
    const made = new Map(targets.map((target) => [target.createdIn, target]));
    for (const [directory, target] of made) {
      if (directory === undefined) continue;
      await this.#on(target, 'Syncing the directory of', () => syncDirectory('restore-target', directory));
    }
  }

  /** Names of the targets that were written to. */
  get touched(): readonly string[] {
    return Array.from(this.#touched.keys(), ({ name }) => name);
  }

  get #runBytes(): number {
    return Math.max(LIMITS.copyRunBytesMax, this.#geometry.trackSizeBytes);
  }

  /** The others wait for what only the end of the session brings. */
  async #ending(loop: () => Promise<void>): Promise<void> {
    try {
      await loop();
    } catch (error) {
      this.#options.session.fail(error);
      throw error;
    }
  }

  #assertGoing(): void {
    this.#options.signal.throwIfAborted();
  }

  async *#plannedRuns(): AsyncGenerator<AlikeRun> {
    const { session, volume } = this.#options;
    const countMax = Math.floor(this.#runBytes / this.#geometry.trackSizeBytes);
    for await (const { isZero: allZero, first, count } of new ZeroRuns(this.#geometry, volume).split(
      session.plan.tracks,
    )) {
      const step = allZero ? count : countMax;
      for (let at = 0; at < count; at += step)
        yield { first: first + at, count: Math.min(step, count - at), isZero: allZero };
    }
  }

  async #mainPass(buffer: Buffer): Promise<void> {
    const { session, volume, rate } = this.#options;
    for (;;) {
      const next = await this.#runs.next();
      if (next.done === true) return;
      this.#assertGoing();
      const { isZero: allZero, ...run } = next.value;
      let content: Buffer | undefined;
      if (!allZero && this.#isWanted(run)) {
        content = buffer.subarray(0, this.#geometry.lengthOf(run));
        await rate?.take(content.length);
        this.#assertGoing();
        await volume.read(content, this.#geometry.offsetOf(run.first));
        this.#bytesRead += content.length;
      }
      const hits = session.confirm([run]);
      for (const good of without(run, hits))
        await this.#put(good, contentOf(this.#geometry, run, content, good));
      this.#progressed(run.count - hits.length);
      // Clients come first: devices that finish at once would keep the loop.
      await loopTurn();
    }
  }

  async #drain(): Promise<void> {
    const { session } = this.#options;
    const countMax = Math.max(1, Math.floor(LIMITS.sessionDrainBytesMax / this.#geometry.trackSizeBytes));
    for (;;) {
      const taken = await session.take(countMax);
      this.#assertGoing();
      if (taken.length === 0) return;
      await allFinished(taken.map((one) => this.#putDiverted(one)));
      this.#assertGoing();
      session.acknowledge(taken.map(({ id }) => id));
      this.#diverted += taken.length;
      this.#progressed(taken.length);
    }
  }

  async #putDiverted({ track, content }: DivertedTrack): Promise<void> {
    const run = { first: track, count: 1 };
    let own = content;
    if (own === undefined) {
      // The writer waits until the target has it.
      own = Buffer.allocUnsafe(this.#geometry.lengthOf(run));
      await this.#options.volume.read(own, this.#geometry.offsetOf(track));
      this.#bytesRead += own.length;
    }
    await this.#put(run, own);
  }

  /** Whether any of it goes anywhere, or must be looked at. */
  #isWanted(run: TrackRun): boolean {
    const range = this.#rangeOf(run);
    if (range.offsetBytes + range.lengthBytes > this.#options.roomBytes) return true;
    return this.#options.table.rowsIn(range).next().done !== true;
  }

  #rangeOf(run: TrackRun): SourceRange {
    return { offsetBytes: this.#geometry.offsetOf(run.first), lengthBytes: this.#geometry.lengthOf(run) };
  }

  /** @param content of the run; undefined for zeroes. */
  async #put(run: TrackRun, content: Buffer | undefined): Promise<void> {
    const range = this.#rangeOf(run);
    if (content !== undefined) this.#refuseBeyondRoom(range, content);
    for (const row of this.#options.table.rowsIn(range)) {
      const target = this.#byName.get(row.target);
      if (target === undefined) continue;
      const from = row.sourceOffsetBytes - range.offsetBytes;
      const part = content?.subarray(from, from + row.lengthBytes);
      if (part === undefined) {
        await this.#zero(target, row.targetOffsetBytes, row.lengthBytes);
        continue;
      }
      for (const { start, stop, allZero } of alikeIn(part, this.#geometry.trackSizeBytes)) {
        const at = row.targetOffsetBytes + start;
        if (allZero) await this.#zero(target, at, stop - start);
        else await this.#write(target, at, part.subarray(start, stop));
      }
    }
  }

  #refuseBeyondRoom(range: SourceRange, content: Buffer): void {
    const { roomBytes } = this.#options;
    const from = Math.max(0, roomBytes - range.offsetBytes);
    if (from >= content.length || isZero(content.subarray(from))) return;
    const names = [...this.#byName.keys()].join(', ');
    throw tooSmall(names, roomBytes, range.offsetBytes + range.lengthBytes);
  }

  async #write(target: RestoreTarget, offsetBytes: number, content: Buffer): Promise<void> {
    this.#assertGoing();
    this.#touch(target, content.length);
    await this.#on(target, 'Writing to', () => target.device.write(content, offsetBytes));
    this.#bytesWritten += content.length;
    if ((this.#touched.get(target) ?? 0) < LIMITS.copyFlushBytes) return;
    this.#touched.set(target, 0);
    await this.#on(target, 'Flushing', () => target.device.flush());
  }

  async #zero(target: RestoreTarget, offsetBytes: number, lengthBytes: number): Promise<void> {
    if (target.knownZero) {
      this.#bytesSkipped += lengthBytes;
      return;
    }
    for (let at = 0; at < lengthBytes; at += LIMITS.restoreZeroBytesMax) {
      this.#assertGoing();
      this.#touch(target, 0);
      const pieceBytes = Math.min(lengthBytes - at, LIMITS.restoreZeroBytesMax);
      await this.#on(target, 'Zeroing', () =>
        target.device.writeZeroes(offsetBytes + at, pieceBytes, { mayTrim: true }),
      );
      this.#bytesZeroed += pieceBytes;
    }
  }

  #touch(target: RestoreTarget, bytes: number): void {
    this.#touched.set(target, (this.#touched.get(target) ?? 0) + bytes);
  }

  /** Runs a call of a target; its failure names the target, and those that are incomplete now. */
  async #on(target: RestoreTarget, action: string, call: () => MaybePromise<void>): Promise<void> {
    try {
      await call();
    } catch (error) {
      if (error instanceof AssertionError) throw error;
      const incompleteTargets = this.touched;
      throw new RestoreError(
        'target-failed',
        `${action} target ${target.name} (${target.device.description}) failed: ${messageOf(error)}${incompleteNote(incompleteTargets)}`,
        { target: target.name, incompleteTargets },
        { cause: error },
      );
    }
  }

  #progressed(tracks: number): void {
    this.#tracksDone += tracks;
    this.#options.onProgress?.({
      tracksDone: this.#tracksDone,
      tracksTotal: this.#options.session.plan.tracks.size,
      bytesRead: this.#bytesRead,
    });
  }
}

/** @param targets their names. */
export function tooSmall(
  targets: string,
  sizeBytes: number,
  wantedBytes: number,
): RestoreError<'target-too-small'> {
  return new RestoreError(
    'target-too-small',
    `Copy needs room for byte ${wantedBytes - 1} of the volume, which is in use; the targets ${targets} hold ${sizeBytes} bytes together`,
    { target: targets, sizeBytes, wantedBytes },
  );
}

/** The parts of a run without some of its tracks, which ascend. */
function* without(run: TrackRun, tracks: readonly number[]): Generator<TrackRun> {
  let { first } = run;
  for (const track of tracks) {
    if (track > first) yield { first, count: track - first };
    first = track + 1;
  }
  const end = run.first + run.count;
  if (first < end) yield { first, count: end - first };
}

function contentOf(
  geometry: Geometry,
  whole: TrackRun,
  content: Buffer | undefined,
  part: TrackRun,
): Buffer | undefined {
  const from = geometry.offsetOf(part.first) - geometry.offsetOf(whole.first);
  return content?.subarray(from, from + geometry.lengthOf(part));
}

/** The content in parts that are zero throughout or are not, in steps of some bytes. */
function* alikeIn(
  content: Buffer,
  stepBytes: number,
): Generator<{ readonly start: number; readonly stop: number; readonly allZero: boolean }> {
  let start = 0;
  let allZero = false;
  for (let at = 0; at < content.length; at += stepBytes) {
    const isAlike = isZero(content.subarray(at, at + stepBytes));
    if (at > start && isAlike !== allZero) {
      yield { start, stop: at, allZero };
      start = at;
    }
    allZero = isAlike;
  }
  yield { start, stop: content.length, allZero };
}

function loopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
