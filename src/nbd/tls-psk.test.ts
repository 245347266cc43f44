/**
 * Goal: files of pre-shared keys mean what psktool meant, and a typing error is told instead of skipped.
 * Method: named files, each refusal with its line, any keys written and read back.
 */

import { deepStrictEqual } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { NbdTlsError } from './tls-error.ts';
import { parsePskFile } from './tls-psk.ts';

t.test('keys are found by the names of their users', (t) => {
  const keys = parsePskFile('alice:00ff\r\n\nbob smith:ABCD\n#613a62:01', 'keys');
  t.same(
    [...keys].map(([user, key]) => [user, key.toString('hex')]),
    [
      ['alice', '00ff'],
      ['bob smith', 'abcd'],
      ['a:b', '01'],
    ],
  );
  t.end();
});

t.test('what is no key is refused with its line', (t) => {
  const long = '00'.repeat(513);
  const refused: [string, RegExp][] = [
    ['', /holds no key/],
    ['\n\n', /holds no key/],
    ['alice', /Line 1 .* wanted user:hexkey/],
    ['a:00\n:00', /Line 2 .* wanted user:hexkey/],
    ['a:', /wanted a key of 1 to 512 bytes/],
    ['a:0', /wanted a key of 1 to 512 bytes/],
    ['a:00 ', /wanted a key of 1 to 512 bytes/],
    ['a:secret', /wanted a key of 1 to 512 bytes/],
    [`a:${long}`, /wanted a key of 1 to 512 bytes/],
    [`${'u'.repeat(257)}:00`, /wanted user:hexkey/],
    ['# a comment', /wanted user:hexkey/],
    ['#zz:00', /wanted user:hexkey/],
    ['#ff:00', /wanted user:hexkey/],
    ['a:00\na:01', /Line 2 .* the user a has a key already/],
    ['a:00\n#61:01', /the user a has a key already/],
  ];
  for (const [text, message] of refused) {
    t.throws(() => parsePskFile(text, '/etc/keys'), { code: 'tls-file-invalid', message }, text.slice(0, 20));
  }
  t.throws(() => parsePskFile('a:secret', '/etc/keys'), NbdTlsError);
  try {
    parsePskFile('a:secret', '/etc/keys');
  } catch (error) {
    t.notMatch(String(error), /secret/, 'no part of a key is shown');
  }
  t.end();
});

t.test('any keys survive the round trip', (t) => {
  const user = fc
    .string({ unit: 'binary', minLength: 1, maxLength: 40 })
    .filter((text) => !text.includes('\0'));
  const key = fc.uint8Array({ minLength: 1, maxLength: 512 });
  fc.assert(
    fc.property(fc.dictionary(user, key, { minKeys: 1, noNullPrototype: true }), (keys) => {
      const lines = Object.entries(keys).map(
        ([name, bytes]) => `#${Buffer.from(name).toString('hex')}:${Buffer.from(bytes).toString('hex')}`,
      );
      const back = parsePskFile(lines.join('\n'), 'keys');
      deepStrictEqual(
        [...back].map(([name, bytes]) => [name, bytes.toString('hex')]),
        Object.entries(keys).map(([name, bytes]) => [name, Buffer.from(bytes).toString('hex')]),
      );
    }),
  );
  t.end();
});
