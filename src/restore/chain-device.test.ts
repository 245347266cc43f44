/**
 * Goal: a chain as a device gives every byte as it was at the set's point, whatever was read before and meanwhile; reads
 * each frame once where it can; keeps no more than it may; and damage is an error of the reads it concerns.
 *
 * Method: property tests against the volume as one buffer, first over a model that stores its tracks in any order, then
 * over real chains of full, incremental and grown sets. What is read when is told by the model.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { CorruptionError, observeSyncs } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { ChainDevice } from './chain-device.ts';
import { ModelSource } from './model.fixture.ts';

const TRACK = 4096;
const BLOCK = 512;

/** Content whose every byte says where it is, zero in the tracks that are not in `used`. */
function contentOf(trackCount: number, used: readonly number[]): Buffer {
  const content = Buffer.alloc(trackCount * TRACK);
  for (const track of used) {
    for (let at = 0; at < TRACK; at += 4) content.writeUInt32BE((track + 1) * TRACK + at, track * TRACK + at);
  }
  return content;
}

function cut(tracks: readonly number[], size: number): number[][] {
  const frames: number[][] = [];
  for (let at = 0; at < tracks.length; at += size) frames.push(tracks.slice(at, at + size));
  return frames;
}

async function readOf(device: BlockDevice, offsetBytes: number, lengthBytes: number): Promise<Buffer> {
  const target = Buffer.alloc(lengthBytes, 0xee);
  await device.read(target, offsetBytes);
  return target;
}

/** Ranges of whole blocks in a volume. */
function rangesIn(trackCount: number): fc.Arbitrary<{ at: number; length: number }[]> {
  const blocks = (trackCount * TRACK) / BLOCK;
  const range = fc.tuple(fc.nat(blocks - 1), fc.integer({ min: 1, max: 64 })).map(([first, count]) => ({
    at: first * BLOCK,
    length: Math.min(count, blocks - first) * BLOCK,
  }));
  return fc.array(range, { minLength: 1, maxLength: 20 });
}

/** Reads all ranges, several at a time, and holds bytes and extents against the volume. */
async function compare(
  t: Test,
  device: BlockDevice,
  { volume, ranges }: { volume: Buffer; ranges: { at: number; length: number }[] },
): Promise<void> {
  for (let first = 0; first < ranges.length; first += 5) {
    await Promise.all(
      ranges.slice(first, first + 5).map(async ({ at, length }) => {
        const wanted = volume.subarray(at, at + length);
        if (!(await readOf(device, at, length)).equals(wanted)) t.fail(`${at}+${length} is wrong`);
        let end = at;
        for (const extent of await device.extents(at, length)) {
          t.equal(extent.offsetBytes, end);
          end += extent.lengthBytes;
          t.equal(extent.hole, extent.zero);
          const bytes = volume.subarray(extent.offsetBytes, end);
          if (extent.zero) t.ok(bytes.every((byte) => byte === 0));
        }
        t.equal(end, at + length);
      }),
    );
  }
}

t.test('property: any order of storage, any reads, a tiny cache', async (t) => {
  const trackCount = 48;
  await fc.assert(
    fc.asyncProperty(
      fc.shuffledSubarray(Array.from({ length: trackCount }, (_, track) => track)),
      fc.integer({ min: 1, max: 6 }),
      fc.integer({ min: 0, max: 8 }),
      rangesIn(trackCount),
      async (stored, frameSize, cacheTracks, ranges) => {
        const volume = contentOf(trackCount, stored);
        const source = new ModelSource(volume, TRACK, cut(stored, frameSize));
        const cacheBytesMax = cacheTracks * TRACK;
        const device = new ChainDevice(source, { description: 'a model', cacheBytesMax });
        await compare(t, device, { volume, ranges });
        t.ok(device.cachedBytes <= cacheBytesMax);
      },
    ),
    { numRuns: 100 },
  );
});

