/**
 * Goal: a set that is written to media while it is made is complete once its seal and its announcement are there,
 * and no set before; then it is read in any order of media, straight or into a store. What a missing medium held is
 * named.
 *
 * Method: media in memory, of a size or that say by themselves that they are full; every order of three media, every
 * one of them left out; every size of medium from the smallest on, so that each part of the end comes to lie on a
 * medium of its own once; random tracks in random order.
 */

import fc from 'fast-check';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { present } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { DirectSet, type DirectSetOptions } from './direct-set.ts';
import { importMedia, incompleteError } from './import.ts';
import { MediaChain } from './media-chain.ts';
import {
  clock,
  contentOf,
  entriesOf,
  labelled,
  MemoryMedia,
  scratch,
  TRACK_BYTES,
  withoutSyncs,
} from './media.fixture.ts';

const TRACK_COUNT = 40;
const SIZE_BYTES = (TRACK_COUNT - 0.5) * TRACK_BYTES;
const MEDIUM_BYTES = 64 * 1024;
const COUNTERS = { bytesRead: SIZE_BYTES, diverted: 0, unchanged: 0 };

function begin(media: MemoryMedia, options: Partial<DirectSetOptions> = {}): DirectSet {
  const volume = { volumeId: 'volume-1', volumeName: 'disk', point: 'p1', sizeBytes: SIZE_BYTES };
  return new DirectSet(
    { ...volume, trackSizeBytes: TRACK_BYTES, compression: { codec: 'none' } },
    { clock, label: 'tape', threshold: { bytes: 3 * TRACK_BYTES }, openOutput: media.output(), ...options },
  );
}

/** A frame to each track. */
async function add(direct: DirectSet, tracks: readonly number[]): Promise<void> {
  for (const track of tracks) {
    direct.set.lane.add(
      track,
      labelled(`t${track}`, Math.min(TRACK_BYTES, SIZE_BYTES - track * TRACK_BYTES)),
    );
    direct.set.lane.flush();
    await direct.drain();
  }
}

async function write(
  media: MemoryMedia,
  tracks: readonly number[],
  options: Partial<DirectSetOptions> = {},
): Promise<DirectSet> {
  const direct = begin(media, options);
  await add(direct, tracks);
  await direct.finish(COUNTERS);
  await direct.seal();
  await direct.close();
  return direct;
}

function modelOf(tracks: readonly number[]): Buffer {
  const bytes = Buffer.alloc(SIZE_BYTES);
  for (const track of tracks) labelled(`t${track}`).copy(bytes, track * TRACK_BYTES);
  return bytes;
}

/** What is read straight from the media, over a volume that was in use. */
async function restored(media: MemoryMedia, order?: readonly number[]): Promise<Buffer> {
  const chain = await MediaChain.open('latest:disk', { clock, openInput: media.input(order) });
  try {
    const bytes = Buffer.alloc(chain.sizeBytes, '-');
    const tracks = chain.tracks();
    const zero = (track: number): void => {
      const start = track * TRACK_BYTES;
      bytes.fill(0, start, Math.min(start + TRACK_BYTES, bytes.length));
    };
    for (let track = 0; track < TRACK_COUNT; track += 1) if (!tracks.has(track)) zero(track);
    for (const _ of chain.readPlan(tracks)) {
      for (const { track, content } of await chain.readFrame()) {
        tracks.delete(track);
        if (content === undefined) zero(track);
        else content.copy(bytes, track * TRACK_BYTES);
      }
    }
    t.ok(tracks.isEmpty, 'every track was handed out');
    return bytes;
  } finally {
    await chain.close();
  }
}

const TRACKS = Array.from({ length: 25 }, (_, index) => 5 + ((index * 7) % 30));

