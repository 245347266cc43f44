/**
 * Goal: what the delta store promises to whoever writes: order, who waits and for how long, what a lost member means,
 * what is durable when, what it says of tracks.
 *
 * Method: stores over directories and over devices that are held and fail as told. Orders are asserted on lists of what
 * happened.
 */

import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { deferred, ManualClock, observeSyncs, present } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { DeltaReader, DeltaStore } from './index.ts';
import { DeltaWorld, SEGMENT_BYTES, TRACK_BYTES, VOLUME_ID } from './world.fixture.ts';

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

t.test('a small write to directories is done at once, and read by another', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'directory'] });
  await world.open();
  const done = world.store.append({ kind: 'write', source: Buffer.alloc(4096, 7) }, 8192, 4096);
  t.equal(done, undefined);
  t.equal(world.store.append({ kind: 'zeroes' }, 0, 4096), undefined);
  const reader = await world.reader();
  const records = [];
  for await (const { kind, offsetBytes, lengthBytes } of reader.records(''))
    records.push([kind, offsetBytes, lengthBytes]);
  t.same(records, [
    ['point', 0, 0],
    ['flush', 0, 0],
    ['write', 8192, 4096],
    ['zeroes', 0, 4096],
  ]);
  t.same(reader.volume.sizeBytes, 40 * TRACK_BYTES + 4096);
  await reader.close();
});

t.test('an append is acknowledged when the slowest member has it', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'device'] });
  await world.open();
  const gate = world.device(1).hold({ kind: 'write' });
  let isDone = false;
  const appended = world.append(0, TRACK_BYTES, 'write').then(() => {
    isDone = true;
  });
  await gate.arrived(1);
  await turn();
  t.notOk(isDone);
  const flushed = world.flush();
  gate.open();
  await appended;
  await flushed;
  t.ok(isDone);
});

t.test('what only the others have is acknowledged when the loss is durable', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'device'] });
  const told = deferred();
  const events: string[] = [];
  const store = await DeltaStore.open({
    volumeId: VOLUME_ID,
    volumeName: 'v',
    trackSizeBytes: TRACK_BYTES,
    sizeBytes: () => 64 * TRACK_BYTES,
    startPoint: '',
    isNew: true,
    members: world.places,
    lostMembers: [],
    registry: world.registry,
    clock: new ManualClock(),
    segmentBytes: SEGMENT_BYTES,
    onMemberLost: async (place) => {
      events.push(`lost ${place === world.places[1]?.place}`);
      await told.promise;
      events.push('durable');
    },
  });
  world.device(1).fail({ kind: 'write' });
  const write = async (name: string): Promise<void> => {
    await store.append({ kind: 'write', source: Buffer.alloc(512) }, 0, 512);
    events.push(name);
  };
  const first = write('first');
  const second = write('second');
  await turn();
  await turn();
  t.same(events, ['lost true']);
  told.resolve();
  await Promise.all([first, second]);
  t.same(events, ['lost true', 'durable', 'first', 'second']);
  t.match(store.status().members, [{ state: 'healthy' }, { state: 'lost', reason: /./ }]);
  await store.flush();
  await store.close();
});

t.test('without a member nothing is taken', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['device'] });
  await world.open();
  world.device(0).fail({ kind: 'write' });
  await t.rejects(world.append(0, 512, 'write'), /No delta member is left of 1/);
  await t.rejects(world.append(0, 512, 'write'), /No delta member is left of 1/);
  await t.rejects(world.store.flush(), /No delta member is left of 1/);
  t.same([...world.lost], [world.places[0]?.place]);
});

t.test('a member whose sync fails is lost, and the flush is the others', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'device'] });
  await world.open();
  world.device(1).fail({ kind: 'flush', nth: 1 });
  await world.append(0, 512, 'write');
  await world.flush();
  t.same([...world.lost], [world.places[1]?.place]);
});

t.test('where all members are full, writes wait until logs go', async (t) => {
  const bytesMax = 16 * SEGMENT_BYTES;
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'], bytesMax });
  await world.open();
  const waiting: number[] = [];
  const done: number[] = [];
  const writes = Array.from({ length: 60 }, (_, index) => {
    const source = Buffer.alloc(TRACK_BYTES, index + 1);
    const appended = world.store.append({ kind: 'write', source }, 0, TRACK_BYTES, () => waiting.push(index));
    return Promise.resolve(appended).then(() => done.push(index));
  });
  while (waiting.length === 0) await turn();
  await turn();
  const before = done.length;
  t.ok(before > 30 && before < 60, `${before} of 60 found room`);
  t.same(
    waiting,
    Array.from({ length: 60 - before }, (_, index) => before + index),
    'the others are told once',
  );
  t.equal(world.store.status().writesWaiting, 60 - before);
  t.ok(world.store.status().bytesUsed <= bytesMax);
  await world.store.flush();
  t.equal(world.store.status().writesWaiting, 60 - before, 'a flush does not wait for them');
  const room = world.store.whenRoom(TRACK_BYTES);
  t.equal(world.store.status().writesWaiting, 61 - before, 'and who asks for room first is counted too');
  await world.store.prepareSwitch();
  world.store.switchTo('p1', 0);
  await world.store.release('p1', 0);
  await Promise.all([...writes, room]);
  t.equal(world.store.status().writesWaiting, 0);
  t.same(
    done,
    Array.from({ length: 60 }, (_, index) => index),
    'in the order of their calls',
  );
  const reader = await world.reader();
  t.same(
    reader.points.map(({ point }) => point),
    ['p1'],
  );
  await reader.close();
});

