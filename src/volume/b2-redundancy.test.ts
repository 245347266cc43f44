/**
 * B2 of the examples (seeds/2, Fig. 3A, 4; parity is left to what lies below): one volume mirrored on devices 1, 2 and 3,
 * one without redundancy on device 4.
 *
 * Goal: an update reaches all three before it is acknowledged; with device 2 gone everything is readable; with device 4
 * gone the mirror is, and the volume without redundancy says by name what it has lost while the other goes on; with 1 and
 * 2 gone the mirror reads from 3, and never returns wrong bytes. Method: real volumes over devices in memory that the
 * test takes away; with a restart after each step.
 */

import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB } from '../base/index.ts';
import { Disks, type LaidOut, layoutFor, makeLaidOut, makeParent, memberStates } from './layout.fixture.ts';

const SIZE = 256 * KIB;
const TRACK = 4 * KIB;

interface World {
  readonly disks: Disks;
  readonly mirrored: LaidOut;
  readonly single: LaidOut;
}

async function makeWorld(t: Test): Promise<World> {
  const disks = new Disks();
  for (const name of ['1', '2', '3', '4']) disks.add(name, SIZE);
  const parent = await makeParent(t);
  const mirror = layoutFor('mirror', 'mem:1', 'mem:2', 'mem:3');
  const mirrored = await makeLaidOut(t, {
    disks,
    layout: mirror,
    sizeBytes: SIZE,
    directory: join(parent, 'hv-a'),
  });
  const plain = { extents: [{ kind: 'plain' as const, members: [{ place: 'mem:4' }] }] };
  const single = await makeLaidOut(t, {
    disks,
    layout: plain,
    sizeBytes: SIZE,
    directory: join(parent, 'hv-b'),
  });
  // The devices were there before: they are made equal first.
  await mirrored.volume.careForMirrors((mirrors, signal) => mirrors.rebuild({ signal }));
  return { disks, mirrored, single };
}

async function firstBytes({ volume }: LaidOut): Promise<string> {
  const content = Buffer.alloc(SIZE);
  await volume.read(content, 0);
  const bytes: number[] = [];
  for (let at = 0; at < SIZE; at += TRACK) bytes.push(content[at] ?? 0);
  return bytes.join(' ');
}

async function fill({ volume }: LaidOut, from: number): Promise<string> {
  const bytes: number[] = [];
  for (let track = 0; track < SIZE / TRACK; track += 1) {
    bytes.push((from + track) % 256);
    await volume.write(Buffer.alloc(TRACK, from + track), track * TRACK);
  }
  return bytes.join(' ');
}

t.test('B2: an update reaches all three mirrors before it is acknowledged', async (t) => {
  const { disks, mirrored } = await makeWorld(t);
  for (const last of ['1', '2', '3']) {
    const gate = disks.get(last).faulty.hold({ kind: 'write' });
    let isAcknowledged = false;
    const write = Promise.resolve(mirrored.volume.write(Buffer.alloc(TRACK, 0x21), 5 * TRACK)).then(() => {
      isAcknowledged = true;
    });
    await gate.arrived(1);
    await new Promise((resolve) => setImmediate(resolve));
    t.equal(isAcknowledged, false, `not before ${last} has it`);
    gate.remove();
    await write;
    for (const name of ['1', '2', '3'])
      t.ok(
        disks
          .get(name)
          .content(5 * TRACK, TRACK)
          .equals(Buffer.alloc(TRACK, 0x21)),
        `${name} has it`,
      );
  }
});

for (const isRestarted of [false, true]) {
  const how = isRestarted ? 'with a restart after each step' : 'while it is open';
  t.test(`B2: devices go away one after the other, ${how}`, async (t) => {
    const { disks, mirrored, single } = await makeWorld(t);
    const restart = async (...those: readonly LaidOut[]): Promise<void> => {
      for (const laidOut of isRestarted ? those : []) await laidOut.reopen();
    };
    let wanted = await fill(mirrored, 1);
    const wantedSingle = await fill(single, 100);
    await restart(mirrored, single);

    disks.get('2').goAway();
    await restart(mirrored);
    t.equal(await firstBytes(mirrored), wanted, 'device 2 gone: everything readable');
    t.equal(await firstBytes(single), wantedSingle);
    wanted = await fill(mirrored, 40);
    await mirrored.volume.flush();
    t.strictSame(memberStates(mirrored.volume), ['in-sync', 'away', 'in-sync']);
    t.ok(
      mirrored.warnings.some((warning) => /hv-a goes on without mem:2/.test(warning)),
      'it is said',
    );
    t.equal(await firstBytes(mirrored), wanted, 'written meanwhile');

    disks.get('4').goAway();
    await restart(mirrored);
    t.equal(await firstBytes(mirrored), wanted, 'device 4 gone: the mirror readable');
    if (isRestarted) {
      await single.volume.close().catch(() => undefined);
      await t.rejects(single.open(), { message: /mem:4 of the home of volume hv-b cannot be used/ });
    } else {
      await t.rejects(firstBytes(single));
      await t.rejects(async () => single.volume.write(Buffer.alloc(TRACK, 1), 0));
      await t.rejects(async () => single.volume.write(Buffer.alloc(TRACK, 1), 0), {
        message: /^Volume hv-b refuses writes/,
      });
    }
    wanted = await fill(mirrored, 80);
    t.equal(await firstBytes(mirrored), wanted, 'and the other goes on');

    disks.get('1').goAway();
    await restart(mirrored);
    t.equal(await firstBytes(mirrored), wanted, 'devices 1 and 2 gone: the mirror reads from 3');
    wanted = await fill(mirrored, 120);
    await restart(mirrored);
    t.equal(await firstBytes(mirrored), wanted);

    // 2 and 1 are back with what they held: neither may be taken for current.
    for (const name of ['1', '2']) disks.get(name).comeBack();
    await restart(mirrored);
    t.equal(await firstBytes(mirrored), wanted, 'what is back is not read before it has everything');
  });
}

t.test('B2: members that are not current never take the place of the one that is', async (t) => {
  const { disks, mirrored } = await makeWorld(t);
  await fill(mirrored, 1);
  await mirrored.volume.flush();
  for (const name of ['1', '2']) disks.get(name).goAway();
  const wanted = await fill(mirrored, 50);
  await mirrored.volume.close();
  for (const name of ['1', '2']) disks.get(name).comeBack();
  disks.get('3').goAway();
  await t.rejects(mirrored.open(), {
    code: 'home-unusable',
    message: /^No member of mirror 0 of volume hv-a is current and can be used: mem:1 is not current/,
  });
  disks.get('3').comeBack();
  mirrored.volume = await mirrored.open();
  t.equal(await firstBytes(mirrored), wanted);
});
