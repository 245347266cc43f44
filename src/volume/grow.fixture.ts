/** What the tests of growing share: points, and an end without any good-bye. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestVolume } from '../sim/index.ts';
import type { Volume } from './index.ts';

export const FULL = { consumer: 'store', level: 'full', candidates: [] } as const;

/** A complete backup of everything. @returns its point. */
export async function backUp(volume: Volume): Promise<string> {
  const session = await volume.beginSession({ ...FULL, areas: [] });
  session.confirm([{ first: 0, count: volume.geometry.trackCount }]);
  await session.mayComplete();
  await session.complete('set');
  return session.plan.point;
}

/**
 * Ends the volume as a kill would: the state stays as it is now, whatever closing it does.
 *
 * @param state what is to be found of it, if not what is there now.
 */
export async function kill({ volume, home, directory }: TestVolume, state?: Buffer): Promise<void> {
  const path = join(directory, 'state.mdb');
  const found = state ?? readFileSync(path);
  const rule = home.fail({ kind: 'flush' });
  await volume.close().catch(() => undefined);
  rule.remove();
  writeFileSync(path, found);
}
