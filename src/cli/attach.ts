/**
 * The command line of nbd-client that attaches an export to a kernel device.
 *
 * - `-persist` reconnects when the server comes back. nbd-client 3.24 does that only over the older ioctl
 *   interface: over netlink it hands the sockets to the kernel and ends, so `-nonetlink` goes with it. It
 *   reconnects one connection, so it starts with one.
 * - `-timeout` is how long the kernel lets a request wait before it gives it up: long enough for a server to
 *   be restarted, or for a volume to recover, without a filesystem above seeing an error.
 * - `-block-size` is a page: with smaller blocks the kernel would send requests that make the server read
 *   before it writes.
 *
 * Pure; `commands/attach.ts` runs the result.
 */

import { basename, join } from 'node:path';
import { LIMITS } from '../base/index.ts';
import type { NbdAddress } from '../nbd/index.ts';

const TIMEOUT_SECONDS = 600;
const CONNECTION_COUNT = 1;

/** The place of a volume's default socket. `directory` is absolute. */
export function addressOfVolume(directory: string): NbdAddress {
  return { transport: { kind: 'unix', path: join(directory, 'nbd.sock') }, exportName: basename(directory) };
}

/** The arguments of nbd-client that attach `address` to `device`. */
export function attachArguments(address: NbdAddress, device: string): readonly string[] {
  const { transport } = address;
  const where =
    transport.kind === 'unix' ? ['-unix', transport.path] : [transport.host, String(transport.port)];
  return [
    ...where,
    device,
    '-name',
    address.exportName,
    '-block-size',
    String(LIMITS.blockSizeBytesPreferred),
    '-connections',
    String(CONNECTION_COUNT),
    '-timeout',
    String(TIMEOUT_SECONDS),
    '-persist',
    '-nonetlink',
  ];
}

/** The arguments of nbd-client that detach `device`, over the same interface as it was attached. */
export function detachArguments(device: string): readonly string[] {
  return ['-nonetlink', '-d', device];
}

/** A command line for a POSIX shell: quoted only where it must be. */
export function shellLine(words: readonly string[]): string {
  return words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`))
    .join(' ');
}
