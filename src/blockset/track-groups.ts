/**
 * The metadata of the tracks of a set that is being written: where each arrived and what it hashes to.
 *
 * A full set of a large volume has tens of millions of tracks, so the metadata is kept in groups of 4096
 * tracks, the records of the file, and only some groups stay in memory. A session adds tracks mostly in
 * order; a group that has not been touched for long is written, and read back if a diverted track comes
 * late. Adding a track twice is a programmer's error, found here.
 */

import { assert, present } from '../base/index.ts';
import { DIGEST_BYTES, type LmdbDatabaseView } from '../records/index.ts';
import {
  decodeRuns,
  encodeRuns,
  GROUP_TRACKS,
  orderKey,
  type OrderRun,
  u32Key,
  ZERO_FRAME,
} from './set-format.ts';

/** Groups kept in memory, about 160 KiB each. */
const GROUPS_MAX = 48;
const ABSENT = 0xffff_fffe;

class Group {
  /** By track in the group: the frame, `ZERO_FRAME` or `ABSENT`. */
  readonly frames = new Uint32Array(GROUP_TRACKS).fill(ABSENT);
  readonly positions = new Uint32Array(GROUP_TRACKS);
  /** Made with the first track that has content; groups of zeroes need none. */
  hashes: Buffer | undefined;
}

export class TrackGroups {
  readonly #order: LmdbDatabaseView;
  readonly #hashes: LmdbDatabaseView;
  readonly #trackCount: number;
  readonly #where: string;
  /** Insertion order is the order of last use. */
  readonly #groups = new Map<number, Group>();
  readonly #written = new Set<number>();

  constructor(parts: {
    order: LmdbDatabaseView;
    hashes: LmdbDatabaseView;
    trackCount: number;
    where: string;
  }) {
    this.#order = parts.order;
    this.#hashes = parts.hashes;
    this.#trackCount = parts.trackCount;
    this.#where = parts.where;
  }

  /** Whether groups wait to be written: `spill` should be called in the next transaction. */
  get isCrowded(): boolean {
    return this.#groups.size > GROUPS_MAX;
  }

  add(track: number, place: { frame: number; position: number; hash: Buffer }): void {
    const { group, index } = this.#slot(track);
    group.frames[index] = place.frame;
    group.positions[index] = place.position;
    group.hashes ??= Buffer.alloc(GROUP_TRACKS * DIGEST_BYTES);
    place.hash.copy(group.hashes, index * DIGEST_BYTES);
  }

  addZero(track: number): void {
    const { group, index } = this.#slot(track);
    group.frames[index] = ZERO_FRAME;
  }

  /** Where a track with content that was added lies, and its hash. */
  placeOf(track: number): { frame: number; position: number; hash: Buffer } {
    const number = Math.floor(track / GROUP_TRACKS);
    const group = this.#groups.get(number) ?? this.#load(number);
    const index = track % GROUP_TRACKS;
    const frame = group.frames[index] ?? ABSENT;
    assert(frame !== ABSENT && frame !== ZERO_FRAME, `Track ${track} is not in the set with content`);
    const hashes = present(group.hashes, 'A track with content has a hash');
    const hash = Buffer.from(hashes.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES));
    return { frame, position: group.positions[index] ?? 0, hash };
  }

  #slot(track: number): { group: Group; index: number } {
    assert(
      Number.isInteger(track) && track >= 0 && track < this.#trackCount,
      `Track ${track} is not below ${this.#trackCount}`,
    );
    const number = Math.floor(track / GROUP_TRACKS);
    const group = this.#groups.get(number) ?? this.#load(number);
    const index = track % GROUP_TRACKS;
    assert(group.frames[index] === ABSENT, `Track ${track} is in the set already`);
    return { group, index };
  }

  #load(number: number): Group {
    const group = new Group();
    this.#groups.set(number, group);
    if (!this.#written.has(number)) return group;
    const runs = decodeRuns(present(this.#order.get(orderKey(number)), 'A group was written'), {
      where: this.#where,
      group: number,
      trackCount: this.#trackCount,
    });
    const hashes = this.#hashes.get(u32Key(number));
    let rank = 0;
    for (const run of runs) {
      for (let step = 0; step < run.count; step += 1) {
        const index = (run.first % GROUP_TRACKS) + step;
        group.frames[index] = run.frame;
        group.positions[index] = run.position + step;
        if (run.frame === ZERO_FRAME) continue;
        group.hashes ??= Buffer.alloc(GROUP_TRACKS * DIGEST_BYTES);
        present(hashes, 'Hashes were written').copy(
          group.hashes,
          index * DIGEST_BYTES,
          rank * DIGEST_BYTES,
          (rank + 1) * DIGEST_BYTES,
        );
        rank += 1;
      }
    }
    return group;
  }

  /** Writes the groups that have been in memory longest; inside a transaction. */
  spill(): void {
    for (const number of [...this.#groups.keys()].slice(0, this.#groups.size - GROUPS_MAX / 2)) {
      this.#write(number);
    }
  }

  /** Writes all that is left; inside a transaction. */
  writeAll(): void {
    for (const number of [...this.#groups.keys()].sort((a, b) => a - b)) this.#write(number);
  }

  #write(number: number): void {
    const group = present(this.#groups.get(number), 'A group in memory');
    this.#order.put(orderKey(number), encodeRuns(runsOf(group, number)));
    if (group.hashes !== undefined) this.#hashes.put(u32Key(number), packedHashes(group, group.hashes));
    this.#groups.delete(number);
    this.#written.add(number);
  }
}

/** The group's tracks as runs, cut where the frame changes or the position jumps. */
function runsOf(group: Group, number: number): OrderRun[] {
  const runs: { first: number; count: number; frame: number; position: number }[] = [];
  for (let index = 0; index < GROUP_TRACKS; index += 1) {
    const frame = group.frames[index] ?? ABSENT;
    if (frame === ABSENT) continue;
    const track = number * GROUP_TRACKS + index;
    const position = frame === ZERO_FRAME ? 0 : (group.positions[index] ?? 0);
    const last = runs.at(-1);
    const follows = last !== undefined && last.frame === frame && last.first + last.count === track;
    if (follows && (frame === ZERO_FRAME || last.position + last.count === position)) last.count += 1;
    else runs.push({ first: track, count: 1, frame, position });
  }
  return runs;
}

/** The hashes of the tracks that have content, in track order, without gaps. */
function packedHashes(group: Group, hashes: Buffer): Buffer {
  const packed = Buffer.allocUnsafe(hashes.length);
  let end = 0;
  for (let index = 0; index < GROUP_TRACKS; index += 1) {
    const frame = group.frames[index] ?? ABSENT;
    if (frame === ABSENT || frame === ZERO_FRAME) continue;
    end += hashes.copy(packed, end, index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES);
  }
  return packed.subarray(0, end);
}
