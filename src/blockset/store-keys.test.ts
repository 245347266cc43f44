/**
 * Goal: an encrypted store opens with each of its keys and with nothing else; keys change without the sets, and a
 * cut at any moment of a change leaves a store that opens with the old key or the new one; what a hostile file
 * asks for is refused before it is given.
 *
 * Method: real stores with cheap passphrases; the power cut before and after each sync of a change, with names
 * and files kept or lost by random numbers; each byte of the file changed.
 */

import { createHash } from 'node:crypto';
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { CorruptionError, observeSyncs, SeededRandom, type SyncName } from '../base/index.ts';
import { LossyDisk } from '../sim/index.ts';
import { decodeSlots, encodeSlots, type StoreKey, wrapMaster } from './key-slots.ts';
import { MasterKey } from './master-key.ts';
import { codeOf, readLabels, saveSet, scratch, withoutSyncs } from './model.fixture.ts';
import { Store } from './store.ts';
import { KEYS_NAME, StoreKeys } from './store-keys.ts';

const CHEAP = { cost: { n: 2, r: 1, p: 1 } };
const FIRST: StoreKey = { passphrase: 'correct horse' };
const SECOND: StoreKey = { passphrase: 'battery staple' };

function keyFile(directory: string, name = 'key', lengthBytes = 32): StoreKey {
  const path = join(directory, name);
  writeFileSync(path, createHash('sha512').update(path).digest().subarray(0, lengthBytes));
  return { keyFile: path };
}

const opens = (path: string, key: StoreKey): Promise<string> =>
  codeOf(() => Store.open(path, { readOnly: true, key }));

t.test('a store opens with its keys and nothing else', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const path = join(directory, 'store');
  await Store.init(path, { key: FIRST, ...CHEAP });
  t.ok(Store.isEncrypted(path));
  t.equal(statSync(join(path, KEYS_NAME)).mode & 0o777, 0o600);
  t.equal(await opens(path, FIRST), 'none');
  t.equal(await opens(path, SECOND), 'wrong-key');
  t.equal(await opens(path, keyFile(directory)), 'wrong-key');
  t.equal(await codeOf(() => Store.open(path)), 'key-needed');

  const keys = new StoreKeys(path, CHEAP);
  t.equal(await codeOf(() => keys.add(SECOND, FIRST)), 'wrong-key');
  t.match(await keys.add(FIRST, keyFile(directory)), { slot: 2, kind: 'key-file' });
  t.match(await keys.add(keyFile(directory), SECOND), { slot: 3, kind: 'passphrase' });
  for (const key of [FIRST, SECOND, keyFile(directory)]) t.equal(await opens(path, key), 'none');
  t.same(
    keys.list().map(({ slot, kind }) => `${slot} ${kind}`),
    ['1 passphrase', '2 key-file', '3 passphrase'],
  );

  t.equal(await codeOf(() => keys.remove(SECOND, 3)), 'key-in-use');
  t.equal(await codeOf(() => keys.remove(SECOND, 9)), 'unknown-slot');
  await keys.remove(SECOND, 1);
  t.equal(await opens(path, FIRST), 'wrong-key');
  await keys.remove(SECOND, 2);
  t.equal(await opens(path, keyFile(directory)), 'wrong-key');
  t.equal(await codeOf(() => keys.remove(SECOND, 3)), 'key-in-use', 'the last one stays');
  t.match(await keys.change(SECOND, FIRST), { slot: 4 });
  t.equal(await opens(path, SECOND), 'wrong-key');
  t.equal(await opens(path, FIRST), 'none');
});

t.test('a passphrase is the same however its letters are composed', async (t) => {
  withoutSyncs(t);
  const path = join(scratch(t), 'store');
  await Store.init(path, { key: { passphrase: 'caf\u00e9' }, ...CHEAP });
  t.equal(await opens(path, { passphrase: 'cafe\u0301' }), 'none');
  t.equal(await opens(path, { passphrase: 'cafe' }), 'wrong-key');
});

