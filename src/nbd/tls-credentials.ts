/**
 * Certificates and keys from files, under the names that QEMU and nbdkit use, checked before they are needed.
 *
 *     server's directory:  ca-cert.pem  server-cert.pem  server-key.pem  [ca-crl.pem]  and/or  keys.psk
 *     client's directory:  ca-cert.pem  [client-cert.pem  client-key.pem]  [ca-crl.pem]
 *     client's key file:   user:hexkey
 *
 * What can be known to fail fails here, in one sentence that names the file: a client would only see that its
 * handshake was broken off. The files are read once; new ones need a new load.
 *
 * **What is spoken.** TLS 1.2 and 1.3. Pre-shared keys use TLS 1.3 where the other side does, else the suites
 * of TLS 1.2 that agree on a fresh secret first; plain PSK comes last. A server with both offers both, and the
 * client chooses.
 *
 * What it does not do: no encrypted private keys (nobody is there to type), and no reloading.
 */

import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { open } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { createSecureContext, DEFAULT_CIPHERS, type TlsOptions } from 'node:tls';
import { type Clock, LIMITS, messageOf, systemClock, systemCode } from '../base/index.ts';
import { NbdTlsError } from './tls-error.ts';
import { parsePskFile, type PskKeys } from './tls-psk.ts';
import type { NbdTlsParameters } from './uri.ts';

/** Ready for listeners; made by `loadTlsServerCredentials`. */
export interface NbdServerCredentials {
  /** What TLS listeners of Node are made with. */
  readonly options: TlsOptions;
  /** What may surprise, a sentence each: a private key that others can read, a certificate out of its time. */
  readonly warnings: readonly string[];
}

export interface NbdServerCredentialsOptions {
  /** Whether clients without a key must show a certificate signed by `ca-cert.pem`; default true. */
  readonly verifyPeer?: boolean;
  readonly clock?: Clock;
}

/** How a client shows who it is and whom it trusts. */
export interface ClientCredentials {
  readonly verifyPeer: boolean;
  readonly ca?: Buffer;
  readonly crl?: Buffer;
  readonly cert?: Buffer;
  readonly key?: Buffer;
  /** In place of all certificates. */
  readonly psk?: { readonly identity: string; readonly psk: Buffer };
}

const TLS13_CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384';
/** TLS 1.3 with SHA-256 is the only one that takes an external key in OpenSSL's callback, and is listed first. */
export const PSK_CIPHERS = [
  TLS13_CIPHERS,
  'ECDHE-PSK-CHACHA20-POLY1305',
  'DHE-PSK-AES256-GCM-SHA384',
  'DHE-PSK-AES128-GCM-SHA256',
  'DHE-PSK-CHACHA20-POLY1305',
  'ECDHE-PSK-AES256-CBC-SHA384',
  'ECDHE-PSK-AES128-CBC-SHA256',
  'PSK-AES256-GCM-SHA384',
  'PSK-AES128-GCM-SHA256',
].join(':');

/**
 * Reads and checks a server's directory.
 *
 * @throws {NbdTlsError} tls-file-missing, tls-file-unreadable, tls-file-invalid
 */
export async function loadTlsServerCredentials(
  directory: string,
  options: NbdServerCredentialsOptions = {},
): Promise<NbdServerCredentials> {
  const { verifyPeer = true, clock = systemClock } = options;
  const warnings: string[] = [];
  const files = await readDirectory(directory, 'server', warnings);
  const pskPath = join(directory, 'keys.psk');
  const pskFile = await readOptional(pskPath);
  if (pskFile?.isPublic === true) warnings.push(publicKey(pskPath));
  if (files.pair === undefined && pskFile === undefined) {
    const message = `TLS directory ${directory} cannot be used: wanted server-cert.pem with server-key.pem, or keys.psk`;
    throw new NbdTlsError('tls-file-missing', message, { path: directory });
  }
  const asksClients = files.pair !== undefined && verifyPeer;
  if (asksClients && files.ca === undefined) {
    const path = join(directory, 'ca-cert.pem');
    const message = `${path} is missing: clients' certificates are checked against it unless that is switched off`;
    throw new NbdTlsError('tls-file-missing', message, { path });
  }
  if (files.pair !== undefined) warnings.push(...datesOf(files.pair, clock));
  const keys = pskFile === undefined ? undefined : parsePskFile(pskFile.bytes.toString(), pskPath);
  const made: TlsOptions = {
    minVersion: 'TLSv1.2',
    // Without a list of its own Node would trust the public roots, which vouch for no client of ours.
    ca: asksClients && files.ca !== undefined ? [files.ca] : [],
    ...(asksClients && files.crl !== undefined ? { crl: files.crl } : {}),
    ...(files.pair === undefined ? {} : { cert: files.pair.cert, key: files.pair.key }),
    requestCert: asksClients,
    rejectUnauthorized: asksClients,
    ...(keys === undefined ? {} : pskOptions(keys, files.pair !== undefined)),
  };
  tryContext(directory, made);
  return { options: made, warnings };
}

