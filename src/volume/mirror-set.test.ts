/**
 * Goal: a mirror behaves as one device as long as one member is in sync, its members hold the same wherever they are in
 * sync, and nothing is answered that only some have before it is on record that the others lack it. Method: the
 * conformance suite; then members in memory behind devices that fail, and are held, as told. What is saved is taken down
 * when it is, and its durability is a gate of the test's.
 */

import t from 'tap';
import { deferred, KIB, LIMITS, ManualClock, MIB } from '../base/index.ts';
import { conformance } from '../device/conformance.fixture.ts';
import { DeviceError, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { MirrorMember, MirrorMemberStart } from './mirror-member.ts';
import { type MirrorDifference, rebuildMember, scrubMirror } from './mirror-rebuild.ts';
import { MirrorSet, type MirrorSetOptions } from './mirror-set.ts';

const TRACK = 4 * KIB;

interface World {
  readonly mirror: MirrorSet;
  readonly disks: readonly MemoryDevice[];
  readonly devices: readonly FaultyDevice[];
  /** For each save, the members that are away and what they lack. */
  readonly saved: string[];
  readonly warnings: string[];
}

interface WorldOptions {
  readonly count?: number;
  readonly sizeBytes?: number;
  readonly startBytes?: number;
  readonly save?: () => Promise<void>;
  /** Members that begin away, with what they lack. */
  readonly away?: Readonly<Record<number, readonly number[]>>;
}

function described(mirror: MirrorSet): string {
  return mirror
    .absentees()
    .map((member) => `${member.index}: ${member.lacking().toArray().join(' ')}`)
    .join(', ');
}

function makeWorld(options: WorldOptions = {}): World {
  const { count = 2, sizeBytes = 16 * TRACK, startBytes = 0, away = {} } = options;
  const disks = Array.from({ length: count }, () => new MemoryDevice({ sizeBytes }));
  const devices = disks.map((disk) => new FaultyDevice(disk));
  const saved: string[] = [];
  const warnings: string[] = [];
  const members = devices.map((device, index): MirrorMemberStart => {
    const lacks = away[index];
    if (lacks === undefined) return { place: `/m${index}`, device };
    const absence = { sinceMs: 1, reason: 'test', missing: TrackSet.of(lacks) };
    return { place: `/m${index}`, device: undefined, absence };
  });
  const setOptions: MirrorSetOptions = {
    members,
    sizeBytes,
    startBytes,
    trackSizeBytes: TRACK,
    readOnly: false,
    clock: new ManualClock(),
    name: 'v',
    save: async () => {
      saved.push(described(mirror));
      await options.save?.();
    },
    onWarning: (sentence) => warnings.push(sentence),
  };
  const mirror = new MirrorSet(setOptions);
  return { mirror, disks, devices, saved, warnings };
}

/** The member of that index. */
function memberOf({ mirror }: World, index: number): MirrorMember {
  const member = mirror.members[index];
  if (member === undefined) throw new Error(`No member ${index}`);
  return member;
}

function deviceOf({ devices }: World, index: number): FaultyDevice {
  const device = devices[index];
  if (device === undefined) throw new Error(`No device ${index}`);
  return device;
}

/** The first byte of each track of each disk. */
function tracksOn({ disks }: World): string[] {
  return disks.map((disk) => {
    const content = Buffer.alloc(disk.sizeBytes);
    disk.read(content, 0);
    const tracks: number[] = [];
    for (let at = 0; at < content.length; at += TRACK) tracks.push(content[at] ?? 0);
    return tracks.join(' ');
  });
}

function track(value: number, count = 1): Buffer {
  return Buffer.alloc(count * TRACK, value);
}

function noSpace(): DeviceError {
  return new DeviceError('no-space', 'Full', { device: 'test', errno: 'ENOSPC' });
}

function states({ mirror }: World): string[] {
  return mirror.status().map(({ state }) => state);
}

/** Gives everybody who is ready a turn. */
function turns(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}

t.test('a mirror conforms, in sync and degraded, in the middle of a volume too', async (t) => {
  for (const away of [{}, { 1: [0, 5] }]) {
    for (const startBytes of [0, 6 * TRACK + 512]) {
      await t.test(`away ${JSON.stringify(away)}, from ${startBytes}`, async (t) => {
        await conformance(
          t,
          async (sizeBytes) => makeWorld({ count: 3, sizeBytes, startBytes, away }).mirror,
        );
      });
    }
  }
});

t.test('members in memory answer at once', (t) => {
  const disks = [0, 1].map(() => new MemoryDevice({ sizeBytes: MIB }));
  const mirror = new MirrorSet({
    members: disks.map((device, index) => ({ place: `/m${index}`, device })),
    sizeBytes: MIB,
    startBytes: 0,
    trackSizeBytes: TRACK,
    readOnly: false,
    clock: new ManualClock(),
    name: 'v',
    save: async () => undefined,
  });
  t.equal(mirror.write(track(1), 0), undefined);
  t.equal(mirror.read(track(0), 0), undefined);
  t.equal(mirror.trim(0, TRACK), undefined);
  t.end();
});

t.test('reads go to members by regions of the address', async (t) => {
  const world = makeWorld({ count: 3, sizeBytes: 6 * LIMITS.mirrorReadRegionBytes });
  for (let region = 0; region < 6; region += 1) {
    await world.mirror.read(track(0), region * LIMITS.mirrorReadRegionBytes);
    await world.mirror.read(track(0), (region + 1) * LIMITS.mirrorReadRegionBytes - TRACK);
  }
  const counts = world.devices.map(({ operations }) => operations.length);
  t.strictSame(counts, [4, 4, 4]);
});

t.test('a write has finished when all members have it', async (t) => {
  const world = makeWorld({ count: 3 });
  const gate = deviceOf(world, 2).hold({ kind: 'write' });
  let isOver = false;
  const write = Promise.resolve(world.mirror.write(track(7), 0)).then(() => {
    isOver = true;
  });
  await gate.arrived(1);
  await turns();
  t.equal(isOver, false);
  gate.open();
  await write;
  t.strictSame(
    tracksOn(world).map((one) => one[0]),
    ['7', '7', '7'],
  );
});

t.test('overlapping writes are carried out in one order', async (t) => {
  const world = makeWorld();
  const gate = deviceOf(world, 0).hold({ kind: 'write', nth: 1 });
  const first = world.mirror.write(track(1, 2), 0);
  await gate.arrived(1);
  const second = world.mirror.write(track(2), TRACK);
  await turns();
  t.equal(deviceOf(world, 1).operations.length, 1, 'the second one waits');
  gate.open();
  await Promise.all([first, second]);
  const [one, two] = tracksOn(world);
  t.equal(one, two);
  t.ok(one?.startsWith('1 2 0'));
});

t.test('a member whose write fails goes away, on record before the write is answered', async (t) => {
  const durable = deferred();
  const world = makeWorld({ save: () => durable.promise });
  await world.mirror.flush();
  deviceOf(world, 1).fail({ kind: 'write', nth: 1 });
  const answered: string[] = [];
  const failing = Promise.resolve(world.mirror.write(track(1), 3 * TRACK)).then(() =>
    answered.push('failing'),
  );
  await turns();
  t.strictSame(world.saved, ['1: 3']);
  t.strictSame(states(world), ['in-sync', 'away']);
  const later = Promise.resolve(world.mirror.write(track(2), 5 * TRACK)).then(() => answered.push('later'));
  const flush = world.mirror.flush().then(() => answered.push('flush'));
  await turns();
  t.strictSame(answered, [], 'nothing that only one has is answered');
  durable.resolve();
  await Promise.all([failing, later, flush]);
  t.strictSame(memberOf(world, 1).missing().toArray(), [3, 5]);
  t.match(world.warnings, [/^Volume v goes on without \/m1, with 1 of 2 copies: Injected failure$/]);
});

t.test('where the loss cannot be recorded nothing is answered any more', async (t) => {
  const world = makeWorld({ save: () => Promise.reject(new Error('no record')) });
  deviceOf(world, 1).fail({ kind: 'write', nth: 1 });
  await t.rejects(async () => world.mirror.write(track(1), 0), { message: 'no record' });
  await t.rejects(async () => world.mirror.write(track(1), 0), { message: 'no record' });
  await t.rejects(world.mirror.flush(), { message: 'no record' });
});

t.test('a member whose flush fails lacks what it had not flushed', async (t) => {
  const world = makeWorld();
  await world.mirror.write(track(1), 2 * TRACK);
  await world.mirror.flush();
  await world.mirror.write(track(1), 4 * TRACK);
  await world.mirror.write(track(1), 9 * TRACK);
  deviceOf(world, 0).fail({ kind: 'flush' });
  await world.mirror.flush();
  t.strictSame(world.saved, ['0: 4 9']);
  t.strictSame(states(world), ['away', 'in-sync']);
});

t.test('the failure of the last member in sync is the caller’s', async (t) => {
  const world = makeWorld();
  deviceOf(world, 0).fail({ kind: 'write' });
  await world.mirror.write(track(1), 0);
  deviceOf(world, 1).fail({ kind: ['write', 'flush'] });
  await t.rejects(async () => world.mirror.write(track(2), 0), { message: 'Injected failure' });
  await t.rejects(world.mirror.flush(), { message: 'Injected failure' });
  t.strictSame(states(world), ['away', 'in-sync']);
});

t.test('a failure of all at once takes none of them away', async (t) => {
  const world = makeWorld();
  for (const device of world.devices) device.fail({ kind: ['write', 'flush'] });
  await t.rejects(async () => world.mirror.write(track(2), 0));
  await t.rejects(world.mirror.flush());
  t.strictSame(world.saved, []);
});

t.test('two writes that fail on different members do not lose both', async (t) => {
  const world = makeWorld();
  const gates = world.devices.map((device) => device.hold({ kind: 'write' }));
  deviceOf(world, 0).fail({ kind: 'write', range: { offsetBytes: 0, lengthBytes: TRACK } });
  deviceOf(world, 1).fail({ kind: 'write', range: { offsetBytes: TRACK, lengthBytes: TRACK } });
  const writes = [0, 1].map(async (at) => world.mirror.write(track(1), at * TRACK));
  await Promise.all(gates.map((gate) => gate.arrived(2)));
  for (const gate of gates) gate.open();
  const outcomes = (await Promise.allSettled(writes)).map(({ status }) => status);
  t.strictSame(outcomes.toSorted(), ['fulfilled', 'rejected']);
  t.equal(states(world).filter((state) => state === 'in-sync').length, 1);
});

t.test('no space on all members is the caller’s, and leaves them equal', async (t) => {
  const world = makeWorld({ count: 3 });
  await world.mirror.write(track(1, 4), 0);
  for (const device of world.devices) device.fail({ kind: 'write', nth: 1 }, noSpace());
  // One of them has taken a part of it.
  world.disks[1]?.write(track(9), 2 * TRACK);
  await t.rejects(async () => world.mirror.write(track(9, 2), 2 * TRACK), { code: 'no-space' });
  const [one, ...others] = tracksOn(world);
  t.ok(others.every((other) => other === one));
  t.strictSame(states(world), ['in-sync', 'in-sync', 'in-sync']);
});

t.test('no space on one member takes that one away', async (t) => {
  const world = makeWorld();
  deviceOf(world, 0).fail({ kind: 'write', nth: 1 }, noSpace());
  await world.mirror.write(track(9), 2 * TRACK);
  t.strictSame(states(world), ['away', 'in-sync']);
});

t.test('what a member cannot read comes from another one and is written there anew', async (t) => {
  const world = makeWorld();
  await world.mirror.write(track(5), TRACK);
  world.disks[0]?.write(track(0), TRACK);
  deviceOf(world, 0).fail({ kind: 'read', nth: 1 });
  const found = track(0);
  await world.mirror.read(found, TRACK);
  t.ok(found.equals(track(5)));
  await turns();
  t.ok(
    tracksOn(world).every((one) => one.startsWith('0 5')),
    'both have it again',
  );
  t.strictSame(states(world), ['in-sync', 'in-sync']);
  t.equal(world.mirror.status()[0]?.readErrors, 1);
  t.match(world.warnings, [/\/m0 could not read bytes 4096 to 8191, which were written there anew/]);
});

t.test('a member that cannot be read and not be written goes away', async (t) => {
  const world = makeWorld();
  await world.mirror.flush();
  deviceOf(world, 0).fail({ kind: ['read', 'writeZeroes'] });
  await world.mirror.read(track(0), TRACK);
  await turns();
  t.strictSame(world.saved, ['0: 1']);
});

t.test('of a file that was cut short nothing is relied on', async (t) => {
  const world = makeWorld();
  const cut = new DeviceError('io', 'the file ends at 512 bytes', { device: 'test' });
  deviceOf(world, 0).fail({ kind: 'read' }, cut);
  await world.mirror.read(track(0), TRACK);
  await turns();
  t.equal(memberOf(world, 0).missingCount, 16);
});

t.test('a read that no member answers fails with the first one’s reason', async (t) => {
  const world = makeWorld();
  deviceOf(world, 0).fail({ kind: 'read' }, new Error('first'));
  deviceOf(world, 1).fail({ kind: 'read' }, new Error('second'));
  await t.rejects(async () => world.mirror.read(track(0), 0), { message: 'first' });
  await turns();
  t.strictSame(states(world), ['in-sync', 'in-sync']);
});

t.test('a member that is back gets what it missed, behind the writes, and nothing else', async (t) => {
  const world = makeWorld();
  await world.mirror.write(track(1, 16), 0);
  await world.mirror.flush();
  const broken = deviceOf(world, 1).fail({ kind: 'write' });
  await world.mirror.write(track(2), 3 * TRACK);
  await world.mirror.write(track(3), 11 * TRACK);
  broken.remove();
  const member = memberOf(world, 1);
  await member.whenRetired();
  await world.mirror.join(member, '/m1', deviceOf(world, 1), false);
  t.strictSame(states(world), ['in-sync', 'rebuilding']);
  deviceOf(world, 1).forgetOperations();
  const gate = deviceOf(world, 0).hold({ kind: 'read', nth: 1 });
  const rebuilt = rebuildMember(world.mirror, member, {});
  await gate.arrived(1);
  const later = world.mirror.write(track(4), 3 * TRACK);
  const beside = world.mirror.write(track(5), 5 * TRACK);
  await beside;
  gate.open();
  await Promise.all([rebuilt, later]);
  const [one, two] = tracksOn(world);
  t.equal(one, two);
  t.equal(one, '1 1 1 4 1 5 1 1 1 1 1 3 1 1 1 1');
  t.strictSame(states(world), ['in-sync', 'in-sync']);
  t.equal(world.saved.at(-1), '', 'on record');
  const kinds = deviceOf(world, 1).operations.map(
    ({ kind, offsetBytes }) => `${kind} ${offsetBytes / TRACK}`,
  );
  t.strictSame(kinds.toSorted(), ['flush 0', 'write 11', 'write 3', 'write 3', 'write 5']);
});

t.test('a member that is lost while it is rebuilt lacks what was not flushed there', async (t) => {
  const world = makeWorld({ away: { 1: [2, 3, 14] } });
  const member = memberOf(world, 1);
  await world.mirror.join(member, '/m1', deviceOf(world, 1), false);
  deviceOf(world, 1).fail({ kind: 'writeZeroes', range: { offsetBytes: 14 * TRACK, lengthBytes: TRACK } });
  await t.rejects(rebuildMember(world.mirror, member, {}), { code: 'member-lost' });
  t.strictSame(member.missing().toArray(), [2, 3, 14]);
  t.strictSame(states(world), ['in-sync', 'away']);
});

t.test('a member is not read before it has everything', async (t) => {
  const world = makeWorld({ away: { 0: [2] } });
  world.disks[1]?.write(track(6), 2 * TRACK);
  await world.mirror.join(memberOf(world, 0), '/m0', deviceOf(world, 0), false);
  const found = track(0);
  await world.mirror.read(found, 2 * TRACK);
  t.ok(found.equals(track(6)));
});

t.test('what a device got that was replaced meanwhile does not count for the next one', async (t) => {
  const world = makeWorld({ away: { 1: [2, 3] } });
  await world.mirror.write(track(6, 16), 0);
  const member = memberOf(world, 1);
  await world.mirror.join(member, '/m1', deviceOf(world, 1), false);
  const gate = deviceOf(world, 1).hold({ kind: 'write' });
  const rebuilt = rebuildMember(world.mirror, member, {});
  await gate.arrived(1);
  await world.mirror.giveUp(member, 'replaced');
  const other = new MemoryDevice({ sizeBytes: 16 * TRACK });
  await world.mirror.join(member, '/other', other, true);
  gate.open();
  await rebuilt;
  const found = track(0, 16);
  other.read(found, 0);
  t.ok(found.equals(track(6, 16)));
  t.strictSame(states(world), ['in-sync', 'in-sync']);
});

t.test('a replacement gets everything', async (t) => {
  const world = makeWorld({ away: { 1: [] } });
  await world.mirror.write(track(8, 16), 0);
  const member = memberOf(world, 1);
  const other = new MemoryDevice({ sizeBytes: 4 * TRACK });
  await world.mirror.join(member, '/other', other, true);
  t.equal(other.sizeBytes, 16 * TRACK, 'a file is made as large as is needed');
  await rebuildMember(world.mirror, member, {});
  const found = track(0, 16);
  other.read(found, 0);
  t.ok(found.equals(track(8, 16)));
  t.equal(world.mirror.status()[1]?.place, '/other');
});

t.test('after an unclean stop the first member in sync counts', async (t) => {
  const world = makeWorld({ count: 3 });
  await world.mirror.write(track(1, 16), 0);
  world.disks[0]?.write(track(2), 4 * TRACK);
  world.disks[1]?.write(track(3), 4 * TRACK);
  world.disks[2]?.write(track(4), 9 * TRACK);
  await world.mirror.reconcile(TrackSet.of([4, 5]));
  t.strictSame(
    tracksOn(world).map((one) => one.split(' ').slice(4, 10).join(' ')),
    ['2 1 1 1 1 1', '2 1 1 1 1 1', '2 1 1 1 1 4'],
    'what could not have been written is left alone',
  );
  t.ok(world.devices.every(({ operations }) => operations.at(-1)?.kind === 'flush'));
});

async function differencesOf(world: World, isRepairing: boolean): Promise<MirrorDifference[]> {
  const found: MirrorDifference[] = [];
  await scrubMirror(world.mirror, { isRepairing, onDifference: (difference) => found.push(difference) });
  return found;
}

t.test('a scrub tells what differs, and repairs it where it is asked to', async (t) => {
  const world = makeWorld({ count: 3, startBytes: 2 * TRACK });
  await world.mirror.write(track(1, 16), 0);
  t.strictSame(await differencesOf(world, false), []);
  world.disks[0]?.write(track(2), 4 * TRACK);
  world.disks[2]?.write(track(3), 7 * TRACK);
  const found = await differencesOf(world, false);
  t.strictSame(
    found.map(({ first, places, repaired }) => [first, places, repaired]),
    [
      [6, ['/m1', '/m2'], false],
      [9, ['/m2'], false],
    ],
    'in tracks of the volume',
  );
  t.equal((await differencesOf(world, true)).length, 2);
  t.strictSame(await differencesOf(world, false), []);
  t.equal(tracksOn(world)[1]?.split(' ')[4], '2', 'the first member counts');
});

t.test('a scrub does not tell of what is just being written', async (t) => {
  const world = makeWorld();
  const gate = deviceOf(world, 1).hold({ kind: 'write' });
  const write = world.mirror.write(track(5), 2 * TRACK);
  await gate.arrived(1);
  const scrub = differencesOf(world, false);
  await turns();
  gate.open();
  await write;
  t.strictSame(await scrub, []);
});

t.test('a scrub tells of what cannot be read, and repairs it from another member', async (t) => {
  const world = makeWorld();
  await world.mirror.write(track(1, 16), 0);
  const range = { offsetBytes: 3 * TRACK, lengthBytes: TRACK };
  const broken = deviceOf(world, 0).fail({ kind: 'read', range });
  const found = await differencesOf(world, true);
  t.equal(found.length, 1);
  t.match(found[0], {
    first: 3,
    reference: '/m1',
    places: ['/m0'],
    unreadable: 'Injected failure',
    repaired: true,
  });
  broken.remove();
  t.strictSame(await differencesOf(world, false), []);
});

t.test('all members grow, and are equal in what is new', async (t) => {
  const world = makeWorld({ away: {} });
  const [first] = world.disks;
  await first?.extend(20 * TRACK);
  first?.write(track(3), 17 * TRACK);
  await world.mirror.extend(20 * TRACK);
  t.equal(world.mirror.sizeBytes, 20 * TRACK);
  const [one, two] = tracksOn(world);
  t.equal(one, two);
  t.equal(one?.split(' ')[17], '3');
});

t.test(
  'what is new is missed by who is away, and a member that cannot grow keeps the mirror as it is',
  async (t) => {
    const world = makeWorld({ away: { 1: [1] } });
    await world.mirror.extend(18 * TRACK);
    t.strictSame(memberOf(world, 1).missing().toArray(), [1, 16, 17]);
    const fixed = makeWorld();
    Reflect.set(fixed.disks[1] ?? {}, 'extend', undefined);
    await t.rejects(fixed.mirror.extend(18 * TRACK), { code: 'too-small' });
    t.equal(fixed.mirror.sizeBytes, 16 * TRACK);
  },
);
