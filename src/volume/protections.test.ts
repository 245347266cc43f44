/**
 * Goal: several sessions on one volume, each with its own point, room and state; what they share is copied once; and
 * however one ends, neither the others nor a write notice.
 *
 * Method: a real volume and receivers that store when the test says so. What is copied is what the home's device is
 * asked to read. The content that a session must store is the model's at its freeze.
 */

import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { DeviceArea } from '../container/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelsOf, makeTestVolume, TEST_TRACK_BYTES, type TestVolume, writeLabel } from '../sim/index.ts';
import { Receiver } from './receiver.fixture.ts';

const LABELS = ['o0', 'o1', 'o2', 'o3', 'o4', 'o5'];

async function makeVolume(t: Parameters<typeof makeTestVolume>[0]): Promise<TestVolume> {
  const test = await makeTestVolume(t, { trackCount: LABELS.length });
  for (const [track, label] of LABELS.entries()) await writeLabel(test.volume, track, label);
  return test;
}

/** A write, and whether it is done yet. */
function write(test: TestVolume, track: number, label: string) {
  const state = { isDone: false };
  const done = writeLabel(test.volume, track, label).then(() => {
    state.isDone = true;
  });
  return { done, isDone: () => state.isDone };
}

async function settle(): Promise<void> {
  for (let count = 0; count < 20; count += 1) await turn();
}

function copies({ home }: TestVolume): number[] {
  return home.operations
    .filter(({ kind }) => kind === 'read')
    .map(({ offsetBytes }) => offsetBytes / TEST_TRACK_BYTES);
}

/** Takes and acknowledges until the end, then completes. */
async function finish(receiver: Receiver): Promise<string[]> {
  await receiver.mainPass(0, LABELS.length);
  while ((await receiver.take()).length > 0) receiver.acknowledge();
  await receiver.finish();
  return LABELS.map((_, track) => receiver.stored.get(track) ?? 'missing');
}

t.test('each session has the content of its own point', async (t) => {
  const test = await makeVolume(t);
  const first = await Receiver.begin(test.volume, 4, { consumer: 'a' });
  await write(test, 1, 'n1').done;
  const second = await Receiver.begin(test.volume, 4, { consumer: 'b' });
  await write(test, 1, 'm1').done;
  await write(test, 2, 'm2').done;
  await test.volume.createSnapshot('kept');
  const third = await Receiver.begin(test.volume, 0, { consumer: 'c', snapshot: 'kept' });
  await write(test, 3, 'l3').done;
  t.same(
    test.volume.status().sessions.map(({ consumer }) => consumer),
    ['a', 'b', 'c'],
    'beside one of a snapshot',
  );
  t.same(await finish(second), ['o0', 'n1', 'o2', 'o3', 'o4', 'o5']);
  t.same(await finish(first), LABELS);
  t.same(await finish(third), ['o0', 'm1', 'm2', 'o3', 'o4', 'o5']);
  t.same(await labelsOf(test.volume), ['o0', 'm1', 'm2', 'l3', 'o4', 'o5']);
  t.same(
    test.volume.consumers().map(({ name }) => name),
    ['a', 'b', 'c'],
  );
});

t.test('one session for each store; another to the same one names the first', async (t) => {
  const test = await makeVolume(t);
  const first = await Receiver.begin(test.volume, 1, { consumer: 'a', session: 'S1' });
  await Receiver.begin(test.volume, 1, { consumer: 'b' });
  await t.rejects(Receiver.begin(test.volume, 1, { consumer: 'a' }), {
    code: 'session-running',
    message: /session S1 to the same store/,
    details: { session: 'S1' },
  });
  first.session.fail(new Error('cancelled'));
  await first.session.whenEnded();
  t.ok(await Receiver.begin(test.volume, 1, { consumer: 'a' }), 'free again');
});

t.test('what several protect is read once and takes one slot; alone each has its own room', async (t) => {
  const test = await makeVolume(t);
  const first = await Receiver.begin(test.volume, 1, { consumer: 'a' });
  const second = await Receiver.begin(test.volume, 2, { consumer: 'b' });
  test.home.forgetOperations();
  const used = (): number[] => [first, second].map(({ session }) => session.status().containerSlotsUsed);
  await write(test, 0, 'n0').done;
  t.same([copies(test), used()], [[0], [1, 0]]);
  await write(test, 1, 'n1').done;
  t.same(
    [copies(test), used()],
    [
      [0, 1],
      [1, 1],
    ],
    'the first has no room: that of the second serves both',
  );
  t.same(
    [first, second].map(({ session }) => session.status().containerEntries),
    [2, 2],
  );
  test.home.forgetOperations();
  await second.mainPass(2, 1);
  test.home.forgetOperations();
  const alone = write(test, 2, 'n2');
  await settle();
  t.notOk(
    alone.isDone(),
    'only the first protects it, and is full; what the second has free is not for that',
  );
  t.match(first.session.status(), { writesWaiting: 1 });
  t.match(second.session.status(), { writesWaiting: 0, containerSlots: 2, containerSlotsUsed: 1 });
  t.same(await first.take(), [1, 0]);
  first.acknowledge();
  await settle();
  t.notOk(alone.isDone(), 'the second needs what lies in the slot of the first');
  t.same(await second.take(), [1, 0]);
  second.acknowledge();
  await alone.done;
  t.same(copies(test), [2]);
  t.same([await finish(second), await finish(first)], [LABELS, LABELS]);
});