/**
 * Reads and checks what a URI names; nothing named is no files: the public roots are trusted.
 *
 * @throws {NbdTlsError} tls-file-missing, tls-file-unreadable, tls-file-invalid, tls-user-unknown
 */
export async function loadTlsClientCredentials(parameters: NbdTlsParameters): Promise<ClientCredentials> {
  const { certificates, pskFile, verifyPeer = true } = parameters;
  if (pskFile !== undefined) {
    const username = parameters.username ?? userInfo().username;
    const keys = parsePskFile((await readNeeded(pskFile)).bytes.toString(), pskFile);
    const psk = keys.get(username);
    if (psk !== undefined) return { verifyPeer: true, psk: { identity: username, psk } };
    const message = `The key file ${pskFile} has no key for the user ${username}, wanted user@ in the URI`;
    throw new NbdTlsError('tls-user-unknown', message, { path: pskFile, username });
  }
  if (certificates === undefined) return { verifyPeer };
  const { ca, crl, pair } = await readDirectory(certificates, 'client', []);
  if (verifyPeer && ca === undefined) {
    const path = join(certificates, 'ca-cert.pem');
    const message = `${path} is missing: the server's certificate is checked against it unless tls-verify-peer=0`;
    throw new NbdTlsError('tls-file-missing', message, { path });
  }
  const credentials = {
    verifyPeer,
    ...(ca === undefined ? {} : { ca }),
    ...(crl === undefined ? {} : { crl }),
    ...(pair === undefined ? {} : { cert: pair.cert, key: pair.key }),
  };
  tryContext(certificates, credentials);
  return credentials;
}

interface KeyPair {
  readonly path: string;
  readonly certificate: X509Certificate;
  readonly cert: Buffer;
  readonly key: Buffer;
}

interface DirectoryFiles {
  readonly ca: Buffer | undefined;
  readonly crl: Buffer | undefined;
  readonly pair: KeyPair | undefined;
}

async function readDirectory(
  directory: string,
  side: 'server' | 'client',
  warnings: string[],
): Promise<DirectoryFiles> {
  await requireDirectory(directory);
  const at = (name: string): string => join(directory, name);
  const [ca, crl] = [await readOptional(at('ca-cert.pem')), await readOptional(at('ca-crl.pem'))];
  if (ca !== undefined) parseCertificate(ca.bytes, at('ca-cert.pem'));
  const [certPath, keyPath] = [at(`${side}-cert.pem`), at(`${side}-key.pem`)];
  const [cert, key] = [await readOptional(certPath), await readOptional(keyPath)];
  if (cert === undefined && key === undefined) return { ca: ca?.bytes, crl: crl?.bytes, pair: undefined };
  if (cert === undefined || key === undefined) {
    const [missing, there] = cert === undefined ? [certPath, keyPath] : [keyPath, certPath];
    const message = `${missing} is missing, wanted because ${there} is there`;
    throw new NbdTlsError('tls-file-missing', message, { path: missing });
  }
  if (key.isPublic) warnings.push(publicKey(keyPath));
  const certificate = parseCertificate(cert.bytes, certPath);
  if (!certificate.checkPrivateKey(parseKey(key.bytes, keyPath))) {
    const message = `${keyPath} is not the key of the certificate in ${certPath}`;
    throw new NbdTlsError('tls-file-invalid', message, { path: keyPath });
  }
  const pair = { path: certPath, certificate, cert: cert.bytes, key: key.bytes };
  return { ca: ca?.bytes, crl: crl?.bytes, pair };
}

