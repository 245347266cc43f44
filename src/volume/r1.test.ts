/**
 * EXAMPLES R1, recovery on two channels: the steps of the snapshot, 4 (T1) to 7, and variant a, on a volume that is
 * the backup side. The home's side, and the other variants, are in `r1-recovery.test.ts`.
 *
 * Goal: what the backup side holds, what is marked since its last point, what changed between T0 and T1, and what is
 * kept for T1 are after each step what the example's table says.
 *
 * Method: location n is track n - 1. T0 is the point of a set that was completed then, T1 a snapshot. What is kept is
 * read from the snapshot's file.
 */

import t from 'tap';
import { labelsOf, labelled, makeTestVolume, TEST_TRACK_BYTES, type TestVolume } from '../sim/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { keptIn, labelsInSnapshot } from './kept.fixture.ts';

const ALL = [1, 2, 3, 4, 5, 6];

/** One client request: labels by location, all under way at once. */
async function request({ volume }: TestVolume, labels: Readonly<Record<number, string>>): Promise<void> {
  const writes = Object.entries(labels).map(async ([location, label]) =>
    volume.write(labelled(label), (Number(location) - 1) * TEST_TRACK_BYTES),
  );
  await Promise.all(writes);
}

function locations(tracks: TrackSet): number[] {
  return tracks.toArray().map((track) => track + 1);
}

async function kept(test: TestVolume): Promise<Record<number, string>> {
  const byTrack = Object.entries(await keptIn(test));
  return Object.fromEntries(byTrack.map(([track, label]) => [Number(track) + 1, label]));
}

/** The point T0: that of a complete set. */
async function pointT0({ volume }: TestVolume): Promise<string> {
  const session = await volume.beginSession({ consumer: 'T0', level: 'full', candidates: [], areas: [] });
  session.confirm([{ first: 0, count: ALL.length }]);
  await session.mayComplete();
  await session.complete('set of T0');
  return session.plan.point;
}

/** Steps 0 to 4. */
async function untilT1(t: Parameters<typeof makeTestVolume>[0]) {
  const test = await makeTestVolume(t, { trackCount: ALL.length });
  const { volume } = test;
  await request(test, { 1: '1', 2: '2', 3: '3', 4: '4', 5: '5', 6: '6' });
  const t0 = await pointT0(test);
  const sinceMark = (point: string): number[] => locations(volume.changedSince(point));
  const step0 = sinceMark(t0);
  await request(test, { 3: '3a', 4: '4a' });
  const step2 = sinceMark(t0);
  await request(test, { 3: '3b', 4: '4b', 6: '6a' });
  const step3 = sinceMark(t0);
  const { point: t1 } = await volume.createSnapshot('t1');
  const marks = [step0, step2, step3];
  /** What changed between T0 and T1: what is marked at T1 of what was marked until then. */
  const syncMap = async (): Promise<number[]> => {
    const session = await volume.beginSession({
      consumer: 'sync map',
      level: 'incremental',
      candidates: [{ point: t0, isFull: true, chainSetCount: 1 }],
      areas: [],
      snapshot: 't1',
    });
    session.fail(new Error('only the plan was wanted'));
    await session.whenEnded();
    return locations(session.plan.tracks);
  };
  return { test, volume, t0, t1, marks, sinceMark, syncMap };
}

t.test('R1: snapshot of the backup side, steps 4 to 7', async (t) => {
  const { test, volume, t1, marks, sinceMark, syncMap } = await untilT1(t);
  t.same(marks, [[], [3, 4], [3, 4, 6]], 'steps 0 to 3: the since mark');

  t.same(await labelsOf(volume), ['1', '2', '3b', '4b', '5', '6a'], 'step 4 (T1)');
  t.same(sinceMark(t1), []);
  t.same(await syncMap(), [3, 4, 6]);
  t.same(await kept(test), {});

  await request(test, { 1: '1a', 3: '3c' });
  t.same(await labelsOf(volume), ['1a', '2', '3c', '4b', '5', '6a'], 'step 5');
  t.same(sinceMark(t1), [1, 3]);
  t.same(await syncMap(), [3, 4, 6]);
  t.same(await kept(test), { 1: '1', 3: '3b' });

  test.home.forgetOperations();
  t.same(await labelsInSnapshot(volume, 't1'), ['1', '2', '3b', '4b', '5', '6a'], 'step 6: the medium');
  const fromHome = test.home.operations.flatMap(({ offsetBytes, lengthBytes }) =>
    locations(TrackSet.ofRun(volume.geometry.tracksOf(offsetBytes, lengthBytes))),
  );
  t.same(fromHome, [2, 4, 5, 6], 'step 6: 1 and 3 come from what was kept');
  t.same(sinceMark(t1), [1, 3]);
  t.same(await kept(test), { 1: '1', 3: '3b' });

  const sizeBefore = volume.snapshots()[0]?.usedBytes ?? 0;
  /** What was kept when each location was about to be overwritten. */
  const keptBefore = new Map<number, string | undefined>();
  const watch = test.home.delay({ kind: 'write' }, async ({ offsetBytes }) => {
    const location = offsetBytes / TEST_TRACK_BYTES + 1;
    keptBefore.set(location, (await kept(test))[location]);
  });
  await request(test, { 1: '1b', 4: '4c', 6: '6b' });
  watch.remove();
  t.same(await labelsOf(volume), ['1b', '2', '3c', '4c', '5', '6b'], 'step 7');
  t.same(sinceMark(t1), [1, 3, 4, 6]);
  t.same(await syncMap(), [3, 4, 6]);
  t.same(await kept(test), { 1: '1', 3: '3b', 4: '4b', 6: '6a' });
  t.same(
    [...keptBefore].toSorted(([a], [b]) => a - b),
    [
      [1, '1'],
      [4, '4b'],
      [6, '6a'],
    ],
    'step 7: 4 and 6 are kept before they are overwritten',
  );
  const grown = (volume.snapshots()[0]?.usedBytes ?? 0) - sizeBefore;
  const contents = Math.floor(grown / TEST_TRACK_BYTES);
  // A batch has a header page, as long as a track here: two contents in one batch or in two.
  t.ok(contents === 3 || contents === 4, `step 7: two tracks are kept, 1 not a second time (${grown} bytes)`);
  t.equal(volume.snapshots()[0]?.tracks, 4);
});

t.test('R1 a: the medium is written after step 7', async (t) => {
  const { test, volume } = await untilT1(t);
  await request(test, { 1: '1a', 3: '3c' });
  await request(test, { 1: '1b', 4: '4c', 6: '6b' });
  test.home.forgetOperations();
  t.same(await labelsInSnapshot(volume, 't1'), ['1', '2', '3b', '4b', '5', '6a']);
  const fromHome = test.home.operations.flatMap(({ offsetBytes, lengthBytes }) =>
    locations(TrackSet.ofRun(volume.geometry.tracksOf(offsetBytes, lengthBytes))),
  );
  t.same(fromHome, [2, 5], '1 3 4 6 come from what was kept');
  t.same(await kept(test), { 1: '1', 3: '3b', 4: '4b', 6: '6a' });
});
