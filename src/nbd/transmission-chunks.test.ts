/**
 * Goal: with structured replies and with extended headers the transmission answers every stream of bytes as the
 * protocol says, and never crashes, hangs or leaves the device.
 *
 * Method: as for simple replies, the machine alone with a port that records, over a device in memory that
 * asserts its ranges: golden bytes; each refusal of extended headers by name; any chunking of a recorded
 * stream; a fuzzer that mutates the streams of both modes over devices that finish at once or later.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { COMMAND, COMMAND_FLAG, NBD_ERROR } from './codec.ts';
import { decodeExtendedChunk, encodeStatusFilter } from './codec-chunks.ts';
import { Fence } from './fence.ts';
import { allocationContext } from './meta-context.ts';
import { TestDevice } from './test-device.ts';
import {
  attach,
  block,
  contextOf,
  extended,
  read,
  request,
  type Setting,
  setUp,
  type SettingOptions,
  settled,
  termsOf,
  write,
} from './test-transmission.ts';

const { fua, df, requestOne, payloadLength } = COMMAND_FLAG;
const dirty = contextOf('x-test:dirty', 1);
const other = contextOf('x-test:other', 7);

function structured(options: SettingOptions = {}): Setting {
  return setUp({ terms: termsOf('structured', dirty, other), ...options });
}

function extendedSetting(options: SettingOptions = {}): Setting {
  return setUp({ terms: termsOf('extended', dirty, other), ...options });
}

const range = { offsetBytes: 512, lengthBytes: 512 };
const id = (cookie: number): string => `000000000000000${cookie}`;
const at512 = '0000000000000200';

t.test('golden bytes of a structured session', async (t) => {
  const { port, transmission } = structured();
  transmission.receive(
    Buffer.concat([
      write(1, 512, block(0xab), fua),
      request(COMMAND.read, 2, { ...range, flags: df }),
      request(COMMAND.read, 3),
      request(COMMAND.read, 4, { offsetBytes: 2 ** 20 - 512, lengthBytes: 1024 }),
      request(COMMAND.blockStatus, 5, range),
    ]),
  );
  await settled();
  const message = 'Range 1048064+1024 is not inside the export of 1048576 bytes';
  const said = Buffer.from(message).toString('hex');
  t.equal(
    port.output.toString('hex'),
    [
      `6744669800000000${id(1)}`,
      `668e33ef00010001${id(2)}00000208${at512}${'ab'.repeat(512)}`,
      `668e33ef00010000${id(3)}00000000`,
      `668e33ef00018002${id(4)}0000004a00000016003c${said}0000000000100000`,
      `668e33ef00000005${id(5)}0000000c000000010000020000000001`,
      `668e33ef00010005${id(5)}0000000c000000020000020000000007`,
    ].join(''),
  );
});

t.test('golden bytes of an extended session', async (t) => {
  const { port, transmission } = extendedSetting();
  const asked = encodeStatusFilter({ lengthBytes: 512, contextIds: [2] });
  transmission.receive(
    Buffer.concat([
      extended(COMMAND.write, 1, range, block(0xab)),
      extended(COMMAND.read, 2, range),
      extended(COMMAND.read, 3, { offsetBytes: 512 }),
      extended(COMMAND.blockStatus, 4, { offsetBytes: 512 }, asked),
      extended(99, 5),
      extended(COMMAND.disconnect, 6),
    ]),
  );
  await settled();
  const said = Buffer.from('Command 99 is not known here').toString('hex');
  const header = (flags: string, type: string, cookie: number, at: string, length: string): string =>
    `6e8a278c${flags}${type}${id(cookie)}${at}00000000${length}`;
  t.equal(
    port.output.toString('hex'),
    [
      header('0001', '0000', 1, at512, '00000000'),
      header('0001', '0001', 2, at512, '00000208') + at512 + 'ab'.repeat(512),
      header('0001', '0000', 3, at512, '00000000'),
      header('0001', '8001', 5, id(0), '00000022') + `00000016001c${said}`,
      header('0001', '0006', 4, at512, '00000018') + `0000000200000001${at512}0000000000000007`,
    ].join(''),
  );
  t.equal(port.finishedCount, 1);
});

/** The only reply of an extended session: type, error, and that it repeats the request's offset. */
function onlyError(output: Buffer, sent: Buffer): number {
  const chunk = decodeExtendedChunk(output, 0);
  ok(chunk !== undefined && output.length === 32 + chunk.payloadBytes);
  ok(output.subarray(16, 24).equals(sent.subarray(16, 24)), 'the offset is repeated');
  return chunk.type === 0 ? 0 : output.readUInt32BE(32);
}

