/**
 * A volume with delta logs and a store beside it, for tests of what can be had from both without the home.
 */

import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { AssertionError, deferred, ManualClock, SeededRandom } from '../base/index.ts';
import { backUp } from '../backup/index.ts';
import { LocalSource } from '../backup/session.fixture.ts';
import { Store } from '../blockset/index.ts';
import { labelOf, TEST_TRACK_BYTES } from '../sim/index.ts';
import { createVolume, type LayoutRequest, MemoryArea, Volume } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { type Blueprint, rebuildVolume, type RebuildOptions } from './index.ts';

export const TRACK_COUNT = 8;

export class World {
  readonly root = mkdtempSync(join(tmpdir(), 'cowbell-rebuild-'));
  readonly clock = new ManualClock();
  readonly directory = join(this.root, 'v');
  readonly storePath = join(this.root, 's');
  readonly deltas: readonly string[];
  volume: Volume | undefined;
  store: Store | undefined;
  #copies = 0;

  constructor(deltaCount: number) {
    this.deltas = Array.from({ length: deltaCount }, (_, index) => join(this.root, `d${index + 1}`));
  }

  /** @param isMirrored the home is two files, `m1` and `m2`. */
  static async create(t: Test, deltaCount = 1, keepLogMs?: number, isMirrored = false): Promise<World> {
    const world = new World(deltaCount);
    t.teardown(async () => {
      await world.volume?.close();
      rmSync(world.root, { recursive: true, force: true });
    });
    await createVolume(world.directory, {
      sizeBytes: TRACK_COUNT * TEST_TRACK_BYTES,
      trackSizeBytes: TEST_TRACK_BYTES,
      clock: world.clock,
      ...(isMirrored ? { registry: createDeviceRegistry(), layout: world.mirror } : {}),
      deltas: {
        places: world.deltas.map((place) => ({ place, bytesMax: 4 * 1024 * 1024 })),
        ...(keepLogMs === undefined ? {} : { keepLogMs }),
      },
    });
    world.store = await Store.init(world.storePath);
    await world.open();
    return world;
  }

  get mirror(): LayoutRequest {
    const members = ['m1', 'm2'].map((name) => ({ place: join(this.root, name) }));
    return { extents: [{ kind: 'mirror', members }] };
  }

  async open(): Promise<Volume> {
    const { clock } = this;
    this.volume = await Volume.open(this.directory, {
      registry: createDeviceRegistry(),
      clock,
      activity: 'test',
    });
    return this.volume;
  }

  get live(): Volume {
    if (this.volume === undefined) throw new AssertionError('The volume is open');
    return this.volume;
  }

  /** A backup that stops between its freeze and its end until it is released. */
  async freeze(level: 'full' | 'incremental'): Promise<{ readonly finish: () => Promise<unknown> }> {
    const frozen = deferred();
    const gate = deferred();
    const source = new LocalSource({
      volume: this.live,
      areas: [new MemoryArea({ sizeBytes: TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES })],
      before: async (step) => {
        if (step !== 'take') return;
        frozen.resolve();
        await gate.promise;
      },
    });
    if (this.store === undefined) throw new AssertionError('There is a store');
    const outcome = backUp({
      source,
      store: this.store,
      level,
      codec: 'none',
      runBytesMax: TEST_TRACK_BYTES,
    });
    outcome.catch(() => undefined);
    await frozen.promise;
    return {
      finish: () => {
        gate.resolve();
        return outcome;
      },
    };
  }

  async backUp(level: 'full' | 'incremental'): Promise<void> {
    await (await this.freeze(level)).finish();
  }

  /** Everything but the home, elsewhere. @param lost a member that is not there. */
  copy(lost?: number): Pick<RebuildOptions, 'directory' | 'storePath' | 'deltas'> {
    this.#copies += 1;
    const target = join(this.root, `copy-${this.#copies}`);
    const isWanted = (path: string): boolean => !/\.sock$|home\.raw$|state\.mdb-lock$/.test(path);
    for (const name of ['v', 's', 'd1', 'd2'])
      if (existsSync(join(this.root, name)))
        cpSync(join(this.root, name), join(target, name), { recursive: true, filter: isWanted });
    const deltas = this.deltas.map((_, index) => join(target, `d${index + 1}`));
    const left = deltas.filter((_, index) => index !== lost);
    return { directory: join(target, 'v'), storePath: join(target, 's'), deltas: left };
  }

  async rebuild(
    options: Pick<RebuildOptions, 'directory'> & Partial<RebuildOptions>,
  ): Promise<{ readonly labels: string[]; readonly content: Buffer; readonly blueprint: Blueprint }> {
    const { blueprint } = await rebuildVolume({
      registry: createDeviceRegistry(),
      clock: this.clock,
      warn: () => undefined,
      onBlueprint: () => undefined,
      ...options,
    });
    const content = readFileSync(blueprint.home);
    return { labels: labelsOf(content), content, blueprint };
  }
}

export function labelsOf(content: Buffer): string[] {
  return Array.from({ length: TRACK_COUNT }, (_, track) =>
    labelOf(content.subarray(track * TEST_TRACK_BYTES, (track + 1) * TEST_TRACK_BYTES)),
  );
}

export function only(labels: Readonly<Record<number, string>>): string[] {
  return Array.from({ length: TRACK_COUNT }, (_, track) => labels[track] ?? '0');
}

/** What the volume was after each write. */
export interface Moment {
  readonly timeMs: number;
  readonly image: Buffer;
}

/** Sixty steps: writes at random places, some flushed, and three backups. */
export async function liveThrough(world: World, random: SeededRandom): Promise<Moment[]> {
  const moments: Moment[] = [];
  const image = Buffer.alloc(TRACK_COUNT * TEST_TRACK_BYTES);
  for (let step = 0; step < 60; step += 1) {
    world.clock.advance(1 + random.below(3) * 1000);
    if (step % 20 === 15) {
      await world.backUp(step < 20 ? 'full' : 'incremental');
      continue;
    }
    const offset = random.below((TRACK_COUNT * TEST_TRACK_BYTES) / 512) * 512;
    const content = Buffer.alloc(Math.min(random.pick([512, 4096, 8192]), image.length - offset), step + 1);
    await world.live.write(content, offset);
    content.copy(image, offset);
    moments.push({ timeMs: world.clock.now(), image: Buffer.from(image) });
    if (random.chance(0.3)) await world.live.flush();
  }
  await world.live.flush();
  return moments;
}

/** What it was before an instant. */
export function imageBefore(moments: readonly Moment[], beforeMs: number): Buffer {
  const before = moments.findLast(({ timeMs }) => timeMs < beforeMs);
  return before?.image ?? Buffer.alloc(TRACK_COUNT * TEST_TRACK_BYTES);
}
