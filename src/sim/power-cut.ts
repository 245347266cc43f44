/**
 * One life of a volume, a store and a restore target below one root, cut short by a power cut, and the checks
 * of what must be there when the power is back.
 *
 * Everything that may be cut is an event: each sync before it is performed and after it, each LMDB commit, and
 * each step of the scenario. A life is cut at one of them, by number. The tree is then moved aside at once, as
 * the process lives on where a real one would not: its cleaning up finds an empty directory.
 *
 * The journal says what was acknowledged before the cut; that, and the model's images, is what is checked.
 */

import { mkdirSync, renameSync, rmSync } from 'node:fs';
import { readFile, rename } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { backUp, type SetOutcome } from '../backup/index.ts';
import { LIMITS, SeededRandom, type SyncEvent, type SyncName } from '../base/index.ts';
import { Store, type StoredSet, verify } from '../blockset/index.ts';
import { type DeviceRegistry, openFileDevice } from '../device/index.ts';
import { restore } from '../restore/index.ts';
import { createVolume, isVolumeHome, MemoryArea, readVolumeIdentity, Volume } from '../volume/index.ts';
import { AskedClock, CountingClock, SeededIds } from './asked-clock.ts';
import { CRASH_POINTS, type CrashPoint } from './crash-points.ts';
import { contentWithoutHome } from './delta-content.ts';
import { LossyDisk } from './lossy-disk.ts';
import { contentOf, type ModelImage, ModelVolume, SECTOR_BYTES } from './model.ts';
import { contentOfChain } from './model-content.ts';
import { type Breach, breachOf, must, type PromiseName } from './promises.ts';
import { makeScratchDirectory } from './scratch.ts';
import { turns, within } from './scheduler.ts';
import { SteppedSource } from './stepped-source.ts';

const TRACK_BYTES = 4096;
const TRACKS = 6;
const SIZE_BYTES = TRACKS * TRACK_BYTES - 1024;
const PER_TRACK = TRACK_BYTES / SECTOR_BYTES;

/** Thrown through whatever was running when the power was cut. */
class PowerCut extends Error {}

/** What was acknowledged. */
interface Journal {
  volume: boolean;
  /** The volume was open at least once. */
  opened: boolean;
  store: boolean;
  stoppedClean: boolean;
  readonly sets: Set<string>;
  /** The set that was restored, by its point. */
  restored: string | undefined;
  /** Snapshots that were acknowledged, and those whose deletion was. */
  readonly snapshots: Set<string>;
  readonly deletedSnapshots: Set<string>;
}

export interface Life {
  readonly seed: number;
  /**
   * The event at which the power is cut, by its number from 1, or by its place among those whose names begin so;
   * beyond the last one, the cut comes at the end.
   */
  readonly cutAt: number | { readonly event: string; readonly nth: number };
  /** Members of the volume's delta store; it has none where left out. */
  readonly deltaCount?: number;
  /** Syncs that do nothing: all of a name, or those that `LifeResult.events` gives this label. */
  readonly without?: string;
  readonly onTrace?: (line: string) => void;
}

export interface LifeResult {
  /** What happened up to the cut: `before home file v/home.raw`, `commit s/catalog`, `step`. */
  readonly events: readonly string[];
  readonly crashPoint: CrashPoint;
  /** The first promise that did not hold; undefined where all did. */
  readonly broken: Breach | undefined;
  /** Tracks that were compared with what they had to hold. */
  readonly tracksVerified: number;
}

/** Lives one life, cuts it short and looks what is left. */
export async function live(life: Life): Promise<LifeResult> {
  const world = new CutWorld(life);
  try {
    await world.live();
    const broken = await world.whatIsBroken();
    const { events, crashPoint, tracksVerified } = world;
    return { events, crashPoint, broken, tracksVerified };
  } finally {
    await world.destroy();
  }
}

