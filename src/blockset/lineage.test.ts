/**
 * Goal: the store finds the right set by lineage, and reads a volume at a point through its chain.
 *
 * Method: EXAMPLES B7 and B9 (without the merge) and small stores with the shapes that sessions can leave.
 */

import { rmSync } from 'node:fs';
import t from 'tap';
import { TrackSet } from '../tracks/index.ts';
import {
  codeOf,
  labelled,
  labelOf,
  newSet,
  readLabels,
  saveSet,
  scratch,
  TRACK_BYTES,
  withoutSyncs,
} from './model.fixture.ts';
import { Store } from './store.ts';

t.test('B7 levels: differential and incremental chains', async (t) => {
  withoutSyncs(t);
  const first = await Store.init(`${scratch(t)}/store`);
  const zero = ['0', '1', '2', '3', '4', '5', '6'].map((label, track) => [track, label] as const);
  const all = [0, 1, 2, 3, 4, 5, 6];
  const full = await saveSet(first, { point: 'p0' }, zero);
  const changed = [
    [1, '1a'],
    [3, '3a'],
  ] as const;
  await saveSet(first, { base: 'p0', point: 'p1', level: 'differential' }, changed);
  const last = await saveSet(first, { base: 'p0', point: 'p2', level: 'differential' }, [
    ...changed,
    [5, '5b'],
  ]);
  t.equal(await readLabels(first, 'latest', all), '0 1a 2 3a 4 5b 6');
  const chain = await first.chain(last.header.id);
  t.same(chain.sets, [last.header.id, full.header.id], 'level zero plus the last one');
  await chain.close();

  const path = `${scratch(t)}/store`;
  const second = await Store.init(path);
  await saveSet(second, { point: 'p0' }, zero);
  const middle = await saveSet(second, { base: 'p0', point: 'p1' }, changed);
  const top = await saveSet(second, { base: 'p1', point: 'p2' }, [[5, '5b']]);
  t.equal(await readLabels(second, 'latest', all), '0 1a 2 3a 4 5b 6');
  t.same(await second.basePoints('volume-1'), ['p2', 'p1', 'p0']);
  rmSync(`${path}/sets/${middle.header.id}-0.cbs`);
  t.equal(await codeOf(() => second.chain(top.header.id)), 'corruption', 'the catalog still knows it');
  rmSync(`${path}/catalog`);
  const reopened = await Store.open(path);
  await t.rejects(reopened.chain(top.header.id), { code: 'missing-base', details: { base: 'p1' } });
  t.same(await reopened.basePoints('volume-1'), ['p0'], 'what lacks its base is no base');
  await saveSet(reopened, { point: 'p3' }, zero);
  await saveSet(reopened, { base: 'p3', point: 'p4' }, []);
  t.equal(await readLabels(reopened, 'latest', all), '0 1 2 3 4 5 6', 'a new level zero starts over');
});

t.test('B9 differential set: places of the object, newest first', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const places = { B: 1, E: 4, D: 3, A: 0, C: 2 };
  await saveSet(
    store,
    { point: 'p0' },
    Object.entries(places).map(([label, track]) => [track, label]),
  );
  const differential = await saveSet(store, { base: 'p0', point: 'p1', level: 'differential' }, [
    [4, "E'"],
    [1, "B'"],
  ]);
  const chain = await store.chain(differential.header.id);
  const order: string[] = [];
  for (const entry of chain.readPlan(chain.tracks())) {
    for (const { content } of chain.readFrame(entry)) order.push(labelOf(content));
  }
  t.equal(order.join(' '), "E' B' D A C", 'what is in the newer set is not read from the older');
  t.equal([0, 1, 2, 3, 4].map((track) => labelOf(chain.readTrack(track))).join(' '), "A B' C D E'");
  await chain.close();
});

t.test('zeroes of a newer set hide older content, and absent tracks are zero', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveSet(store, { point: 'p0' }, [
    [1, 'a'],
    [2, 'b'],
  ]);
  await saveSet(store, { base: 'p0', point: 'p1' }, [
    [1, null],
    [3, 'c'],
  ]);
  t.equal(await readLabels(store, 'latest', [0, 1, 2, 3]), '0 0 b c');
  const chain = await store.chain((await store.find('latest')).id);
  t.ok(chain.tracks().equals(TrackSet.of([2, 3])));
  t.equal(chain.hashOf(1), undefined);
  t.equal(chain.hashOf(2)?.length, 32);
  t.same([...chain.readPlan(TrackSet.of([0, 1]))], []);
  await chain.close();
});