t.test('what extended headers do not allow is refused and never reaches the device', (t) => {
  const { EINVAL, ENOSPC, EOVERFLOW, EPERM } = NBD_ERROR;
  const { blockStatus, cache, flush, trim, writeZeroes } = COMMAND;
  const asking = (lengthBytes: number, ...contextIds: number[]): Buffer =>
    extended(blockStatus, 1, {}, encodeStatusFilter({ lengthBytes, contextIds }));
  const beyondSafe = extended(COMMAND.read, 1, { lengthBytes: 512 });
  beyondSafe.writeBigUInt64BE(2n ** 64n - 512n, 16);
  const endless = extended(trim, 1);
  endless.writeBigUInt64BE(2n ** 64n - 512n, 24);
  const some = Buffer.alloc(512);
  const cases: [string, Buffer, number, SettingOptions?][] = [
    ['an offset near 2^64', beyondSafe, EINVAL],
    ['a length near 2^64', endless, EINVAL],
    ['a write without its flag', extended(COMMAND.write, 1, { lengthBytes: 512 }), EINVAL],
    ['a payload behind a read', extended(COMMAND.read, 1, {}, some), EINVAL],
    ['a payload behind a flush', extended(flush, 1, {}, some), EINVAL],
    ['a payload behind an unknown command', extended(99, 1, {}, some), EINVAL],
    ['a write of a read-only export', extended(COMMAND.write, 1, {}, some), EPERM, { readOnly: true }],
    ['8 GiB of zeroes', extended(writeZeroes, 1, { lengthBytes: 2 ** 33 }), ENOSPC],
    ['a read of too much', extended(COMMAND.read, 1, { lengthBytes: 2 ** 33 }), EOVERFLOW],
    ['a status of nothing', extended(blockStatus, 1), EINVAL],
    ['a status across the end', extended(blockStatus, 1, { lengthBytes: 2 ** 33 }), EINVAL],
    ['a status of an unknown context', asking(512, 3), EINVAL],
    ['a status of a context twice', asking(512, 1, 1), EINVAL],
    ['a status of too many contexts', asking(512, 1, 2, 3), EINVAL],
    ['a status of no context', asking(512), EINVAL],
    ['a status of contexts, of nothing', asking(0, 1), EINVAL],
    ['a status of contexts, across the end', asking(2 ** 33, 1), EINVAL],
    ['a status with half an id', extended(blockStatus, 1, {}, Buffer.alloc(14)), EINVAL],
    ['a status that was not agreed on', asking(512, 1), EINVAL, { terms: termsOf('extended') }],
    ['a cache hint across the end', extended(cache, 1, { lengthBytes: 2 ** 33 }), EINVAL],
    ['nothing at all', extended(COMMAND.read, 1, { offsetBytes: 512 }), 0],
    ['a write of nothing', extended(COMMAND.write, 1, { flags: payloadLength }), 0],
  ];
  for (const [name, bytes, error, options] of cases) {
    const { device, port, transmission } = extendedSetting(options);
    transmission.receive(bytes);
    t.equal(onlyError(port.output, bytes), error, name);
    t.same(device.calls, [], `${name}: not sent to the device`);
    const before = port.output.length;
    transmission.receive(extended(COMMAND.read, 2, { lengthBytes: 512 }));
    t.equal(port.output.length - before, 32 + 8 + 512, `${name}: the stream stays in step`);
  }
  const { port, transmission } = extendedSetting({ limits: { payloadBytesMax: 4096 } });
  transmission.receive(extended(COMMAND.write, 1, {}, Buffer.alloc(4097)));
  t.equal(port.hungUp.length, 1, 'a payload beyond the maximum ends the session');
  t.end();
});