t.test('property: read in its order, every frame is read once', async (t) => {
  const trackCount = 1500;
  await fc.assert(
    fc.asyncProperty(
      fc.shuffledSubarray(Array.from({ length: trackCount }, (_, track) => track)),
      fc.integer({ min: 1, max: 9 }),
      fc.nat(trackCount),
      async (stored, frameSize, left) => {
        const volume = contentOf(trackCount, stored);
        const source = new ModelSource(volume, TRACK, cut(stored, frameSize));
        const device = new ChainDevice(source, { description: 'a model', cacheBytesMax: 16 * 9 * TRACK });
        const wanted = TrackSet.of(stored.slice(left));
        const seen: number[] = [];
        for await (const runs of device.order(wanted)) {
          for (const { first, count } of runs) {
            for (let track = first; track < first + count; track += 1) seen.push(track);
            const bytes = await readOf(device, first * TRACK, count * TRACK);
            t.ok(bytes.equals(volume.subarray(first * TRACK, (first + count) * TRACK)));
          }
        }
        t.same(seen, stored.slice(left), 'each once, in the order of storage');
        t.same(source.reads, seen, 'and each was read once');
      },
    ),
    { numRuns: 20 },
  );
});

interface SetPlan {
  readonly grownTracks: number;
  readonly changes: readonly (readonly [track: number, seed: number])[];
}

const SETS: fc.Arbitrary<SetPlan[]> = fc.array(
  fc.record({
    grownTracks: fc.constantFrom(0, 0, 3),
    changes: fc.array(fc.tuple(fc.nat(40), fc.nat(5)), { maxLength: 25 }),
  }),
  { minLength: 1, maxLength: 5 },
);

/** Seals a set for each plan, and returns what the volume was at the last. */
async function makeChain(store: Store, plans: readonly SetPlan[]): Promise<Buffer> {
  let volume = Buffer.alloc(8 * TRACK);
  for (const [index, { grownTracks, changes }] of plans.entries()) {
    volume = Buffer.concat([volume], volume.length + grownTracks * TRACK);
    const changed = new Map(changes.map(([track, seed]) => [track % (volume.length / TRACK), seed]));
    const writer = await store.createSet({
      volumeId: 'v',
      volumeName: 'disk',
      level: index === 0 ? 'full' : 'incremental',
      base: index === 0 ? null : `p${index - 1}`,
      point: `p${index}`,
      sizeBytes: volume.length,
      trackSizeBytes: TRACK,
      codec: index % 2 === 0 ? 'zstd' : 'none',
    });
    for (const [track, seed] of changed) {
      const content = Buffer.alloc(TRACK, seed === 0 ? 0 : `${index}.${track}.${seed}`);
      content.copy(volume, track * TRACK);
      if (seed === 0) writer.addZero(track);
      else writer.add(track, content);
    }
    await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
    await writer.seal();
  }
  return volume;
}

t.test('property: real chains', async (t) => {
  observeSyncs({ before: () => 'skip' });
  t.teardown(() => observeSyncs(undefined));
  const root = mkdtempSync(join(tmpdir(), 'cowbell-chain-device-'));
  t.teardown(() => rmSync(root, { recursive: true, force: true }));
  let count = 0;
  await fc.assert(
    fc.asyncProperty(SETS, rangesIn(23), fc.nat(4), async (plans, ranges, cacheTracks) => {
      const store = await Store.init(join(root, `s${(count += 1)}`));
      const volume = await makeChain(store, plans);
      const chain = await store.chain((await store.find('latest')).id);
      const options = { description: 'a chain', cacheBytesMax: cacheTracks * TRACK };
      const device = new ChainDevice(chain, options);
      const inside = ranges
        .map(({ at, length }) => ({ at, length: Math.min(length, volume.length - at) }))
        .filter(({ length }) => length > 0);
      await compare(t, device, { volume, ranges: inside });
      t.ok((await readOf(device, 0, volume.length)).equals(volume));
      await chain.close();
    }),
    { numRuns: 25 },
  );
});