t.test('a store that is full is opened again, and again after a kill', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'], bytesMax: 16 * SEGMENT_BYTES });
  await world.open();
  const waiting: number[] = [];
  const appended: unknown[] = [];
  const source = Buffer.alloc(TRACK_BYTES, 1);
  const change = { kind: 'write', source } as const;
  while (waiting.length === 0) {
    appended.push(world.store.append(change, 0, TRACK_BYTES, () => waiting.push(appended.length)));
    await turn();
  }
  const refused = Promise.allSettled(appended);
  for (let round = 0; round < 3; round += 1) {
    if (round === 0) await world.store.close();
    else await world.crash('kill');
    await world.open();
    t.match(world.store.status(), { members: [{ state: 'healthy' }] }, `opened again, round ${round}`);
  }
  await refused;
  await world.store.prepareSwitch();
  world.store.switchTo('p1', 0);
  await world.store.release('p1', 0);
  await world.store.whenRoom(TRACK_BYTES);
  t.ok(world.store.hasRoomFor(TRACK_BYTES), 'a backup makes room as ever');
});

t.test('a member whose directory is deleted is found to be gone, without a change', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'directory'] });
  await world.open();
  await world.store.append({ kind: 'write', source: Buffer.alloc(TRACK_BYTES, 1) }, 0, TRACK_BYTES);
  await world.store.prepareSwitch();
  world.store.switchTo('p1', 0);
  await world.store.flush();
  await world.store.release('p1', 0);
  await world.store.look();
  t.same([...world.lost], [], 'all are there');
  const place = present(world.places[1], 'A second member').place;
  rmSync(place, { recursive: true });
  await world.store.look();
  t.same([...world.lost], [place]);
  t.match(world.store.status(), { members: [{ state: 'healthy' }, { state: 'lost', reason: /gone/ }] });
});

t.test('a member that is full while another has room is lost', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'directory'] });
  const [first, second] = world.places;
  const store = await DeltaStore.open({
    volumeId: VOLUME_ID,
    volumeName: 'v',
    trackSizeBytes: TRACK_BYTES,
    sizeBytes: () => 64 * TRACK_BYTES,
    startPoint: '',
    isNew: true,
    members: [{ place: first?.place ?? '' }, { place: second?.place ?? '', bytesMax: 6 * SEGMENT_BYTES }],
    lostMembers: [],
    registry: world.registry,
    clock: new ManualClock(),
    segmentBytes: SEGMENT_BYTES,
    onMemberLost: () => Promise.resolve(),
  });
  t.equal(store.status().bytesMax, 6 * SEGMENT_BYTES);
  for (let count = 0; count < 40; count += 1)
    await store.append({ kind: 'write', source: Buffer.alloc(TRACK_BYTES) }, 0, TRACK_BYTES);
  t.match(store.status().members[1], { state: 'lost', reason: /has no room while others have some/ });
  await store.close();
});

t.test('records are numbered without gaps, also over restarts, and time does not go back', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['device'] });
  world.clock.advance(5000);
  for (let life = 0; life < 3; life += 1) {
    await world.open();
    await world.append(0, 512, 'write');
    await world.flush();
    await (life === 1 ? world.crash('kill') : world.close());
    world.clock.advance(-1000);
  }
  const reader = await world.reader();
  let last = 0;
  let lastMs = 0;
  for await (const { sequence, timeMs } of reader.records('')) {
    t.equal(sequence, last + 1);
    t.ok(timeMs >= lastMs);
    last = sequence;
    lastMs = timeMs;
  }
  t.ok(last >= 9);
  await reader.close();
});

t.test('a restart without changes leaves no log behind', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'] });
  const directory = join(world.places[0]?.place ?? '', VOLUME_ID);
  for (let life = 0; life < 3; life += 1) {
    await world.open();
    await world.close();
  }
  t.same(readdirSync(directory), ['0000000001-0.delta']);
});

t.test('flushes are shared by those who came before the sync', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'] });
  await world.open();
  let syncs = 0;
  observeSyncs({
    before: ({ kind }) => {
      if (kind === 'file') syncs += 1;
      return 'perform';
    },
  });
  t.teardown(() => observeSyncs(undefined));
  const flushes = Array.from({ length: 20 }, async () => {
    await world.append(0, 512, 'write');
    await world.store.flush();
  });
  await Promise.all(flushes);
  t.ok(syncs <= 2, `${syncs} syncs`);
  await world.store.flush();
  t.ok(syncs <= 2, 'nothing new, no sync');
});