/** The home is read and written at once, whatever the time. */
const registry: Pick<DeviceRegistry, 'open'> = {
  open: (path, options) =>
    openFileDevice({ ...options, path, timing: { clock: { monotonicMs: () => 0 }, runDelayMs: () => 0 } }),
};

class CutWorld {
  readonly #random: SeededRandom;
  readonly #cutAt: Life['cutAt'];
  #seen = 0;
  readonly #parent = makeScratchDirectory();
  readonly #root = join(this.#parent, 'disk');
  readonly #disk: LossyDisk;
  readonly #model = new ModelVolume(SIZE_BYTES);
  readonly #ids: SeededIds;
  readonly #clock: AskedClock;
  readonly #images = new Map<string, ModelImage>();
  readonly #maySeal = new Set<string>();
  readonly #journal: Journal = {
    volume: false,
    opened: false,
    store: false,
    stoppedClean: false,
    sets: new Set(),
    restored: undefined,
    snapshots: new Set(),
    deletedSnapshots: new Set(),
  };
  #volume: Volume | undefined;
  #isCut = false;
  #hasNewInodes = false;
  #isOpening = false;
  #crashPoint: CrashPoint = 'end';
  readonly #onTrace: (line: string) => void;
  readonly #deltaPlaces: readonly string[];
  readonly #storeClock = new CountingClock();
  tracksVerified = 0;
  /** The power is back. */
  #isBack = false;
  readonly events: string[] = [];

  constructor({ seed, cutAt, deltaCount = 0, without, onTrace }: Life) {
    this.#random = new SeededRandom(seed);
    this.#ids = new SeededIds(new SeededRandom(seed));
    this.#clock = new AskedClock(this.#model, this.#ids);
    this.#onTrace = onTrace ?? (() => undefined);
    this.#cutAt = cutAt;
    mkdirSync(this.#root);
    this.#deltaPlaces = Array.from({ length: deltaCount }, (_, index) => join(this.#root, `d${index + 1}`));
    this.#disk = new LossyDisk(this.#root, {
      tear: (path) => ['.raw', '.tracks', '.delta'].some((end) => path.endsWith(end)),
      tearCommits: (path) => path.startsWith('s/sets/'),
      onEvent: (event, when) => {
        const label = this.#labelOf(event);
        if (event.kind === 'commit') return this.#event(label);
        this.#event(`${when} ${label}`);
        return this.#hold(when === 'before' && (label === without || event.name === without));
      },
    });
  }

  get crashPoint(): CrashPoint {
    return this.#crashPoint;
  }

  /** A sync takes some time, in which whatever else runs goes on. */
  async #hold(isSkipped: boolean): Promise<'skip' | undefined> {
    await turns(this.#random.pick([0, 0, 0, 1, 2]));
    return isSkipped ? 'skip' : undefined;
  }

  get #volumePath(): string {
    return join(this.#root, 'v');
  }

  get #storePath(): string {
    return join(this.#root, 's');
  }

  get #targetPath(): string {
    return join(this.#root, 'target.raw');
  }

  /** Sets have names that differ from life to life; segments of the intent log are all alike. */
  #labelOf(event: SyncEvent): string {
    const path = relative(this.#root, event.path)
      .replace(/[0-9A-Z]{26}-0/, '*')
      .replace(/intent-\d+/, 'intent-*')
      .replace(/[0-9a-f]{32}\.tracks/, '*.tracks')
      .replace(/[0-9a-f]{32}(?=\/|$)/, '*')
      .replace(/\d{10}-\d+\.delta/, '*.delta');
    return event.kind === 'commit'
      ? `commit ${path}`
      : `${event.name} ${event.kind} ${path === '' ? '.' : path}`;
  }

  #event(label = 'step'): undefined {
    if (this.#isBack) return;
    if (this.#isCut) throw new PowerCut('The power is off');
    this.events.push(label);
    this.#onTrace(label);
    const cutAt = this.#cutAt;
    if (typeof cutAt !== 'number' && label.startsWith(cutAt.event)) this.#seen += 1;
    const isNow = typeof cutAt === 'number' ? this.events.length === cutAt : this.#seen === cutAt.nth;
    if (isNow) this.#cut(crashPointOf(label));
  }

  #cut(point: CrashPoint): never {
    this.#crashPoint = point;
    this.#isCut = true;
    // With everything closed nobody writes into the old files any more, and they may stay what they are.
    this.#hasNewInodes = this.#volume !== undefined || (this.#isOpening && this.#deltaPlaces.length > 0);
    this.#disk.powerCut(this.#random, { keepInodes: !this.#hasNewInodes });
    renameSync(this.#root, `${this.#root}.cut`);
    mkdirSync(this.#root);
    throw new PowerCut('The power was cut');
  }

  /** The scenario up to the cut. */
  async live(): Promise<void> {
    try {
      await this.#scenario();
      this.#cut('end');
    } catch (error) {
      if (!this.#isCut) throw error;
    }
    await this.#volume?.close().catch(() => undefined);
    this.#volume = undefined;
    this.#disk.close();
    rmSync(this.#root, { recursive: true, force: true });
    renameSync(`${this.#root}.cut`, this.#root);
    this.#isBack = true;
  }

  async #scenario(): Promise<void> {
    const journal = this.#journal;
    await createVolume(this.#volumePath, {
      sizeBytes: SIZE_BYTES,
      trackSizeBytes: TRACK_BYTES,
      clock: this.#storeClock,
      ...(this.#deltaPlaces.length === 0
        ? {}
        : { deltas: { places: this.#deltaPlaces.map((place) => ({ place })) } }),
    });
    journal.volume = true;
    this.#event();
    const store = await Store.init(this.#storePath, { clock: this.#storeClock });
    journal.store = true;
    this.#event();
    const volume = await this.#open();
    await this.#write(volume, 4);
    await this.#flush(volume);
    await this.#write(volume, 1, true);
    await this.#write(volume, 2);
    await this.#backUp(volume, store);
    await this.#write(volume, 2);
    await this.#flush(volume);
    await this.#snapshot(volume, 'one');
    await this.#write(volume, 1);
    await this.#backUp(volume, store);
    await this.#snapshot(volume, 'two');
    await this.#write(volume, 2);
    await this.#close(volume);
    const again = await this.#open();
    await this.#write(again, 1, true);
    await this.#write(again, 1);
    // What the older one needs of it moves.
    await this.#deleteSnapshot(again, 'two');
    await this.#write(again, 1);
    const last = await this.#backUp(again, store);
    await this.#close(again);
    const chain = await store.chain(last.set);
    try {
      await restore(chain, [{ name: 'target', uri: this.#targetPath }], {
        registry,
        isVolumeHome,
      });
    } finally {
      await chain.close();
    }
    journal.restored = last.point;
    this.#event();
  }

  async #open(): Promise<Volume> {
    this.#journal.stoppedClean = false;
    // One that has deltas goes on writing when its opening fails: it notes that members are lost.
    this.#isOpening = true;
    const volume = await Volume.open(this.#volumePath, {
      registry,
      clock: this.#clock,
      activity: 'being cut',
      intentRegionTracks: 2,
      deltaSegmentBytes: LIMITS.deltaSegmentBytesMin,
      bootId: () => 'before the cut',
    });
    this.#isOpening = false;
    this.#volume = volume;
    this.#journal.opened = true;
    this.#event();
    return volume;
  }

  async #close(volume: Volume): Promise<void> {
    await volume.close();
    this.#volume = undefined;
    // What ends after the cut was acknowledged to nobody.
    this.#journal.stoppedClean = !this.#isCut;
    this.#event();
  }

  async #write(volume: Volume, times: number, fua = false): Promise<void> {
    for (let count = 0; count < times; count += 1) {
      const length = 1 + this.#random.below(2 * PER_TRACK);
      const first = this.#random.below(this.#model.sectorCount - length + 1);
      const isZero = this.#random.chance(0.2);
      const values = isZero ? Array.from({ length }, () => 0) : this.#model.newValues(length);
      const change = this.#model.begin(first, values, { isFua: fua });
      await volume.write(contentOf(values), first * SECTOR_BYTES, { fua });
      this.#model.finish(change);
      this.#event();
    }
  }

  async #snapshot(volume: Volume, name: string): Promise<void> {
    const { point } = await volume.createSnapshot(name);
    this.#images.set(point, this.#clock.imageOf(point));
    this.#journal.snapshots.add(name);
    this.#event();
  }

  async #deleteSnapshot(volume: Volume, name: string): Promise<void> {
    this.#journal.snapshots.delete(name);
    await volume.deleteSnapshot(name);
    this.#journal.deletedSnapshots.add(name);
    this.#event();
  }

  async #flush(volume: Volume): Promise<void> {
    const span = this.#model.openSpan();
    await volume.flush();
    this.#model.flushed(span);
    this.#event();
  }

  /** With writes while it runs. */
  async #backUp(volume: Volume, store: Store): Promise<SetOutcome> {
    const writes: Promise<void>[] = [];
    const source = new SteppedSource({
      volume,
      areas: [new MemoryArea({ sizeBytes: TRACKS * TRACK_BYTES, trackSizeBytes: TRACK_BYTES })],
      step: async (step, side) => {
        const { session } = source;
        if (step === 'mayComplete' && side === 'reply' && session !== undefined) {
          this.#maySeal.add(session.plan.point);
        }
        if (side === 'call' && (step === 'confirm' || step === 'complete')) {
          const write = this.#write(volume, 1);
          write.catch(() => undefined);
          writes.push(write);
        }
      },
      freeze: async (begin) => {
        const session = await begin();
        this.#images.set(session.plan.point, this.#clock.imageOf(session.plan.point));
        return session;
      },
    });
    try {
      const outcome = await backUp({
        source,
        store,
        level: 'auto',
        codec: 'none',
        runBytesMax: 3 * TRACK_BYTES,
      });
      this.#journal.sets.add(outcome.set);
      this.#event();
      return outcome;
    } catch (error) {
      source.session?.fail(error);
      throw error;
    } finally {
      await Promise.allSettled(writes);
    }
  }

  // ---- after the cut ----------------------------------------------------------------------------------

  /** The first promise that does not hold. An error of opening what was acknowledged is one. */
  async whatIsBroken(): Promise<Breach | undefined> {
    try {
      await within(this.#check(), 'Looking at what the cut left');
      return undefined;
    } catch (error) {
      return breachOf(error, 'a cut leaves it whole');
    }
  }

  async #check(): Promise<void> {
    if (this.#journal.store) await this.#checkCatalog();
    const clock = this.#storeClock;
    const store = this.#journal.store ? await Store.open(this.#storePath, { clock }) : undefined;
    const hasDeltas = this.#journal.opened && this.#deltaPlaces.length > 0;
    if (hasDeltas) await this.#checkWithoutHome(store);
    const volume = this.#journal.volume ? await this.#reopen() : undefined;
    if (hasDeltas && volume !== undefined) await this.#checkAgreement(volume, store);
    await this.#checkTarget();
    if (store !== undefined) await this.#checkStore(store);
    if (volume !== undefined) await this.#checkVolume(volume);
    if (volume !== undefined) await this.#checkSnapshots(volume);
    if (volume !== undefined && store !== undefined) await this.#checkNext(volume, store);
  }

  /** The catalog knows acknowledged sets by itself: one whose file goes away later shows as missing. */
  async #checkCatalog(): Promise<void> {
    const sets = join(this.#storePath, 'sets');
    await rename(sets, `${sets}.away`);
    mkdirSync(sets);
    const listed = await (await Store.open(this.#storePath, { readOnly: true })).list();
    rmSync(sets, { recursive: true });
    await rename(`${sets}.away`, sets);
    for (const id of this.#journal.sets) {
      const isListed = listed.some((set) => set.id === id);
      must('complete or invisible', isListed, `the catalog lost acknowledged set ${id}`);
    }
  }

  async #reopen(): Promise<Volume> {
    this.#volume = await Volume.open(this.#volumePath, {
      registry,
      clock: this.#clock,
      activity: 'being checked',
      intentRegionTracks: 2,
      deltaSegmentBytes: LIMITS.deltaSegmentBytesMin,
      bootId: () => 'after the cut',
    });
    return this.#volume;
  }

  /** The home is lost at this very moment: what was flushed is in the store and the logs. */
  async #checkWithoutHome(store: Store | undefined): Promise<void> {
    const content = await this.#withoutHome(store);
    this.#compare('nothing new is lost', 'without the home', this.#model.afterCut(), content);
  }

  /** Once the volume is open, home and logs hold the same, flushed or not. */
  async #checkAgreement(volume: Volume, store: Store | undefined): Promise<void> {
    const home = Buffer.alloc(SIZE_BYTES);
    await volume.read(home, 0);
    // A cut in the middle of a clean stop gives the home another inode, which no real one does: it was changed, then.
    if (this.#hasNewInodes && volume.status().deltas?.brokenOff !== undefined) return;
    const isSame = home.equals(await this.#withoutHome(store));
    must('nothing new is lost', isSame, 'home and deltas differ in a volume that is open');
  }

  async #withoutHome(store: Store | undefined): Promise<Buffer> {
    const { volumeId } = await readVolumeIdentity(this.#volumePath);
    return contentWithoutHome({ volumeId, sizeBytes: SIZE_BYTES, places: this.#deltaPlaces, store });
  }

  async #checkTarget(): Promise<void> {
    const image = this.#journal.restored === undefined ? undefined : this.#images.get(this.#journal.restored);
    if (image === undefined) return;
    const content = await readFile(this.#targetPath);
    must('restored as saved', content.length === SIZE_BYTES, `the target has ${content.length} bytes`);
    this.#compare('restored as saved', 'the restored target', image, content);
  }

  #compare(promise: PromiseName, what: string, image: ModelImage | undefined, content: Buffer): void {
    const problem = image?.mismatch(content);
    this.tracksVerified += TRACKS;
    must(promise, problem === undefined, `${what}: ${problem}`);
  }

  async #checkStore(store: Store): Promise<void> {
    const sets = await store.list();
    for (const id of this.#journal.sets) {
      const isThere = sets.some((set) => set.id === id);
      must('complete or invisible', isThere, `acknowledged set ${id} is lost`);
    }
    for await (const { set, sound, findings } of verify(store)) {
      must('complete or invisible', sound, `set ${set.id} is damaged: ${findings.join('; ')}`);
    }
    for (const set of sets) await this.#checkSet(store, set);
  }

  async #checkSet(store: Store, set: StoredSet): Promise<void> {
    const point = set.header?.point ?? '';
    const maySeal = this.#maySeal.has(point);
    must('complete or invisible', maySeal, `set ${set.id} shows and was not to be sealed`);
    const chain = await store.chain(set.id);
    try {
      this.#compare('exact points', `set ${set.id}`, this.#images.get(point), contentOfChain(chain));
    } finally {
      await chain.close();
    }
  }

  async #checkVolume(volume: Volume): Promise<void> {
    const content = Buffer.alloc(SIZE_BYTES);
    await volume.read(content, 0);
    this.tracksVerified += TRACKS;
    const problem = this.#model.cut(content);
    must('flushed survives', problem === undefined, `flushed content is lost: ${problem}`);
    for (const [point, image] of this.#images) {
      const changed = volume.changedSince(point);
      for (const sector of this.#model.differences(image)) {
        const track = volume.geometry.trackAt(sector * SECTOR_BYTES);
        must('changes are known', changed.has(track), `changedSince lacks track ${track}`);
      }
    }
    const isKnown = !this.#journal.stoppedClean || volume.startedClean;
    must('changes are known', isKnown, 'a clean stop was forgotten');
  }

  /** Each snapshot that was acknowledged is there, none that was deleted, and what there is is exact. */
  async #checkSnapshots(volume: Volume): Promise<void> {
    const { snapshots, deletedSnapshots } = this.#journal;
    const infos = volume.snapshots();
    for (const name of snapshots) {
      const info = infos.find((one) => one.name === name);
      // A cut in the middle of a clean stop gives the home another inode, which no real one does.
      if (this.#hasNewInodes && info?.reason?.startsWith('its home was changed') === true) continue;
      must(
        'exact points',
        info?.state === 'ready',
        `snapshot ${name} is ${info?.reason ?? info?.state ?? 'lost'}`,
      );
    }
    for (const { name, point, state } of infos) {
      if (state !== 'ready') continue;
      must('exact points', !deletedSnapshots.has(name), `snapshot ${name} is there again`);
      const device = volume.openSnapshot(name);
      const content = Buffer.alloc(SIZE_BYTES);
      await device.read(content, 0);
      await device.close();
      this.#compare('exact points', `snapshot ${name}`, this.#clock.imageOf(point), content);
    }
  }

  /** The consumer is at a set that is there, and the next one builds on the newest. */
  async #checkNext(volume: Volume, store: Store): Promise<void> {
    const points = await store.basePoints(volume.identity.volumeId);
    const consumer = volume.status().consumers.find(({ name }) => name === store.id);
    const isBehind = consumer === undefined || points.includes(consumer.point);
    must('failure loses nothing', isBehind, 'the consumer is ahead of the store');
    const isKnown = consumer !== undefined || this.#journal.sets.size === 0;
    must('failure loses nothing', isKnown, 'the consumer was forgotten');
    this.#maySeal.clear();
    const next = await this.#backUp(volume, store);
    const isNewest = next.base === points[0];
    must('changes are known', isNewest, `the volume forgot a point that has a set: ${next.reason}`);
    await this.#checkSet(store, await store.find(next.set));
  }

  async destroy(): Promise<void> {
    await this.#volume?.close().catch(() => undefined);
    this.#ids.close();
    rmSync(this.#parent, { recursive: true, force: true });
  }
}

