/**
 * Goal: pruning leaves exactly what the policy keeps, every byte of it readable, whatever the chains look like and
 * whenever it is cut; it never touches what is protected or read, and never removes the latest set.
 *
 * Method: small stores whose sets are a day apart; plans and results are compared, kept points read back through the
 * store; one pruning cut at every event.
 */

import { rmSync } from 'node:fs';
import t from 'tap';
import { cutEverywhere, leftovers } from './cut.fixture.ts';
import { codeOf, readLabels, saveSet, scratch, type Tracks, withoutSyncs } from './model.fixture.ts';
import { prune, type PruneResult } from './prune.ts';
import { Store } from './store.ts';

const DAY_MS = 86_400_000;
const START_MS = Date.parse('2026-01-01T12:00Z');
const ALL = [0, 1, 2, 3];

/** Saves a set a day: `full 0=a 1=b`, or `p2 1=c 3=-` on that point; the point is `p` and the place in the list. */
async function saveDays(store: Store, texts: readonly string[]): Promise<string[]> {
  const ids: string[] = [];
  for (const [index, text] of texts.entries()) {
    const [base = '', ...changes] = text.split(' ');
    const tracks: Tracks = changes.map((change) => {
      const [track, label] = change.split('=');
      return [Number(track), label === '-' ? null : (label ?? '')] as const;
    });
    const fields = { base: base === 'full' ? null : base, point: `p${index}` };
    const createdMs = START_MS + index * DAY_MS;
    ids.push((await saveSet(store, { ...fields, createdMs }, tracks)).header.id);
  }
  return ids;
}

const LINE = ['full 0=a0 1=b0 2=c0 3=d0', 'p0 0=a1', 'p1 1=b2 3=-', 'p2 0=a3', 'p3 2=c4', 'p4 0=a5'];
const LINE_READS = ['a0 b0 c0 d0', 'a1 b0 c0 d0', 'a1 b2 c0 0', 'a3 b2 c0 0', 'a3 b2 c4 0', 'a5 b2 c4 0'];

async function reads(store: Store): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const { point, sets } of await store.newestPoints('volume-1')) {
    found[point] = await readLabels(store, sets[0]?.id ?? '', ALL);
  }
  return found;
}

function pick(...indexes: readonly number[]): Record<string, string> {
  return Object.fromEntries(indexes.map((index) => [`p${index}`, LINE_READS[index] ?? '']));
}

function reasons(result: PruneResult): string[] {
  return result.refused.map(({ set, reason }) => `${set.header?.point} ${reason}`);
}

t.test('a chain is merged between the kept points, and its full set with the oldest', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveDays(store, LINE);
  const dry = await prune(store, { policy: { keepLast: 1, keepDaily: 3, keepYearly: 1 }, dryRun: true });
  t.equal((await store.list()).length, 6, 'a dry run changes nothing');
  t.same(
    dry.plan.kept.map(({ set, reasons: why }) => `${set.header?.point} ${why.join(' ')}`),
    ['p5 latest last daily yearly', 'p4 daily', 'p3 daily'],
  );
  t.same(dry.plan.merges, [[ids[3], ids[2], ids[1], ids[0]]]);
  const result = await prune(store, { policy: { keepDaily: 3 } });
  t.same(result.plan.going.toSorted(), ids.slice(0, 4).sort());
  t.equal(result.removed.length, 4);
  t.same(await reads(store), pick(5, 4, 3));
  t.equal((await store.list()).length, 3);

  await prune(store, { policy: { keepLast: 1 } });
  t.same(await reads(store), pick(5));
  const [only] = await store.list();
  t.match(only?.header, { level: 'full', point: 'p5', createdMs: START_MS + 5 * DAY_MS });
  t.same((await prune(store, { policy: { keepLast: 1 } })).plan.going, [], 'nothing is left to do');
});

t.test('sets between two kept ones become one incremental', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveDays(store, LINE);
  await store.protect(ids[0] ?? '', { untilMs: null });
  const result = await prune(store, { policy: { keepLast: 2 } });
  t.same(
    result.merged.map(({ sources }) => sources.map((id) => ids.indexOf(id))),
    [[4, 3, 2, 1]],
  );
  t.same(await reads(store), pick(5, 4, 0));
  t.same(new Set((await store.list()).map(({ header }) => header?.base)), new Set(['p0', 'p4', null]));
});

