/**
 * Goal: a recovery that was interrupted between putting the lost volume aside and making the new one still knows where
 * the home was; of several that were put aside the last one counts. Nothing stays in the new one's way.
 *
 * Method: volumes whose homes lie elsewhere and are removed.
 */

import { existsSync, mkdirSync, rmSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { MIB } from '../base/index.ts';
import { makeScratchDirectory } from '../sim/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { createVolume, layoutOf, lookForLost, lookForRecovery, putLostAside } from './index.ts';

t.test('What was put aside last tells where the home was', async (t) => {
  const scratch = makeScratchDirectory();
  t.teardown(() => rmSync(scratch, { recursive: true }));
  const directory = join(scratch, 'v');
  t.equal(await lookForLost(directory), undefined, 'nothing is there');
  for (const name of ['first.raw', 'second.raw']) {
    const home = join(scratch, name);
    const identity = await createVolume(directory, { sizeBytes: MIB, trackSizeBytes: 4096, home });
    t.equal((await lookForRecovery(directory))?.isHomeLost, false);
    rmSync(home);
    // A volume with deltas or mirrors has regions in doubt after a crash.
    mkdirSync(join(directory, 'dirty'));
    t.equal((await lookForRecovery(directory))?.isHomeLost, true);
    const aside = await putLostAside(identity);
    // Both may be made within one tick of the clock.
    if (name === 'first.raw') utimesSync(aside, 1, 1);
    t.equal(await lookForRecovery(directory), undefined, 'its place is free');
    t.notOk(existsSync(join(directory, 'dirty')), 'and whole');
    t.equal((await lookForLost(directory))?.identity.home, home);
  }
});

t.test(
  'A home of several members is lost with any of its parts, and a mirror with all of its members',
  async (t) => {
    const scratch = makeScratchDirectory();
    t.teardown(() => rmSync(scratch, { recursive: true }));
    for (const kind of ['stripe', 'mirror'] as const) {
      const directory = join(scratch, kind);
      const homes = ['a', 'b'].map((name) => join(scratch, `${kind}-${name}`));
      const layout = layoutOf(kind, homes);
      const registry = new DeviceRegistry();
      await createVolume(directory, { sizeBytes: MIB, trackSizeBytes: 4096, layout, registry });
      const lost: unknown[] = [];
      for (const home of homes) {
        rmSync(home);
        lost.push((await lookForRecovery(directory))?.isHomeLost);
      }
      t.strictSame(lost, kind === 'mirror' ? [false, true] : [true, true], kind);
    }
  },
);
