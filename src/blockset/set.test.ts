/**
 * Goal: a block set gives back exactly the tracks that were put in, whatever their order, codec and framing,
 * and damage is named by set and track.
 *
 * Method: a property test of writer and reader against a plain map, with many groups and small frames by
 * flushes; the same for sets so large that metadata is spilt while writing; then single damages.
 */

import { copyFileSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { AssertionError, CorruptionError } from '../base/index.ts';
import { digest, openLmdb } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import {
  labelled,
  labelOf,
  newSet,
  noise,
  scratch,
  TRACK_BYTES,
  withoutSyncs,
  writeSetAt,
} from './model.fixture.ts';
import { FORMAT_VERSION, FRAME_HEADER_BYTES, GROUP_TRACKS, type SetHeader, u32Key } from './set-format.ts';
import { SetReader } from './set-reader.ts';
import type { SetWriter } from './set-writer.ts';
import type { NewSet } from './store.ts';

function writerAt(path: string, fields: Partial<NewSet> = {}): SetWriter {
  const header: SetHeader = {
    ...newSet(fields),
    id: '01ARZ3NDEKTSV4RRFFQ69G5FAV',
    previous: null,
    createdMs: 1,
    lanes: 1,
  };
  return writeSetAt(path, header);
}

async function sealed(writer: SetWriter): Promise<void> {
  await writer.finish({ bytesRead: 7, diverted: 3, unchanged: 0 });
  await writer.seal();
}

t.test('property: what was added comes back, and nothing else', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const seed = Date.now() % 2 ** 31;
  t.comment(`seed ${seed}`);
  let run = 0;
  // Three groups of tracks; the volume ends inside its last track.
  const trackCount = 2 * GROUP_TRACKS + 10;
  const sizeBytes = trackCount * TRACK_BYTES - 1000;
  const track = fc.oneof(
    fc.integer({ min: 0, max: 20 }),
    fc.integer({ min: GROUP_TRACKS - 4, max: GROUP_TRACKS + 4 }),
    fc.integer({ min: trackCount - 6, max: trackCount - 1 }),
  );
  const kind = fc.constantFrom('zero', 'label', 'noise', 'flush');
  const step = fc.record({ track, kind });
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(step, { selector: (step) => step.track, maxLength: 40 }),
      fc.constantFrom<'none' | 'zstd'>('none', 'zstd'),
      async (steps, codec) => {
        run += 1;
        const path = `${directory}/${run}`;
        const writer = writerAt(path, { sizeBytes, codec });
        const model = new Map<number, Buffer | undefined>();
        for (const { track: number, kind: what } of steps) {
          const bytes = number === trackCount - 1 ? TRACK_BYTES - 1000 : TRACK_BYTES;
          if (what === 'flush') writer.flush();
          else if (what === 'zero') {
            writer.addZero(number);
            model.set(number, undefined);
          } else {
            const content = what === 'label' ? labelled(String(number), bytes) : noise(number, bytes);
            const buffer = Buffer.from(content);
            writer.add(number, buffer);
            buffer.fill(0xee);
            model.set(number, content);
          }
        }
        await sealed(writer);
        const reader = SetReader.open(path);
        const keys = [...model.keys()];
        t.ok(reader.present.equals(TrackSet.of(keys)));
        t.ok(reader.zeroes.equals(TrackSet.of(keys.filter((key) => model.get(key) === undefined))));
        const planned: number[] = [];
        for (const plan of reader.readPlan(TrackSet.all(trackCount))) {
          for (const { track: number, content } of reader.readFrame(plan)) {
            planned.push(number);
            if (model.get(number)?.equals(content) !== true) t.fail(`track ${number} differs`);
            if (reader.hashOf(number)?.equals(digest(content)) !== true) t.fail(`hash of ${number}`);
          }
        }
        t.same(
          planned,
          keys.filter((key) => model.get(key) !== undefined),
          'in the order of arrival',
        );
        t.equal(reader.readTrack(1000), undefined);
        t.equal(reader.counters.tracks, model.size);
        t.equal(reader.counters.bytesRead, 7);
        await reader.close();
      },
    ),
    { numRuns: 60, seed },
  );
});

