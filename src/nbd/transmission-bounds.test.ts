/**
 * Goal: the transmission stays within its bounds without ever standing still (promises 8 and 9), ends cleanly,
 * and nothing a dead connection had in flight lands on top of a later write.
 *
 * Method: the machine alone over devices that hold calls, so that the test decides when each one finishes.
 */

import t from 'tap';
import { NBD_ERROR } from './codec.ts';
import { Fence } from './fence.ts';
import { TestDevice } from './test-device.ts';
import { attach, block, flush, read, setUp, settled, statuses, write, zeroes } from './test-transmission.ts';

t.test('beyond the requests in flight no input is taken, and it goes on by itself', async (t) => {
  const { device, port, transmission } = setUp({
    device: { holds: () => true },
    limits: { inFlightCountMax: 4 },
  });
  const reads = Array.from({ length: 10 }, (_, index) => read(index, index * 512));
  transmission.receive(Buffer.concat(reads));
  t.ok(transmission.isBlocked);
  t.equal(device.held.length, 4);
  device.finishNext();
  await settled();
  t.equal(device.held.length, 4, 'one finished, one begins');
  t.equal(port.resumedCount, 0, 'still blocked by the rest of the chunk');
  while (device.held.length > 0) {
    device.finishNext();
    await settled();
  }
  t.equal(device.calls.length, 10);
  t.equal(port.resumedCount, 1);
  t.equal(port.output.length, 10 * 528);
});

t.test('payload bytes in flight are bounded, and a single large request always fits', async (t) => {
  const { device, transmission } = setUp({
    device: { holds: () => true },
    limits: { inFlightBytesMax: 1024 },
  });
  transmission.receive(Buffer.concat([write(1, 0, Buffer.alloc(2048)), read(2, 0, 512)]));
  t.equal(device.held.length, 1);
  t.ok(transmission.isBlocked);
  device.finishNext();
  await settled();
  t.equal(device.held.length, 1);
  device.finishNext();
});

t.test('writes that wait for a backup do not stop the reads behind them', async (t) => {
  const { device, port, transmission } = setUp({
    device: { holds: (call) => call === 'write' },
    limits: { inFlightCountMax: 2, waitingBytesMax: 2048 },
  });
  const waiting = (cookie: number): void => {
    transmission.receive(write(cookie, cookie * 512));
    device.held.at(-1)?.options.onWaiting?.();
  };
  for (const cookie of [1, 2, 3]) waiting(cookie);
  transmission.receive(Buffer.concat([read(10, 0), read(11, 0), read(12, 0)]));
  t.equal(port.output.length, 3 * 528, 'reads go on although more writes wait than may run');
  t.notOk(transmission.isBlocked);
  waiting(4);
  transmission.receive(read(13, 0));
  t.ok(transmission.isBlocked, 'up to the stated number of waiting bytes');
  device.held[0]?.options.onResumed?.();
  await settled();
  t.notOk(transmission.isBlocked, 'and on as soon as one goes on');
  t.equal(port.output.length, 4 * 528);
  while (device.held.length > 0) device.finishNext();
  await settled();
  t.equal(port.output.length, 4 * 528 + 4 * 16);
  t.ok(device.bytes.subarray(512, 2560).equals(Buffer.concat([1, 2, 3, 4].map(block))));
});

t.test('waiting requests without bytes are counted too', (t) => {
  const { device, transmission } = setUp({
    device: { holds: (call) => call === 'zeroes' },
    limits: { waitingCountMax: 2 },
  });
  for (const cookie of [1, 2]) {
    transmission.receive(zeroes(cookie));
    device.held.at(-1)?.options.onWaiting?.();
  }
  transmission.receive(read(3, 0));
  t.ok(transmission.isBlocked);
  t.end();
});

t.test('a client that does not take its replies is not read', async (t) => {
  const { device, port, transmission } = setUp({ limits: { replyBytesMax: 1000 } });
  port.takes = false;
  transmission.receive(Buffer.concat(Array.from({ length: 6 }, (_, index) => read(index, 0))));
  t.ok(transmission.isBlocked);
  t.equal(device.calls.length, 2, 'the replies of two reads fill the bound');
  transmission.outputDrained();
  await settled();
  t.equal(device.calls.length, 2, 'a little room is no room');
  port.unsent = 400;
  transmission.outputDrained();
  await settled();
  t.equal(device.calls.length, 4);
  port.takes = true;
  port.unsent = 0;
  transmission.outputDrained();
  await settled();
  t.notOk(transmission.isBlocked);
  t.equal(port.output.length, 6 * 528);
});

t.test('refusals fill the bound of replies too', (t) => {
  const { port, transmission } = setUp({ limits: { replyBytesMax: 64 } });
  port.takes = false;
  transmission.receive(Buffer.concat(Array.from({ length: 100 }, (_, index) => read(index, 1))));
  t.ok(transmission.isBlocked);
  t.equal(port.output.length, 64);
  t.end();
});

t.test('many writes that wait keep their own bytes, and only one keeps the input in memory', async (t) => {
  const { device, transmission } = setUp({ device: { holds: (call) => call === 'write' } });
  const sources = new Set<ArrayBufferLike>();
  const writeToDevice = device.write.bind(device);
  device.write = (source, ...rest) => {
    sources.add(source.buffer);
    return writeToDevice(source, ...rest);
  };
  const count = 40;
  for (let round = 0; round < 2; round += 1) {
    sources.clear();
    const writes = Array.from({ length: count }, (_, index) => write(index + round, index * 512));
    transmission.receive(Buffer.concat(writes));
    t.equal(device.held.length, count);
    t.equal(sources.size, count, 'one keeps the input, the others were copied');
    t.ok(transmission.keepsInput);
    while (device.held.length > 0) device.finishNext();
    await settled();
    const expected = Array.from({ length: count }, (_, index) => block(index + round));
    t.ok(device.bytes.subarray(0, count * 512).equals(Buffer.concat(expected)));
  }
});

