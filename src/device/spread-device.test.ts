/**
 * Goal: devices one behind the other behave as one device, and nothing beside the used bytes is touched. Method: the
 * conformance suite over members of odd lengths, guards behind each, then what only a concatenation has: calls of one
 * member stay synchronous, flushes reach only what was written to, and a failure waits for the other parts.
 */

import t from 'tap';
import { KIB, MIB, systemCode } from '../base/index.ts';
import { ConcatDevice } from './concat-device.ts';
import { conformance } from './conformance.fixture.ts';
import { FaultyDevice } from './faulty.ts';
import { MemoryDevice } from './memory.ts';
import { stripeMemberBytes, StripeDevice } from './stripe-device.ts';

const GUARD = Buffer.alloc(64 * KIB, 0x77);

/** Memory with a guard behind the bytes that may be used. */
function guarded(lengthBytes: number): MemoryDevice {
  const memory = new MemoryDevice({ sizeBytes: lengthBytes + GUARD.length });
  memory.write(GUARD, lengthBytes);
  return memory;
}

function hasGuard(memory: MemoryDevice): boolean {
  const found = Buffer.alloc(GUARD.length);
  memory.read(found, memory.sizeBytes - GUARD.length);
  return found.equals(GUARD);
}

t.test('a concatenation conforms', async (t) => {
  const below: MemoryDevice[] = [];
  await conformance(t, async (sizeBytes) => {
    const lengths = [512, MIB - 512, 4 * KIB + 512, sizeBytes - MIB - 4 * KIB - 512];
    const members = lengths.map((lengthBytes) => ({ device: guarded(lengthBytes), lengthBytes }));
    below.push(...members.map(({ device }) => device));
    return new ConcatDevice(members);
  });
  t.ok(below.every(hasGuard), 'what lies behind the used bytes stays');
});

t.test('stripes conform, whatever their size and number', async (t) => {
  for (const [count, stripeBytes] of [
    [1, 4 * KIB],
    [2, 64 * KIB],
    [3, 4 * KIB],
    [5, 256 * KIB],
  ] as const) {
    await t.test(`${count} members, stripes of ${stripeBytes}`, async (t) => {
      const below: MemoryDevice[] = [];
      await conformance(t, async (sizeBytes) => {
        const devices = Array.from({ length: count }, (_, member) =>
          guarded(Math.max(512, stripeMemberBytes(sizeBytes, stripeBytes, count, member))),
        );
        below.push(...devices);
        return new StripeDevice({ devices, stripeBytes, sizeBytes });
      });
      t.ok(below.every(hasGuard), 'what lies behind the used bytes stays');
    });
  }
});

t.test('stripes of a size that is no multiple use each member as far as is needed', (t) => {
  const sizes = [0, 1, 2].map((member) => stripeMemberBytes(10 * 4096 + 512, 4096, 3, member));
  t.strictSame(sizes, [4 * 4096, 3 * 4096 + 512, 3 * 4096]);
  t.end();
});

t.test('a stripe lies where it is said to', (t) => {
  const devices = [guarded(12 * KIB), guarded(8 * KIB)];
  const stripes = new StripeDevice({ devices, stripeBytes: 4 * KIB, sizeBytes: 20 * KIB });
  for (let stripe = 0; stripe < 5; stripe += 1)
    t.equal(stripes.write(Buffer.alloc(4 * KIB, stripe + 1), stripe * 4 * KIB), undefined);
  const found = devices.map((device) => {
    const content = Buffer.alloc(device.sizeBytes - GUARD.length);
    device.read(content, 0);
    return [...content].filter((_, at) => at % 4096 === 0);
  });
  t.strictSame(found, [
    [1, 3, 5],
    [2, 4],
  ]);
  t.end();
});

t.test('a call on one member finishes at once, one across a seam does where its members do', (t) => {
  const concat = new ConcatDevice([
    { device: guarded(8 * KIB), lengthBytes: 8 * KIB },
    { device: guarded(8 * KIB), lengthBytes: 8 * KIB },
  ]);
  t.equal(concat.write(Buffer.alloc(4 * KIB), 0), undefined);
  t.equal(concat.read(Buffer.alloc(8 * KIB), 4 * KIB), undefined);
  t.end();
});

/** Two members that record what is asked of them. */
function recorded(): { readonly concat: ConcatDevice; readonly members: readonly FaultyDevice[] } {
  const members = [guarded(8 * KIB), guarded(8 * KIB)].map((memory) => new FaultyDevice(memory));
  const concat = new ConcatDevice(members.map((device) => ({ device, lengthBytes: 8 * KIB })));
  return { concat, members };
}

function flushCounts(members: readonly FaultyDevice[]): number[] {
  return members.map(({ operations }) => operations.filter(({ kind }) => kind === 'flush').length);
}

t.test('the first flush reaches all members, a later one those that were written to', async (t) => {
  const { concat, members } = recorded();
  await concat.flush();
  t.strictSame(flushCounts(members), [1, 1], 'who wrote before is not known');
  await concat.flush();
  t.strictSame(flushCounts(members), [1, 1], 'nothing was written since');
  await concat.write(Buffer.alloc(4 * KIB, 1), 8 * KIB);
  await concat.flush();
  t.strictSame(flushCounts(members), [1, 2]);
});

