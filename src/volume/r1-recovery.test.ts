/**
 * EXAMPLES R1, recovery on two channels: the home's side, with the live backup side beside it. (`r1.test.ts` is about
 * what the backup side keeps for its snapshot.)
 *
 * Goal: after each step the home, the overwrite map, the backup side and its marks are what the example's table says, and
 * so for each variant; the control, whose map begins too late, must end wrong.
 *
 * Method: location n is track n - 1. The backup side is a volume of its own, T0 a point of it, T1 a snapshot; the medium
 * is what the snapshot reads as, in an order of its own. The home and the way to the backup side are devices that record
 * what is asked of them. Then the steps again with a stop after each, and with the power cut after every operation of
 * home and side.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom } from '../base/index.ts';
import { DeviceError, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelOf, labelled, makeTestVolume, TEST_TRACK_BYTES, type TestVolume } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { openLmdb } from '../records/index.ts';
import { checkVolume, type Volume } from './index.ts';
import { labelsInSnapshot } from './kept.fixture.ts';
import { labelsOn, makeRecovering, type Recovering, unclosed } from './recovering.fixture.ts';

const COUNT = 6;
type Labels = Readonly<Record<number, string>>;

async function request(volume: Pick<Volume, 'write'>, labels: Labels): Promise<void> {
  await Promise.all(
    Object.entries(labels).map(async ([location, label]) =>
      volume.write(labelled(label), (Number(location) - 1) * TEST_TRACK_BYTES),
    ),
  );
}

async function readAt(volume: Pick<Volume, 'read'>, location: number): Promise<string> {
  const content = Buffer.alloc(TEST_TRACK_BYTES);
  await volume.read(content, (location - 1) * TEST_TRACK_BYTES);
  return labelOf(content);
}

function locations(tracks: TrackSet): number[] {
  return tracks.toArray().map((track) => track + 1);
}

interface Example {
  readonly backup: TestVolume;
  /** The way to the backup side. */
  readonly side: FaultyDevice;
  readonly recovering: Recovering;
  readonly t0: string;
}

type Teardown = Parameters<typeof makeTestVolume>[0];

/** Step 0. */
async function lost(t: Teardown, options: { readonly home?: FaultyDevice } = {}): Promise<Example> {
  const backup = await makeTestVolume(t, { trackCount: COUNT });
  await request(backup.volume, { 1: '1', 2: '2', 3: '3', 4: '4', 5: '5', 6: '6' });
  await backup.volume.flush();
  const { point: t0 } = await backup.volume.createSnapshot('t0');
  const side = new FaultyDevice(unclosed(backup.volume));
  const recovering = await makeRecovering(t, {
    side: { device: side, mirror: side, close: async () => undefined },
    trackCount: COUNT,
    mirror: 'test',
    ...options,
  });
  return { backup, side, recovering, t0 };
}

/** The locations that the overwrite map has. */
function current({ recovering }: Example): number[] {
  const missing = recovering.volume.recovery?.filling.missing() ?? TrackSet.empty();
  return locations(TrackSet.all(COUNT).difference(missing));
}

/** What the home holds; `-` where its content is lost, whatever lies there. */
async function homeLabels(example: Example): Promise<string[]> {
  const known = current(example);
  const labels = await labelsOn(example.recovering.home);
  return labels.map((label, index) => (known.includes(index + 1) ? label : '-'));
}

async function sideLabels({ backup }: Example): Promise<string[]> {
  return labelsOn(backup.volume);
}

/** Applies what snapshot t1 holds of these locations. @returns the locations that it gave. */
async function applyMedium({ backup, recovering }: Example, selected: readonly number[]): Promise<number[]> {
  const snapshot = backup.volume.openSnapshot('t1');
  const given: number[] = [];
  try {
    await recovering.volume.fill(async (recovery) => {
      for (const location of selected) {
        const content = Buffer.alloc(TEST_TRACK_BYTES);
        await snapshot.read(content, (location - 1) * TEST_TRACK_BYTES);
        if (await recovery.offer(location - 1, content)) given.push(location);
      }
    });
  } finally {
    await snapshot.close();
  }
  return given.toSorted((a, b) => a - b);
}

