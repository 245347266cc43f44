/**
 * EXAMPLES B11: side file and request queue. Tracks `a` to `e` are 0 to 4; `a`, `b` and `e` belong to the backup.
 *
 * Method: a real volume with a memory container as the side file, and a receiver that stores each track once. What is
 * copied is what the home's device is asked to read.
 */

import t from 'tap';
import { labelsOf, makeTestVolume, type TestVolume, writeLabel } from '../sim/index.ts';
import { full, Receiver } from './receiver.fixture.ts';

const [A, B, E] = [0, 1, 4];

/** The volume after a full backup, with `a`, `b` and `e` written since. */
async function begin(t: Parameters<typeof makeTestVolume>[0]) {
  const test = await makeTestVolume(t, { trackCount: 5 });
  for (const [track, label] of ['a', 'b', 'c', 'd', 'e'].entries())
    await writeLabel(test.volume, track, label);
  const points: string[] = [];
  for (const consumer of ['first', 'second']) {
    const level0 = await Receiver.begin(test.volume, 0, { consumer });
    await level0.mainPass(0, 5);
    await level0.finish();
    points.push(level0.session.plan.point);
  }
  for (const [track, label] of [
    [A, 'a1'],
    [B, 'b1'],
    [E, 'e1'],
  ] as const)
    await writeLabel(test.volume, track, label);
  return { test, points };
}

function copyCount({ home }: TestVolume): number {
  return home.operations.filter(({ kind }) => kind === 'read').length;
}

t.test('B11: protection ends when a track is copied; its room when it is acknowledged', async (t) => {
  const { test, points } = await begin(t);
  const { volume, home } = test;
  const candidates = points.slice(0, 1).map(full);
  const receiver = await Receiver.begin(volume, 3, { consumer: 'first', level: 'incremental', candidates });
  const { session } = receiver;
  t.same(session.plan.tracks.toArray(), [A, B, E]);
  home.forgetOperations();
  for (const track of [A, B, E]) await writeLabel(volume, track, 'x');
  t.equal(copyCount(test), 3, 'each is copied to the side file');
  t.match(session.status(), { tracksLeft: 0, containerEntries: 3 }, 'and protected no more, untransferred');
  await writeLabel(volume, A, 'y');
  t.equal(copyCount(test), 3, 'a write to a needs no copy now');

  t.same(await receiver.take(1), [E], 'a request was posted for each');
  t.equal(session.status().containerEntries, 3, 'taken is not acknowledged');
  receiver.acknowledge();
  t.equal(session.status().containerEntries, 2);

  t.same(await receiver.take(1), [B]);
  receiver.reconnect();
  t.match(session.status(), { containerEntries: 2, containerSlotsUsed: 2 });
  t.same(await receiver.take(), [B, A], 'b was sent and not acknowledged: it is sent again');
  receiver.acknowledge();
  t.same(receiver.came, [E, B, B, A]);
  t.match(session.status(), { containerEntries: 0, containerSlotsUsed: 0 });
  t.same(await receiver.take(), [], 'the end');
  await receiver.finish();
  t.same(Object.fromEntries(receiver.stored), { [A]: 'a1', [B]: 'b1', [E]: 'e1' }, 'each stored once');
  t.same(await labelsOf(volume), ['y', 'x', 'c', 'd', 'x']);
});

t.test('B11: a second set that also wants b: one copy, released after both acknowledgements', async (t) => {
  const { test, points } = await begin(t);
  const { volume, home } = test;
  const [one = '', two = ''] = points;
  const first = await Receiver.begin(volume, 3, {
    consumer: 'first',
    level: 'incremental',
    candidates: [full(one)],
  });
  const second = await Receiver.begin(volume, 3, {
    consumer: 'second',
    level: 'incremental',
    candidates: [full(two)],
  });
  home.forgetOperations();
  await writeLabel(volume, B, 'x');
  t.equal(copyCount(test), 1);
  const used = (): number[] => [first, second].map(({ session }) => session.status().containerSlotsUsed);
  t.same(used(), [1, 0], 'one slot of one of them');
  t.same([await first.take(), await second.take()], [[B], [B]]);
  first.acknowledge();
  t.same(used(), [1, 0], 'the second has not acknowledged it');
  second.reconnect();
  t.same(await second.take(), [B]);
  second.acknowledge();
  t.same(used(), [0, 0]);
  for (const receiver of [first, second]) {
    await receiver.mainPass(A, 1);
    await receiver.mainPass(E, 1);
    await receiver.finish();
    t.same(Object.fromEntries(receiver.stored), { [A]: 'a1', [B]: 'b1', [E]: 'e1' });
  }
});

t.test('a track that is read out of turn is sent again as well', async (t) => {
  const { test, points } = await begin(t);
  const { volume } = test;
  const candidates = points.slice(0, 1).map(full);
  const receiver = await Receiver.begin(volume, 0, { consumer: 'first', level: 'incremental', candidates });
  const writing = writeLabel(volume, B, 'x');
  t.same(await receiver.take(), [B]);
  receiver.reconnect();
  t.same(await receiver.take(), [B]);
  t.equal((await labelsOf(volume))[B], 'b1', 'the write waits all the time');
  receiver.acknowledge();
  await writing;
  t.equal(receiver.stored.get(B), 'b1');
  t.match(receiver.session.status(), { writesWaiting: 0, tracksLeft: 2 });
});
