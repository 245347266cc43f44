/**
 * Goal: what `filling-device.ts` promises: a track is asked of the source once, however many want it; what is written is
 * never replaced by what the source holds; the saved map says only what is durable; and a device that may not be written
 * is read past.
 *
 * Method: a device and a source in memory, each held, failed and recorded, of four tracks and a short fifth one. The
 * source holds `s0` to `s4`, the device zeroes.
 */

import t from 'tap';
import { deferred } from '../base/index.ts';
import { DeviceError, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelled, TEST_TRACK_BYTES as TRACK, turns } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { FillingDevice, type FillingDeviceOptions } from './filling-device.ts';
import { Geometry } from './geometry.ts';
import { labelsOn } from './recovering.fixture.ts';
import type { MapPieces } from './recovery-state.ts';

const SIZE = 4 * TRACK + 1024;
const COUNT = 5;

interface Filled {
  readonly device: FaultyDevice;
  readonly source: FaultyDevice;
  readonly filling: FillingDevice;
  readonly saved: MapPieces[];
  readonly failures: unknown[];
}

async function makeFilled(options: Partial<FillingDeviceOptions> = {}): Promise<Filled> {
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE }));
  const below = new MemoryDevice({ sizeBytes: SIZE });
  for (let track = 0; track < COUNT; track += 1) below.write(sourceTrack(track), track * TRACK);
  const source = new FaultyDevice(below);
  const saved: MapPieces[] = [];
  const failures: unknown[] = [];
  const filling = new FillingDevice({
    device,
    source,
    geometry: new Geometry(SIZE, TRACK),
    missing: TrackSet.all(COUNT),
    saveMap: async (pieces) => {
      saved.push(pieces);
    },
    onDeviceFailed: (error) => failures.push(error),
    mayWrite: () => true,
    ...options,
  });
  return { device, source, filling, saved, failures };
}

function sourceTrack(track: number): Buffer {
  return labelled(`s${track}`, Math.min(TRACK, SIZE - track * TRACK));
}

async function readTrack(device: Pick<FillingDevice, 'read'>, track: number): Promise<Buffer> {
  const content = Buffer.alloc(Math.min(TRACK, SIZE - track * TRACK));
  await device.read(content, track * TRACK);
  return content;
}

/** The tracks that were read of the source, read by read. */
function asked({ source }: Filled): [number, number][] {
  return source.operations.map(({ offsetBytes, lengthBytes }) => [
    offsetBytes / TRACK,
    Math.ceil(lengthBytes / TRACK),
  ]);
}

function mapOf(pieces: MapPieces | undefined): number[] {
  return [...(pieces?.get(0) ?? [])];
}

t.test('many that want a track at once: the source is asked once', async (t) => {
  const filled = await makeFilled();
  const { filling, source, device } = filled;
  const gate = source.hold({ kind: 'read' });
  const part = Buffer.alloc(512);
  const all = [
    filling.bringIn({ first: 2, count: 1 }),
    filling.read(part, 2 * TRACK + 512),
    readTrack(filling, 2),
    filling.write(labelled('w', 512), 2 * TRACK),
    filling.makeReadyFor(2 * TRACK + 1024, 512),
    filling.offer(2, labelled('m')),
  ];
  await gate.arrived(1);
  await turns(2);
  t.equal(gate.waitingCount, 1);
  gate.open();
  const offered = (await Promise.all(all.map(async (one) => one))).at(-1);
  t.same(asked(filled), [[2, 1]]);
  t.equal(offered, false, 'the medium comes too late');
  t.ok(part.equals(sourceTrack(2).subarray(512, 1024)));
  const wanted = sourceTrack(2);
  labelled('w', 512).copy(wanted);
  t.ok((await readTrack(device, 2)).equals(wanted));
  t.equal(filling.missingCount, COUNT - 1);
  t.equal(filling.askedCount, 0);
});

t.test('tracks in a row are read as one, around what is busy or there', async (t) => {
  const filled = await makeFilled();
  const { filling } = filled;
  await filling.write(labelled('w'), TRACK);
  await filling.bringIn({ first: 0, count: COUNT });
  t.same(asked(filled), [
    [0, 1],
    [2, 3],
  ]);
  t.same(await labelsOn(filled.device), ['s0', 'w', 's2', 's3', 's4']);
});

t.test('a change of whole tracks asks nothing of the source', async (t) => {
  const filled = await makeFilled();
  const { filling, device } = filled;
  await filling.write(labelled('w', 2 * TRACK), 0);
  await filling.writeZeroes(2 * TRACK, TRACK);
  await filling.trim(3 * TRACK, TRACK);
  // The last one is whole at 1024 bytes.
  await filling.write(labelled('x', 1024), 4 * TRACK);
  t.same(asked(filled), []);
  t.equal(filling.missingCount, 0);
  t.same(await labelsOn(device), ['w', 'w', '0', '0', 'x']);
});

