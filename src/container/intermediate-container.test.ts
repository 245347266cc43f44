/**
 * Goal: the container never holds more than its room, gives slots in order of arrival, and frees one only when all who
 * need its content have let it go; queues hand entries out newest first, and again after they were put back. Method:
 * drive them step by step; a property test compares two queues on one container with lists that do the same.
 */

import fc from 'fast-check';
import t from 'tap';
import { deferred } from '../base/index.ts';
import { type ContainerArea, DrainQueue, IntermediateContainer, MemoryArea, type Slot } from './index.ts';

const TRACK = 4096;

function memory(slots: number): MemoryArea {
  return new MemoryArea({ sizeBytes: slots * TRACK, trackSizeBytes: TRACK });
}

function content(label: number): Buffer {
  return Buffer.alloc(TRACK, label);
}

/** @returns false where there is no room. */
async function put(
  container: IntermediateContainer,
  track: number,
  holders: readonly DrainQueue[],
): Promise<boolean> {
  const slot = container.tryReserve();
  if (slot === undefined) return false;
  await container.write(slot, content(track));
  container.enter(slot, track, holders);
  return true;
}

t.test('entries come out newest first and free their slot only when acknowledged', async (t) => {
  const container = new IntermediateContainer([memory(2)]);
  const queue = new DrainQueue();
  for (const track of [5, 7]) t.ok(await put(container, track, [queue]));
  t.equal(container.tryReserve(), undefined, 'full');
  const [newest] = queue.take(1);
  t.same(newest, { id: 2, track: 7 });
  t.equal(container.tryReserve(), undefined, 'taken is not free');
  t.same(await queue.content(2), content(7));
  queue.acknowledge(2);
  t.equal(queue.content(2), undefined);
  t.ok(container.tryReserve(), 'acknowledged is free');
  t.equal(queue.entryCount, 1);
  t.equal(queue.entryCountMax, 2);
});

t.test(
  'what several need takes one slot, free when the last has acknowledged it or dropped it',
  async (t) => {
    const container = new IntermediateContainer([memory(1)]);
    const queues = [new DrainQueue(), new DrainQueue(), new DrainQueue()] as const;
    t.ok(await put(container, 4, queues));
    t.equal(container.usedCount, 1);
    for (const queue of queues) t.same(queue.take(9), [{ id: 1, track: 4 }]);
    queues[0].acknowledge(1);
    queues[0].acknowledge(1);
    queues[1].drop();
    t.equal(container.tryReserve(), undefined, 'one still needs it, and acknowledging twice is once');
    t.same(await queues[2].content(1), content(4));
    queues[2].acknowledge(1);
    t.equal(container.usedCount, 0);
  },
);

t.test('content that nobody needs any more when it comes takes no slot', async (t) => {
  const container = new IntermediateContainer([memory(1)]);
  t.ok(await put(container, 1, []));
  t.ok(await put(container, 2, []));
  t.equal(container.usedCount, 0);
});

t.test('what was put back is taken again, newest first, and may be acknowledged before', async (t) => {
  const container = new IntermediateContainer([memory(3)]);
  const queue = new DrainQueue();
  for (const track of [1, 2, 3]) await put(container, track, [queue]);
  queue.take(2);
  queue.acknowledge(3);
  queue.putBack();
  t.equal(queue.untakenCount, 2, 'what was acknowledged does not come back');
  queue.acknowledge(2);
  t.same(queue.take(9), [{ id: 1, track: 1 }], 'nor what the store turns out to have');
  t.equal(container.usedCount, 1);
});

t.test('waiters get slots in order of arrival and nobody overtakes', async (t) => {
  const container = new IntermediateContainer([memory(1)]);
  const held = container.tryReserve();
  const granted: [string, Slot][] = [];
  const wait = (name: string): (() => void) => container.waitForSlot((slot) => granted.push([name, slot]));
  const cancelFirst = wait('first');
  const cancelSecond = wait('second');
  wait('third');
  cancelSecond();
  if (held !== undefined) container.unreserve(held);
  t.same(
    granted.map(([name]) => name),
    ['first'],
  );
  t.equal(container.tryReserve(), undefined, 'the third waits before a newcomer');
  cancelFirst();
  const [first] = granted;
  if (first !== undefined) container.unreserve(first[1]);
  t.same(
    granted.map(([name]) => name),
    ['first', 'third'],
  );
  t.equal(container.usedCount, 1);
});