t.test('readers of one frame share one reading, and later ones what is kept', async (t) => {
  const volume = contentOf(8, [0, 1, 2, 3]);
  const source = new ModelSource(volume, TRACK, [[0, 1, 2, 3]]);
  const device = new ChainDevice(source, { description: 'a model', readAheadBytes: 0 });
  await Promise.all([0, 1, 2, 3, 1].map((track) => readOf(device, track * TRACK, TRACK)));
  t.same(source.reads, [0, 1, 2, 3]);
  const target = Buffer.alloc(TRACK);
  t.equal(device.read(target, 3 * TRACK), undefined, 'at once');
  t.ok(target.equals(volume.subarray(3 * TRACK, 4 * TRACK)));
  t.same(source.reads, [0, 1, 2, 3]);
});

t.test('what is zero is not read for', async (t) => {
  const source = new ModelSource(contentOf(8, [1]), TRACK);
  const device = new ChainDevice(source, { description: 'a model' });
  t.equal(device.read(Buffer.alloc(TRACK), 0), undefined);
  t.same(await device.extents(0, 8 * TRACK), [
    { offsetBytes: 0, lengthBytes: TRACK, hole: true, zero: true },
    { offsetBytes: TRACK, lengthBytes: TRACK, hole: false, zero: false },
    { offsetBytes: 2 * TRACK, lengthBytes: 6 * TRACK, hole: true, zero: true },
  ]);
  t.same(await device.extents(TRACK + BLOCK, BLOCK), [
    { offsetBytes: TRACK + BLOCK, lengthBytes: BLOCK, hole: false, zero: false },
  ]);
  t.same(source.reads, []);
});

t.test('ahead of a stream frames are read before they are asked for, and of nothing else', async (t) => {
  const all = Array.from({ length: 32 }, (_, track) => track);
  const source = new ModelSource(contentOf(32, all), TRACK, cut(all, 2));
  const device = new ChainDevice(source, { description: 'a model', readAheadBytes: 4 * TRACK });
  await readOf(device, 0, 2 * TRACK);
  t.same(source.reads, [0, 1], 'one read is no stream');
  await readOf(device, 2 * TRACK, 2 * TRACK);
  // The reading ahead has slots of its own behind that of the read.
  for (let turn = 0; turn < 4; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  t.same(source.reads, [0, 1, 2, 3, 4, 5, 6, 7]);
  t.equal(device.read(Buffer.alloc(2 * TRACK), 4 * TRACK), undefined, 'there already');
  await readOf(device, 24 * TRACK, TRACK);
  t.notOk(source.reads.includes(26));
});

t.test('damage is an error of the reads that need it, each time, and of no other', async (t) => {
  const volume = contentOf(8, [0, 1, 2, 3]);
  const source = new ModelSource(volume, TRACK, [[0, 1, 2, 3]]);
  source.damaged.add(2);
  const device = new ChainDevice(source, { description: 'a model' });
  for (let time = 0; time < 2; time += 1) {
    await t.rejects(readOf(device, 2 * TRACK, BLOCK), CorruptionError);
    await t.rejects(readOf(device, TRACK, 3 * TRACK), CorruptionError);
    t.ok((await readOf(device, 0, 2 * TRACK)).equals(volume.subarray(0, 2 * TRACK)));
    t.ok((await readOf(device, 3 * TRACK, TRACK)).equals(volume.subarray(3 * TRACK, 4 * TRACK)));
  }
});

t.test('nothing can be written', async (t) => {
  const device = new ChainDevice(new ModelSource(contentOf(2, [0]), TRACK), { description: 'a model' });
  t.same(device.capabilities, { readOnly: true, trim: false, extents: true });
  for (const change of ['write', 'writeZeroes', 'trim'] as const)
    t.throws(() => device[change](), /read-only/);
  await device.flush();
  await device.close();
});
