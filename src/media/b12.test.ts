/**
 * Goal: `EXAMPLES.md` B12. Sets gather into pieces and lie interleaved on a medium, in an order and a frame that
 * are fixed; every set comes back from the media alone, in any order of media, each opened once; what is foreign
 * is never taken; a cut medium gives everything up to the cut and says what is missing.
 *
 * Method: real stores with tracks of 1 MiB, so that each is a frame of its own and arrives by itself, exported to
 * media in memory, which count how often they are opened.
 */

import { join } from 'node:path';
import t from 'tap';
import { MIB } from '../base/index.ts';
import { Store, type StoredSet } from '../blockset/index.ts';
import { Accumulator } from './accumulator.ts';
import { importMedia, incompleteError, lackOf } from './import.ts';
import {
  clock,
  contentOf,
  entriesOf,
  exportAll,
  labelled,
  MemoryMedia,
  saveSet,
  scratch,
  storedSet,
  TRACK_BYTES,
  withoutSyncs,
} from './media.fixture.ts';
import {
  decodePieceHeader,
  decodePiecePrefix,
  decodeRecord,
  RECORD_HEAD_BYTES,
  recordRestBytes,
} from './piece-codec.ts';
import { encodeTarHeader, TAR_BLOCK_BYTES } from './tar.ts';

t.test('B12: what arrives for two sets gathers into pieces, last in first out', (t) => {
  const accumulator = new Accumulator<number>({ bytes: MIB, tracks: 4 });
  const arrivals = 'S1:1 S2:11 S1:2 S1:3 S2:12 S1:4 S2:13 S2:14 S1:5';
  const pieces: string[] = [];
  for (const arrival of arrivals.split(' ')) {
    const [set = '', track = ''] = arrival.split(':');
    const piece = accumulator.add(set, Number(track), { bytes: 1, tracks: 1 });
    if (piece !== undefined) pieces.push(`${piece.set} ${piece.items.join(' ')}`);
  }
  for (const piece of accumulator.drain()) pieces.push(`${piece.set} ${piece.items.join(' ')}`);
  t.same(pieces, ['S1 4 3 2 1', 'S2 14 13 12 11', 'S1 5']);
  t.same([...accumulator.drain()], [], 'nothing is left');
  t.end();
});

t.test('a threshold in bytes ends a piece as well', (t) => {
  const accumulator = new Accumulator<string>({ bytes: 10 });
  t.equal(accumulator.add('S1', 'a', { bytes: 9, tracks: 1000 }), undefined);
  t.same(accumulator.add('S1', 'b', { bytes: 1, tracks: 1 })?.items, ['b', 'a']);
  t.end();
});

/** S1 with tracks 1 to 5 and S2 with 11 to 14, of two volumes. */
async function twoSets(path: string): Promise<{ store: Store; s1: string; s2: string }> {
  const store = await Store.init(path);
  const tracks = (set: string, numbers: readonly number[]) =>
    numbers.map((track) => [track, labelled(`${set}.${track}`, MIB)] as const);
  const size = { sizeBytes: 16 * MIB, trackSizeBytes: MIB, codec: 'zstd' } as const;
  const s1 = await saveSet(
    store,
    { ...size, volumeId: 'v1', volumeName: 'one' },
    tracks('S1', [1, 2, 3, 4, 5]),
  );
  const s2 = await saveSet(
    store,
    { ...size, volumeId: 'v2', volumeName: 'two' },
    tracks('S2', [11, 12, 13, 14]),
  );
  return { store, s1: s1.header.id, s2: s2.header.id };
}

/** The set that a piece's header names, and the tracks of its records in order. */
function pieceOf(content: Buffer): { set: string; tracks: number[] } {
  const textBytes = decodePiecePrefix(content.subarray(0, 12), 'a piece');
  const header = decodePieceHeader(content.subarray(12, 12 + textBytes), 'a piece');
  const tracks: number[] = [];
  let at = 12 + textBytes;
  for (let index = 0; index < header.records; index += 1) {
    const head = content.subarray(at, at + RECORD_HEAD_BYTES);
    const end = at + RECORD_HEAD_BYTES + (recordRestBytes(head) ?? 0);
    const found = decodeRecord(head, content.subarray(at + RECORD_HEAD_BYTES, end));
    tracks.push(...(found?.record.places.map(({ track }) => track) ?? []));
    at = end;
  }
  return { set: header.set, tracks };
}

const identity = ({ header, counters, seal }: StoredSet) => ({ header, counters, seal });

