/**
 * Goal: a set is complete or invisible (promise 5), whatever moment a session is cut at; the store finds the
 * right set by lineage; damage is named and stops nothing else.
 *
 * Method: real stores in a scratch directory. The write order is asserted on the recorded syncs. Cuts are
 * made by stopping a session at each named step, in a child process killed with SIGKILL where a lock must
 * die with its process, then opening the store again.
 */

import { execFileSync, fork } from 'node:child_process';
import { on, once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { MIB, observeSyncs, type SyncName } from '../base/index.ts';
import { mountTmpfs } from '../sim/index.ts';
import {
  addTracks,
  codeOf,
  labelled,
  newSet,
  noise,
  readLabels,
  saveSet,
  scratch,
  TRACK_BYTES,
  withoutSyncs,
} from './model.fixture.ts';
import { Store } from './store.ts';
import { verify, type VerifiedSet } from './verify.ts';

const SELF = fileURLToPath(import.meta.url);
const TMPFS_BYTES = 8 * MIB;

/** The steps of a session at which a child is killed; each names what has just been done. */
const CUTS = ['begun', 'added', 'finished', 'set-seal', 'set-directory', 'catalog'] as const;
type Cut = (typeof CUTS)[number];

/** Runs a session in this process up to the cut, says so and waits for its end. */
async function childMain(path: string, cut: Cut): Promise<void> {
  const reached = async (step: Cut): Promise<void> => {
    if (step !== cut) return;
    process.send?.(step);
    await new Promise(() => setInterval(() => undefined, 1000));
  };
  const store = await Store.open(path);
  const writer = await store.createSet(newSet({ base: 'p1', point: 'p2' }));
  await reached('begun');
  addTracks(writer, [[2, 'new']]);
  writer.flush();
  await reached('added');
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await reached('finished');
  observeSyncs({
    after: (event) => {
      // Nothing can be awaited here: the parent kills this process while it stands still.
      if (event.kind === 'commit' || event.name !== cut) return;
      process.send?.(cut);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    },
  });
  await writer.seal();
}

if (process.argv[2] === 'child') {
  await childMain(process.argv[3] ?? '', CUTS.find((cut) => cut === process.argv[4]) ?? 'begun');
} else {
  writeTests();
  damageTests();
}

async function startChild(path: string, cut: Cut): Promise<() => Promise<void>> {
  const child = fork(SELF, ['child', path, cut]);
  // Test runners send messages of their own.
  for await (const [message] of on(child, 'message')) if (message === cut) break;
  return async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  };
}

function setFiles(path: string): string[] {
  return readdirSync(`${path}/sets`).sort();
}

async function verified(store: Store, selector?: string): Promise<VerifiedSet[]> {
  const results: VerifiedSet[] = [];
  for await (const result of verify(store, selector === undefined ? {} : { selector })) results.push(result);
  return results;
}

