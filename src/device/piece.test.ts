/** Goal: a piece behaves as every device and never reaches outside. Method: the conformance suite, guards around. */

import t from 'tap';
import { MIB } from '../base/index.ts';
import { conformance } from './conformance.fixture.ts';
import { MemoryDevice } from './memory.ts';
import { PieceDevice } from './piece.ts';

t.test('conformance', async (t) => {
  const below: MemoryDevice[] = [];
  await conformance(t, async (sizeBytes) => {
    const memory = new MemoryDevice({ sizeBytes: sizeBytes + 2 * MIB });
    memory.write(Buffer.alloc(MIB, 0x77), 0);
    memory.write(Buffer.alloc(MIB, 0x77), MIB + sizeBytes);
    below.push(memory);
    return new PieceDevice(memory, MIB, sizeBytes);
  });
  for (const memory of below) {
    const guard = Buffer.alloc(MIB);
    for (const offset of [0, memory.sizeBytes - MIB]) {
      memory.read(guard, offset);
      t.ok(guard.equals(Buffer.alloc(MIB, 0x77)), 'bytes beside the piece stay');
    }
  }
});
