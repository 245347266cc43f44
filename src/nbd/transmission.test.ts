/**
 * Goal: the transmission answers every stream of bytes as the protocol says, touches the device only with
 * what the export allows, and never crashes or hangs.
 *
 * Method: the machine alone, with a port that records, over a device in memory that asserts its ranges.
 * Golden bytes; each refusal by name; any chunking of a recorded stream; a fuzzer that mutates the stream
 * over devices that finish at once or later.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { AssertionError } from '../base/index.ts';
import { COMMAND, COMMAND_FLAG, NBD_ERROR } from './codec.ts';
import type { TestDevice } from './test-device.ts';
import {
  block,
  read,
  request,
  setUp,
  type SettingOptions,
  settled,
  statuses,
  write,
  zeroes,
} from './test-transmission.ts';

t.test('golden bytes of a session', (t) => {
  const { device, port, transmission } = setUp();
  transmission.receive(
    Buffer.concat([
      write(1, 512, block(0xab), COMMAND_FLAG.fua),
      read(2, 512),
      request(COMMAND.writeZeroes, 3, { offsetBytes: 512, lengthBytes: 512, flags: COMMAND_FLAG.noHole }),
      request(COMMAND.trim, 4, { offsetBytes: 1024, lengthBytes: 1024 }),
      read(5, device.sizeBytes, 512),
      request(COMMAND.disconnect, 6),
      read(7, 0),
    ]),
  );
  const done = (cookie: number): string => `6744669800000000000000000000000${cookie}`;
  t.equal(
    port.output.toString('hex'),
    [done(1), done(2), 'ab'.repeat(512), done(3), done(4), '67446698000000160000000000000005'].join(''),
  );
  t.equal(port.sendCount, 1, 'all replies of the turn leave in one go');
  t.equal(port.finishedCount, 1, 'DISC ends it');
  t.same(device.calls, ['write 512+512 fua', 'read 512+512', 'zeroes-no-hole 512+512', 'trim 1024+1024']);
  t.end();
});

t.test('what the export does not allow is refused and never reaches the device', (t) => {
  const { EINVAL, ENOSPC, ENOTSUP, EPERM } = NBD_ERROR;
  const { fastZero, noHole, payloadLength } = COMMAND_FLAG;
  const noTrim = { device: { trim: false } };
  const size = 1024 * 1024;
  const at = (type: number, offsetBytes: number, lengthBytes: number, flags = 0): Buffer =>
    request(type, 1, { offsetBytes, lengthBytes, flags });
  const payload = Buffer.alloc(1024);
  const beyondSafe = at(COMMAND.read, 0, 512);
  beyondSafe.writeBigUInt64BE(2n ** 64n - 512n, 16);
  const cases: [string, Buffer, number, SettingOptions?][] = [
    ['read beyond the end', at(COMMAND.read, size, 512), EINVAL],
    ['read across the end', at(COMMAND.read, size - 512, 1024), EINVAL],
    ['offset near 2^64', beyondSafe, EINVAL],
    ['write across the end', write(1, size - 512, payload), ENOSPC],
    ['zeroes across the end', at(COMMAND.writeZeroes, size - 512, 1024), ENOSPC],
    ['trim across the end', at(COMMAND.trim, size - 512, 1024), EINVAL],
    ['zeroes of 4 GiB', at(COMMAND.writeZeroes, 0, 2 ** 32 - 512), ENOSPC],
    ['unaligned offset', at(COMMAND.read, 100, 512), EINVAL],
    ['unaligned length', at(COMMAND.read, 0, 100), EINVAL],
    ['unaligned write', write(1, 1, payload), EINVAL],
    ['unaligned trim', at(COMMAND.trim, 1, 512), EINVAL],
    ['unknown command', at(99, 0, 0), EINVAL],
    ['a cache hint across the end', at(COMMAND.cache, size - 512, 1024), EINVAL],
    ['block status is not negotiated', at(COMMAND.blockStatus, 0, 512), EINVAL],
    ['unknown flag', at(COMMAND.read, 0, 512, 0x8000), EINVAL],
    ['DF is not offered', at(COMMAND.read, 0, 512, COMMAND_FLAG.df), EINVAL],
    ['fast zeroes without holes', at(COMMAND.writeZeroes, 0, 512, fastZero | noHole), ENOTSUP],
    ['fast zeroes of a device without', at(COMMAND.writeZeroes, 0, 512, fastZero), ENOTSUP, noTrim],
    ['a payload length without extended headers', at(COMMAND.read, 0, 512, payloadLength), EINVAL],
    ['NO_HOLE on a write', write(1, 0, payload, COMMAND_FLAG.noHole), EINVAL],
    ['oversize read', at(COMMAND.read, 0, 8192), EINVAL, { limits: { payloadBytesMax: 4096 } }],
    ['oversize write', write(1, 0, Buffer.alloc(8192)), EINVAL, { limits: { payloadBytesMax: 4096 } }],
    ['write to a read-only export', write(1, 0, payload), EPERM, { readOnly: true }],
    ['trim of a read-only export', at(COMMAND.trim, 0, 512), EPERM, { readOnly: true }],
    ['zeroes on a read-only export', at(COMMAND.writeZeroes, 0, 512), EPERM, { readOnly: true }],
    ['trim of a device without', at(COMMAND.trim, 0, 512), EINVAL, noTrim],
    ['nothing at all', at(COMMAND.read, 0, 0), 0],
    ['a write of nothing', at(COMMAND.write, 0, 0), 0],
  ];
  for (const [name, bytes, error, options] of cases) {
    const { device, port, transmission } = setUp(options);
    transmission.receive(bytes);
    t.same(statuses(port.output), [[1, error]], name);
    t.same(device.calls, [], `${name}: not sent to the device`);
    transmission.receive(read(2, 0));
    t.equal(port.output.length, 16 + 16 + 512, `${name}: the stream stays in step`);
  }
  t.end();
});

t.test('FUA is taken on every command', (t) => {
  const { port, transmission } = setUp();
  transmission.receive(request(COMMAND.read, 1, { lengthBytes: 512, flags: COMMAND_FLAG.fua }));
  t.equal(port.output.readUInt32BE(4), 0);
  t.end();
});

t.test('a lost stream and a payload too large to skip hang up', (t) => {
  for (const bytes of [Buffer.alloc(28), request(COMMAND.write, 1, { lengthBytes: 2 ** 32 - 1 })]) {
    const { device, port, transmission } = setUp();
    transmission.receive(Buffer.concat([bytes, read(2, 0)]));
    t.equal(port.hungUp.length, 1);
    t.equal(port.output.length, 0);
    t.same(device.calls, []);
  }
  t.end();
});

t.test('errors of the device are answered, assertions are also reported', async (t) => {
  const { device, port, transmission } = setUp({
    device: {
      before: (call) => {
        if (call === 'trim') throw new AssertionError('a bug');
        if (call === 'zeroes') throw Object.assign(new Error('full'), { code: 'no-space' });
      },
      holds: (call) => call === 'write' || call === 'read',
    },
  });
  const range = { offsetBytes: 0, lengthBytes: 512 };
  transmission.receive(request(COMMAND.trim, 1, range));
  transmission.receive(request(COMMAND.writeZeroes, 2, range));
  transmission.receive(write(3, 0));
  transmission.receive(read(4, 0));
  device.finishNext(new Error('broken'));
  device.finishNext(Object.assign(new Error('gone'), { code: 'ESHUTDOWN' }));
  await settled();
  const { EIO, ENOSPC, ESHUTDOWN } = NBD_ERROR;
  t.same(statuses(port.output), [
    [1, EIO],
    [2, ENOSPC],
    [3, EIO],
    [4, ESHUTDOWN],
  ]);
  t.match(port.programmerErrors, [{ message: 'a bug' }]);
  t.same(port.logged, [
    'An assertion failed in test device',
    'Command 6 on 0+512 failed: full',
    'Command 1 on 0+512 failed: broken',
    'Command 0 on 0+512 failed: gone',
  ]);
});

t.test('replies of calls that wait come with their own data, in the order they finish', async (t) => {
  const { device, port, transmission } = setUp({
    device: { holds: (call, offsetBytes) => call === 'read' && offsetBytes > 0 },
  });
  device.bytes.fill(1, 512, 1024).fill(2, 1024, 1536).fill(3, 65_536, 131_072);
  transmission.receive(
    Buffer.concat([read(9, 0), read(1, 512), read(9, 0), read(2, 1024), read(3, 65_536, 65_536)]),
  );
  t.equal(port.output.length, 2 * 528);
  device.held[2]?.finish();
  device.held[1]?.finish();
  device.held[0]?.finish();
  await settled();
  const reply = (cookie: number, bytes: Buffer): Buffer =>
    Buffer.concat([Buffer.from(`6744669800000000000000000000000${cookie}`, 'hex'), bytes]);
  t.ok(
    port.output
      .subarray(2 * 528)
      .equals(Buffer.concat([reply(3, Buffer.alloc(65_536, 3)), reply(2, block(2)), reply(1, block(1))])),
  );
  t.equal(port.sendCount, 2);
});

// A stream with every command, small and large payloads and refusals.
const stream = Buffer.concat([
  write(1, 0, Buffer.alloc(4096, 'abc')),
  read(2, 512, 2048),
  zeroes(3),
  write(4, 8192, Buffer.alloc(1536, 'def'), COMMAND_FLAG.fua),
  write(5, 2 ** 20, Buffer.alloc(1024, 'x')),
  read(6, 0, 16_384),
  request(COMMAND.trim, 7, { offsetBytes: 512, lengthBytes: 1024 }),
  request(77, 8),
  read(9, 0, 4096),
  request(COMMAND.disconnect, 10),
]);

/** Cuts bytes at the given places; each chunk is a copy, since chunks belong to the transmission. */
function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const ends = [0, ...places.map((place) => place % bytes.length), bytes.length].sort((a, b) => a - b);
  return ends.slice(1).map((end, index) => Buffer.from(bytes.subarray(ends[index], end)));
}