function writeTests(): void {
  t.test('a store is made, and only where nothing is', async (t) => {
    const directory = scratch(t);
    const path = `${directory}/store`;
    t.equal(await codeOf(() => Store.open(path)), 'not-a-store');
    const names: string[] = [];
    observeSyncs({ after: (event) => names.push(event.kind === 'commit' ? 'commit' : event.name) });
    await Store.init(path);
    observeSyncs(undefined);
    t.same(names, ['commit', 'catalog', 'store-directory', 'store-directory', 'store-directory']);
    t.same(await (await Store.open(path)).list(), []);
    t.equal(await codeOf(() => Store.init(path)), 'not-empty');
    mkdirSync(`${directory}/other`);
    t.equal(await codeOf(() => Store.open(`${directory}/other`)), 'not-a-store');
    writeFileSync(`${path}/store.json`, '{"cowbellStore":2}');
    t.equal(await codeOf(() => Store.open(path)), 'newer-format');
  });

  t.test('the write order is data, seal, directory, catalog', async (t) => {
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const writer = await store.createSet(newSet());
    addTracks(writer, [
      [3, 'three'],
      [1, null],
    ]);
    const syncs: { name: SyncName; visible: boolean }[] = [];
    observeSyncs({
      after: (event) => {
        if (event.kind === 'commit') return;
        syncs.push({ name: event.name, visible: existsSync(`${path}/sets/${writer.id}-0.cbs`) });
      },
    });
    t.teardown(() => observeSyncs(undefined));
    const counters = await writer.finish({ bytesRead: TRACK_BYTES, diverted: 1, unchanged: 0 });
    t.equal(counters.tracks, 2);
    t.equal(counters.zeroTracks, 1);
    await writer.seal();
    t.same(syncs, [
      { name: 'set-data', visible: false },
      { name: 'set-seal', visible: false },
      { name: 'set-directory', visible: true },
      { name: 'catalog', visible: true },
    ]);
    t.same(setFiles(path), [`${writer.id}-0.cbs`], 'no partial and no lock file stays');
    const [set] = await store.list();
    t.equal(set?.header?.point, 'point-1');
    t.equal(set?.counters?.diverted, 1);
    t.equal(set?.damage, undefined);
  });

  t.test('a failing sync fails the session, and the set stays invisible', async (t) => {
    for (const failing of ['set-data', 'set-seal'] as const) {
      const path = `${scratch(t)}/store`;
      const store = await Store.init(path);
      const writer = await store.createSet(newSet());
      writer.add(1, labelled('1'));
      observeSyncs({
        before: (event) => {
          if (event.kind === 'commit' || event.name !== failing) return 'perform';
          throw Object.assign(new Error('input/output error'), { code: 'EIO' });
        },
      });
      const session = async (): Promise<void> => {
        await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
        await writer.seal();
      };
      t.equal(await codeOf(session), 'io', failing);
      observeSyncs(undefined);
      await writer.abort();
      t.same(setFiles(path), []);
      t.same(await (await Store.open(path)).list(), []);
    }
  });

  t.test('a session killed at any step leaves a complete set or none', async (t) => {
    const children = CUTS.map(async (cut) => {
      const path = `${scratch(t)}/store`;
      await saveSet(await Store.init(path), { point: 'p1' }, [[2, 'old']]);
      return { cut, path, kill: await startChild(path, cut) };
    });
    for (const { cut, path, kill } of await Promise.all(children)) {
      const complete = cut === 'set-seal' || cut === 'set-directory' || cut === 'catalog';

      if (cut === 'begun' || cut === 'finished') {
        const beside = await Store.open(path);
        t.equal((await beside.list()).length, 1, `${cut}: invisible while it is written`);
        t.ok(
          setFiles(path).some((name) => name.endsWith('.partial')),
          `${cut}: the file of a live writer stays`,
        );
      }
      await kill();
      const readOnly = await Store.open(path, { readOnly: true });
      const visible = cut === 'set-directory' || cut === 'catalog' ? 2 : 1;
      t.equal((await readOnly.list()).length, visible, `${cut}: for a reader that puts nothing in order`);
      const store = await Store.open(path);
      t.equal((await store.list()).length, complete ? 2 : 1, `${cut}: ${complete ? 'finished' : 'removed'}`);
      t.notOk(setFiles(path).some((name) => name.includes('partial')));
      t.equal(await readLabels(store, 'latest', [2]), complete ? 'new' : 'old');
      t.ok((await verified(store)).every((result) => result.sound));
    }
  });

  t.test('a full file system fails the session cleanly, and what is there stays', async (t) => {
    const path = mountTmpfs(t, TMPFS_BYTES);
    if (path === undefined) return;
    const store = await Store.init(`${path}/store`);
    await saveSet(store, { point: 'p1', sizeBytes: 2 ** 24 }, [[2, 'old']]);
    const writer = await store.createSet(newSet({ base: 'p1', point: 'p2', sizeBytes: 2 ** 24 }));
    t.equal(
      await codeOf(async () => {
        for (let track = 0; track < 4096; track += 1) writer.add(track, noise(track));
        await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
      }),
      'no-space',
    );
    await writer.abort();
    const again = await Store.open(`${path}/store`);
    t.equal((await again.list()).length, 1);
    t.equal(await readLabels(again, 'latest', [2]), 'old');
    await saveSet(again, { base: 'p1', point: 'p2', sizeBytes: 2 ** 24 }, [[2, 'new']]);
    t.equal(await readLabels(again, 'latest', [2]), 'new', 'room is back at once');
  });

  t.test('a store on a read-only file system can be read and verified', async (t) => {
    const path = mountTmpfs(t, TMPFS_BYTES);
    if (path === undefined) return;
    await saveSet(await Store.init(`${path}/store`), { point: 'p1' }, [[2, 'old']]);
    execFileSync('mount', ['-o', 'remount,ro', path]);
    const store = await Store.open(`${path}/store`, { readOnly: true });
    t.equal(await readLabels(store, 'latest', [2]), 'old');
    t.ok((await verified(store))[0]?.sound);
    t.equal(await codeOf(() => store.createSet(newSet())), 'read-only');
    t.equal(await codeOf(() => Store.open(`${path}/store`)), 'io');
  });
}

