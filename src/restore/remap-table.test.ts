/**
 * Goal: a table accepts exactly the rows that its rules allow, joins what continues, and finds rows by place.
 * Method: single cases for each rule; a property test compares acceptance and look-up with a map of blocks.
 */

import fc from 'fast-check';
import t, { type Test } from 'tap';
import { LIMITS } from '../base/index.ts';
import { RestoreError } from './errors.ts';
import { type RemapRow, RemapTable } from './remap-table.ts';

const BLOCK = 512;

/** A row in blocks. */
function row(source: number, length: number, target: string, offset: number): RemapRow {
  return {
    sourceOffsetBytes: source * BLOCK,
    lengthBytes: length * BLOCK,
    target,
    targetOffsetBytes: offset * BLOCK,
  };
}

function refused(t: Test, rows: readonly RemapRow[], index: number, message: RegExp): void {
  t.throws(() => RemapTable.of(rows), { code: 'bad-table', details: { row: index }, message });
}

t.test('rows are sorted by source and joined where both sides continue', (t) => {
  const table = RemapTable.of([
    row(8, 2, 'a', 0),
    row(2, 1, 'a', 21),
    row(0, 2, 'a', 19),
    row(3, 1, 'b', 22),
    row(4, 1, 'b', 30),
  ]);
  t.same(table.rows, [row(0, 3, 'a', 19), row(3, 1, 'b', 22), row(4, 1, 'b', 30), row(8, 2, 'a', 0)]);
  t.equal(table.mappedBytes, 7 * BLOCK);
  t.same(
    [...table.roomNeeded()],
    [
      ['a', { mappedBytes: 5 * BLOCK, endBytes: 22 * BLOCK }],
      ['b', { mappedBytes: 2 * BLOCK, endBytes: 31 * BLOCK }],
    ],
  );
  t.end();
});

t.test('rows that break a rule are refused by their index', (t) => {
  const good = row(0, 4, 'a', 0);
  refused(t, [good, row(3, 1, 'b', 0)], 1, /Remap row 1 meets row 0 at byte 1536 of the source/);
  refused(t, [row(9, 1, 'a', 3), good], 1, /Remap row 1 meets row 0 at byte 1536 of the target a/);
  refused(t, [good, row(8, 0, 'a', 8)], 1, /length 0/);
  refused(t, [good, { ...row(8, 1, 'a', 8), lengthBytes: 100 }], 1, /the length 100, wanted a multiple/);
  refused(t, [{ ...good, sourceOffsetBytes: -512 }], 0, /the source offset -512/);
  refused(t, [{ ...good, targetOffsetBytes: Number.NaN }], 0, /the target offset NaN/);
  refused(t, [{ ...good, targetOffsetBytes: 2 ** 53 - 1024 }], 0, /ends beyond/);
  t.end();
});

t.test('more rows than the limit are refused', (t) => {
  function* many(): Generator<RemapRow> {
    for (let index = 0; index <= LIMITS.remapRowCountMax; index += 1) yield row(index, 1, 'a', index);
  }
  t.throws(() => RemapTable.of(many()), { code: 'bad-table', details: { row: LIMITS.remapRowCountMax } });
  t.end();
});

t.test('identity, sequence and slice', (t) => {
  const whole = { offsetBytes: 0, lengthBytes: 10 * BLOCK };
  t.same(RemapTable.identity('a', whole).rows, [row(0, 10, 'a', 0)]);
  t.same(RemapTable.identity('a', { offsetBytes: 0, lengthBytes: 0 }).rows, []);
  const sequence = RemapTable.sequence(10 * BLOCK, [
    { name: 'a', sizeBytes: 3 * BLOCK + 100 },
    { name: 'empty', sizeBytes: 100 },
    { name: 'b', sizeBytes: 20 * BLOCK },
    { name: 'c', sizeBytes: 20 * BLOCK },
  ]);
  t.same(sequence.rows, [row(0, 3, 'a', 0), row(3, 7, 'b', 0)]);
  t.same(sequence.slice({ offsetBytes: BLOCK, lengthBytes: 4 * BLOCK }).rows, [
    row(1, 2, 'a', 1),
    row(3, 2, 'b', 0),
  ]);
  t.throws(() => RemapTable.sequence(10 * BLOCK, [{ name: 'a', sizeBytes: 9 * BLOCK }]), {
    code: 'target-too-small',
    details: { target: 'a', sizeBytes: 9 * BLOCK, wantedBytes: 10 * BLOCK },
  });
  t.end();
});

t.test('property: acceptance and look-up agree with a map of blocks', (t) => {
  const rowArbitrary = fc
    .tuple(fc.nat(60), fc.integer({ min: 1, max: 12 }), fc.constantFrom('a', 'b'), fc.nat(60))
    .map(([source, length, target, offset]) => row(source, length, target, offset));
  let accepted = 0;
  fc.assert(
    fc.property(
      fc.array(rowArbitrary, { maxLength: 5 }),
      fc.nat(70),
      fc.integer({ min: 1, max: 40 }),
      (rows, from, count) => {
        const model = blocksOf(rows);
        let table: RemapTable;
        try {
          table = RemapTable.of(rows);
        } catch (error) {
          return error instanceof RestoreError && error.code === 'bad-table' && model === undefined;
        }
        accepted += 1;
        if (model === undefined) return false;
        const range = { offsetBytes: from * BLOCK, lengthBytes: count * BLOCK };
        const wanted = [...model].filter(([block]) => block >= from && block < from + count);
        const cut = [...table.rowsIn(range)];
        const found = blocksOf(cut);
        if (cut.some((piece) => piece.lengthBytes === 0)) return false;
        return (
          found !== undefined &&
          JSON.stringify(wanted.sort(byBlock)) === JSON.stringify([...found].sort(byBlock))
        );
      },
    ),
    { numRuns: 500 },
  );
  t.ok(accepted > 50, `not all tables were refused (${accepted} accepted)`);
  t.end();
});

function byBlock(a: readonly [number, string], b: readonly [number, string]): number {
  return a[0] - b[0];
}

/** Source block to place on a target; undefined where a block is named twice on either side. */
function blocksOf(rows: readonly RemapRow[]): Map<number, string> | undefined {
  const blocks = new Map<number, string>();
  const places = new Set<string>();
  for (const { sourceOffsetBytes, lengthBytes, target, targetOffsetBytes } of rows) {
    for (let offset = 0; offset < lengthBytes; offset += BLOCK) {
      const place = `${target}:${(targetOffsetBytes + offset) / BLOCK}`;
      const block = (sourceOffsetBytes + offset) / BLOCK;
      if (blocks.has(block) || places.has(place)) return undefined;
      blocks.set(block, place);
      places.add(place);
    }
  }
  return blocks;
}
