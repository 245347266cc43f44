/**
 * Goal: a salvage restores exactly what is good of a damaged set, leaves the rest of the targets alone, and names what
 * is missing byte by byte; and through real chains, whatever the table, each mapped byte is what the newest set has.
 *
 * Method: a model source with damaged and lost tracks for the room's own part. Then random chains of sets in a real
 * store, random tables and random damage of frames against a model; EXAMPLES B13 with a lane that is missing; and what
 * is read of a chain with lanes in threads, frame by frame.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { CorruptionError, observeSyncs, present, randomId } from '../base/index.ts';
import { type ChainPlanEntry, type ChainView, LaneWriter, Store, ThreadedChain } from '../blockset/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { builtProgram } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { ModelSource, ModelTarget } from './model.fixture.ts';
import { planRestore } from './planner.ts';
import { type RemapRow, RemapTable } from './remap-table.ts';
import type { RestoredTrack } from './restore-source.ts';
import { restore } from './restore.ts';
import { writeRestore } from './writer.ts';

const TRACK = 4096;
const BLOCK = 512;
const TRACKS = 12;
const options = { registry: new DeviceRegistry(), isVolumeHome: async () => false };

t.before(() => observeSyncs({ before: () => 'skip' }));
t.teardown(() => observeSyncs(undefined));

function content(): Buffer {
  const bytes = Buffer.alloc(TRACKS * TRACK);
  for (let track = 0; track < 10; track += 1) bytes.fill(`${track};`, track * TRACK, (track + 1) * TRACK);
  return bytes;
}

const FRAMES = [[8, 1], [2, 3, 9], [0], [4, 5, 6, 7]];

/** The target's content with the source's where it was restored. */
function wanted(before: string, good: readonly number[]): Buffer {
  const bytes = Buffer.alloc(TRACKS * TRACK, before);
  for (const track of good) content().copy(bytes, track * TRACK, track * TRACK, (track + 1) * TRACK);
  return bytes;
}

t.test('damaged tracks are left alone and named; the others of their frame are restored', async (t) => {
  const source = new ModelSource(content(), TRACK, FRAMES, { lost: [7, 11] });
  source.damaged.add(3).add(9).add(0);
  const device = new ModelTarget(Buffer.alloc(TRACKS * TRACK, '-'), { seed: 1 });
  const plan = planRestore(
    source,
    RemapTable.identity('disk', { offsetBytes: 0, lengthBytes: TRACKS * TRACK }),
    [{ name: 'disk', device, knownZero: false }],
  );
  const result = await writeRestore(source, plan, { salvage: true });
  t.ok(device.bytes.equals(wanted('-', [1, 2, 4, 5, 6, 8, 10])));
  t.match(result, {
    tracks: 6,
    bytesZeroed: TRACK,
    missing: [
      { offsetBytes: 0, lengthBytes: TRACK },
      { offsetBytes: 3 * TRACK, lengthBytes: TRACK },
      { offsetBytes: 7 * TRACK, lengthBytes: TRACK },
      { offsetBytes: 9 * TRACK, lengthBytes: TRACK },
      { offsetBytes: 11 * TRACK, lengthBytes: TRACK },
    ],
  });
  t.equal(result.findings.length, 3);
  await t.rejects(writeRestore(source, plan), { name: 'CorruptionError' }, 'without salvage it stops');
});

t.test('only what is mapped is missing', async (t) => {
  const source = new ModelSource(content(), TRACK, FRAMES, { lost: [7] });
  source.damaged.add(3);
  const uri = join(t.testdir({}), 'disk');
  const ranges = [
    { offsetBytes: 3 * TRACK + BLOCK, lengthBytes: BLOCK },
    { offsetBytes: 6 * TRACK, lengthBytes: TRACK + BLOCK },
  ];
  const layout = { sequenceBytes: TRACKS * TRACK, ranges };
  const result = await restore(source, [{ name: 'disk', uri }], {
    ...options,
    layout,
    salvage: true,
    verify: true,
  });
  t.same(result.missing, [ranges[0], { offsetBytes: 7 * TRACK, lengthBytes: BLOCK }]);
  t.equal(result.bytesWritten, TRACK);
});

