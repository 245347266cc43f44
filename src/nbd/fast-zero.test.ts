/**
 * Goal: NBD_CMD_FLAG_FAST_ZERO is done where the device says that it is fast, and refused at once, with nothing
 * changed, where not; through a second server too, so that a chain of them never answers fast by being slow.
 *
 * Method: a real server over a device that declares fast zeroes or does not and refuses single ranges; the
 * client by itself, and the client as the device of another server.
 *
 * Source: NBD proto.md § Command flags, NBD_CMD_FLAG_FAST_ZERO; § Request types, NBD_CMD_WRITE_ZEROES.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type BlockDevice, DeviceError } from '../device/index.ts';
import { NbdClient } from './client.ts';
import { openNbdDevice } from './device.ts';
import { NbdServer } from './server.ts';
import { TestDevice } from './test-device.ts';
import type { NbdAddress } from './uri.ts';

const logged: string[] = [];

async function serve(t: Test, device: BlockDevice): Promise<NbdAddress> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const server = new NbdServer({
    exports: [{ name: 'disk', description: '', device, readOnly: false, multiConn: true }],
    log: ({ level, message }) => level !== 'info' && logged.push(message),
  });
  const transport = await server.listen({ kind: 'unix', path: join(directory, 'nbd.sock') });
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return { transport, exportName: 'disk' };
}

/** Zeroes from 64 KiB on cannot be fast. */
function partlyFast(): TestDevice {
  return new TestDevice({
    before: (call, offsetBytes) => {
      if (call !== 'zeroes' || offsetBytes < 65_536) return;
      throw new DeviceError('not-fast', 'Would have to be written', { device: 'test' });
    },
  });
}

const FAST = { fast: true, mayTrim: true } as const;

t.test('fast where the device is fast, refused where it is not, and neither breaks the other', async (t) => {
  const behind = partlyFast();
  behind.bytes.fill(1);
  const client = await NbdClient.connect(await serve(t, behind));
  t.ok(client.canFastZero);
  logged.length = 0;
  await client.writeZeroes(512, 512, FAST);
  await t.rejects(client.writeZeroes(65_536, 512, FAST), {
    code: 'not-supported',
    details: { serverMessage: /no faster than a write/ },
  });
  t.ok(behind.bytes.subarray(512, 1024).equals(Buffer.alloc(512)));
  t.ok(
    behind.bytes.subarray(65_536).every((byte) => byte === 1),
    'nothing was changed',
  );
  t.same(logged, [], 'a refusal is no failure of the device');
  await client.disconnect();
});

t.test('a device without fast zeroes is never asked', async (t) => {
  const behind = new TestDevice({ trim: false });
  const client = await NbdClient.connect(await serve(t, behind));
  t.ok(client.canFastZero, 'the flag is offered all the same: a refusal is an answer too');
  await t.rejects(client.writeZeroes(0, 512, FAST), { code: 'not-supported' });
  t.same(behind.calls, []);
  await client.writeZeroes(0, 512);
  t.same(behind.calls, ['zeroes 0+512'], 'and plain zeroes are done, however long they take');
  await client.disconnect();
});

t.test('a server behind a server is asked too', async (t) => {
  const behind = partlyFast();
  behind.bytes.fill(1);
  const device = await openNbdDevice(await serve(t, behind));
  t.equal(device.capabilities.fastZero, true);
  await device.writeZeroes(0, 512, FAST);
  await t.rejects(device.writeZeroes(65_536, 512, FAST), { code: 'not-fast' });
  await t.rejects(device.writeZeroes(behind.sizeBytes - 512, 512, FAST), DeviceError);
  const client = await NbdClient.connect(await serve(t, device));
  await client.writeZeroes(1024, 512, FAST);
  await t.rejects(client.writeZeroes(65_536, 512, FAST), { code: 'not-supported' });
  t.ok(behind.bytes.subarray(0, 512).equals(Buffer.alloc(512)));
  t.ok(behind.bytes.subarray(1024, 1536).equals(Buffer.alloc(512)));
  t.ok(behind.bytes.subarray(65_536).every((byte) => byte === 1));
  await client.disconnect();
  await device.close();
});