t.test('block status: one extent, many, bounded, merged, never beyond the request', async (t) => {
  const many = {
    name: 'x-test:many',
    extents: () => Promise.resolve([0, 0, 1, 1, 0, 2].map((flags) => ({ lengthBytes: 512, flags }))),
  };
  const status = async (lengthBytes: number, flags = 0, limits = {}, context = many): Promise<string> => {
    const { port, transmission } = structured({ terms: termsOf('structured', context), limits });
    transmission.receive(request(COMMAND.blockStatus, 1, { lengthBytes, flags }));
    await settled();
    return port.output
      .subarray(24)
      .toString('hex')
      .replaceAll(/(.{8})(.{8})/g, '$1:$2 ')
      .trim();
  };
  t.equal(await status(3072), '00000400:00000000 00000400:00000001 00000200:00000000 00000200:00000002');
  t.equal(await status(1536), '00000400:00000000 00000200:00000001', 'never beyond the request');
  const long = { ...many, extents: () => Promise.resolve([{ lengthBytes: 2 ** 40, flags: 9 }]) };
  t.equal(await status(512, 0, {}, long), '00000200:00000009', 'an extent that is longer is cut');
  t.equal(await status(3072, requestOne), '00000400:00000000');
  t.equal(await status(512, requestOne), '00000200:00000000');
  t.equal(await status(3072, 0, { extentCountMax: 2 }), '00000400:00000000 00000400:00000001');
});

t.test('a context that breaks its promises is a failed assertion, one that fails an error', async (t) => {
  const broken = [[], [{ lengthBytes: 0, flags: 0 }], [{ lengthBytes: 100, flags: 0 }]];
  for (const extents of broken) {
    const context = { name: 'x-test:broken', extents: () => Promise.resolve(extents) };
    const { port, transmission } = structured({ terms: termsOf('structured', context) });
    transmission.receive(request(COMMAND.blockStatus, 1, range));
    await settled();
    t.equal(port.programmerErrors.length, 1);
    t.equal(port.output.readUInt32BE(20), NBD_ERROR.EIO);
  }
  const context = { name: 'x-test:failing', extents: () => Promise.reject(new Error('it is gone')) };
  const { port, transmission } = structured({ terms: termsOf('structured', context) });
  transmission.receive(request(COMMAND.blockStatus, 1, range));
  await settled();
  t.same(port.programmerErrors, []);
  t.match(port.output.subarray(26).toString(), /^Cannot describe 512 bytes at offset 512: /);
  t.match(port.logged, [/failed: it is gone$/]);
});

t.test('base:allocation asks the device piece by piece and stops where it may', async (t) => {
  const asked: [number, number][] = [];
  const device = new TestDevice();
  Object.defineProperty(device, 'sizeBytes', { value: 2 ** 50 });
  device.extents = (offsetBytes, lengthBytes) => {
    asked.push([offsetBytes, lengthBytes]);
    return Promise.resolve([{ offsetBytes, lengthBytes, hole: false, zero: true }]);
  };
  const context = allocationContext(device);
  const extents = await context.extents(4096, 2 ** 49, 100);
  t.same(extents, [{ lengthBytes: 2 ** 34, flags: 2 }], '64 windows of 256 MiB, merged');
  t.equal(asked.length, 64);
  asked.length = 0;
  const alternating = allocationContext(new TestDevice({ extents: true }));
  t.same(await alternating.extents(0, 2 ** 20, 1), [{ lengthBytes: 2 ** 20, flags: 3 }]);
  t.end();
});

