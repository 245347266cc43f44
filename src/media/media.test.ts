/**
 * Goal: whatever sets a store has, their media give the same sets back, and a volume read straight from media is
 * the volume that its chain in the store is, whatever the order of the media. What is cut off or flipped is found
 * and said, and never taken for what it is not.
 *
 * Method: random chains of sets with several lanes, zeroes, tracks of equal content and a volume that grew, on
 * media of random sizes, read in random order; then cuts and flipped bits at random places.
 */

import fc from 'fast-check';
import { join } from 'node:path';
import t from 'tap';
import { CorruptionError, present } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { importMedia, incompleteError } from './import.ts';
import { checksum, CHECKSUM_BYTES } from '../records/index.ts';
import { MediaChain } from './media-chain.ts';
import {
  bytesInput,
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
  type Tracks,
  withoutSyncs,
} from './media.fixture.ts';
import { RECORD_HEAD_BYTES, recordRestBytes } from './piece-codec.ts';

/** The volume at a set's point, read from media; undefined tracks are left as they were. */
async function volumeFrom(chain: MediaChain): Promise<{ bytes: Buffer; error: unknown; given: number[] }> {
  const bytes = Buffer.alloc(chain.sizeBytes);
  const given: number[] = [];
  let error: unknown;
  try {
    for (const _ of chain.readPlan(chain.tracks())) {
      for (const { track, content } of await chain.readFrame()) {
        content?.copy(bytes, track * chain.trackSizeBytes);
        given.push(track);
      }
    }
  } catch (caught) {
    error = caught;
  } finally {
    await chain.close();
  }
  return { bytes, error, given };
}

interface SetPlan {
  readonly tracks: readonly (readonly [number, number])[];
  readonly lanes: number;
  readonly perFrame: number;
  readonly codec: 'none' | 'zstd';
}

/** Tracks with labels 0 to 5; 0 is a track of zeroes. */
const setPlan: fc.Arbitrary<SetPlan> = fc.record({
  tracks: fc.uniqueArray(fc.tuple(fc.nat(19), fc.nat(5)), { maxLength: 14, selector: ([track]) => track }),
  lanes: fc.integer({ min: 1, max: 3 }),
  perFrame: fc.integer({ min: 1, max: 5 }),
  codec: fc.constantFrom('none', 'zstd'),
});

/** A volume of 19 tracks and a half, which grows to 20 after its first set. */
async function saveChain(store: Store, plans: readonly SetPlan[]): Promise<string[]> {
  const ids: string[] = [];
  for (const [index, plan] of plans.entries()) {
    const sizeBytes = (index === 0 ? 19.5 : 20) * TRACK_BYTES;
    const tracks: Tracks = plan.tracks.map(([track, label]) => {
      const bytes = Math.min(TRACK_BYTES, sizeBytes - track * TRACK_BYTES);
      return [track, label === 0 ? null : labelled(`${index}.${label}`, bytes)];
    });
    const { lanes, perFrame, codec } = plan;
    const fields = { base: index === 0 ? null : `p${index - 1}`, point: `p${index}`, sizeBytes, codec };
    ids.push((await saveSet(store, fields, tracks, { lanes, perFrame })).header.id);
  }
  return ids;
}

let caseNumber = 0;