t.test('a flush waits for one that is under way and covers the same', async (t) => {
  const { concat, members } = recorded();
  const gate = members[0]?.hold({ kind: 'flush' });
  const first = concat.flush();
  let isOver = false;
  const second = concat.flush().then(() => {
    isOver = true;
  });
  await gate?.arrived(1);
  t.equal(isOver, false);
  gate?.open();
  await Promise.all([first, second]);
  t.strictSame(flushCounts(members), [1, 1]);
});

t.test('what ends while a flush is under way is for the next one', async (t) => {
  const { concat, members } = recorded();
  const gate = members[0]?.hold({ kind: 'flush', nth: 1 });
  const first = concat.flush();
  await gate?.arrived(1);
  await concat.write(Buffer.alloc(4 * KIB, 1), 0);
  const second = concat.flush();
  gate?.open();
  await Promise.all([first, second]);
  t.equal(flushCounts(members)[0], 2);
});

t.test('a flush that failed is tried again by the next one', async (t) => {
  const { concat, members } = recorded();
  members[1]?.fail({ kind: 'flush', nth: 1 });
  await t.rejects(concat.flush());
  await concat.flush();
  t.strictSame(flushCounts(members), [1, 2]);
});

t.test('a write that failed is flushed as one that did not', async (t) => {
  const { concat, members } = recorded();
  await concat.flush();
  members[0]?.fail({ kind: 'write' });
  await t.rejects(async () => concat.write(Buffer.alloc(4 * KIB, 1), 0));
  await concat.flush();
  t.strictSame(flushCounts(members), [2, 1]);
});

t.test('a call that fails ends when no member works at it any more', async (t) => {
  const memory = guarded(8 * KIB);
  const slow = new FaultyDevice(guarded(8 * KIB));
  const failing = new MemoryDevice({ sizeBytes: 8 * KIB });
  failing.write = () => {
    throw new Error('at once');
  };
  const concat = new ConcatDevice([
    { device: memory, lengthBytes: 4 * KIB },
    { device: slow, lengthBytes: 4 * KIB },
    { device: failing, lengthBytes: 4 * KIB },
  ]);
  const gate = slow.hold({ kind: 'write' });
  let isOver = false;
  const write = Promise.resolve(concat.write(Buffer.alloc(12 * KIB, 1), 0)).finally(() => {
    isOver = true;
  });
  const failed = t.rejects(write, { message: 'at once' });
  await gate.arrived(1);
  t.equal(isOver, false);
  gate.open();
  await failed;
});

t.test('only the last member of a concatenation grows, and each of the stripes', async (t) => {
  const [first, last] = [new MemoryDevice({ sizeBytes: 8 * KIB }), new MemoryDevice({ sizeBytes: 8 * KIB })];
  const concat = new ConcatDevice([
    { device: first, lengthBytes: 4 * KIB },
    { device: last, lengthBytes: 8 * KIB },
  ]);
  await concat.extend(20 * KIB);
  t.strictSame([concat.sizeBytes, first.sizeBytes, last.sizeBytes], [20 * KIB, 8 * KIB, 16 * KIB]);
  const devices = [new MemoryDevice({ sizeBytes: 4 * KIB }), new MemoryDevice({ sizeBytes: 4 * KIB })];
  const stripes = new StripeDevice({ devices, stripeBytes: 4 * KIB, sizeBytes: 8 * KIB });
  await stripes.extend(20 * KIB);
  t.strictSame(
    devices.map((device) => device.sizeBytes),
    [12 * KIB, 8 * KIB],
  );
  const [fixed] = [new MemoryDevice({ sizeBytes: 4 * KIB })];
  Reflect.set(fixed, 'extend', undefined);
  const short = new ConcatDevice([{ device: fixed, lengthBytes: 4 * KIB }]);
  await t.rejects(short.extend(8 * KIB), { code: 'too-small' });
  t.equal(short.sizeBytes, 4 * KIB);
});

t.test('members that do not fit are refused', (t) => {
  const small = new MemoryDevice({ sizeBytes: 4 * KIB });
  const coarse = new MemoryDevice({ sizeBytes: 8 * KIB, blockSizeBytes: 4096 });
  const codeOf = (make: () => unknown): string | undefined => {
    try {
      make();
    } catch (error) {
      return systemCode(error);
    }
    return undefined;
  };
  t.equal(
    codeOf(() => new ConcatDevice([{ device: small, lengthBytes: 8 * KIB }])),
    'too-small',
  );
  t.equal(
    codeOf(() => new ConcatDevice([{ device: coarse, lengthBytes: 512 }])),
    'unaligned',
  );
  const devices = [small, coarse];
  t.equal(
    codeOf(() => new StripeDevice({ devices, stripeBytes: 4 * KIB, sizeBytes: 16 * KIB })),
    'too-small',
  );
  t.equal(
    codeOf(() => new StripeDevice({ devices, stripeBytes: 512, sizeBytes: 8 * KIB })),
    'unaligned',
  );
  t.end();
});
