/**
 * EXAMPLES C2: the branches of the online backup, one case each, on C1's volume.
 */

import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelled, labelsOf, writeLabel } from '../sim/index.ts';
import { DeviceArea } from '../volume/index.ts';
import { begin, type Example, FROZEN, labelAt, memory, settle, TRACK, write } from './c1.fixture.ts';
import { backUp } from './index.ts';
import { labelsInStore, LocalSource, makeTestStore, tracksInSet } from './session.fixture.ts';

t.test('C2: data in a client cache is in the set when a flush was asked for before the freeze', async (t) => {
  const example = await begin(t, [memory(2)]);
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  await example.backup;
  const { volume } = example.test;
  const cached = new Map([[3, 'c3']]);
  const flush = async (): Promise<void> => {
    for (const [track, label] of cached) await writeLabel(volume, track, label);
    await volume.flush();
  };
  await flush();
  const source = new LocalSource({ volume, areas: [memory(2)] });
  const outcome = await backUp({ source, store: example.store, level: 'incremental', codec: 'none' });
  t.same(await labelsInStore(example.store, outcome.set), ['o0', 'o1', 'o2', 'c3', 'o4', 'o5', 'o6', 'o7']);
});

t.test('C2: the short way when the track is saved, the long way when it is not', async (t) => {
  const example = await begin(t, [memory(2)]);
  const { home } = example.test;
  home.forgetOperations();
  await write(example, 1, 'n1').done;
  t.same(
    home.operations.map(({ kind }) => kind),
    ['write'],
    'saved: nothing is read or copied',
  );
  home.forgetOperations();
  await write(example, 5, 'n5').done;
  t.same(
    home.operations.map(({ kind }) => kind),
    ['read', 'write'],
    'unsaved: held, diverted, then written',
  );
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  t.same(await labelsInStore(example.store, (await example.backup).set), FROZEN);
});

t.test(
  'C2: the write and the storing of what it diverted overlap, neither waits for the other',
  async (t) => {
    const example = await begin(t, [memory(2)]);
    const held = example.test.home.hold({ kind: 'write', nth: 1 });
    const five = write(example, 5, 'n5');
    await held.arrived(1);
    t.equal(example.source.session.status().containerEntries, 1);
    example.gates.letStoreTake(1);
    await settle();
    t.same(example.gates.taken, [5], 'stored while the write still runs');
    t.equal(example.source.session.status().containerEntries, 0);
    t.notOk(five.isDone());
    held.open();
    await five.done;
    example.gates.releaseMainPass();
    example.gates.releaseStore();
    t.same(await labelsInStore(example.store, (await example.backup).set), FROZEN);
  },
);

t.test('C2: a torn read is thrown away', async (t) => {
  const example = await begin(t, [memory(8)]);
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  await example.backup;
  const { volume, home } = example.test;
  for (const [track, label] of FROZEN.entries()) await writeLabel(volume, track, label);
  const store = await makeTestStore(t);
  const source = new LocalSource({ volume, areas: [memory(8)] });
  // Tracks 0 to 7 are read as one run. The hit comes while that read is held below the volume.
  const held = home.hold({ kind: 'read', range: { offsetBytes: 0, lengthBytes: TRACK }, nth: 1 });
  const backup = backUp({ source, store, level: 'full', codec: 'none' });
  await held.arrived(1);
  await volume.write(labelled('n3', 512), 3 * TRACK + 512);
  held.open();
  const outcome = await backup;
  t.same(await labelsInStore(store, outcome.set), FROZEN);
  t.equal(outcome.diverted, 1);
});

/** Steps 2 to 10 of C1, each followed by an end of the session. */
const STEPS: readonly { readonly step: number; readonly run: (example: Example) => Promise<void> }[] = [
  { step: 2, run: (example) => write(example, 1, 'n1').done },
  { step: 3, run: (example) => write(example, 5, 'n5').done },
  { step: 4, run: (example) => write(example, 5, "n5'").done },
  { step: 5, run: (example) => write(example, 7, 'n7').done },
  {
    step: 6,
    run: async (example) => {
      void write(example, 4, 'n4').done;
      await settle();
    },
  },
  { step: 7, run: (example) => write(example, 2, 'n2').done },
  {
    step: 8,
    run: async (example) => {
      example.gates.letStoreTake(1);
      await settle();
    },
  },
  {
    step: 9,
    run: async (example) => {
      example.gates.releaseMainPass();
      await settle();
    },
  },
  { step: 10, run: (example) => write(example, 6, 'n6').done },
];

