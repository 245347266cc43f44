/**
 * Goal: sets of a chain merge into one that holds the same bytes at the same point, and that takes their place: sets
 * that build on it read as before. Nothing is lost at any moment.
 *
 * Method: EXAMPLES B9 with the exact orders of appending (seeds/2, Fig. 24-26), then the shapes that sessions leave:
 * frames copied whole, tracks of one content, volumes that grew, several lanes, damaged sources; a merge and the removal
 * of its sources cut at every event. There is no volume in any of these tests that could be opened.
 */

import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { CorruptionError, KIB } from '../base/index.ts';
import { cutEverywhere, leftovers } from './cut.fixture.ts';
import { LaneWriter } from './lane-writer.ts';
import { mergeChain, mergeSets } from './merge.ts';
import {
  codeOf,
  labelled,
  labelOf,
  newSet,
  noise,
  readLabels,
  saveSet,
  scratch,
  type Tracks,
  withoutSyncs,
} from './model.fixture.ts';
import { SetReader } from './set-reader.ts';
import { Store } from './store.ts';

const NO_COUNTS = { bytesRead: 0, diverted: 0, unchanged: 0 };
/** The object's places, in B9's letters. */
const PLACES = ['A', 'B', 'C', 'D', 'E'];
const ALL = [0, 1, 2, 3, 4];

/** `B1 C1` as tracks, in this order; a letter with `-` is a track of zeroes. */
function placed(text: string): Tracks {
  return text
    .split(' ')
    .map((label) => [PLACES.indexOf(label[0] ?? ''), label.endsWith('-') ? null : label] as const);
}

/** Saves each text as a set on the one before, points `p0` to `pN`. @returns the ids. */
async function saveAll(store: Store, texts: readonly string[]): Promise<string[]> {
  const ids: string[] = [];
  for (const [index, text] of texts.entries()) {
    const base = index === 0 ? null : `p${index - 1}`;
    ids.push((await saveSet(store, { base, point: `p${index}` }, placed(text))).header.id);
  }
  return ids;
}

/** The labels of a set's tracks in the order in which they were appended. */
async function appended(store: Store, id: string): Promise<string> {
  const reader = store.openSet(await store.find(id));
  const labels: string[] = [];
  const count = reader.counters.tracks - reader.counters.zeroTracks;
  for (let arrival = 0; arrival < count; arrival += 1) labels.push(labelOf(reader.readArrival(arrival)));
  await reader.close();
  return labels.join(' ');
}

t.test('B9 differential set and merge: the example', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const full = await saveSet(store, { point: 'p0' }, placed('B E D A C'));
  const other = await saveSet(store, { base: 'p0', point: 'p1', level: 'differential' }, placed("E' B'"));
  const sources = [full, other].map(({ header }) => `${store.path}/sets/${header.id}-0.cbs`);
  const before = sources.map((path) => readFileSync(path));
  const { merged } = await mergeChain(store, other.header.id, { keepSources: true });
  t.equal(await appended(store, merged?.set ?? ''), "E' B' D A C", 'newest first, each once');
  t.equal(await readLabels(store, merged?.set ?? '', ALL), "A B' C D E'");
  t.same(
    sources.map((path) => readFileSync(path)),
    before,
    'the sources are unchanged',
  );
  const result = await store.find(merged?.set ?? '');
  t.match(result.header, { level: 'full', base: null, point: 'p1', previous: 'p0' });
  t.equal(result.header?.createdMs, other.header.createdMs, 'the time is that of its point');

  const next = await saveSet(store, { base: 'p1', point: 'p2' }, placed("C''"));
  t.equal(next.header.previous, 'p1');
  const removal = await mergeChain(store, other.header.id);
  t.equal(removal.merged?.isReused, true);
  t.same(removal.removed.map(({ id }) => id).sort(), [full.header.id, other.header.id].sort());
  t.equal(await readLabels(store, 'latest', ALL), "A B' C'' D E'", 'the result is the base of further sets');
  t.same(await store.basePoints('volume-1'), ['p2', 'p1']);
});

t.test('B9 differential set and merge: the chain', async (t) => {
  withoutSyncs(t);
  const chain = ['A0 B0 C0 D0 E0', 'B1 C1', 'C2 E2', 'A3'];
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, chain);
  const third = await mergeChain(store, ids[2] ?? '', { keepSources: true });
  t.equal(await appended(store, third.merged?.set ?? ''), 'C2 E2 B1 A0 D0', 'the newer set is left out');
  t.equal(await readLabels(store, third.merged?.set ?? '', ALL), 'A0 B1 C2 D0 E2');
  await store.remove([third.merged?.set ?? '']);

  const all = await mergeChain(store, ids[3] ?? '');
  t.equal(await appended(store, all.merged?.set ?? ''), 'A3 C2 E2 B1 D0', 'five blocks, never one twice');
  t.equal(await readLabels(store, 'latest', ALL), 'A3 B1 C2 D0 E2');
  t.equal((await store.list()).length, 1);
  t.same(
    await mergeChain(store, all.merged?.set ?? ''),
    { removed: [], refused: [] },
    'nothing is left to do',
  );

  const zeroing = await Store.init(`${scratch(t)}/store`);
  const zeroed = await saveAll(zeroing, [...chain, 'D-']);
  const { merged } = await mergeChain(zeroing, zeroed[4] ?? '');
  t.equal(await readLabels(zeroing, 'latest', ALL), 'A3 B1 C2 0 E2', 'zeroes, and not D0');
  t.equal(await appended(zeroing, merged?.set ?? ''), 'A3 C2 E2 B1');
});

