/**
 * Goal: a change of a mirrored device has finished when both have it; a mirror that fails is on record before anybody
 * hears that a change has finished which it may not have, and gets nothing afterwards.
 *
 * Method: two devices in memory that are held and failed, a recorder of the loss that is held too; then random changes
 * of both, which must end equal.
 */

import fc from 'fast-check';
import t from 'tap';
import { type Deferred, deferred, KIB } from '../base/index.ts';
import { DeviceError, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelled, turns } from '../sim/index.ts';
import { MirroredDevice } from './mirrored-device.ts';

const SIZE = 16 * KIB;

interface Pair {
  readonly primary: FaultyDevice;
  readonly mirror: FaultyDevice;
  readonly device: MirroredDevice;
  readonly losses: unknown[];
}

function makePair(options: { readonly recording?: Deferred; readonly flushesMirror?: boolean } = {}): Pair {
  const primary = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE }));
  const mirror = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE }));
  const losses: unknown[] = [];
  const { recording, flushesMirror = true } = options;
  const device = new MirroredDevice({
    primary,
    mirror,
    flushesMirror,
    onMirrorLost: async (error) => {
      losses.push(error);
      await recording?.promise;
    },
  });
  return { primary, mirror, device, losses };
}

async function contentOf(device: FaultyDevice): Promise<Buffer> {
  const content = Buffer.alloc(SIZE);
  await device.read(content, 0);
  return content;
}

/** Whether it has ended, once everything else has gone as far as it can. */
async function hasEnded(work: void | Promise<void>): Promise<boolean> {
  let isOver = false;
  void Promise.resolve(work).then(
    () => (isOver = true),
    () => (isOver = true),
  );
  await turns(3);
  return isOver;
}

t.test('every kind of change and a flush end when both have ended', async (t) => {
  const changes: Readonly<Record<string, (device: MirroredDevice) => void | Promise<void>>> = {
    write: (device) => device.write(labelled('a', 512), 1024),
    zeroes: (device) => device.writeZeroes(512, 512),
    trim: (device) => device.trim(0, 4096),
    flush: (device) => device.flush(),
  };
  for (const [what, change] of Object.entries(changes)) {
    for (const which of ['primary', 'mirror'] as const) {
      const pair = makePair();
      await pair.device.write(labelled('old', SIZE), 0);
      const gate = pair[which].hold({ kind: ['write', 'writeZeroes', 'trim', 'flush'] });
      const done = change(pair.device);
      t.notOk(await hasEnded(done), `${what}: the ${which} has not finished`);
      gate.open();
      await done;
      t.ok((await contentOf(pair.primary)).equals(await contentOf(pair.mirror)), what);
    }
  }
});

t.test('a trim reads the same on both, and is offered as none', async (t) => {
  const { device, mirror, primary } = makePair();
  t.equal(device.capabilities.trim, false);
  t.equal(device.capabilities.fastZero, false);
  await device.write(labelled('a', SIZE), 0);
  await device.trim(0, SIZE);
  t.notOk([...mirror.operations, ...primary.operations].some(({ kind }) => kind === 'trim'));
  t.ok((await contentOf(primary)).equals(Buffer.alloc(SIZE)));
  t.ok((await contentOf(mirror)).equals(Buffer.alloc(SIZE)));
});

t.test("reads and extents are the primary's alone", async (t) => {
  const { device, mirror } = makePair();
  await device.read(Buffer.alloc(512), 0);
  await device.extents(0, SIZE);
  t.same(mirror.operations, []);
});

t.test('a mirror that fails is on record before the change is acknowledged, and left out then', async (t) => {
  const recording = deferred();
  const { device, mirror, primary, losses } = makePair({ recording });
  mirror.fail({ kind: 'write', nth: 1 });
  const write = device.write(labelled('a', 512), 0);
  t.notOk(await hasEnded(write), 'it is not on record');
  t.equal(losses.length, 1);
  t.equal(device.isMirroring, false);
  const others = [device.write(labelled('b', 512), 512), device.writeZeroes(1024, 512), device.flush()];
  for (const other of others)
    t.notOk(await hasEnded(other), 'nor does anything later say that it has finished');
  recording.resolve();
  await write;
  for (const other of others) await other;
  mirror.forgetOperations();
  await device.write(labelled('c', 512), 2048);
  await device.trim(0, 512);
  await device.flush();
  await device.flushMirror();
  t.same(mirror.operations, [], 'the mirror gets nothing any more');
  t.ok(primary.operations.length > 3);
});

