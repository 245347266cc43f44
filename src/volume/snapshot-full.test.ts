/**
 * Goal: a full disk under the snapshots costs no more than was agreed. `refuse`: the write that needs a copy fails,
 * nothing changes, and all goes on once there is room. `drop`: the oldest snapshot goes, loudly, and the write succeeds.
 *
 * Method: a small filesystem in memory, under the folder of the snapshots or under the volume's whole directory; the
 * home lies elsewhere. Tracks of content that no zeroes shorten are overwritten until it is full.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB, messageOf } from '../base/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelsOf, mountTmpfs, writeLabel } from '../sim/index.ts';
import { createVolume, type FullPolicy, Volume } from './index.ts';
import { damagedFiles, labelsInSnapshot } from './kept.fixture.ts';

const TRACK_BYTES = 64 * KIB;
const TRACKS = 16;

interface Full {
  readonly volume: Volume;
  readonly warnings: string[];
  readonly directory: string;
}

/** A volume whose snapshots, or all of whose files, lie on a filesystem of `sizeBytes`. */
async function makeFull(
  t: Test,
  options: {
    readonly snapshotFull: FullPolicy;
    readonly sizeBytes: number;
    readonly what: 'snapshots' | 'all';
  },
): Promise<Full | undefined> {
  const small = mountTmpfs(t, options.sizeBytes);
  if (small === undefined) return undefined;
  const parent = await mkdtemp(join(tmpdir(), 'cowbell-volume-'));
  const directory = options.what === 'all' ? join(small, 'v') : join(parent, 'v');
  const sizeBytes = TRACKS * TRACK_BYTES;
  const warnings: string[] = [];
  const { snapshotFull } = options;
  // The home is a device of the test's; the file of that name stays empty.
  const home = join(parent, 'home');
  writeFileSync(home, '');
  await createVolume(directory, { sizeBytes, trackSizeBytes: TRACK_BYTES, snapshotFull });
  if (options.what === 'snapshots') symlinkSync(small, join(directory, 'snapshots'));
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes }));
  const volume = await Volume.open(directory, {
    registry: { open: async () => device },
    activity: 'testing',
    onWarning: (sentence) => warnings.push(sentence),
  });
  t.teardown(async () => {
    await volume.close();
    await rm(parent, { recursive: true, force: true });
  });
  return { volume, warnings, directory };
}

async function fill(volume: Volume, prefix: string): Promise<string[]> {
  for (let track = 0; track < TRACKS; track += 1) await writeLabel(volume, track, `${prefix}${track}`);
  return labelsOf(volume);
}

/** Overwrites track after track. @returns the first that failed, and why. */
async function overwrite(
  volume: Volume,
  prefix: string,
): Promise<{ track: number; error: unknown } | undefined> {
  for (let track = 0; track < TRACKS; track += 1) {
    try {
      await writeLabel(volume, track, `${prefix}${track}`);
    } catch (error) {
      return { track, error };
    }
  }
  return undefined;
}