/** An area as slow as the test wants it. */
function slowArea(slow: MemoryArea, before: () => Promise<void>): ContainerArea {
  return {
    description: 'device',
    isMemory: false,
    slotCount: slow.slotCount,
    put: async (slot, bytes) => {
      await before();
      slow.put(slot, bytes);
    },
    get: async (slot) => {
      await before();
      return slow.get(slot);
    },
    free: (slot) => slow.free(slot),
    close: () => slow.close(),
  };
}

t.test('memory fills first and drains before devices', async (t) => {
  const container = new IntermediateContainer([memory(1), slowArea(memory(1), async () => undefined)]);
  const queue = new DrainQueue();
  for (const track of [1, 2]) await put(container, track, [queue]);
  t.same(
    queue.take(2).map((entry) => entry.track),
    [1, 2],
  );
  t.same(await queue.content(2), content(2));
});

t.test('closing grants nothing more and waits for what runs and what is needed', async (t) => {
  const gate = deferred();
  const container = new IntermediateContainer([memory(1), slowArea(memory(1), () => gate.promise)]);
  const mine = new DrainQueue();
  const other = new DrainQueue();
  await put(container, 1, [mine, other]);
  const slot = container.tryReserve();
  const writing = slot === undefined ? undefined : container.write(slot, content(0));
  container.waitForSlot(() => t.fail('a closed container grants nothing'));
  let isClosed = false;
  const closing = container.close().then(() => {
    isClosed = true;
  });
  mine.drop();
  other.take(1);
  t.same(await other.content(1), content(1), 'what the other needs is there');
  other.acknowledge(1);
  await new Promise((resolve) => setImmediate(resolve));
  t.notOk(isClosed, 'the write still runs');
  gate.resolve();
  await writing;
  t.notOk(isClosed, 'its slot is still reserved');
  if (slot !== undefined) container.unreserve(slot);
  await closing;
  t.equal(container.close(), container.close());
  t.equal(container.tryReserve(), undefined);
  container.waitForSlot(() => t.fail('nor to who comes later'));
});

interface ModelEntry {
  readonly id: number;
  readonly track: number;
  isTaken: boolean;
}

t.test('property: never more than the slots, each content exact, for any order of steps', async (t) => {
  const kinds = fc.constantFrom('put', 'take', 'acknowledge', 'put back', 'drop');
  const step = fc.record({ kind: kinds, who: fc.nat(1), both: fc.boolean() });
  await t.resolves(
    fc.assert(
      fc.asyncProperty(fc.nat(4), fc.array(step, { maxLength: 60 }), async (slots, steps) => {
        const container = new IntermediateContainer([memory(slots)]);
        const queues = [new DrainQueue(), new DrainQueue()] as const;
        const models: [ModelEntry[], ModelEntry[]] = [[], []];
        const lastIds = [0, 0];
        let nextTrack = 0;
        const used = (): number => new Set(models.flat().map(({ track }) => track)).size;
        for (const { kind, who, both } of steps) {
          const index = who === 0 ? 0 : 1;
          const queue = queues[index];
          const model = models[index];
          if (kind === 'put') {
            const indexes = both ? ([0, 1] as const) : ([index] as const);
            const holders = indexes.map((one) => queues[one]);
            const isFull = used() === slots;
            nextTrack += 1;
            if ((await put(container, nextTrack, holders)) === isFull) return false;
            if (isFull) continue;
            for (const one of indexes) {
              lastIds[one] = (lastIds[one] ?? 0) + 1;
              models[one].push({ id: lastIds[one], track: nextTrack, isTaken: false });
            }
          } else if (kind === 'take') {
            const expected = model.findLast((entry) => !entry.isTaken);
            const [taken] = queue.take(1);
            if (taken?.id !== expected?.id) return false;
            if (expected !== undefined) expected.isTaken = true;
          } else if (kind === 'acknowledge') {
            const [entry] = model.splice(
              model.findIndex((one) => one.isTaken),
              model.some((one) => one.isTaken) ? 1 : 0,
            );
            if (entry === undefined) continue;
            if (!content(entry.track).equals((await queue.content(entry.id)) ?? Buffer.alloc(0)))
              return false;
            queue.acknowledge(entry.id);
          } else if (kind === 'put back') {
            queue.putBack();
            for (const entry of model) entry.isTaken = false;
          } else {
            queue.drop();
            model.length = 0;
          }
          if (container.usedCount !== used() || queue.entryCount !== model.length) return false;
        }
        return true;
      }),
    ),
  );
});
