/**
 * Goal: what is damaged is found and named exactly, by sets, tracks and ranges of the volume; a sample comes round to
 * every frame; an interrupted run goes on where it stopped.
 *
 * Method: sets of one frame a track (frames of the largest size), damaged in their files at places that are known.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { ManualClock, MIB } from '../base/index.ts';
import { codeOf, labelled, newSet, saveSet, scratch, withoutSyncs } from './model.fixture.ts';
import { Store } from './store.ts';
import { type VerifiedSet, verify, type VerifyOptions } from './verify.ts';

/** A store of three sets, of 4, 3 and 2 frames of one track each; every frame is named by its label. */
async function makeStore(test: Parameters<typeof scratch>[0]): Promise<{ store: Store; ids: string[] }> {
  withoutSyncs(test);
  const clock = new ManualClock();
  const store = await Store.init(`${scratch(test)}/store`, { clock });
  const ids: string[] = [];
  for (const [index, count] of [4, 3, 2].entries()) {
    const volumeId = `v${index}`;
    const sizes = { sizeBytes: 6 * MIB - 512, trackSizeBytes: MIB };
    const set = await store.createSet(newSet({ volumeId, point: `p${index}`, ...sizes }));
    for (let track = 0; track < count; track += 1) set.add(track, labelled(`${index}.${track}`, MIB));
    if (index === 0) set.add(5, labelled('0.5', MIB - 512));
    await set.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
    await set.seal();
    ids.push(set.id);
    clock.advance(1);
  }
  return { store, ids };
}

function damage(store: Store, id: string | undefined, label: string): void {
  const path = `${store.path}/sets/${id}-0.cbs`;
  const bytes = readFileSync(path);
  bytes.write('X', bytes.indexOf(`<${label}>`));
  writeFileSync(path, bytes);
}

async function run(store: Store, options: VerifyOptions = {}): Promise<VerifiedSet[]> {
  const results: VerifiedSet[] = [];
  for await (const result of verify(store, options)) results.push(result);
  return results;
}

t.test('damage is named by track, range, file and frame', async (t) => {
  const { store, ids } = await makeStore(t);
  for (const label of ['0.1', '0.2', '0.5']) damage(store, ids[0], label);
  const [first, ...others] = await run(store);
  t.same(first?.damagedTracks, [1, 2, 5]);
  t.same(first?.damagedRanges, [
    { offsetBytes: MIB, lengthBytes: 2 * MIB },
    { offsetBytes: 5 * MIB, lengthBytes: MIB - 512 },
  ]);
  t.match(first?.damagedFrames[2], { path: `${store.path}/sets/${ids[0]}-0.cbs`, lane: 0, frame: 4 });
  t.equal(first?.checkedBytes, 2 * MIB);
  t.ok(others.every(({ sound, isWhole }) => sound && isWhole));
});

t.test('structure reads no content', async (t) => {
  const { store, ids } = await makeStore(t);
  damage(store, ids[0], '0.1');
  const results = await run(store, { extent: { kind: 'structure' } });
  t.same(
    results.map(({ sound, isWhole, checkedBytes }) => `${sound} ${isWhole} ${checkedBytes}`),
    ['true false 0', 'true false 0', 'true false 0'],
  );
  const path = `${store.path}/sets/${ids[1]}-0.cbs`;
  writeFileSync(path, readFileSync(path).subarray(0, 8192));
  t.same(
    (await run(store, { extent: { kind: 'structure' } })).map(({ sound }) => sound),
    [true, false, true],
  );
});

t.test('samples come round to every frame, wherever they begin', async (t) => {
  const { store } = await makeStore(t);
  const read: string[] = [];
  for (let sample = 0; sample < 15; sample += 1) {
    let tracks = 0;
    const extent = { kind: 'sample' as const, fraction: 0.2 };
    for (const { checkedBytes } of await run(store, { extent })) tracks += Math.ceil(checkedBytes / MIB);
    read.push(String(tracks));
  }
  t.equal(read.join(''), '2'.repeat(15), 'a fifth of ten frames each time');
  const found: number[] = [];
  for (const label of ['0.0', '0.3', '1.2', '2.1']) {
    const again = await makeStore(t);
    damage(again.store, again.ids[Number(label[0])], label);
    let damaged = 0;
    for (let sample = 0; sample < 5; sample += 1) {
      const results = await run(again.store, { extent: { kind: 'sample', fraction: 0.2 } });
      damaged += results.filter(({ sound }) => !sound).length;
    }
    found.push(damaged);
  }
  t.same(found, [1, 1, 1, 1], 'each frame once in five runs');
});

t.test('a sample in a store with one large set comes round too', async (t) => {
  withoutSyncs(t);
  const store = await Store.init(`${scratch(t)}/store`);
  await saveSet(store, { point: 'p0' }, [[0, 'a']]);
  for (let sample = 0; sample < 3; sample += 1) {
    const results = await run(store, { extent: { kind: 'sample', fraction: 0.05 } });
    t.equal(
      results.reduce((sum, { checkedBytes }) => sum + checkedBytes, 0),
      4096,
    );
  }
  rmSync(`${store.path}/verify`);
  t.same(await run(await Store.init(`${scratch(t)}/empty`), { extent: { kind: 'sample', fraction: 1 } }), []);
});

t.test('an interrupted run goes on where it stopped, and reports what it had found', async (t) => {
  const { store, ids } = await makeStore(t);
  damage(store, ids[0], '0.2');
  let bytes = 0;
  const interrupted = run(store, {
    onProgress: (more) => {
      bytes += more;
      if (bytes > 5 * MIB) throw new Error('interrupted');
    },
  });
  await t.rejects(interrupted, /interrupted/);
  const rest = await run(store, { resume: true });
  t.same(
    rest.map(({ set, sound, isWhole }) => `${ids.indexOf(set.id)} ${sound} ${isWhole}`),
    ['0 false true', '1 true false', '2 true true'],
  );
  t.equal(rest[1]?.checkedBytes, MIB, 'only what was not read yet');
  t.equal((await run(store, { resume: true }))[1]?.checkedBytes, 3 * MIB, 'a run that ended is not resumed');

  const one: VerifyOptions = { selector: ids[1] ?? '' };
  const stop = (): never => {
    throw new Error('interrupted');
  };
  await t.rejects(run(store, { ...one, onProgress: stop }));
  t.equal((await run(store, { resume: true })).length, 3, 'another selection begins anew');
  t.equal((await run(store, { ...one, resume: true }))[0]?.checkedBytes, 2 * MIB);
});

t.test('a selector that names nothing is refused', async (t) => {
  const { store } = await makeStore(t);
  t.equal(await codeOf(() => run(store, { selector: 'nothing' })), 'unknown-set');
});
