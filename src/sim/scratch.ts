/**
 * A new directory for a simulation, in memory where the system has such: what a simulation syncs need not
 * survive anything but the simulation itself, and it syncs often.
 */

import { mkdtempSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const MEMORY = '/dev/shm';

export function makeScratchDirectory(): string {
  return mkdtempSync(join(isUsable(MEMORY) ? MEMORY : tmpdir(), 'cowbell-sim-'));
}

function isUsable(path: string): boolean {
  const stats = statSync(path, { throwIfNoEntry: false });
  return stats?.isDirectory() === true && (stats.mode & 0o002) !== 0;
}
