/**
 * A set as the records of its files, for those who carry sets elsewhere without looking into them: sequential
 * media. What is carried so keeps its id, its seal and its compression, and needs no key where it is encrypted.
 *
 * Read side: `RawSet` hands out every record of every lane, each checked against its checksum. Write side:
 * `RawSetWriter` takes the records in any order, some perhaps twice, into partial files; `seal` compares the
 * metadata with the seal that came along, and the counts of frames with what it names, and only then makes the
 * set visible. Until then the writer holds an flock, as any writer of a set does, and what a crash leaves is
 * removed at the next open of the store.
 *
 * All lanes come to lie in the store, beside each other, wherever the set says that they were written: a reader
 * looks there first. What a crash leaves is put in order by what lane 0 says, which is the other place; hence the
 * write order differs from an assembly's in that the further lanes get their names before lane 0 gets its seal.
 *
 * Neither interprets tracks, and neither touches the catalog: opening the store enters what has become complete.
 */

import { closeSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { assert, CorruptionError, present, syncDirectory } from '../base/index.ts';
import { type LmdbFile, openLmdb } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { asStoreErrors, asStoreErrorsLater } from './errors.ts';
import type { StoredSet } from './lineage.ts';
import { fileCipher, type MasterKey } from './master-key.ts';
import { newLaneFile, type NewLaneFile } from './new-lane-file.ts';
import {
  DATABASES,
  decodeSeal,
  digestMetadata,
  KEY_KEY,
  laneFileName,
  SEAL_KEY,
  u32Key,
} from './set-format.ts';

/** The databases of a lane's file, in the order in which their numbers stand in other formats: only ever added to. */
export const RAW_DATABASES = ['header', 'frames', 'order', 'hashes', 'present'] as const;
export type RawDatabase = (typeof RAW_DATABASES)[number];

export interface RawRecord {
  readonly lane: number;
  readonly database: RawDatabase;
  readonly key: Buffer;
  readonly value: Buffer;
}

/** Bytes that one transaction of a writer holds about. */
const BATCH_BYTES = 8 * 1024 * 1024;

export class RawSet {
  readonly id: string;
  readonly #lanes: readonly LmdbFile[];

  /**
   * Opens the files of a complete set; the caller closes it.
   *
   * @throws {CorruptionError} where a file is damaged. @throws {StoreError} `io`.
   */
  static open(set: StoredSet): RawSet {
    const lanes: LmdbFile[] = [];
    try {
      for (const path of set.lanePaths) {
        lanes.push(asStoreErrors(path, () => openLmdb(path, { readOnly: true, whole: true, ownLock: true })));
      }
      return new RawSet(set.id, lanes);
    } catch (error) {
      for (const lane of lanes) void lane.close();
      throw error;
    }
  }

  private constructor(id: string, lanes: readonly LmdbFile[]) {
    this.id = id;
    this.#lanes = lanes;
  }

  /** Whether the records are encrypted: what the set holds shows in none of them. */
  get isEncrypted(): boolean {
    return this.#lane(0).database(DATABASES.header).get(KEY_KEY) !== undefined;
  }

  get laneCount(): number {
    return this.#lanes.length;
  }

  /** Frames of all lanes. */
  get frameCount(): number {
    return this.#lanes.reduce((sum, lane) => sum + lane.database(DATABASES.frames).count(), 0);
  }

  /** Records of all lanes that are no frames. */
  get metadataCount(): number {
    const names = RAW_DATABASES.filter((name) => name !== 'frames');
    const counts = this.#lanes.flatMap((lane) => names.map((name) => lane.database(name).count()));
    return counts.reduce((sum, count) => sum + count, 0);
  }

  /** The numbers of a lane's frames, ascending. */
  *frameNumbers(lane: number): Generator<number> {
    for (const key of this.#lane(lane).database(DATABASES.frames).keys()) yield key.readUInt32BE(0);
  }

  /** @throws {CorruptionError} where the frame is missing or fails its checksum. */
  frame(lane: number, frame: number): RawRecord {
    const file = this.#lane(lane);
    const key = u32Key(frame);
    const value = file.database(DATABASES.frames).get(key);
    if (value !== undefined) return { lane, database: 'frames', key, value };
    throw new CorruptionError(`Block set ${this.id} is damaged: frame ${frame} is missing`, {
      where: file.path,
    });
  }

  /** All records that are no frames, lane 0 last and its seal the very last. */
  *metadata(): Generator<RawRecord> {
    let seal: RawRecord | undefined;
    for (let lane = this.laneCount - 1; lane >= 0; lane -= 1) {
      for (const database of RAW_DATABASES) {
        if (database === 'frames') continue;
        for (const { key, value } of this.#lane(lane).database(database).range()) {
          const record: RawRecord = { lane, database, key, value };
          if (isSeal(record)) seal = record;
          else yield record;
        }
      }
    }
    if (seal !== undefined) yield seal;
  }

  #lane(lane: number): LmdbFile {
    return present(this.#lanes[lane], `Set ${this.id} has no lane ${lane}`);
  }

  async close(): Promise<void> {
    for (const lane of this.#lanes) await lane.close();
  }
}

/** The seal that decides; further lanes may have one of their own, which is metadata like other. */
function isSeal(record: RawRecord): boolean {
  return record.lane === 0 && record.database === 'header' && record.key.equals(Buffer.from(SEAL_KEY));
}

interface LaneFile extends NewLaneFile {
  readonly path: string;
  readonly frames: TrackSet;
}

export class RawSetWriter {
  readonly id: string;
  readonly #directory: string;
  readonly #master: MasterKey | undefined;
  readonly #lanes = new Map<number, LaneFile>();
  readonly #metadata = new Set<string>();
  #batch: RawRecord[] = [];
  #batchBytes = 0;
  #seal: Buffer | undefined;
  #state: 'open' | 'sealed' | 'aborted' = 'open';

  /**
   * Begins a set in a store. Nothing is visible before `seal`.
   *
   * @param directory of the store's sets.
   * @param id of the set, which the store must not have.
   * @param master of an encrypted store: it must be what the set's own keys were wrapped with.
   */
  constructor(directory: string, id: string, master: MasterKey | undefined) {
    assert(/^[0-9A-HJKMNP-TV-Z]{26}$/.test(id), `${id} is no id of a set`);
    this.id = id;
    this.#directory = directory;
    this.#master = master;
  }

  /** Frames taken so far, each counted once. */
  get frameCount(): number {
    return [...this.#lanes.values()].reduce((sum, lane) => sum + lane.frames.size, 0);
  }

  /** Records other than frames taken so far, each counted once. */
  get metadataCount(): number {
    return this.#metadata.size;
  }

  /**
   * Takes a record; one with the key of an earlier one replaces it. The buffers must not change before `seal`.
   *
   * @throws {StoreError} `no-space` or `io`; the writer can then only be aborted.
   */
  put(record: RawRecord): void {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    const lane = this.#lane(record.lane);
    if (record.database === 'frames') lane.frames.add(record.key.readUInt32BE(0));
    else this.#metadata.add(`${record.lane} ${record.database} ${record.key.toString('hex')}`);
    if (isSeal(record)) {
      this.#seal = record.value;
      return;
    }
    this.#batch.push(record);
    this.#batchBytes += record.value.length;
    if (this.#batchBytes >= BATCH_BYTES) this.#commit();
  }

  #lane(number: number): LaneFile {
    const known = this.#lanes.get(number);
    if (known !== undefined) return known;
    // Lane 0 is made first: a lane without it counts as left by a crash.
    if (number > 0) this.#lane(0);
    const path = join(this.#directory, laneFileName(this.id, number));
    const lane = {
      path,
      ...asStoreErrors(path, () => newLaneFile(`${path}.partial`)),
      frames: TrackSet.empty(),
    };
    this.#lanes.set(number, lane);
    return lane;
  }

  #commit(): void {
    for (const [number, lane] of this.#lanes) {
      const records = this.#batch.filter((record) => record.lane === number);
      if (records.length === 0) continue;
      asStoreErrors(lane.path, () =>
        lane.file.transaction(() => {
          for (const { database, key, value } of records) lane.file.database(database).put(key, value);
        }),
      );
    }
    this.#batch = [];
    this.#batchBytes = 0;
  }

  /**
   * Checks the set against its seal and makes it visible, durably.
   *
   * @param seal what the set was announced with, 64 hexadecimal digits.
   * @throws {CorruptionError} where the set is not what was sealed, or is of a store with another key; the writer
   *   can then only be aborted.
   * @throws {StoreError} `key-needed` where the set is encrypted and the store is not.
   */
  async seal(seal: string): Promise<void> {
    assert(this.#state === 'open', `Set ${this.id} is ${this.#state}`);
    const record = this.#seal;
    const first = this.#lanes.get(0);
    if (record === undefined || first === undefined) throw this.#damaged('it came without a seal');
    this.#commit();
    this.#check(record, seal);
    await asStoreErrorsLater(first.path, async () => {
      for (const lane of this.#lanes.values()) await lane.file.sync('set-data');
      for (const [number, lane] of this.#lanes) if (number > 0) await giveName(lane);
      await syncDirectory('set-directory', this.#directory);
      first.file.transaction(() => first.file.database(DATABASES.header).put(SEAL_KEY, record));
      await first.file.sync('set-seal');
      await giveName(first);
      await syncDirectory('set-directory', this.#directory);
    });
    this.#state = 'sealed';
    for (const lane of this.#lanes.values()) closeSync(lane.lock);
  }

  #check(record: Buffer, wanted: string): void {
    const { seal, lanes } = decodeSeal(record, this.id);
    if (seal !== wanted) throw this.#damaged(`its seal is ${seal}, wanted ${wanted}`);
    if (lanes.length !== this.#lanes.size) {
      throw this.#damaged(`it came with ${this.#lanes.size} of ${lanes.length} lanes`);
    }
    for (const [number, sealed] of lanes.entries()) {
      const lane = this.#lanes.get(number);
      if (lane === undefined) throw this.#damaged(`lane ${number} is missing`);
      if (lane.frames.size !== sealed.frames) {
        throw this.#damaged(`lane ${number} came with ${lane.frames.size} of ${sealed.frames} frames`);
      }
      fileCipher(lane.file.database(DATABASES.header).get(KEY_KEY), this.#master, lane.path);
      if (!digestMetadata(lane.file).equals(sealed.metadata)) {
        throw this.#damaged(`the metadata of lane ${number} is not what was sealed`);
      }
    }
  }

  #damaged(what: string): CorruptionError {
    return new CorruptionError(`Block set ${this.id} cannot be taken: ${what}`, { where: this.id });
  }

  /** Removes what was written, unless it was sealed; lane 0 goes last. */
  async abort(): Promise<void> {
    if (this.#state !== 'open') return;
    this.#state = 'aborted';
    for (const [, lane] of [...this.#lanes].sort(([a], [b]) => b - a)) {
      await lane.file.close();
      rmSync(lane.path, { force: true });
      rmSync(`${lane.path}.partial`, { force: true });
      closeSync(lane.lock);
    }
  }
}

async function giveName(lane: LaneFile): Promise<void> {
  await lane.file.close();
  renameSync(`${lane.path}.partial`, lane.path);
}
