/**
 * Goal: a restore that is read back says of every byte that was written or zeroed whether it is on the target, and of
 * nothing else; a difference names the target and the byte.
 *
 * Method: targets in memory that lose or change what is written to them, tables that cut tracks, sources with and
 * without hashes.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { type BlockDevice, DeviceRegistry, MemoryDevice } from '../device/index.ts';
import { ModelSource, type ModelSourceOptions } from './model.fixture.ts';
import { RemapTable } from './remap-table.ts';
import { restore } from './restore.ts';

const BLOCK = 512;
const TRACK = 4096;

/** Tracks 0 to 3 and half a track 6; 4 and 5 are zero. */
function source(options: ModelSourceOptions = {}): ModelSource {
  const content = Buffer.alloc(6 * TRACK + TRACK / 2);
  for (const track of [0, 1, 2, 3, 6]) content.subarray(track * TRACK, (track + 1) * TRACK).fill(`${track};`);
  return new ModelSource(content, TRACK, [[3, 0], [1], [6, 2]], options);
}

class LyingDevice extends MemoryDevice {
  /** Bytes that read differently from what was written. */
  readonly lies = new Set<number>();
  readCount = 0;

  override read(target: Buffer, offsetBytes: number): void {
    super.read(target, offsetBytes);
    this.readCount += 1;
    for (const lie of this.lies) {
      const index = lie - offsetBytes;
      if (index >= 0 && index < target.length) target[index] = (target[index] ?? 0) ^ 0xff;
    }
  }
}

function onto(device: BlockDevice) {
  const registry = new DeviceRegistry();
  registry.register('memory', async () => device);
  return { registry, isVolumeHome: async () => false, verify: true };
}

const REQUESTS = [{ name: 'disk', uri: 'memory:1' }];

for (const isReadOnce of [false, true]) {
  t.test(
    `each byte that was written or zeroed counts${isReadOnce ? ', of a source that is read once' : ''}`,
    async (t) => {
      const device = new LyingDevice({ sizeBytes: 8 * TRACK });
      const options = onto(device);
      await restore(source({ isReadOnce }), REQUESTS, options);
      t.ok(device.readCount > 0);
      for (const lie of [0, 4 * TRACK - 1, 4 * TRACK, 6 * TRACK - 1, 6 * TRACK, 6 * TRACK + TRACK / 2 - 1]) {
        device.lies.clear();
        device.lies.add(lie);
        // Of a digest only the piece is known.
        const isExact = !isReadOnce || (lie >= 4 * TRACK && lie < 6 * TRACK);
        const place = isExact ? lie : lie - (lie % TRACK);
        await t.rejects(restore(source({ isReadOnce }), REQUESTS, options), {
          name: 'CorruptionError',
          message: `Target disk (${device.description}) is damaged at byte ${place}: what was read back is not what was written`,
        });
      }
      device.lies.clear();
      device.lies.add(7 * TRACK);
      await restore(source({ isReadOnce }), REQUESTS, options);
      t.pass('what was not written is not compared');
    },
  );
}

t.test('tracks that are cut are read again from the set, once, and whole ones are not', async (t) => {
  const device = new LyingDevice({ sizeBytes: 8 * TRACK });
  const table = RemapTable.of([
    { sourceOffsetBytes: 0, lengthBytes: TRACK + BLOCK, target: 'disk', targetOffsetBytes: TRACK },
    {
      sourceOffsetBytes: 2 * TRACK + BLOCK,
      lengthBytes: BLOCK,
      target: 'disk',
      targetOffsetBytes: 5 * TRACK,
    },
  ]);
  const options = { ...onto(device), layout: { table } };
  const cut = source();
  await restore(cut, REQUESTS, options);
  t.same(cut.reads, [0, 1, 2, 1, 2]);
  for (const [lie, place] of [
    [2 * TRACK + 3, 2 * TRACK + 3],
    [5 * TRACK + 511, 5 * TRACK + 511],
  ] as const) {
    device.lies.clear();
    device.lies.add(lie);
    device.lies.add(5 * TRACK + 511);
    const error = await restore(source(), REQUESTS, options).catch((caught: unknown) => caught);
    t.ok(error instanceof CorruptionError);
    t.match(error, { message: new RegExp(`at byte ${place}`) });
  }
  device.lies.clear();
  device.lies.add(2 * TRACK + BLOCK);
  await restore(source(), REQUESTS, options);
});

t.test('a file is read back past the page cache, and progress ends at all that was compared', async (t) => {
  const uri = join(t.testdir({}), 'disk');
  const steps: number[] = [];
  await restore(source(), [{ name: 'disk', uri }], {
    registry: new DeviceRegistry(),
    isVolumeHome: async () => false,
    verify: true,
    onReadBack: ({ bytesRead, bytesTotal }) => steps.push(bytesRead, bytesTotal),
  });
  t.same(steps.slice(-2), [4 * TRACK + TRACK / 2, 4 * TRACK + TRACK / 2]);
  t.ok(readFileSync(uri).equals(source().content));
});

t.test('a target that cannot be read, and a cancel meanwhile', async (t) => {
  const device = new LyingDevice({ sizeBytes: 8 * TRACK });
  const abort = new AbortController();
  device.read = () => {
    throw new Error('EIO');
  };
  await t.rejects(restore(source(), REQUESTS, onto(device)), {
    code: 'target-failed',
    message: /^Reading back target disk .* failed: EIO; all that was to be restored is written$/,
    details: { target: 'disk', incompleteTargets: [] },
  });
  device.read = () => abort.abort();
  await t.rejects(restore(source(), REQUESTS, { ...onto(device), signal: abort.signal }), {
    code: 'cancelled',
    message: 'Reading back was cancelled; all that was to be restored is written',
  });
});
