/**
 * Goal: a copy is the same set, in a store that can do without the one it came from; what is cut leaves the sets that
 * had arrived, and a second run brings the others.
 *
 * Method: two stores; files compared byte by byte; a copy cut at every event of the target.
 */

import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { type CopyOptions, copySets } from './copy-sets.ts';
import { cutEverywhere, leftovers } from './cut.fixture.ts';
import { LaneWriter } from './lane-writer.ts';
import { codeOf, labelled, newSet, readLabels, saveSet, scratch, withoutSyncs } from './model.fixture.ts';
import { Store } from './store.ts';

/** Full `p0`, incrementals `p1` and `p2`, and a full `p3`. */
async function makeSource(path: string): Promise<{ store: Store; ids: string[] }> {
  const store = await Store.init(path);
  const ids: string[] = [];
  for (const [index, base] of [null, 'p0', 'p1', null].entries()) {
    const tracks = [[0, `a${index}`] as const, ...(base === null ? [[1, 'b'] as const] : [])];
    ids.push((await saveSet(store, { base, point: `p${index}` }, tracks)).header.id);
  }
  return { store, ids };
}

async function copy(source: Store, target: Store, ids: readonly string[], options?: CopyOptions) {
  const copied: string[] = [];
  for await (const { set, isPresent } of copySets(source, target, ids, options)) {
    copied.push(`${set.header?.point} ${isPresent}`);
  }
  return copied;
}

t.test('a set is copied with its chain, byte by byte, once', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, ids } = await makeSource(`${directory}/source`);
  const target = await Store.init(`${directory}/target`);
  t.equal(await codeOf(() => copy(store, target, [ids[1] ?? ''])), 'missing-base');
  t.equal(await codeOf(() => copy(store, target, ['unknown'])), 'unknown-set');
  t.same(await copy(store, target, [ids[1] ?? ''], { chain: true }), ['p0 false', 'p1 false']);
  t.same(await copy(store, target, [ids[2] ?? ''], { chain: true }), ['p0 true', 'p1 true', 'p2 false']);
  for (const id of ids.slice(0, 3)) {
    const [from, to] = [store, target].map(({ path }) => readFileSync(`${path}/sets/${id}-0.cbs`));
    t.same(to, from);
  }
  rmSync(store.path, { recursive: true });
  t.equal(await readLabels(target, 'latest', [0, 1]), 'a2 b');
  t.same(await leftovers(target), []);
  t.equal((await Store.open(target.path)).id, target.id);
});

t.test('what is latest there is what is latest here, whatever is left out', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, ids } = await makeSource(`${directory}/source`);
  const target = await Store.init(`${directory}/target`);
  await copy(store, target, [ids[3] ?? '']);
  await copy(store, target, [ids[0] ?? '']);
  t.equal((await target.find('latest')).id, ids[3]);
  t.same(await target.basePoints('volume-1'), ['p3', 'p0']);
});

t.test('lanes come together, and removing the copy leaves those of the source', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(`${directory}/source`);
  mkdirSync(`${directory}/other`);
  const wish = { count: 2, directories: [`${directory}/other`] };
  const { assembly, lanes } = await store.beginSet(newSet({ point: 'p0' }), wish, async (parts) =>
    parts.map((part) => new LaneWriter(part)),
  );
  for (const track of [0, 1]) lanes[track]?.add(track, labelled(`lane${track}`));
  await assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  const { header } = await assembly.seal();
  const target = await Store.init(`${directory}/target`);
  await copy(store, target, [header.id]);
  const { lanePaths } = await target.find(header.id);
  t.ok(lanePaths.every((path) => path.startsWith(`${target.path}/sets/`)));
  await target.remove([header.id]);
  t.notOk(lanePaths.some((path) => existsSync(path)));
  t.equal(await readLabels(store, 'latest', [0, 1]), 'lane0 lane1');
});

t.test('a damaged set is not copied, and another of the same id is not taken for it', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const { store, ids } = await makeSource(`${directory}/source`);
  const target = await Store.init(`${directory}/target`);
  const path = `${store.path}/sets/${ids[0]}-0.cbs`;
  const bytes = readFileSync(path);
  const damaged = Buffer.from(bytes);
  damaged.write('X', damaged.lastIndexOf('<b>'));
  writeFileSync(path, damaged);
  await t.rejects(copy(store, target, [ids[0] ?? '']), CorruptionError);
  t.same(await target.list(), []);
  t.same(await leftovers(target), []);
  writeFileSync(path, bytes);
  await copy(store, target, [ids[0] ?? '']);
  writeFileSync(`${target.path}/sets/${ids[0]}-0.cbs`, bytes.subarray(1));
  await t.rejects(copy(store, target, [ids[0] ?? '']), CorruptionError);
});

t.test('copying, cut at every event, and run again', async (t) => {
  const directory = scratch(t);
  const { store, ids } = await makeSource(`${directory}/source`);
  const template = `${directory}/target`;
  await Store.init(template);
  const wrong: string[] = [];
  const cuts = await cutEverywhere({
    template,
    work: async (target) => {
      await copy(store, target, ids);
    },
    check: async (target, cut) => {
      const left = await leftovers(target);
      const points = await target.basePoints('volume-1');
      const sets = await target.list();
      if (left.length > 0 || points.length !== sets.length)
        wrong.push(`${cut}: ${left.join(' ')} ${points.join(' ')}`);
      await copy(store, target, ids);
      const labels = await Promise.all(ids.map((id) => readLabels(target, id, [0, 1])));
      if (labels.join() !== 'a0 b,a1 b,a2 b,a3 b') wrong.push(`${cut}, run again: ${labels.join()}`);
      if ((await target.find('latest')).id !== ids[3]) wrong.push(`${cut}: another set is latest`);
      rmSync(target.path, { recursive: true });
    },
  });
  t.same(wrong, []);
  t.ok(cuts > 20, `${cuts} cuts`);
});

t.test('between encrypted stores the keys are wrapped anew; one that is not takes nothing', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const store = await Store.init(`${directory}/source`, { key: { passphrase: 'one' } });
  const { header } = await saveSet(store, { point: 'p0' }, [[0, 'secret']]);
  const target = await Store.init(`${directory}/target`, { key: { passphrase: 'two' } });
  const plain = await Store.init(`${directory}/plain`);
  t.equal(await codeOf(() => copy(store, plain, [header.id])), 'wrong-key');
  t.equal(await codeOf(() => copy(plain, target, [])), 'wrong-key');
  t.same(await copy(store, target, [header.id]), ['p0 false']);
  const reopened = await Store.open(target.path, { key: { passphrase: 'two' } });
  t.equal(await readLabels(reopened, 'latest', [0]), 'secret');
  t.equal((await reopened.find('latest')).seal, (await store.find('latest')).seal);
  await reopened.remove([header.id]);
  t.same(await leftovers(reopened), []);
});