for (const what of ['snapshots', 'all'] as const) {
  // Beside the snapshots lie the state and the intent log.
  const sizeBytes = what === 'all' ? 900 * KIB : 700 * KIB;

  t.test(`refuse; ${what} on the full disk`, async (t) => {
    const full = await makeFull(t, { snapshotFull: 'refuse', sizeBytes, what });
    if (full === undefined) return;
    const { volume, warnings } = full;
    const one = await fill(volume, 'a');
    await volume.createSnapshot('one');
    for (let track = 0; track < 4; track += 1) await writeLabel(volume, track, `b${track}`);
    const two = await labelsOf(volume);
    await volume.createSnapshot('two');

    const failed = await overwrite(volume, 'c');
    t.match(failed?.error, { code: 'snapshot-full' });
    const before = await labelsOf(volume);
    t.equal(before[failed?.track ?? 0], two[failed?.track ?? 0], 'the write changed nothing');
    t.equal(volume.status().poisoned, undefined);
    t.same(await labelsInSnapshot(volume, 'one'), one);
    t.same(await labelsInSnapshot(volume, 'two'), two);
    await t.rejects(writeLabel(volume, failed?.track ?? 0, 'again'), { code: 'snapshot-full' });
    await writeLabel(volume, 0, 'd0');
    t.equal((await labelsOf(volume))[0], 'd0', 'what needs no copy is written');

    await volume.deleteSnapshot('one');
    await writeLabel(volume, failed?.track ?? 0, 'again');
    t.same(await labelsInSnapshot(volume, 'two'), two);
    t.same(await damagedFiles(full), [], 'what a full disk left of a batch is no damage');
    t.same(warnings, []);
  });

  t.test(`refuse, and several writers at once; ${what} on the full disk`, async (t) => {
    const full = await makeFull(t, { snapshotFull: 'refuse', sizeBytes, what });
    if (full === undefined) return;
    const { volume } = full;
    const one = await fill(volume, 'a');
    await volume.createSnapshot('one');
    await overwrite(volume, 'b');
    const outcomes = await Promise.allSettled(one.map((_, track) => writeLabel(volume, track, `c${track}`)));
    const labels = await labelsOf(volume);
    for (const [track, { status }] of outcomes.entries()) {
      const { [track]: label = '' } = labels;
      t.equal(label.startsWith('c'), status === 'fulfilled', `track ${track}: ${status}, ${label}`);
    }
    t.ok(outcomes.some(({ status }) => status === 'rejected'));
    t.same(await labelsInSnapshot(volume, 'one'), one);
    await t.resolves(volume.deleteSnapshot('one'), 'the way out of a full disk');
    t.equal(await overwrite(volume, 'd'), undefined);
  });

  t.test(`drop; ${what} on the full disk`, async (t) => {
    const full = await makeFull(t, { snapshotFull: 'drop', sizeBytes, what });
    if (full === undefined) return;
    const { volume, warnings } = full;
    await fill(volume, 'a');
    await volume.createSnapshot('one');
    for (let track = 0; track < 6; track += 1) await writeLabel(volume, track, `b${track}`);
    const two = await labelsOf(volume);
    await volume.createSnapshot('two');
    for (let track = 0; track < 6; track += 1) await writeLabel(volume, track, `c${track}`);
    t.same(
      volume.snapshots().map(({ name }) => name),
      ['two'],
      'the oldest went',
    );
    t.match(warnings, [/^Snapshot one of v was dropped: .*no space/i]);
    t.same(await labelsInSnapshot(volume, 'two'), two, 'the newest is exact');
    t.throws(() => volume.openSnapshot('one'), { code: 'unknown-snapshot' });

    const device = volume.openSnapshot('two');
    const failed = await overwrite(volume, 'd');
    t.equal(failed, undefined, messageOf(failed?.error));
    t.same(volume.snapshots(), [], 'the last one goes too');
    t.equal(warnings.length, 2);
    await t.rejects(async () => device.read(Buffer.alloc(512), 0), { code: 'snapshot-gone' });
    await device.close();
    t.equal((await labelsOf(volume))[TRACKS - 1], `d${TRACKS - 1}`);
    t.equal(volume.status().poisoned, undefined);
  });
}

t.test('a drop while the oldest is being deleted takes no other', async (t) => {
  const full = await makeFull(t, { snapshotFull: 'drop', sizeBytes: 700 * KIB, what: 'snapshots' });
  if (full === undefined) return;
  const { volume } = full;
  await fill(volume, 'a');
  await volume.createSnapshot('one');
  for (let track = 0; track < 6; track += 1) await writeLabel(volume, track, `b${track}`);
  const two = await labelsOf(volume);
  await volume.createSnapshot('two');
  for (let track = 0; track < 3; track += 1) await writeLabel(volume, track, `c${track}`);
  const writing = Promise.all([3, 4, 5].map((track) => writeLabel(volume, track, `c${track}`)));
  await Promise.allSettled([volume.deleteSnapshot('one'), writing]);
  await writing;
  t.same(
    volume.snapshots().map(({ name }) => name),
    ['two'],
  );
  t.same(await labelsInSnapshot(volume, 'two'), two);
});

t.test('a rollback does not drop the snapshot that it goes back to', async (t) => {
  const full = await makeFull(t, { snapshotFull: 'drop', sizeBytes: 700 * KIB, what: 'snapshots' });
  if (full === undefined) return;
  const { volume } = full;
  const one = await fill(volume, 'a');
  await volume.createSnapshot('one');
  for (let track = 0; track < 7; track += 1) await writeLabel(volume, track, `b${track}`);
  await volume.createSnapshot('two');
  await t.rejects(volume.rollBack('one'), { code: 'snapshot-full' });
  t.same(await labelsInSnapshot(volume, 'one'), one);
  await volume.deleteSnapshot('two').catch(() => undefined);
  t.same(await labelsInSnapshot(volume, 'one'), one);
});
