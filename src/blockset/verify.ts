/**
 * Verifies sets: seal, structure and every byte, or a part of that. A damaged set does not end the run: each set is
 * reported by itself, with its damaged tracks named, and the caller decides what that means.
 *
 * - `structure` opens each set: the length and structure of every file, the seal over all metadata;
 * - `bytes` reads every frame besides and compares each track with its hash;
 * - `sample` reads a part of all frames, where the last sample ended: after one over that part runs, all were read.
 *
 * A run notes in the store how far it has come, so that one that was interrupted can be resumed; what it had found
 * damaged is read and reported again. A set is leased while it is read, so that it is not removed meanwhile.
 */

import { CorruptionError, messageOf, MIB } from '../base/index.ts';
import { StoreError } from './errors.ts';
import type { FramePlan } from './lane-reader.ts';
import { selectSet, type StoredSet } from './lineage.ts';
import type { SetReader } from './set-reader.ts';
import type { Store } from './store.ts';
import { readVerifyState, type VerifyPlace, writeVerifyState } from './verify-state.ts';

export interface DamagedFrame {
  /** The lane's file. */
  readonly path: string;
  readonly lane: number;
  /** The frame's key in it. */
  readonly frame: number;
  readonly tracks: readonly number[];
}

export interface ByteRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface VerifiedSet {
  readonly set: StoredSet;
  /** Whether all that was read of the set is what was written. */
  readonly sound: boolean;
  /** Whether every byte of the set was read; false after `structure`, a sample, and the first part of a resumed run. */
  readonly isWhole: boolean;
  /** Tracks whose content is damaged, ascending; where the metadata is damaged they are not known. */
  readonly damagedTracks: readonly number[];
  /** The same as ranges of the volume, ascending. */
  readonly damagedRanges: readonly ByteRange[];
  readonly damagedFrames: readonly DamagedFrame[];
  /** What was found, one sentence each; a damaged frame is one finding. */
  readonly findings: readonly string[];
  /** Bytes of content that were read and matched their hashes. */
  readonly checkedBytes: number;
}

export type VerifyExtent =
  { readonly kind: 'structure' | 'bytes' } | { readonly kind: 'sample'; readonly fraction: number };

export interface VerifyOptions {
  /** The set to verify; all of the store where left out. */
  readonly selector?: string;
  /** Every byte where left out. A sample is of the whole store. */
  readonly extent?: VerifyExtent;
  /** Go on where a run for the same sets was interrupted; from the start where none was. */
  readonly resume?: boolean;
  /** Called with the bytes of content checked since the last call. What it throws interrupts the run. */
  readonly onProgress?: (bytes: number) => void;
}

/** Findings kept of one set; a disk that fails throughout would otherwise fill the memory. */
const FINDINGS_MAX = 100;
/** How much is read anew at the most after a run was killed. */
const NOTED_EVERY_BYTES = 256 * MIB;

/**
 * Verifies the set that the selector names, or all sets of the store, oldest id first, one at a time.
 *
 * @throws {StoreError} `unknown-set` or `ambiguous-set`, before the first set; `no-space` where a set cannot be
 *   opened because its disk is full; `read-only` where a sample cannot note where it ended.
 */
export async function* verify(store: Store, options: VerifyOptions = {}): AsyncGenerator<VerifiedSet> {
  const all = await store.list();
  const extent = options.extent ?? { kind: 'bytes' };
  if (extent.kind === 'sample') {
    yield* verifySample(store, all, extent.fraction, options);
    return;
  }
  const sets = options.selector === undefined ? all : [selectSet(all, options.selector)];
  if (extent.kind === 'structure') {
    for (const set of sets) yield await verifySet(store, set, { countMax: 0 });
    return;
  }
  yield* new Run(store, sets, options).verify();
}

/** A run over every byte, which notes how far it has come. */
class Run {
  readonly #store: Store;
  readonly #sets: readonly StoredSet[];
  readonly #options: VerifyOptions;
  readonly #selector: string;
  readonly #damaged = new Set<string>();
  #next: VerifyPlace | undefined;
  #notedBytes = 0;

  constructor(store: Store, sets: readonly StoredSet[], options: VerifyOptions) {
    this.#store = store;
    this.#sets = sets;
    this.#options = options;
    this.#selector = options.selector === undefined ? '' : (sets[0]?.id ?? '');
  }

