/**
 * Goal: the restore half of EXAMPLES B5, tracks larger than blocks. A set holds six tracks of four blocks, of
 * which 11 blocks belong to an object; only those are restored.
 *
 * Method: the object's blocks in logical order are the metadata. Targets are compared block by block.
 */

import t from 'tap';
import { mergeRemap, planRestore, RemapTable, type SourceExtent, writeRestore } from './index.ts';
import { ModelSource, ModelTarget } from './model.fixture.ts';

const BLOCK = 1024;
const TRACK = 4 * BLOCK;
/** Tracks `a` to `g`, then a gap of other data, then `h` to `m`. */
const LAYOUT = 'abcdefg...hijklm';
const OBJECT = ['e0', 'e1', 'd1', 'b2', 'k1', 'b0', 'g2', 'i0', 'b1', 'i2', 'b3'];
/** The order in which the six tracks were stored. */
const STORED = ['k', 'b', 'i', 'e', 'g', 'd'];

/** Address of a block such as `e1`, in blocks of the home. */
function addressOf(block: string): number {
  return LAYOUT.indexOf(block.charAt(0)) * 4 + Number(block.charAt(1));
}

const metadata: SourceExtent[] = OBJECT.map((block, position) => ({
  logicalOffsetBytes: position * BLOCK,
  lengthBytes: BLOCK,
  offsetBytes: addressOf(block) * BLOCK,
}));

/** Only the six tracks have content in the set: block `e1` is filled with the number of its address and one. */
function source(): ModelSource {
  const content = Buffer.alloc(LAYOUT.length * TRACK);
  for (const track of STORED) {
    for (let block = 0; block < 4; block += 1) {
      const address = addressOf(`${track}${block}`);
      content.fill(address + 1, address * BLOCK, (address + 1) * BLOCK);
    }
  }
  return new ModelSource(
    content,
    TRACK,
    STORED.map((track) => [LAYOUT.indexOf(track)]),
  );
}

/** What each block of the target is filled with. */
function fills(target: ModelTarget): number[] {
  const result: number[] = [];
  for (let offset = 0; offset < target.sizeBytes; offset += BLOCK) {
    const block = target.bytes.subarray(offset, offset + BLOCK);
    result.push(block.every((byte) => byte === block[0]) ? (block[0] ?? -1) : -1);
  }
  return result;
}

async function restored(rows: ReturnType<typeof mergeRemap>, blockCount: number): Promise<ModelTarget> {
  const device = new ModelTarget(Buffer.alloc(blockCount * BLOCK, 0xff), { seed: 5 });
  const stored = source();
  const plan = planRestore(stored, RemapTable.of(rows), [{ name: 'disk', device, knownZero: false }]);
  await writeRestore(stored, plan, { writers: 4 });
  t.equal(plan.tracks.size, 6);
  t.equal(stored.reads.length, 6, 'each of the six tracks is read once');
  return device;
}

t.test('B5: restored by block to new addresses, 11 blocks change and no other', async (t) => {
  const rows = mergeRemap(
    metadata,
    OBJECT.map((_, position) => ({
      logicalOffsetBytes: position * BLOCK,
      lengthBytes: BLOCK,
      offsetBytes: (40 - position * 3) * BLOCK,
      target: 'disk',
    })),
  );
  t.match(rows.slice(0, 2), [
    { sourceOffsetBytes: addressOf('e0') * BLOCK },
    { sourceOffsetBytes: addressOf('e1') * BLOCK },
  ]);
  const wanted = Array.from({ length: 48 }, () => 0xff);
  for (const [position, block] of OBJECT.entries()) wanted[40 - position * 3] = addressOf(block) + 1;
  t.same(fills(await restored(rows, 48)), wanted);
});

t.test('B5: restored in place, the foreign blocks keep what was written since', async (t) => {
  const rows = mergeRemap(
    metadata,
    metadata.map((extent) => ({ ...extent, target: 'disk' })),
  );
  const wanted = Array.from({ length: LAYOUT.length * 4 }, () => 0xff);
  for (const block of OBJECT) wanted[addressOf(block)] = addressOf(block) + 1;
  t.equal(wanted.filter((fill) => fill !== 0xff).length, 11);
  t.same(fills(await restored(rows, LAYOUT.length * 4)), wanted);
});
