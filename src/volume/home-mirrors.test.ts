/**
 * Goal: members of mirrors are replaced, brought back and compared by their names, a replacement that cannot be leaves
 * everything as it was, and none of it takes the last current copy away. Method: volumes over devices in memory, and over
 * files where a file is to be made.
 */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { createVolume, isVolumeHome, layoutOf, readVolumeIdentity, Volume } from './index.ts';
import type { LayoutRequest } from './layout.ts';
import {
  Disks,
  type LaidOut,
  layoutFor,
  makeLaidOut,
  makeParent,
  memberStates,
  rebuildAll,
  TRACK_BYTES,
} from './layout.fixture.ts';

const SIZE = 64 * KIB;

async function makeMirror(
  t: Test,
  layout: LayoutRequest = layoutFor('mirror', 'mem:a', 'mem:b'),
): Promise<LaidOut> {
  const disks = new Disks();
  for (const name of ['a', 'b', 'c']) disks.add(name, SIZE);
  disks.add('small', 4 * KIB);
  Reflect.set(disks.get('small').faulty, 'extend', undefined);
  const directory = join(await makeParent(t), 'v');
  const laidOut = await makeLaidOut(t, { disks, layout, sizeBytes: SIZE, directory });
  await rebuildAll(laidOut.volume);
  await laidOut.volume.write(Buffer.alloc(SIZE, 9), 0);
  await laidOut.volume.flush();
  return laidOut;
}

function replace({ volume }: LaidOut, member: string, place: string): Promise<void> {
  return volume.careForMirrors((mirrors) => mirrors.replace(member, place));
}

t.test('a replacement gets everything, and is the member from then on', async (t) => {
  const laidOut = await makeMirror(t);
  await replace(laidOut, 'mem:b', 'mem:c');
  t.strictSame(memberStates(laidOut.volume), ['in-sync', 'rebuilding']);
  const { layout } = await readVolumeIdentity(laidOut.directory);
  t.match(layout?.extents[0]?.members[1], { place: 'mem:c', away: { reason: /being replaced by mem:c/ } });
  await rebuildAll(laidOut.volume);
  t.ok(laidOut.disks.get('c').content().equals(Buffer.alloc(SIZE, 9)));
  // What was given up gets nothing more, and is free.
  await laidOut.volume.write(Buffer.alloc(TRACK_BYTES, 1), 0);
  t.equal(laidOut.disks.get('b').content()[0], 9);
  t.equal(laidOut.disks.get('b').locks.size, 0);
  await laidOut.reopen();
  t.match(laidOut.volume.status(), { home: 'layout:mirror of mem:a, mem:c' });
  t.strictSame(memberStates(laidOut.volume), ['in-sync', 'in-sync']);
});

t.test('the same place again gets everything anew', async (t) => {
  const laidOut = await makeMirror(t);
  laidOut.disks.get('b').memory.write(Buffer.alloc(SIZE, 1), 0);
  await replace(laidOut, 'mem:b', 'mem:b');
  await rebuildAll(laidOut.volume);
  t.ok(laidOut.disks.get('b').content().equals(Buffer.alloc(SIZE, 9)));
});

t.test('a replacement that cannot be leaves everything as it was', async (t) => {
  const laidOut = await makeMirror(t);
  for (const [member, place, code] of [
    ['mem:x', 'mem:c', 'unknown-member'],
    ['mem:b', 'mem:missing', 'not-found'],
    ['mem:b', 'mem:small', 'too-small'],
    ['mem:b', 'mem:a', 'busy'],
  ] as const)
    await t.rejects(replace(laidOut, member, place), { code }, `${member} by ${place}`);
  t.strictSame(memberStates(laidOut.volume), ['in-sync', 'in-sync']);
  t.equal(laidOut.disks.get('small').locks.size, 0, 'what was opened is closed');
});

t.test('the last current copy is not replaced, known to be the last one or not', async (t) => {
  const laidOut = await makeMirror(t);
  laidOut.disks.get('b').goAway();
  await t.rejects(replace(laidOut, 'mem:a', 'mem:c'), { code: 'last-member' });
  await laidOut.volume.write(Buffer.alloc(TRACK_BYTES, 2), 0);
  await t.rejects(replace(laidOut, 'mem:a', 'mem:c'), { code: 'last-member' });
  await replace(laidOut, 'mem:b', 'mem:c');
  await rebuildAll(laidOut.volume);
  t.strictSame(memberStates(laidOut.volume), ['in-sync', 'in-sync']);
});

