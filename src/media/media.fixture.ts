/** What the tests of this room share: small stores, and media in memory that count how often they are opened. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { assert, ManualClock, observeSyncs, present } from '../base/index.ts';
import { LaneWriter, type NewSet, type SealedSet, type Store, type StoredSet } from '../blockset/index.ts';
import { mediumError } from './errors.ts';
import { type ExportOptions, exportSets, type ExportResult } from './export.ts';
import { type OpenInput } from './media-reading.ts';
import type { OpenOutput } from './media-writing.ts';
import { parseEntryName } from './medium-format.ts';
import type { MediumInput } from './medium-input.ts';
import { EndOfMedium, type MediumOutput } from './medium-output.ts';
import { decodeTarHeader, entryBytes, TAR_BLOCK_BYTES } from './tar.ts';

export const TRACK_BYTES = 4096;

interface Teardown {
  teardown(fn: () => void): void;
}

export function scratch(t: Teardown): string {
  const directory = mkdtempSync(`${tmpdir()}/cowbell-media-`);
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Leaves the disk out where a test is not about durability. */
export function withoutSyncs(t: Teardown): void {
  observeSyncs({ before: () => 'skip' });
  t.teardown(() => observeSyncs(undefined));
}

export function labelled(label: string, bytes: number = TRACK_BYTES): Buffer {
  return Buffer.alloc(bytes, `<${label}>`);
}

export function newSet(fields: Partial<NewSet> = {}): NewSet {
  const base = fields.base ?? null;
  return {
    volumeId: 'volume-1',
    volumeName: 'disk',
    level: base === null ? 'full' : 'incremental',
    base,
    point: 'point-1',
    sizeBytes: 64 * TRACK_BYTES,
    trackSizeBytes: TRACK_BYTES,
    codec: 'none',
    ...fields,
  };
}

/** Track number to content; null for a track of zeroes. */
export type Tracks = readonly (readonly [track: number, content: Buffer | null])[];

/** Saves a set, its tracks dealt out to the lanes in turn, and so many of them to a frame. */
export async function saveSet(
  store: Store,
  fields: Partial<NewSet>,
  tracks: Tracks,
  shape: { readonly lanes?: number; readonly perFrame?: number } = {},
): Promise<SealedSet> {
  const { lanes: count = 1, perFrame = 4 } = shape;
  const begun = await store.beginSet(newSet(fields), { count, directories: [] }, async (parts) =>
    parts.map((part) => new LaneWriter(part)),
  );
  for (const [index, [track, content]] of tracks.entries()) {
    const lane = present(begun.lanes[index % count], 'A lane');
    if (content === null) lane.addZero(track);
    else lane.add(track, content);
    if (Math.floor(index / count) % perFrame === perFrame - 1) lane.flush();
  }
  await begun.assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  return await begun.assembly.seal();
}

/** All bytes of the volume at a set's point, through its chain. */
export async function contentOf(store: Store, set: string): Promise<Buffer> {
  const chain = await store.chain(set);
  try {
    const tracks: Buffer[] = [];
    for (let track = 0; track < chain.trackCount; track += 1) {
      const bytes = Math.min(chain.trackSizeBytes, chain.sizeBytes - track * chain.trackSizeBytes);
      tracks.push(chain.readTrack(track) ?? Buffer.alloc(bytes));
    }
    return Buffer.concat(tracks);
  } finally {
    await chain.close();
  }
}

/** Media in memory. */
export class MemoryMedia {
  /** What was written, by medium, from 1 at index 0; complete once the medium has ended. */
  readonly media: Buffer[] = [];
  /** How often each was opened for reading, by its number. */
  readonly openings = new Map<number, number>();
  /** Numbers of media that were given up. */
  readonly abandoned: number[] = [];