const MEDIUM = [5, 1, 6, 2, 4, 3];
const words = (text: string): string[] => text.split(' ');

/** The client's and the backup side's part of each step. */
const STEPS: Readonly<Record<number, (example: Example) => Promise<unknown>>> = {
  1: ({ recovering }) => readAt(recovering.volume, 1),
  2: ({ recovering }) => request(recovering.volume, { 3: '3a', 4: '4a' }),
  3: ({ recovering }) => request(recovering.volume, { 3: '3b', 4: '4b', 6: '6a' }),
  4: ({ backup }) => backup.volume.createSnapshot('t1'),
  5: ({ recovering }) => request(recovering.volume, { 1: '1a', 3: '3c' }),
  7: ({ recovering }) => request(recovering.volume, { 1: '1b', 4: '4c', 6: '6b' }),
  8: (example) => applyMedium(example, MEDIUM),
};

async function steps(example: Example, from: number, to: number): Promise<void> {
  for (let step = from; step <= to; step += 1) await STEPS[step]?.(example);
}

t.test('R1: recovery on two channels', async (t) => {
  const example = await lost(t);
  const { recovering, side, backup, t0 } = example;
  const { home } = recovering;
  const since = (point: string): number[] => locations(backup.volume.changedSince(point));
  t.same(await homeLabels(example), words('- - - - - -'), 'step 0 (T0)');
  t.same(current(example), []);

  side.forgetOperations();
  t.equal(await readAt(recovering.volume, 1), '1', 'step 1');
  const reads = (): number[] =>
    side.operations
      .filter(({ kind }) => kind === 'read')
      .map((one) => one.offsetBytes / TEST_TRACK_BYTES + 1);
  t.same(reads(), [1], 'step 1 asks the backup side once');
  t.same(await homeLabels(example), words('1 - - - - -'));
  t.equal(await readAt(recovering.volume, 1), '1');

  await STEPS[2]?.(example);
  t.same(await homeLabels(example), words('1 - 3a 4a - -'), 'step 2');
  t.same(await sideLabels(example), words('1 2 3a 4a 5 6'));
  t.same(since(t0), [3, 4]);

  await STEPS[3]?.(example);
  t.same(await homeLabels(example), words('1 - 3b 4b - 6a'), 'step 3');
  t.same(current(example), [1, 3, 4, 6]);
  t.same(await sideLabels(example), words('1 2 3b 4b 5 6a'));
  t.same(since(t0), [3, 4, 6]);

  const { point: t1 } = await backup.volume.createSnapshot('t1');
  t.same(since(t1), [], 'step 4 (T1)');

  await STEPS[5]?.(example);
  t.same(await homeLabels(example), words('1a - 3c 4b - 6a'), 'step 5');
  t.same(await sideLabels(example), words('1a 2 3c 4b 5 6a'));
  t.same(since(t1), [1, 3]);

  t.same(await labelsInSnapshot(backup.volume, 't1'), words('1 2 3b 4b 5 6a'), 'step 6: the medium');

  await STEPS[7]?.(example);
  t.same(await homeLabels(example), words('1b - 3c 4c - 6b'), 'step 7');
  t.same(await sideLabels(example), words('1b 2 3c 4c 5 6b'));
  t.same(since(t1), [1, 3, 4, 6]);

  home.forgetOperations();
  t.same(await applyMedium(example, MEDIUM), [2, 5], 'step 8 (T2): two are taken, four passed over');
  const written = home.operations.filter(({ kind }) => kind === 'write');
  t.same(
    written.map(({ offsetBytes }) => offsetBytes / TEST_TRACK_BYTES + 1).toSorted((a, b) => a - b),
    [2, 5],
  );
  t.equal(recovering.volume.recovery, undefined, 'the recovery is over');
  t.same(await labelsOn(home), words('1b 2 3c 4c 5 6b'));
  t.same(await labelsOn(home), await sideLabels(example), 'home and backup side are equal');
  t.equal(await readAt(recovering.volume, 1), '1b');
  t.same(reads(), [1], 'location 1 was asked for once');
});