t.test('any chain comes back from its media, in any order, into a store and without one', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  await fc.assert(
    fc.asyncProperty(
      fc.array(setPlan, { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 100_000, max: 200_000 }),
      fc.integer({ min: 1, max: 40_000 }),
      fc.infiniteStream(fc.nat()),
      fc.constantFrom(undefined, 512, 20_000),
      async (plans, mediumBytes, pieceBytes, randoms, blockBytes) => {
        caseNumber += 1;
        const store = await Store.init(join(directory, `${caseNumber}-from`));
        const ids = await saveChain(store, plans);
        const media = new MemoryMedia();
        await exportAll(store, media, {
          threshold: { bytes: pieceBytes },
          ...(blockBytes !== undefined
            ? { openOutput: media.output({ capacityBytes: mediumBytes, blockBytes }) }
            : { mediumSizeBytes: mediumBytes }),
        });
        const order = media.media
          .map((_, index) => ({ number: index + 1, key: randoms.next().value ?? 0 }))
          .sort((a, b) => a.key - b.key)
          .map(({ number }) => number);
        const to = await Store.init(join(directory, `${caseNumber}-to`));
        const result = await importMedia(async () => to, { clock, openInput: media.input(order) });
        t.equal(incompleteError(result), undefined);
        t.same([...result.imported].sort(), [...ids].sort());
        t.ok(
          [...media.openings.values()].every((count) => count === 1),
          'each medium was opened once',
        );
        for (const id of ids) {
          const from = await contentOf(store, id);
          t.equal((await storedSet(to, id)).seal, (await storedSet(store, id)).seal);
          t.ok((await contentOf(to, id)).equals(from), 'from the store that was imported');
          const chain = await MediaChain.open(id, { clock, openInput: media.input(order) });
          const { bytes, error } = await volumeFrom(chain);
          t.equal(error, undefined);
          t.ok(bytes.equals(from), 'straight from the media');
        }
      },
    ),
    { numRuns: 25, endOnFailure: true },
  );
});

t.test('what is cut off or flipped is found, and everything else is given', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(join(directory, 'from'));
  const tracks: Tracks = Array.from({ length: 20 }, (_, track) => [track, labelled(`t${track}`)]);
  const { header } = await saveSet(store, { sizeBytes: 20 * TRACK_BYTES }, tracks, { perFrame: 1, lanes: 2 });
  const media = new MemoryMedia();
  await exportAll(store, media, { threshold: { bytes: 5 * TRACK_BYTES } });
  const medium = present(media.media[0], 'A medium');
  const volume = await contentOf(store, header.id);
  const entries = entriesOf(medium);
  const dataAt = present(
    entries.find(({ kind }) => kind === 'frames'),
    'A piece',
  ).offsetBytes;
  const endAt = present(
    entries.find(({ kind }) => kind === 'directory'),
    'A directory',
  ).offsetBytes;
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: dataAt, max: endAt - 1 }),
      fc.nat(7),
      fc.boolean(),
      async (at, bit, isCut) => {
        const damaged = Buffer.from(isCut ? medium.subarray(0, at) : medium);
        if (!isCut) damaged[at] = (damaged[at] ?? 0) ^ (1 << bit);
        caseNumber += 1;
        const only = (): (() => Promise<ReturnType<typeof bytesInput> | undefined>) => {
          const left = [bytesInput('damaged', damaged)];
          return async () => left.pop();
        };
        const to = await Store.init(join(directory, `${caseNumber}-to`));
        const result = await importMedia(async () => to, { clock, openInput: only() });
        if (result.imported.length > 0) t.ok((await contentOf(to, header.id)).equals(volume));
        else t.type(incompleteError(result), CorruptionError);
        const chain = await MediaChain.open('latest', { clock, openInput: only() });
        const { bytes, error, given } = await volumeFrom(chain);
        for (const track of given) {
          const start = track * TRACK_BYTES;
          t.ok(
            bytes.subarray(start, start + TRACK_BYTES).equals(volume.subarray(start, start + TRACK_BYTES)),
          );
        }
        const missing = tracks.map(([track]) => track).filter((track) => !given.includes(track));
        if (missing.length === 0) t.equal(error, undefined);
        else t.match(error, { name: 'CorruptionError', place: { tracks: missing } });
        const [incomplete] = result.incomplete;
        if (incomplete !== undefined && incomplete.damage === undefined) {
          t.same(incomplete.missingTracks?.toArray(), missing, 'the same tracks are said to be missing');
        }
        if (!isCut) t.ok(missing.length <= 5, 'a flipped bit costs no more than its piece');
      },
    ),
    { numRuns: 40, endOnFailure: true },
  );
});