t.test('B12: the order on a medium, and both sets from it alone', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, s1, s2 } = await twoSets(join(directory, 'from'));
  const media = new MemoryMedia();
  await exportAll(store, media, { threshold: { bytes: 64 * MIB, tracks: 4 } });
  t.equal(media.media.length, 1);
  const entries = entriesOf(media.media[0] ?? Buffer.alloc(0));
  const names = new Map([
    [s1, 'S1'],
    [s2, 'S2'],
  ]);
  t.same(
    entries.map(({ kind, set }) => (set === undefined ? kind : `${kind} ${names.get(set) ?? '?'}`)),
    [
      'medium',
      'node',
      'set S1',
      'tracks S1',
      'set S2',
      'tracks S2',
      'frames S1',
      'mark',
      'frames S2',
      'mark',
      'frames S1',
      'mark',
      'metadata S1',
      'mark',
      'metadata S2',
      'directory',
      'server',
      'catalog',
      'trailer',
    ],
  );
  t.same(
    entries.filter(({ kind }) => kind === 'frames').map(({ content }) => pieceOf(content)),
    [
      { set: s1, tracks: [4, 3, 2, 1] },
      { set: s2, tracks: [14, 13, 12, 11] },
      { set: s1, tracks: [5] },
    ],
  );

  const to = await Store.init(join(directory, 'to'));
  const result = await importMedia(async () => to, { clock, openInput: media.input() });
  t.same([...result.imported].sort(), [s1, s2].sort());
  t.same(result.findings, []);
  t.equal(incompleteError(result), undefined);
  for (const id of [s1, s2]) {
    t.same(
      identity(await storedSet(to, id)),
      identity(await storedSet(store, id)),
      'the same set with the same seal',
    );
    t.ok((await contentOf(to, id)).equals(await contentOf(store, id)));
  }
  const again = await importMedia(async () => to, { clock, openInput: media.input() });
  t.same(
    [[...again.skipped].sort(), again.imported],
    [[s1, s2].sort(), []],
    'sets that are there are left alone',
  );
});

/** What makes a set of ten tracks take three media. */
const THREE = { mediumSizeBytes: 36 * 1024, threshold: { bytes: 2 * TRACK_BYTES } };

t.test('B12: over three media in any order each is opened once', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(join(directory, 'from'));
  const tracks = Array.from({ length: 10 }, (_, track) => [track, labelled(`t${track}`)] as const);
  const { header } = await saveSet(store, {}, tracks, { perFrame: 1 });
  const media = new MemoryMedia();
  await exportAll(store, media, THREE);
  t.comment(media.media.map((medium) => medium.length).join(' '));
  t.equal(media.media.length, 3);
  for (const order of [
    [1, 2, 3],
    [3, 1, 2],
    [2, 3, 1],
    [3, 2, 1],
  ]) {
    const to = await Store.init(join(directory, `to-${order.join('')}`));
    media.openings.clear();
    const result = await importMedia(async () => to, { clock, openInput: media.input(order) });
    t.same(result.imported, [header.id], `order ${order.join(' ')}`);
    t.same([...media.openings.values()], [1, 1, 1]);
    t.ok((await contentOf(to, header.id)).equals(await contentOf(store, header.id)));
  }
  const to = await Store.init(join(directory, 'to-two'));
  const result = await importMedia(async () => to, { clock, openInput: media.input([1, 3]) });
  t.same(result.imported, []);
  t.same(result.missingMedia, [2]);
  const error = incompleteError(result);
  t.match(error, { code: 'no-medium', details: { missing: [2] } });
  t.same(await to.list(), [], 'an incomplete set is not visible');
});

t.test('B12: a piece with a foreign name is never taken', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, s1, s2 } = await twoSets(join(directory, 'from'));
  const media = new MemoryMedia();
  await exportAll(store, media, { threshold: { bytes: 64 * MIB, tracks: 4 } });
  const medium = Buffer.from(media.media[0] ?? Buffer.alloc(0));
  const entry = entriesOf(medium).find(({ kind, set }) => kind === 'frames' && set === s2);
  if (entry === undefined) throw new Error('S2 has a piece');
  const header = { name: entry.name.replace(s2, s1), sizeBytes: entry.content.length, modifiedSeconds: 0 };
  encodeTarHeader(header).copy(medium, entry.offsetBytes);
  media.media[0] = medium;
  const to = await Store.init(join(directory, 'to'));
  const result = await importMedia(async () => to, { clock, openInput: media.input() });
  t.same(result.imported, [s1], 'the set whose name it took is whole without it');
  t.match(result.findings, [/is not taken: it says that it is of set/]);
  const [lost] = result.incomplete;
  t.equal(lost?.set, s2);
  t.same(lost?.missingTracks?.toArray(), [11, 12, 13, 14]);
});

t.test('B12: a medium cut short gives everything up to the cut and says what is missing', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, s1, s2 } = await twoSets(join(directory, 'from'));
  const media = new MemoryMedia();
  await exportAll(store, media, { threshold: { bytes: 64 * MIB, tracks: 4 } });
  const medium = media.media[0] ?? Buffer.alloc(0);
  const pieces = entriesOf(medium).filter(({ kind }) => kind === 'frames');
  const second = pieces[1];
  if (second === undefined) throw new Error('There is a second piece');
  // Behind the record of track 14, in the record of track 13.
  const head = second.content.subarray(12 + decodePiecePrefix(second.content.subarray(0, 12), 'a piece'));
  const into = second.content.length - head.length + RECORD_HEAD_BYTES + (recordRestBytes(head) ?? 0) + 20;
  media.media[0] = medium.subarray(0, second.offsetBytes + TAR_BLOCK_BYTES + into);
  const to = await Store.init(join(directory, 'to'));
  const result = await importMedia(async () => to, { clock, openInput: media.input() });
  t.same(result.imported, []);
  t.same(
    result.incomplete.map((set) => [set.set, set.missingTracks?.toArray()]),
    [
      [s1, [5]],
      [s2, [11, 12, 13]],
    ],
  );
  t.match(
    lackOf(
      result.incomplete[1] ?? {
        set: '',
        missingTracks: undefined,
        missingFrames: 0,
        missingMetadata: 0,
        damage: '',
      },
    ),
    /tracks 11 to 13 and \d+ records of metadata/,
  );
  t.match(result.findings, [/ends before its trailer/]);
  t.match(incompleteError(result), { name: 'CorruptionError', place: { tracks: [5] } });
  t.same(await to.list(), []);
});
