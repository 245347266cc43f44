/**
 * NBD URIs: `nbd://host[:port]/name` and `nbd+unix:///name?socket=/path`, and the same with TLS as
 * `nbds://[user@]host[:port]/name?...` and `nbds+unix://[user@]/name?socket=/path&...`.
 *
 * Names and paths are percent-encoded UTF-8. Parsed by hand: the URL class turns `+` in a socket's path into
 * a blank and normalises dots in a name, which are both data here.
 *
 * How TLS is done is in the query, under the names that libnbd has: `tls-certificates` (a directory),
 * `tls-psk-file`, `tls-username` (or the user before the host), `tls-hostname`, `tls-verify-peer`, and the
 * `tls-type` of the specification. They are refused with `nbd` and `nbd+unix`: those never speak TLS here, and
 * a URI that names credentials and then goes in the clear would be a trap. What is not known is refused too.
 *
 * Source: the NBD URI specification (doc/uri.md beside NBD proto.md), and nbd_connect_uri(3).
 */

import { BlockError } from '../base/index.ts';

/** IANA's port for NBD. */
export const NBD_PORT = 10_809;

/** Where a server listens. */
export type NbdTransport =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** How the client does TLS; without any of it the server's certificate is held against the public roots. */
export interface NbdTlsParameters {
  /** A directory with `ca-cert.pem`, and `client-cert.pem` with `client-key.pem` for servers that ask. */
  readonly certificates?: string;
  /** A file of lines `user:hexkey`; the pre-shared key takes the place of certificates. */
  readonly pskFile?: string;
  /** Whose key of `pskFile` is used; default: the user this process runs as. */
  readonly username?: string;
  /** The name that the server's certificate must have, where it is not the host that is connected to. */
  readonly hostname?: string;
  /** Whether the server's certificate is checked; default true. */
  readonly verifyPeer?: boolean;
}

export interface NbdAddress {
  readonly transport: NbdTransport;
  readonly exportName: string;
  /** Present: the session is encrypted or fails. Absent: it is plain. */
  readonly tls?: NbdTlsParameters;
}

export interface NbdUriErrorDetails {
  'uri-invalid': { readonly uri: string };
}

export class NbdUriError extends BlockError<NbdUriErrorDetails, 'uri-invalid'> {}

/** Whether a text claims to be an NBD URI, well-formed or not: for telling URIs from paths. */
export function isNbdUri(text: string): boolean {
  return /^nbds?(\+unix)?:\/\//.test(text);
}

/** @throws {NbdUriError} uri-invalid */
export function parseNbdUri(uri: string): NbdAddress {
  const match = /^nbd(s)?(\+unix)?:\/\/([^/?#]*)(\/[^?#]*)?(?:\?([^#]*))?$/.exec(uri);
  if (match === null) {
    throw invalid(uri, 'wanted nbd://host[:port]/name or nbd+unix:///name?socket=/path, or nbds for TLS');
  }
  const [, secure, unix, authority = '', path = '', query = ''] = match;
  const parameters = parseQuery(uri, query);
  const at = authority.lastIndexOf('@');
  const user = at < 0 ? undefined : decode(uri, authority.slice(0, at));
  const host = authority.slice(at + 1);
  const transport = unix === undefined ? tcpOf(uri, host, parameters) : unixOf(uri, host, parameters);
  parameters.delete('socket');
  const address = { transport, exportName: decode(uri, path.slice(1)) };
  if (secure !== undefined) return { ...address, tls: tlsOf(uri, user, parameters) };
  if (user !== undefined || parameters.size > 0) {
    const what = user === undefined ? [...parameters.keys()].join(', ') : 'a user';
    throw invalid(uri, `${what} is wanted with the schemes nbds and nbds+unix only`);
  }
  return address;
}

/** The URI of an address; `parseNbdUri` gives the address back. */
export function formatNbdUri(address: NbdAddress): string {
  const { transport, exportName, tls } = address;
  const isUnix = transport.kind === 'unix';
  const scheme = `nbd${tls === undefined ? '' : 's'}${isUnix ? '+unix' : ''}`;
  const user = tls?.username === undefined ? '' : `${encodeURIComponent(tls.username)}@`;
  const query = [isUnix && `socket=${encodePath(transport.path)}`, ...formatTls(tls)].filter(
    (part) => part !== false,
  );
  const name = encodeURIComponent(exportName);
  return `${scheme}://${user}${formatHost(transport)}/${name}${query.length > 0 ? '?' : ''}${query.join('&')}`;
}

function formatHost(transport: NbdTransport): string {
  if (transport.kind === 'unix') return '';
  const host = transport.host.includes(':') ? `[${transport.host}]` : transport.host;
  return transport.port === NBD_PORT ? host : `${host}:${transport.port}`;
}

function formatTls(tls: NbdTlsParameters | undefined): readonly string[] {
  const { certificates, pskFile, hostname, verifyPeer } = tls ?? {};
  const parts = [];
  if (certificates !== undefined) parts.push(`tls-certificates=${encodePath(certificates)}`);
  if (pskFile !== undefined) parts.push(`tls-psk-file=${encodePath(pskFile)}`);
  if (hostname !== undefined) parts.push(`tls-hostname=${encodeURIComponent(hostname)}`);
  if (verifyPeer !== undefined) parts.push(`tls-verify-peer=${verifyPeer ? '1' : '0'}`);
  return parts;
}

/** Slashes are legal in a query and kept, so that people can read the path. */
function encodePath(path: string): string {
  return encodeURIComponent(path).replaceAll('%2F', '/');
}

function parseQuery(uri: string, query: string): Map<string, string> {
  const parameters = new Map<string, string>();
  if (query === '') return parameters;
  for (const parameter of query.split('&')) {
    const equals = parameter.indexOf('=');
    const key = equals < 0 ? parameter : parameter.slice(0, equals);
    const value = equals < 0 ? '' : decode(uri, parameter.slice(equals + 1));
    if (value === '' || parameters.has(key)) throw invalid(uri, `wanted one value for ${key}`);
    parameters.set(key, value);
  }
  return parameters;
}

function tcpOf(uri: string, authority: string, parameters: ReadonlyMap<string, string>): NbdTransport {
  if (parameters.has('socket')) throw invalid(uri, 'a socket is wanted with +unix only');
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:@[\]]+))(?::(\d{1,5}))?$/.exec(authority);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? NBD_PORT : Number(match[3]);
  if (host === undefined) throw invalid(uri, 'wanted a host and perhaps a port before the export name');
  if (port < 1 || port > 65_535) throw invalid(uri, 'wanted a port from 1 to 65535');
  return { kind: 'tcp', host, port };
}

