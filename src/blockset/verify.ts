/**
 * Verifies sets: seal, structure and every byte. A damaged set does not end the run: each set is reported by
 * itself, with its damaged tracks named, and the caller decides what that means.
 */

import { CorruptionError, messageOf } from '../base/index.ts';
import { StoreError } from './errors.ts';
import { selectSet, type StoredSet } from './lineage.ts';
import type { SetReader } from './set-reader.ts';
import type { Store } from './store.ts';

export interface VerifiedSet {
  readonly set: StoredSet;
  /** Whether every byte of the set is what was written. */
  readonly sound: boolean;
  /** Tracks whose content is damaged, ascending; where the metadata is damaged they are not known. */
  readonly damagedTracks: readonly number[];
  /** What was found, one sentence each; a damaged frame is one finding. */
  readonly findings: readonly string[];
  /** Bytes of content that were read and matched their hashes. */
  readonly checkedBytes: number;
}

/** Findings kept of one set; a disk that fails throughout would otherwise fill the memory. */
const FINDINGS_MAX = 100;

/**
 * Verifies the set that the selector names, or all sets of the store, oldest id first, one at a time.
 *
 * @param onProgress called with the bytes of content checked since the last call.
 * @throws {StoreError} `unknown-set` or `ambiguous-set`, before the first set; `no-space` where a set cannot be
 *   opened because its disk is full.
 */
export async function* verify(
  store: Store,
  options: { selector?: string; onProgress?: (bytes: number) => void } = {},
): AsyncGenerator<VerifiedSet> {
  const all = await store.list();
  const sets = options.selector === undefined ? all : [selectSet(all, options.selector)];
  for (const set of sets) yield await verifySet(store, set, options.onProgress);
}

async function verifySet(
  store: Store,
  set: StoredSet,
  onProgress: ((bytes: number) => void) | undefined,
): Promise<VerifiedSet> {
  let reader: SetReader;
  try {
    reader = store.openSet(set);
  } catch (error) {
    if (!(error instanceof CorruptionError) && !(error instanceof StoreError)) throw error;
    // A full disk, where LMDB has no room for its readers' table, says nothing about the set.
    if (error instanceof StoreError && error.code === 'no-space') throw error;
    return { set, sound: false, damagedTracks: [], findings: [error.message], checkedBytes: 0 };
  }
  try {
    const found = readEverything(reader, onProgress);
    if (set.damage !== undefined) found.findings.push(set.damage);
    return { set, sound: found.findings.length === 0, ...found };
  } finally {
    await reader.close();
  }
}

function readEverything(
  reader: SetReader,
  onProgress: ((bytes: number) => void) | undefined,
): { damagedTracks: number[]; findings: string[]; checkedBytes: number } {
  const damagedTracks: number[] = [];
  const findings: string[] = [];
  let checkedBytes = 0;
  let trackCount = reader.zeroes.size;
  try {
    for (const plan of reader.readPlan(reader.present)) {
      trackCount += plan.tracks.length;
      try {
        const read = reader.readFrame(plan);
        const bytes = read.reduce((sum, { content }) => sum + content.length, 0);
        checkedBytes += bytes;
        onProgress?.(bytes);
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
        damagedTracks.push(...(error.place.tracks ?? plan.tracks));
        if (findings.length < FINDINGS_MAX) findings.push(error.message);
      }
    }
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    findings.push(messageOf(error));
  }
  if (trackCount !== reader.counters.tracks) {
    findings.push(
      `Block set ${reader.id} has ${trackCount} tracks, its header says ${reader.counters.tracks}`,
    );
  }
  return { damagedTracks: damagedTracks.sort((a, b) => a - b), findings, checkedBytes };
}
