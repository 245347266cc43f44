/**
 * Goal: a device that can become larger does, by zeroes and never by losing anything; one that cannot stays as it is.
 * Method: files, a piece of one, and memory, with the layer of faults around it.
 */

import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FaultyDevice, MemoryDevice, openFileDevice } from './index.ts';

const OPTIONS = { readOnly: false, syncName: 'home' } as const;

t.test('a file becomes longer, and takes what is written there', async (t) => {
  const path = join(t.testdir(), 'file');
  writeFileSync(path, Buffer.alloc(1024, 'a'));
  const device = await openFileDevice({ ...OPTIONS, path, lock: 'exclusive' });
  await device.extend?.(2048);
  t.equal(device.sizeBytes, 2048);
  await device.write(Buffer.alloc(512, 'b'), 1536);
  await device.extend?.(512);
  t.equal(device.sizeBytes, 2048, 'never shorter');
  await device.close();
  t.equal(readFileSync(path, 'latin1'), 'a'.repeat(1024) + '\0'.repeat(512) + 'b'.repeat(512));
});

t.test('a file that somebody else made longer keeps what is there', async (t) => {
  const path = join(t.testdir(), 'file');
  writeFileSync(path, Buffer.alloc(1024, 'a'));
  const device = await openFileDevice({ ...OPTIONS, path });
  writeFileSync(path, Buffer.alloc(4096, 'c'));
  await device.extend?.(2048);
  t.equal(device.sizeBytes, 2048, 'no more of it than was asked for');
  await device.close();
  t.equal(readFileSync(path, 'latin1'), 'c'.repeat(4096));
});

t.test('a piece of a file stays as it is', async (t) => {
  const path = join(t.testdir({ file: '' }), 'file');
  truncateSync(path, 8192);
  const device = await openFileDevice({ ...OPTIONS, path, offsetBytes: 1024, lengthBytes: 2048 });
  await device.extend?.(4096);
  t.equal(device.sizeBytes, 2048);
  await device.close();
  t.equal(statSync(path).size, 8192);
});

t.test('what the filesystem refuses leaves the device as it was', async (t) => {
  const path = join(t.testdir({ file: '' }), 'file');
  truncateSync(path, 1024);
  const device = await openFileDevice({ ...OPTIONS, path });
  await t.rejects(async () => device.extend?.(Number.MAX_SAFE_INTEGER - 511), {
    message: /^Extension to 9007199254740480 bytes on file .* failed: EFBIG/,
  });
  t.equal(device.sizeBytes, 1024);
  await device.close();
});

t.test('memory, and the layer of faults around it', async (t) => {
  const memory = new MemoryDevice({ sizeBytes: 1024 });
  const device = new FaultyDevice(memory);
  const failing = device.fail({ kind: 'extend' });
  await t.rejects(device.extend(2048), { message: 'Injected failure' });
  t.equal(device.sizeBytes, 1024);
  failing.remove();
  await device.extend(2048);
  t.equal(device.sizeBytes, 2048);
  await device.write(Buffer.alloc(512, 'x'), 1536);
  const content = Buffer.alloc(1024);
  await device.read(content, 1024);
  t.equal(content.toString('latin1'), '\0'.repeat(512) + 'x'.repeat(512));
});
