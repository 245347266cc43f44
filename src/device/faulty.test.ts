/**
 * Goal: the faulty device fails exactly as told, and a power cut leaves only what a disk could hold: durable
 * bytes always, everything else in any mixture of whole sectors. Method: cases by hand for the rules; for the
 * cut, many seeds, where each outcome that must be possible must also be seen.
 */

import t from 'tap';
import fc from 'fast-check';
import { KIB, MIB, SeededRandom } from '../base/index.ts';
import { conformance } from './conformance.fixture.ts';
import { FaultyDevice } from './faulty.ts';
import { MemoryDevice } from './memory.ts';

const SECTOR = 512;

function make(blockSizeBytes = SECTOR): { readonly memory: MemoryDevice; readonly device: FaultyDevice } {
  const memory = new MemoryDevice({ sizeBytes: MIB, blockSizeBytes });
  return { memory, device: new FaultyDevice(memory) };
}

function byteAt(memory: MemoryDevice, sector: number): number {
  const block = Buffer.alloc(memory.blockSizeBytes);
  const at = sector * SECTOR;
  memory.read(block, at - (at % block.length));
  const content = block.subarray(at % block.length, (at % block.length) + SECTOR);
  const first = content[0] ?? -1;
  return content.equals(Buffer.alloc(SECTOR, first)) ? first : -1;
}

function filled(sectors: number, byte: number): Buffer {
  return Buffer.alloc(sectors * SECTOR, byte);
}

t.test('conformance', (t) =>
  conformance(t, async (sizeBytes) => new FaultyDevice(new MemoryDevice({ sizeBytes }))),
);

t.test('operations are recorded in order', async (t) => {
  const { device } = make();
  await device.write(filled(2, 1), SECTOR, { fua: true });
  await device.read(Buffer.alloc(SECTOR), 0);
  await device.writeZeroes(0, SECTOR);
  await device.trim(0, 2 * SECTOR);
  await device.extents(0, SECTOR);
  await device.flush();
  t.same(device.operations, [
    { kind: 'write', offsetBytes: SECTOR, lengthBytes: 2 * SECTOR, fua: true },
    { kind: 'read', offsetBytes: 0, lengthBytes: SECTOR, fua: false },
    { kind: 'writeZeroes', offsetBytes: 0, lengthBytes: SECTOR, fua: false },
    { kind: 'trim', offsetBytes: 0, lengthBytes: 2 * SECTOR, fua: false },
    { kind: 'extents', offsetBytes: 0, lengthBytes: SECTOR, fua: false },
    { kind: 'flush', offsetBytes: 0, lengthBytes: MIB, fua: false },
  ]);
  device.forgetOperations();
  t.same(device.operations, []);
});

t.test('chosen operations fail and change nothing', async (t) => {
  const { memory, device } = make();
  device.fail({ kind: 'write', nth: 2 });
  await device.writeZeroes(0, SECTOR);
  await device.write(filled(1, 1), 0);
  await t.rejects(device.write(filled(1, 2), 0), { code: 'io', details: { errno: 'EIO' } });
  t.equal(byteAt(memory, 0), 1);
  await device.write(filled(1, 3), 0);

  const full = Object.assign(new Error('full'), { code: 'ENOSPC' });
  const rule = device.fail({ range: { offsetBytes: 8 * SECTOR, lengthBytes: SECTOR } }, full);
  await t.rejects(device.write(filled(9, 4), 0), full);
  await t.rejects(device.read(Buffer.alloc(2 * SECTOR), 8 * SECTOR), full);
  await device.write(filled(8, 4), 0);
  await device.write(filled(1, 4), 9 * SECTOR);
  rule.remove();
  await device.write(filled(9, 5), 0);

  device.fail({ kind: ['trim', 'flush'] });
  await t.rejects(device.trim(0, SECTOR));
  await t.rejects(device.flush());
});

t.test('a gate holds operations until it is opened', async (t) => {
  const { memory, device } = make();
  const gate = device.hold({ kind: 'write' });
  const writes = [1, 2, 3].map((byte) => device.write(filled(1, byte), byte * SECTOR));
  await gate.arrived(3);
  t.equal(gate.waitingCount, 3);
  await device.read(Buffer.alloc(SECTOR), 0);
  gate.release(1);
  await writes[0];
  t.same(
    [1, 2, 3].map((sector) => byteAt(memory, sector)),
    [1, 0, 0],
  );
  gate.open();
  await Promise.all(writes);
  t.same(
    [1, 2, 3].map((sector) => byteAt(memory, sector)),
    [1, 2, 3],
  );
  await device.write(filled(1, 4), 0);
  gate.close();
  const late = device.write(filled(1, 5), 0);
  await gate.arrived(1);
  gate.remove();
  await late;
  await device.write(filled(1, 6), 0);
});

t.test('a delay is the promise of the test', async (t) => {
  const { device } = make();
  const delayed: number[] = [];
  device.delay({ kind: 'read' }, async (operation) => {
    delayed.push(operation.offsetBytes);
  });
  await device.read(Buffer.alloc(SECTOR), 3 * SECTOR);
  t.same(delayed, [3 * SECTOR]);
});

