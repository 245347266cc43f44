/**
 * Certificates for tests, made by `openssl` as they are needed: an authority in a directory of its own, and
 * directories for servers and clients with the names that TLS options expect. Keys are on P-256, which takes
 * milliseconds.
 */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface IssueOptions {
  /** What the certificate is for; default `DNS:localhost,IP:127.0.0.1`. */
  readonly names?: string;
  readonly commonName?: string;
  /** From now on; 0 is over at once. */
  readonly days?: number;
}

export class TestAuthority {
  readonly #directory: string;

  /** @param directory made by this; everything of the authority is in it. */
  constructor(directory: string) {
    this.#directory = directory;
    mkdirSync(directory, { recursive: true });
    const words = ['req', '-x509', ...NEW_KEY, '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem'];
    const extension = ['-addext', 'basicConstraints=critical,CA:TRUE'];
    this.#openssl([...words, '-days', '2', '-subj', '/CN=Test authority', ...extension]);
  }

  /** Puts `ca-cert.pem`, and `<side>-cert.pem` with `<side>-key.pem`, into a directory, which is made. */
  issue(directory: string, side: 'server' | 'client', options: IssueOptions = {}): void {
    const { names = 'DNS:localhost,IP:127.0.0.1', commonName = `test ${side}`, days = 2 } = options;
    mkdirSync(directory, { recursive: true });
    const [cert, key] = [join(directory, `${side}-cert.pem`), join(directory, `${side}-key.pem`)];
    this.#openssl(['req', '-new', ...NEW_KEY, '-keyout', key, '-out', 'r.csr', '-subj', `/CN=${commonName}`]);
    writeFileSync(join(this.#directory, 'names'), `subjectAltName=${names}\n`);
    const signer = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial'];
    const words = ['x509', '-req', '-in', 'r.csr', ...signer, '-days', String(days), '-extfile', 'names'];
    this.#openssl([...words, '-out', cert]);
    this.trustIn(directory);
  }

  /** Puts `ca-cert.pem` alone into a directory, which is made. */
  trustIn(directory: string): void {
    mkdirSync(directory, { recursive: true });
    copyFileSync(join(this.#directory, 'ca-cert.pem'), join(directory, 'ca-cert.pem'));
  }

  /** Writes `ca-crl.pem` into a directory; it revokes the client's certificates of other directories. */
  revokeIn(directory: string, revoked: readonly string[]): void {
    const lines = ['[ca]', 'default_ca=d', '[d]', 'database=index', 'default_md=sha256', 'crlnumber=number'];
    writeFileSync(join(this.#directory, 'config'), `${lines.join('\n')}\n`);
    writeFileSync(join(this.#directory, 'index'), '');
    writeFileSync(join(this.#directory, 'number'), '01\n');
    const ca = ['ca', '-config', 'config', '-cert', 'ca-cert.pem', '-keyfile', 'ca-key.pem'];
    for (const other of revoked) this.#openssl([...ca, '-revoke', join(other, 'client-cert.pem')]);
    this.#openssl([...ca, '-gencrl', '-crldays', '2', '-out', join(directory, 'ca-crl.pem')]);
  }

  #openssl(words: readonly string[]): void {
    execFileSync('openssl', words, { cwd: this.#directory, stdio: ['ignore', 'ignore', 'pipe'] });
  }
}

/** Writes a file of fresh pre-shared keys, one for each user. */
export function writeKeyFile(path: string, users: readonly string[]): void {
  const lines = users.map((user) => `${user}:${randomBytes(32).toString('hex')}\n`);
  writeFileSync(path, lines.join(''), { mode: 0o600 });
}

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