t.test('latest goes by lineage, never by clock', async (t) => {
  withoutSyncs(t);
  const path = `${scratch(t)}/store`;
  await Store.init(path);
  let nowMs = 2_000_000_000_000;
  const backwards = {
    now: () => (nowMs -= 1_000_000),
    monotonicMs: () => 0,
  };
  const store = await Store.open(path, { clock: backwards });
  const ids: string[] = [];
  for (const [point, base] of [
    ['p0', null],
    ['p1', 'p0'],
    ['p2', 'p1'],
  ] as const) {
    ids.push((await saveSet(store, { point, base }, [[1, point]])).header.id);
  }
  t.same(ids, ids.toSorted().toReversed(), 'ids descend');
  t.equal((await store.find('latest')).id, ids[2]);
  t.equal((await store.find('latest')).header?.previous, 'p1');
  t.same(await store.basePoints('volume-1'), ['p2', 'p1', 'p0']);
  const full = await saveSet(store, { point: 'p3' }, []);
  t.equal(full.header.previous, 'p2', 'a full set names the previous point too');
  t.equal((await store.find('latest')).id, full.header.id);
});

t.test('sets with one point stand for each other', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveSet(store, { point: 'p0' }, [[1, 'a']]);
  await saveSet(store, { point: 'p1', base: 'p0' }, [[1, 'b']]);
  const synthetic = await saveSet(store, { point: 'p1' }, [[1, 'b']]);
  t.equal((await store.find('latest')).id, synthetic.header.id, 'the full one is preferred');
  const top = await saveSet(store, { point: 'p2', base: 'p1' }, [[2, 'c']]);
  const chain = await store.chain(top.header.id);
  t.same(chain.sets, [top.header.id, synthetic.header.id]);
  await chain.close();
});

t.test('selectors: prefixes, volumes, ambiguity', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  t.equal(await codeOf(() => store.find('latest')), 'unknown-set');
  const one = await saveSet(store, { point: 'p0' }, []);
  const two = await saveSet(store, { volumeId: 'volume-2', volumeName: 'other', point: 'q0' }, []);
  t.equal((await store.find(one.header.id.toLowerCase())).id, one.header.id);
  t.equal((await store.find('latest:volume-2')).id, two.header.id);
  t.equal((await store.find('latest:disk')).id, one.header.id);
  t.equal(await codeOf(() => store.find('latest:none')), 'unknown-set');
  t.equal(await codeOf(() => store.find('')), 'unknown-set');
  t.equal(await codeOf(() => store.find('ZZ')), 'unknown-set');
  await t.rejects(store.find('latest'), { code: 'ambiguous-set' });
  await t.rejects(store.find(one.header.id.slice(0, 2)), {
    code: 'ambiguous-set',
    details: { candidates: [`${one.header.id} (disk)`, `${two.header.id} (other)`].sort() },
  });
  t.equal(await codeOf(() => store.chain('none')), 'unknown-set');
  await saveSet(store, { volumeId: 'volume-3', volumeName: 'disk', point: 'r0' }, []);
  t.equal(await codeOf(() => store.find('latest:disk')), 'ambiguous-set', 'a name of two volumes');
});

t.test('two sessions side by side make two heads, and the next one joins them', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveSet(store, { point: 'p0' }, []);
  const a = await store.createSet(newSet({ base: 'p0', point: 'pa' }));
  const b = await store.createSet(newSet({ base: 'p0', point: 'pb' }));
  for (const writer of [a, b]) {
    await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
    await writer.seal();
  }
  t.equal(await codeOf(() => store.find('latest')), 'ambiguous-set');
  const joined = await saveSet(store, { base: 'pb', point: 'pc' }, []);
  t.equal(joined.header.previous, 'pa');
  t.equal((await store.find('latest')).id, joined.header.id);
});

t.test('a base of another volume or track size is refused', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveSet(store, { volumeId: 'volume-2', point: 'p0' }, []);
  const other = await saveSet(store, { base: 'p0', point: 'p1' }, []);
  t.equal(await codeOf(() => store.chain(other.header.id)), 'wrong-volume');
  await saveSet(store, { point: 'p5', trackSizeBytes: 8192 }, []);
  const sized = await saveSet(store, { base: 'p5', point: 'p6' }, []);
  t.equal(await codeOf(() => store.chain(sized.header.id)), 'wrong-volume');
});

t.test('a volume that grew: older sets are read at the new size', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const writer = await store.createSet(newSet({ point: 'p0', sizeBytes: 2 * TRACK_BYTES - 100 }));
  writer.add(1, labelled('tail', TRACK_BYTES - 100));
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await writer.seal();
  const grown = await saveSet(store, { base: 'p0', point: 'p1', sizeBytes: 4 * TRACK_BYTES }, [[3, 'c']]);
  const chain = await store.chain(grown.header.id);
  const tail = chain.readTrack(1);
  t.equal(tail?.length, TRACK_BYTES);
  t.same(tail?.subarray(-100), Buffer.alloc(100));
  await chain.close();
});
