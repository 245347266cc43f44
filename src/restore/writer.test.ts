/**
 * Goal: exactly the mapped bytes of the targets change, to what the source holds, whatever the table, the
 * order of frames, the number of writers and the earlier content; a restore that stops says what it left.
 *
 * Method: a property test compares whole targets with a model filled byte by byte from the rows. Damage,
 * failing targets and cancelling are single cases.
 */

import fc from 'fast-check';
import t from 'tap';
import { CorruptionError, observeSyncs } from '../base/index.ts';
import { RestoreCorruptionError } from './errors.ts';
import { ModelSource, ModelTarget } from './model.fixture.ts';
import { planRestore } from './planner.ts';
import { type RemapRow, RemapTable } from './remap-table.ts';
import { type RestoreProgress, writeRestore } from './writer.ts';

const BLOCK = 512;
const TRACK = 4096;
const TRACK_COUNT = 12;

/** Rows of random blocks: disjoint on both sides by construction, so that every table is accepted. */
const tableArbitrary = fc
  .record({
    sources: fc.shuffledSubarray(Array.from({ length: 24 }, (_, slot) => slot)),
    places: fc.shuffledSubarray(
      Array.from({ length: 64 }, (_, slot) => slot),
      { minLength: 24 },
    ),
    lengths: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 24, maxLength: 24 }),
  })
  .map(({ sources, places, lengths }) =>
    sources.map((slot, index): RemapRow => {
      const place = places[index] ?? 0;
      return {
        sourceOffsetBytes: slot * 4 * BLOCK,
        lengthBytes: (lengths[index] ?? 1) * BLOCK,
        target: place < 32 ? 'a' : 'b',
        targetOffsetBytes: (place % 32) * 4 * BLOCK,
      };
    }),
  );

function storedSource(letters: readonly number[], order: readonly number[], frameSize: number): ModelSource {
  const content = Buffer.alloc(TRACK_COUNT * TRACK);
  for (const [block, letter] of letters.entries()) content.fill(letter, block * BLOCK, (block + 1) * BLOCK);
  const frames: number[][] = [];
  for (let index = 0; index < order.length; index += frameSize)
    frames.push(order.slice(index, index + frameSize));
  return new ModelSource(content, TRACK, frames);
}

t.test('property: mapped bytes change to the source, all others stay', async () => {
  const blocks = (TRACK_COUNT * TRACK) / BLOCK;
  await fc.assert(
    fc.asyncProperty(
      tableArbitrary,
      // Mostly zero, and whole tracks of zeroes among them.
      fc.array(fc.oneof({ weight: 8, arbitrary: fc.constant(0) }, fc.integer({ min: 1, max: 255 })), {
        minLength: blocks,
        maxLength: blocks,
      }),
      fc.shuffledSubarray(
        Array.from({ length: TRACK_COUNT }, (_, track) => track),
        { minLength: TRACK_COUNT },
      ),
      fc.record({
        frameSize: fc.integer({ min: 1, max: 4 }),
        writers: fc.constantFrom(1, 4),
        seed: fc.option(fc.nat(1000), { nil: undefined }),
        knownZero: fc.boolean(),
      }),
      async (rows, letters, order, { frameSize, writers, seed, knownZero }) => {
        const source = storedSource(letters, order, frameSize);
        const targets = ['a', 'b'].map((name) => {
          const before = Buffer.alloc(32 * 4 * BLOCK, knownZero ? 0 : name);
          const device = new ModelTarget(Buffer.from(before), seed === undefined ? {} : { seed });
          return { name, device, knownZero, model: before };
        });
        for (const row of rows) {
          const model = targets.find(({ name }) => name === row.target)?.model;
          source.content.copy(
            model ?? Buffer.alloc(0),
            row.targetOffsetBytes,
            row.sourceOffsetBytes,
            row.sourceOffsetBytes + row.lengthBytes,
          );
        }
        const plan = planRestore(source, RemapTable.of(rows), targets);
        const result = await writeRestore(source, plan, { writers });
        const mapped = rows.reduce((sum, row) => sum + row.lengthBytes, 0);
        return (
          targets.every(({ device, model }) => device.bytes.equals(model) && device.flushed) &&
          result.bytesWritten + result.bytesZeroed + result.bytesSkipped === mapped &&
          new Set(source.reads).size === source.reads.length
        );
      },
    ),
    { numRuns: 200 },
  );
});