t.test('B9 differential set and merge: cut at every event, and run again', async (t) => {
  const template = `${scratch(t)}/store`;
  const first = await Store.init(template);
  const ids = await saveAll(first, ['A0 B0 C0 D0 E0', 'B1 C1', 'C2 E2 D-']);
  const wrong: string[] = [];
  const cuts = await cutEverywhere({
    template,
    work: async (store) => {
      await mergeChain(store, (await store.find('latest')).id);
    },
    check: async (store, cut) => {
      const left = await leftovers(store);
      const found = await store.list();
      const sources = found.filter(({ id }) => ids.includes(id)).length;
      const labels = await readLabels(store, 'latest', ALL);
      const isEither = sources === 3 || (sources === 0 && found.length === 1);
      await mergeChain(store, (await store.find('latest')).id);
      const [only, ...others] = await store.list();
      const again = await readLabels(store, 'latest', ALL);
      const order = await appended(store, only?.id ?? '');
      if (left.length > 0 || !isEither || others.length > 0 || order !== 'C2 E2 B1 A0') {
        wrong.push(`${cut}: ${left.join(' ')} ${sources} sources, ${order}`);
      }
      if (labels !== 'A0 B1 C2 0 E2' || again !== labels) wrong.push(`${cut}: ${labels}, then ${again}`);
      rmSync(store.path, { recursive: true });
    },
  });
  t.same(wrong, []);
  t.ok(cuts > 30, `${cuts} cuts`);
});

t.test('the newest sets merge into one incremental, zeroes kept', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, ['A0 B0 C0 D0 E0', 'A1', 'B2 D-', 'E3 A-', 'B4']);
  const middle = [ids[3] ?? '', ids[2] ?? ''];
  const merged = await mergeSets(store, middle);
  t.match(merged, { point: 'p3', base: 'p1', isReused: false, sources: middle });
  t.equal((await store.remove(middle, { keepPoints: ['p3'] })).removed.length, 2);
  t.equal(await readLabels(store, 'latest', ALL), '0 B4 C0 0 E3');
  t.equal(await readLabels(store, merged.set, ALL), '0 B2 C0 0 E3');
  const reader = store.openSet(await store.find(merged.set));
  t.match(reader.header, { level: 'incremental', base: 'p1', previous: 'p2' });
  t.same(reader.zeroes.toArray(), [0, 3]);
  await reader.close();
  t.same(await store.basePoints('volume-1'), ['p4', 'p3', 'p1', 'p0']);
});

t.test('what is no part of one chain is refused', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, ['A0', 'B1', 'C2']);
  const refused = (...wanted: (string | undefined)[]): Promise<string> =>
    codeOf(() => mergeSets(store, wanted.map(String)));
  t.equal(await refused(ids[2], ids[0]), 'no-chain', 'a set is missing between them');
  t.equal(await refused(ids[0], ids[1]), 'no-chain', 'oldest first');
  t.equal(await refused(ids[0]), 'no-chain', 'one set');
  t.equal(await refused('unknown', ids[0]), 'no-chain');
});

t.test('protected, leased and needed sources stay, and the rest goes', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, ['A0 B0', 'A1', 'A2', 'A3']);
  await store.protect(ids[1] ?? '', { untilMs: null });
  const lease = store.openSet(await store.find(ids[3] ?? ''));
  const { refused, removed } = await mergeChain(store, ids[3] ?? '');
  t.same(
    refused.map(({ set, reason }) => `${set.header?.point} ${reason}`),
    ['p3 leased', 'p2 needed', 'p1 protected', 'p0 needed'],
  );
  t.same(removed, []);
  await lease.close();
  const again = await mergeChain(store, ids[3] ?? '');
  t.same(
    again.refused.map(({ set, reason }) => `${set.header?.point} ${reason}`),
    ['p1 protected', 'p0 needed'],
  );
  t.equal(await readLabels(store, ids[1] ?? '', [0, 1]), 'A1 B0');
  t.equal(await readLabels(store, 'latest', [0, 1]), 'A3 B0');
});

