/**
 * Reads back what a restore has written, and compares it with what the set holds.
 *
 *     targets --> past the page cache --> hash of a whole track, or the content itself --> differences
 *
 * What is durable of a target is dropped from the page cache first, so that the bytes come from the disk; behind a URI
 * they come from wherever its server has them. A track that lies in one piece is compared with its hash; one that
 * differs, and one that was cut, is compared with its content, read again from the set, which tells the byte. Of a
 * source that can be read only once, the digests that were noted while it was written are compared.
 *
 * What was zeroed is compared with zeroes. What was left alone is not read.
 */

import { CorruptionError, LIMITS } from '../base/index.ts';
import { digest } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { counted, loopTurn, named } from './target-calls.ts';
import type { PieceDigests } from './piece-digests.ts';
import type { RestorePlan, RestoreTarget, TrackPiece, ZeroRange } from './planner.ts';
import type { ReadPlanEntry, RestoreSource } from './restore-source.ts';
import { WriteWindow } from './write-window.ts';

export interface ReadBackOptions {
  /** Reads of targets in flight at once. */
  readonly readers: number;
  /** The tracks to compare, of those of the plan. */
  readonly tracks: TrackSet;
  /** Tracks that must be zero, besides the zero ranges of the plan. */
  readonly zeroTracks?: TrackSet;
  /** Leave out what was zeroed. */
  readonly tracksOnly?: boolean;
  /** Where the source has no hashes. Pieces that are not noted are not compared. */
  readonly digests?: PieceDigests;
  /** Called from time to time with the bytes read back so far; what it throws ends the reading. */
  readonly onRead?: (bytes: number) => void;
}

/** A piece that is not what was written, by its target. */
export interface Difference {
  readonly target: RestoreTarget;
  /** The first byte that differs, or where that is not known the first of its piece. */
  readonly offsetBytes: number;
}

type Place = Pick<TrackPiece, 'target' | 'targetOffsetBytes' | 'lengthBytes'>;

/** Read between two turns of the event loop. */
const TURN_BYTES = 4 * LIMITS.restoreReadBytesMax;
const ZEROES = Buffer.alloc(LIMITS.restoreReadBytesMax);

/**
 * Compares the targets with the source, to the end, whatever is found.
 *
 * @returns what differs, by target in order of the plan and by offset; empty where all is as it should be.
 * @throws {TargetFailure} where a target cannot be read. @throws {CorruptionError} where the source cannot.
 */
export async function findDifferences<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  plan: RestorePlan,
  options: ReadBackOptions,
): Promise<readonly Difference[]> {
  const run = new ReadBack(plan, options);
  try {
    for (const target of plan.targets)
      await named(target, 'Reading back', async () => void (await target.dropCache?.()));
    const unsure = await run.compareHashes(source);
    if (source.hashOf !== undefined) await run.compareContent(source, unsure);
    if (options.tracksOnly !== true) await run.compareZeroes();
    options.onRead?.(run.bytesRead);
    return run.differences();
  } finally {
    await run.settle();
  }
}

/** The error for targets that are not what was written. */
export function differenceError(differences: readonly Difference[]): CorruptionError | undefined {
  const [first] = differences;
  if (first === undefined) return undefined;
  const { target, offsetBytes } = first;
  const more = differences.length > 1 ? `, the first of ${differences.length} places` : '';
  return new CorruptionError(
    `Target ${target.name} (${target.device.description}) is damaged at byte ${offsetBytes}${more}: what was read back is not what was written`,
    { where: target.name },
  );
}

class ReadBack {
  readonly #plan: RestorePlan;
  readonly #options: ReadBackOptions;
  readonly #window: WriteWindow;
  readonly #differences: Difference[] = [];
  #bytesRead = 0;
  #bytesTold = 0;