/** Eight tracks `1` to `8`, one to a frame, onto one target filled with `-`. */
function simple(options: ConstructorParameters<typeof ModelTarget>[1] = {}, knownZero = false) {
  const content = Buffer.concat(
    Array.from({ length: 8 }, (_, index) => Buffer.alloc(TRACK, String(index + 1))),
  );
  const source = new ModelSource(
    content,
    TRACK,
    Array.from({ length: 8 }, (_, track) => [track]),
  );
  const device = new ModelTarget(Buffer.alloc(8 * TRACK, '-'), options);
  const target = { name: 'disk', device, knownZero };
  const table = RemapTable.identity('disk', { offsetBytes: 0, lengthBytes: 8 * TRACK });
  return { source, device, plan: planRestore(source, table, [target]) };
}

t.test('a damaged track reaches no target, and the error says what is incomplete', async (t) => {
  const { source, device, plan } = simple({ seed: 1 });
  source.damaged.add(3);
  const error = await writeRestore(source, plan, { writers: 4 }).catch((thrown: unknown) => thrown);
  t.ok(error instanceof CorruptionError, 'still a corruption error');
  t.ok(error instanceof RestoreCorruptionError);
  t.match(error, {
    message: 'Track 3 of the model is damaged; target disk is incomplete',
    place: { tracks: [3] },
    incompleteTargets: ['disk'],
  });
  t.equal(device.bytes.toString('latin1', 3 * TRACK), '-'.repeat(5 * TRACK));
  t.equal(device.bytes.toString('latin1', 0, TRACK), '1'.repeat(TRACK), 'what was in flight was waited for');
});

t.test('damage in the first track leaves everything untouched', async (t) => {
  const { source, device, plan } = simple();
  source.damaged.add(0);
  await t.rejects(writeRestore(source, plan), {
    message: 'Track 0 of the model is damaged; no target was written',
    incompleteTargets: [],
  });
  t.same(device.log, []);
});

t.test('a track that the set lists and does not hold is corruption', async (t) => {
  const { source, plan } = simple();
  const holed = new ModelSource(
    source.content,
    TRACK,
    source.frames.filter(([track]) => track !== 5),
  );
  await t.rejects(writeRestore(holed, plan), {
    name: 'CorruptionError',
    message: /^Set lists 1 tracks that it does not hold, first 5/,
    place: { tracks: [5] },
  });
});

t.test('tracks that turn out to be zero are zeroed, or left alone where the target is zero', async (t) => {
  for (const knownZero of [false, true]) {
    const { source, device, plan } = simple({}, knownZero);
    const read = source.readFrame.bind(source);
    source.readFrame = (entry) =>
      read(entry).map(({ track, content }) => ({ track, content: track < 3 ? undefined : content }));
    const result = await writeRestore(source, plan);
    const zeroBytes = knownZero ? { bytesZeroed: 0, bytesSkipped: 3 * TRACK } : { bytesZeroed: 3 * TRACK };
    t.match(result, { tracks: 5, bytesWritten: 5 * TRACK, ...zeroBytes });
    t.ok(device.bytes.subarray(0, 3 * TRACK).equals(Buffer.alloc(3 * TRACK, knownZero ? '-' : 0)));
    t.ok(device.bytes.subarray(3 * TRACK).equals(source.content.subarray(3 * TRACK)));
  }
});

