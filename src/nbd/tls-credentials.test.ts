/**
 * Goal: what is wrong with the files of TLS is said when they are loaded, in one sentence that names the file.
 * Method: directories made by openssl, each broken in one way.
 */

import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ManualClock } from '../base/index.ts';
import { TestAuthority, writeKeyFile } from './test-certificates.ts';
import { loadTlsClientCredentials, loadTlsServerCredentials } from './tls-credentials.ts';

function temporary(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const shared = temporary(t);
const authority = new TestAuthority(join(shared, 'ca'));

/** A directory with everything a server or client can have. */
function whole(t: Test, side: 'server' | 'client'): string {
  const directory = temporary(t);
  authority.issue(directory, side);
  if (side === 'server') writeKeyFile(join(directory, 'keys.psk'), ['alice']);
  return directory;
}

t.test('a whole directory is taken, and so is each part that makes sense alone', async (t) => {
  const directory = whole(t, 'server');
  const both = await loadTlsServerCredentials(directory);
  t.same(both.warnings, []);
  t.match(both.options, { requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.2' });
  t.type(both.options.pskCallback, 'function');
  const open = await loadTlsServerCredentials(directory, { verifyPeer: false });
  t.match(open.options, { requestCert: false, rejectUnauthorized: false });

  rmSync(join(directory, 'keys.psk'));
  const certificates = await loadTlsServerCredentials(directory);
  t.equal(certificates.options.pskCallback, undefined);
  t.equal(certificates.options.ciphers, undefined, "Node's own choice");
  rmSync(join(directory, 'ca-cert.pem'));
  t.match((await loadTlsServerCredentials(directory, { verifyPeer: false })).options, { requestCert: false });

  const keys = temporary(t);
  writeKeyFile(join(keys, 'keys.psk'), ['alice']);
  t.match((await loadTlsServerCredentials(keys)).options, { requestCert: false, cert: undefined });
});

t.test('a broken directory of a server is refused with the file that is wrong', async (t) => {
  const other = whole(t, 'server');
  const broken: [string, (at: (name: string) => string) => void, string, RegExp][] = [
    ['no directory', (at) => rmSync(at('.'), { recursive: true }), 'tls-file-missing', /does not exist/],
    [
      'a file in its place',
      (at) => {
        rmSync(at('.'), { recursive: true });
        writeFileSync(at('.').replace(/\/\.?$/, ''), '');
      },
      'tls-file-invalid',
      /is no directory/,
    ],
    [
      'nothing in it',
      (at) => {
        rmSync(at('.'), { recursive: true });
        mkdirSync(at('.'));
      },
      'tls-file-missing',
      /wanted server-cert.pem with server-key.pem, or keys.psk/,
    ],
    ['no key', (at) => rmSync(at('server-key.pem')), 'tls-file-missing', /server-key.pem is missing/],
    [
      'no certificate',
      (at) => rmSync(at('server-cert.pem')),
      'tls-file-missing',
      /server-cert.pem is missing/,
    ],
    ['no authority', (at) => rmSync(at('ca-cert.pem')), 'tls-file-missing', /ca-cert.pem is missing/],
    [
      "another one's key",
      (at) => copyFileSync(join(other, 'server-key.pem'), at('server-key.pem')),
      'tls-file-invalid',
      /server-key.pem is not the key of the certificate in .*server-cert.pem/,
    ],
    ['no PEM', (at) => writeFileSync(at('server-cert.pem'), 'x'), 'tls-file-invalid', /holds no certificate/],
    ['no key in PEM', (at) => writeFileSync(at('server-key.pem'), 'x'), 'tls-file-invalid', /no private key/],
    [
      'no PEM of the authority',
      (at) => writeFileSync(at('ca-cert.pem'), 'x'),
      'tls-file-invalid',
      /ca-cert.pem holds no certificate/,
    ],
    ['a broken CRL', (at) => writeFileSync(at('ca-crl.pem'), 'x'), 'tls-file-invalid', /CRL/],
    ['a broken key file', (at) => writeFileSync(at('keys.psk'), 'x'), 'tls-file-invalid', /Line 1/],
    [
      'a huge file',
      (at) => truncateSync(at('ca-cert.pem'), 2 ** 24 + 1),
      'tls-file-invalid',
      /16777217 bytes/,
    ],
    [
      'what is no file',
      (at) => {
        rmSync(at('keys.psk'));
        mkdirSync(at('keys.psk'));
      },
      'tls-file-unreadable',
      /keys.psk cannot be read: EISDIR/,
    ],
  ];
  for (const [name, breakIt, code, message] of broken) {
    const directory = whole(t, 'server');
    breakIt((file) => join(directory, file));
    await t.rejects(loadTlsServerCredentials(directory), { code, message }, name);
  }
});

t.test('what may surprise is told and taken', async (t) => {
  const directory = whole(t, 'server');
  const at = (name: string): string => join(directory, name);
  chmodSync(at('server-key.pem'), 0o644);
  chmodSync(at('keys.psk'), 0o644);
  const { warnings } = await loadTlsServerCredentials(directory);
  t.equal(warnings.length, 2);
  t.match(warnings[0], `private key file ${at('server-key.pem')}`);
  t.match(warnings[1], `private key file ${at('keys.psk')}`);
  chmodSync(at('server-key.pem'), 0o640);
  chmodSync(at('keys.psk'), 0o600);
  t.same((await loadTlsServerCredentials(directory)).warnings, []);
  const late = await loadTlsServerCredentials(directory, { clock: new ManualClock(4e12) });
  t.match(late.warnings, [/has expired/]);
  const early = await loadTlsServerCredentials(directory, { clock: new ManualClock(1e12) });
  t.match(early.warnings, [/is not valid yet/]);
});

t.test('a client takes certificates, a key, or the public roots', async (t) => {
  const directory = whole(t, 'client');
  const full = await loadTlsClientCredentials({ certificates: directory });
  t.ok(full.ca !== undefined && full.cert !== undefined && full.key !== undefined && full.verifyPeer);
  rmSync(join(directory, 'client-cert.pem'));
  await t.rejects(loadTlsClientCredentials({ certificates: directory }), { code: 'tls-file-missing' });
  rmSync(join(directory, 'client-key.pem'));
  t.equal((await loadTlsClientCredentials({ certificates: directory })).cert, undefined);
  rmSync(join(directory, 'ca-cert.pem'));
  await t.rejects(loadTlsClientCredentials({ certificates: directory }), {
    code: 'tls-file-missing',
    message: /tls-verify-peer=0/,
  });
  t.same(await loadTlsClientCredentials({ certificates: directory, verifyPeer: false }), {
    verifyPeer: false,
  });
  t.same(await loadTlsClientCredentials({}), { verifyPeer: true });

  const path = join(temporary(t), 'keys');
  writeKeyFile(path, ['alice', userInfo().username]);
  t.equal((await loadTlsClientCredentials({ pskFile: path, username: 'alice' })).psk?.identity, 'alice');
  t.equal((await loadTlsClientCredentials({ pskFile: path })).psk?.identity, userInfo().username);
  await t.rejects(loadTlsClientCredentials({ pskFile: path, username: 'eve' }), { code: 'tls-user-unknown' });
  await t.rejects(loadTlsClientCredentials({ pskFile: `${path}.not` }), { code: 'tls-file-missing' });
});
