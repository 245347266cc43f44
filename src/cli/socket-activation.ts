/**
 * Sockets that a supervisor such as systemd bound and handed to this process, as sd_listen_fds(3) describes:
 *
 *     LISTEN_PID      the process they are for; without it, or with another one, there are none
 *     LISTEN_FDS      how many; they are the descriptors from 3 on
 *     LISTEN_FDNAMES  their names, separated by colons
 *
 * The variables are removed, so that children do not take the sockets for their own. That children do not
 * inherit the descriptors is Node's doing: it marks those it was started with close-on-exec.
 *
 * A name that ends in `=a,b` (systemd: `FileDescriptorName=nbd=a,b`) restricts its socket to these exports, as
 * in `--listen`. Other names mean nothing here.
 */

import type { FurtherListener } from '../daemon/index.ts';
import { readRestriction } from './arguments.ts';
import { UsageError } from './exit.ts';

const FIRST_DESCRIPTOR = 3;
/** What a process may have open by default, which is more than anyone hands over. */
const DESCRIPTOR_COUNT_MAX = 1024;

type Environment = Record<string, string | undefined>;

/**
 * Takes the sockets that were handed to process `pid` out of its environment; a second call finds none.
 *
 * @throws {UsageError} when the variables are not what sd_listen_fds(3) says.
 */
export function takeHandedSockets(environment: Environment, pid: number): readonly FurtherListener[] {
  const { LISTEN_PID: forPid, LISTEN_FDS: count, LISTEN_FDNAMES: names } = environment;
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID'])
    delete environment[name];
  if (forPid !== String(pid) || count === undefined) return [];
  const descriptorCount = /^\d{1,4}$/.test(count) ? Number(count) : Number.NaN;
  if (!(descriptorCount <= DESCRIPTOR_COUNT_MAX)) {
    throw new UsageError(`LISTEN_FDS is '${count}', wanted a count of up to ${DESCRIPTOR_COUNT_MAX} sockets`);
  }
  const nameOf = names === undefined ? [] : names.split(':');
  return Array.from({ length: descriptorCount }, (_, index) => ({
    place: { kind: 'descriptor', descriptor: FIRST_DESCRIPTOR + index },
    exports: readRestriction('A name in LISTEN_FDNAMES', nameOf[index] ?? '').exports,
  }));
}