t.test('a track that does not agree with its hash is not handed out', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(join(scratch(t), 'from'));
  const tracks: Tracks = [4, 5].map((track) => [track, labelled(`t${track}`)]);
  await saveSet(store, {}, tracks, { perFrame: 1 });
  const media = new MemoryMedia();
  await exportAll(store, media);
  const medium = Buffer.from(present(media.media[0], 'A medium'));
  const { offsetBytes, content } = present(
    entriesOf(medium).find(({ kind }) => kind === 'frames'),
    'A piece',
  );
  // The record itself is sound: its checksum is made anew.
  const start = offsetBytes + 512 + 12 + content.readUInt32BE(8);
  const head = medium.subarray(start, start + RECORD_HEAD_BYTES);
  const end = start + RECORD_HEAD_BYTES + present(recordRestBytes(head), 'A record');
  medium[end - CHECKSUM_BYTES - 1] = 0;
  checksum(medium.subarray(start, end - CHECKSUM_BYTES)).copy(medium, end - CHECKSUM_BYTES);
  media.media[0] = medium;
  const chain = await MediaChain.open('latest', { clock, openInput: media.input() });
  const { given, error } = await volumeFrom(chain);
  t.same(given, [4], 'the last to arrive is the first of its piece');
  t.match(error, { name: 'CorruptionError', place: { tracks: [5] } });
});

t.test('media of another writing, media read before and other files are refused by name', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(join(directory, 'from'));
  const tracks: Tracks = Array.from({ length: 20 }, (_, track) => [track, labelled(`t${track}`)]);
  const { header } = await saveSet(store, {}, tracks, { perFrame: 1 });
  const [mine, other] = [new MemoryMedia(), new MemoryMedia()];
  await exportAll(store, mine, { mediumSizeBytes: 64 * 1024 });
  await exportAll(store, other, { mediumSizeBytes: 64 * 1024, label: 'other' });
  t.equal(mine.media.length, 2);
  const medium = (media: MemoryMedia, number: number) =>
    bytesInput(`drive ${number}`, present(media.media[number - 1], 'A medium'));
  const read = async (name: string, loads: readonly (() => ReturnType<typeof bytesInput>)[]) => {
    const left = [...loads];
    const asked: string[] = [];
    const to = await Store.init(join(directory, name));
    const result = await importMedia(async () => to, {
      clock,
      openInput: async ({ name: wanted, refused }) => {
        asked.push(`${wanted}${refused === undefined ? '' : `, ${refused.code}`}`);
        return left.shift()?.();
      },
    });
    return { result, asked };
  };
  const noise = () => bytesInput('noise', Buffer.alloc(4096, 'no medium'));
  const good = await read('good', [
    () => medium(mine, 1),
    () => medium(other, 2),
    noise,
    () => medium(mine, 2),
  ]);
  t.same(good.result.imported, [header.id]);
  t.same(good.asked, ['undefined', 'tape-2', 'tape-2, wrong-medium', 'tape-2, not-a-medium']);
  const wrong = [() => medium(mine, 1), () => medium(mine, 1), () => medium(mine, 1), () => medium(mine, 1)];
  await t.rejects(read('twice', wrong), {
    code: 'wrong-medium',
    message: /is tape-1, which was read already, wanted tape-2/,
  });
  const foreign = [
    () => medium(mine, 1),
    () => medium(other, 2),
    () => medium(other, 2),
    () => medium(other, 2),
  ];
  await t.rejects(read('foreign', foreign), { code: 'wrong-medium', message: /is other-2 of writing/ });
  await t.rejects(read('none', [noise, noise, noise]), { code: 'not-a-medium' });
  await t.rejects(read('nothing', []), { code: 'no-medium' });
});

t.test('a set of the same id with another seal is not replaced', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(join(directory, 'from'));
  await saveSet(store, {}, [[1, labelled('a')]]);
  const media = new MemoryMedia();
  await exportAll(store, media);
  const to = await Store.init(join(directory, 'to'));
  const list = to.list.bind(to);
  const pretended = Object.assign(to, {
    list: async () => (await store.list()).map((set) => ({ ...set, seal: '00' })),
  });
  await t.rejects(
    importMedia(async () => pretended, { clock, openInput: media.input() }),
    { code: 'other-set' },
  );
  t.same(await list(), []);
});