t.test('a track that is shorter than its pieces is corruption', async (t) => {
  const { source, device, plan } = simple();
  const read = source.readFrame.bind(source);
  source.readFrame = (entry) =>
    read(entry).map(({ track, content }) => ({ track, content: content?.subarray(0, 512) }));
  await t.rejects(writeRestore(source, plan), { message: /^Track 0 ends at byte 512, wanted 4096/ });
  t.same(device.log, []);
});

t.test('a failing target is named, whether it throws or rejects', async (t) => {
  for (const seed of [undefined, 1]) {
    const { source, plan } = simple({
      ...(seed === undefined ? {} : { seed }),
      beforeWrite: (offsetBytes) => {
        if (offsetBytes === 2 * TRACK) throw new Error('ENOSPC: no space left on device');
      },
    });
    const error = await writeRestore(source, plan, { writers: 4 }).catch((thrown: unknown) => thrown);
    t.match(error, {
      name: 'RestoreError',
      code: 'target-failed',
      message:
        'Writing to target disk (model of 32768 bytes) failed: ENOSPC: no space left on device; target disk is incomplete',
      details: { target: 'disk', incompleteTargets: ['disk'] },
      cause: { message: 'ENOSPC: no space left on device' },
    });
  }
});

t.test('a failed flush fails the restore', async (t) => {
  const { source, device, plan } = simple();
  device.flush = () => Promise.reject(new Error('EIO: i/o error'));
  await t.rejects(writeRestore(source, plan), { code: 'target-failed', message: /^Flushing target disk/ });
});

t.test('cancelling stops new writes and waits for those in flight', async (t) => {
  const { source, device, plan } = simple({ seed: 3 });
  const controller = new AbortController();
  const steps: RestoreProgress[] = [];
  const running = writeRestore(source, plan, {
    writers: 2,
    signal: controller.signal,
    onProgress: (progress) => {
      steps.push(progress);
      if (progress.tracksDone === 3) controller.abort();
    },
  });
  await t.rejects(running, {
    code: 'cancelled',
    message: 'Restore was cancelled; target disk is incomplete',
    details: { incompleteTargets: ['disk'] },
  });
  t.equal(device.bytes.toString('latin1', 3 * TRACK), '-'.repeat(5 * TRACK));
  t.equal(
    device.bytes.toString('latin1', 2 * TRACK, 3 * TRACK),
    '3'.repeat(TRACK),
    'nothing is left in flight',
  );
  const before = new AbortController();
  before.abort();
  const other = simple();
  await t.rejects(writeRestore(other.source, other.plan, { signal: before.signal }), { code: 'cancelled' });
  t.same(other.device.log, []);
});

t.test('progress ends at the total, and the number of writes in flight is bounded', async (t) => {
  const { source, device, plan } = simple({ seed: 5 });
  const steps: RestoreProgress[] = [];
  const result = await writeRestore(source, plan, { writers: 3, onProgress: (step) => steps.push(step) });
  t.same(steps.at(-1), { tracksDone: 8, trackCount: 8, bytesWritten: 8 * TRACK, bytesTotal: 8 * TRACK });
  t.match(result, { tracks: 8, bytesWritten: 8 * TRACK, bytesZeroed: 0, bytesSkipped: 0, missing: [] });
  t.equal(device.inFlightMax, 3);
});

t.test('the directory of a created target is synced after its flush', async (t) => {
  const { source, device, plan } = simple();
  const created = {
    ...plan,
    targets: plan.targets.map((target) => ({ ...target, createdIn: t.testdir({}) })),
  };
  const synced: string[] = [];
  observeSyncs({
    before: (event) => {
      if (event.kind === 'directory') synced.push(`${event.name} after ${device.log.at(-1)}`);
      return 'perform';
    },
  });
  await writeRestore(source, created).finally(() => observeSyncs(undefined));
  t.same(synced, ['restore-target after flush']);
});