t.test('a large read leaves out zeroes unless it must not be fragmented', async (t) => {
  const size = 64 * 1024;
  const reply = async (
    flags: number,
    fill: (device: TestDevice) => void,
    extents = true,
  ): Promise<string> => {
    const setting = structured({ device: { extents }, limits: { sparseReadBytesMin: size } });
    fill(setting.device);
    setting.transmission.receive(request(COMMAND.read, 1, { offsetBytes: 0, lengthBytes: size, flags }));
    await settled();
    const { output } = setting.port;
    const chunks: string[] = [];
    for (let at = 0; at < output.length; at += 20 + output.readUInt32BE(at + 16)) {
      const isHole = output.readUInt16BE(at + 6) === 2;
      const lengthBytes = isHole ? output.readUInt32BE(at + 28) : output.readUInt32BE(at + 16) - 8;
      const done = output.readUInt16BE(at + 4) === 1 ? ' done' : '';
      chunks.push(`${isHole ? 'hole' : 'data'} ${output.readUInt32BE(at + 24)}+${lengthBytes}${done}`);
      if (!isHole) {
        const from = output.readUInt32BE(at + 24);
        ok(
          output
            .subarray(at + 28, at + 28 + lengthBytes)
            .equals(setting.device.bytes.subarray(from, from + lengthBytes)),
        );
      }
    }
    return chunks.join(', ');
  };
  const middle = (device: TestDevice): void => void device.bytes.fill(1, 4096, 8192);
  const holes = 'hole 0+4096, data 4096+4096, hole 8192+57344 done';
  t.equal(await reply(0, middle), holes);
  t.equal(await reply(df, middle), 'data 0+65536 done');
  t.equal(await reply(0, middle, false), 'data 0+65536 done', 'a device without extents');
  t.equal(await reply(0, () => {}), 'hole 0+65536 done');
  const stripes = (device: TestDevice): void => {
    for (let at = 0; at < size; at += 1024) device.bytes[at] = 1;
  };
  t.equal(await reply(0, stripes), 'data 0+65536 done', 'many small holes are not worth it');
});

t.test('a cache hint reads through, bounded, and holds no change up', async (t) => {
  const device = new TestDevice({ sizeBytes: 8 * 2 ** 20, holds: (call) => call === 'write' });
  const fence = new Fence();
  const first = attach(device, fence);
  const second = attach(device, fence, false, { cacheBytesMax: 3 * 2 ** 20 });
  first.transmission.receive(write(1, 0));
  second.transmission.receive(request(COMMAND.cache, 2, { offsetBytes: 0, lengthBytes: 8 * 2 ** 20 }));
  for (let turn = 0; turn < 4; turn += 1) await settled();
  t.same(device.calls, ['write 0+512', 'read 0+1048576', 'read 1048576+1048576', 'read 2097152+1048576']);
  t.equal(second.port.output.length, 16, 'answered while the write still runs');
  device.finishNext();
});

const asked = encodeStatusFilter({ lengthBytes: 4096, contextIds: [2, 1] });
const streams = {
  structured: Buffer.concat([
    write(1, 0, Buffer.alloc(4096, 'abc')),
    read(2, 512, 2048),
    request(COMMAND.blockStatus, 3, { lengthBytes: 8192 }),
    request(COMMAND.read, 4, { lengthBytes: 16_384, flags: df }),
    request(COMMAND.read, 5, { offsetBytes: 2 ** 20, lengthBytes: 512 }),
    request(COMMAND.cache, 6, { lengthBytes: 4096 }),
    write(7, 2 ** 20, Buffer.alloc(1024, 'x')),
    read(8, 0, 65_536),
    request(COMMAND.disconnect, 9),
  ]),
  extended: Buffer.concat([
    extended(COMMAND.write, 1, {}, Buffer.alloc(4096, 'abc')),
    extended(COMMAND.read, 2, { offsetBytes: 512, lengthBytes: 2048 }),
    extended(COMMAND.blockStatus, 3, { offsetBytes: 512 }, asked),
    extended(COMMAND.blockStatus, 4, { lengthBytes: 8192, flags: requestOne }),
    extended(COMMAND.trim, 5, { lengthBytes: 2 ** 40 }),
    extended(77, 6, {}, Buffer.alloc(100)),
    extended(COMMAND.writeZeroes, 7, { offsetBytes: 1024, lengthBytes: 512 }),
    extended(COMMAND.read, 8, { lengthBytes: 65_536 }),
    extended(COMMAND.disconnect, 9),
  ]),
};

