/** What the tests of this room share: volumes as plain maps, and stores made of them. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { CorruptionError, observeSyncs } from '../base/index.ts';
import { digest } from '../records/index.ts';
import { StoreError } from './errors.ts';
import type { NewSet } from './store.ts';
import { Store } from './store.ts';
import { LaneWriter } from './lane-writer.ts';
import { SetAssembly } from './set-assembly.ts';
import type { SealedSet, SetHeader } from './set-format.ts';
import { SetWriter } from './set-writer.ts';

export const TRACK_BYTES = 4096;

/** A whole track filled with a pattern made from the label, so that a wrong or stale track names itself. */
export function labelled(label: string, bytes: number = TRACK_BYTES): Buffer {
  return Buffer.alloc(bytes, `<${label}>`);
}

/** The label of a track that `labelled` made. */
export function labelOf(content: Buffer | undefined): string {
  return /^<([^>]*)>/.exec(content?.toString('latin1', 0, 64) ?? '')?.[1] ?? '-';
}

/** Content that does not compress. */
export function noise(seed: number, bytes: number = TRACK_BYTES): Buffer {
  const blocks: Buffer[] = [];
  for (let index = 0; index * 32 < bytes; index += 1) blocks.push(digest(Buffer.from(`${seed}.${index}`)));
  return Buffer.concat(blocks).subarray(0, bytes);
}

/** A directory of the test's own, on the machine's temporary file system. */
export function scratch(t: { teardown(fn: () => void): void }): string {
  const directory = mkdtempSync(`${tmpdir()}/cowbell-blockset-`);
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Leaves the disk out where a test is not about durability. */
export function withoutSyncs(t: { teardown(fn: () => void): void }): void {
  observeSyncs({ before: () => 'skip' });
  t.teardown(() => observeSyncs(undefined));
}

export function newSet(fields: Partial<NewSet> = {}): NewSet {
  const base = fields.base ?? null;
  return {
    volumeId: 'volume-1',
    volumeName: 'disk',
    level: base === null ? 'full' : 'incremental',
    base,
    point: 'point-1',
    sizeBytes: 16 * TRACK_BYTES,
    trackSizeBytes: TRACK_BYTES,
    codec: 'none',
    ...fields,
  };
}

/** Track number to label; null for a track of zeroes. */
export type Tracks = readonly (readonly [track: number, label: string | null])[];

export function addTracks(writer: SetWriter, tracks: Tracks): void {
  for (const [track, label] of tracks) {
    if (label === null) writer.addZero(track);
    else writer.add(track, labelled(label));
  }
}

export async function saveSet(store: Store, fields: Partial<NewSet>, tracks: Tracks): Promise<SealedSet> {
  const writer = await store.createSet(newSet(fields));
  addTracks(writer, tracks);
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  return await writer.seal();
}

/** The labels of the given tracks as the set's chain gives them; `0` for a track of zeroes. */
export async function readLabels(store: Store, selector: string, tracks: readonly number[]): Promise<string> {
  const chain = await store.chain((await store.find(selector)).id);
  try {
    return tracks
      .map((track) => {
        const content = chain.readTrack(track);
        return content === undefined ? '0' : labelOf(content);
      })
      .join(' ');
  } finally {
    await chain.close();
  }
}

/** The code of what `run` throws: a store error's, `corruption`, or `none`. */
export async function codeOf(run: () => Promise<unknown>): Promise<string> {
  try {
    await run();
    return 'none';
  } catch (error) {
    if (error instanceof StoreError) return error.code;
    if (error instanceof CorruptionError) return 'corruption';
    throw error;
  }
}

/** A set of one lane at a path, of no store. */
export function writeSetAt(path: string, header: SetHeader): SetWriter {
  const file = { path, partialPath: `${path}.partial`, directory: '' };
  const lane = new LaneWriter({
    header,
    lane: 0,
    directories: [''],
    partialPath: file.partialPath,
    compression: { codec: header.codec },
  });
  return new SetWriter(
    lane,
    new SetAssembly({ header, lanes: [lane], files: [file], publish: async (name) => void (await name()) }),
  );
}