t.test('R1: a write is acknowledged when both sides have it', async (t) => {
  const { recovering, side } = await lost(t);
  for (const device of [side, recovering.home]) {
    const gate = device.hold({ kind: 'write' });
    let isAcknowledged = false;
    const write = request(recovering.volume, { 3: '3a' }).then(() => (isAcknowledged = true));
    await gate.arrived(1);
    await new Promise((resolve) => setImmediate(resolve));
    t.equal(isAcknowledged, false, device === side ? 'the side has not' : 'the home has not');
    gate.open();
    await write;
    gate.remove();
  }
});

t.test('R1 b: the client reads 2 between steps 7 and 8', async (t) => {
  const example = await lost(t);
  await steps(example, 1, 7);
  example.side.forgetOperations();
  t.equal(await readAt(example.recovering.volume, 2), '2');
  t.equal(example.side.operations.filter(({ kind }) => kind === 'read').length, 1, 'the side is asked');
  t.same(await applyMedium(example, MEDIUM), [5]);
  t.same(await labelsOn(example.recovering.home), words('1b 2 3c 4c 5 6b'));
});

t.test('R1 c: the selected set is locations 1 to 3', async (t) => {
  const example = await lost(t);
  await steps(example, 1, 7);
  t.same(await applyMedium(example, [3, 1, 2]), [2]);
  t.same(await homeLabels(example), words('1b 2 3c 4c - 6b'), '5 stays lost');
  example.side.forgetOperations();
  t.equal(await readAt(example.recovering.volume, 5), '5');
  t.equal(example.side.operations.length, 1, 'a read of it still asks the backup side');
});

t.test('R1 d: 512 bytes in the middle of 5 are written after step 7', async (t) => {
  const example = await lost(t);
  const { recovering } = example;
  await steps(example, 1, 7);
  const offsetBytes = 4 * TEST_TRACK_BYTES + 1024;
  await recovering.volume.write(Buffer.alloc(512, 0xee), offsetBytes);
  t.same(current(example), [1, 3, 4, 5, 6], 'the whole of 5 is current');
  const wanted = labelled('5');
  wanted.fill(0xee, 1024, 1536);
  for (const device of [recovering.home, example.backup.volume]) {
    const content = Buffer.alloc(TEST_TRACK_BYTES);
    await device.read(content, 4 * TEST_TRACK_BYTES);
    t.ok(content.equals(wanted), '5 with the 512 new bytes');
  }
  t.same(await applyMedium(example, MEDIUM), [2], 'step 8 leaves it alone');
});

for (const how of ['trimmed', 'zeroed'] as const) {
  t.test(`R1 e: 2 is ${how} after step 7`, async (t) => {
    const example = await lost(t);
    const { volume } = example.recovering;
    await steps(example, 1, 7);
    if (how === 'trimmed') await volume.trim(TEST_TRACK_BYTES, TEST_TRACK_BYTES);
    else await volume.writeZeroes(TEST_TRACK_BYTES, TEST_TRACK_BYTES);
    t.same(current(example), [1, 2, 3, 4, 6]);
    t.same(await applyMedium(example, MEDIUM), [5]);
    t.same(await labelsOn(example.recovering.home), words('1b 0 3c 4c 5 6b'));
    t.same(await sideLabels(example), words('1b 0 3c 4c 5 6b'));
  });
}