t.test('keys that cannot be are refused, and a key where none belongs', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const plain = join(directory, 'plain');
  await Store.init(plain);
  t.notOk(Store.isEncrypted(plain));
  t.notOk(Store.isEncrypted(join(directory, 'nothing')));
  t.equal(await opens(plain, FIRST), 'not-encrypted');
  t.equal(await codeOf(async () => new StoreKeys(plain).list()), 'not-encrypted');
  t.equal(await codeOf(() => new StoreKeys(plain).add(FIRST, SECOND)), 'not-encrypted');
  const bad: readonly StoreKey[] = [
    { passphrase: '' },
    { passphrase: 'x'.repeat(5000) },
    keyFile(directory, 'short', 31),
    { keyFile: join(directory, 'missing') },
    { keyFile: directory },
  ];
  for (const key of bad) {
    const path = join(directory, 'store');
    t.equal(await codeOf(() => Store.init(path, { key, ...CHEAP })), 'bad-key');
    t.equal(await codeOf(() => Store.open(path, { key })), 'not-a-store', 'what was begun is no store');
    rmSync(path, { recursive: true });
  }
});

t.test('more keys than a store holds are refused', async (t) => {
  withoutSyncs(t);
  const path = join(scratch(t), 'store');
  await Store.init(path, { key: FIRST, ...CHEAP });
  const keys = new StoreKeys(path, CHEAP);
  for (let count = 1; count < 16; count += 1) await keys.add(FIRST, { passphrase: `key ${count}` });
  t.equal(await codeOf(() => keys.add(FIRST, SECOND)), 'too-many-keys');
  t.equal(await opens(path, { passphrase: 'key 15' }), 'none');
});

t.test('a change of keys leaves every other file as it is, and the sets readable', async (t) => {
  withoutSyncs(t);
  const directory = scratch(t);
  const path = join(directory, 'store');
  const store = await Store.init(path, { key: FIRST, ...CHEAP });
  await saveSet(store, { point: 'p1' }, [[2, 'old']]);
  const before = filesOf(path);
  const keys = new StoreKeys(path, CHEAP);
  await keys.add(FIRST, keyFile(directory));
  await keys.change(FIRST, SECOND);
  await keys.remove(SECOND, 2);
  const after = filesOf(path);
  t.not(after.get(KEYS_NAME), before.get(KEYS_NAME));
  before.delete(KEYS_NAME);
  after.delete(KEYS_NAME);
  t.strictSame([...after], [...before]);
  t.equal(await readLabels(await Store.open(path, { readOnly: true, key: SECOND }), 'latest', [2]), 'old');
});

function filesOf(path: string): Map<string, string> {
  const names = readdirSync(path, { recursive: true, encoding: 'utf8' }).sort();
  const files = names.filter((name) => statSync(join(path, name)).isFile() && !name.endsWith('-lock'));
  return new Map(
    files.map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(path, name)))
        .digest('hex'),
    ]),
  );
}

t.test('damage of the keys is told from a wrong key', async (t) => {
  withoutSyncs(t);
  const path = join(scratch(t), 'store');
  await Store.init(path, { key: FIRST, ...CHEAP });
  const file = join(path, KEYS_NAME);
  const whole = readFileSync(file);
  for (let at = 0; at < whole.length; at += 1) {
    // White space and the newline are not content.
    if (whole.toString('latin1', at, at + 1).trim() === '') continue;
    const changed = Buffer.from(whole);
    changed[at] = (changed[at] ?? 0) ^ 1;
    writeFileSync(file, changed);
    const code = await opens(path, FIRST);
    if (code !== 'corruption' && code !== 'newer-format') t.equal(code, 'corruption', `byte ${at}`);
  }
  for (const content of [
    '',
    '[]',
    'null',
    '{"cowbellKeys":0,"slots":[]}',
    whole.toString() + ' '.repeat(70_000),
  ]) {
    writeFileSync(file, content);
    t.equal(await opens(path, FIRST), 'corruption');
  }
  rmSync(file);
  t.equal(await opens(path, FIRST), 'corruption', 'and keys that are missing are damage');
});