t.test('every order of media, and every medium that is missing', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const media = new MemoryMedia();
  const { id } = await write(media, TRACKS, { mediumSizeBytes: MEDIUM_BYTES });
  t.equal(media.media.length, 3);
  const orders = [
    [1, 2, 3],
    [1, 3, 2],
    [2, 1, 3],
    [2, 3, 1],
    [3, 1, 2],
    [3, 2, 1],
  ];
  for (const order of orders) {
    t.ok((await restored(media, order)).equals(modelOf(TRACKS)), `restored in order ${order.join(' ')}`);
    const to = await Store.init(join(directory, order.join('')));
    const result = await importMedia(async () => to, { clock, openInput: media.input(order) });
    t.same(result.imported, [id], `imported in order ${order.join(' ')}`);
    t.equal(incompleteError(result), undefined);
    t.ok((await contentOf(to, id)).equals(modelOf(TRACKS)));
    const again = await importMedia(async () => to, { clock, openInput: media.input(order) });
    t.same([again.imported, again.skipped], [[], [id]], 'it is there already');
  }
  for (const missing of [1, 2, 3]) {
    const order = [1, 2, 3].filter((medium) => medium !== missing);
    const what = missing === 3 ? 'as a whole' : 'track \\d';
    await t.rejects(restored(media, order), {
      name: 'CorruptionError',
      message: new RegExp(`^The media of tape lack .*${what}.*medium ${missing} was not read`),
    });
    const to = await Store.init(join(directory, `without-${missing}`));
    const result = await importMedia(async () => to, { clock, openInput: media.input(order) });
    t.same(result.imported, []);
    t.match(incompleteError(result), { message: new RegExp(`medium ${missing} was not read`) });
    t.same(readdirSync(join(to.path, 'sets')), [], 'nothing is left');
  }
});

t.test('a set is none before its seal, whatever is on the media', async (t) => {
  withoutSyncs(t);
  const media = new MemoryMedia();
  const direct = begin(media, { mediumSizeBytes: MEDIUM_BYTES });
  await add(direct, TRACKS);
  await direct.finish(COUNTERS);
  const temporary = dirname(direct.set.parts.partialPath);
  t.ok(existsSync(temporary));
  await direct.fail(new Error('The volume was lost'));
  await direct.close();
  t.notOk(existsSync(temporary), 'nothing is left of the metadata');
  t.same(media.abandoned, [media.media.length]);
  await t.rejects(restored(media), {
    name: 'CorruptionError',
    message: /^The media of tape lack set .* as a whole: the end of the backup/,
  });
  const to = await Store.init(join(scratch(t), 's'));
  const result = await importMedia(async () => to, { clock, openInput: media.input() });
  t.same(result.imported, []);
  t.match(incompleteError(result)?.message, /it lacks the end of the backup that wrote it/);
});

t.test('a set of which no track is missing is none without its seal either', async (t) => {
  withoutSyncs(t);
  const media = new MemoryMedia();
  const direct = begin(media);
  await add(
    direct,
    Array.from({ length: TRACK_COUNT }, (_, track) => track),
  );
  await direct.finish(COUNTERS);
  await direct.fail(new Error('The volume was lost'));
  await direct.close();
  await t.rejects(restored(media), { name: 'CorruptionError', message: /as a whole: the end of the backup/ });
});

t.test('the last medium says what the first could not', async (t) => {
  withoutSyncs(t);
  const media = new MemoryMedia();
  const { id } = await write(media, TRACKS, { mediumSizeBytes: MEDIUM_BYTES });
  const [first = Buffer.alloc(0)] = media.media;
  const last = present(media.media.at(-1), 'The last');
  const kinds = entriesOf(first).map(({ kind }) => kind);
  t.same(kinds.slice(0, 5), ['medium', 'node', 'set', 'tracks', 'frames']);
  t.equal(kinds.filter((kind) => kind === 'set').length, 1);
  const ends = entriesOf(last).map(({ kind }) => kind);
  t.same(ends.slice(-8), ['mark', 'metadata', 'set', 'tracks', 'directory', 'server', 'catalog', 'trailer']);
  const texts = entriesOf(last).filter(({ kind, set }) => kind === 'set' && set === id);
  t.notMatch(texts[0]?.content.toString(), /"seal"/);
  t.match(texts.at(-1)?.content.toString(), /"seal":"[0-9a-f]{64}"/);
});

