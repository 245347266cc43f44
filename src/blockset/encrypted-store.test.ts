/**
 * Goal: an encrypted store works as any other does for whoever has its key, and tells nobody else what it holds:
 * no content, no name, no point; what was exchanged or put there by somebody without the key is damage.
 *
 * Method: sets of random tracks in one and in two lanes, read back through their chains; the bytes of all
 * files searched; records exchanged under valid checksums; crashes as `store.test.ts` makes them.
 */

import fc from 'fast-check';
import { copyFileSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { openLmdb } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { StoreKey } from './key-slots.ts';
import { LaneWriter } from './lane-writer.ts';
import {
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
import { SetReader } from './set-reader.ts';
import { Store } from './store.ts';
import { verify } from './verify.ts';

const SEED = Number(process.env['COWBELL_SEED'] ?? Date.now() % 1_000_000);
t.comment(`seed ${SEED}`);

const CHEAP = { cost: { n: 2, r: 1, p: 1 } };
const KEY: StoreKey = { passphrase: 'correct horse' };

function makeStore(path: string): Promise<Store> {
  return Store.init(path, { key: KEY, ...CHEAP });
}

t.test('what is saved is read back, and verified', async (t) => {
  withoutSyncs(t);
  const root = scratch(t);
  let count = 0;
  const kinds = fc.dictionary(
    fc.integer({ min: 0, max: 15 }).map(String),
    fc.constantFrom('zero', 'noise', 'text', 'same'),
    { minKeys: 1 },
  );
  await fc.assert(
    fc.asyncProperty(
      kinds,
      kinds,
      fc.constantFrom('none' as const, 'zstd' as const),
      async (full, later, codec) => {
        const path = join(root, String((count += 1)));
        const contents = new Map<number, Buffer | undefined>();
        const store = await makeStore(path);
        for (const [generation, tracks] of [full, later].entries()) {
          const base = generation === 0 ? null : 'p0';
          const writer = await store.createSet(newSet({ point: `p${generation}`, base, codec }));
          let same: number | undefined;
          for (const [track, kind] of Object.entries(tracks).map(
            ([name, kind]) => [Number(name), kind] as const,
          )) {
            const content = kind === 'noise' ? noise(track) : labelled(`${kind} ${generation}`);
            contents.set(track, kind === 'zero' ? undefined : content);
            if (kind === 'zero') writer.addZero(track);
            else if (kind === 'same' && same !== undefined) writer.addAlias(track, same);
            else writer.add(track, content);
            if (kind === 'same') same ??= track;
          }
          await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
          await writer.seal();
        }
        const reopened = await Store.open(path, { key: KEY });
        for await (const verified of verify(reopened)) t.ok(verified.sound);
        const chain = await reopened.chain((await reopened.find('latest')).id);
        for (const [track, content] of contents)
          t.strictSame(chain.readTrack(track), content, `track ${track}`);
        await chain.close();
        rmSync(path, { recursive: true });
      },
    ),
    { seed: SEED, numRuns: 15 },
  );
});

t.test('the lanes of a set have keys of their own', async (t) => {
  withoutSyncs(t);
  const root = scratch(t);
  const store = await makeStore(join(root, 'store'));
  const { assembly, lanes } = await store.beginSet(
    newSet(),
    { count: 2, directories: [join(root, 'beside')] },
    async (parts) => {
      t.not(
        Buffer.from(parts[0]?.key?.secret ?? []).toString('hex'),
        Buffer.from(parts[1]?.key?.secret ?? []).toString('hex'),
      );
      // As a message to a thread does it, which makes plain arrays of buffers.
      return structuredClone(parts).map((part) => new LaneWriter(part));
    },
  );
  lanes[0]?.add(1, labelled('first'));
  lanes[1]?.add(2, labelled('second'));
  await assembly.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await assembly.seal();
  t.equal(await readLabels(await Store.open(store.path, { key: KEY }), 'latest', [1, 2]), 'first second');

  const [set] = await store.list();
  const [first = '', second = ''] = set?.lanePaths ?? [];
  await exchange(first, second, 'header', 'key');
  t.equal(await codeOf(async () => store.chain(set?.id ?? '')), 'corruption');
});

t.test('nothing that a set holds can be read in the files of a store', async (t) => {
  withoutSyncs(t);
  const path = join(scratch(t), 'store');
  const store = await makeStore(path);
  const writer = await store.createSet(
    newSet({ volumeName: 'payroll', volumeId: 'volume-77', point: 'point-99' }),
  );
  writer.add(3, labelled('salaries'));
  writer.putObject({
    name: 'etc/shadow',
    blockSizeBytes: TRACK_BYTES,
    ordering: { form: 'positions', rows: [{ arrival: 0, count: 1 }] },
  });
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await writer.seal();
  const words = [
    'payroll',
    'volume-77',
    'point-99',
    'salaries',
    'shadow',
    'full',
    'correct horse',
    'trackSize',
  ];
  const names = readdirSync(path, { recursive: true, encoding: 'utf8' });
  const files = names.filter((name) => statSync(join(path, name)).isFile());
  t.ok(files.length >= 5);
  for (const name of files) {
    const bytes = readFileSync(join(path, name));
    for (const word of words) t.notOk(bytes.includes(word), `${word} in ${name}`);
  }
  const set = await store.find('latest:payroll');
  const reader = store.openSet(set);
  t.match(reader.object('etc/shadow'), { name: 'etc/shadow', blockSizeBytes: TRACK_BYTES });
  t.equal([...reader.readObject('etc/shadow')][0]?.equals(labelled('salaries')), true);
  t.throws(() => reader.object('etc/passwd'), /object etc\/passwd is damaged: there is none/);
  await reader.close();
});

t.test('seal and structure are checked without the key, and no more', async (t) => {
  withoutSyncs(t);
  const store = await makeStore(join(scratch(t), 'store'));
  await saveSet(store, {}, [[1, 'content']]);
  const { path } = await store.find('latest');
  t.equal(await codeOf(async () => SetReader.open(path)), 'key-needed');
  const file = openLmdb(path);
  const order = file.database('order');
  file.transaction(() => order.put('x', Buffer.from('more')));
  await file.close();
  t.equal(await codeOf(async () => SetReader.open(path)), 'corruption');
});

t.test('values that were exchanged name the tracks they are of', async (t) => {
  withoutSyncs(t);
  const store = await makeStore(join(scratch(t), 'store'));
  const writer = await store.createSet(newSet());
  writer.add(1, labelled('one'));
  writer.flush();
  writer.add(2, labelled('two'));
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await writer.seal();
  const set = await store.find('latest');
  const file = openLmdb(set.path);
  const frames = file.database('frames');
  const [one, two] = [...frames.range()];
  file.transaction(() => {
    frames.put(one?.key ?? '', two?.value ?? Buffer.alloc(0));
    frames.put(two?.key ?? '', one?.value ?? Buffer.alloc(0));
  });
  await file.close();
  const reader = store.openSet({ ...set, damage: undefined });
  for (const track of [1, 2]) {
    t.throws(
      () => reader.readTrack(track),
      new RegExp(`damaged in track ${track}: .* not what was encrypted there`),
    );
    const [plan] = reader.readPlan(TrackSet.of([track]));
    if (plan !== undefined) t.throws(() => reader.packedFrame(plan), CorruptionError);
  }
  await reader.close();
});

t.test('a set that another wrote is no set of the store', async (t) => {
  withoutSyncs(t);
  const root = scratch(t);
  const stores = {
    own: await makeStore(join(root, 'own')),
    encrypted: await makeStore(join(root, 'encrypted')),
    plain: await Store.init(join(root, 'plain')),
  };
  await saveSet(stores.own, {}, [[1, 'own']]);
  for (const other of ['encrypted', 'plain'] as const) {
    await saveSet(stores[other], { point: other }, [[1, other]]);
    const { path } = await stores[other].find('latest');
    const foreign = path.replace(`/${other}/`, '/own/');
    copyFileSync(path, foreign);
    const listed = (await stores.own.list()).find((set) => set.path === foreign);
    t.match(
      listed?.damage,
      other === 'plain' ? /is not encrypted, as its store is/ : /does not open with the key/,
    );
    rmSync(foreign);
  }
  const { path } = await stores.own.find('latest');
  copyFileSync(path, path.replace('/own/', '/plain/'));
  const [strange] = (await stores.plain.list()).filter((set) => set.damage !== undefined);
  t.match(strange?.damage, /is encrypted, wanted the key of its store/);
});

t.test('the catalog is encrypted, and made anew where it is lost', async (t) => {
  withoutSyncs(t);
  const path = join(scratch(t), 'store');
  const store = await makeStore(path);
  await saveSet(store, {}, [[1, 'content']]);
  const before = await store.list();
  rmSync(join(path, 'catalog'));
  t.strictSame(await (await Store.open(path, { key: KEY, readOnly: true })).list(), before);
  t.strictSame(await (await Store.open(path, { key: KEY })).list(), before);
});

t.test('what a crash left is put in order', async (t) => {
  withoutSyncs(t);
  const path = join(scratch(t), 'store');
  const store = await makeStore(path);
  await saveSet(store, {}, [[1, 'content']]);
  const { path: complete } = await store.find('latest');
  renameSync(complete, `${complete}.partial`);
  rmSync(join(path, 'catalog'));
  const begun = await store.createSet(newSet({ point: 'p2' }));
  begun.add(2, labelled('unfinished'));
  begun.flush();
  const partials = readdirSync(join(path, 'sets')).filter((name) => name.endsWith('.partial'));
  const unfinished = partials.find((name) => name.startsWith(begun.id)) ?? '';
  const cut = join(path, 'sets', unfinished.replace(begun.id, '0'.repeat(26)));
  copyFileSync(join(path, 'sets', unfinished), cut);

  const reopened = await Store.open(path, { key: KEY });
  t.equal(await readLabels(reopened, 'latest', [1]), 'content', 'a sealed one is finished');
  const left = readdirSync(join(path, 'sets')).filter((name) => name.endsWith('.partial'));
  t.strictSame(left, [unfinished], 'one that was cut off is removed, one that is being written is not');
  await begun.abort();
});

t.test('further lanes that a crash left elsewhere are found and removed', async (t) => {
  withoutSyncs(t);
  const root = scratch(t);
  const store = await makeStore(join(root, 'store'));
  const { assembly, lanes } = await store.beginSet(
    newSet(),
    { count: 2, directories: [join(root, 'beside')] },
    async (parts) => parts.map((part) => new LaneWriter(part)),
  );
  for (const lane of lanes) lane.addZero(lanes.indexOf(lane));
  const places = [join(store.path, 'sets'), join(root, 'beside', store.id)];
  const partials = places.map((place, lane) => join(place, `${assembly.id}-${lane}.cbs.partial`));
  const cut = partials.map((path) => path.replace(assembly.id, '0'.repeat(26)));
  for (const [lane, path] of partials.entries()) copyFileSync(path, cut[lane] ?? '');
  await Store.open(store.path, { key: KEY });
  t.strictSame(
    cut.map((path) => existsSync(path)),
    [false, false],
    'the writer of these is gone',
  );
  t.strictSame(
    partials.map((path) => existsSync(path)),
    [true, true],
    'that of these lives',
  );
  await assembly.abort();
});

/** Puts the record of the second file into the first, under its checksum. */
async function exchange(path: string, other: string, database: string, key: string): Promise<void> {
  const source = openLmdb(other, { readOnly: true });
  const value = source.database(database).get(key);
  await source.close();
  const file = openLmdb(path);
  const target = file.database(database);
  file.transaction(() => target.put(key, value ?? Buffer.alloc(0)));
  await file.close();
}
