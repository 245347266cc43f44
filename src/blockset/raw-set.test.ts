/**
 * Goal: a set that is carried record by record is the same set, and appears in the store whole or not at all.
 *
 * Method: a set of three lanes, one of them in another directory, is taken over with its records in random order
 * and some twice. Then the write is cut at each of its syncs, on a copy of the directory as it is there, and the
 * copy is opened as after a crash.
 */

import { cpSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { observeSyncs, present, SeededRandom } from '../base/index.ts';
import { LaneWriter } from './lane-writer.ts';
import { codeOf, labelled, newSet, readLabels, scratch, withoutSyncs } from './model.fixture.ts';
import { type RawRecord, RawSet } from './raw-set.ts';
import { Store } from './store.ts';

const TRACKS = [0, 1, 2, 3, 4, 5, 6, 7, 8];

/** A set of three lanes and nine tracks; the second lane lies elsewhere. */
async function threeLanes(directory: string): Promise<{ store: Store; id: string; records: RawRecord[] }> {
  const store = await Store.init(join(directory, 'from'));
  const wish = { count: 3, directories: [join(directory, 'elsewhere')] };
  const { assembly, lanes } = await store.beginSet(newSet(), wish, async (parts) =>
    parts.map((part) => new LaneWriter(part)),
  );
  for (const track of TRACKS) {
    const lane = present(lanes[track % 3], 'A lane');
    lane.add(track, labelled(`t${track}`));
    lane.flush();
  }
  await assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await assembly.seal();
  const set = await store.find('latest');
  const raw = RawSet.open(set);
  const records = [...raw.metadata()];
  for (let lane = 0; lane < raw.laneCount; lane += 1) {
    for (const frame of raw.frameNumbers(lane)) records.push(raw.frame(lane, frame));
  }
  t.equal(raw.frameCount + raw.metadataCount, records.length);
  await raw.close();
  return { store, id: set.id, records };
}

const labels = TRACKS.map((track) => `t${track}`).join(' ');

t.test('a set taken over in any order is the same set', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, id, records } = await threeLanes(directory);
  const { seal = '' } = await store.find(id);
  const random = new SeededRandom(5);
  for (let run = 0; run < 5; run += 1) {
    const to = await Store.init(join(directory, `to-${run}`));
    const writer = to.takeSet(id);
    const order = [...records, ...records.slice(0, 3)]
      .map((record) => ({ record, key: random.below(1_000_000) }))
      .sort((a, b) => a.key - b.key);
    for (const { record } of order) writer.put(record);
    t.equal(writer.frameCount + writer.metadataCount, records.length, 'what came twice counts once');
    await writer.seal(seal);
    await to.enterComplete();
    t.equal((await to.find(id)).seal, seal);
    t.equal(await readLabels(to, id, TRACKS), labels);
  }
});

t.test('lane 0 is there first, so that no crash takes a lane for one without a set', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { id, records } = await threeLanes(directory);
  const to = await Store.init(join(directory, 'to'));
  const writer = to.takeSet(id);
  writer.put(
    present(
      records.find(({ lane }) => lane === 2),
      'A record of lane 2',
    ),
  );
  const files = readdirSync(join(to.path, 'sets')).filter((name) => name.endsWith('.partial'));
  t.same(files.sort(), [`${id}-0.cbs.partial`, `${id}-2.cbs.partial`]);
  await Store.open(to.path);
  t.same(
    readdirSync(join(to.path, 'sets'))
      .filter((name) => name.endsWith('.partial'))
      .sort(),
    files,
  );
  await writer.abort();
});

t.test('what is not the set that was sealed is refused', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, id, records } = await threeLanes(directory);
  const { seal = '' } = await store.find(id);
  const attempt = async (name: string, taken: readonly RawRecord[], wanted = seal): Promise<void> => {
    const to = await Store.init(join(directory, name));
    const writer = to.takeSet(id);
    for (const record of taken) writer.put(record);
    t.equal(await codeOf(() => writer.seal(wanted)), 'corruption', name);
    await writer.abort();
    t.same(readdirSync(join(to.path, 'sets')), [], 'nothing is left');
  };
  await attempt('another seal', records, '00');
  await attempt(
    'no seal',
    records.filter(({ key }) => key.toString() !== 'seal'),
  );
  await attempt('a frame less', records.slice(0, -1));
  await attempt(
    'a lane less',
    records.filter(({ lane }) => lane !== 2),
  );
  const order = present(
    records.find(({ database }) => database === 'order'),
    'Order',
  );
  await attempt(
    'metadata less',
    records.filter((record) => record !== order),
  );
  const changed = { ...order, value: Buffer.from(order.value).fill(1, 0, 1) };
  await attempt('other metadata', [...records, changed]);
});

t.test('cut at any sync, the set is there whole or not at all', async (t) => {
  const directory = scratch(t);
  observeSyncs({ before: () => 'skip' });
  t.teardown(() => observeSyncs(undefined));
  const { store, id, records } = await threeLanes(directory);
  const { seal = '' } = await store.find(id);
  const to = await Store.init(join(directory, 'to'));
  const writer = to.takeSet(id);
  for (const record of records) writer.put(record);
  const cuts: string[] = [];
  observeSyncs({
    before: (event) => {
      const name = event.kind === 'commit' ? event.kind : event.name;
      cuts.push(`${cuts.length}-${name}`);
      cpSync(to.path, join(directory, `cut-${cuts.at(-1)}`), { recursive: true });
      return 'skip';
    },
  });
  await writer.seal(seal);
  observeSyncs({ before: () => 'skip' });
  t.equal(cuts.length, 3 + 1 + 1 + 1, 'three lanes, their names, the seal, its name');
  const there: string[] = [];
  for (const cut of cuts) {
    const path = join(directory, `cut-${cut}`);
    const store = await Store.open(path);
    const sets = await store.list();
    if (sets.length > 0) {
      t.equal(await readLabels(store, id, TRACKS), labels, cut);
      there.push(cut);
      continue;
    }
    await Store.open(path);
    t.same(readdirSync(join(path, 'sets')), [], `nothing is left at ${cut}`);
  }
  t.same(there, ['4-set-seal', '5-set-directory']);
});
