/**
 * Goal: a set that is read together with delta logs gives the volume as it was after the last write before an instant, to
 * whoever serves it, recovers from it or restores it; and says so where nothing can.
 *
 * Method: a real volume with logs that are kept, a real store, real reading processes; what they give is compared with
 * a model of every write.
 */

import { join } from 'node:path';
import t from 'tap';
import { present, SeededRandom } from '../base/index.ts';
import { builtProgram, writeLabel } from '../sim/index.ts';
import { lookForRecovery, Volume } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { prepareRecovery } from './prepare-recovery.ts';
import { imageBefore, liveThrough, World } from './rebuild.fixture.ts';
import { openStoreReader } from './store-reader.ts';

const program = builtProgram('store-reader');
const LONG_MS = 1e9;

await t.test('a reading process gives the volume as of an instant', async (t) => {
  const random = new SeededRandom(11);
  const world = await World.create(t, 2, LONG_MS);
  const moments = await liveThrough(world, random);
  const { storePath, deltas: places } = world;
  const sets = new Set<string>();
  for (const part of [0.1, 0.6]) {
    const beforeMs = present(moments[Math.floor(part * moments.length)], 'It is in the row').timeMs;
    const reader = await openStoreReader({ storePath, set: 'latest', logs: { places, beforeMs }, program });
    const content = Buffer.alloc(reader.device.sizeBytes);
    await reader.device.read(content, 0);
    t.ok(content.equals(imageBefore(moments, beforeMs)), `${part} of the way, from set ${reader.set.set}`);
    sets.add(reader.set.set);
    await reader.close();
  }
  t.ok(sets.size === 2 && sets.has(''), 'from a set, and from none');
});

await t.test('a volume is recovered as of an instant', async (t) => {
  const random = new SeededRandom(12);
  const world = await World.create(t, 1, LONG_MS);
  const moments = await liveThrough(world, random);
  const { storePath, deltas: places, clock } = world;
  const beforeMs = present(moments[30], 'It is in the row').timeMs;
  const directory = join(world.root, 'recovered');
  const prepared = await prepareRecovery({
    from: { storePath, set: 'latest', logs: { places, beforeMs } },
    directory,
    registry: createDeviceRegistry(),
    clock,
    readerPath: program,
    warn: () => undefined,
  });
  const registry = createDeviceRegistry();
  const volume = await Volume.open(directory, {
    registry,
    clock,
    activity: 'test',
    openSide: prepared.openSide,
  });
  const content = Buffer.alloc(volume.geometry.sizeBytes);
  await volume.read(content, 0);
  t.ok(content.equals(imageBefore(moments, beforeMs)));
  await volume.close();
  const side = (await lookForRecovery(directory))?.record?.side;
  t.match(side, { kind: 'store', logs: { places, beforeMs } }, 'what it goes on from is on record');
  const named = side?.kind === 'store' ? side : undefined;
  const again = await openStoreReader({ storePath, set: '', ...named, program });
  await again.device.read(content.fill(0), 0);
  t.ok(content.equals(imageBefore(moments, beforeMs)), 'and gives the same again');
  await again.close();
  await t.rejects(
    prepareRecovery({
      from: { storePath, set: 'latest', logs: { places, beforeMs: beforeMs + 60_000 } },
      directory,
      registry,
      clock,
      readerPath: program,
      warn: () => undefined,
    }),
    /goes on from nothing else/,
  );
});

await t.test('what joins nothing is refused', async (t) => {
  const world = await World.create(t);
  await writeLabel(world.live, 1, 'a1');
  world.clock.advance(1000);
  await world.backUp('full');
  await writeLabel(world.live, 1, 'b1');
  await world.live.flush();
  const { storePath, deltas: places } = world;
  const open = (logs: object): Promise<unknown> =>
    openStoreReader({ storePath, set: 'latest', logs: { places, ...logs }, program });
  await t.rejects(open({ beforeMs: world.clock.now() - 60_000 }), { code: 'no-base' });
  await t.rejects(open({ places: [join(world.root, 'v')] }), { code: 'no-logs' });
});
