/**
 * EXAMPLES C1: container, divert, overflow, drain. Real volume, container, lane and store; the store and the
 * main pass are gated, and what happens when is asserted on recorded events.
 *
 * The lane asks `confirm` for each run of the main pass, so holding `confirm` holds the main pass, and it asks
 * `acknowledge` when the store has taken a track out of the container, so holding `take` holds the store.
 */

import t from 'tap';
import { MemoryDevice } from '../device/index.ts';
import { labelsOf } from '../sim/index.ts';
import { DeviceArea } from '../volume/index.ts';
import { begin, FROZEN, labelAt, memory, settle, TRACK, write } from './c1.fixture.ts';
import { labelsInStore, tracksInSet } from './session.fixture.ts';

for (const kind of ['memory', 'memory and a file'] as const) {
  t.test(`C1: container of two tracks, ${kind}`, async (t) => {
    const areas =
      kind === 'memory'
        ? [memory(2)]
        : [
            memory(1),
            new DeviceArea({ device: new MemoryDevice({ sizeBytes: TRACK }), trackSizeBytes: TRACK }),
          ];
    const example = await begin(t, areas);
    const { test, source, gates } = example;
    t.same(gates.saved, [0, 1, 2], 'step 1');

    await write(example, 1, 'n1').done;
    t.equal(source.session.status().containerEntries, 0, 'step 2: a saved area is written at once');

    await write(example, 5, 'n5').done;
    t.equal(source.session.status().containerEntries, 1, 'step 3: o5 is in the container, the store is shut');
    await write(example, 5, "n5'").done;
    t.equal(source.session.status().containerEntries, 1, 'step 4: only o5');
    await write(example, 7, 'n7').done;
    t.equal(source.session.status().containerEntries, 2, 'step 5: full');

    const four = write(example, 4, 'n4');
    await settle();
    t.notOk(four.isDone(), 'step 6: waits');
    t.equal(await labelAt(example, 4), 'o4');
    t.equal(test.volume.status().writesWaiting, 1);

    await write(example, 2, 'n2').done;
    t.same([await labelAt(example, 4), await labelAt(example, 5)], ['o4', "n5'"], 'step 7: all at once');

    gates.letStoreTake(1);
    await four.done;
    t.same(gates.taken, kind === 'memory' ? [7] : [5], 'step 8: one track, the newest in memory first');
    t.equal(source.session.status().containerEntries, 2, 'it was not emptied first');

    gates.releaseMainPass();
    await settle();
    t.same(gates.saved, [0, 1, 2, 3, 6], 'step 9: passes over 4 5 7');

    await Promise.all([
      write(example, 6, 'n6').done,
      write(example, 0, 'n0').done,
      write(example, 7, "n7'").done,
    ]);
    t.equal(source.session.status().diverted, 3, 'step 10: nothing more is diverted');
    t.same(await example.store.list(), [], 'no set is visible');

    gates.releaseStore();
    const outcome = await example.backup;
    t.equal(outcome.diverted, 3, 'step 11');
    t.same(await labelsInStore(example.store, outcome.set), FROZEN);
    t.same(await tracksInSet(example.store, outcome.set), [0, 1, 2, 3, 4, 5, 6, 7], 'each once');
    t.same(await labelsOf(test.volume), ['n0', 'n1', 'n2', 'o3', 'n4', "n5'", 'n6', "n7'"]);
  });
}

t.test('C1: a container of one track', async (t) => {
  const example = await begin(t, [memory(1)]);
  await write(example, 5, 'n5').done;
  const seven = write(example, 7, 'n7');
  const four = write(example, 4, 'n4');
  await settle();
  t.same([seven.isDone(), four.isDone()], [false, false]);
  example.gates.letStoreTake(1);
  await seven.done;
  t.notOk(four.isDone(), 'a second waiting writer is woken in order of arrival');
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  await four.done;
  const outcome = await example.backup;
  t.same(await labelsInStore(example.store, outcome.set), FROZEN);
});

t.test('C1: a waiting writer is woken when the main pass saves its track', async (t) => {
  const example = await begin(t, [memory(1)]);
  await write(example, 5, 'n5').done;
  const three = write(example, 3, 'n3');
  await settle();
  t.notOk(three.isDone());
  // The lane has read track 3 and is at its question. The store is still shut.
  example.gates.letMainPassConfirm(1);
  await three.done;
  t.equal(example.source.session.status().containerEntries, 1, 'without any room having come free');
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  t.same(await labelsInStore(example.store, (await example.backup).set), FROZEN);
});

t.test('C1: a container of no track at all', async (t) => {
  const example = await begin(t, []);
  const five = write(example, 5, 'n5');
  const again = write(example, 5, "n5'");
  await settle();
  t.notOk(five.isDone(), 'waits until track 5 is in the set');
  await write(example, 1, 'n1').done;
  example.gates.letStoreTake(1);
  await five.done;
  await again.done;
  t.same(example.gates.taken, [5], 'taken out of turn');
  t.notOk(example.gates.saved.includes(4), 'and waited for nothing else');
  t.same(await labelAt(example, 5), "n5'");
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  const outcome = await example.backup;
  t.same(await labelsInStore(example.store, outcome.set), FROZEN);
  t.equal(outcome.diverted, 1);
});