t.test('damage that names no track of its frame takes the frame', async (t) => {
  const source = new ModelSource(content(), TRACK, FRAMES);
  const readFrame = source.readFrame.bind(source);
  source.readFrame = (entry) => {
    if (entry.tracks.includes(0)) throw new CorruptionError('No tracks', { where: 'model' });
    if (entry.tracks.includes(2)) throw new CorruptionError('Others', { where: 'model', tracks: [100] });
    return readFrame(entry);
  };
  const device = new ModelTarget(Buffer.alloc(TRACKS * TRACK, '-'));
  const plan = planRestore(
    source,
    RemapTable.identity('disk', { offsetBytes: 0, lengthBytes: TRACKS * TRACK }),
    [{ name: 'disk', device, knownZero: false }],
  );
  const { missing } = await writeRestore(source, plan, { salvage: true });
  t.same(
    missing.map(({ offsetBytes, lengthBytes }) => [offsetBytes / TRACK, lengthBytes / TRACK]),
    [
      [0, 1],
      [2, 2],
      [9, 1],
    ],
  );
});

/** A source that tells its tracks only as it reads them, and at the end those that it lacks. */
class Medium {
  readonly sizeBytes = TRACKS * TRACK;
  readonly trackSizeBytes = TRACK;
  #reads = 0;

  tracks(): TrackSet {
    return TrackSet.ofRun({ first: 0, count: 6 });
  }

  *readPlan(): Generator<{ tracks: number[] }> {
    for (;;) yield { tracks: [] };
  }