t.test('a power cut keeps what is durable and anything else of the rest', async (t) => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 300; seed += 1) {
    const { memory, device } = make();
    await device.write(filled(4, 1), 0);
    await device.flush();
    await device.write(filled(2, 2), 0);
    await device.write(filled(2, 3), SECTOR);
    await device.write(filled(1, 4), 3 * SECTOR, { fua: true });
    t.equal(device.unsyncedSectorCount, 3);
    await device.powerCut(new SeededRandom(seed));
    const left = [0, 1, 2, 3].map((sector) => byteAt(memory, sector));
    seen.add(left.join(''));
    if (left[3] !== 4) t.fail(`seed ${seed}: the write with fua is lost`);
    t.equal(device.unsyncedSectorCount, 0);
    await device.powerCut(new SeededRandom(seed + 1));
    t.same(
      [0, 1, 2, 3].map((sector) => byteAt(memory, sector)),
      left,
      'what a cut left is durable',
    );
  }
  const wanted = ['1', '2'].flatMap((a) =>
    ['1', '2', '3'].flatMap((b) => ['1', '3'].map((c) => `${a}${b}${c}4`)),
  );
  t.same([...seen].sort(), wanted.sort(), 'exactly every mixture of whole sectors, in any order');
});

t.test('a flush covers what had finished when it was called', async (t) => {
  const left = new Set<string>();
  for (let seed = 0; seed < 50; seed += 1) {
    const { memory, device } = make();
    await device.write(filled(1, 1), 0);
    const gate = device.hold({ kind: 'flush' });
    const flush = device.flush();
    await gate.arrived(1);
    await device.write(filled(1, 2), SECTOR);
    gate.open();
    await flush;
    await device.powerCut(new SeededRandom(seed));
    t.equal(byteAt(memory, 0), 1);
    left.add(String(byteAt(memory, 1)));
  }
  t.same([...left].sort(), ['0', '2']);
});

t.test('after a failed flush a later one does not bring the lost writes back', async (t) => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 100; seed += 1) {
    const { memory, device } = make();
    device.fail({ kind: 'flush', nth: 1 });
    await device.write(filled(2, 1), 0);
    await t.rejects(device.flush());
    await device.write(filled(1, 2), SECTOR);
    await device.flush();
    await device.powerCut(new SeededRandom(seed));
    seen.add(`${byteAt(memory, 0)}${byteAt(memory, 1)}`);
  }
  t.same([...seen].sort(), ['02', '12']);
});

t.test('what is in flight at a power cut fails, and may have reached the disk', async (t) => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 60; seed += 1) {
    const { memory, device } = make(4 * KIB);
    const gate = device.hold({ kind: 'write' });
    const write = device.write(filled(8, 1), 0);
    await gate.arrived(1);
    await Promise.all([
      t.rejects(write, { code: 'io', message: /power/ }),
      device.powerCut(new SeededRandom(seed)),
    ]);
    seen.add(`${byteAt(memory, 0)}${byteAt(memory, 7)}`);
    gate.remove();
    await device.read(Buffer.alloc(4 * KIB), 0);
  }
  t.same([...seen].sort(), ['00', '01', '10', '11'], 'torn between the sectors of a block too');
});

t.test('a device that is switched off fails and leaves what lies below alone', async (t) => {
  const { memory, device } = make();
  const gate = device.hold({ kind: 'write' });
  const write = device.write(filled(1, 1), 0);
  await gate.arrived(1);
  device.switchOff();
  await t.rejects(write, { message: /power/ });
  gate.open();
  await t.rejects(device.read(Buffer.alloc(SECTOR), 0), { message: /power/ });
  await t.rejects(device.flush(), { message: /power/ });
  t.equal(byteAt(memory, 0), 0);
});

t.test('for any writes and flushes, flushed sectors survive and others hold something written', async (t) => {
  const step = fc.oneof(
    {
      weight: 5,
      arbitrary: fc.record({
        kind: fc.constant('write'),
        first: fc.nat(15),
        count: fc.integer({ min: 1, max: 6 }),
        fua: fc.boolean(),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('flush'),
        first: fc.nat(0),
        count: fc.nat(0),
        fua: fc.constant(false),
      }),
    },
  );
  const property = fc.asyncProperty(fc.array(step, { maxLength: 25 }), fc.nat(), async (steps, seed) => {
    const { memory, device } = make();
    const possible = Array.from({ length: 32 }, () => [0]);
    for (const [index, { kind, first, count, fua }] of steps.entries()) {
      if (kind === 'flush') {
        await device.flush();
        for (const values of possible) values.splice(0, values.length - 1);
        continue;
      }
      await device.write(filled(count, index + 1), first * SECTOR, { fua });
      for (const values of possible.slice(first, first + count)) {
        if (fua) values.length = 0;
        values.push(index + 1);
      }
    }
    await device.powerCut(new SeededRandom(seed));
    return possible.every((values, sector) => values.includes(byteAt(memory, sector)));
  });
  const seed = Date.now() % 2 ** 31;
  t.comment(`seed ${seed}`);
  await fc.assert(property, { seed, numRuns: 200 });
});