/** A volume whose map begins only now: the home holds what it held, and all of it counts as lost. */
async function mapBeginsNow(t: Teardown, example: Example): Promise<Example> {
  const { side, recovering } = example;
  await recovering.volume.close();
  const again = await makeRecovering(t, {
    side: { device: side, mirror: side, close: async () => undefined },
    trackCount: COUNT,
    mirror: 'test',
    home: recovering.home,
  });
  return { ...example, recovering: again };
}

t.test('R1 g: the map begins at T1, the latest moment allowed', async (t) => {
  const before = await lost(t);
  await steps(before, 1, 4);
  const example = await mapBeginsNow(t, before);
  await steps(example, 5, 8);
  t.same(await labelsOn(example.recovering.home), words('1b 2 3c 4c 5 6b'));
  t.same(await sideLabels(example), words('1b 2 3c 4c 5 6b'));
});

t.test('R1 h: control, the map begins after step 5, and the end is wrong', async (t) => {
  const before = await lost(t);
  await steps(before, 1, 5);
  const example = await mapBeginsNow(t, before);
  await STEPS[7]?.(example);
  t.same(await applyMedium(example, MEDIUM), [2, 3, 5]);
  t.same(await labelsOn(example.recovering.home), words('1b 2 3b 4c 5 6b'), 'the home ends with 3b');
  t.same(await sideLabels(example), words('1b 2 3c 4c 5 6b'), 'where the side has 3c');
});

t.test('R1 i: no live backup side, only a block set of T0', async (t) => {
  const sizeBytes = COUNT * TEST_TRACK_BYTES;
  const set = new MemoryDevice({ sizeBytes });
  await request(set, { 1: '1', 2: '2', 3: '3', 4: '4', 5: '5', 6: '6' });
  const point = '0123456789abcdef0123456789abcdef';
  const recovering = await makeRecovering(t, {
    side: { device: set, close: async () => undefined },
    trackCount: COUNT,
    point,
  });
  const { volume } = recovering;
  t.equal(await readAt(volume, 1), '1');
  await request(volume, { 3: '3a', 4: '4a' });
  await request(volume, { 3: '3b', 4: '4b', 6: '6a' });
  await request(volume, { 1: '1a', 3: '3c' });
  await request(volume, { 1: '1b', 4: '4c', 6: '6b' });
  await volume.fill((recovery, signal) => recovery.fillAll({ signal }));
  t.same(await labelsOn(recovering.home), words('1b 2 3c 4c 5 6b'));
  t.same(
    locations(volume.changedSince(point)),
    [1, 3, 4, 6],
    'the next incremental has these and nothing else',
  );
  t.same(await labelsOn(set), words('1 2 3 4 5 6'), 'writes went to the home alone');
  await recovering.reopen();
  t.same(locations(recovering.volume.changedSince(point)), [1, 3, 4, 6], 'also after a restart');
});

t.test('R1: a restart after each step', async (t) => {
  const example = await lost(t);
  const { recovering } = example;
  for (let step = 1; step <= 8; step += 1) {
    await steps(example, step, step);
    const before = await homeLabels(example);
    await recovering.reopen();
    t.same(await homeLabels(example), before, `step ${step}`);
  }
  t.same(await labelsOn(recovering.home), words('1b 2 3c 4c 5 6b'));
});

/** The versions of each location, oldest first. */
const VERSIONS: Readonly<Record<number, string[]>> = {
  1: ['1', '1a', '1b'],
  3: ['3', '3a', '3b', '3c'],
  4: ['4', '4a', '4b', '4c'],
  6: ['6', '6a', '6b'],
};

async function contentOf(volume: Volume): Promise<Buffer> {
  const content = Buffer.alloc(volume.sizeBytes);
  await volume.read(content, 0);
  return content;
}

