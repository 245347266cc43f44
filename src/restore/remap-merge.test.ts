/**
 * Goal: joining metadata and allocation sends every logical position from its old to its new address.
 * Method: single cases for seams and refusals; a property test compares with a walk over single blocks.
 */

import fc from 'fast-check';
import t from 'tap';
import { type AllocatedExtent, mergeRemap, sliceLogical, type SourceExtent } from './remap-merge.ts';

const BLOCK = 512;

function extent(position: number, length: number, address: number): SourceExtent {
  return {
    logicalOffsetBytes: position * BLOCK,
    lengthBytes: length * BLOCK,
    offsetBytes: address * BLOCK,
  };
}

function room(position: number, length: number, address: number, target = 'a'): AllocatedExtent {
  return { ...extent(position, length, address), target };
}

t.test('holes of the object get no row, rest of the room is left over', (t) => {
  const rows = mergeRemap([extent(0, 1, 7), extent(5, 1, 9)], [room(0, 9, 100)]);
  t.same(
    rows.map((row) => [row.sourceOffsetBytes / BLOCK, row.targetOffsetBytes / BLOCK]),
    [
      [7, 100],
      [9, 105],
    ],
  );
  t.end();
});

t.test('positions without room, or twice in a list, are refused', (t) => {
  t.throws(() => mergeRemap([extent(0, 4, 0)], [room(0, 1, 0), room(2, 2, 8)]), {
    code: 'target-too-small',
    message: /needs 2048 bytes, the 1536 allocated on a have no room for position 512/,
  });
  t.throws(() => mergeRemap([extent(0, 4, 0)], []), { message: /allocated on no target/ });
  t.throws(() => mergeRemap([extent(0, 4, 0), extent(3, 1, 9)], [room(0, 9, 0)]), {
    code: 'bad-table',
    details: { row: 1 },
    message: 'Extent 1 of the metadata starts at position 1536, wanted 2048 or later',
  });
  t.throws(() => mergeRemap([extent(0, 1, 0)], [room(0, 4, 0), room(0, 4, 9)]), {
    code: 'bad-table',
    message: /of the allocation/,
  });
  t.end();
});

t.test('property: any cuts of both lists give the same mapping of blocks', (t) => {
  const lengths = fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 8 });
  fc.assert(
    fc.property(lengths, lengths, fc.nat(40), fc.nat(40), (sourceCuts, roomCuts, from, count) => {
      // Addresses far apart, so that neighbours in the list are none on the device.
      const whole = cut(sourceCuts, 1000);
      const metadata = sliceLogical(whole, { offsetBytes: from * BLOCK, lengthBytes: count * BLOCK });
      const allocation = cut([...roomCuts, 48], 5000).map((entry) => ({ ...entry, target: 'a' }));
      const rows = mergeRemap(metadata, allocation);
      const found = rows.flatMap((row) =>
        Array.from({ length: row.lengthBytes / BLOCK }, (_, index) => [
          row.sourceOffsetBytes / BLOCK + index,
          row.targetOffsetBytes / BLOCK + index,
        ]),
      );
      const wanted: number[][] = [];
      const sizeBlocks = sourceCuts.reduce((sum, length) => sum + length, 0);
      for (let position = from; position < Math.min(from + count, sizeBlocks); position += 1) {
        wanted.push([addressOf(whole, position), addressOf(allocation, position)]);
      }
      return JSON.stringify(found) === JSON.stringify(wanted);
    }),
    { numRuns: 500 },
  );
  t.end();
});

function cut(lengths: readonly number[], base: number): SourceExtent[] {
  let position = 0;
  return lengths.map((length, index) => {
    const result = extent(position, length, base - index * 100 + 10_000);
    position += length;
    return result;
  });
}

function addressOf(extents: readonly SourceExtent[], position: number): number {
  for (const { logicalOffsetBytes, lengthBytes, offsetBytes } of extents) {
    const inside = position * BLOCK - logicalOffsetBytes;
    if (inside >= 0 && inside < lengthBytes) return (offsetBytes + inside) / BLOCK;
  }
  return -1;
}