t.test('a change over the borders of tracks asks for those that it covers in part', async (t) => {
  const filled = await makeFilled();
  const { filling, device } = filled;
  await filling.write(labelled('w', 2 * TRACK + 512), TRACK - 512);
  t.same(asked(filled), [[0, 1]], 'up to the end of the third');
  await filling.writeZeroes(4 * TRACK + 512, 512);
  t.same(asked(filled).at(-1), [4, 1], 'the tail of the short one');
  const content = Buffer.alloc(SIZE);
  await device.read(content, 0);
  const wanted = Buffer.concat([
    sourceTrack(0).subarray(0, TRACK - 512),
    labelled('w', 2 * TRACK + 512),
    Buffer.alloc(TRACK),
    sourceTrack(4).subarray(0, 512),
    Buffer.alloc(512),
  ]);
  t.ok(content.equals(wanted), 'only what was asked for has come');
  t.same(filling.missing().toArray(), [3]);
});

t.test('a whole track written while it is being brought in stays what was written', async (t) => {
  for (const where of ['source', 'device'] as const) {
    const filled = await makeFilled();
    const { filling } = filled;
    const gate = filled[where].hold({ kind: where === 'source' ? 'read' : 'write' });
    const fetch = filling.bringIn({ first: 1, count: 1 });
    await gate.arrived(1);
    t.notOk(filling.isReadyFor(TRACK, TRACK), 'it is busy');
    const write = filling.write(labelled('w'), TRACK);
    await turns(2);
    gate.open();
    await Promise.all([fetch, write]);
    t.same((await labelsOn(filled.device))[1], 'w', `held at the ${where}`);
  }
});

t.test('nobody brings in a track that is being written', async (t) => {
  const filled = await makeFilled();
  const { filling, device } = filled;
  const gate = device.hold({ kind: 'write' });
  const write = filling.write(labelled('w'), TRACK);
  // In the same breath: the change came first.
  const others = [
    filling.bringIn({ first: 1, count: 1 }),
    readTrack(filling, 1),
    filling.offer(1, undefined),
  ];
  await gate.arrived(1);
  await turns(2);
  gate.open();
  const [, content] = await Promise.all([...others, write]);
  t.ok(Buffer.isBuffer(content) && content.equals(labelled('w')));
  t.same(asked(filled), []);
  t.same((await labelsOn(device))[1], 'w');
});

t.test('a failed write of a whole track leaves it missing', async (t) => {
  const filled = await makeFilled();
  const { filling, device } = filled;
  const rule = device.fail({ kind: 'write' });
  await t.rejects(Promise.resolve(filling.write(labelled('w'), TRACK)), { code: 'io' });
  rule.remove();
  t.ok(filling.missing().has(1));
  t.ok(filling.isReadyFor(TRACK, TRACK), 'and not busy');
  t.ok((await readTrack(filling, 1)).equals(sourceTrack(1)));
  t.same(filled.failures, [], "it is the caller's");
});

t.test('a source that fails leaves a track missing, and is asked again', async (t) => {
  const filled = await makeFilled();
  const { filling, source, device } = filled;
  const rule = source.fail({ kind: 'read' });
  await t.rejects(readTrack(filling, 1), { code: 'io' });
  await t.rejects(Promise.resolve(filling.write(labelled('w', 512), TRACK)), { code: 'io' });
  await filling.write(labelled('w'), 2 * TRACK);
  rule.remove();
  t.ok((await readTrack(filling, 1)).equals(sourceTrack(1)));
  t.same((await labelsOn(device))[2], 'w', 'whole tracks need no source');
  t.equal(filling.askedCount, 0);
  t.same(filled.failures, []);
});

t.test('a medium: what is missing is taken, zeroes too, what is there is passed over', async (t) => {
  const filled = await makeFilled();
  const { filling, device } = filled;
  await filling.write(labelled('old', SIZE), 0);
  const again = await makeFilled({ device });
  await again.filling.write(labelled('w'), 0);
  t.equal(await again.filling.offer(0, labelled('m')), false);
  t.equal(await again.filling.offer(1, labelled('m')), true);
  t.equal(await again.filling.offer(2, undefined), true);
  t.equal(await again.filling.offer(2, labelled('m')), false);
  t.equal(await again.filling.offer(4, labelled('m', 1024)), true);
  t.same(await labelsOn(device), ['w', 'm', '0', 'old', 'm']);
  t.same(asked(again), []);
});

t.test('while the device may not be written, what is missing is read past it', async (t) => {
  let mayWrite = true;
  const filled = await makeFilled({ mayWrite: () => mayWrite });
  const { filling, device } = filled;
  await filling.write(labelled('w'), TRACK);
  mayWrite = false;
  device.forgetOperations();
  const content = Buffer.alloc(SIZE - 1024);
  await filling.read(content, 512);
  const whole = Buffer.concat(
    [0, 1, 2, 3, 4].map((track) => (track === 1 ? labelled('w') : sourceTrack(track))),
  );
  t.ok(content.equals(whole.subarray(512, SIZE - 512)));
  t.notOk(device.operations.some(({ kind }) => kind !== 'read'));
  t.equal(filling.missingCount, COUNT - 1);
});

