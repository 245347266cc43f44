/**
 * Goal: a mirror is on record as lost for as long as the recovery lasts and never after it; after an unclean stop it is
 * made equal to the home before anybody uses the volume, and no medium brings back what the side has newer.
 *
 * Method: volumes whose home loses power, with the side as their mirror and with another one.
 */

import { cpSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { present, SeededRandom } from '../base/index.ts';
import { MemoryArea } from '../container/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelled, labelOf, TEST_TRACK_BYTES as TRACK, writeLabel } from '../sim/index.ts';
import { labelsOn, makeRecovering, type Recovering } from './recovering.fixture.ts';

const COUNT = 4;

interface Test {
  readonly recovering: Recovering;
  readonly side: FaultyDevice;
  readonly mirror: FaultyDevice;
}

type Teardown = Parameters<typeof makeRecovering>[0];

async function begin(t: Teardown, kind: 'the side' | 'another'): Promise<Test> {
  const devices = [0, 1].map(() => new MemoryDevice({ sizeBytes: COUNT * TRACK }));
  for (const device of devices) {
    for (let track = 0; track < COUNT; track += 1) device.write(labelled(`s${track}`), track * TRACK);
  }
  const [side, other] = devices.map((device) => new FaultyDevice(device));
  if (side === undefined || other === undefined) throw new Error('There are two devices');
  const mirror = kind === 'the side' ? side : other;
  const recovering = await makeRecovering(t, {
    side: { device: side, mirror, close: async () => undefined },
    trackCount: COUNT,
    mirror: 'test',
  });
  return { recovering, side, mirror };
}

/** What was not flushed is lost; the state is what it is now. */
async function cut({ recovering }: Test): Promise<void> {
  const path = join(recovering.directory, 'state.mdb');
  cpSync(path, `${path}.found`);
  const rule = recovering.home.fail({ kind: 'flush' });
  await recovering.volume.close().catch(() => undefined);
  rule.remove();
  cpSync(`${path}.found`, path);
  rmSync(`${path}.found`);
  // A seed with which nothing of what was written survives.
  await recovering.home.powerCut(new NothingLeft(1));
  recovering.volume = await recovering.open();
}

class NothingLeft extends SeededRandom {
  override pick<T>(items: readonly T[]): T {
    return super.pick(items.filter((item) => item === 'dropped' || !['kept', 'torn'].includes(String(item))));
  }
}

t.test('a mirror that is lost after the recovery leaves no record of one', async (t) => {
  const { recovering, mirror } = await begin(t, 'another');
  const { volume } = recovering;
  await volume.fill((recovery) => recovery.fillAll());
  t.equal(volume.recovery, undefined);
  mirror.fail({ kind: 'write' });
  await volume.write(labelled('w'), 0);
  t.match(recovering.warnings, [/no longer mirrored/]);
  await recovering.reopen();
  t.equal(recovering.volume.recovery, undefined);
  t.same(await labelsOn(recovering.volume), ['w', 's1', 's2', 's3']);
});

t.test('another mirror holds what the home has after an unclean stop', async (t) => {
  const test = await begin(t, 'another');
  await test.recovering.volume.write(labelled('w'), TRACK);
  await cut(test);
  t.same(
    await labelsOn(test.mirror),
    ['s0', 's1', 's2', 's3'],
    'the home has lost it, and so must the mirror',
  );
  await test.recovering.volume.fill((recovery) => recovery.fillAll());
  t.same(await labelsOn(test.recovering.home), await labelsOn(test.mirror));
});

t.test('what only the side has is brought by no medium', async (t) => {
  for (const isReopened of [false, true]) {
    const test = await begin(t, 'the side');
    const { recovering } = test;
    await recovering.volume.write(labelled('w'), TRACK);
    await cut(test);
    if (isReopened) await recovering.reopen();
    await recovering.volume.fill(async (recovery) => {
      t.equal(await recovery.filling.offer(1, labelled('s1')), false, 'it is older than what the side holds');
      t.equal(await recovery.offer(3, labelled('s3')), true);
    });
    await recovering.volume.fill((recovery) => recovery.fillAll());
    t.same(await labelsOn(recovering.home), ['s0', 'w', 's2', 's3']);
    t.same(await labelsOn(test.side), ['s0', 'w', 's2', 's3']);
  }
});

t.test('a mirror that cannot be made equal at the opening is left out', async (t) => {
  const test = await begin(t, 'another');
  const { recovering, mirror } = test;
  await recovering.volume.write(labelled('w'), TRACK);
  await recovering.volume.flush();
  const rule = mirror.fail({ kind: 'write' });
  await cut(test);
  rule.remove();
  t.ok(recovering.volume.status().recovery?.mirrorLost);
  t.equal(recovering.volume.recovery?.isMirrored, false);
  mirror.forgetOperations();
  await recovering.volume.write(labelled('x'), 2 * TRACK);
  await recovering.volume.flush();
  t.same(mirror.operations, []);
});

t.test('What a session protects is brought in before it is written over', async (t) => {
  const side = new MemoryDevice({ sizeBytes: 4 * TRACK });
  for (let track = 0; track < 4; track += 1) side.write(labelled(`s${track}`), track * TRACK);
  const { volume } = await makeRecovering(t, {
    side: { device: side, close: async () => undefined },
    trackCount: 4,
  });
  const session = await volume.beginSession({
    consumer: 'store',
    level: 'full',
    candidates: [],
    areas: [new MemoryArea({ sizeBytes: 4 * TRACK, trackSizeBytes: TRACK })],
  });
  await writeLabel(volume, 2, 'new');
  const [diverted] = await session.take(4);
  t.equal(diverted?.track, 2);
  t.equal(labelOf(present(diverted?.content, 'The old content')), 's2');
  session.fail(new Error('enough was seen'));
  await session.whenEnded();
  const content = Buffer.alloc(TRACK);
  await volume.read(content, 2 * TRACK);
  t.equal(labelOf(content), 'new');
});

t.test('So does what a snapshot keeps', async (t) => {
  const side = new MemoryDevice({ sizeBytes: 4 * TRACK });
  for (let track = 0; track < 4; track += 1) side.write(labelled(`s${track}`), track * TRACK);
  const { volume } = await makeRecovering(t, {
    side: { device: side, close: async () => undefined },
    trackCount: 4,
  });
  await volume.createSnapshot('then');
  await writeLabel(volume, 1, 'new');
  const snapshot = volume.openSnapshot('then');
  const labels: string[] = [];
  for (let track = 0; track < 4; track += 1) {
    const content = Buffer.alloc(TRACK);
    await snapshot.read(content, track * TRACK);
    labels.push(labelOf(content));
  }
  await snapshot.close();
  t.same(labels, ['s0', 's1', 's2', 's3']);
});
