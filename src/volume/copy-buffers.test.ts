/**
 * Goal: buffers are used again, none by two at once, and no more is kept than was said.
 *
 * Method: taking and giving back by hand, then at random with every buffer that is out counted.
 */

import fc from 'fast-check';
import t from 'tap';
import { CopyBuffers } from './copy-buffers.ts';

t.test('what was given back is taken again', async (t) => {
  const buffers = new CopyBuffers(4096, 8192);
  const first = buffers.take();
  buffers.giveBack(first);
  t.equal(buffers.idleBytes, 4096);
  t.equal(buffers.take(), first);
  t.equal(buffers.idleBytes, 0);
  t.throws(() => buffers.giveBack(first.subarray(1)), 'a part is not the buffer');
});

t.test('nothing is kept after clearing', async (t) => {
  const buffers = new CopyBuffers(4096, 8192);
  buffers.giveBack(buffers.take());
  buffers.clear();
  t.equal(buffers.idleBytes, 0);
});

t.test('no buffer has two holders, and the limit holds', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.boolean(), { maxLength: 200 }), fc.nat(5), (takes, countMax) => {
      const buffers = new CopyBuffers(512, countMax * 512 + 100);
      const held: Buffer[] = [];
      for (const takesOne of takes) {
        const last = takesOne ? undefined : held.shift();
        if (last !== undefined) buffers.giveBack(last);
        else held.push(buffers.take());
        if (new Set(held).size !== held.length || buffers.idleBytes > countMax * 512) return false;
      }
      return true;
    }),
  );
  t.pass('for any order');
});
