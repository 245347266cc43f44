/**
 * Goal: what goes where is decided alike for whole volumes, ranges and packed ranges, over one target or several,
 * and what does not fit is refused before anything is written.
 *
 * Method: tables as text for targets of given sizes; then the same through files, EXAMPLES B5 in place among them.
 */

import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { DeviceRegistry } from '../device/index.ts';
import { settleLayout, type TargetLayout } from './layout.ts';
import { ModelSource } from './model.fixture.ts';
import { RemapTable, type SourceRange } from './remap-table.ts';
import { restore } from './restore.ts';

const TRACK = 4096;
const options = { registry: new DeviceRegistry(), isVolumeHome: async () => false };

const range = (first: number, count: number): SourceRange => ({
  offsetBytes: first * TRACK,
  lengthBytes: count * TRACK,
});

/** `0x3>a:0` for each row, in tracks, then what is left out. */
function text(layout: TargetLayout, sizes: Readonly<Record<string, number>>): string {
  const targets = Object.entries(sizes).map(([name, count]) => ({ name, sizeBytes: count * TRACK }));
  const { table, leftOutBytes } = settleLayout(layout).tableFor(targets);
  const rows = table.rows.map(({ sourceOffsetBytes, lengthBytes, target, targetOffsetBytes }) => {
    return `${sourceOffsetBytes / TRACK}x${lengthBytes / TRACK}>${target}:${targetOffsetBytes / TRACK}`;
  });
  return [...rows, ...(leftOutBytes > 0 ? [`-${leftOutBytes / TRACK}`] : [])].join(' ');
}

t.test('the volume, and targets that end behind what is used', (t) => {
  const whole = { sequenceBytes: 10 * TRACK, usedBytes: 6 * TRACK };
  t.equal(text(whole, { a: 10 }), '0x10>a:0');
  t.equal(text(whole, { a: 4, b: 20 }), '0x4>a:0 4x6>b:0');
  t.equal(text(whole, { a: 4, b: 3 }), '0x4>a:0 4x3>b:0 -3');
  t.equal(text(whole, { a: 6 }), '0x6>a:0 -4');
  t.equal(text({ ...whole, usedBytes: 0 }, { a: 0 }), '-10');
  t.throws(() => text(whole, { a: 5 }), {
    code: 'target-too-small',
    message: `Restore needs ${6 * TRACK} bytes, the targets a hold ${5 * TRACK} together`,
  });
  t.throws(() => text({ sequenceBytes: 10 * TRACK }, { a: 9 }), {
    code: 'target-too-small',
    message: /^Restore needs 40960 bytes/,
  });
  t.end();
});

t.test('ranges, at their own addresses and packed', (t) => {
  const layout = { sequenceBytes: 10 * TRACK, ranges: [range(6, 2), range(1, 3)] };
  t.equal(settleLayout(layout).spaceBytes, 8 * TRACK, 'up to the end of the last');
  t.equal(text(layout, { a: 8 }), '1x3>a:1 6x2>a:6');
  t.equal(text(layout, { a: 2, b: 8 }), '1x1>a:1 2x2>b:0 6x2>b:4');
  t.throws(() => text(layout, { a: 7 }), { code: 'target-too-small', message: /^Restore needs 32768 bytes/ });
  const packed = { ...layout, pack: true };
  t.equal(settleLayout(packed).spaceBytes, 5 * TRACK);
  t.equal(text(packed, { a: 5 }), '1x3>a:2 6x2>a:0', 'in the order in which they are given');
  t.equal(text(packed, { a: 1, b: 4 }), '1x3>b:1 6x1>a:0 7x1>b:0');
  t.throws(() => text(packed, { a: 4 }), { code: 'target-too-small', message: /^Restore needs 20480 bytes/ });
  t.end();
});

t.test('ranges of a table keep its destinations', (t) => {
  const table = RemapTable.of([
    { sourceOffsetBytes: 0, lengthBytes: 4 * TRACK, target: 'a', targetOffsetBytes: 8 * TRACK },
    { sourceOffsetBytes: 6 * TRACK, lengthBytes: 2 * TRACK, target: 'b', targetOffsetBytes: 0 },
  ]);
  const layout = { table, ranges: [range(3, 4)] };
  t.equal(text(layout, {}), '3x1>a:11 6x1>b:0');
  t.same(
    settleLayout(layout).rooms,
    new Map([
      ['a', 12 * TRACK],
      ['b', TRACK],
    ]),
    'no more room than they need',
  );
  t.end();
});