t.test('a write that waits for both goes on with the first slot of either', async (t) => {
  const test = await makeVolume(t);
  const first = await Receiver.begin(test.volume, 1, { consumer: 'a' });
  const second = await Receiver.begin(test.volume, 1, { consumer: 'b' });
  for (const track of [0, 1]) await write(test, track, 'n').done;
  const waiting = write(test, 2, 'n2');
  const next = write(test, 3, 'n3');
  await settle();
  t.same(
    [first, second].map(({ session }) => session.status().writesWaiting),
    [2, 2],
  );
  for (const receiver of [first, second]) await receiver.take(1);
  for (const receiver of [first, second]) receiver.acknowledge();
  await waiting.done;
  t.notOk(next.isDone(), 'in order of arrival');
  // The home still has track 3: the one that reads it needs no slot for it, and waits for it no more.
  t.same(await first.mainPass(3, 1), []);
  t.same(
    [first, second].map(({ session }) => session.status().writesWaiting),
    [0, 1],
  );
  t.same(await second.mainPass(3, 1), []);
  await next.done;
  t.same([await finish(second), await finish(first)], [LABELS, LABELS]);
});

t.test('a session that begins while a write waits lends its room', async (t) => {
  const test = await makeVolume(t);
  const first = await Receiver.begin(test.volume, 0, { consumer: 'a' });
  const waiting = write(test, 4, 'n4');
  await settle();
  t.match(first.session.status(), { writesWaiting: 1 });
  const second = await Receiver.begin(test.volume, 1, { consumer: 'b' });
  await waiting.done;
  t.match(first.session.status(), { writesWaiting: 0, containerEntries: 1, containerSlots: 0 });
  t.same([await finish(second), await finish(first)], [LABELS, LABELS]);
});

t.test('without any room each lane takes the track out of turn, and the write waits for both', async (t) => {
  const test = await makeVolume(t);
  const first = await Receiver.begin(test.volume, 0, { consumer: 'a' });
  const second = await Receiver.begin(test.volume, 0, { consumer: 'b' });
  const waiting = write(test, 4, 'n4');
  await settle();
  t.same([await first.take(), await second.take()], [[4], [4]]);
  first.acknowledge();
  await settle();
  t.notOk(waiting.isDone());
  second.acknowledge();
  await waiting.done;
  t.same([await finish(second), await finish(first)], [LABELS, LABELS]);
});

t.test('a session ends in whatever way: what others need of its room stays, and then goes', async (t) => {
  for (const way of ['done', 'failed'] as const) {
    const test = await makeVolume(t);
    const device = new MemoryDevice({ sizeBytes: TEST_TRACK_BYTES });
    const area = new DeviceArea({ device, trackSizeBytes: TEST_TRACK_BYTES });
    let isClosed = false;
    area.close = async () => {
      isClosed = true;
    };
    const first = await Receiver.begin(test.volume, 0, { consumer: 'a', areas: [area] });
    const second = await Receiver.begin(test.volume, 1, { consumer: 'b' });
    await write(test, 0, 'n0').done;
    if (way === 'done') t.same(await finish(first), LABELS);
    else first.session.fail(new Error('cancelled'));
    await first.session.whenEnded();
    t.notOk(isClosed, `${way}: the second still has to take it`);
    const more = [write(test, 1, 'n1'), write(test, 2, 'n2')];
    await more[0]?.done;
    await settle();
    t.same(
      more.map((one) => one.isDone()),
      [true, false],
      'but no more goes in',
    );
    t.same(await finish(second), LABELS);
    await settle();
    t.ok(isClosed);
    await Promise.all(more.map((one) => one.done));
  }
});

t.test('an area that fails fails its own session; the other and the write go on', async (t) => {
  const test = await makeVolume(t);
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: TEST_TRACK_BYTES }));
  const area = new DeviceArea({ device, trackSizeBytes: TEST_TRACK_BYTES });
  const first = await Receiver.begin(test.volume, 0, { consumer: 'a', areas: [area] });
  const second = await Receiver.begin(test.volume, 1, { consumer: 'b' });
  device.fail({ kind: 'write', nth: 1 });
  await write(test, 0, 'n0').done;
  t.same([first.session.state, second.session.state], ['failed', 'running']);
  t.same(await finish(second), LABELS);
});

t.test('a home that cannot be read fails all that need the track, not the write', async (t) => {
  const test = await makeVolume(t);
  const sessions = [
    await Receiver.begin(test.volume, 1, { consumer: 'a' }),
    await Receiver.begin(test.volume, 1, { consumer: 'b' }),
  ];
  await sessions[1]?.mainPass(0, 1);
  test.home.fail({ kind: 'read', nth: 1 });
  await write(test, 0, 'n0').done;
  t.same(
    sessions.map(({ session }) => session.state),
    ['failed', 'running'],
  );
});

t.test('closing the volume ends them all', async (t) => {
  const test = await makeVolume(t);
  const sessions = [
    await Receiver.begin(test.volume, 0, { consumer: 'a' }),
    await Receiver.begin(test.volume, 1, { consumer: 'b' }),
  ];
  await write(test, 1, 'n1').done;
  await test.reopen();
  t.same(
    sessions.map(({ session }) => session.state),
    ['failed', 'failed'],
  );
});
