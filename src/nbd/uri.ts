/**
 * NBD URIs: `nbd://host[:port]/name` and `nbd+unix:///name?socket=/path`.
 *
 * Names and paths are percent-encoded UTF-8. Parsed by hand: the URL class turns `+` in a socket's path into
 * a blank and normalises dots in a name, which are both data here. TLS schemes (`nbds`) are refused until
 * the client can speak TLS.
 *
 * Source: the NBD URI specification, as NBD proto.md and libnbd use it.
 */

import { BlockError } from '../base/index.ts';

/** IANA's port for NBD. */
export const NBD_PORT = 10_809;

/** Where a server listens. */
export type NbdTransport =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

export interface NbdAddress {
  readonly transport: NbdTransport;
  readonly exportName: string;
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
  const match = /^(nbd|nbd\+unix):\/\/([^/?#]*)(\/[^?#]*)?(?:\?([^#]*))?$/.exec(uri);
  if (match === null) {
    throw invalid(uri, 'wanted nbd://host[:port]/name or nbd+unix:///name?socket=/path');
  }
  const [, scheme, authority = '', path = '', query = ''] = match;
  const exportName = decode(uri, path.slice(1));
  if (scheme === 'nbd') {
    if (query !== '') throw invalid(uri, 'no query is wanted');
    return { transport: parseAuthority(uri, authority), exportName };
  }
  if (authority !== '') throw invalid(uri, 'a Unix socket has no host, wanted nbd+unix:///');
  const parameters = query.split('&').map((parameter) => parameter.split('='));
  const sockets = parameters.filter(([key]) => key === 'socket');
  const socketPath = decode(uri, sockets[0]?.slice(1).join('=') ?? '');
  if (sockets.length !== 1 || parameters.length !== 1 || socketPath === '') {
    throw invalid(uri, 'wanted exactly ?socket=/path');
  }
  return { transport: { kind: 'unix', path: socketPath }, exportName };
}

/** The URI of an address; `parseNbdUri` gives the address back. */
export function formatNbdUri(address: NbdAddress): string {
  const { transport, exportName } = address;
  const name = encodeURIComponent(exportName);
  if (transport.kind === 'unix') {
    // Slashes are legal in a query and kept, so that people can read the path.
    const path = encodeURIComponent(transport.path).replaceAll('%2F', '/');
    return `nbd+unix:///${name}?socket=${path}`;
  }
  const host = transport.host.includes(':') ? `[${transport.host}]` : transport.host;
  const port = transport.port === NBD_PORT ? '' : `:${transport.port}`;
  return `nbd://${host}${port}/${name}`;
}

function parseAuthority(uri: string, authority: string): NbdTransport {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:@[\]]+))(?::(\d{1,5}))?$/.exec(authority);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? NBD_PORT : Number(match[3]);
  if (host === undefined) throw invalid(uri, 'wanted a host and perhaps a port before the export name');
  if (port < 1 || port > 65_535) throw invalid(uri, 'wanted a port from 1 to 65535');
  return { kind: 'tcp', host, port };
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
