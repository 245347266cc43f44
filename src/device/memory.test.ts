/** Goal: memory behaves as every device, and gives memory back. Method: the conformance suite, two block sizes. */

import t from 'tap';
import { AssertionError, KIB, MIB } from '../base/index.ts';
import { conformance } from './conformance.fixture.ts';
import { MemoryDevice } from './memory.ts';

t.test('conformance', (t) => conformance(t, async (sizeBytes) => new MemoryDevice({ sizeBytes })));

t.test('conformance with blocks of 4 KiB', (t) =>
  conformance(t, async (sizeBytes) => new MemoryDevice({ sizeBytes, blockSizeBytes: 4 * KIB })),
);

t.test('only chunks that hold something take memory', async (t) => {
  const device = new MemoryDevice({ sizeBytes: 1024 * MIB });
  t.equal(device.allocatedBytes, 0);
  device.write(Buffer.alloc(1024, 1), 64 * KIB - 512);
  t.equal(device.allocatedBytes, 128 * KIB);
  t.same(await device.extents(0, 192 * KIB), [
    { offsetBytes: 0, lengthBytes: 128 * KIB, hole: false, zero: false },
    { offsetBytes: 128 * KIB, lengthBytes: 64 * KIB, hole: true, zero: true },
  ]);
  device.trim(0, 128 * KIB);
  t.equal(device.allocatedBytes, 0);
  device.writeZeroes(0, 512, { mayTrim: false });
  t.equal(device.allocatedBytes, 64 * KIB, 'zeroes that may not become a hole keep their space');
});

t.test('a read-only device refuses writes, wrong sizes are refused', (t) => {
  const device = new MemoryDevice({ sizeBytes: MIB, readOnly: true });
  t.equal(device.capabilities.readOnly, true);
  t.throws(() => device.write(Buffer.alloc(512), 0), AssertionError);
  t.throws(() => device.trim(0, 512), AssertionError);
  t.throws(() => new MemoryDevice({ sizeBytes: 700 }), AssertionError);
  t.throws(() => new MemoryDevice({ sizeBytes: MIB, blockSizeBytes: 768 }), AssertionError);
  t.end();
});
