/**
 * What `cowbell attach` tells the program that stays behind it, and the command line of nbd-client for a
 * machine that has no Cowbell.
 *
 * - `-persist` asks nbd-client to reconnect when the server comes back. Its release 3.27 has that for netlink, one
 *   connection at a time, hence `-connections 1` unless more are asked for. nbd-client 3.24 (Debian 12) on Linux 6.1 does not, over
 *   either interface: the kernel reports the server's end as success and nbd-client ends, and requests fail
 *   at once because it sets no time for dead connections. There a server's restart is an I/O error for the
 *   filesystem above.
 * - `-timeout` is how long the kernel lets a request wait for its reply: long, because a write may wait for a
 *   backup (promise 8).
 * - `-block-size` is a page: with smaller blocks the kernel would send requests that make the server read
 *   before it writes.
 *
 * Pure; `supervisor.ts` and `commands/attach.ts` do it.
 */

import { basename, join } from 'node:path';
import { LIMITS, messageOf } from '../base/index.ts';
import type { KernelDeviceEvent, NbdAddress } from '../nbd/index.ts';

const TIMEOUT_SECONDS = 600;

/** What the supervising program is started with; crosses a process as JSON. */
export interface SupervisorOptions {
  readonly device: string;
  readonly address: NbdAddress;
  readonly connections: number;
  readonly timeoutSeconds: number;
  readonly deadConnectionSeconds: number;
}

/** The one message of the supervising program. */
export type SupervisorMessage =
  | { readonly kind: 'attached'; readonly sizeBytes: number; readonly isTakenOver: boolean }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string };

/** One line about what happened to a device. */
export function describeDeviceEvent(event: KernelDeviceEvent): string {
  switch (event.kind) {
    case 'lost':
      return `${event.device} has lost its server`;
    case 'waiting':
      return `${event.device} waits for its server: ${messageOf(event.error)}`;
    case 'restored':
      return `${event.device} is connected again after ${(event.pauseMs / 1000).toFixed(1)} s`;
  }
}

/** The place of a volume's default socket. `directory` is absolute. */
export function addressOfVolume(directory: string): NbdAddress {
  return { transport: { kind: 'unix', path: join(directory, 'nbd.sock') }, exportName: basename(directory) };
}

/** The arguments of nbd-client that attach `address` to `device` over so many connections. */
export function attachArguments(
  address: NbdAddress,
  device: string,
  connectionCount: number,
): readonly string[] {
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
    String(connectionCount),
    '-timeout',
    String(TIMEOUT_SECONDS),
    '-persist',
  ];
}

/** A command line for a POSIX shell: quoted only where it must be. */
export function shellLine(words: readonly string[]): string {
  return words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`))
    .join(' ');
}