t.test('metadata is written while the set grows, and found again when a late track comes', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  const groups = 300;
  const writer = writerAt(path, { sizeBytes: groups * GROUP_TRACKS * TRACK_BYTES });
  for (let group = 0; group < groups; group += 1) {
    writer.addZero(group * GROUP_TRACKS);
    if (group % 3 === 0) writer.add(group * GROUP_TRACKS + 1, labelled(`a${group}`));
  }
  for (let group = 0; group < groups; group += 7) {
    writer.add(group * GROUP_TRACKS + 3, labelled(`b${group}`));
    writer.addZero(group * GROUP_TRACKS + 2);
  }
  t.throws(() => writer.add(1, labelled('twice')), AssertionError, 'the first group was written long ago');
  t.throws(() => writer.addZero(0), AssertionError);
  await sealed(writer);
  const reader = SetReader.open(path);
  const wrong: number[] = [];
  for (let group = 0; group < groups; group += 1) {
    const first = group * GROUP_TRACKS;
    const wanted = [group % 3 === 0 ? `a${group}` : '-', '-', group % 7 === 0 ? `b${group}` : '-'];
    const found = [1, 2, 3].map((step) => labelOf(reader.readTrack(first + step)));
    if (found.join() !== wanted.join() || !reader.zeroes.has(first)) wrong.push(group);
  }
  t.same(wrong, []);
  await reader.close();
});

t.test('frames: full ones are about 1 MiB, zstd is used where it helps', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  for (const codec of ['none', 'zstd'] as const) {
    const writer = writerAt(`${directory}/${codec}`, { sizeBytes: 600 * TRACK_BYTES, codec });
    for (let track = 0; track < 256; track += 1) writer.add(track, labelled('same'));
    for (let track = 256; track < 512; track += 1) writer.add(track, noise(track));
    t.equal(writer.id, '01ARZ3NDEKTSV4RRFFQ69G5FAV');
    await sealed(writer);
    const reader = SetReader.open(`${directory}/${codec}`);
    t.equal(reader.counters.frames, 2);
    const raw = 256 * TRACK_BYTES + FRAME_HEADER_BYTES;
    if (codec === 'none') t.equal(reader.counters.bytesStored, 2 * raw);
    else t.ok(reader.counters.bytesStored > raw && reader.counters.bytesStored < raw * 1.01, 'noise is raw');
    await reader.close();
  }
});

t.test('what was flushed is in the file before the set is finished', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  const writer = writerAt(path);
  writer.add(3, labelled('three'));
  const before = statSync(`${path}.partial`).size;
  writer.flush();
  t.ok(statSync(`${path}.partial`).size > before);
  t.ok(readFileSync(`${path}.partial`).includes('<three>'));
  await writer.abort();
  t.throws(() => statSync(`${path}.partial`), { code: 'ENOENT' });
  t.throws(() => writer.add(4, labelled('four')), AssertionError);
});

t.test('misuse is a programmer error', async (t) => {
  withoutSyncs(t);
  const writer = writerAt(`${scratch(t)}/set`);
  writer.add(1, labelled('1'));
  t.throws(() => writer.add(1, labelled('1')), AssertionError, 'twice');
  t.throws(() => writer.addZero(1), AssertionError, 'twice, as zero');
  t.throws(() => writer.add(2, labelled('2', 100)), AssertionError, 'not a whole track');
  t.throws(() => writer.addZero(16), AssertionError, 'beyond the volume');
  await t.rejects(writer.seal(), AssertionError, 'not finished');
  await writer.abort();
});

const NOISE = Array.from({ length: 600 }, (_, track) => noise(track));

