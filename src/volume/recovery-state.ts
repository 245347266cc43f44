/**
 * What a volume's state file keeps of a recovery: the record of where it is filled from, and the overwrite map, in pieces
 * (FORMAT.md). Both are there from before the first byte is brought in until the last one is durable.
 *
 * The map is saved at every flush, so only the pieces that have changed are.
 */

import { CorruptionError } from '../base/index.ts';
import type { LmdbDatabaseView, LmdbFile } from '../records/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import type { RecoveryRecord } from './backup-side.ts';

const RECORD_KEY = 'recovery';
const MAP_PREFIX = 'overwrite-map ';
const SIDE_ONLY_KEY = 'side-only';
/** Of the last recovery of a part that is over. */
export const RECOVERED_KEY = 'recovered';
/** Tracks of one piece of the map: at most 8 KiB of a roaring bitmap. */
const PIECE_TRACKS = 65_536;

/** How a recovery begins. */
export interface RecoveryStart {
  readonly record: RecoveryRecord;
  /** The tracks that need not be brought in: they are in the home, durably, or are known to be zeroes there. */
  readonly current: TrackSet;
  readonly trackCount: number;
}

/** The pieces of the overwrite map, by their number: the tracks of each that are current. */
export type MapPieces = ReadonlyMap<number, TrackSet>;

export function mapPieceOf(track: number): number {
  return Math.floor(track / PIECE_TRACKS);
}

export function tracksOfMapPiece(piece: number, trackCount: number): TrackRun {
  const first = piece * PIECE_TRACKS;
  return { first, count: Math.min(PIECE_TRACKS, trackCount - first) };
}

/** Whether a record of the state file is part of a recovery. */
export function isRecoveryKey(key: string): boolean {
  return key === RECORD_KEY || key === SIDE_ONLY_KEY || key.startsWith(MAP_PREFIX);
}

/** Whether the records of a state file have all of a recovery, or none of it. */
export function hasWholeRecovery(keys: readonly string[], trackCount: number): boolean {
  const found = keys.filter(isRecoveryKey).filter((key) => key !== SIDE_ONLY_KEY);
  return found.length === 0 || (found.includes(RECORD_KEY) && found.length === 1 + pieceCountOf(trackCount));
}

function pieceCountOf(trackCount: number): number {
  return Math.ceil(trackCount / PIECE_TRACKS);
}

export class RecoveryState {
  readonly #file: LmdbFile;
  readonly #state: LmdbDatabaseView;

  constructor(file: LmdbFile) {
    this.#file = file;
    this.#state = file.database('state');
  }

  /** Undefined where the volume is not under recovery. @throws {CorruptionError} */
  get record(): RecoveryRecord | undefined {
    const bytes = this.#state.get(RECORD_KEY);
    if (bytes !== undefined) return JSON.parse(bytes.toString());
    // They go together: without its record, what is missing would pass for what is there.
    if (this.#state.get(keyOf(0)) !== undefined) throw this.#damaged('its record');
    return undefined;
  }

  /** The last recovery of ranges that is over, as far as that is known. */
  get recovered(): RecoveryRecord | undefined {
    try {
      const bytes = this.#state.get(RECOVERED_KEY);
      return bytes === undefined ? undefined : JSON.parse(bytes.toString());
    } catch (error) {
      if (error instanceof CorruptionError) return undefined;
      throw error;
    }
  }

  /** The tracks whose current content is in the home, durably. @throws {CorruptionError} */
  current(trackCount: number): TrackSet {
    const where = `${this.#file.path} overwrite map`;
    const pieces = Array.from({ length: pieceCountOf(trackCount) }, (_, piece) => {
      const bytes = this.#state.get(keyOf(piece));
      if (bytes === undefined) throw this.#damaged(`piece ${piece} of the overwrite map`);
      return TrackSet.deserialize(bytes, where, trackCount);
    });
    return TrackSet.union(pieces);
  }

  /** The tracks of which the side may hold something newer than a medium. @throws {CorruptionError} */
  sideOnly(trackCount: number): TrackSet {
    const bytes = this.#state.get(SIDE_ONLY_KEY);
    if (bytes === undefined) return TrackSet.empty();
    return TrackSet.deserialize(bytes, `${this.#file.path} side-only tracks`, trackCount);
  }

  async saveSideOnly(tracks: TrackSet): Promise<void> {
    await this.#commit(() => this.#state.put(SIDE_ONLY_KEY, tracks.serialize()));
  }

  #damaged(what: string): CorruptionError {
    const where = this.#file.path;
    return new CorruptionError(`State of a recovery in ${where} is damaged: ${what} is missing`, { where });
  }

  /** Inside a transaction of the caller's. */
  put({ record, current, trackCount }: RecoveryStart): void {
    this.#state.put(RECORD_KEY, json(record));
    for (let piece = 0; piece < pieceCountOf(trackCount); piece += 1) {
      const tracks = current.intersection(TrackSet.ofRun(tracksOfMapPiece(piece, trackCount)));
      this.#state.put(keyOf(piece), tracks.serialize());
    }
  }

  /** Begins a recovery, durably. */
  async begin(start: RecoveryStart): Promise<void> {
    await this.#commit(() => this.put(start));
  }

  /** Without effect where the recovery is over: there is no map any more that the record would go with. */
  async saveRecord(record: RecoveryRecord): Promise<void> {
    await this.#commit(() => {
      if (this.#state.get(RECORD_KEY) !== undefined) this.#state.put(RECORD_KEY, json(record));
    });
  }

  /** What it says is current must be durable in the home. Calls must not overlap. */
  async savePieces(pieces: MapPieces): Promise<void> {
    if (pieces.size === 0) return;
    await this.#commit(() => {
      for (const [piece, tracks] of pieces) this.#state.put(keyOf(piece), tracks.serialize());
    });
  }

  /** The recovery is over, durably: everything is in the home, and durable there. */
  async end(trackCount: number): Promise<void> {
    const { record } = this;
    await this.#commit(() => {
      if (record?.ranges !== undefined) this.#state.put(RECOVERED_KEY, json(record));
      this.#state.remove(RECORD_KEY);
      this.#state.remove(SIDE_ONLY_KEY);
      for (let piece = 0; piece < pieceCountOf(trackCount); piece += 1) this.#state.remove(keyOf(piece));
    });
  }

  async #commit(body: () => void): Promise<void> {
    this.#file.transaction(body);
    await this.#file.sync('volume-state');
  }
}

function keyOf(piece: number): string {
  return `${MAP_PREFIX}${piece}`;
}

function json(value: object): Buffer {
  return Buffer.from(JSON.stringify(value));
}
