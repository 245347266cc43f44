/**
 * What tells one run of the machine, from its start to its shutdown, from others: where it is the same as before, what a
 * process that died had written to local files is all there, flushed or not.
 */

import { readFileSync } from 'node:fs';

/** The kernel's id of this run; undefined where there is none to be had. */
export function bootId(): string | undefined {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return undefined;
  }
}