/** Cuts bytes at the given places; each chunk is a copy, since chunks belong to the transmission. */
function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const ends = [0, ...places.map((place) => place % bytes.length), bytes.length].sort((a, b) => a - b);
  return ends.slice(1).map((end, index) => Buffer.from(bytes.subarray(ends[index], end)));
}

/** A session over a sparse device, cut as told; what it sent, sorted by reply, and what the device was asked. */
async function play(mode: 'structured' | 'extended', chunks: readonly Buffer[]): Promise<unknown> {
  const terms = termsOf(mode, dirty, other);
  const limits = { sparseReadBytesMin: 32_768 };
  const { device, port, transmission } = setUp({ terms, limits, device: { extents: true } });
  for (const chunk of chunks) transmission.receive(chunk);
  for (let turn = 0; turn < 4; turn += 1) await settled();
  deepStrictEqual(port.finishedCount, 1);
  return { output: port.output.toString('hex'), calls: device.calls };
}

t.test('any chunking of a stream gives the same replies', async () => {
  for (const mode of ['structured', 'extended'] as const) {
    const whole = await play(mode, cut(streams[mode], []));
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(), { maxLength: 50 }), async (places) => {
        deepStrictEqual(await play(mode, cut(streams[mode], places)), whole);
      }),
      { numRuns: 50 },
    );
    deepStrictEqual(await play(mode, cut(streams[mode], [...streams[mode].keys()])), whole, 'byte by byte');
  }
});

async function finishAll(device: TestDevice): Promise<void> {
  while (device.held.length > 0) device.finishNext();
  await settled();
}

t.test('mutated streams never crash, never hang, never leave the device', async () => {
  for (const mode of ['structured', 'extended'] as const) {
    const stream = streams[mode];
    const change = fc.tuple(fc.nat(stream.length - 1), fc.nat(255));
    const insertion = fc.tuple(fc.nat(stream.length), fc.uint8Array({ maxLength: 30 }));
    const mutation = fc.record({
      changes: fc.array(change, { maxLength: 12 }),
      insertions: fc.array(insertion, { maxLength: 2 }),
      places: fc.array(fc.nat(), { maxLength: 5 }),
      waits: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(mutation, async ({ changes, insertions, places, waits }) => {
        const { device, port, transmission } = setUp({
          terms: termsOf(mode, dirty, other),
          device: { holds: () => waits, extents: true },
          limits: { inFlightCountMax: 3, sparseReadBytesMin: 32_768 },
        });
        let bytes = Buffer.from(stream);
        for (const [at, value] of changes) bytes[at] = value;
        for (const [at, extra] of insertions) {
          bytes = Buffer.concat([bytes.subarray(0, at), extra, bytes.subarray(at)]);
        }
        for (const chunk of cut(bytes, places)) {
          for (let round = 0; round < 60 && transmission.isBlocked; round += 1) await finishAll(device);
          deepStrictEqual(transmission.isBlocked, false, 'it does not stay blocked');
          transmission.receive(chunk);
        }
        transmission.end();
        for (let round = 0; round < 60 && transmission.inFlightCount > 0; round += 1) await finishAll(device);
        deepStrictEqual(port.programmerErrors, []);
        deepStrictEqual(transmission.inFlightCount, 0);
        deepStrictEqual(port.finishedCount + port.hungUp.length, 1, 'it ends, once');
      }),
      { numRuns: 500 },
    );
  }
});
