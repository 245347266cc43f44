/**
 * Goal: a buffer has one owner at a time, data begins on a page, and no more is kept than was allowed.
 * Method: acquire and give back by hand, and a random sequence in which every buffer in use is stamped.
 */

import fc from 'fast-check';
import t from 'tap';
import { bytesToPage, KIB, MIB } from '../base/index.ts';
import { BufferPool } from './buffer-pool.ts';

t.test('the buffer given back last is used first, for data of up to its size', async (t) => {
  const pool = new BufferPool(8 * MIB);
  const first = pool.acquire(MIB, 28);
  t.equal(first.length, MIB + 28);
  t.equal(bytesToPage(first.subarray(28)), 0, 'the data begins on a page of memory');
  pool.release(first);
  const second = pool.acquire(MIB - 512);
  t.equal(second.buffer, first.buffer);
  t.equal(second.length, MIB - 512);
  const other = pool.acquire(MIB);
  t.not(other.buffer, second.buffer);
});

t.test('small buffers are not kept', async (t) => {
  const pool = new BufferPool(8 * MIB);
  pool.release(pool.acquire(4 * KIB, 16));
  t.equal(pool.idleBytes, 0);
});

t.test('no more is kept than allowed', async (t) => {
  const pool = new BufferPool(3 * MIB);
  const buffers = [1, 2, 3, 4].map(() => pool.acquire(MIB));
  for (const buffer of buffers) pool.release(buffer);
  t.ok(pool.idleBytes > 0 && pool.idleBytes <= 3 * MIB, `${pool.idleBytes} bytes are kept`);
});

t.test('what is given back twice, forgotten or foreign is not given out again', async (t) => {
  const pool = new BufferPool(8 * MIB);
  const twice = pool.acquire(MIB);
  pool.release(twice);
  pool.release(twice);
  t.not(pool.acquire(MIB).buffer, pool.acquire(MIB).buffer);
  const forgotten = pool.acquire(2 * MIB);
  pool.forget(forgotten);
  pool.release(forgotten);
  pool.release(Buffer.alloc(2 * MIB));
  t.equal(pool.idleBytes, 0);
});

t.test('a shared buffer comes back when its last holder gave it back', async (t) => {
  const pool = new BufferPool(8 * MIB);
  const buffer = pool.acquire(MIB);
  t.notOk(pool.isShared(buffer));
  const part = buffer.subarray(1000, 2000);
  pool.share(part);
  t.ok(pool.isShared(buffer));
  pool.release(buffer);
  t.equal(pool.idleBytes, 0, 'a part is still in use');
  t.notOk(pool.isShared(part));
  pool.release(part);
  t.ok(pool.idleBytes > MIB);
  t.ok(pool.isShared(Buffer.alloc(MIB)), 'of a foreign one it is not known');
});

t.test('buffers in use never share memory', async () => {
  const step = fc.record({ lengthBytes: fc.integer({ min: 1, max: 300 * KIB }), victim: fc.nat(7) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const pool = new BufferPool(MIB);
      const used: { readonly buffer: Buffer; readonly stamp: number }[] = [];
      for (const [stamp, { lengthBytes, victim }] of steps.entries()) {
        const given = used.length > 4 ? used.splice(victim % used.length, 1) : [];
        for (const { buffer } of given) pool.release(buffer);
        const buffer = pool.acquire(lengthBytes, 16);
        buffer.fill(stamp);
        used.push({ buffer, stamp });
        for (const each of used) {
          if (each.buffer.some((byte) => byte !== each.stamp)) return false;
        }
      }
      return true;
    }),
    { numRuns: 50 },
  );
});
