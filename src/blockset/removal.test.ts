/**
 * Goal: a set goes whole or stays whole, whatever moment the removal is cut at; nobody loses a set that he reads, that is
 * protected, or that another set builds on; and what is latest stays latest.
 *
 * Method: small stores; the removal of several sets cut at every event, the power going with it; readers in this process
 * (an flock belongs to the open file, so one process is enough) and in a child that is killed.
 */

import { fork } from 'node:child_process';
import { on, once } from 'node:events';
import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { CorruptionError, ManualClock } from '../base/index.ts';
import { cutEverywhere, leftovers } from './cut.fixture.ts';
import { codeOf, readLabels, saveSet, scratch, withoutSyncs } from './model.fixture.ts';
import type { RemovalResult } from './removal.ts';
import { Store } from './store.ts';

const SELF = fileURLToPath(import.meta.url);

async function childMain(path: string, setId: string): Promise<void> {
  const store = await Store.open(path, { readOnly: true });
  await store.chain(setId);
  process.send?.('reading');
  await new Promise(() => setInterval(() => undefined, 1000));
}

if (process.argv[2] === 'child') await childMain(process.argv[3] ?? '', process.argv[4] ?? '');
else tests();

/** Full `p0`, then incrementals `p1` to `pN`; track 1 changes with each. */
async function saveChain(store: Store, length: number): Promise<string[]> {
  const ids: string[] = [];
  for (let index = 0; index < length; index += 1) {
    const base = index === 0 ? null : `p${index - 1}`;
    const tracks = [[1, `one${index}`] as const, ...(index === 0 ? [[2, 'two'] as const] : [])];
    ids.push((await saveSet(store, { base, point: `p${index}` }, tracks)).header.id);
  }
  return ids;
}

function reasons(result: RemovalResult): string[] {
  return result.refused.map(({ set, reason }) => `${set.header?.point} ${reason}`);
}

