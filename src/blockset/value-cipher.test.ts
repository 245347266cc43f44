/**
 * Goal: what was encrypted comes back with the same key and in the same place only, and nothing of it can be
 * seen below the layer.
 *
 * Method: properties over random values; each bit of a stored value flipped; real LMDB files read with the
 * layer, without it, with another key, and with values exchanged under their checksums.
 */

import fc from 'fast-check';
import { randomBytes } from 'node:crypto';
import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { CHECKSUM_BYTES, openLmdb } from '../records/index.ts';
import { scratch } from './model.fixture.ts';
import { CIPHER_OVERHEAD_BYTES, encryptedFile, ValueCipher } from './value-cipher.ts';

const SEED = Number(process.env['COWBELL_SEED'] ?? Date.now() % 1_000_000);
t.comment(`seed ${SEED}`);

const bytes = (maxLength: number) => fc.uint8Array({ maxLength }).map((array) => Buffer.from(array));
const cipher = new ValueCipher(randomBytes(32));
const context = Buffer.from('frames\0key');

t.test('what was encrypted in parts comes back as one value', (t) => {
  fc.assert(
    fc.property(fc.array(bytes(300), { maxLength: 4 }), bytes(40), (parts, place) => {
      const stored = Buffer.concat(cipher.encrypt(place, parts));
      const plain = Buffer.concat(parts);
      return (
        stored.length === plain.length + CIPHER_OVERHEAD_BYTES && cipher.decrypt(place, stored)?.equals(plain)
      );
    }),
    { seed: SEED },
  );
  t.end();
});

t.test('each flipped bit is found, and each byte that is missing', (t) => {
  fc.assert(
    fc.property(bytes(40), (plain) => {
      const stored = Buffer.concat(cipher.encrypt(context, [plain]));
      for (let bit = 0; bit < stored.length * 8; bit += 1) {
        const flipped = Buffer.from(stored);
        flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        if (cipher.decrypt(context, flipped) !== undefined) return false;
      }
      for (let end = 0; end < stored.length; end += 1) {
        if (cipher.decrypt(context, stored.subarray(0, end)) !== undefined) return false;
      }
      return true;
    }),
    { seed: SEED, numRuns: 20 },
  );
  t.end();
});

t.test('another key or another place opens nothing', (t) => {
  const stored = Buffer.concat(cipher.encrypt(context, [Buffer.from('content')]));
  t.equal(new ValueCipher(randomBytes(32)).decrypt(context, stored), undefined);
  t.equal(cipher.decrypt(Buffer.from('frames\0other'), stored), undefined);
  t.equal(cipher.decrypt(Buffer.from('frame\0skey'), stored), undefined);
  t.equal(cipher.decrypt(context, stored)?.toString(), 'content');
  t.not(cipher.hideName('passwd'), new ValueCipher(randomBytes(32)).hideName('passwd'));
  t.match(cipher.hideName('passwd'), /^[0-9a-f]{64}$/);
  t.equal(cipher.hideName('passwd'), cipher.hideName('passwd'));
  t.end();
});

t.test('a file under the layer shows nothing, and exchanged values are damage', async (t) => {
  const path = `${scratch(t)}/file`;
  const file = openLmdb(path, { create: true });
  t.teardown(() => file.close());
  const layer = encryptedFile(file, cipher);
  t.equal(encryptedFile(file, undefined), file);
  const plain = layer.database('frames');
  layer.database('header');
  layer.transaction(() => {
    plain.append('a', Buffer.from('first '), Buffer.from('content'));
    plain.appendInPlace('b', Buffer.concat([Buffer.from('other content'), Buffer.alloc(CHECKSUM_BYTES)]));
    plain.put('c', Buffer.from('gone'));
    plain.remove('c');
    for (const key of ['format', 'seal', 'set']) layer.database('header').put(key, Buffer.from(`the ${key}`));
  });
  t.equal(plain.get('a')?.toString(), 'first content');
  t.equal(plain.get('c'), undefined);
  t.equal(plain.count(), 2);
  t.same([...plain.keys()].map(String), ['a', 'b']);
  t.same(
    [...plain.range({ reverse: true })].map(({ key, value }) => `${key.toString()} ${value.toString()}`),
    ['b other content', 'a first content'],
  );

  const stored = file.database('frames');
  const below = [...stored.range()].map(({ value }) => value);
  t.notOk(below.some((value) => value.includes('content')));
  t.equal(file.database('header').get('seal')?.toString(), 'the seal', 'what leads to the key is readable');
  t.notMatch(file.database('header').get('set')?.toString('latin1'), 'the set');

  // Below the layer the values are whole: their checksums are made anew.
  file.transaction(() => {
    stored.put('a', below[1] ?? Buffer.alloc(0));
    stored.put('b', below[0] ?? Buffer.alloc(0));
  });
  t.throws(() => plain.get('a'), CorruptionError);
  t.throws(() => [...plain.range()], /Value 0x61 in frames of .*file is not what was encrypted there/);
  const otherKey = encryptedFile(file, new ValueCipher(randomBytes(32)));
  t.throws(() => otherKey.database('header').get('set'), CorruptionError);
});
