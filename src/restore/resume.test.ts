/**
 * Goal: an interrupted restore goes on where its targets were durable, writes nothing twice that was recorded, and ends
 * as if it had not been interrupted; with another set, table or target it is refused, untouched.
 *
 * Method: a model source over files, cut by a cancel or by damage after any frame, resumed; what is read the second time
 * is compared with what was recorded. The order of flush and record is watched by the syncs.
 */

import { existsSync, readFileSync, renameSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { observeSyncs } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import type { ModelEntry } from './model.fixture.ts';
import { ModelSource } from './model.fixture.ts';
import { planOnly, restore, type WholeRestoreOptions } from './restore.ts';

const TRACK = 4096;
const TRACKS = 12;
const base = { registry: new DeviceRegistry(), isVolumeHome: async () => false };

/** Tracks 0 to 9 of text, the others zero, two to a frame. */
function source(): ModelSource {
  const content = Buffer.alloc(TRACKS * TRACK);
  for (let track = 0; track < 10; track += 1) content.fill(`${track};`, track * TRACK, (track + 1) * TRACK);
  return new ModelSource(content, TRACK, [
    [8, 1],
    [2, 3],
    [9, 0],
    [4, 5],
    [6, 7],
  ]);
}

/** Restores until `frames` frames were read, then cancels. */
async function interrupted(
  frames: number,
  requests: readonly { name: string; uri: string }[],
  options: WholeRestoreOptions,
): Promise<ModelSource> {
  const cut = source();
  const abort = new AbortController();
  let read = 0;
  const readFrame = cut.readFrame.bind(cut);
  cut.readFrame = (entry: ModelEntry) => {
    read += 1;
    if (read > frames) abort.abort();
    return readFrame(entry);
  };
  await t.rejects(restore(cut, requests, { ...options, signal: abort.signal }), { code: 'cancelled' });
  return cut;
}

function setUp(t: Test): {
  disk: string;
  progress: string;
  requests: { name: string; uri: string }[];
  options: WholeRestoreOptions;
} {
  const directory = t.testdir({});
  const disk = join(directory, 'disk');
  const progress = join(directory, 'disk.restore-progress');
  const requests = [{ name: 'disk', uri: disk }];
  return { disk, progress, requests, options: { ...base, resume: { path: progress, set: 'S1' } } };
}

t.test('it goes on where it was cancelled, and reads no track again', async (t) => {
  const { disk, progress, requests, options } = setUp(t);
  await interrupted(2, requests, options);
  t.ok(existsSync(progress));
  const { summary } = await planOnly(source(), requests, options);
  t.match(summary, { tracks: 6, tracksBefore: 4, frames: 3 });
  const second = source();
  const result = await restore(second, requests, { ...options, verify: true });
  t.match(result, { tracks: 6, tracksBefore: 4, missing: [] });
  t.same(second.reads, [9, 0, 4, 5, 6, 7]);
  t.ok(readFileSync(disk).equals(source().content));
  t.notOk(existsSync(progress), 'nothing is left to go on with');
});

t.test('what is recorded was flushed before', async (t) => {
  const { disk, progress, requests, options } = setUp(t);
  const synced: string[] = [];
  observeSyncs({
    after: (event) => {
      if (event.kind !== 'commit') synced.push(event.path);
    },
  });
  await restore(source(), requests, {
    ...options,
    resume: { path: progress, set: 'S1', everyBytes: 4 * TRACK },
  }).finally(() => observeSyncs(undefined));
  const directory = join(disk, '..');
  const record = [`${progress}.new`, directory];
  t.same(synced, [
    disk, // created
    ...record,
    disk,
    directory, // the name of the target, once
    ...record,
    disk,
    ...record,
    disk,
    directory, // the progress file goes
  ]);
});

t.test('property: cut anywhere, by cancelling or by damage, it ends as if it had not been', async (t) => {
  const { disk, progress, requests, options } = setUp(t);
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({ frames: fc.nat(4), isDamage: fc.boolean(), every: fc.integer({ min: 1, max: 5 }) }),
        {
          maxLength: 3,
        },
      ),
      async (cuts) => {
        for (const path of [disk, progress]) if (existsSync(path)) renameSync(path, `${path}.old`);
        for (const { frames, isDamage, every } of cuts) {
          const often = { ...options, resume: { path: progress, set: 'S1', everyBytes: every * TRACK } };
          const cut = source();
          const abort = new AbortController();
          let read = 0;
          const readFrame = cut.readFrame.bind(cut);
          cut.readFrame = (entry: ModelEntry) => {
            read += 1;
            if (read > frames && isDamage) for (const track of entry.tracks) cut.damaged.add(track);
            if (read > frames && !isDamage) abort.abort();
            return readFrame(entry);
          };
          await restore(cut, requests, { ...often, signal: abort.signal }).catch(() => undefined);
        }
        await restore(source(), requests, { ...options, verify: true });
        t.ok(readFileSync(disk).equals(source().content));
      },
    ),
    { numRuns: 30 },
  );
});