function tests(): void {
  t.test('sets go, newest first, and only what nothing needs', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const [p0 = '', p1 = '', p2 = ''] = await saveChain(store, 3);
    t.same(reasons(await store.remove([p0, p1])), ['p1 needed', 'p0 needed']);
    const result = await store.remove([p1, p2]);
    t.same(
      result.removed.map(({ id }) => id),
      [p2, p1],
    );
    t.same(readdirSync(`${path}/sets`), [`${p0}-0.cbs`]);
    t.equal(await readLabels(store, 'latest', [1, 2]), 'one0 two');
    t.same(reasons(await store.remove([p0], { keepPoints: ['p0'] })), ['p0 needed']);
    t.same(reasons(await store.remove([p0], { mayRemove: () => 'No' })), ['p0 refused']);
    await store.remove([p0, 'unknown']);
    t.same(await store.list(), []);
    t.equal(await codeOf(async () => (await Store.open(path, { readOnly: true })).remove([p0])), 'read-only');
  });

  t.test('a set that another stands for may go', async (t) => {
    withoutSyncs(t);
    const store = await Store.init(`${scratch(t)}/store`);
    const [p0 = '', p1 = '', p2 = ''] = await saveChain(store, 3);
    const other = await saveSet(store, { point: 'p1', previous: 'p0' }, [
      [1, 'one1'],
      [2, 'two'],
    ]);
    t.equal((await store.remove([p0, p1])).removed.length, 2);
    t.equal(await readLabels(store, p2, [1, 2]), 'one2 two');
    t.same(reasons(await store.remove([other.header.id])), ['p1 needed']);
  });

  t.test('what is latest stays latest when sets between two full ones go', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const ids: string[] = [];
    for (const point of ['p0', 'p1', 'p2', 'p3']) ids.push((await saveSet(store, { point }, [])).header.id);
    await store.remove([ids[1] ?? '']);
    await store.remove([ids[2] ?? '']);
    t.equal((await store.find('latest')).id, ids[3]);
    t.same(await store.basePoints('volume-1'), ['p3', 'p0']);
    rmSync(`${path}/catalog`);
    t.equal((await (await Store.open(path)).find('latest')).id, ids[3], 'also without the catalog');
    rmSync(`${path}/ancestry`);
    t.equal(await codeOf(() => store.find('latest')), 'ambiguous-set', 'without the record it is refused');
  });

  t.test('a leased set stays, and a dead process holds no lease', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const [p0 = '', p1 = '', p2 = ''] = await saveChain(store, 3);
    const child = fork(SELF, ['child', path, p1]);
    for await (const [message] of on(child, 'message')) if (message === 'reading') break;
    const result = await store.remove([p0, p1, p2]);
    t.same(reasons(result), ['p1 leased', 'p0 needed']);
    t.match(result.refused[0]?.message, new RegExp(`Set ${p1} is being read`));
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    t.equal((await store.remove([p0, p1])).removed.length, 2);
  });

  t.test('a set removed between the list and its opening is said to be removed', async (t) => {
    withoutSyncs(t);
    const store = await Store.init(`${scratch(t)}/store`);
    const [p0 = ''] = await saveChain(store, 1);
    const [listed] = await store.list();
    await store.remove([p0]);
    if (listed !== undefined) t.throws(() => store.openSet(listed), { code: 'removed' });
  });

  t.test('a protected set stays until its time', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const clock = new ManualClock(1000);
    const store = await Store.init(path, { clock });
    const [p0 = '', p1 = ''] = await saveChain(store, 2);
    await store.protect(p1, { untilMs: 5000 });
    await store.protect(p0, { untilMs: null });
    await store.rebuildCatalog();
    t.same(
      (await store.list()).map(({ header, protection }) => `${header?.point} ${protection?.untilMs}`).sort(),
      ['p0 null', 'p1 5000'],
    );
    t.same(reasons(await store.remove([p0, p1])), ['p1 protected', 'p0 protected']);
    clock.advance(4000);
    t.same(reasons(await store.remove([p0, p1])), ['p0 protected']);
    await store.protect(p0, undefined);
    t.same(reasons(await store.remove([p0])), []);

    const [q0 = ''] = await saveChain(store, 1);
    await store.protect(q0, { untilMs: null });
    writeFileSync(`${path}/protected`, '{"cowbellProtected":0,"protected":{}}\n00\n');
    await t.rejects(store.remove([q0]), CorruptionError, 'a damaged record allows nothing');
    t.ok(existsSync(`${path}/sets/${q0}-0.cbs`));
  });

  t.test('removing and protecting, cut at every event', async (t) => {
    const template = `${scratch(t)}/store`;
    const first = await Store.init(template);
    const ids = await saveChain(first, 4);
    await first.protect(ids[3] ?? '', { untilMs: 1 });
    const wrong: string[] = [];
    for (const seed of [1, 2]) {
      const cuts = await cutEverywhere({
        template,
        seed,
        work: async (store) => {
          await store.remove(ids.slice(1));
          await store.protect(ids[0] ?? '', { untilMs: null });
        },
        check: async (store, cut) => {
          const points = await store.basePoints('volume-1');
          const left = await leftovers(store);
          const sets = await store.list();
          const labels = await readLabels(store, 'latest', [1, 2]);
          const expected = `one${points.length - 1} two`;
          const isWhole = sets.length === 4 || sets.length === 1;
          if (left.length > 0 || !isWhole || sets.length !== points.length || labels !== expected) {
            wrong.push(`${seed}, ${cut}: ${left.join(' ')} ${points.join(' ')} ${labels}`);
          }
          if (cut === 'no cut') t.same([points, sets[0]?.protection], [['p0'], { untilMs: null }]);
          await store.remove(sets.map(({ id }) => id).filter((id) => id !== ids[0]));
          if ((await store.list()).length !== 1) wrong.push(`${seed}, ${cut}: not finished`);
          rmSync(store.path, { recursive: true });
        },
      });
      t.ok(cuts > 15, `${cuts} cuts`);
    }
    t.same(wrong, []);
  });
}
