/**
 * Goal: the bytes of a reply stay as they are until whoever sends them gives them back, and a connection whose replies
 * are taken needs no new memory for more of them.
 * Method: a random mix of replies at once, replies that come later, sends and confirmations of sends; each sent
 * buffer is compared with what it was when it was taken until it is given back.
 */

import fc from 'fast-check';
import t from 'tap';
import { KIB, MIB } from '../base/index.ts';
import { BufferPool } from './buffer-pool.ts';
import { createReplyWriter } from './chunk-writer.ts';
import type { ReplyWriter } from './reply-writer.ts';

const ADDRESS = { cookieHigh: 1, cookieLow: 2, offsetHigh: 0, offsetLow: 4096 };

function read(writer: ReplyWriter, lengthBytes: number, stamp: number): void {
  writer.reserveRead(lengthBytes).fill(stamp);
  writer.commitRead(ADDRESS);
}

type Step =
  | { readonly kind: 'read' | 'detach'; readonly lengthBytes: number }
  | { readonly kind: 'finish' | 'sent'; readonly victim: number }
  | { readonly kind: 'abandon' | 'done' | 'take' };

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    kind: fc.constantFrom('read' as const, 'detach' as const),
    lengthBytes: fc.constantFrom(512, 4 * KIB, 20 * KIB, 32 * KIB, 100 * KIB),
  }),
  fc.record({ kind: fc.constantFrom('finish' as const, 'sent' as const), victim: fc.nat(100) }),
  fc.record({ kind: fc.constantFrom('abandon' as const, 'done' as const, 'take' as const) }),
);

t.test('a reply keeps its bytes until it was sent', async () => {
  fc.assert(
    fc.property(fc.constantFrom('simple', 'structured', 'extended'), fc.array(step), (mode, steps) => {
      const pool = new BufferPool(8 * MIB);
      const writer = createReplyWriter(mode, pool);
      const detached: Buffer[] = [];
      const taken: { readonly buffer: Buffer; readonly bytes: Buffer }[] = [];
      const sent = (index: number): void => {
        for (const { buffer } of taken.splice(index, 1)) pool.release(buffer);
      };
      for (const [stamp, action] of steps.entries()) {
        switch (action.kind) {
          case 'read':
            read(writer, action.lengthBytes, stamp);
            break;
          case 'detach':
            writer.reserveRead(action.lengthBytes);
            detached.push(writer.detachRead().fill(stamp));
            break;
          case 'finish':
            for (const reply of detached.splice(action.victim % (detached.length + 1), 1)) {
              if (reply.some((byte) => byte !== reply[0])) return false;
              writer.appendRead(reply, ADDRESS);
            }
            break;
          case 'sent':
            sent(action.victim % (taken.length + 1));
            break;
          case 'abandon':
            writer.reserveRead(4 * KIB).fill(stamp);
            writer.abandonRead();
            break;
          case 'done':
            writer.done(ADDRESS);
            break;
          case 'take':
            for (const buffer of writer.take()) taken.push({ buffer, bytes: Buffer.from(buffer) });
        }
        if (taken.some(({ buffer, bytes }) => !buffer.equals(bytes))) return false;
      }
      return true;
    }),
    { numRuns: 500 },
  );
});

t.test('replies that are taken need no new memory', async (t) => {
  const pool = new BufferPool(8 * MIB);
  const writer = createReplyWriter('structured', pool);
  const memories = new Set<ArrayBufferLike>();
  for (let turn = 0; turn < 1000; turn += 1) {
    for (let reply = 0; reply < 32; reply += 1) read(writer, 4 * KIB, turn);
    const buffers = writer.take();
    t.equal(buffers.length, 1, 'one piece is sent');
    for (const buffer of buffers) {
      memories.add(buffer.buffer);
      pool.release(buffer);
    }
  }
  t.equal(memories.size, 1);
});

t.test('a client that takes its replies late does not get those of later requests', async (t) => {
  const pool = new BufferPool(8 * MIB);
  const writer = createReplyWriter('simple', pool);
  const late: Buffer[] = [];
  for (let turn = 0; turn < 200; turn += 1) {
    read(writer, 4 * KIB, turn);
    late.push(...writer.take());
  }
  t.ok(late.every((reply, turn) => reply.at(-1) === turn));
});