t.test('frames that are wanted whole are copied as they are, others packed anew', async (t) => {
  withoutSyncs(t);
  const trackSizeBytes = 64 * KIB;
  const geometry = { trackSizeBytes, sizeBytes: 64 * trackSizeBytes, codec: 'zstd' as const };
  const store = await Store.init(`${scratch(t)}/store`);
  const full = await store.createSet(newSet({ ...geometry, point: 'p0', compressionLevel: 9 }));
  for (let track = 0; track < 48; track += 1) {
    full.add(track, Buffer.concat([noise(track, trackSizeBytes / 2)], trackSizeBytes));
  }
  full.addAlias(60, 40);
  await full.finish(NO_COUNTS);
  await full.seal();
  const next = await store.createSet(newSet({ ...geometry, base: 'p0', point: 'p1' }));
  next.add(5, labelled('five', trackSizeBytes));
  next.addAlias(7, 5);
  await next.finish(NO_COUNTS);
  await next.seal();
  const { merged } = await mergeChain(store, next.id, { keepSources: true });
  const sources = store.openSet(await store.find(full.id));
  const result = store.openSet(await store.find(merged?.set ?? ''));
  const payloads = (reader: SetReader): string[] =>
    [...reader.readPlan(reader.present)].map((plan) => reader.packedFrame(plan).payload.toString('hex'));
  const [first, ...whole] = payloads(sources);
  t.same(payloads(result).slice(-2), whole, 'two frames are the same bytes');
  t.notOk(payloads(result).includes(first ?? ''), 'the one with other tracks is not');
  t.equal(result.counters.aliases, 2, 'one content stays stored once');
  t.equal(result.counters.tracks, 49);
  t.same(result.hashOf(60), sources.hashOf(40));
  t.equal(labelOf(result.readTrack(7)), 'five');
  await sources.close();
  await result.close();
});

t.test('the last track of a volume that grew is lengthened', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const small = await store.createSet(newSet({ point: 'p0', sizeBytes: 4096 + 1024 }));
  small.add(0, labelled('zero'));
  small.add(1, labelled('one', 1024));
  await small.finish(NO_COUNTS);
  await small.seal();
  const grown = await store.createSet(newSet({ base: 'p0', point: 'p1', sizeBytes: 3 * 4096 }));
  grown.add(2, labelled('two'));
  await grown.finish(NO_COUNTS);
  await grown.seal();
  const { merged } = await mergeChain(store, grown.id);
  const reader = store.openSet(await store.find(merged?.set ?? ''));
  t.same(reader.readTrack(1), Buffer.concat([labelled('one', 1024)], 4096));
  await reader.close();
  t.equal(await readLabels(store, 'latest', [0, 1, 2]), 'zero one two');
});

t.test('sets of several lanes merge, and go with all their files', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(`${directory}/store`);
  mkdirSync(`${directory}/other`);
  const wish = { count: 3, directories: [`${directory}/other`] };
  const { assembly, lanes } = await store.beginSet(newSet({ point: 'p0' }), wish, async (parts) =>
    parts.map((part) => new LaneWriter(part)),
  );
  for (const track of ALL) lanes[track % 3]?.add(track, labelled(`${PLACES[track]}0`));
  await assembly.finish(NO_COUNTS);
  const sealed = await assembly.seal();
  const next = await saveSet(store, { base: 'p0', point: 'p1' }, placed('B1'));
  const { lanePaths } = await store.find(sealed.header.id);
  t.ok(lanePaths.every((path) => existsSync(path)));
  t.equal(lanePaths.length, 3);
  await mergeChain(store, next.header.id);
  t.equal(await readLabels(store, 'latest', ALL), 'A0 B1 C0 D0 E0');
  t.notOk(lanePaths.some((path) => existsSync(path)));
  t.same(await leftovers(store), []);
});

t.test('a damaged source ends the merge, and nothing is removed', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, ['A0 B0', 'A1']);
  const path = `${store.path}/sets/${ids[0]}-0.cbs`;
  const bytes = readFileSync(path);
  bytes.write('X', bytes.lastIndexOf('<B0>'));
  writeFileSync(path, bytes);
  await t.rejects(mergeChain(store, ids[1] ?? ''), CorruptionError);
  t.same((await store.list()).map(({ id }) => id).sort(), ids.toSorted());
  t.same(await leftovers(store), []);
});

t.test('a result that is not what its sources hold is removed, and they stay', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, ['A0 B0', 'A1']);
  const wrong = await saveSet(store, { point: 'p1' }, placed('A1 B9'));
  await t.rejects(mergeChain(store, ids[1] ?? ''), /differs from its sources in 1 tracks/);
  t.same((await store.list()).map(({ id }) => id).sort(), ids.toSorted());
  t.notOk((await store.list()).some(({ id }) => id === wrong.header.id));
});

t.test('an interrupted merge leaves the sources and no result', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveAll(store, ['A0 B0', 'A1']);
  const abort = new AbortController();
  const onProgress = (): void => abort.abort();
  await t.rejects(mergeChain(store, ids[1] ?? '', { signal: abort.signal, onProgress }));
  t.equal((await store.list()).length, 2);
  t.same(await leftovers(store), []);
});