/** Whether each sector of a location is of the label's version or a later one: what was not flushed may be torn. */
function isNotOlder(content: Buffer, location: number, label: string): boolean {
  const versions = VERSIONS[location] ?? [label];
  const allowed = versions.slice(versions.indexOf(label)).map((version) => labelled(version));
  const track = content.subarray((location - 1) * TEST_TRACK_BYTES, location * TEST_TRACK_BYTES);
  for (let sector = 0; sector < TEST_TRACK_BYTES; sector += 512) {
    const isOf = (one: Buffer): boolean =>
      track.compare(one, sector, sector + 512, sector, sector + 512) === 0;
    if (!allowed.some(isOf)) return false;
  }
  return true;
}

/**
 * Goes through all steps with a flush after some, until the power goes at the n-th operation of home and side. What the
 * machine has on its disk then is what is found afterwards; the side is another machine and goes on.
 *
 * @returns what had been flushed; undefined where there were fewer operations.
 */
async function untilCut(example: Example, at: number): Promise<Map<number, string> | undefined> {
  const { recovering, side } = example;
  const { home } = recovering;
  const statePath = join(recovering.directory, 'state.mdb');
  const flushed = new Map<number, string>();
  let count = 0;
  let state: Buffer | undefined;
  const watch = async (): Promise<void> => {
    count += 1;
    if (count < at) return;
    state ??= readFileSync(statePath);
    throw new DeviceError('io', 'The power was cut', { device: 'test' });
  };
  const rules = [home.delay({}, watch), side.delay({}, watch)];
  try {
    for (let step = 1; step <= 8; step += 1) {
      await steps(example, step, step);
      await recovering.volume.flush();
      for (const [index, label] of (await labelsOn(home)).entries())
        if (current(example).includes(index + 1)) flushed.set(index + 1, label);
    }
  } catch (error) {
    if (state === undefined) throw error;
  }
  await recovering.volume.close().catch(() => undefined);
  for (const rule of rules) rule.remove();
  if (state === undefined) return undefined;
  writeFileSync(statePath, state);
  return flushed;
}

t.test('R1 f: the power goes at every operation of home and side', async (t) => {
  const random = new SeededRandom(1);
  for (let at = 1; ; at += 1) {
    const example = await lost(t);
    const { recovering, backup } = example;
    const flushed = await untilCut(example, at);
    if (flushed === undefined) {
      t.ok(at > 40, `there were ${at - 1} operations to cut at`);
      return;
    }
    await recovering.home.powerCut(random);
    recovering.volume = await recovering.open();
    const content = await contentOf(recovering.volume);
    t.ok(content.equals(await contentOf(backup.volume)), `cut at ${at}: both sides hold the same`);
    for (const [location, label] of flushed)
      t.ok(isNotOlder(content, location, label), `cut at ${at}: ${location} is not older than ${label}`);
    const hasSnapshot = backup.volume.snapshots().some(({ name }) => name === 't1');
    await steps(example, 2, 3);
    if (!hasSnapshot) await steps(example, 4, 4);
    await steps(example, 5, 8);
    t.same(await labelsOn(recovering.volume), words('1b 2 3c 4c 5 6b'), `cut at ${at}: the end is the same`);
    t.same(await sideLabels(example), words('1b 2 3c 4c 5 6b'));
    await recovering.volume.close();
    await backup.volume.close();
  }
});

t.test('A state with parts of a recovery only is refused, and found by a check', async (t) => {
  for (const key of ['recovery', 'overwrite-map 0']) {
    const { recovering } = await lost(t);
    await recovering.volume.close();
    const file = openLmdb(join(recovering.directory, 'state.mdb'), { ownLock: true });
    const state = file.database('state');
    file.transaction(() => {
      state.remove(key);
    });
    await file.sync('volume-state');
    await file.close();
    await t.rejects(recovering.open(), { name: 'CorruptionError', message: /State of a recovery/ }, key);
    const { findings } = await checkVolume(recovering.directory, {
      registry: { open: async () => unclosed(recovering.home) },
    });
    t.match(findings, [{ where: /recovery/ }]);
  }
});
