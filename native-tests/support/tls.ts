/** Certificates and keys for native tests, made by openssl; the test must have asked for that tool. */
import { join } from 'node:path';
import { TestAuthority, writeKeyFile } from '../../src/nbd/test-certificates.ts';

/**
 * Makes what the two sides of TLS need, each in a directory of its own under `directory`. A second call replaces all
 * of it.
 *
 * - `server`: a certificate, and `keys.psk` with the key of `alice`;
 * - `client`: a certificate of the same authority;
 * - `anonymous`: the authority's certificate alone, so no proof of who comes;
 * - `other`: a certificate of an authority that the server does not know;
 * - `other.psk`: keys of `alice` and `mallory` that the server does not know.
 */
export function makeCredentials(directory: string): void {
  const at = (name: string): string => join(directory, name);
  const authority = new TestAuthority(at('authority'));
  authority.issue(at('server'), 'server');
  authority.issue(at('client'), 'client');
  authority.trustIn(at('anonymous'));
  new TestAuthority(at('stranger')).issue(at('other'), 'client');
  writeKeyFile(at('server/keys.psk'), ['alice']);
  writeKeyFile(at('other.psk'), ['alice', 'mallory']);
}