function unixOf(uri: string, host: string, parameters: ReadonlyMap<string, string>): NbdTransport {
  if (host !== '') throw invalid(uri, 'a Unix socket has no host, wanted nbd+unix:///');
  const path = parameters.get('socket');
  if (path === undefined) throw invalid(uri, 'wanted ?socket=/path');
  return { kind: 'unix', path };
}

const TLS_KEYS: readonly string[] = [
  'tls-certificates',
  'tls-psk-file',
  'tls-username',
  'tls-hostname',
  'tls-verify-peer',
  'tls-type',
];
const TRUTH: Readonly<Record<string, boolean>> = { '0': false, '1': true, false: false, true: true };

function tlsOf(
  uri: string,
  user: string | undefined,
  parameters: ReadonlyMap<string, string>,
): NbdTlsParameters {
  const unknown = [...parameters.keys()].find((key) => !TLS_KEYS.includes(key));
  if (unknown !== undefined) throw invalid(uri, `${unknown} is not known, wanted ${TLS_KEYS.join(', ')}`);
  const certificates = parameters.get('tls-certificates');
  const pskFile = parameters.get('tls-psk-file');
  const hostname = parameters.get('tls-hostname');
  const named = parameters.get('tls-username');
  if (user === '' || (user !== undefined && named !== undefined)) throw invalid(uri, 'wanted one user name');
  const username = user ?? named;
  const said = parameters.get('tls-verify-peer');
  const verifyPeer = said === undefined ? undefined : TRUTH[said];
  if (said !== undefined && verifyPeer === undefined) throw invalid(uri, 'tls-verify-peer is 0 or 1');
  if (certificates !== undefined && pskFile !== undefined) {
    throw invalid(uri, 'wanted tls-certificates or tls-psk-file, not both');
  }
  if (username !== undefined && pskFile === undefined) throw invalid(uri, 'a user needs a tls-psk-file');
  const type = parameters.get('tls-type');
  if (type !== undefined && type !== (pskFile === undefined ? 'x509' : 'psk')) {
    throw invalid(uri, 'tls-type is x509, or psk with a tls-psk-file; anonymous TLS is not offered');
  }
  return {
    ...(certificates === undefined ? {} : { certificates }),
    ...(pskFile === undefined ? {} : { pskFile }),
    ...(username === undefined ? {} : { username }),
    ...(hostname === undefined ? {} : { hostname }),
    ...(verifyPeer === undefined ? {} : { verifyPeer }),
  };
}

function decode(uri: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(uri, 'its percent-encoding is no UTF-8');
  }
}

function invalid(uri: string, wanted: string): NbdUriError {
  return new NbdUriError('uri-invalid', `URI ${JSON.stringify(uri)} cannot be used, ${wanted}`, { uri });
}