t.test('what the mirror still has in hand is waited for', async (t) => {
  const { device, mirror } = makePair();
  const gate = mirror.hold({ kind: 'write', range: { offsetBytes: 0, lengthBytes: 512 } });
  const held = device.write(labelled('a', 512), 0);
  await gate.arrived(1);
  mirror.fail({ kind: 'write', nth: 1, range: { offsetBytes: 512, lengthBytes: 512 } });
  await device.write(labelled('b', 512), 512);
  t.notOk(await hasEnded(held), 'its buffer is in use');
  gate.open();
  await held;
});

t.test('a flush that the mirror fails loses it and nothing else', async (t) => {
  for (const how of ['flush', 'flushMirror'] as const) {
    const { device, mirror, losses } = makePair();
    mirror.fail({ kind: 'flush' });
    await device[how]();
    t.equal(losses.length, 1, how);
    t.notOk(device.isMirroring);
  }
});

t.test("where the primary's flush covers the mirror, only that is asked", async (t) => {
  const { device, mirror, primary } = makePair({ flushesMirror: false });
  await device.flush();
  t.same(mirror.operations, []);
  t.equal(primary.operations.length, 1);
});

t.test('a loss that cannot be recorded fails the change, and what comes after it', async (t) => {
  const recording = deferred();
  const { device, mirror } = makePair({ recording });
  mirror.fail({ kind: 'write', nth: 1 });
  recording.promise.catch(() => undefined);
  recording.reject(new Error('The disk is full'));
  await t.rejects(async () => device.write(labelled('a', 512), 0), { message: 'The disk is full' });
  await t.rejects(async () => device.write(labelled('b', 512), 0), { message: 'The disk is full' });
});

t.test("the primary's failure is the caller's, after the mirror has let go of the buffer", async (t) => {
  const { device, mirror, primary, losses } = makePair();
  const gate = mirror.hold({ kind: 'write' });
  primary.fail({ kind: 'write' });
  const write = device.write(labelled('a', 512), 0);
  t.notOk(await hasEnded(write));
  gate.open();
  await t.rejects(Promise.resolve(write), { code: 'io' });
  t.same(losses, []);
});

t.test('a change that the primary refuses for want of room leaves the two equal', async (t) => {
  const noSpace = (): Error => new DeviceError('no-space', 'No space is left', { device: 'test' });
  for (const kind of ['write', 'writeZeroes'] as const) {
    const { device, mirror, primary, losses } = makePair();
    await device.write(labelled('old', SIZE), 0);
    const rule = primary.fail({ kind }, noSpace());
    const change = async (): Promise<void> =>
      kind === 'write' ? device.write(labelled('new', 1024), 512) : device.writeZeroes(512, 1024);
    await t.rejects(change(), { code: 'no-space' });
    rule.remove();
    t.ok((await contentOf(primary)).equals(await contentOf(mirror)), kind);
    t.same(losses, []);
  }
});

t.test('a mirror that cannot be made equal again is lost', async (t) => {
  const { device, mirror, primary, losses } = makePair();
  primary.fail({ kind: 'write' }, new DeviceError('no-space', 'No space is left', { device: 'test' }));
  mirror.fail({ kind: 'write', nth: 2 });
  await t.rejects(async () => device.write(labelled('new', 1024), 512), { code: 'no-space' });
  t.equal(losses.length, 1);
  t.notOk(device.isMirroring);
});

t.test('random changes, those of one range one after the other, end equal', async () => {
  const change = fc.record({
    kind: fc.constantFrom('write' as const, 'zero' as const, 'trim' as const),
    first: fc.nat(31),
    count: fc.integer({ min: 1, max: 8 }),
    fill: fc.integer({ min: 1, max: 255 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(change, { maxLength: 20 }), fc.scheduler(), async (changes, scheduler) => {
      const { primary, mirror, device } = makePair();
      for (const one of [primary, mirror]) one.delay({}, () => scheduler.schedule(Promise.resolve()));
      const run = async (): Promise<void> => {
        for (const { kind, first, count, fill } of changes) {
          const lengthBytes = Math.min(count, 32 - first) * 512;
          if (kind === 'write') await device.write(Buffer.alloc(lengthBytes, fill), first * 512);
          else if (kind === 'zero') await device.writeZeroes(first * 512, lengthBytes);
          else await device.trim(first * 512, lengthBytes);
        }
      };
      await scheduler.waitFor(run());
      const same = scheduler.waitFor(Promise.all([contentOf(primary), contentOf(mirror)]));
      const [one, other] = await same;
      if (!one.equals(other)) throw new Error('The two differ');
    }),
    { numRuns: 50 },
  );
});