async function finishAll(device: TestDevice): Promise<void> {
  while (device.held.length > 0) device.finishNext();
  await settled();
}

t.test('any chunking of a stream gives the same replies', (t) => {
  const whole = setUp();
  for (const chunk of cut(stream, [])) whole.transmission.receive(chunk);
  t.equal(whole.port.finishedCount, 1);
  fc.assert(
    fc.property(fc.array(fc.nat(), { maxLength: 50 }), (places) => {
      const { device, port, transmission } = setUp();
      for (const chunk of cut(stream, places)) transmission.receive(chunk);
      ok(port.output.equals(whole.port.output));
      deepStrictEqual(device.calls, whole.device.calls);
      deepStrictEqual(port.finishedCount, 1);
    }),
  );
  const { port, transmission } = setUp();
  for (const chunk of cut(stream, [...stream.keys()])) transmission.receive(chunk);
  t.ok(port.output.equals(whole.port.output), 'byte by byte');
  t.end();
});

t.test('mutated streams never crash, never hang, never leave the device', async () => {
  const change = fc.tuple(fc.nat(stream.length - 1), fc.nat(255));
  const insertion = fc.tuple(fc.nat(stream.length), fc.uint8Array({ maxLength: 30 }));
  await fc.assert(
    fc.asyncProperty(
      fc.array(change, { maxLength: 12 }),
      fc.array(insertion, { maxLength: 2 }),
      fc.array(fc.nat(), { maxLength: 5 }),
      fc.boolean(),
      async (changes, insertions, places, waits) => {
        const { device, port, transmission } = setUp({
          device: { holds: () => waits },
          limits: { inFlightCountMax: 3 },
        });
        let bytes = Buffer.from(stream);
        for (const [at, value] of changes) bytes[at] = value;
        for (const [at, extra] of insertions) {
          bytes = Buffer.concat([bytes.subarray(0, at), extra, bytes.subarray(at)]);
        }
        for (const chunk of cut(bytes, places)) {
          for (let round = 0; round < 40 && transmission.isBlocked; round += 1) await finishAll(device);
          deepStrictEqual(transmission.isBlocked, false, 'it does not stay blocked');
          transmission.receive(chunk);
        }
        transmission.end();
        for (let round = 0; round < 40 && transmission.inFlightCount > 0; round += 1) await finishAll(device);
        deepStrictEqual(port.programmerErrors, []);
        deepStrictEqual(transmission.inFlightCount, 0);
        deepStrictEqual(port.finishedCount + port.hungUp.length, 1, 'it ends, once');
      },
    ),
    { numRuns: 1500 },
  );
});
