/**
 * Backups of snapshots, on the real volume, lane and store.
 *
 * Goal: a set of a snapshot holds the snapshot's content whenever its tracks are overwritten; it builds on an older
 * point as any set does; it never makes a store older than it is; and it goes beside snapshots that come and go, and
 * beside writes that a live session and a snapshot both need kept.
 *
 * Method: labelled tracks; the steps of a session are where the test writes, makes and deletes.
 */

import t, { type Test } from 'tap';
import type { Store } from '../blockset/index.ts';
import { labelOf, labelsOf, makeTestVolume, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { type ContainerArea, MemoryArea, type Volume } from '../volume/index.ts';
import { backUp, type SetOutcome } from './index.ts';
import { labelsInStore, LocalSource, makeTestStore, type Step, tracksInSet } from './session.fixture.ts';

const TRACKS = 8;
const A = ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7'];
const OPTIONS = { codec: 'none', runBytesMax: TEST_TRACK_BYTES, drainBytesMax: TEST_TRACK_BYTES } as const;

type Before = (step: Step, tracks: readonly number[]) => Promise<void> | void;

function memory(slots: number): MemoryArea[] {
  return [new MemoryArea({ sizeBytes: slots * TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES })];
}

/** A source whose session is of the snapshot. */
class SnapshotSource extends LocalSource {
  readonly #snapshot: string;

  constructor(volume: Volume, snapshot: string, before: Before = () => undefined) {
    super({ volume, areas: [], before });
    this.#snapshot = snapshot;
  }

  override begin(request: Parameters<LocalSource['begin']>[0]): ReturnType<LocalSource['begin']> {
    return super.begin({ ...request, snapshot: this.#snapshot });
  }
}

interface World {
  readonly volume: Volume;
  readonly store: Store;
  readonly save: (
    snapshot: string | undefined,
    level: 'full' | 'incremental',
    before?: Before,
  ) => Promise<SetOutcome>;
}

async function begin(t: Test): Promise<World> {
  const { volume } = await makeTestVolume(t, { trackCount: TRACKS });
  const store = await makeTestStore(t);
  await write(volume, A);
  return {
    volume,
    store,
    save: (snapshot, level, before) => {
      const source =
        snapshot === undefined
          ? new LocalSource({ volume, areas: memory(TRACKS), ...(before === undefined ? {} : { before }) })
          : new SnapshotSource(volume, snapshot, before);
      return backUp({ ...OPTIONS, source, store, level });
    },
  };
}

async function write(volume: Volume, labels: readonly string[]): Promise<void> {
  await Promise.all(labels.map((label) => writeLabel(volume, Number(label[1]), label)));
}

/** Does each thing once, at the first step of that name that touches the track. */
function at(things: readonly { step: Step; track?: number; body: () => Promise<unknown> }[]): Before {
  const left = new Set(things);
  return async (step, tracks) => {
    for (const thing of left) {
      if (thing.step !== step || (thing.track !== undefined && !tracks.includes(thing.track))) continue;
      left.delete(thing);
      await thing.body();
    }
  };
}

t.test('content is the snapshot’s, whenever it is overwritten', async (t) => {
  const { volume, store, save } = await begin(t);
  await volume.createSnapshot('one');
  await write(volume, ['b0']);
  const outcome = await save(
    'one',
    'full',
    at([
      { step: 'read', track: 1, body: () => write(volume, ['c1']) },
      { step: 'confirm', track: 2, body: () => write(volume, ['c2']) },
      { step: 'take', body: () => write(volume, ['d1', 'd2']) },
      { step: 'read', track: 5, body: () => write(volume, ['c3', 'c7']) },
      { step: 'acknowledge', body: () => write(volume, ['e6']) },
      { step: 'mayComplete', body: () => write(volume, ['f0', 'f4']) },
    ]),
  );
  t.same(await labelsInStore(store, outcome.set), A);
  t.equal(outcome.freezeMs, 0);
  t.equal(outcome.point, volume.snapshots()[0]?.point);
  t.ok(outcome.diverted >= 4, `${outcome.diverted} tracks came from the snapshot's store`);
  t.same(
    volume.snapshots().map(({ readers }) => readers),
    [0],
  );
});

t.test('incremental from an older point, and live sets after it', async (t) => {
  const { volume, store, save } = await begin(t);
  await save(undefined, 'full');
  await write(volume, ['b1', 'b3']);
  await volume.createSnapshot('one');
  await write(volume, ['c3', 'c5']);
  const ofSnapshot = await save('one', 'incremental');
  t.equal(ofSnapshot.level, 'incremental');
  t.same(await tracksInSet(store, ofSnapshot.set), [1, 3]);
  t.same(await labelsInStore(store, ofSnapshot.set), ['a0', 'b1', 'a2', 'b3', 'a4', 'a5', 'a6', 'a7']);
  t.match(volume.consumers(), [{ point: ofSnapshot.point, set: ofSnapshot.set }]);
  const live = await save(undefined, 'incremental');
  t.same(await tracksInSet(store, live.set), [3, 5]);
  t.same(await labelsInStore(store, live.set), await labelsOf(volume));
});

t.test('a store does not become older', async (t) => {
  const { volume, store, save } = await begin(t);
  await volume.createSnapshot('one');
  await write(volume, ['b1']);
  await save('one', 'full');
  await t.rejects(save('one', 'incremental'), { code: 'snapshot-behind' }, 'the same point');
  await volume.createSnapshot('two');
  await save(undefined, 'incremental');
  await t.rejects(save('two', 'incremental'), { code: 'snapshot-behind' }, 'a later set');
  t.equal((await store.list()).length, 2);
  t.same(volume.sessions, []);
  await volume.deleteSnapshot('one');
  await volume.deleteSnapshot('two');
});

t.test('a full set of an older snapshot does not make a store older either', async (t) => {
  const { volume, save } = await begin(t);
  await volume.createSnapshot('one');
  await write(volume, ['b1']);
  await save(undefined, 'full');
  await t.rejects(save('one', 'full'), { code: 'snapshot-behind' });
});

t.test('other snapshots come and go meanwhile', async (t) => {
  const { volume, store, save } = await begin(t);
  await volume.createSnapshot('old');
  await write(volume, ['b0', 'b1', 'b2']);
  const frozen = await labelsOf(volume);
  await volume.createSnapshot('one');
  await write(volume, ['c1', 'c2', 'c3']);
  await volume.createSnapshot('new');
  await write(volume, ['d2', 'd4']);
  const outcome = await save(
    'one',
    'full',
    at([
      { step: 'read', track: 1, body: () => volume.deleteSnapshot('new') },
      {
        step: 'confirm',
        track: 2,
        body: () => volume.createSnapshot('newer').then(() => write(volume, ['e5'])),
      },
      { step: 'take', body: () => volume.deleteSnapshot('old') },
      {
        step: 'confirm',
        track: 5,
        body: () => volume.deleteSnapshot('newer').then(() => write(volume, ['f6'])),
      },
    ]),
  );
  t.same(await labelsInStore(store, outcome.set), frozen);
});

t.test('a cancelled session lets the snapshot go', async (t) => {
  const { volume, store } = await begin(t);
  await volume.createSnapshot('one');
  const source = new SnapshotSource(volume, 'one', (step) => {
    if (step !== 'confirm') return;
    source.session.fail(new Error('cancelled'));
  });
  await t.rejects(volume.deleteSnapshot('none'), { code: 'unknown-snapshot' });
  const backup = backUp({ ...OPTIONS, source, store, level: 'full' });
  await t.rejects(backup, { code: 'session-ended' });
  t.same(await store.list(), []);
  t.equal(volume.snapshots()[0]?.readers, 0);
  await volume.deleteSnapshot('one');
  t.same(volume.snapshots(), []);
});

t.test('a running session keeps its snapshot, and refuses a second one', async (t) => {
  const { volume, store, save } = await begin(t);
  await volume.createSnapshot('one');
  const outcome = await save(
    'one',
    'full',
    at([
      { step: 'read', body: () => t.rejects(volume.deleteSnapshot('one'), { code: 'snapshot-in-use' }) },
      { step: 'confirm', body: () => t.rejects(save('one', 'full'), { code: 'session-running' }) },
    ]),
  );
  t.same(await labelsInStore(store, outcome.set), A);
});

for (const slots of [TRACKS, 1, 0]) {
  t.test(`a live session and snapshots at once, container of ${slots} tracks`, async (t) => {
    const { volume, store } = await begin(t);
    await volume.createSnapshot('one');
    await write(volume, ['b0', 'b1']);
    const frozen = await labelsOf(volume);
    const areas: ContainerArea[] = slots === 0 ? [] : memory(slots);
    const writes: Promise<void>[] = [];
    const source = new LocalSource({
      volume,
      areas,
      before: at([
        // Tracks that the session and `one` need; the container is full, or is none at all: they may wait.
        { step: 'read', track: 0, body: async () => writes.push(write(volume, ['c2', 'c3', 'c0', 'c7'])) },
        { step: 'read', track: 4, body: () => volume.createSnapshot('two') },
        { step: 'confirm', track: 4, body: async () => writes.push(write(volume, ['d4', 'd5', 'd1'])) },
      ]),
    });
    const outcome = await backUp({ ...OPTIONS, source, store, level: 'full' });
    await Promise.all(writes);
    t.same(await labelsInStore(store, outcome.set), frozen);
    const read = async (name: string): Promise<string[]> => {
      const device = volume.openSnapshot(name);
      const whole = Buffer.alloc(device.sizeBytes);
      await device.read(whole, 0);
      await device.close();
      return A.map((_, track) =>
        labelOf(whole.subarray(track * TEST_TRACK_BYTES, (track + 1) * TEST_TRACK_BYTES)),
      );
    };
    t.same(await read('one'), A);
    t.same(await labelsOf(volume), ['c0', 'd1', 'c2', 'c3', 'd4', 'd5', 'a6', 'c7']);
    await volume.deleteSnapshot('two');
    t.same(await read('one'), A);
  });
}