  /**
   * @param options.capacityBytes what a medium takes before it is full.
   * @param options.blockBytes what an output holds back before it passes it on.
   * @param options.failAt a medium whose writes fail beyond so many bytes.
   */
  output(
    options: {
      readonly capacityBytes?: number;
      readonly blockBytes?: number;
      readonly failAt?: { readonly medium: number; readonly bytes: number };
    } = {},
  ): OpenOutput {
    const { capacityBytes = Number.POSITIVE_INFINITY, blockBytes = 1 } = options;
    return async ({ medium }) => {
      const taken: Buffer[] = [];
      let held: Buffer = Buffer.alloc(0);
      let takenBytes = 0;
      const pass = (bytes: Buffer): void => {
        if (options.failAt?.medium === medium && takenBytes + bytes.length > options.failAt.bytes) {
          throw torn();
        }
        if (takenBytes + bytes.length > capacityBytes) {
          taken.push(bytes.subarray(0, capacityBytes - takenBytes));
          throw new EndOfMedium(`medium ${medium}`);
        }
        taken.push(Buffer.from(bytes));
        takenBytes += bytes.length;
      };
      const end = (): void => {
        this.media[medium - 1] = Buffer.concat(taken);
      };
      const output: MediumOutput = {
        place: `medium ${medium}`,
        get takenBytes() {
          return takenBytes;
        },
        write: async (parts) => {
          held = Buffer.concat([held, ...parts]);
          const whole = held.length - (held.length % blockBytes);
          for (let at = 0; at < whole; at += blockBytes === 1 ? whole : blockBytes) {
            pass(held.subarray(at, blockBytes === 1 ? whole : at + blockBytes));
          }
          held = held.subarray(whole);
        },
        finish: async () => {
          if (held.length > 0) pass(Buffer.concat([held, Buffer.alloc(blockBytes - held.length)]));
          end();
        },
        abandon: async () => {
          this.abandoned.push(medium);
          end();
        },
      };
      return output;
    };
  }

  /** Gives the media with these numbers in this order, then no more. */
  input(order: readonly number[] = this.media.map((_, index) => index + 1)): OpenInput {
    const left = [...order];
    return async ({ refused }) => {
      if (refused !== undefined) throw refused;
      const number = left.shift();
      if (number === undefined) return undefined;
      this.openings.set(number, (this.openings.get(number) ?? 0) + 1);
      return bytesInput(`medium ${number}`, present(this.media[number - 1], `Medium ${number}`));
    };
  }
}

function torn(): Error {
  return Object.assign(new Error('The medium is torn'), { code: 'EIO' });
}

export function bytesInput(
  place: string,
  bytes: Buffer,
  failAtBytes = Number.POSITIVE_INFINITY,
): MediumInput {
  let at = 0;
  return {
    place,
    read: async (target) => {
      if (at >= failAtBytes) throw mediumError(torn(), 'Reading', place);
      // Odd lengths, as a pipe gives them.
      const read = bytes.copy(target, 0, at, Math.min(at + 10_007, failAtBytes));
      at += read;
      return read;
    },
    close: async () => {},
  };
}

export const clock = new ManualClock();

export async function exportAll(
  store: Store,
  media: MemoryMedia,
  options: Partial<ExportOptions> & { readonly only?: readonly string[] } = {},
): Promise<ExportResult> {
  const { only, ...rest } = options;
  const sets = (await store.list()).filter(({ id }) => only?.includes(id) ?? true);
  return await exportSets(store, sets, { clock, label: 'tape', openOutput: media.output(), ...rest });
}

export async function storedSet(store: Store, id: string): Promise<StoredSet> {
  const found = (await store.list()).find((set) => set.id === id);
  assert(found !== undefined, `The store has set ${id}`);
  return found;
}

export interface ListedEntry {
  readonly name: string;
  readonly kind: string;
  readonly set: string | undefined;
  readonly offsetBytes: number;
  readonly content: Buffer;
}

/** The entries of a medium, as another tar reader would see them. */
export function entriesOf(medium: Buffer): ListedEntry[] {
  const entries: ListedEntry[] = [];
  for (let at = 0; at + TAR_BLOCK_BYTES <= medium.length;) {
    const header = decodeTarHeader(medium.subarray(at, at + TAR_BLOCK_BYTES), 'a medium');
    if (header === undefined) break;
    const { name, sizeBytes } = header;
    const parsed = parseEntryName(name);
    const content = medium.subarray(at + TAR_BLOCK_BYTES, at + TAR_BLOCK_BYTES + sizeBytes);
    entries.push({ name, kind: parsed?.kind ?? '?', set: parsed?.set, offsetBytes: at, content });
    at += entryBytes(sizeBytes);
  }
  return entries;
}
