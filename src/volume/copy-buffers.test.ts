/**
 * Goal: buffers are used again, none by two at once nor after a failure, and no more is kept than was said.
 *
 * Method: borrowers that end when the test says so, by hand and then in any order, with every buffer that is out counted.
 */

import fc from 'fast-check';
import t from 'tap';
import { deferred } from '../base/index.ts';
import { CopyBuffers } from './copy-buffers.ts';

t.test('the buffer of a borrower that has finished is lent again', async (t) => {
  const buffers = new CopyBuffers(4096, 8192);
  const lent: Buffer[] = [];
  for (const _ of [1, 2]) {
    await buffers.lend(async (buffer) => {
      t.equal(buffers.idleBytes, 0);
      lent.push(buffer);
    });
    t.equal(buffers.idleBytes, 4096);
  }
  t.equal(lent[0]?.length, 4096);
  t.equal(lent[0], lent[1]);
});

t.test('that of one that failed is not', async (t) => {
  const buffers = new CopyBuffers(4096, 8192);
  await t.rejects(
    buffers.lend(async () => {
      throw new Error('the home is gone');
    }),
    { message: 'the home is gone' },
  );
  t.equal(buffers.idleBytes, 0);
});

t.test('property: no buffer has two borrowers, and the limit holds', async (t) => {
  const commands = fc.array(fc.boolean(), { maxLength: 100 });
  const property = fc.asyncProperty(commands, fc.nat(5), async (begins, countMax) => {
    const buffers = new CopyBuffers(512, countMax * 512 + 100);
    const held = new Set<Buffer>();
    const borrowers: { readonly end: () => void; readonly ended: Promise<void> }[] = [];
    for (const begin of begins) {
      const first = begin ? undefined : borrowers.shift();
      if (first === undefined) {
        const end = deferred();
        const ended = buffers.lend(async (buffer) => {
          if (held.has(buffer)) throw new Error('a buffer has two borrowers');
          held.add(buffer);
          await end.promise;
          held.delete(buffer);
        });
        borrowers.push({ end: end.resolve, ended });
      } else {
        first.end();
        await first.ended;
      }
      if (buffers.idleBytes > countMax * 512) return false;
    }
    for (const { end } of borrowers) end();
    await Promise.all(borrowers.map(({ ended }) => ended));
    return buffers.idleBytes <= countMax * 512;
  });
  await fc.assert(property);
  t.pass('in any order');
});