function pskOptions(keys: PskKeys, hasCertificate: boolean): Partial<TlsOptions> {
  return {
    // The default list ends in `!PSK`, which would take the suites before it away again.
    ciphers: hasCertificate ? `${PSK_CIPHERS}:${DEFAULT_CIPHERS.replaceAll(':!PSK', '')}` : PSK_CIPHERS,
    dhparam: 'auto',
    pskCallback: (_, identity) => keys.get(identity) ?? null,
  };
}

/** Whatever else OpenSSL does not like about the files together: a broken CRL, a key that is too short. */
function tryContext(directory: string, options: Parameters<typeof createSecureContext>[0]): void {
  try {
    createSecureContext(options);
  } catch (cause) {
    const message = `TLS directory ${directory} cannot be used: ${messageOf(cause)}`;
    throw new NbdTlsError('tls-file-invalid', message, { path: directory }, { cause });
  }
}

function parseCertificate(bytes: Buffer, path: string): X509Certificate {
  try {
    return new X509Certificate(bytes);
  } catch (cause) {
    const message = `${path} holds no certificate that can be read, wanted PEM`;
    throw new NbdTlsError('tls-file-invalid', message, { path }, { cause });
  }
}

function parseKey(bytes: Buffer, path: string): KeyObject {
  try {
    return createPrivateKey(bytes);
  } catch (cause) {
    const message = `${path} holds no private key that can be read, wanted PEM without a passphrase`;
    throw new NbdTlsError('tls-file-invalid', message, { path }, { cause });
  }
}

function datesOf({ certificate, path }: KeyPair, clock: Clock): readonly string[] {
  const { validFrom, validTo } = certificate;
  const now = clock.now();
  if (now > Date.parse(validTo)) return [`The certificate ${path} has expired (${validTo})`];
  if (now < Date.parse(validFrom)) return [`The certificate ${path} is not valid yet (${validFrom})`];
  return [];
}

function publicKey(path: string): string {
  return `Every user of this machine can read or change the private key file ${path}; chmod 600 it`;
}

interface ReadFile {
  readonly bytes: Buffer;
  /** Others than owner and group may read or write it. */
  readonly isPublic: boolean;
}

async function readNeeded(path: string): Promise<ReadFile> {
  const file = await readOptional(path);
  if (file !== undefined) return file;
  throw new NbdTlsError('tls-file-missing', `${path} is missing, wanted for TLS`, { path });
}

async function requireDirectory(path: string): Promise<void> {
  try {
    const handle = await open(path);
    const isDirectory = (await handle.stat()).isDirectory();
    await handle.close();
    if (isDirectory) return;
  } catch (cause) {
    const isMissing = systemCode(cause) === 'ENOENT';
    const code = isMissing ? 'tls-file-missing' : 'tls-file-unreadable';
    const why = isMissing ? 'it does not exist' : messageOf(cause);
    throw new NbdTlsError(code, `TLS directory ${path} cannot be used: ${why}`, { path }, { cause });
  }
  const message = `TLS directory ${path} cannot be used: it is no directory`;
  throw new NbdTlsError('tls-file-invalid', message, { path });
}

async function readOptional(path: string): Promise<ReadFile | undefined> {
  try {
    const handle = await open(path);
    try {
      const { size, mode } = await handle.stat();
      if (size > LIMITS.tlsFileBytesMax) {
        const message = `${path} has ${size} bytes, wanted at most ${LIMITS.tlsFileBytesMax}`;
        throw new NbdTlsError('tls-file-invalid', message, { path });
      }
      return { bytes: await handle.readFile(), isPublic: (mode & 0o006) !== 0 };
    } finally {
      await handle.close();
    }
  } catch (cause) {
    if (cause instanceof NbdTlsError) throw cause;
    if (systemCode(cause) === 'ENOENT') return undefined;
    const message = `${path} cannot be read: ${messageOf(cause)}`;
    throw new NbdTlsError('tls-file-unreadable', message, { path }, { cause });
  }
}