function damageTests(): void {
  t.test('the catalog is made anew where it is missing or damaged', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    await saveSet(store, { point: 'p0' }, [[1, 'a']]);
    const before = await store.list();
    const damages: (() => void)[] = [
      () => rmSync(`${path}/catalog`),
      () => writeFileSync(`${path}/catalog`, 'nonsense'),
      () => truncateSync(`${path}/catalog`, 5000),
      () => {
        const bytes = readFileSync(`${path}/catalog`);
        const at = bytes.lastIndexOf('"volumeName"');
        bytes[at + 3] = 0x21;
        writeFileSync(`${path}/catalog`, bytes);
      },
    ];
    for (const damage of damages) {
      damage();
      t.same(await (await Store.open(path, { readOnly: true })).list(), before, 'without writing');
      t.same(await (await Store.open(path)).list(), before, 'made anew');
    }
  });

  t.test('missing and cut sets are listed as damaged, and the others go on', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const gone = await saveSet(store, { volumeName: 'gone', volumeId: 'v1', point: 'p0' }, [[1, 'a']]);
    const cut = await saveSet(store, { volumeName: 'cut', volumeId: 'v2', point: 'q0' }, [[1, 'b']]);
    await saveSet(store, { volumeName: 'good', volumeId: 'v3', point: 'r0' }, [[1, 'c']]);
    rmSync(`${path}/sets/${gone.header.id}-0.cbs`);
    truncateSync(`${path}/sets/${cut.header.id}-0.cbs`, 8192);
    const reopened = await Store.open(path);
    const state = (await reopened.list()).map(
      ({ header, damage }) => `${header?.volumeName} ${damage !== undefined}`,
    );
    t.same(state.sort(), ['cut true', 'gone true', 'good false']);
    t.equal(await codeOf(() => reopened.chain(gone.header.id)), 'corruption');
    t.equal(await codeOf(() => reopened.chain(cut.header.id)), 'corruption');
    t.equal(await readLabels(reopened, 'latest:good', [1]), 'c');
    const results = await verified(reopened);
    t.equal(results.filter(({ sound }) => sound).length, 1);
    t.equal(results.length, 3);
    rmSync(`${path}/catalog`);
    const rebuilt = await (await Store.open(path)).list();
    t.equal(rebuilt.length, 2, 'the missing one is forgotten with the catalog');
    t.ok(rebuilt.find((set) => set.id === cut.header.id)?.damage, 'the cut one is still shown');
  });

  t.test('verify names set and tracks, and goes on', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const bad = await saveSet(store, { volumeId: 'v1', point: 'p0' }, [
      [4, 'four'],
      [7, 'seven'],
    ]);
    await saveSet(store, { volumeId: 'v2', point: 'q0' }, [[4, 'other']]);
    const file = `${path}/sets/${bad.header.id}-0.cbs`;
    const bytes = readFileSync(file);
    bytes.write('X', bytes.lastIndexOf('<seven>'));
    writeFileSync(file, bytes);
    const results = await verified(store);
    const found = results.find(({ set }) => set.id === bad.header.id);
    t.equal(found?.sound, false);
    t.same(found?.damagedTracks, [4, 7], 'a frame is damaged as a whole');
    t.match(found?.findings[0], new RegExp(`${bad.header.id} is damaged in track 4, 7`));
    t.equal(results.filter(({ sound }) => sound).length, 1);
    t.equal(results.find(({ sound }) => sound)?.checkedBytes, TRACK_BYTES);
    t.equal((await verified(store, bad.header.id)).length, 1);
    t.equal(await codeOf(() => readLabels(store, bad.header.id, [4])), 'corruption');
  });

  t.test('a set exchanged for another is seen by the seal in the catalog', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const one = await saveSet(store, { volumeId: 'v1', point: 'p0' }, [[4, 'four']]);
    const two = await saveSet(store, { volumeId: 'v1', point: 'p1' }, [[4, 'FOUR']]);
    const [from, to] = [one, two].map((set) => `${path}/sets/${set.header.id}-0.cbs`);
    writeFileSync(to ?? '', readFileSync(from ?? ''));
    t.equal(await codeOf(() => store.chain(two.header.id)), 'corruption');
  });

  t.test('a held lock is waited for', async (t) => {
    withoutSyncs(t);
    const path = `${scratch(t)}/store`;
    const store = await Store.init(path);
    const [one, two] = await Promise.all([
      saveSet(store, { volumeId: 'v1', point: 'p0' }, [[4, 'four']]),
      saveSet(store, { volumeId: 'v2', point: 'q0' }, [[4, 'FOUR']]),
    ]);
    t.not(one.header.id, two.header.id);
    t.equal((await store.list()).length, 2);
  });
}