t.test('every part of the end lies on a medium of its own once', async (t) => {
  withoutSyncs(t);
  const counts = new Set<number>();
  const tails = new Set<string>();
  for (let mediumSizeBytes = 24_000; mediumSizeBytes < 64_000; mediumSizeBytes += 251) {
    const media = new MemoryMedia();
    await write(media, TRACKS.slice(0, 6), { mediumSizeBytes });
    for (const medium of media.media) t.ok(medium.length <= mediumSizeBytes, `${medium.length} bytes`);
    counts.add(media.media.length);
    const last = entriesOf(present(media.media.at(-1), 'The last')).map(({ kind }) => kind);
    tails.add(last.filter((kind) => kind === 'frames' || kind === 'metadata').join(' '));
    const order = media.media.map((_, index) => media.media.length - index);
    const bytes = await restored(media, order);
    if (!bytes.equals(modelOf(TRACKS.slice(0, 6)))) t.fail(`media of ${mediumSizeBytes} bytes`);
  }
  t.ok(counts.size > 1, `${[...counts].join(' ')} media`);
  t.ok(tails.has(''), `the announcement alone on the last: ${[...tails].join(' | ')}`);
});

t.test('media that say by themselves that they are full', async (t) => {
  withoutSyncs(t);
  for (const blockBytes of [1, 512, 10_000]) {
    for (let capacityBytes = 45_000; capacityBytes < 75_000; capacityBytes += 1_999) {
      const media = new MemoryMedia();
      await write(media, TRACKS, { openOutput: media.output({ capacityBytes, blockBytes }) });
      const order = media.media.map((_, index) => media.media.length - index);
      const bytes = await restored(media, order);
      if (!bytes.equals(modelOf(TRACKS))) t.fail(`${capacityBytes} bytes in blocks of ${blockBytes}`);
    }
  }
});

t.test('a medium too small for the announcement is refused', async (t) => {
  withoutSyncs(t);
  const media = new MemoryMedia();
  const writing = begin(media, { mediumSizeBytes: 12_000 });
  await t.rejects(
    add(writing, TRACKS).then(() => writing.finish(COUNTERS)),
    { code: 'medium-too-small' },
  );
  await writing.close();
});

t.test('property: any tracks in any order, on media of any size', async (t) => {
  withoutSyncs(t);
  await fc.assert(
    fc.asyncProperty(
      fc.shuffledSubarray(Array.from({ length: TRACK_COUNT }, (_, track) => track)),
      fc.record({
        mediumSizeBytes: fc.option(fc.integer({ min: 30_000, max: 200_000 }), { nil: undefined }),
        capacityBytes: fc.option(fc.integer({ min: 40_000, max: 200_000 }), { nil: undefined }),
        pieceBytes: fc.integer({ min: 1, max: 30_000 }),
        seed: fc.nat(),
      }),
      async (tracks, { mediumSizeBytes, capacityBytes, pieceBytes, seed }) => {
        const media = new MemoryMedia();
        const outputs = media.output(capacityBytes === undefined ? {} : { capacityBytes });
        await write(media, tracks, {
          openOutput: outputs,
          threshold: { bytes: pieceBytes },
          ...(mediumSizeBytes === undefined ? {} : { mediumSizeBytes }),
        });
        const order = media.media
          .map((_, index) => index + 1)
          .sort((a, b) => ((a * seed) % 7) - ((b * seed) % 7));
        return (await restored(media, order)).equals(modelOf(tracks));
      },
    ),
    { numRuns: 60 },
  );
});