/** A set of 599 tracks of noise: damage hits content nearly everywhere. */
async function example(path: string): Promise<void> {
  const writer = writerAt(path, { sizeBytes: 600 * TRACK_BYTES });
  for (let track = 0; track < 599; track += 1)
    writer.add((track * 7) % 599, NOISE[(track * 7) % 599] ?? noise(0));
  await sealed(writer);
}

t.test('a set cut short at any length is refused', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  await example(path);
  const whole = statSync(path).size;
  for (let lengthBytes = 0; lengthBytes < whole; lengthBytes += 60_001) {
    copyFileSync(path, `${path}-cut`);
    truncateSync(`${path}-cut`, lengthBytes);
    t.throws(() => SetReader.open(`${path}-cut`), CorruptionError, `cut to ${lengthBytes}`);
  }
  copyFileSync(path, `${path}-cut`);
  truncateSync(`${path}-cut`, whole - 1);
  t.throws(() => SetReader.open(`${path}-cut`), CorruptionError, 'one byte short');
});

t.test('a flipped bit anywhere is seen, in content with the tracks named', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  await example(path);
  const original = readFileSync(path);
  let inContent = 0;
  let inMetadata = 0;
  let unused = 0;
  for (let at = 100; at < original.length; at += 30_011) {
    const bytes = Buffer.from(original);
    bytes[at] = (bytes[at] ?? 0) ^ 4;
    writeFileSync(`${path}-bad`, bytes);
    let reader: SetReader;
    try {
      reader = SetReader.open(`${path}-bad`);
    } catch (error) {
      t.type(error, CorruptionError);
      inMetadata += 1;
      continue;
    }
    const damaged: number[] = [];
    for (const plan of reader.readPlan(reader.present)) {
      try {
        for (const { track, content } of reader.readFrame(plan)) {
          if (NOISE[track]?.equals(content) !== true) t.fail(`track ${track} is wrong`);
        }
      } catch (error) {
        if (!(error instanceof CorruptionError)) throw error;
        t.match(error.message, /01ARZ3NDEKTSV4RRFFQ69G5FAV is damaged in track \d+/);
        damaged.push(...(error.place.tracks ?? []));
      }
    }
    if (damaged.length > 0) inContent += 1;
    else unused += 1;
    await reader.close();
  }
  t.comment(`${inContent} in content, ${inMetadata} in metadata, ${unused} in unused bytes`);
  t.ok(inContent > 40);
});

t.test('a track that does not match its hash is damage even under a right checksum', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  const writer = writerAt(path);
  writer.add(5, labelled('five'));
  writer.add(6, labelled('six'), digest(labelled('other')));
  await sealed(writer);
  const reader = SetReader.open(path);
  t.equal(labelOf(reader.readTrack(5)), 'five');
  t.throws(() => reader.readTrack(6), CorruptionError);
  try {
    reader.readFrame({ lane: 0, frame: 0, tracks: [5, 6] });
    t.fail('must throw');
  } catch (error) {
    t.ok(error instanceof CorruptionError && error.place.tracks?.join() === '6');
  }
  await reader.close();
});

t.test('a missing frame and a wrong seal are refused', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/set`;
  await example(path);
  t.throws(() => SetReader.open(path, { seal: '00'.repeat(32) }), CorruptionError);
  copyFileSync(path, `${path}-frame`);
  const file = openLmdb(`${path}-frame`, { bulk: true });
  const frames = file.database('frames');
  file.transaction(() => {
    frames.remove(u32Key(256));
  });
  await file.sync('set-data');
  await file.close();
  const reader = SetReader.open(`${path}-frame`);
  t.throws(() => reader.readFrame({ lane: 0, frame: 256, tracks: [] }), /frame 256 is missing/);
  await reader.close();

  const later = openLmdb(path, { bulk: true });
  const header = later.database('header');
  later.transaction(() => header.put('format', u32Key(FORMAT_VERSION + 1)));
  await later.sync('set-data');
  await later.close();
  t.throws(() => SetReader.open(path), { code: 'newer-format' });
});
