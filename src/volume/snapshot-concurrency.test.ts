/**
 * Goal: snapshots are exact while everything happens at once: writes of any ranges in flight, snapshots being made,
 * read and deleted.
 *
 * Method: random rounds. In each one, writes, zeroes, snapshots, reads and deletions are begun and none is waited for
 * before the others. A model keeps the last stamp of every sector; writes of one round do not overlap. The home
 * answers late, by random numbers. A snapshot's image is taken at its instant, when the volume asks its clock with
 * the gate closed; a write in flight then is, as the write path orders it, wholly before or wholly after for each
 * track: what the home held at the instant is the image.
 */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { type Clock, LIMITS, SeededRandom, systemClock } from '../base/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { makeScratchDirectory, TEST_TRACK_BYTES } from '../sim/index.ts';
import { createVolume, Volume } from './index.ts';

const TRACKS = 6;
const SIZE_BYTES = TRACKS * TEST_TRACK_BYTES;
const SECTOR = LIMITS.blockSizeBytesMin;
const SECTORS = SIZE_BYTES / SECTOR;

function must(holds: boolean, message: string): void {
  if (!holds) throw new Error(message);
}

class World {
  readonly random: SeededRandom;
  readonly disk = new MemoryDevice({ sizeBytes: SIZE_BYTES });
  readonly directory = makeScratchDirectory();
  readonly images = new Map<string, Buffer>();
  readonly pending = new Set<Promise<unknown>>();
  /** Sectors that something in flight changes. */
  readonly busy = new Set<number>();
  readonly deleting = new Set<string>();
  /** What the model says that each sector holds. */
  readonly model = Buffer.alloc(SIZE_BYTES);
  readonly clock: Clock = {
    ...systemClock,
    now: () => {
      this.asked.push(this.onDisk());
      return this.asked.length - 1;
    },
  };
  /** What the home held when the clock was asked, by its answers. */
  readonly asked: Buffer[] = [];
  count = 0;
  #volume: Volume | undefined;

  constructor(seed: number) {
    this.random = new SeededRandom(seed);
  }

  get volume(): Volume {
    if (this.#volume === undefined) throw new Error('The volume is not open');
    return this.#volume;
  }

  get path(): string {
    return join(this.directory, 'v');
  }

  async open(): Promise<void> {
    const home = new FaultyDevice(this.disk);
    home.close = async () => undefined;
    const late = async (): Promise<void> => {
      for (let turns = this.random.pick([0, 0, 1, 3, 10]); turns > 0; turns -= 1) await turn();
    };
    home.delay({ kind: ['read', 'write', 'writeZeroes'] }, late);
    // Replies of reads are late, too: what was read may be old by then.
    const read = home.read.bind(home);
    home.read = async (target, offsetBytes) => {
      await read(target, offsetBytes);
      await late();
    };
    this.#volume = await Volume.open(this.path, {
      registry: { open: async () => home },
      activity: 'testing',
      clock: this.clock,
      intentRegionTracks: 2,
    });
  }

  onDisk(): Buffer {
    const content = Buffer.alloc(SIZE_BYTES);
    this.disk.read(content, 0);
    return content;
  }

  follow(call: Promise<unknown>): void {
    const followed = call.finally(() => this.pending.delete(followed));
    followed.catch(() => undefined);
    this.pending.add(followed);
  }

  /** Nothing of it fails; the failure of any is the run's. */
  async settle(): Promise<void> {
    await Promise.all(this.pending);
  }
}

function change(world: World): void {
  const { random, volume, busy } = world;
  const first = random.below(SECTORS);
  const sectors: number[] = [];
  const wanted = 1 + random.below(random.pick([1, 8, 24]));
  for (let sector = first; sector < SECTORS && sectors.length < wanted && !busy.has(sector); sector += 1)
    sectors.push(sector);
  if (sectors.length === 0) return;
  for (const sector of sectors) busy.add(sector);
  world.count += 1;
  const lengthBytes = sectors.length * SECTOR;
  const isZero = random.chance(0.1);
  const content = Buffer.alloc(lengthBytes, isZero ? 0 : `${world.count};`);
  const offsetBytes = first * SECTOR;
  const done = isZero ? volume.writeZeroes(offsetBytes, lengthBytes) : volume.write(content, offsetBytes);
  const ended = Promise.resolve(done).then(() => {
    content.copy(world.model, offsetBytes);
    for (const sector of sectors) busy.delete(sector);
  });
  world.follow(ended);
}

async function create(world: World): Promise<void> {
  world.count += 1;
  const name = `s${world.count}`;
  // The time of the point was asked for at the instant itself, with the gate closed and empty.
  const { createdMs } = await world.volume.createSnapshot(name);
  world.images.set(name, world.asked[createdMs] ?? Buffer.alloc(0));
}

async function read(world: World, name: string): Promise<void> {
  const { random } = world;
  const image = world.images.get(name);
  const device = world.volume.openSnapshot(name);
  try {
    const first = random.below(SECTORS);
    const target = Buffer.alloc((1 + random.below(SECTORS - first)) * SECTOR);
    await device.read(target, first * SECTOR);
    const expected = image?.subarray(first * SECTOR, first * SECTOR + target.length);
    must(expected?.equals(target) === true, `snapshot ${name} is not what it was`);
  } finally {
    await device.close();
  }
}

function readySnapshots(world: World): string[] {
  return world.volume
    .snapshots()
    .filter(({ name, state }) => state === 'ready' && world.images.has(name) && !world.deleting.has(name))
    .map(({ name }) => name);
}

async function remove(world: World, name: string): Promise<void> {
  world.deleting.add(name);
  await world.volume.deleteSnapshot(name);
  world.images.delete(name);
}

function begin(world: World, what: number): void {
  const { random } = world;
  const names = readySnapshots(world);
  if (what < 60 || names.length === 0) change(world);
  else if (what < 85) world.follow(read(world, random.pick(names)));
  else {
    const idle = world.volume
      .snapshots()
      .filter(({ readers, name }) => readers === 0 && names.includes(name));
    if (idle.length > 0) world.follow(remove(world, random.pick(idle).name));
  }
}

async function checkAll(world: World): Promise<void> {
  must(world.onDisk().equals(world.model), 'the volume differs from the model');
  for (const [name, image] of world.images) {
    const whole = Buffer.alloc(SIZE_BYTES);
    const device = world.volume.openSnapshot(name);
    await device.read(whole, 0);
    await device.close();
    must(whole.equals(image), `snapshot ${name} is not what it was`);
  }
}

async function run(seed: number, rounds: readonly (readonly number[])[]): Promise<void> {
  const world = new World(seed);
  try {
    await createVolume(world.path, { sizeBytes: SIZE_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
    await world.open();
    for (const round of rounds) {
      if (world.random.chance(0.6)) world.follow(create(world));
      for (const what of round) {
        begin(world, what);
        if (world.random.chance(0.5)) await turn();
      }
      if (world.random.chance(0.3)) await world.settle();
    }
    await world.settle();
    await checkAll(world);
    await world.volume.close();
    await world.open();
    await checkAll(world);
  } finally {
    await Promise.allSettled(world.pending);
    await world.volume.close();
    await rm(world.directory, { recursive: true, force: true });
  }
}

t.test('property: everything at once', async () => {
  const round = fc.array(fc.nat(99), { minLength: 3, maxLength: 16 });
  await fc.assert(fc.asyncProperty(fc.nat(), fc.array(round, { minLength: 3, maxLength: 8 }), run), {
    numRuns: 60,
    endOnFailure: true,
  });
});
