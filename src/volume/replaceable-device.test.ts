/**
 * Goal: who uses a device that is exchanged for another one hears nothing of it, whatever was in flight, and every change
 * that was acknowledged is in the next one; where there is none, each request fails with its own reason.
 *
 * Method: faulty devices; the next one begins with what the first one had been sent, as the delta store would have it.
 */

import t from 'tap';
import { deferred } from '../base/index.ts';
import { type BlockDevice, DeviceError, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { ReplaceableDevice } from './replaceable-device.ts';

const SIZE_BYTES = 16 * 512;

function block(byte: number): Buffer {
  return Buffer.alloc(512, byte);
}

interface Example {
  readonly first: FaultyDevice;
  readonly next: MemoryDevice;
  readonly device: ReplaceableDevice;
  /** What was asked to be replaced, and why. */
  readonly asked: unknown[];
}

function begin(replace?: (next: BlockDevice) => Promise<BlockDevice>): Example {
  const first = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE_BYTES }));
  const next = new MemoryDevice({ sizeBytes: SIZE_BYTES });
  const asked: unknown[] = [];
  const device = new ReplaceableDevice({
    device: first,
    replace: async (error) => {
      asked.push(error);
      return replace === undefined ? next : replace(next);
    },
  });
  return { first, next, device, asked };
}

async function byteAt(device: BlockDevice, blockNumber: number): Promise<number | undefined> {
  const content = Buffer.alloc(512);
  await device.read(content, blockNumber * 512);
  return content[0];
}

for (const kind of ['read', 'write', 'writeZeroes', 'trim', 'flush', 'extents'] as const) {
  t.test(`a ${kind} that fails is asked again of the next device`, async (t) => {
    const { first, next, device, asked } = begin();
    next.write(block(7), 512);
    first.fail({ kind });
    if (kind === 'read') t.equal(await byteAt(device, 1), 7);
    else if (kind === 'write') await device.write(block(9), 512);
    else if (kind === 'writeZeroes') await device.writeZeroes(512, 512);
    else if (kind === 'trim') await device.trim(512, 512);
    else if (kind === 'flush') await device.flush();
    else t.match(await device.extents(0, SIZE_BYTES), [{ offsetBytes: 0 }]);
    t.equal(await byteAt(next, 1), kind === 'write' ? 9 : kind === 'writeZeroes' || kind === 'trim' ? 0 : 7);
    t.equal(asked.length, 1);
    await device.write(block(3), 0);
    t.equal(await byteAt(next, 0), 3, 'what follows goes there at once');
    await device.close();
  });
}

t.test('many fail at once: one exchange, and all of them go on', async (t) => {
  const ready = deferred();
  const { first, next, device, asked } = begin(async (one) => {
    await ready.promise;
    return one;
  });
  first.fail({ kind: 'write' });
  const writes = [1, 2, 3].map(async (at) => device.write(block(at), at * 512));
  await new Promise((resolve) => setImmediate(resolve));
  // One that comes meanwhile waits.
  const late = Promise.resolve(device.write(block(4), 4 * 512));
  ready.resolve();
  await Promise.all([...writes, late]);
  t.equal(asked.length, 1);
  t.same(await Promise.all([1, 2, 3, 4].map((at) => byteAt(next, at))), [1, 2, 3, 4]);
  await device.close();
});

t.test('what is refused for want of room is no failure', async (t) => {
  const { first, device, asked } = begin();
  first.fail({ kind: 'write' }, new DeviceError('no-space', 'There is no room', { device: 'x' }));
  await t.rejects(Promise.resolve(device.write(block(1), 0)), { code: 'no-space' });
  t.same(asked, []);
  await device.close();
});

t.test('where nothing takes over, each request fails with its own reason', async (t) => {
  const { first, device, asked } = begin(() => Promise.reject(new Error('There is no spare')));
  first.fail({ kind: 'write' }, new Error('The disk is gone'));
  await t.rejects(Promise.resolve(device.write(block(1), 0)), { message: 'The disk is gone' });
  await t.rejects(Promise.resolve(device.write(block(1), 0)), { message: 'The disk is gone' });
  t.equal(asked.length, 1);
  t.equal(await byteAt(device, 0), 0, 'what still works, works');
  await device.close();
});

t.test('the next one is not exchanged', async (t) => {
  const second = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE_BYTES }));
  const { first, device, asked } = begin(async () => second);
  first.fail({ kind: 'write' });
  second.fail({ kind: 'write' }, new Error('Neither does this one'));
  await t.rejects(Promise.resolve(device.write(block(1), 0)), { message: 'Neither does this one' });
  await t.rejects(Promise.resolve(device.write(block(1), 0)), { message: 'Neither does this one' });
  t.equal(asked.length, 1);
  await device.close();
});