const HOME_AFTER: Readonly<Record<number, readonly string[]>> = {
  2: ['o0', 'n1', 'o2', 'o3', 'o4', 'o5', 'o6', 'o7'],
  3: ['o0', 'n1', 'o2', 'o3', 'o4', 'n5', 'o6', 'o7'],
  4: ['o0', 'n1', 'o2', 'o3', 'o4', "n5'", 'o6', 'o7'],
  5: ['o0', 'n1', 'o2', 'o3', 'o4', "n5'", 'o6', 'n7'],
  6: ['o0', 'n1', 'o2', 'o3', 'n4', "n5'", 'o6', 'n7'],
  7: ['o0', 'n1', 'n2', 'o3', 'n4', "n5'", 'o6', 'n7'],
  8: ['o0', 'n1', 'n2', 'o3', 'n4', "n5'", 'o6', 'n7'],
  9: ['o0', 'n1', 'n2', 'o3', 'n4', "n5'", 'o6', 'n7'],
  10: ['o0', 'n1', 'n2', 'o3', 'n4', "n5'", 'n6', 'n7'],
};

/** How a session can end, each as `host.ts` brings it about. */
const ENDS: Readonly<Record<string, (example: Example) => Promise<void>>> = {
  'cancelled by the user': async (example) => {
    example.source.session.fail(new Error('cancelled'));
    example.abort.abort(new Error('cancelled'));
    example.gates.releaseMainPass();
    example.gates.releaseStore();
    await example.backup.catch(() => undefined);
  },
  'ended by a fatal error of the store': async (example) => {
    example.gates.fail(new Error('the store is gone'));
    example.source.session.fail(await example.backup.catch((error: unknown) => error));
  },
};

for (const [how, end] of Object.entries(ENDS)) {
  for (const last of [2, 3, 4, 5, 6, 7, 8, 9, 10]) {
    t.test(`C2: ${how} after step ${last}`, async (t) => {
      const example = await begin(t, [memory(2)]);
      const { volume } = example.test;
      for (const { step, run } of STEPS) if (step <= last) await run(example);
      await end(example);
      await t.rejects(example.backup);
      await settle();
      t.equal(volume.status().writesWaiting, 0, 'every waiting write goes on');
      t.equal(example.source.session.status().tracksLeft, 0, 'no track stays protected');
      t.same(await labelsOf(volume), HOME_AFTER[last], 'the home is as without a backup');
      t.same(await example.store.list(), [], 'no set is visible');
      t.same(await readdir(join(example.store.path, 'sets')), [], 'nothing is left over');
      const next = await backUp({
        source: new LocalSource({ volume, areas: [memory(2)] }),
        store: example.store,
        level: 'incremental',
        codec: 'none',
      });
      t.same(await labelsInStore(example.store, next.set), HOME_AFTER[last], 'the next backup is exact');
    });
  }
}

t.test('C2: an error of the container fails the session, never the write', async (t) => {
  const device = new FaultyDevice(new MemoryDevice({ sizeBytes: 2 * TRACK }));
  const example = await begin(t, [new DeviceArea({ device, trackSizeBytes: TRACK })]);
  await write(example, 5, 'n5').done;
  device.fail({ kind: 'write', nth: 1 });
  await write(example, 7, 'n7').done;
  t.equal(example.source.session.state, 'failed');
  example.gates.releaseMainPass();
  example.gates.releaseStore();
  await t.rejects(example.backup, { code: 'session-ended' });
  t.same(await labelsOf(example.test.volume), ['o0', 'o1', 'o2', 'o3', 'o4', 'n5', 'o6', 'n7']);
  t.same(await example.store.list(), []);
});

t.test(
  'C2: stopped by the server in the middle; the tracks of the epoch count as changed again',
  async (t) => {
    const example = await begin(t, [memory(2)]);
    example.gates.releaseMainPass();
    example.gates.releaseStore();
    const { point } = await example.backup;
    const { volume, home } = example.test;
    for (const track of [2, 6]) await writeLabel(volume, track, `m${track}`);
    const source = new LocalSource({
      volume,
      areas: [memory(1)],
      before: async (step) => {
        if (step === 'mayComplete') await example.test.reopen();
      },
    });
    await t.rejects(backUp({ source, store: example.store, level: 'incremental', codec: 'none' }));
    t.same(example.test.volume.changedSince(point).toArray(), [2, 6]);
    home.forgetOperations();
    const next = await backUp({
      source: new LocalSource({ volume: example.test.volume, areas: [] }),
      store: example.store,
      level: 'incremental',
      codec: 'none',
    });
    t.same(await tracksInSet(example.store, next.set), [2, 6]);
    t.equal(await labelAt(example, 6), 'm6');
  },
);