  async *verify(): AsyncGenerator<VerifiedSet> {
    const { run } = readVerifyState(this.#store.path);
    const resumed = this.#options.resume === true && run?.selector === this.#selector ? run : undefined;
    for (const id of resumed?.damaged ?? []) this.#damaged.add(id);
    let isDone = false;
    try {
      for (const set of this.#sets) {
        const isBehind = resumed !== undefined && set.id < resumed.next.set;
        if (isBehind && !this.#damaged.has(set.id)) continue;
        const isHere = set.id === resumed?.next.set && !this.#damaged.has(set.id);
        const verified = await this.#verifySet(set, isHere ? resumed.next.frame : 0);
        if (!verified.sound) this.#damaged.add(set.id);
        yield verified;
      }
      isDone = true;
    } finally {
      await this.#note(isDone);
    }
  }

  #verifySet(set: StoredSet, from: number): Promise<VerifiedSet> {
    this.#next = { set: set.id, frame: from };
    return verifySet(this.#store, set, {
      from,
      onFrame: async (frame, bytes, isSound) => {
        this.#next = { set: set.id, frame: frame + 1 };
        if (!isSound) this.#damaged.add(set.id);
        this.#notedBytes += bytes;
        this.#options.onProgress?.(bytes);
        if (this.#notedBytes >= NOTED_EVERY_BYTES) await this.#note(false);
      },
    });
  }

  async #note(isDone: boolean): Promise<void> {
    this.#notedBytes = 0;
    const { sample, run } = readVerifyState(this.#store.path);
    if (isDone && run?.selector !== this.#selector) return;
    const next = this.#next;
    const noted =
      isDone || next === undefined
        ? {}
        : { run: { selector: this.#selector, next, damaged: [...this.#damaged] } };
    await writeVerifyState(this.#store.path, { ...noted, ...(sample === undefined ? {} : { sample }) });
  }
}

/** Reads a part of all frames, from where the last sample ended, beginning anew behind the last set. */
async function* verifySample(
  store: Store,
  all: readonly StoredSet[],
  fraction: number,
  options: VerifyOptions,
): AsyncGenerator<VerifiedSet> {
  const state = readVerifyState(store.path);
  const start = state.sample ?? { set: '', frame: 0 };
  const total = all.reduce((sum, { counters }) => sum + contentTracks(counters), 0);
  let budget = Math.ceil(total * fraction);
  let next: VerifyPlace = start;
  // Once round, and last the part of the first set that lies before the start.
  const round = [
    ...all
      .filter(({ id }) => id >= start.set)
      .map((set) => ({ set, from: set.id === start.set ? start.frame : 0 })),
    ...all.filter(({ id }) => id < start.set).map((set) => ({ set, from: 0 })),
    ...all.filter(({ id }) => id === start.set).map((set) => ({ set, from: 0, to: start.frame })),
  ];
  for (const { set, ...part } of round) {
    if (budget <= 0) break;
    const verified = await verifySet(store, set, {
      ...part,
      countMax: budget,
      onFrame: (frame, bytes, _isSound, count) => {
        next = { set: set.id, frame: frame + 1 };
        budget -= count;
        options.onProgress?.(bytes);
      },
    });
    // Behind its last frame the next set follows, whichever that will be.
    if (budget > 0) next = { set: `${set.id}~`, frame: 0 };
    yield verified;
  }
  const { run } = state;
  const isNoted = await writeVerifyState(store.path, { ...(run === undefined ? {} : { run }), sample: next });
  if (isNoted) return;
  const message = `Store ${store.path} cannot be written, and a sample must note where it ended`;
  throw new StoreError('read-only', message, { path: store.path });
}

function contentTracks(counters: StoredSet['counters']): number {
  return counters === undefined ? 0 : counters.tracks - counters.zeroTracks;
}

interface Reading {
  /** The first frame to be read, by its place in the plan. */
  readonly from?: number;
  /** The frame after the last that is read; all where left out. */
  readonly to?: number;
  /** Tracks after which no further frame is read. */
  readonly countMax?: number;
  readonly onFrame?: (frame: number, bytes: number, isSound: boolean, count: number) => Promise<void> | void;
}

async function verifySet(store: Store, set: StoredSet, reading: Reading): Promise<VerifiedSet> {
  const nothing = {
    set,
    isWhole: false,
    damagedTracks: [],
    damagedRanges: [],
    damagedFrames: [],
    checkedBytes: 0,
  };
  let reader: SetReader;
  try {
    reader = store.openSet(set);
  } catch (error) {
    if (!(error instanceof CorruptionError) && !(error instanceof StoreError)) throw error;
    // A full disk, where LMDB has no room for its readers' table, says nothing about the set.
    if (error instanceof StoreError && error.code === 'no-space') throw error;
    // Merged or pruned since the list was made: there is nothing to say about it.
    const isRemoved = error instanceof StoreError && error.code === 'removed' && set.damage === undefined;
    return { ...nothing, sound: isRemoved, findings: isRemoved ? [] : [error.message] };
  }
  try {
    const found = new Findings(reader);
    await found.read(reading);
    if (set.damage !== undefined) found.findings.push(set.damage);
    return { set, ...found.result() };
  } finally {
    await reader.close();
  }
}

/** What reading one set brings to light. */
class Findings {
  readonly findings: string[] = [];
  readonly #reader: SetReader;
  readonly #tracks: number[] = [];
  readonly #frames: DamagedFrame[] = [];
  #checkedBytes = 0;
  #isWhole = false;

  constructor(reader: SetReader) {
    this.#reader = reader;
  }

  async read(reading: Reading): Promise<void> {
    const { from = 0, to = Number.POSITIVE_INFINITY, countMax = Number.POSITIVE_INFINITY, onFrame } = reading;
    const reader = this.#reader;
    let trackCount = reader.zeroes.size;
    let readCount = 0;
    let frame = -1;
    try {
      for (const plan of reader.readPlan(reader.present)) {
        frame += 1;
        trackCount += plan.tracks.length;
        if (frame < from) continue;
        if (readCount >= countMax || frame >= to) return;
        readCount += plan.tracks.length;
        const bytes = this.#readFrame(plan);
        await onFrame?.(frame, bytes ?? 0, bytes !== undefined, plan.tracks.length);
      }
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.findings.push(messageOf(error));
    }
    this.#isWhole = from === 0;
    if (trackCount === reader.counters.tracks) return;
    this.findings.push(
      `Block set ${reader.id} has ${trackCount} tracks, its header says ${reader.counters.tracks}`,
    );
  }

  /** @returns the bytes read, or undefined where the frame is damaged. */
  #readFrame(plan: FramePlan): number | undefined {
    try {
      const read = this.#reader.readFrame(plan);
      const bytes = read.reduce((sum, { content }) => sum + content.length, 0);
      this.#checkedBytes += bytes;
      return bytes;
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      const tracks = error.place.tracks ?? plan.tracks;
      this.#tracks.push(...tracks);
      if (this.findings.length >= FINDINGS_MAX) return undefined;
      const path = this.#reader.paths[plan.lane] ?? this.#reader.path;
      this.findings.push(error.message);
      this.#frames.push({ path, lane: plan.lane, frame: plan.frame, tracks });
      return undefined;
    }
  }

  result(): Omit<VerifiedSet, 'set'> {
    const damagedTracks = this.#tracks.sort((a, b) => a - b);
    return {
      sound: this.findings.length === 0,
      isWhole: this.#isWhole,
      damagedTracks,
      damagedRanges: rangesOf(damagedTracks, this.#reader.header),
      damagedFrames: this.#frames,
      findings: this.findings,
      checkedBytes: this.#checkedBytes,
    };
  }
}

/** Tracks, ascending, as ranges of their volume. */
function rangesOf(
  tracks: readonly number[],
  { sizeBytes, trackSizeBytes }: { sizeBytes: number; trackSizeBytes: number },
): ByteRange[] {
  const ranges: { offsetBytes: number; lengthBytes: number }[] = [];
  for (const track of tracks) {
    const offsetBytes = track * trackSizeBytes;
    const endBytes = Math.min(sizeBytes, offsetBytes + trackSizeBytes);
    const last = ranges.at(-1);
    if (last !== undefined && last.offsetBytes + last.lengthBytes >= offsetBytes) {
      last.lengthBytes = endBytes - last.offsetBytes;
    } else ranges.push({ offsetBytes, lengthBytes: endBytes - offsetBytes });
  }
  return ranges;
}