t.test('a slot that asks for too much is refused before it is given', async (t) => {
  const master = MasterKey.random();
  const slot = await wrapMaster(master, FIRST, { store: 's', slot: 1, createdMs: 0, ...CHEAP });
  const costs = [
    { n: 2 ** 30, r: 8, p: 1 },
    { n: 2, r: 2 ** 30, p: 1 },
    { n: 2 ** 16, r: 8, p: 2 ** 20 },
    { n: 0, r: 8, p: 1 },
    { n: 3, r: 8, p: 1 },
    { n: 16, r: 0, p: 1 },
    { n: 16, r: 1, p: 0 },
  ];
  t.match(decodeSlots(encodeSlots([slot]), 'keys'), [{ slot: 1 }]);
  for (const scrypt of costs) {
    t.throws(() => decodeSlots(encodeSlots([{ ...slot, scrypt }]), 'keys'), CorruptionError, `${scrypt.n}`);
    await t.rejects(
      wrapMaster(master, FIRST, { store: 's', slot: 1, createdMs: 0, cost: scrypt }),
      /out of bounds/,
    );
  }
  const many = Array.from({ length: 17 }, () => slot);
  t.throws(() => decodeSlots(encodeSlots(many), 'keys'), /17 slots/);
});

t.test('the cost that is written by default is accepted when read', async (t) => {
  const slot = await wrapMaster(MasterKey.random(), FIRST, { store: 's', slot: 1, createdMs: 0 });
  t.match(decodeSlots(encodeSlots([slot]), 'keys'), [{ scrypt: { n: 65_536, r: 8, p: 2 } }]);
});

t.test('a cut at any moment of a change leaves the old key or the new one', async (t) => {
  const root = scratch(t);
  const template = join(root, 'template');
  observeSyncs({ before: () => 'skip' });
  await Store.init(template, { key: FIRST, ...CHEAP });
  observeSyncs(undefined);
  t.teardown(() => observeSyncs(undefined));
  const seen = new Set<string>();
  for (let seed = 0; seed < 12; seed += 1) {
    for (const cutAt of [0, 1, 2, 3, 4]) {
      const parent = join(root, `${seed}-${cutAt}`);
      mkdirSync(parent);
      const path = join(parent, 'store');
      cpSync(template, path, { recursive: true });
      const outcome = await changeAndCut(path, { seed, cutAt });
      const [old, changed] = [await opens(path, FIRST), await opens(path, SECOND)];
      if (outcome === 'done') t.strictSame([old, changed], ['wrong-key', 'none'], 'what returned stays');
      else if (!['none wrong-key', 'wrong-key none'].includes(`${old} ${changed}`)) {
        t.fail(`seed ${seed}, cut at ${cutAt}: old key ${old}, new key ${changed}`);
      }
      seen.add(`${outcome} ${changed}`);
      rmSync(parent, { recursive: true });
    }
  }
  t.strictSame([...seen].sort(), ['cut none', 'cut wrong-key', 'done none']);
});

for (const name of ['store-keys', 'store-directory'] as const) {
  t.test(`a change that leaves out the sync ${name} is lost at some cut`, async (t) => {
    const root = scratch(t);
    t.teardown(() => observeSyncs(undefined));
    let isLost = false;
    for (let seed = 0; seed < 40 && !isLost; seed += 1) {
      const path = join(root, `${seed}`, 'store');
      observeSyncs({ before: () => 'skip' });
      await Store.init(path, { key: FIRST, ...CHEAP });
      observeSyncs(undefined);
      await changeAndCut(path, { seed, cutAt: 4, disabled: name });
      isLost = (await opens(path, SECOND)) !== 'none';
    }
    t.ok(isLost);
  });
}

/** Changes the key, and cuts the power at the sync event of that number, or behind the last. */
async function changeAndCut(
  path: string,
  options: { readonly seed: number; readonly cutAt: number; readonly disabled?: SyncName },
): Promise<'cut' | 'done'> {
  let events = 0;
  let isCut = false;
  const random = new SeededRandom(options.seed);
  const disk: LossyDisk = new LossyDisk(path, {
    onEvent: () => {
      if (!isCut && events === options.cutAt) {
        isCut = true;
        disk.powerCut(random);
      }
      events += 1;
      if (isCut) throw new Error('The power is cut');
      return undefined;
    },
  });
  if (options.disabled !== undefined) disk.disable(options.disabled);
  try {
    await new StoreKeys(path, CHEAP).change(FIRST, SECOND);
    disk.powerCut(random);
    return 'done';
  } catch (error) {
    if (!isCut) throw error;
    return 'cut';
  } finally {
    disk.close();
  }
}