t.test('a device without room is told of, and what it cannot take is read past it', async (t) => {
  const filled = await makeFilled();
  const { filling, device } = filled;
  device.fail({ kind: 'write' }, new DeviceError('no-space', 'No space is left', { device: 'test' }));
  t.ok((await readTrack(filling, 1)).equals(sourceTrack(1)));
  t.equal(filled.failures.length, 1);
  t.ok(filling.missing().has(1));
  await t.rejects(filling.bringIn({ first: 2, count: 1 }), { code: 'no-space' });
});

t.test("a flush saves the map of what was there when it began, after the device's flush", async (t) => {
  const beside = deferred();
  const filled = await makeFilled({ flushBeside: () => beside.promise });
  const { filling, device, saved } = filled;
  await filling.write(labelled('w'), TRACK);
  const gate = device.hold({ kind: 'flush' });
  const flush = filling.flush();
  await gate.arrived(1);
  await filling.write(labelled('w'), 2 * TRACK);
  await turns(2);
  t.same(saved, [], 'nothing is durable yet');
  const second = filling.flush();
  await turns(2);
  t.equal(gate.waitingCount, 1, 'the next one waits for it');
  gate.open();
  await turns(2);
  t.same(saved, [], 'nor is what lies beside');
  beside.resolve();
  await flush;
  t.same(saved.map(mapOf), [[1]], 'not what came later');
  await second;
  t.same(saved.map(mapOf), [[1], [1, 2]]);
  await filling.flush();
  t.equal(saved.at(-1)?.size, 0, 'nothing has changed');
});

t.test('what is under way is not in the map', async (t) => {
  const { filling, device, saved } = await makeFilled();
  const gate = device.hold({ kind: 'write' });
  const write = filling.write(labelled('w'), TRACK);
  const fetch = filling.bringIn({ first: 3, count: 1 });
  await gate.arrived(2);
  await filling.flush();
  t.same(saved.map(mapOf), [[]]);
  gate.open();
  await Promise.all([write, fetch]);
  await filling.flush();
  t.same(mapOf(saved.at(-1)), [1, 3]);
});

t.test('flushes that overlap save the map in order', async (t) => {
  const { filling, saved } = await makeFilled();
  const order: string[] = [];
  const held = deferred();
  let savingCount = 0;
  const again = await makeFilled({
    saveMap: async (pieces) => {
      savingCount += 1;
      t.equal(savingCount, 1, 'one at a time');
      if (order.length === 0) await held.promise;
      order.push(mapOf(pieces).join());
      savingCount -= 1;
    },
  });
  await filling.flush();
  t.equal(saved.length, 1);
  await again.filling.write(labelled('w'), 0);
  const first = again.filling.flush();
  await turns(2);
  await again.filling.write(labelled('w'), TRACK);
  const second = again.filling.flush();
  await turns(2);
  held.resolve();
  await Promise.all([first, second]);
  t.same(order, ['0', '0,1']);
});

t.test('after a flush that failed none succeeds, and no map is saved', async (t) => {
  const { filling, device, saved } = await makeFilled();
  await filling.write(labelled('w'), TRACK);
  device.fail({ kind: 'flush', nth: 1 });
  await t.rejects(filling.flush(), { code: 'io' });
  await t.rejects(filling.flush(), { code: 'io' });
  t.same(saved, []);
});

t.test('what is missing is data, the rest is what the device says', async (t) => {
  const { filling } = await makeFilled({
    device: new MemoryDevice({ sizeBytes: SIZE }),
  });
  await filling.writeZeroes(TRACK, TRACK);
  await filling.writeZeroes(3 * TRACK, TRACK + 1024);
  const told = await filling.extents(512, SIZE - 1024);
  let at = 512;
  const kinds: string[] = [];
  for (const { offsetBytes, lengthBytes, zero, hole } of told) {
    t.equal(offsetBytes, at, 'no gaps');
    t.ok(lengthBytes > 0);
    at += lengthBytes;
    kinds.push(`${lengthBytes} ${zero ? 'zero' : 'data'}${hole ? ' hole' : ''}`);
  }
  t.equal(at, SIZE - 512);
  t.same(kinds, [`${TRACK - 512} data`, `${TRACK} zero hole`, `${TRACK} data`, `${TRACK + 512} zero hole`]);
});

t.test('whoever waits for a track comes before the fill', async (t) => {
  const { filling, source } = await makeFilled();
  await filling.whenUnasked();
  const gate = source.hold({ kind: 'read' });
  const read = readTrack(filling, 0);
  await gate.arrived(1);
  let isUnasked = false;
  const unasked = filling.whenUnasked().then(() => (isUnasked = true));
  await turns(2);
  t.equal(filling.askedCount, 1);
  t.notOk(isUnasked);
  gate.open();
  await read;
  await unasked;
  t.equal(filling.askedCount, 0);
});