t.test('what is protected, leased or damaged stays, with what it builds on', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveDays(store, LINE);
  await store.protect(ids[3] ?? '', { untilMs: null });
  const protectedRun = await prune(store, { policy: { keepLast: 1 } });
  t.same(
    protectedRun.plan.kept.map(({ set, reasons: why }) => `${set.header?.point} ${why.join(' ')}`),
    ['p5 latest last', 'p3 protected', 'p2 base'],
  );
  t.same(await reads(store), pick(5, 3, 2));

  const lease = await store.chain((await store.find('latest')).id);
  const leasedRun = await prune(store, { policy: { keepLast: 1 } });
  t.same(leasedRun.plan.going, []);
  await lease.close();
  await store.protect(ids[3] ?? '', undefined);
  const broken = await store.find(ids[3] ?? '');
  rmSync(broken.path);
  await prune(store, { policy: { keepLast: 1 } });
  t.same(await reads(store), pick(2), 'what a damaged set and its followers need is not merged away');
  t.equal((await store.list()).length, 3);
});

t.test('a lease taken after the plan is respected', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  const ids = await saveDays(store, LINE);
  const second = store.openSet(await store.find(ids[1] ?? ''));
  const unaware = new Proxy(store, {
    get: (target, name) => {
      if (name === 'leasedSets') return () => Promise.resolve(new Set());
      const member: unknown = Reflect.get(target, name);
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
  const result = await prune(unaware, { policy: { keepLast: 2 } });
  t.same(reasons(result), ['p1 leased', 'p0 needed']);
  t.same(await reads(store), pick(5, 4, 1, 0));
  await second.close();
  await prune(store, { policy: { keepLast: 2 } });
  t.same(await reads(store), pick(5, 4));
});

t.test('a hook may keep a set', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveDays(store, LINE);
  const result = await prune(store, {
    policy: { keepLast: 1 },
    mayRemove: (set) => (set.header?.point === 'p0' ? 'The last cover of a delta' : undefined),
  });
  t.same(reasons(result), ['p0 refused']);
  t.same(await reads(store), pick(5, 0));
});

t.test('a set that several kept ones build on is not merged into each of them', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveDays(store, ['full 0=a0 1=b0', 'p0 0=a1', 'p0 0=a2 1=b2', 'p0 0=a3', 'full 0=a4']);
  const { plan } = await prune(store, { policy: { keepLast: 3 } });
  t.same(
    plan.kept.map(({ set, reasons: why }) => `${set.header?.point} ${why.join(' ')}`),
    ['p4 latest last', 'p3 last', 'p2 last', 'p0 needed'],
  );
  await prune(store, { policy: { keepLast: 2 } });
  t.equal((await store.list()).length, 2, 'one of them: then it is');
  t.same(await reads(store), { p4: 'a4 0 0 0', p3: 'a3 b0 0 0' });
});

t.test('volumes are pruned each for itself, or one alone', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveDays(store, ['full 0=a0', 'full 0=a1']);
  await saveSet(store, { volumeId: 'volume-2', volumeName: 'other', point: 'q0' }, [[0, 'x']]);
  await saveSet(store, { volumeId: 'volume-2', volumeName: 'other', point: 'q1' }, [[0, 'y']]);
  await prune(store, { policy: { keepLast: 1 }, volume: 'other' });
  t.equal((await store.list()).length, 3);
  await prune(store, { policy: { keepLast: 1 } });
  t.same(new Set((await store.list()).map(({ header }) => header?.point)), new Set(['p1', 'q1']));
});

t.test('an equal set of another content is found before anything goes', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveDays(store, LINE);
  await saveSet(store, { point: 'p5', previous: 'p4' }, [[0, 'wrong']]);
  t.equal(await codeOf(() => prune(store, { policy: { keepLast: 1 } })), 'corruption');
  t.equal((await store.list()).length, 7);
});

t.test('pruning, cut at every event, and run again', async (t) => {
  const template = `${scratch(t)}/store`;
  await saveDays(await Store.init(template), LINE);
  const policy = { keepLast: 2, keepWeekly: 2 };
  const wanted = JSON.stringify(pick(5, 4, 3));
  const wrong: string[] = [];
  const cuts = await cutEverywhere({
    template,
    work: async (store) => {
      await prune(store, { policy });
    },
    check: async (store, cut) => {
      const left = await leftovers(store);
      const before = await reads(store);
      const isExact = Object.entries(before).every(
        ([point, labels]) => labels === LINE_READS[Number(point.slice(1))],
      );
      const hasKept = [5, 4, 3].every((index) => `p${index}` in before);
      if (left.length > 0 || !isExact || !hasKept)
        wrong.push(`${cut}: ${left.join(' ')} ${JSON.stringify(before)}`);
      await prune(store, { policy });
      const after = JSON.stringify(await reads(store));
      if (after !== wanted) wrong.push(`${cut}, run again: ${after}`);
      rmSync(store.path, { recursive: true });
    },
  });
  t.same(wrong, []);
  t.ok(cuts > 30, `${cuts} cuts`);
});
