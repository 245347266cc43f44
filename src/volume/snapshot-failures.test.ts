/**
 * Goal: wherever making, deleting or going back to a snapshot is interrupted, each snapshot that is listed afterwards
 * is exact, the volume opens, and nothing is left behind.
 *
 * Method: a volume with two snapshots over a disk that loses what was not synced (`sim/lossy-disk.ts`), and a home that
 * loses what was not flushed. Each operation is run once for each of its syncs. That sync fails once, or the power is
 * cut right before or right after it; what the disk then holds is opened as a volume.
 */

import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import { SeededRandom, type SyncEvent } from '../base/index.ts';
import { FaultyDevice, MemoryDevice } from '../device/index.ts';
import { labelsOf, LossyDisk, makeScratchDirectory, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { createVolume, type OpenVolumeOptions, Volume } from './index.ts';
import { labelsInSnapshot } from './kept.fixture.ts';

const TRACKS = 6;
const SIZE_BYTES = TRACKS * TEST_TRACK_BYTES;

type Interruption = 'failure' | 'cut before' | 'cut after';

function optionsFor(home: FaultyDevice): OpenVolumeOptions {
  return { registry: { open: async () => home }, activity: 'testing', intentRegionTracks: 2, moved: true };
}

/** The disk below outlives each opening. */
function keptOpen(disk: MemoryDevice): FaultyDevice {
  const home = new FaultyDevice(disk);
  home.close = async () => undefined;
  return home;
}

/** A volume that one sync interrupts. */
class Interrupted {
  readonly volume: Volume;
  readonly #parent: string;
  readonly #disk: MemoryDevice;
  readonly #home: FaultyDevice;
  readonly #lossy: LossyDisk;
  readonly #random: SeededRandom;
  #isCut = false;
  #homeCut: Promise<void> | undefined;
  #syncCount = 0;
  #plan: { readonly at: number; readonly kind: Interruption } | undefined;

  private constructor(parts: {
    readonly volume: Volume;
    readonly parent: string;
    readonly disk: MemoryDevice;
    readonly home: FaultyDevice;
    readonly seed: number;
  }) {
    this.volume = parts.volume;
    this.#parent = parts.parent;
    this.#disk = parts.disk;
    this.#home = parts.home;
    this.#random = new SeededRandom(parts.seed);
    this.#lossy = new LossyDisk(join(parts.parent, 'disk'), {
      onEvent: (event, when) => this.#see(event, when),
    });
  }

  static async make(seed: number): Promise<Interrupted> {
    const parent = makeScratchDirectory();
    mkdirSync(join(parent, 'disk'));
    const directory = join(parent, 'disk', 'v');
    await createVolume(directory, { sizeBytes: SIZE_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
    const disk = new MemoryDevice({ sizeBytes: SIZE_BYTES });
    const home = keptOpen(disk);
    const volume = await Volume.open(directory, optionsFor(home));
    return new Interrupted({ volume, parent, disk, home, seed });
  }

  get syncCount(): number {
    return this.#syncCount;
  }

  /** Counts syncs from here on, and interrupts the given one, counted from 0. */
  arm(plan: { readonly at: number; readonly kind: Interruption } | undefined): void {
    this.#syncCount = 0;
    this.#plan = plan;
  }

  #see(event: SyncEvent, when: 'before' | 'after'): 'skip' | undefined {
    if (event.kind === 'commit') return undefined;
    if (this.#isCut) throw new Error('The power is cut');
    const isNow = this.#plan?.at === this.#syncCount;
    if (when === 'before' && isNow && this.#plan?.kind === 'failure') {
      this.#syncCount += 1;
      throw Object.assign(new Error('Injected failure of a sync'), { code: 'EIO' });
    }
    if (isNow && this.#plan?.kind === `cut ${when}`) this.#cut();
    if (when === 'after') this.#syncCount += 1;
    return undefined;
  }

  /** What the disk holds now is copied away, so that the old instance cannot touch it. */
  #cut(): void {
    this.#isCut = true;
    this.#homeCut = this.#home.powerCut(this.#random);
    this.#home.switchOff();
    this.#lossy.powerCut(this.#random);
    cpSync(join(this.#parent, 'disk'), join(this.#parent, 'after'), { recursive: true });
    throw new Error('The power is cut');
  }

  /** Opens what is left, by a clean stop where the power was not cut. */
  async reopen(): Promise<Volume> {
    await this.#homeCut;
    await this.volume.close().catch(() => undefined);
    this.#lossy.close();
    return this.openAgain();
  }

  openAgain(): Promise<Volume> {
    const directory = join(this.#parent, this.#isCut ? 'after' : 'disk', 'v');
    return Volume.open(directory, optionsFor(keptOpen(this.#disk)));
  }

  filesOf(): string[] {
    return readdirSync(join(this.#parent, this.#isCut ? 'after' : 'disk', 'v', 'snapshots'));
  }

  async remove(): Promise<void> {
    await rm(this.#parent, { recursive: true, force: true });
  }
}

/** What each snapshot must show, and the volume before the operation. */
const IMAGES: Readonly<Record<string, readonly string[]>> = {
  one: ['a0', 'a1', 'a2', 'a3', 'a4', 'a5'],
  two: ['b0', 'b1', 'a2', 'a3', 'a4', 'a5'],
  three: ['b0', 'c1', 'c2', 'a3', 'a4', 'a5'],
  four: ['b0', 'c1', 'd2', 'd3', 'a4', 'a5'],
};
const CURRENT = ['b0', 'c1', 'd2', 'd3', 'a4', 'a5'];

async function write(volume: Volume, labels: readonly string[]): Promise<void> {
  await Promise.all(labels.map((label) => writeLabel(volume, Number(label[1]), label)));
}

async function setUp(volume: Volume): Promise<void> {
  await write(volume, ['a0', 'a1', 'a2', 'a3', 'a4', 'a5']);
  await volume.createSnapshot('one');
  await write(volume, ['b0', 'b1']);
  await volume.createSnapshot('two');
  await write(volume, ['c1', 'c2']);
  await volume.createSnapshot('three');
  await write(volume, ['d2', 'd3']);
  await volume.flush();
}

interface Operation {
  readonly name: string;
  readonly run: (volume: Volume) => Promise<void>;
  /** The snapshots that must be there after it, whether it succeeded or not; and those after it has succeeded. */
  readonly stays: readonly string[];
  readonly after: readonly string[];
  /** What the volume may hold afterwards; anything where left out. */
  readonly mayHold?: readonly (readonly string[])[];
}

const OPERATIONS: readonly Operation[] = [
  {
    name: 'create',
    run: async (volume) => {
      await volume.createSnapshot('four');
      await write(volume, ['e0', 'e3', 'e5']);
    },
    stays: ['one', 'two', 'three'],
    after: ['one', 'two', 'three', 'four'],
  },
  {
    name: 'create, and writes meanwhile',
    run: async (volume) => {
      const ended = new AbortController();
      const created = volume.createSnapshot('five').finally(() => {
        ended.abort();
      });
      created.catch(() => undefined);
      // Not before the instant, or its image would not be known: every write comes when the next epoch has begun.
      const { epoch } = volume.status();
      while (volume.status().epoch === epoch && !ended.signal.aborted) await turn();
      await Promise.allSettled([created, write(volume, ['e0', 'e3', 'e5'])]);
      await created;
    },
    stays: ['one', 'two', 'three'],
    after: ['one', 'two', 'three', 'five'],
  },
  ...['one', 'two', 'three'].map((name): Operation => {
    const left = ['one', 'two', 'three'].filter((other) => other !== name);
    const run = (volume: Volume): Promise<void> => volume.deleteSnapshot(name);
    return { name: `delete ${name}`, run, stays: left, after: left, mayHold: [CURRENT] };
  }),
  {
    name: 'delete two neighbours',
    run: async (volume) => {
      const deleting = [volume.deleteSnapshot('three'), volume.deleteSnapshot('two')];
      for (const outcome of await Promise.allSettled(deleting))
        if (outcome.status === 'rejected') throw outcome.reason;
    },
    stays: ['one'],
    after: ['one'],
    mayHold: [CURRENT],
  },
  ...['one', 'two'].map((name): Operation => {
    const run = async (volume: Volume): Promise<void> => void (await volume.rollBack(name));
    const stays = ['one', 'two', 'three'];
    return { name: `roll back to ${name}`, run, stays, after: stays, mayHold: [CURRENT, IMAGES[name] ?? []] };
  }),
];

/** Waits for what an opening finishes in the background. */
async function whenSettled(volume: Volume): Promise<void> {
  for (let count = 0; volume.snapshots().some(({ state }) => state !== 'ready'); count += 1) {
    if (count === 20_000) throw new Error(`not ready: ${JSON.stringify(volume.snapshots())}`);
    await turn();
  }
}

function must(holds: boolean, message: string): void {
  if (!holds) throw new Error(message);
}

async function checkSnapshots(volume: Volume, image: (name: string) => readonly string[]): Promise<void> {
  for (const { name, state } of volume.snapshots()) {
    if (state !== 'ready') continue;
    const found = await labelsInSnapshot(volume, name);
    must(found.join() === image(name).join(), `${name} is ${found.join()}, not ${image(name).join()}`);
  }
}

/** @returns how many syncs the operation has made; interrupted at none where `at` is beyond them. */
async function interrupt(operation: Operation, at: number, kind: Interruption): Promise<number> {
  const world = await Interrupted.make(Number.isFinite(at) ? at * 3 + 1 : 0);
  const image = (name: string): readonly string[] => IMAGES[name === 'five' ? 'four' : name] ?? [];
  let volume = world.volume;
  try {
    await setUp(volume);
    world.arm({ at, kind });
    const hasSucceeded = await operation.run(volume).then(
      () => true,
      () => false,
    );
    const { syncCount } = world;
    world.arm(undefined);
    volume = await world.reopen();
    const held = await labelsOf(volume);
    const { mayHold = [held] } = operation;
    must(
      mayHold.some((labels) => labels.join() === held.join()),
      `the volume holds ${held.join()}`,
    );
    await checkSnapshots(volume, image);
    await whenSettled(volume);
    const names = volume.snapshots().map(({ name }) => name);
    const wanted = hasSucceeded ? operation.after : operation.stays;
    must(
      wanted.every((name) => names.includes(name)),
      `there are ${names.join()}`,
    );
    await checkSnapshots(volume, image);
    // A failure of the intent log is one of the home: only a check lets the volume be written to again.
    if (volume.status().poisoned === undefined) await write(volume, ['z0', 'z1', 'z2', 'z3', 'z4', 'z5']);
    await checkSnapshots(volume, image);
    await volume.close();
    must(world.filesOf().length === names.length, `files: ${world.filesOf().join()}`);
    volume = await world.openAgain();
    await checkSnapshots(volume, image);
    return syncCount;
  } finally {
    await volume.close();
    await world.remove();
  }
}

for (const operation of OPERATIONS) {
  t.test(operation.name, async (t) => {
    const syncCount = await interrupt(operation, Number.POSITIVE_INFINITY, 'failure');
    t.ok(syncCount >= 2, `${syncCount} syncs`);
    for (const kind of ['failure', 'cut before', 'cut after'] as const) {
      for (let at = 0; at < syncCount; at += 1) {
        const where = `${kind} at sync ${at}`;
        await t.resolves(interrupt(operation, at, kind), where);
      }
    }
  });
}