t.test('what is whole is told from the open epoch and from the closed ones', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'] });
  await world.open();
  await world.append(0, TRACK_BYTES / 2, 'write');
  await world.append(TRACK_BYTES, TRACK_BYTES, 'zeroes');
  await world.switchTo('p1');
  await world.append(TRACK_BYTES / 2, TRACK_BYTES / 2, 'write');
  const { store } = world;
  t.same(store.wholeTracks('', 'closed')?.toArray(), [1]);
  t.same(store.wholeTracks('', 'now')?.toArray(), [0, 1], 'halves of two epochs are a whole');
  t.same(store.wholeTracks('p1', 'closed')?.toArray(), []);
  t.same(store.touchedTracks('p1')?.toArray(), [0]);
  t.equal(store.wholeTracks('p0', 'now'), undefined);
  await world.flush();
  await world.close();
  await world.open();
  t.same(world.store.wholeTracks('', 'closed')?.toArray(), [1], 'the same after a restart');
  t.same(world.store.wholeTracks('', 'now')?.toArray(), [0, 1]);
});

t.test('logs that begin in the middle of an epoch reach back to no point', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory'] });
  world.points.push({ point: 'p1', sequence: 0 });
  await world.open();
  t.ok(world.store.hasGap);
  await world.append(0, TRACK_BYTES, 'write');
  t.equal(world.store.wholeTracks('p1', 'now'), undefined);
  await world.switchTo('p2');
  t.same(world.store.wholeTracks('p2', 'now')?.toArray(), []);
});

t.test('a member that is empty, or gone, is lost beside one that is not', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'directory', 'directory'] });
  await world.open();
  await world.append(0, TRACK_BYTES, 'write');
  await world.flush();
  await world.close();
  rmSync(join(world.places[0]?.place ?? '', VOLUME_ID), { recursive: true });
  rmSync(world.places[1]?.place ?? '', { recursive: true });
  await world.open();
  t.match(world.store.status().members, [
    { state: 'lost', reason: /lacks log 1/ },
    { state: 'lost', reason: /cannot be used: ENOENT/ },
    { state: 'healthy' },
  ]);
});

t.test('a device that holds something else is not taken', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['device'] });
  const device = await new DeviceRegistry().open(world.places[0]?.place ?? '', {
    readOnly: false,
    syncName: 'delta',
  });
  await device.write(Buffer.alloc(512, 1), 0);
  await device.close();
  await world.open();
  t.match(world.store.status().members, [{ state: 'lost', reason: /holds something else/ }]);
});

t.test('logs of another volume are refused', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['device', 'directory'] });
  await world.open();
  await world.close();
  const registry = new DeviceRegistry();
  for (const { place } of world.places) {
    await t.rejects(DeltaReader.open([place], { registry, volumeId: 'f'.repeat(32) }), /wanted/);
    const reader = await DeltaReader.open([place], { registry });
    t.equal(reader.volume.volumeId, VOLUME_ID, 'without a name there is only one');
    await reader.close();
  }
});

t.test('a member that was being made anew is a part, and known as one', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'directory'] });
  await world.open();
  for (let track = 0; track < 20; track += 1) await world.append(track * TRACK_BYTES, TRACK_BYTES, 'write');
  await world.flush();
  await world.close();
  world.lost.add(world.places[1]?.place ?? '');
  await world.open();
  const abort = new AbortController();
  abort.abort();
  await t.rejects(world.store.recreate(world.places[1]?.place ?? '', abort.signal), /was cancelled/);
  t.equal(world.store.status().members[1]?.state, 'lost');
  await t.rejects(world.reader([world.places[1]?.place ?? '']), /is a part of what it was to become/);
  const reader = await world.reader();
  t.ok((await world.composed(reader, world.imageAt(0), '')).equals(world.imageAt(Number.POSITIVE_INFINITY)));
  await reader.close();
  await world.store.recreate(world.places[1]?.place ?? '');
  t.equal(world.store.status().members[1]?.state, 'healthy');
});

t.test('compaction leaves the newest content, and says what it gave up', async (t) => {
  const world = new DeltaWorld(t, { seed: 1, kinds: ['directory', 'device'] });
  await world.open();
  for (let count = 0; count < 60; count += 1) {
    world.clock.advance(1000);
    await world.append((count % 3) * TRACK_BYTES, TRACK_BYTES, 'write');
  }
  const middleMs = world.clock.now() - 30_000;
  await world.switchTo('p1');
  await world.append(0, 512, 'write');
  const { bytesUsed } = world.store.status();
  t.same(await world.store.compact(60_000), { freedBytes: 0 }, 'not what is kept');
  const { freedBytes } = await world.store.compact(0);
  t.ok(freedBytes > 0 && world.store.status().bytesUsed < bytesUsed, `${freedBytes} bytes freed`);
  t.same(await world.store.compact(0), { freedBytes: 0 });
  const reader = await world.reader();
  const wanted = world.imageAt(world.points[1]?.sequence ?? 0);
  t.ok((await world.composed(reader, world.imageAt(0), '', { point: 'p1' })).equals(wanted));
  await t.rejects(
    world.composed(reader, world.imageAt(0), '', { beforeMs: middleMs }),
    /were compacted up to/,
  );
  await reader.close();
});
