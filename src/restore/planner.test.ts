/**
 * Goal: whatever does not fit is refused before anything is written; a plan names the tracks to read, their
 * pieces and the ranges to zero. Method: single cases against models that log each call.
 */

import t from 'tap';
import { RemapTable } from './remap-table.ts';
import { ModelSource, ModelTarget, type ModelTargetOptions } from './model.fixture.ts';
import { planRestore } from './planner.ts';

const TRACK = 4096;

/** Five tracks, 1 and 3 with content, the last one half a track long. */
function source(): ModelSource {
  const content = Buffer.alloc(4 * TRACK + 2048);
  content.fill('x', TRACK, 2 * TRACK);
  content.fill('y', 3 * TRACK + 512, 3 * TRACK + 1024);
  return new ModelSource(content, TRACK);
}

function target(name: string, sizeBytes: number, options: ModelTargetOptions & { knownZero?: boolean } = {}) {
  return {
    name,
    device: new ModelTarget(Buffer.alloc(sizeBytes), options),
    knownZero: options.knownZero ?? false,
  };
}

const whole = RemapTable.identity('a', { offsetBytes: 0, lengthBytes: 4 * TRACK + 2048 });

t.test('what does not fit is refused untouched', (t) => {
  const cases = [
    { table: whole, targets: [target('b', 8 * TRACK)], code: 'unknown-target' },
    { table: whole, targets: [target('a', 4 * TRACK)], code: 'target-too-small' },
    { table: whole, targets: [target('a', 8 * TRACK, { readOnly: true })], code: 'target-read-only' },
    {
      table: RemapTable.identity('a', { offsetBytes: 0, lengthBytes: 5 * TRACK }),
      targets: [target('a', 8 * TRACK)],
      code: 'outside-source',
    },
    { table: whole, targets: [target('a', 8 * TRACK, { blockSizeBytes: 4096 })], code: 'misaligned' },
  ];
  for (const { table, targets, code } of cases) {
    t.throws(() => planRestore(source(), table, targets), { name: 'RestoreError', code });
    for (const { device } of targets) t.same(device.log, [], code);
  }
  t.end();
});

t.test('a target of larger blocks takes what is whole blocks of it', (t) => {
  const table = RemapTable.of([
    { sourceOffsetBytes: TRACK, lengthBytes: TRACK, target: 'a', targetOffsetBytes: 2 * TRACK },
  ]);
  const plan = planRestore(source(), table, [target('a', 8 * TRACK, { blockSizeBytes: 4096 })]);
  t.same(plan.tracks.toArray(), [1]);
  const odd = RemapTable.of([
    { sourceOffsetBytes: TRACK + 512, lengthBytes: TRACK, target: 'a', targetOffsetBytes: 2 * TRACK },
  ]);
  t.throws(() => planRestore(source(), odd, [target('a', 8 * TRACK, { blockSizeBytes: 4096 })]), {
    code: 'misaligned',
    message: /4608\+4096 to a:8192 is not in whole blocks of .*, wanted multiples of 4096 bytes/,
  });
  t.end();
});

t.test('a plan names tracks, pieces and zero ranges', (t) => {
  const a = target('a', 8 * TRACK);
  const unused = target('unused', 8 * TRACK);
  const plan = planRestore(source(), whole, [unused, a]);
  t.same(plan.tracks.toArray(), [1, 3]);
  t.same(plan.targets, [a]);
  t.equal(plan.dataBytes, 2 * TRACK);
  t.equal(plan.zeroBytes, 2 * TRACK + 2048);
  t.equal(plan.skippedBytes, 0);
  t.same(
    [...plan.zeroRanges()].map(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes]),
    [
      [0, TRACK],
      [2 * TRACK, TRACK],
      [4 * TRACK, 2048],
    ],
  );
  t.match(plan.piecesOf(3), [{ targetOffsetBytes: 3 * TRACK, offsetInTrackBytes: 0, lengthBytes: TRACK }]);
  t.end();
});

t.test('a track in pieces for two targets; zero ranges of a new target are skipped', (t) => {
  const table = RemapTable.of([
    { sourceOffsetBytes: TRACK + 512, lengthBytes: 512, target: 'a', targetOffsetBytes: 0 },
    { sourceOffsetBytes: TRACK + 2048, lengthBytes: TRACK, target: 'b', targetOffsetBytes: 1024 },
  ]);
  const a = target('a', 4 * TRACK);
  const b = target('b', 4 * TRACK, { knownZero: true });
  const plan = planRestore(source(), table, [a, b]);
  t.same(plan.tracks.toArray(), [1]);
  t.same(plan.piecesOf(1), [
    { target: a, targetOffsetBytes: 0, offsetInTrackBytes: 512, lengthBytes: 512 },
    { target: b, targetOffsetBytes: 1024, offsetInTrackBytes: 2048, lengthBytes: 2048 },
  ]);
  t.same(plan.piecesOf(0), []);
  t.equal(plan.dataBytes, 512 + 2048);
  t.equal(plan.zeroBytes, 0);
  t.equal(plan.skippedBytes, 2048);
  t.same([...plan.zeroRanges()], []);
  t.end();
});

t.test('zero tracks that follow each other on the target become one range', (t) => {
  const blank = new ModelSource(Buffer.alloc(8 * TRACK), TRACK);
  const table = RemapTable.of([
    { sourceOffsetBytes: 4 * TRACK, lengthBytes: 2 * TRACK, target: 'a', targetOffsetBytes: 3 * TRACK },
    { sourceOffsetBytes: 0, lengthBytes: 3 * TRACK, target: 'a', targetOffsetBytes: 0 },
  ]);
  const plan = planRestore(blank, table, [target('a', 8 * TRACK)]);
  t.match([...plan.zeroRanges()], [{ offsetBytes: 0, lengthBytes: 5 * TRACK }]);
  t.end();
});
