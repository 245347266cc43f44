/**
 * Goal: a track that cannot be read is given its newest content again, whatever is written meanwhile, and nobody reads or
 * keeps anything older; where there is no newer content, or the disk is no good, the read fails and says why.
 *
 * Method: a faulty device whose reads of a track fail until it is written; the source is a model of what was written.
 */

import t from 'tap';
import { deferred, LIMITS, SeededRandom } from '../base/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelled, labelOf, TEST_TRACK_BYTES } from '../sim/index.ts';
import { Geometry } from './geometry.ts';
import { RepairingDevice, type RepairSource } from './repairing-device.ts';

const TRACK_COUNT = 8;
const SIZE_BYTES = TRACK_COUNT * TEST_TRACK_BYTES;

class World {
  readonly disk = new FaultyDevice(new MemoryDevice({ sizeBytes: SIZE_BYTES }));
  /** What the deltas have: a change is here before it goes to the device. */
  readonly log = Buffer.alloc(SIZE_BYTES);
  readonly repaired: string[] = [];
  readonly device: RepairingDevice;
  openSource: () => Promise<RepairSource> = async () => this.source();

  constructor() {
    this.device = new RepairingDevice({
      device: this.disk,
      geometry: new Geometry(SIZE_BYTES, TEST_TRACK_BYTES),
      openSource: () => this.openSource(),
      onRepaired: (track, _reason, source) => this.repaired.push(`${track} from ${source}`),
    });
  }

  source(): RepairSource {
    return {
      description: 'the log',
      read: async (track, target) => {
        this.log.copy(target, 0, track * TEST_TRACK_BYTES);
      },
      close: async () => undefined,
    };
  }

  async write(track: number, label: string): Promise<void> {
    labelled(label).copy(this.log, track * TEST_TRACK_BYTES);
    await this.device.write(labelled(label), track * TEST_TRACK_BYTES);
  }

  async label(track: number): Promise<string> {
    const content = Buffer.alloc(TEST_TRACK_BYTES);
    await this.device.read(content, track * TEST_TRACK_BYTES);
    return labelOf(content);
  }

  /** Reads of the track fail until it is written the next time; for ever where it stays bad. */
  harm(track: number, staysBad = false): void {
    const range = { offsetBytes: track * TEST_TRACK_BYTES, lengthBytes: TEST_TRACK_BYTES };
    const rule = this.disk.fail({ kind: 'read', range }, new Error(`Track ${track} is bad`));
    if (staysBad) return;
    const healing = this.disk.delay({ kind: 'write', range }, async () => {
      rule.remove();
      healing.remove();
    });
  }
}

t.test('a track is repaired, once, and its reader gets the newest content', async (t) => {
  const world = new World();
  await world.write(3, 'a3');
  await world.write(4, 'a4');
  world.harm(3);
  const content = Buffer.alloc(3 * TEST_TRACK_BYTES);
  await world.device.read(content, 2 * TEST_TRACK_BYTES);
  t.equal(labelOf(content.subarray(TEST_TRACK_BYTES, 2 * TEST_TRACK_BYTES)), 'a3');
  t.equal(labelOf(content.subarray(2 * TEST_TRACK_BYTES)), 'a4');
  t.equal(await world.label(3), 'a3');
  t.same(world.repaired, ['3 from the log']);
  t.equal(world.device.repairedCount, 1);
});

t.test('a write that is under way, and one that comes meanwhile, stay', async (t) => {
  const world = new World();
  await world.write(3, 'a3');
  world.harm(3);
  const gate = world.disk.hold({ kind: 'write' });
  const underWay = world.write(3, 'b3');
  await gate.arrived(1);
  const opened = deferred();
  const mayOpen = deferred();
  world.openSource = async () => {
    opened.resolve();
    await mayOpen.promise;
    return world.source();
  };
  const read = world.label(3);
  gate.open();
  await underWay;
  // The write itself has made it good: that is seen, or the repair has begun before.
  const later = world.write(3, 'c3');
  mayOpen.resolve();
  await later;
  t.ok(['a3', 'b3', 'c3'].includes(await read));
  t.equal(await world.label(3), 'c3');
  t.equal(labelOf(world.log.subarray(3 * TEST_TRACK_BYTES, 4 * TEST_TRACK_BYTES)), 'c3');
});

t.test('where it cannot be repaired the read fails with its own reason', async (t) => {
  const world = new World();
  world.harm(3, true);
  await t.rejects(world.label(3), { message: 'Track 3 is bad' }, 'the disk does not take it');
  t.same(world.repaired, []);
  world.openSource = () => Promise.reject(new Error('There are no deltas'));
  world.harm(5);
  await t.rejects(world.label(5), { message: 'Track 5 is bad', cause: { message: 'There are no deltas' } });
  await world.write(6, 'a6');
  t.equal(await world.label(6), 'a6', 'others go on');
});

t.test('a disk that goes bad all over is not repaired for ever', async (t) => {
  const world = new World();
  for (let count = 0; count < LIMITS.repairTrackCountMax; count += 1) {
    world.harm(1);
    await world.label(1);
  }
  world.harm(1);
  await t.rejects(world.label(1), { message: 'Track 1 is bad' });
});

t.test('a disk that takes nothing back is not tried for long', async (t) => {
  const world = new World();
  let opened = 0;
  world.openSource = async () => {
    opened += 1;
    return world.source();
  };
  for (const track of [1, 1, 2, 3]) {
    world.harm(track, true);
    await t.rejects(world.label(track), { message: `Track ${track} is bad` });
  }
  t.equal(opened, LIMITS.repairBadTrackCountMax, 'each track is tried once');
  world.harm(4);
  await t.rejects(world.label(4), { message: 'Track 4 is bad' });
  t.equal(opened, LIMITS.repairBadTrackCountMax);
});

t.test('whatever is read, written and harmed, nothing is older than what was written', async (t) => {
  for (let seed = 1; seed <= 40; seed += 1) {
    const random = new SeededRandom(seed);
    const world = new World();
    const delays = world.disk.delay({ kind: 'write' }, async () => {
      for (let turns = random.below(4); turns > 0; turns -= 1)
        await new Promise((resolve) => setImmediate(resolve));
    });
    const last = Array.from({ length: TRACK_COUNT }, () => '0');
    const running = new Set<Promise<unknown>>();
    // The write path lets no overlapping changes in at once.
    const busy = new Set<number>();
    for (let step = 0; step < 60; step += 1) {
      const track = random.below(TRACK_COUNT);
      const kind = random.pick(['write', 'read', 'harm', 'wait']);
      if (kind === 'write' && !busy.has(track)) {
        busy.add(track);
        const label = `${seed}.${step}`;
        last[track] = label;
        running.add(world.write(track, label).finally(() => busy.delete(track)));
      } else if (kind === 'read') running.add(world.label(track));
      else if (kind === 'harm' && !busy.has(track)) world.harm(track);
      else if (kind === 'wait') await Promise.all(running);
    }
    await Promise.all(running);
    delays.remove();
    for (const [track, label] of last.entries())
      if ((await world.label(track)) !== label) t.fail(`seed ${seed}: track ${track} is not ${label}`);
  }
  t.pass('40 seeds');
});