t.test('a member that is being replaced is not brought back meanwhile', async (t) => {
  const laidOut = await makeMirror(t);
  const replacing = replace(laidOut, 'mem:b', 'mem:c');
  while (memberStates(laidOut.volume)[1] !== 'away') await new Promise((resolve) => setImmediate(resolve));
  await laidOut.volume.careForMirrors((mirrors) => mirrors.rejoin());
  await replacing;
  t.equal(laidOut.disks.get('b').locks.size, 0, 'the old one is not open');
  t.match(laidOut.volume.status().parts?.[0]?.members[1], { place: 'mem:c', state: 'rebuilding' });
  await rebuildAll(laidOut.volume);
  t.ok(laidOut.disks.get('c').content().equals(Buffer.alloc(SIZE, 9)));
});

t.test('a replacement that is interrupted goes on at the next opening', async (t) => {
  const laidOut = await makeMirror(t);
  const gate = laidOut.disks.get('c').faulty.hold({ kind: 'write' });
  await replace(laidOut, 'mem:b', 'mem:c');
  const rebuilding = rebuildAll(laidOut.volume);
  const failed = t.rejects(rebuilding, { code: 'closed' });
  await gate.arrived(1);
  const reopened = laidOut.reopen();
  gate.remove();
  await Promise.all([reopened, failed]);
  t.strictSame(memberStates(laidOut.volume), ['in-sync', 'rebuilding']);
  await rebuildAll(laidOut.volume);
  t.ok(laidOut.disks.get('c').content().equals(Buffer.alloc(SIZE, 9)));
});

t.test('a scrub goes through all mirrors, and passes over those with nothing to compare', async (t) => {
  const laidOut = await makeMirror(t, {
    extents: [
      { kind: 'mirror', lengthBytes: 16 * KIB, members: [{ place: 'mem:a' }, { place: 'mem:b@0+32K' }] },
      { kind: 'plain', members: [{ place: 'mem:c' }] },
    ],
  });
  const found: string[] = [];
  const scrub = (isRepairing = false): Promise<unknown> =>
    laidOut.volume.careForMirrors((mirrors) =>
      mirrors.scrub({
        isRepairing,
        onDifference: ({ first, places }) => found.push(`${first} ${places.join()}`),
      }),
    );
  t.match(await scrub(), { bytesCompared: 16 * KIB, skipped: 0, tracks: { size: 0 } });
  laidOut.disks.get('b').memory.write(Buffer.alloc(512, 1), 9 * KIB);
  t.match(await scrub(true), { tracks: { size: 1 } });
  t.strictSame(found, ['2 mem:b@0+32K']);
  t.match(await scrub(), { tracks: { size: 0 } });
  laidOut.disks.get('b').goAway();
  await laidOut.volume.write(Buffer.alloc(TRACK_BYTES, 2), 0);
  t.match(await scrub(), { bytesCompared: 0, skipped: 1 });
});

t.test('a home without mirrors has nothing to compare', async (t) => {
  const laidOut = await makeMirror(t, layoutFor('stripe', 'mem:a', 'mem:b'));
  const scrub = laidOut.volume.careForMirrors((mirrors) =>
    mirrors.scrub({ isRepairing: false, onDifference: () => undefined }),
  );
  await t.rejects(scrub, { code: 'unknown-member', message: /has no mirror/ });
});

t.test('a missing file is made, and marked as a home', async (t) => {
  const parent = await makeParent(t);
  const at = (name: string): string => join(parent, name);
  const registry = new DeviceRegistry();
  const layout = layoutOf('mirror', [at('a'), at('b')]);
  await createVolume(at('v'), { sizeBytes: SIZE, trackSizeBytes: TRACK_BYTES, layout, registry });
  const volume = await Volume.open(at('v'), { registry, activity: 'testing' });
  await volume.write(Buffer.alloc(SIZE, 3), 0);
  await volume.careForMirrors((mirrors) => mirrors.replace(at('b'), at('c')));
  await rebuildAll(volume);
  await t.rejects(
    volume.careForMirrors((mirrors) => mirrors.replace(at('x'), at('d'))),
    { code: 'unknown-member' },
  );
  t.notOk(existsSync(at('d')), 'nothing is left of one that was refused');
  await volume.close();
  t.ok(readFileSync(at('c')).equals(Buffer.alloc(SIZE, 3)));
  t.ok(await isVolumeHome(at('c')));
});