t.test('ranges that cannot be', (t) => {
  const refuse = (ranges: SourceRange[], error: { code: string; message?: string | RegExp }): void => {
    t.throws(() => settleLayout({ sequenceBytes: 10 * TRACK, ranges }), error);
  };
  refuse([{ offsetBytes: 1, lengthBytes: 512 }], {
    code: 'bad-table',
    message: /^Range 1\+512 is not in whole blocks/,
  });
  refuse([{ offsetBytes: 0, lengthBytes: 0 }], { code: 'bad-table' });
  refuse([range(0, 2), range(1, 1)], {
    code: 'bad-table',
    message: /^Range 4096\+4096 meets the range 0\+8192/,
  });
  refuse([range(9, 2)], {
    code: 'outside-source',
    message: `Range ${9 * TRACK}+${2 * TRACK} is outside of the set's volume of ${10 * TRACK} bytes`,
  });
  t.end();
});

/** Track `n` is filled with the digit `n`, but track 1 and what is behind 5 are zero. */
function source(): ModelSource {
  const content = Buffer.alloc(10 * TRACK);
  for (const track of [0, 2, 3, 4, 5]) content.fill(String(track), track * TRACK, (track + 1) * TRACK);
  return new ModelSource(content, TRACK, [[5, 0], [2], [3, 4]]);
}

/** One character for each track, `.` for zeroes. */
function tracksOf(path: string): string {
  const bytes = readFileSync(path);
  return Array.from({ length: bytes.length / TRACK }, (_, track) => {
    const character = bytes.toString('latin1', track * TRACK, track * TRACK + 1);
    return character === '\0' ? '.' : character;
  }).join('');
}

t.test('through files: new ones are as large as needed, and old ones keep what is not named', async (t) => {
  const directory = t.testdir({ old: Buffer.alloc(12 * TRACK, '-') });
  const at = (name: string) => ({ name, uri: join(directory, name) });
  const ranges = [range(4, 3), range(1, 2)];
  const inPlace = { sequenceBytes: 10 * TRACK, ranges };
  await restore(source(), [at('new')], { ...options, layout: inPlace });
  t.equal(tracksOf(at('new').uri), '..2.45.');
  t.ok(statSync(at('new').uri).blocks * 512 < 7 * TRACK, 'sparse');
  await restore(source(), [at('packed')], { ...options, layout: { ...inPlace, pack: true } });
  t.equal(tracksOf(at('packed').uri), '45..2');
  const result = await restore(source(), [at('old')], { ...options, layout: inPlace });
  t.equal(tracksOf(at('old').uri), '-.2-45.-----');
  t.match(result, { tracks: 3, bytesZeroed: 2 * TRACK, bytesLeftOut: 0 });
});

t.test('a target smaller than the volume where what is used fits, and one where it does not', async (t) => {
  const directory = t.testdir({ fits: Buffer.alloc(7 * TRACK, '-'), small: Buffer.alloc(5 * TRACK, '-') });
  const at = (name: string) => ({ name, uri: join(directory, name) });
  const result = await restore(source(), [at('fits')], options);
  t.equal(tracksOf(at('fits').uri), '0.2345.');
  t.equal(result.bytesLeftOut, 3 * TRACK);
  await t.rejects(restore(source(), [at('small')], options), {
    code: 'target-too-small',
    details: { wantedBytes: 6 * TRACK },
  });
  t.equal(tracksOf(at('small').uri), '-----', 'untouched');
  await t.rejects(restore(source(), [{ ...at('none'), sizeBytes: 5 * TRACK }], options), {
    code: 'target-too-small',
  });
  t.notOk(existsSync(at('none').uri));
});

t.test('B5: ranges in place, after the foreign blocks of their tracks were rewritten', async (t) => {
  const BLOCK = 1024;
  const path = join(t.testdir({}), 'disk');
  // Blocks 8-10 and 13 belong to the object, and everything was rewritten since.
  const now = Buffer.alloc(10 * TRACK, 'x');
  writeFileSync(path, now);
  const owned = [
    { offsetBytes: 8 * BLOCK, lengthBytes: 3 * BLOCK },
    { offsetBytes: 13 * BLOCK, lengthBytes: BLOCK },
  ];
  const layout = { sequenceBytes: 10 * TRACK, ranges: owned };
  await restore(source(), [{ name: 'disk', uri: path }], { ...options, layout });
  for (const { offsetBytes, lengthBytes } of owned) {
    source().content.copy(now, offsetBytes, offsetBytes, offsetBytes + lengthBytes);
  }
  t.ok(readFileSync(path).equals(now), 'four blocks have changed and no other');
});
