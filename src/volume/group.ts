/** What begins on several volumes at one instant, all or none; a single volume is a group of one. */

import { freezeTogether } from './freeze.ts';
import type { BackupSession } from './session.ts';
import type { SessionRequest } from './sessions.ts';
import type { CreatedSnapshot } from './volume-status.ts';
import type { Volume } from './volume.ts';

/**
 * Begins a backup session on each of the volumes, of points that are one instant.
 *
 * @throws {VolumeError} `session-running`, `freeze-timeout`, `poisoned`, `read-only`; no session has begun then.
 */
export function beginSessions(
  wishes: readonly { readonly volume: Volume; readonly request: SessionRequest }[],
): Promise<readonly BackupSession[]> {
  return freezeTogether(wishes.map(({ volume, request }) => volume.sessionPart(request)));
}

/**
 * Makes a snapshot of that name of each of the volumes, all of one instant; durable when the promise resolves.
 *
 * @throws {VolumeError} `invalid-name`, `snapshot-exists`, `too-many-snapshots`, `freeze-timeout`, `poisoned`,
 *   `read-only`; none is left then.
 */
export async function createSnapshots(
  name: string,
  volumes: readonly Volume[],
): Promise<readonly CreatedSnapshot[]> {
  const finishing = await freezeTogether(volumes.map((volume) => volume.snapshotPart(name)));
  const outcomes = await Promise.allSettled(finishing);
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed === undefined) return Promise.all(finishing);
  // The failed ones have taken theirs back already.
  for (const [index, outcome] of outcomes.entries()) {
    if (outcome.status === 'fulfilled') await volumes[index]?.deleteSnapshot(name);
  }
  throw failed.reason;
}