  readFrame(): RestoredTrack[] {
    this.#reads += 1;
    const at = (track: number) => ({
      track,
      content: content().subarray(track * TRACK, (track + 1) * TRACK),
    });
    if (this.#reads === 1) return [at(3), at(1)];
    if (this.#reads === 2) return [at(0)];
    if (this.#reads === 3)
      throw new CorruptionError('The media lack track 2', { where: 'm', tracks: [2, 5] });
    return this.#reads === 4 ? [{ track: 4, content: undefined }] : [];
  }
}

t.test('a source that is read once gives what it has to the end', async (t) => {
  const device = new ModelTarget(Buffer.alloc(TRACKS * TRACK, '-'));
  const source = new Medium();
  const plan = planRestore(source, RemapTable.identity('disk', { offsetBytes: 0, lengthBytes: 6 * TRACK }), [
    { name: 'disk', device, knownZero: false },
  ]);
  const result = await writeRestore(source, plan, { salvage: true });
  t.match(result, {
    tracks: 3,
    bytesZeroed: TRACK,
    missing: [
      { offsetBytes: 2 * TRACK, lengthBytes: TRACK },
      { offsetBytes: 5 * TRACK, lengthBytes: TRACK },
    ],
    findings: ['The media lack track 2'],
  });
});

// ---- with a store ---------------------------------------------------------------------------------------

/** For each set of a chain, what it has: a label, or null for zeroes. */
type Sets = readonly ReadonlyMap<number, string | null>[];

function labelled(label: string): Buffer {
  return Buffer.alloc(TRACK, `<${label}>`);
}

/** Saves the chain, with several lanes, each track in a frame of its own. */
async function saveChain(store: Store, sets: Sets, lanes: number): Promise<readonly string[]> {
  const volumeId = randomId();
  const points = sets.map(() => randomId());
  const ids: string[] = [];
  for (const [index, tracks] of sets.entries()) {
    const { assembly, lanes: writers } = await store.beginSet(
      {
        volumeId,
        volumeName: 'disk',
        level: index === 0 ? 'full' : 'incremental',
        base: points[index - 1] ?? null,
        point: present(points[index], 'Each set has a point'),
        sizeBytes: TRACKS * TRACK,
        trackSizeBytes: TRACK,
        codec: 'none',
      },
      { count: lanes, directories: [] },
      async (parts) => parts.map((part) => new LaneWriter(part)),
    );
    for (const [track, label] of tracks) {
      const writer = writers[track % lanes];
      if (label === null) writer?.addZero(track);
      else writer?.add(track, labelled(label));
      writer?.flush();
    }
    await assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
    ids.push((await assembly.seal()).header.id);
  }
  return ids;
}

/** The newest of each track. */
function effective(sets: Sets): (string | null)[] {
  return Array.from({ length: TRACKS }, (_, track) => {
    return sets.findLast((tracks) => tracks.has(track))?.get(track) ?? null;
  });
}

const setsArbitrary = fc
  .array(fc.uniqueArray(fc.tuple(fc.nat(TRACKS - 1), fc.boolean()), { selector: ([track]) => track }), {
    minLength: 1,
    maxLength: 4,
  })
  .map((sets) =>
    sets.map(
      (tracks, index) =>
        new Map(tracks.map(([track, isZero]) => [track, isZero ? null : `${index}.${track}`])),
    ),
  );

/** Disjoint rows of blocks on two targets. */
const rowsArbitrary = fc
  .record({
    slots: fc.shuffledSubarray(Array.from({ length: 24 }, (_, slot) => slot)),
    places: fc.shuffledSubarray(
      Array.from({ length: 48 }, (_, place) => place),
      { minLength: 48 },
    ),
    lengths: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 24, maxLength: 24 }),
  })
  .map(({ slots, places, lengths }) =>
    slots.map((slot, index): RemapRow => {
      const place = places[index] ?? 0;
      return {
        sourceOffsetBytes: slot * 4 * BLOCK,
        lengthBytes: (lengths[index] ?? 1) * BLOCK,
        target: place < 24 ? 'a' : 'b',
        targetOffsetBytes: (place % 24) * 4 * BLOCK,
      };
    }),
  );

t.test('property: random chains, tables and damaged frames: exactly the undamaged tracks', async (t) => {
  const directory = t.testdir({});
  let runs = 0;
  await fc.assert(
    fc.asyncProperty(
      setsArbitrary,
      rowsArbitrary,
      fc.uniqueArray(fc.nat(TRACKS - 1), { maxLength: 4 }),
      fc.record({
        lanes: fc.integer({ min: 1, max: 3 }),
        writers: fc.constantFrom(1, 4),
        seed: fc.nat(1000),
      }),
      async (sets, rows, damaged, { lanes, writers, seed }) => {
        runs += 1;
        const store = await Store.init(join(directory, `s${runs}`));
        const ids = await saveChain(store, sets, lanes);
        const labels = effective(sets);
        const bad = new Set(damaged.filter((track) => labels[track] !== null));
        for (const track of bad) await damage(store, ids, present(labels[track], 'It has content'));

        const volume = Buffer.concat(
          labels.map((label) => (label === null ? Buffer.alloc(TRACK) : labelled(label))),
        );
        const devices = ['a', 'b'].map((name) => ({
          name,
          device: new ModelTarget(Buffer.alloc(48 * 4 * BLOCK, name), { seed }),
          knownZero: false,
        }));
        const model = new Map(devices.map(({ name, device }) => [name, Buffer.from(device.bytes)]));
        const missing = new Set<number>();
        for (const row of rows) {
          for (let at = 0; at < row.lengthBytes; at += BLOCK) {
            const from = row.sourceOffsetBytes + at;
            if (bad.has(Math.floor(from / TRACK))) missing.add(from);
            else
              volume.copy(
                present(model.get(row.target), 'A target'),
                row.targetOffsetBytes + at,
                from,
                from + BLOCK,
              );
          }
        }
        const chain = await store.chain(present(ids.at(-1), 'A chain has a set'));
        try {
          const plan = planRestore(chain, RemapTable.of(rows), devices);
          const result = await writeRestore(chain, plan, { writers, salvage: true });
          for (const { name, device } of devices)
            t.ok(device.bytes.equals(present(model.get(name), 'A target')));
          const named = result.missing.flatMap(({ offsetBytes, lengthBytes }) =>
            Array.from({ length: lengthBytes / BLOCK }, (_, index) => offsetBytes + index * BLOCK),
          );
          t.same(
            named,
            [...missing].sort((x, y) => x - y),
          );
        } finally {
          await chain.close();
          rmSync(store.path, { recursive: true });
        }
      },
    ),
    { numRuns: 40 },
  );
});

/** Changes a byte of the frame that holds this content. */
async function damage(store: Store, ids: readonly string[], label: string): Promise<void> {
  for (const id of ids) {
    for (const path of (await store.find(id)).lanePaths) {
      const bytes = readFileSync(path);
      const place = bytes.indexOf(`<${label}><${label}>`);
      if (place === -1) continue;
      bytes[place + 1] = 0;
      writeFileSync(path, bytes);
      return;
    }
  }
}

t.test('B13: one lane is missing: a salvage restores exactly the tracks of the other', async (t) => {
  const directory = t.testdir({ disk: Buffer.alloc(TRACKS * TRACK, '-') });
  const uri = join(directory, 'disk');
  const store = await Store.init(join(directory, 'store'));
  const all = new Map(Array.from({ length: TRACKS }, (_, track) => [track, `a${track}`]));
  const [id = ''] = await saveChain(store, [all], 2);
  rmSync(present((await store.find(id)).lanePaths[1], 'A second lane'));
  await t.rejects(store.chain(id), /lane 1: its file is missing/, 'it is named');
  const chain = await store.salvage(id);
  const result = await restore(chain, [{ name: 'disk', uri }], { ...options, salvage: true, verify: true });
  await chain.close();
  const expected = Array.from({ length: TRACKS }, (_, track) => {
    return track % 2 === 0 ? labelled(`a${track}`) : Buffer.alloc(TRACK, '-');
  });
  t.ok(readFileSync(uri).equals(Buffer.concat(expected)));
  t.match(result, { tracks: TRACKS / 2, bytesZeroed: 0 });
  t.same(
    result.missing,
    Array.from({ length: TRACKS / 2 }, (_, index) => ({
      offsetBytes: (2 * index + 1) * TRACK,
      lengthBytes: TRACK,
    })),
  );
});

t.test('a chain with lanes, read in threads: each frame once, in storage order, lanes in turn', async (t) => {
  const directory = t.testdir({});
  const store = await Store.init(join(directory, 'store'));
  const full = new Map(Array.from({ length: TRACKS }, (_, track) => [(track * 5) % TRACKS, `a${track}`]));
  const ids = await saveChain(
    store,
    [
      full,
      new Map([
        [7, 'b7'],
        [2, 'b2'],
        [3, null],
      ]),
      new Map([
        [2, 'c2'],
        [11, 'c11'],
      ]),
    ],
    2,
  );
  const open = (): Promise<ChainView> => store.chain(present(ids.at(-1), 'A chain has a set'));
  const plain = await open();
  const planned = [...plain.readPlan(plain.tracks())].map(placeOf);
  await plain.close();
  const chain = await ThreadedChain.start(await open(), {
    program: builtProgram('chain-reader'),
    storePath: store.path,
  });
  const read: ReturnType<typeof placeOf>[] = [];
  const readFrame = chain.readFrame.bind(chain);
  chain.readFrame = (entry: ChainPlanEntry) => {
    read.push(placeOf(entry));
    return readFrame(entry);
  };
  const targets = ['one', 'two'].map((name) => ({ name, uri: join(directory, name), sizeBytes: 6 * TRACK }));
  await restore(chain, targets, options);
  await chain.close();
  t.same(read, planned, 'as the plan has them');
  t.equal(new Set(read.map((place) => place.join(' '))).size, read.length, 'each once');
  for (const set of ids) {
    for (const lane of [0, 1]) {
      const frames = read.filter((place) => place[0] === set && place[1] === lane).map((place) => place[2]);
      t.same(
        frames,
        frames.toSorted((a, b) => a - b),
        'in the order of arrival',
      );
    }
  }
  t.same([...new Set(read.map(([set]) => set))], ids.toReversed(), 'set by set, the newest first');
  const restored = targets.map(({ uri }) => readFileSync(uri));
  const labels = Array.from({ length: TRACKS }, (_, track) => full.get(track) ?? '');
  labels[7] = 'b7';
  labels[2] = 'c2';
  labels[11] = 'c11';
  const expected = Buffer.concat(labels.map(labelled));
  expected.fill(0, 3 * TRACK, 4 * TRACK);
  t.ok(Buffer.concat(restored).equals(expected));
});

function placeOf({ set, lane, frame }: ChainPlanEntry): readonly [string, number, number] {
  return [set, lane, frame];
}
