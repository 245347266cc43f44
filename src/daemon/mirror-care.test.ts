/**
 * Goal: while a volume is served, a member that is away is tried again and brought what it missed, without anybody asking;
 * it is said when all copies are there again. Method: a mirror over two files, one of which is moved away and back.
 */

import { renameSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { KIB, systemClock } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { createVolume, layoutOf, Volume } from '../volume/index.ts';
import { MirrorCare } from './mirror-care.ts';

t.test('a member that is back is brought what it missed', async (t) => {
  const at = (name: string): string => join(t.testdirName, name);
  t.testdir({});
  const registry = new DeviceRegistry();
  const layout = layoutOf('mirror', [at('a'), at('b')]);
  await createVolume(at('v'), { sizeBytes: 256 * KIB, trackSizeBytes: 4 * KIB, layout, registry });
  renameSync(at('b'), at('elsewhere'));
  const volume = await Volume.open(at('v'), { registry, activity: 'testing' });
  await volume.write(Buffer.alloc(4 * KIB, 1), 8 * KIB);
  t.equal(volume.mirrors?.awayCount, 1);
  renameSync(at('elsewhere'), at('b'));
  const told = await new Promise<string>((resolve) => {
    const care = new MirrorCare({
      volume,
      clock: systemClock,
      warn: (sentence) => {
        resolve(sentence);
        void care.stop();
      },
    });
  });
  t.equal(told, 'All copies of volume v are current again');
  t.equal((volume.mirrors?.awayCount ?? 0) + (volume.mirrors?.rebuildingCount ?? 0), 0);
  await volume.close();
});