t.test('another set, another table, another target', async (t) => {
  const { disk, progress, requests, options } = setUp(t);
  await interrupted(2, requests, options);
  const before = readFileSync(disk);
  const saved = readFileSync(progress);
  const resumed = (more: object) => restore(source(), requests, { ...options, ...more });
  await t.rejects(resumed({ resume: { path: progress, set: 'S2' } }), {
    code: 'bad-progress-file',
    message: `Progress file ${progress} is of a restore of set S1, wanted S2; remove it to begin anew`,
  });
  const ranges = [{ offsetBytes: 0, lengthBytes: TRACK }];
  await t.rejects(resumed({ layout: { sequenceBytes: TRACKS * TRACK, ranges } }), {
    code: 'bad-progress-file',
    message: /is of a restore with another remap table, ranges or targets/,
  });
  t.ok(readFileSync(disk).equals(before));

  truncateSync(disk, (TRACKS + 1) * TRACK);
  await t.rejects(resumed({}), { code: 'target-changed', message: /had 49152 bytes and has 53248/ });
  truncateSync(disk, TRACKS * TRACK);

  const changed = Buffer.from(before);
  changed[2 * TRACK + 700] = (changed[2 * TRACK + 700] ?? 0) ^ 1;
  writeFileSync(disk, changed);
  await t.rejects(resumed({}), {
    code: 'target-changed',
    message: new RegExp(
      `has changed at byte ${2 * TRACK + 700}, wanted it as the interrupted restore left it; remove ${progress} to begin anew`,
    ),
  });
  writeFileSync(disk, before);

  renameSync(disk, `${disk}.1`);
  await t.rejects(resumed({}), { code: 'target-changed', message: /was there and is missing now/ });
  t.notOk(existsSync(disk), 'nothing is made');
  writeFileSync(disk, before);
  await t.rejects(resumed({}), { code: 'target-changed', message: /was another file or device/ });
  renameSync(`${disk}.1`, disk);
  t.ok(readFileSync(progress).equals(saved), 'no refusal changes the file');
  await resumed({});
  t.ok(readFileSync(disk).equals(source().content));
});

t.test('a file that is damaged, of another kind or another version', async (t) => {
  const { progress, requests, options } = setUp(t);
  await interrupted(2, requests, options);
  const text = readFileSync(progress, 'utf8');
  const cases = [
    [text.replace('"set":"S1"', '"set":"S2"'), /is damaged: its checksum does not fit/],
    [text.slice(0, 100), /is damaged/],
    ['my notes', /is no progress file of a restore/],
  ] as const;
  for (const [content, message] of cases) {
    writeFileSync(progress, content);
    await t.rejects(restore(source(), requests, options), { code: 'bad-progress-file', message });
    t.equal(readFileSync(progress, 'utf8'), content);
  }
});

t.test('a restore that is not resumed removes what it makes untrue, and nothing else', async (t) => {
  const { progress, requests, options } = setUp(t);
  await interrupted(2, requests, options);
  const other = `${progress}.mine`;
  writeFileSync(other, 'my notes');
  await restore(source(), requests, { ...base, staleProgressFiles: [progress, other, `${progress}.none`] });
  t.notOk(existsSync(progress));
  t.equal(readFileSync(other, 'utf8'), 'my notes');
});

t.test('what an earlier run has written counts in the progress', async (t) => {
  const { requests, options } = setUp(t);
  await interrupted(2, requests, options);
  const steps: number[] = [];
  await restore(source(), requests, {
    ...options,
    onProgress: ({ bytesWritten, tracksDone }) => steps.push(bytesWritten, tracksDone),
  });
  t.same(steps.slice(0, 2), [6 * TRACK, 6]);
});
