/**
 * Goal: whoever uses a volume while its home is lost under `--survive` hears nothing of it: every request is answered,
 * every read gives what was written last, and what was acknowledged is in the new home and stays there.
 *
 * Method: clients that write, zero, trim, read and flush all at once, each its own sectors of tracks that they share,
 * beside a model. Every call of the home, the members and the new home takes a random number of turns. At a random
 * moment the home begins to fail, or its file goes away; before that some tracks of it cannot be read for a while, and
 * after it the process may be killed with the new home filled in part.
 * Members are a directory and a device of another machine, the device alone, or two directories with a backup.
 * `COWBELL_SEED=n` gives other runs. The seeds chosen see a takeover and a repair that do not wait for what is on its way
 * to the device.
 */

import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { env } from 'node:process';
import t, { type Test } from 'tap';
import { backUp } from '../backup/index.ts';
import { LocalSource } from '../backup/session.fixture.ts';
import { deferred, KIB, MIB, present, SeededRandom } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { DeltaReader } from '../delta/index.ts';
import { type BlockDevice, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { ChainDevice, joinLogs, LoggedSource } from '../restore/index.ts';
import { createVolume, MemoryArea, type NewestContent, type SurvivalPlan, Volume } from '../volume/index.ts';
import { createDeviceRegistry } from './devices.ts';
import { TRACK_COUNT } from './rebuild.fixture.ts';
import { TEST_TRACK_BYTES } from '../sim/index.ts';

const FIRST_SEED = Number(env['COWBELL_SEED'] ?? 41);
const SEED_COUNT = 6;
const CLIENT_COUNT = 4;
const SECTOR_BYTES = 512;
const SECTOR_COUNT = (TRACK_COUNT * TEST_TRACK_BYTES) / SECTOR_BYTES;
const STEP_COUNT = 60;
const REMOTE = 'nbd://remote/d';

/** A member that is opened again to be read, as another machine's export would be. */
class Unclosed extends FaultyDevice {
  override async close(): Promise<void> {
    // Its owner does.
  }
}

/** Makes a file or directory what it was, with the inodes that it has. */
function restoreInPlace(from: string, to: string): void {
  if (!statSync(from).isDirectory()) return copyFileSync(from, to);
  mkdirSync(to, { recursive: true });
  const names = readdirSync(from);
  for (const name of readdirSync(to)) if (!names.includes(name)) rmSync(join(to, name), { recursive: true });
  for (const name of names) restoreInPlace(join(from, name), join(to, name));
}

class Life {
  readonly #t: Test;
  readonly #random: SeededRandom;
  readonly #root: string;
  readonly #places: readonly string[];
  readonly #member = new MemoryDevice({ sizeBytes: 16 * MIB });
  readonly #real = createDeviceRegistry();
  readonly #image = Buffer.alloc(SECTOR_COUNT * SECTOR_BYTES);
  readonly #taken = deferred();
  #home: FaultyDevice | undefined;
  #store: Store | undefined;
  #number = 0;

  constructor(t: Test, random: SeededRandom) {
    this.#t = t;
    this.#random = random;
    this.#root = t.testdir();
    const [first, second] = ['d1', 'd2'].map((name) => join(this.#root, name));
    this.#places = random.pick([[REMOTE], [String(first), REMOTE], [String(first), String(second)]]);
  }

  async run(): Promise<void> {
    await createVolume(this.#directory, {
      sizeBytes: TRACK_COUNT * TEST_TRACK_BYTES,
      trackSizeBytes: TEST_TRACK_BYTES,
      deltas: { places: this.#places.map((place) => ({ place, bytesMax: 8 * MIB })) },
      registry: this.#registry,
    });
    this.#store = await Store.init(join(this.#root, 's'));
    let volume = await this.#open();
    const home = present(this.#home, 'The home is open');
    await this.#use(volume, STEP_COUNT);
    // A backup would open the other machine's member by its address.
    if (!this.#places.includes(REMOTE)) await this.#backUp(volume);
    for (let harmed = 0; harmed < this.#random.below(4); harmed += 1) await this.#harmTrack(volume, home);
    const using = this.#use(volume, 6 * STEP_COUNT);
    await this.#turns(this.#random.below(200));
    await this.#loseHome(volume, home);
    await using;
    await this.#taken.promise;
    await this.#use(volume, STEP_COUNT);
    if (this.#random.chance(0.5)) volume = await this.#kill(volume);
    await volume.fill((recovery, signal) => recovery.fillAll({ signal }));
    this.#t.equal(volume.recovery, undefined, 'everything is in the new home');
    await this.#use(volume, STEP_COUNT);
    await this.#check(volume);
    await volume.close();
    const again = await this.#open();
    this.#t.ok(again.startedClean);
    await this.#check(again);
    await again.close();
  }

  get #directory(): string {
    return join(this.#root, 'v');
  }

  async #open(): Promise<Volume> {
    return Volume.open(this.#directory, {
      registry: this.#registry,
      survive: this.#plan,
      openSide: async ({ side }) => {
        const { volumeId, places } = present(side.kind === 'store' ? side.logs : undefined, 'It has logs');
        return (await this.#openNewest(volumeId, places)).side;
      },
      onTakenOver: () => this.#taken.resolve(),
      deltaSegmentBytes: 256 * KIB,
      onWarning: (sentence) => this.#t.comment(sentence),
      activity: 'test',
    });
  }

  get #registry(): Pick<ReturnType<typeof createDeviceRegistry>, 'open'> {
    return {
      open: async (uri, options) => {
        if (uri === REMOTE) {
          const member = new Unclosed(this.#member);
          // Whoever reads the logs finds what a write is still on its way with not there.
          member.delay({ kind: 'write' }, () => this.#turns(this.#random.below(60)));
          return member;
        }
        const device = this.#slowly(new FaultyDevice(await this.#real.open(uri, options)));
        if (uri.endsWith('.raw')) this.#home ??= device;
        return device;
      },
    };
  }

  /** Some calls take much longer than the others. */
  #slowly(device: FaultyDevice): FaultyDevice {
    const random = this.#random;
    device.delay({}, () => this.#turns(random.below(random.chance(0.02) ? 200 : 4)));
    return device;
  }

  async #turns(count: number): Promise<void> {
    for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  }

  get #plan(): SurvivalPlan {
    const newHome = join(this.#root, 'new.raw');
    return {
      newHome: () => newHome,
      openNewest: (volumeId, places) => this.#openNewest(volumeId, places),
    };
  }

  /** The newest set and the logs since, as the serving process opens them, here without a process that reads. */
  async #openNewest(volumeId: string, places: readonly string[]): Promise<NewestContent> {
    const reader = await DeltaReader.open(places, { registry: this.#registry, volumeId });
    const { set, startPoint } = await joinLogs(this.#store, reader, {});
    const chain = set === undefined ? undefined : await this.#store?.chain(set.id);
    const source = new LoggedSource(chain, await reader.index(startPoint));
    await this.#turns(this.#random.below(50));
    const description = 'the set with its logs';
    const device = this.#slowly(new FaultyDevice(new ChainDevice(source, { description })));
    const close = async (): Promise<void> => {
      await device.close();
      await chain?.close();
      await reader.close();
    };
    const logs = { places, volumeId, startPoint };
    const side = { kind: 'store', storePath: join(this.#root, 's'), set: set?.id ?? '', logs } as const;
    return { record: { side }, tracks: source.tracks(), side: { device, close } };
  }

  /**
   * The process is killed when some of the new home is filled, and the volume opened again: everything is as it was copied
   * at that moment.
   */
  async #kill(volume: Volume): Promise<Volume> {
    const run = { first: 0, count: 1 + this.#random.below(TRACK_COUNT) };
    await volume.fill((recovery) => recovery.filling.bringIn(run));
    await this.#use(volume, STEP_COUNT);
    const copy = mkdtempSync(join(tmpdir(), 'cowbell-killed-'));
    for (const name of readdirSync(this.#root))
      if (name !== 's') cpSync(join(this.#root, name), join(copy, name), { recursive: true });
    const member = Buffer.alloc(this.#member.sizeBytes);
    this.#member.read(member, 0);
    await volume.close();
    for (const name of readdirSync(copy)) restoreInPlace(join(copy, name), join(this.#root, name));
    rmSync(copy, { recursive: true });
    this.#member.write(member, 0);
    const again = await this.#open();
    this.#t.notOk(again.startedClean);
    await this.#check(again);
    await this.#use(again, STEP_COUNT);
    return again;
  }

  /** It cannot be read until it is written, which its clients do not notice either. */
  async #harmTrack(volume: Volume, home: FaultyDevice): Promise<void> {
    const range = {
      offsetBytes: this.#random.below(TRACK_COUNT) * TEST_TRACK_BYTES,
      lengthBytes: TEST_TRACK_BYTES,
    };
    const failing = home.fail({ kind: 'read', range });
    const healing = home.delay({ kind: 'write', range }, async ({ lengthBytes }) => {
      if (lengthBytes === TEST_TRACK_BYTES) [failing, healing].forEach((rule) => rule.remove());
    });
    await this.#use(volume, STEP_COUNT);
    await this.#check(volume);
  }

  async #loseHome(volume: Volume, home: FaultyDevice): Promise<void> {
    const way = this.#random.pick(['deleted', 'writes', 'flushes', 'all'] as const);
    this.#t.comment(`members ${this.#places.length}, home lost by: ${way}`);
    if (way === 'all') home.fail({});
    else if (way === 'writes') home.fail({ kind: ['write', 'writeZeroes', 'trim'] });
    else if (way === 'flushes') home.fail({ kind: 'flush' });
    else {
      const { signal } = new AbortController();
      await volume.tend(signal);
      rmSync(volume.identity.home);
      await volume.tend(signal);
    }
  }

  async #backUp(volume: Volume): Promise<void> {
    const area = new MemoryArea({ sizeBytes: TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
    const source = new LocalSource({ volume, areas: [area] });
    const store = present(this.#store, 'There is a store');
    await backUp({ source, store, level: 'full', codec: 'none', runBytesMax: TEST_TRACK_BYTES });
  }

  async #use(volume: Volume, steps: number): Promise<void> {
    await Promise.all(
      Array.from({ length: CLIENT_COUNT }, async (_, client) => {
        for (let step = 0; step < steps; step += 1) await this.#step(volume, client);
      }),
    );
  }

  async #step(volume: Volume, client: number): Promise<void> {
    const random = this.#random;
    // The lower half of the tracks is shared, sector by sector; of the upper one each has tracks of its own.
    const half = TRACK_COUNT / 2;
    const perTrack = TEST_TRACK_BYTES / SECTOR_BYTES;
    const isShared = random.chance(0.5);
    const track = isShared ? random.below(half) : half + client;
    const within = isShared
      ? client + CLIENT_COUNT * random.below(perTrack / CLIENT_COUNT)
      : random.below(perTrack);
    const count = isShared ? 1 : random.chance(0.3) ? perTrack : 1 + random.below(perTrack - within);
    const first = track * perTrack + (count === perTrack ? 0 : within);
    const [from, to] = [first * SECTOR_BYTES, (first + count) * SECTOR_BYTES];
    const kind = random.below(10);
    if (kind < 5) {
      this.#number += 1;
      const content = Buffer.alloc(to - from, (this.#number % 255) + 1);
      await volume.write(content, from, { fua: random.chance(0.1) });
      content.copy(this.#image, from);
    } else if (kind === 5) {
      await (random.chance(0.5) ? volume.writeZeroes(from, to - from) : volume.trim(from, to - from));
      this.#image.fill(0, from, to);
    } else if (kind < 9) {
      const found = Buffer.alloc(to - from);
      await volume.read(found, from);
      if (!found.equals(this.#image.subarray(from, to))) this.#t.fail(`sectors ${first}+${count} are others`);
    } else await volume.flush();
    await this.#turns(random.below(2));
  }

  async #check(volume: BlockDevice): Promise<void> {
    const found = Buffer.alloc(this.#image.length);
    await volume.read(found, 0);
    this.#t.ok(found.equals(this.#image), 'everything that was written is there');
  }
}

for (let seed = FIRST_SEED; seed < FIRST_SEED + SEED_COUNT; seed += 1)
  t.test(`the home is lost under its clients, seed ${seed}`, async (t) => {
    await new Life(t, new SeededRandom(seed)).run();
  });