  constructor(plan: RestorePlan, options: ReadBackOptions) {
    this.#plan = plan;
    this.#options = options;
    this.#window = new WriteWindow(options.readers);
  }

  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** @returns the tracks that a hash does not decide, for `compareContent`. */
  async compareHashes(source: RestoreSource): Promise<TrackSet> {
    const unsure = TrackSet.empty();
    for (const track of this.#options.tracks) {
      const pieces = this.#plan.piecesOf(track);
      if (source.hashOf === undefined) {
        for (const piece of pieces) await this.#compareNoted(piece);
      } else {
        const [piece, cut] = pieces;
        const trackBytes = Math.min(source.trackSizeBytes, source.sizeBytes - track * source.trackSizeBytes);
        const hash = source.hashOf(track);
        if (
          piece === undefined ||
          cut !== undefined ||
          piece.lengthBytes !== trackBytes ||
          hash === undefined
        ) {
          unsure.add(track);
        } else {
          await this.#read(piece, (found) => {
            if (!digest(found).equals(hash)) unsure.add(track);
          });
        }
      }
      await this.#turn();
    }
    await this.#window.drain();
    return unsure;
  }

  /** Reads the tracks once more from the source. */
  async compareContent<Entry extends ReadPlanEntry>(
    source: RestoreSource<Entry>,
    tracks: TrackSet,
  ): Promise<void> {
    for (const entry of tracks.isEmpty ? [] : source.readPlan(tracks)) {
      for (const { track, content } of await source.readFrame(entry)) {
        for (const piece of this.#plan.piecesOf(track)) {
          const { offsetInTrackBytes, lengthBytes } = piece;
          const wanted = content?.subarray(offsetInTrackBytes, offsetInTrackBytes + lengthBytes);
          await this.#compare(piece, wanted ?? Buffer.alloc(lengthBytes));
        }
      }
      await this.#turn();
    }
    await this.#window.drain();
  }

  async compareZeroes(): Promise<void> {
    for (const range of this.#plan.zeroRanges()) await this.#compareZeroRange(range);
    for (const track of this.#options.zeroTracks ?? []) {
      for (const { target, targetOffsetBytes: offsetBytes, lengthBytes } of this.#plan.piecesOf(track)) {
        if (!target.knownZero) await this.#compareZeroRange({ target, offsetBytes, lengthBytes });
      }
    }
    await this.#window.drain();
  }

  differences(): readonly Difference[] {
    const orders = new Map(this.#plan.targets.map((target, index) => [target, index]));
    const orderOf = ({ target }: Difference): number => orders.get(target) ?? 0;
    return this.#differences.sort((a, b) => orderOf(a) - orderOf(b) || a.offsetBytes - b.offsetBytes);
  }

  settle(): Promise<void> {
    return this.#window.settle();
  }

  async #compareZeroRange({ target, offsetBytes, lengthBytes }: ZeroRange): Promise<void> {
    const endBytes = offsetBytes + lengthBytes;
    for (let atBytes = offsetBytes; atBytes < endBytes; atBytes += ZEROES.length) {
      const wanted = ZEROES.subarray(0, Math.min(ZEROES.length, endBytes - atBytes));
      await this.#compare({ target, targetOffsetBytes: atBytes, lengthBytes: wanted.length }, wanted);
      await this.#turn();
    }
  }

  async #compareNoted(piece: TrackPiece): Promise<void> {
    const wanted = this.#options.digests?.of(piece);
    if (wanted === undefined) return;
    await this.#read(piece, (found) => {
      if (!digest(found).equals(wanted)) this.#differ(piece, 0);
    });
  }

  /** @param wanted stays as it is until the read has ended. */
  async #compare(place: Place, wanted: Buffer): Promise<void> {
    await this.#read(place, (found) => {
      if (found.equals(wanted)) return;
      this.#differ(
        place,
        found.findIndex((byte, index) => byte !== wanted[index]),
      );
    });
  }

  #differ({ target, targetOffsetBytes }: Place, intoBytes: number): void {
    this.#differences.push({ target, offsetBytes: targetOffsetBytes + intoBytes });
  }

  async #read(
    { target, targetOffsetBytes, lengthBytes }: Place,
    judge: (found: Buffer) => void,
  ): Promise<void> {
    await this.#window.start(() => {
      const found = Buffer.allocUnsafe(lengthBytes);
      const finish = (): void => {
        this.#bytesRead += lengthBytes;
        judge(found);
      };
      return counted(
        named(target, 'Reading back', () => target.device.read(found, targetOffsetBytes)),
        finish,
      );
    });
  }

  /** Reads that finish at once would starve timers and signals. */
  async #turn(): Promise<void> {
    if (this.#bytesRead - this.#bytesTold < TURN_BYTES) return;
    this.#bytesTold = this.#bytesRead;
    this.#options.onRead?.(this.#bytesRead);
    await loopTurn();
  }
}