const COMMITTED: readonly (readonly [label: string, point: CrashPoint])[] = [
  ['commit v/state', 'commit volume-state'],
  ['commit s/catalog', 'commit catalog'],
  ['commit s/sets', 'commit set'],
];

/** The name of an event, without the file. */
function crashPointOf(label: string): CrashPoint {
  const committed = COMMITTED.find(([start]) => label.startsWith(start))?.[1];
  return (
    committed ?? CRASH_POINTS.find((point) => label === point || label.startsWith(`${point} `)) ?? 'step'
  );
}

let wholeLife: Promise<LifeResult> | undefined;
const AFTER_SYNC_EVENTS = 5;

/**
 * Where a life of this seed is cut: half of them anywhere, half at a crash point that is drawn by its name.
 *
 * @param without a sync that is left out: most lives are cut soon after it would have come.
 */
export async function drawCut(seed: number, without?: SyncName): Promise<number> {
  wholeLife ??= live({ seed: 0, cutAt: Number.POSITIVE_INFINITY });
  const { events } = await wholeLife;
  const random = new SeededRandom(seed);
  if (without !== undefined && random.chance(0.75)) {
    const places = [...events.keys()].filter((index) => events[index]?.startsWith(`before ${without} `));
    if (places.length > 0) return random.pick(places) + 1 + random.below(AFTER_SYNC_EVENTS);
  }
  if (random.chance(0.5)) return 1 + random.below(events.length);
  const places = new Map<CrashPoint, number[]>();
  for (const [index, event] of events.entries()) {
    const point = crashPointOf(event);
    places.set(point, [...(places.get(point) ?? []), index + 1]);
  }
  return random.pick(random.pick([...places.values()]));
}
