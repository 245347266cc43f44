/**
 * Goal: URIs mean what libnbd means by them, and every address has one.
 * Method: named cases, refusals, and the round trip as a property.
 */

import { deepStrictEqual } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { formatNbdUri, isNbdUri, type NbdAddress, NbdUriError, parseNbdUri } from './uri.ts';

t.test('well-formed URIs', (t) => {
  const cases: [string, NbdAddress][] = [
    ['nbd://host', { transport: { kind: 'tcp', host: 'host', port: 10_809 }, exportName: '' }],
    ['nbd://host/', { transport: { kind: 'tcp', host: 'host', port: 10_809 }, exportName: '' }],
    ['nbd://10.0.0.1:99/a/b', { transport: { kind: 'tcp', host: '10.0.0.1', port: 99 }, exportName: 'a/b' }],
    ['nbd://[::1]:99//a', { transport: { kind: 'tcp', host: '::1', port: 99 }, exportName: '/a' }],
    ['nbd+unix:///?socket=/run/a+b', { transport: { kind: 'unix', path: '/run/a+b' }, exportName: '' }],
    [
      'nbd+unix:///a%20%C3%A4@s?socket=/r%3Fn',
      { transport: { kind: 'unix', path: '/r?n' }, exportName: 'a ä@s' },
    ],
    ['nbds://host/a', { transport: { kind: 'tcp', host: 'host', port: 10_809 }, exportName: 'a', tls: {} }],
    [
      'nbds://host/?tls-certificates=/etc/pki&tls-hostname=other&tls-verify-peer=false&tls-type=x509',
      {
        transport: { kind: 'tcp', host: 'host', port: 10_809 },
        exportName: '',
        tls: { certificates: '/etc/pki', hostname: 'other', verifyPeer: false },
      },
    ],
    [
      'nbds+unix://al%3Aice@/a?socket=/run/s&tls-psk-file=/k+p&tls-type=psk',
      {
        transport: { kind: 'unix', path: '/run/s' },
        exportName: 'a',
        tls: { pskFile: '/k+p', username: 'al:ice' },
      },
    ],
    [
      'nbds://host?tls-psk-file=k&tls-username=bob&tls-verify-peer=1',
      {
        transport: { kind: 'tcp', host: 'host', port: 10_809 },
        exportName: '',
        tls: { pskFile: 'k', username: 'bob', verifyPeer: true },
      },
    ],
  ];
  for (const [uri, address] of cases) t.same(parseNbdUri(uri), address, uri);
  t.end();
});

t.test('what is no usable URI is refused with its code', (t) => {
  const refused = [
    '',
    'http://host/',

    'nbd:///name',
    'nbd://host/?tls-certificates=/a',
    'nbd+unix://user@/?socket=/a',
    'nbds://user@host/',
    'nbds://@host/?tls-psk-file=/k',
    'nbds://user@host/?tls-psk-file=/k&tls-username=user',
    'nbds://host/?tls-psk-file=/k&tls-certificates=/a',
    'nbds://host/?tls-psk-file=/k&tls-psk-file=/k',
    'nbds://host/?tls-certificates',
    'nbds://host/?tls-verify-peer=yes',
    'nbds://host/?tls-type=anon',
    'nbds://host/?tls-type=psk',
    'nbds://host/?tls-colour=red',
    'nbds://host/?socket=/a',
    'nbds+unix:///name?tls-certificates=/a',
    'nbd://user@host/',
    'nbd://host:0/',
    'nbd://host:70000/',
    'nbd://host:/',
    'nbd://host/a?socket=/b',
    'nbd://host/%ff',
    'nbd+unix:///name',
    'nbd+unix:///name?socket=',
    'nbd+unix:///name?socket=/a&socket=/b',
    'nbd+unix:///name?socket=/a&tls=1',
    'nbd+unix://host/name?socket=/a',
  ];
  for (const uri of refused) {
    t.throws(() => parseNbdUri(uri), NbdUriError, uri);
    t.throws(() => parseNbdUri(uri), { code: 'uri-invalid', details: { uri } });
  }
  t.end();
});

t.test('isNbdUri tells URIs from paths', (t) => {
  t.ok(isNbdUri('nbd://host'));
  t.ok(isNbdUri('nbds+unix:///?socket=/a'));
  t.notOk(isNbdUri('/srv/nbd'));
  t.notOk(isNbdUri('nbd'));
  t.end();
});

t.test('every address survives the round trip', (t) => {
  const name = fc.string({ unit: 'binary', maxLength: 20 });
  const transport = fc.oneof(
    fc.record({
      kind: fc.constant('tcp' as const),
      host: fc.oneof(fc.constantFrom('localhost', '127.0.0.1', '::1', 'fe80::1:2')),
      port: fc.integer({ min: 1, max: 65_535 }),
    }),
    fc.record({
      kind: fc.constant('unix' as const),
      path: fc.string({ unit: 'binary', minLength: 1, maxLength: 30 }),
    }),
  );
  const text = fc.string({ unit: 'binary', minLength: 1, maxLength: 20 });
  const optional = { requiredKeys: [] };
  const tls = fc.oneof(
    fc.constant(undefined),
    fc.record({ certificates: text, hostname: text, verifyPeer: fc.boolean() }, optional),
    fc.record({ pskFile: text, username: text, hostname: text }, { requiredKeys: ['pskFile'] }),
  );
  fc.assert(
    fc.property(transport, name, tls, (transport, exportName, tls) => {
      const plain = { transport: { ...transport }, exportName };
      const address: NbdAddress = tls === undefined ? plain : { ...plain, tls: { ...tls } };
      deepStrictEqual(parseNbdUri(formatNbdUri(address)), address);
    }),
  );
  t.end();
});