t.test(
  'the end of the stream, half a request behind it, and a shutdown answer what is in flight',
  async (t) => {
    const ended = setUp({ device: { holds: () => true } });
    ended.transmission.receive(Buffer.concat([write(1, 0), read(2, 0).subarray(0, 20)]));
    ended.transmission.end();
    t.equal(ended.port.finishedCount, 0);
    ended.device.finishNext();
    await settled();
    t.equal(ended.port.output.length, 16);
    t.equal(ended.port.finishedCount, 1);

    const closing = setUp({ device: { holds: () => true }, limits: { inFlightCountMax: 1 } });
    closing.transmission.receive(Buffer.concat([write(1, 0), write(2, 0), read(3, 0)]));
    closing.transmission.shutdown();
    await settled();
    t.same(
      statuses(closing.port.output),
      [
        [2, NBD_ERROR.ESHUTDOWN],
        [3, NBD_ERROR.ESHUTDOWN],
      ],
      'new requests are refused at once',
    );
    closing.transmission.receive(flush(4));
    t.equal(closing.port.finishedCount, 0, 'what is in flight is waited for');
    closing.device.finishNext();
    await settled();
    t.same(statuses(closing.port.output).slice(2), [
      [4, NBD_ERROR.ESHUTDOWN],
      [1, 0],
    ]);
    t.equal(closing.port.finishedCount, 1);
  },
);

t.test('a dead connection leaves an orphan that overlapping changes and flushes wait for', async (t) => {
  const device = new TestDevice({ holds: (call, offsetBytes) => call === 'write' && offsetBytes === 0 });
  const fence = new Fence();
  const old = attach(device, fence);
  old.transmission.receive(write(1, 0, block(1)));
  old.transmission.abort();
  let isIdle = false;
  void old.transmission.whenIdle().then(() => (isIdle = true));

  const fresh = attach(device, fence);
  fresh.transmission.receive(
    Buffer.concat([write(2, 0, Buffer.alloc(1024, 2)), write(3, 512, block(3)), flush(4)]),
  );
  fresh.transmission.receive(write(5, 4096, block(5)));
  fresh.transmission.receive(read(6, 0));
  await settled();
  t.same(device.calls, ['write 0+512', 'write 512+512', 'write 4096+512', 'read 0+512']);
  t.equal(fresh.transmission.inFlightCount, 2, 'the overlapping write and the flush are held');
  t.notOk(isIdle);
  device.finishNext();
  await settled();
  t.ok(isIdle);
  t.same(device.calls.slice(4), ['write 0+1024', 'flush 0+0']);
  device.finishNext();
  await settled();
  t.equal(fresh.transmission.inFlightCount, 0);
  t.equal(device.bytes[0], 2, 'the later write is on top');
  t.equal(old.port.output.length, 0, 'nobody is told about the orphan');
  t.equal(fence.changeCount, 0);
});

t.test('a dead connection does not begin what was held or not yet admitted', async (t) => {
  const device = new TestDevice({ holds: () => true });
  const fence = new Fence();
  const first = attach(device, fence);
  const second = attach(device, fence, false, { inFlightCountMax: 1 });
  const third = attach(device, fence);
  first.transmission.receive(write(1, 0, block(1)));
  second.transmission.receive(write(2, 0, block(2)));
  second.transmission.receive(Buffer.concat([read(3, 0), write(4, 512)]));
  third.transmission.receive(write(5, 0, block(5)));
  t.same(device.calls, ['write 0+512', 'read 0+512']);
  second.transmission.abort();
  device.finishNext();
  await settled();
  t.same(device.calls, ['write 0+512', 'read 0+512', 'write 0+512'], 'only the third one goes on');
  while (device.held.length > 0) device.finishNext();
  await settled();
  t.equal(device.bytes[0], 5);
  t.equal(fence.changeCount, 0);
});

t.test('changes of living connections that overlap run one after another, flushes do not wait', async (t) => {
  const device = new TestDevice({ holds: (call) => call === 'write' });
  const fence = new Fence();
  const first = attach(device, fence);
  const second = attach(device, fence);
  first.transmission.receive(write(1, 0, block(1)));
  second.transmission.receive(Buffer.concat([write(2, 0, block(2)), flush(3)]));
  await settled();
  t.same(device.calls, ['write 0+512', 'flush 0+0']);
  t.same(statuses(second.port.output), [[3, 0]]);
  device.finishNext();
  await settled();
  device.finishNext();
  await settled();
  t.equal(device.bytes[0], 2);
});

t.test('a client found dead by its replies does not begin what it had sent behind', async (t) => {
  const { device, port, transmission } = setUp({
    device: { holds: () => true },
    limits: { inFlightCountMax: 1 },
  });
  transmission.receive(Buffer.concat([write(1, 0), write(2, 0)]));
  port.send = () => {
    port.broken = true;
  };
  device.finishNext();
  await settled();
  t.equal(device.calls.length, 1);
  transmission.abort();
  await transmission.whenIdle();
});
