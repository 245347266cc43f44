/**
 * Goal: the container never holds more than its room, gives slots in order of arrival and hands entries out
 * newest first. Method: drive it step by step; a property test compares it with a list that does the same.
 */

import fc from 'fast-check';
import t from 'tap';
import { deferred } from '../base/index.ts';
import { type ContainerArea, IntermediateContainer, MemoryArea } from './index.ts';

const TRACK = 4096;

function memory(slots: number): MemoryArea {
  return new MemoryArea({ sizeBytes: slots * TRACK, trackSizeBytes: TRACK });
}

function content(label: number): Buffer {
  return Buffer.alloc(TRACK, label);
}

t.test('entries come out newest first and free their slot only when acknowledged', async (t) => {
  const container = new IntermediateContainer([memory(2)]);
  for (const track of [5, 7]) {
    const slot = container.tryReserve();
    t.ok(slot);
    if (slot !== undefined) await container.put(slot, track, content(track));
  }
  t.equal(container.tryReserve(), undefined, 'full');
  const [newest] = container.take(1);
  t.same(newest, { id: 2, track: 7 });
  t.equal(container.tryReserve(), undefined, 'taken is not free');
  t.same(await container.content(2), content(7));
  container.acknowledge(2);
  t.ok(container.tryReserve(), 'acknowledged is free');
  t.equal(container.entryCount, 1);
});

t.test('waiters get slots in order of arrival and nobody overtakes', async (t) => {
  const container = new IntermediateContainer([memory(1)]);
  const held = container.tryReserve();
  const order: string[] = [];
  const first = container.waitForSlot();
  const second = container.waitForSlot();
  const third = container.waitForSlot();
  void first.slot.then(() => order.push('first'));
  void third.slot.then(() => order.push('third'));
  second.cancel();
  t.equal(await second.slot, undefined, 'a cancelled wait ends without a slot');
  if (held !== undefined) container.unreserve(held);
  const slot = await first.slot;
  t.ok(slot);
  t.equal(container.tryReserve(), undefined, 'the third waits before a newcomer');
  first.cancel();
  if (slot !== undefined) container.unreserve(slot);
  await third.slot;
  t.same(order, ['first', 'third']);
});

t.test('memory fills first and drains before devices', async (t) => {
  const slow = new MemoryArea({ sizeBytes: TRACK, trackSizeBytes: TRACK });
  const device: ContainerArea = {
    description: 'device',
    isMemory: false,
    slotCount: 1,
    put: async (slot, bytes) => slow.put(slot, bytes),
    get: async (slot) => slow.get(slot),
    free: (slot) => slow.free(slot),
    close: () => slow.close(),
  };
  const container = new IntermediateContainer([memory(1), device]);
  for (const track of [1, 2]) {
    const slot = container.tryReserve();
    if (slot !== undefined) await container.put(slot, track, content(track));
  }
  t.same(
    container.take(2).map((entry) => entry.track),
    [1, 2],
  );
  t.same(await container.content(2), content(2));
});

t.test('closing wakes waiters without a slot and waits for what runs', async (t) => {
  const gate = deferred();
  const area: ContainerArea = {
    description: 'gated',
    isMemory: false,
    slotCount: 1,
    put: () => gate.promise,
    get: () => content(0),
    free: () => undefined,
    close: async () => undefined,
  };
  const container = new IntermediateContainer([area]);
  const slot = container.tryReserve();
  const put = slot === undefined ? undefined : container.put(slot, 0, content(0));
  const waiter = container.waitForSlot();
  let isClosed = false;
  const closing = container.close().then(() => {
    isClosed = true;
  });
  t.equal(await waiter.slot, undefined);
  t.notOk(isClosed, 'the put still runs');
  gate.resolve();
  await put;
  await closing;
  t.equal(container.entryCount, 0);
  t.equal(await container.waitForSlot().slot, undefined, 'a closed container has no slots');
});

t.test('property: never more entries than slots, each content exact, for any order of steps', async (t) => {
  await t.resolves(
    fc.assert(
      fc.asyncProperty(
        fc.nat(4),
        fc.array(fc.constantFrom('put', 'take', 'acknowledge'), { maxLength: 60 }),
        async (slots, steps) => {
          const container = new IntermediateContainer([memory(slots)]);
          const model: { id: number; track: number; isTaken: boolean }[] = [];
          let nextTrack = 0;
          for (const step of steps) {
            if (step === 'put') {
              const slot = container.tryReserve();
              if ((slot === undefined) !== (model.length === slots)) return false;
              if (slot === undefined) continue;
              nextTrack += 1;
              await container.put(slot, nextTrack, content(nextTrack));
              model.push({ id: nextTrack, track: nextTrack, isTaken: false });
            } else if (step === 'take') {
              const expected = model.findLast((entry) => !entry.isTaken);
              const [taken] = container.take(1);
              if (taken?.id !== expected?.id) return false;
              if (expected !== undefined) expected.isTaken = true;
            } else {
              const place = model.findIndex((entry) => entry.isTaken);
              const [entry] = place < 0 ? [] : model.splice(place, 1);
              if (entry === undefined) continue;
              if (!content(entry.track).equals(await container.content(entry.id))) return false;
              container.acknowledge(entry.id);
            }
          }
          return container.entryCount === model.length;
        },
      ),
    ),
  );
});
