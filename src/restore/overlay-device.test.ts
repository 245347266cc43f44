/**
 * Goal: an overlay reads as the device below with everything written over it, whatever is written, zeroed, trimmed and
 * read beside each other; the device below never changes; and nothing of the overlay is left behind.
 *
 * Method: a property test against plain bytes, over a device and a storage whose calls finish in any order. Calls that
 * run at the same time write ranges of their own, but share units.
 */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { DeviceError, MemoryDevice } from '../device/index.ts';
import { ModelTarget } from './model.fixture.ts';
import { openOverlay, OverlayDevice } from './overlay-device.ts';

const BLOCK = 512;
const UNIT = 4 * BLOCK;
/** The last unit is a short one. */
const BLOCKS = 46;

type Kind = 'write' | 'zero' | 'trim' | 'read';
interface Call {
  readonly kind: Kind;
  readonly first: number;
  readonly count: number;
  readonly letter: number;
}

/** Calls of one batch run at once, on ranges that do not overlap. */
const BATCH: fc.Arbitrary<Call[]> = fc
  .array(
    fc.record({
      kind: fc.constantFrom<Kind>('write', 'write', 'zero', 'trim', 'read'),
      gap: fc.nat(5),
      count: fc.integer({ min: 1, max: 14 }),
      letter: fc.integer({ min: 1, max: 255 }),
    }),
    { minLength: 1, maxLength: 8 },
  )
  .map((wishes) => {
    let at = 0;
    return wishes.flatMap(({ kind, gap, count, letter }) => {
      const first = at + gap;
      at = first + count;
      return at <= BLOCKS ? [{ kind, first, count, letter }] : [];
    });
  });

function below(): Buffer {
  const bytes = Buffer.alloc(BLOCKS * BLOCK);
  // Every other unit is zero.
  for (let at = 0; at < bytes.length; at += 4) {
    if (Math.floor(at / UNIT) % 2 === 0) bytes.writeUInt32BE(at + 1, at);
  }
  return bytes;
}

t.test('property: it reads as if it had been written', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(BATCH, { maxLength: 6 }), fc.nat(1000), async (batches, seed) => {
      const base = new ModelTarget(below(), { readOnly: true });
      const storage = new ModelTarget(Buffer.alloc(BLOCKS * BLOCK), { seed });
      const overlay = new OverlayDevice(base, { unitBytes: UNIT, storage });
      const model = below();
      for (const batch of batches) {
        await Promise.all(
          batch.map(async ({ kind, first, count, letter }) => {
            const [at, length] = [first * BLOCK, count * BLOCK];
            const range = model.subarray(at, at + length);
            if (kind === 'read') {
              const target = Buffer.alloc(length, 0xee);
              await overlay.read(target, at);
              if (!target.equals(range)) t.fail(`${at}+${length} is wrong beside others`);
            } else if (kind === 'write') {
              await overlay.write(Buffer.alloc(length, letter), at);
              range.fill(letter);
            } else {
              await (kind === 'zero' ? overlay.writeZeroes(at, length) : overlay.trim(at, length));
              range.fill(0);
            }
          }),
        );
        const whole = Buffer.alloc(model.length);
        await overlay.read(whole, 0);
        if (!whole.equals(model)) t.fail('the overlay is not what was written');
        const extents = await overlay.extents(0, model.length);
        t.equal(
          extents.reduce((end, extent) => (extent.offsetBytes === end ? end + extent.lengthBytes : -1), 0),
          model.length,
        );
      }
      t.same(base.log, [], 'nothing was changed below');
      await overlay.flush();
    }),
    { numRuns: 300 },
  );
});

t.test('writes of one unit at once: each has its bytes', async (t) => {
  for (let seed = 0; seed < 20; seed += 1) {
    const storage = new ModelTarget(Buffer.alloc(BLOCKS * BLOCK), { seed });
    const overlay = new OverlayDevice(new ModelTarget(below()), { unitBytes: UNIT, storage });
    await Promise.all([1, 2, 3].map((block) => overlay.write(Buffer.alloc(BLOCK, block), block * BLOCK)));
    const unit = Buffer.alloc(UNIT);
    await overlay.read(unit, 0);
    const wanted = below().subarray(0, UNIT);
    for (const block of [1, 2, 3]) wanted.fill(block, block * BLOCK, (block + 1) * BLOCK);
    t.ok(unit.equals(wanted));
    t.equal(overlay.ownBytes, UNIT);
  }
});

t.test('zeroes that nobody wrote over cost no room', async (t) => {
  const storage = new MemoryDevice({ sizeBytes: BLOCKS * BLOCK });
  const overlay = new OverlayDevice(new ModelTarget(below()), { unitBytes: UNIT, storage });
  await overlay.trim(0, 8 * UNIT);
  t.equal(storage.allocatedBytes, 0);
  const target = Buffer.alloc(8 * UNIT, 1);
  await overlay.read(target, 0);
  t.ok(target.every((byte) => byte === 0));
});

t.test('a write that fails leaves what was there, and later ones go on', async (t) => {
  let isFull = true;
  const storage = new ModelTarget(Buffer.alloc(BLOCKS * BLOCK), {
    seed: 1,
    beforeWrite: () => {
      if (isFull) throw new DeviceError('no-space', 'Full', { device: 'model' });
    },
  });
  const overlay = new OverlayDevice(new ModelTarget(below()), { unitBytes: UNIT, storage });
  const [first, second] = await Promise.allSettled([
    overlay.write(Buffer.alloc(BLOCK, 7), 0),
    overlay.write(Buffer.alloc(BLOCK, 8), BLOCK),
  ]);
  t.match([first, second], [{ reason: { code: 'no-space' } }, { reason: { code: 'no-space' } }]);
  const target = Buffer.alloc(UNIT);
  await overlay.read(target, 0);
  t.ok(target.equals(below().subarray(0, UNIT)));
  isFull = false;
  await overlay.write(Buffer.alloc(BLOCK, 8), BLOCK);
  await overlay.read(target, 0);
  t.ok(
    target.equals(
      Buffer.concat([below().subarray(0, BLOCK), Buffer.alloc(BLOCK, 8), below().subarray(2 * BLOCK, UNIT)]),
    ),
  );
});

t.test('its file has no name, and a directory that is not there is said', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'cowbell-overlay-test-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const base = new ModelTarget(below());
  const overlay = await openOverlay(base, { directory, unitBytes: UNIT });
  await overlay.write(Buffer.alloc(3 * BLOCK, 5), BLOCK);
  t.same(readdirSync(directory), []);
  const target = Buffer.alloc(3 * BLOCK);
  await overlay.read(target, BLOCK);
  t.ok(target.every((byte) => byte === 5));
  await overlay.close();
  t.notOk(base.closed);
  await t.rejects(openOverlay(base, { directory: join(directory, 'none'), unitBytes: UNIT }), {
    code: 'not-found',
  });
});
