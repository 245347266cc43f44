/**
 * One run of the model test: a real volume, container, lane, store and restore beside the model, and the checks
 * that hold them against each other. What happens in which order is decided in `model-commands.ts`.
 *
 * The instant of a freeze is exact: the volume asks its clock for the point's time with the gate closed and
 * empty, and the clock here takes the model's image at that question.
 */

import { mkdirSync, renameSync, rmSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type MaybePromise,
  present,
  type SeededRandom,
  type SyncEvent,
  type SyncName,
} from '../base/index.ts';
import { Store, type StoredSet } from '../blockset/index.ts';
import { type BlockDevice, type DeviceExtent, FaultyDevice, MemoryDevice } from '../device/index.ts';
import { createVolume, Volume } from '../volume/index.ts';
import { AskedClock, CountingClock, type SeededIds } from './asked-clock.ts';
import { CRASH_POINTS, type CrashPoint } from './crash-points.ts';
import { type ModelImage, ModelVolume, SECTOR_BYTES } from './model.ts';
import { LossyDisk } from './lossy-disk.ts';
import { contentOfChain } from './model-content.ts';
import { FileWrites } from './file-writes.ts';
import { ModelSnapshots } from './model-snapshots.ts';
import type { RunningBackup } from './model-backup.ts';
import { must } from './promises.ts';
import { makeScratchDirectory } from './scratch.ts';
import { Scheduler, turns, within } from './scheduler.ts';

const PAGE_BYTES = 4096;

/** What a run did, for its report. */
export type Tally = Map<string, number>;

export interface WorldOptions {
  /** Each thing that happens, in order: the same seed gives the same lines. */
  readonly onTrace?: (line: string) => void;
  /** A sync that does nothing. */
  readonly without?: SyncName;
  /** Where is counted what is done; a new one where left out. */
  readonly tally?: Tally;
  /** A volume of few tracks and little else to look after, for many runs. */
  readonly isSmall?: boolean;
}

interface WorldParts extends WorldOptions {
  readonly random: SeededRandom;
  readonly ids: SeededIds;
  readonly full: FileWrites;
  readonly parent: string;
  readonly sizeBytes: number;
  readonly freezeWaitMsMax: number | undefined;
}

type Sync = Exclude<SyncEvent, { readonly kind: 'commit' }>;

export class World {
  readonly random: SeededRandom;
  readonly scheduler: Scheduler;
  readonly model: ModelVolume;
  readonly clock: AskedClock;
  readonly disk: MemoryDevice;
  readonly stores: Store[] = [];
  /** The model at each freeze, by point. */
  readonly images = new Map<string, ModelImage>();
  /** Sets that were acknowledged, by store. */
  readonly acknowledged = new Map<string, Set<string>>();
  /** Points whose sets may show although their sessions failed: they were allowed to seal. */
  readonly mayShow = new Set<string>();
  readonly tally: Tally;
  /** Changes and reads stay within so many tracks, mostly: fewer make more of them meet. */
  readonly hotTracks: number;
  readonly writes = new Set<Promise<void>>();
  /** Syncs that fail when they come. */
  readonly failingSyncs = new Set<SyncName>();
  /** Home operations may fail with an injected error from here on, until the volume is opened again. */
  mayFail = false;
  /** The state could not be saved at some time: the next stop is an unclean one. */
  mayBeUnclean = false;
  /** Those that run, one to a store, and those whose end nobody has looked at yet. */
  readonly backups: RunningBackup[] = [];
  /** The power is off: whatever still runs may fail in any way. */
  isOff = false;
  /** The run has come to where the power is to be cut. */
  isCutDue = false;
  readonly storeClock = new CountingClock();
  readonly snapshots: ModelSnapshots;
  /** The files of snapshots have no room where the run says so. */
  readonly full: FileWrites;
  /** The oldest snapshot goes where there is no room; otherwise the write is refused. */
  readonly dropsSnapshots: boolean;
  /** A sync of a snapshot's store has failed: that store takes nothing until the volume is opened again. */
  storesMayFail = false;
  #sessionFreezeCount = 0;
  readonly #parent: string;
  readonly #freezeWaitMsMax: number | undefined;
  readonly #intentRegionTracks: number;
  readonly #asyncHome: number;
  readonly #failures: unknown[] = [];
  readonly #lossy: LossyDisk;
  readonly #onTrace: (line: string) => void;
  readonly #without: SyncName | undefined;
  readonly #slowSyncs: number;
  #cutAt: CrashPoint | undefined;
  #straightCount = 0;
  #faulty: FaultyDevice | undefined;
  #volume: Volume | undefined;

  private constructor(parts: WorldParts) {
    const { random, sizeBytes, onTrace } = parts;
    this.random = random;
    this.#onTrace = onTrace ?? (() => undefined);
    this.#without = parts.without;
    this.tally = parts.tally ?? new Map();
    this.scheduler = new Scheduler(random, (label) => this.#onTrace(`release ${label}`));
    this.model = new ModelVolume(sizeBytes);
    this.clock = new AskedClock(this.model, parts.ids);
    this.full = parts.full;
    this.snapshots = new ModelSnapshots(this);
    this.dropsSnapshots = random.chance(0.4);
    this.disk = new MemoryDevice({ sizeBytes });
    this.#parent = parts.parent;
    this.#freezeWaitMsMax = parts.freezeWaitMsMax;
    this.#intentRegionTracks = random.pick([1, 2, 4, 128]);
    this.hotTracks = random.pick([2, 2, 8, Number.POSITIVE_INFINITY]);
    this.#asyncHome = random.pick([0, 0.1, 0.5, 0.9]);
    this.#slowSyncs = random.pick([0.1, 0.3, 0.8]);
    if (random.chance(0.75)) this.#faulty = this.#makeFaulty();
    mkdirSync(this.#root);
    this.#lossy = new LossyDisk(this.#root, {
      tear: (path) => path.endsWith('.tracks') || path.endsWith('.log'),
      onEvent: (event, when) => (event.kind === 'commit' ? undefined : this.#onSync(event, when)),
    });
    parts.full.onWrite = ({ path, ...range }) => this.#lossy.written(path, range);
  }

  static async create(random: SeededRandom, ids: SeededIds, options: WorldOptions): Promise<World> {
    const full = await FileWrites.install('.tracks');
    const parent = makeScratchDirectory();
    const trackSizeBytes = random.pick([4096, 4096, 8192]);
    const trackCount = random.pick(options.isSmall === true ? [1, 3, 6, 12] : [1, 5, 12, 30, 70]);
    const cut = random.chance(0.4) ? random.below(trackSizeBytes / SECTOR_BYTES) * SECTOR_BYTES : 0;
    const sizeBytes = trackCount * trackSizeBytes - cut;
    const freezeWaitMsMax = random.chance(0.1) ? 1 : undefined;
    const world = new World({ ...options, random, ids, full, parent, sizeBytes, freezeWaitMsMax });
    await world.straight(async () => {
      await createVolume(world.#directory, {
        sizeBytes,
        trackSizeBytes,
        clock: world.storeClock,
        snapshotFull: world.dropsSnapshots ? 'drop' : 'refuse',
      });
      for (let count = random.pick(options.isSmall === true ? [1] : [1, 2]); count > 0; count -= 1) {
        const store = await Store.init(join(parent, `s${count}`), { clock: world.storeClock });
        world.stores.push(store);
        world.acknowledged.set(store.path, new Set());
      }
      await world.open();
    });
    return world;
  }

  /** A sync is held, fails or is left out, as the run wants it; where the power is off, it fails. */
  #onSync(event: Sync, when: 'before' | 'after'): MaybePromise<'skip' | undefined> {
    this.#onTrace(`${when} ${event.name}${this.isOff ? ', off' : ''}`);
    if (this.isOff && event.path.startsWith(this.#root)) throw new Error('The power was cut');
    if (this.#straightCount > 0) return when === 'before' ? this.#issue(event) : undefined;
    return this.#hold(event, when);
  }

  async #hold(event: Sync, when: 'before' | 'after'): Promise<'skip' | undefined> {
    const point: CrashPoint = `${when} ${event.name}`;
    if (this.#cutAt === point) this.isCutDue = true;
    await this.scheduler.park(`sync ${point}`, this.#cutAt === point ? 1 : this.#slowSyncs);
    return when === 'before' ? this.#issue(event) : undefined;
  }

  #issue({ name }: Sync): 'skip' | undefined {
    if (this.failingSyncs.delete(name)) {
      this.count('syncs that failed');
      // A volume that cannot log a region is poisoned by it.
      this.mayFail ||= name === 'intent-log';
      this.storesMayFail ||= name === 'snapshot-store';
      throw Object.assign(new Error(`Injected failure of sync ${name}`), { code: 'EIO' });
    }
    return name === this.#without ? 'skip' : undefined;
  }

  /** What is waited for here, nobody would let go on: syncs are not held meanwhile. */
  async straight<T>(work: () => Promise<T>): Promise<T> {
    this.#straightCount += 1;
    try {
      return await work();
    } finally {
      this.#straightCount -= 1;
    }
  }

  /** The power is cut when the run comes to that point, if it ever does. */
  cutAt(point: CrashPoint): void {
    this.#cutAt = point;
  }

  trace(line: string): void {
    this.#onTrace(line);
  }

  get volume(): Volume {
    return present(this.#volume, 'The volume has been opened');
  }

  /** Undefined in runs whose home finishes at once. */
  get faulty(): FaultyDevice | undefined {
    return this.#faulty;
  }

  /** What the power cuts of the volume's state are about. */
  get #root(): string {
    return join(this.#parent, 'disk');
  }

  get #directory(): string {
    return join(this.#root, 'v');
  }

  #makeFaulty(): FaultyDevice {
    const faulty = new FaultyDevice(this.disk);
    faulty.delay({}, ({ kind }) => this.scheduler.park(`home ${kind}`, this.#asyncHome));
    return faulty;
  }

  get trackBytes(): number {
    return this.volume.geometry.trackSizeBytes;
  }

  /** A call on the volume is under way; should it break a promise, the next look at the world tells. */
  follow(call: Promise<void>): void {
    const followed = call
      .catch((error: unknown) => {
        this.#failures.push(error);
      })
      .finally(() => this.writes.delete(followed));
    this.writes.add(followed);
  }

  count(what: string, by = 1): void {
    this.tally.set(what, (this.tally.get(what) ?? 0) + by);
  }

  async open(): Promise<void> {
    this.failingSyncs.clear();
    const home: BlockDevice = keptOpen(this.#faulty ?? this.disk);
    this.mayFail = false;
    this.storesMayFail = false;
    // A rollback can be finished only where there is room.
    this.full.isFull = false;
    const before = this.onDisk();
    const freezeWaitMsMax = this.#freezeWaitMsMax;
    // A rollback may have to be finished, and nobody would let its writes go on.
    this.scheduler.open();
    this.#volume = await this.straight(() =>
      Volume.open(this.#directory, {
        registry: { open: async () => home },
        clock: this.clock,
        activity: 'modelling',
        ...(freezeWaitMsMax === undefined ? {} : { freezeWaitMsMax }),
        timer: freezeWaitMsMax === undefined ? () => () => undefined : this.scheduler.timer,
        intentRegionTracks: this.#intentRegionTracks,
        onWarning: (sentence) => {
          const name = /^Snapshot (\S+) of .* was dropped/.exec(sentence)?.[1];
          if (name !== undefined) this.snapshots.dropped(name);
        },
      }),
    );
    this.scheduler.close();
    // On a poisoned volume that waits for the check.
    if (this.#volume.status().poisoned === undefined) this.snapshots.opened(before, this.onDisk());
  }

  /** Takes the model's image at the instant at which the volume freezes. */
  async freeze<T extends { readonly plan: { readonly point: string } }>(begin: () => Promise<T>): Promise<T> {
    this.#sessionFreezeCount += 1;
    try {
      const session = await begin();
      this.images.set(session.plan.point, this.clock.imageOf(session.plan.point));
      this.count('freezes');
      if (this.volume.sessions.length > 1) this.count('sessions side by side');
      return session;
    } finally {
      this.#sessionFreezeCount -= 1;
    }
  }

  get isFreezing(): boolean {
    return this.#sessionFreezeCount > 0 || this.snapshots.isMaking;
  }

  /** Where the home is zero now, as exactly as any filesystem could tell. */
  extents(offsetBytes: number, lengthBytes: number): DeviceExtent[] {
    const content = this.onDisk();
    const extents: DeviceExtent[] = [];
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += PAGE_BYTES) {
      const bytes = Math.min(PAGE_BYTES, offsetBytes + lengthBytes - at);
      const zero = content.subarray(at, at + bytes).every((byte) => byte === 0);
      const last = extents.at(-1);
      if (last?.zero === zero) extents.splice(-1, 1, { ...last, lengthBytes: last.lengthBytes + bytes });
      else extents.push({ offsetBytes: at, lengthBytes: bytes, hole: zero, zero });
    }
    return extents;
  }

  /** What is on the disk at this instant is what the model says, and so was every call that has ended. */
  checkDisk(): void {
    const [failure] = this.#failures;
    if (failure !== undefined) throw failure;
    const problem = this.model.snapshot().mismatch(this.onDisk());
    must('reads are right', problem === undefined, `The live volume differs from the model: ${problem}`);
  }

  /** What the home holds. */
  onDisk(): Buffer {
    const content = Buffer.alloc(this.disk.sizeBytes);
    this.disk.read(content, 0);
    return content;
  }

  /** Promise 3, for every point that ever was. */
  checkChanges(): void {
    for (const [point, image] of this.images) {
      const changed = this.volume.changedSince(point);
      for (const sector of this.model.differences(image)) {
        const track = this.volume.geometry.trackAt(sector * SECTOR_BYTES);
        must(
          'changes are known',
          changed.has(track),
          `changedSince lacks track ${track}, which differs from point ${point}`,
        );
      }
    }
  }

  /** Lets all writes end, whatever the backup does. */
  async writesEnd(): Promise<void> {
    this.scheduler.open();
    await within(
      Promise.all(this.writes).then(() => undefined),
      'A write',
    );
    this.scheduler.close();
  }

  /** Nothing is in flight: the model learns what there is. */
  observe(isFinal: boolean): void {
    this.checkDisk();
    if (this.model.inFlightCount === 0) this.model.observe(this.onDisk(), { isFinal });
  }

  /** No session runs: nothing of one may be left. */
  async checkIdle(): Promise<void> {
    await this.writesEnd();
    must('failure loses nothing', this.volume.sessions.length === 0, 'A session is left over');
    must(
      'nobody waits',
      this.volume.status().writesWaiting === 0,
      'A write is counted as waiting, and none waits',
    );
    this.observe(false);
    this.checkChanges();
    await this.snapshots.check();
  }

  /** Every set that shows is known, whole, and holds exactly its freeze. */
  async checkStore(store: Store, options: { readonly everySet: boolean }): Promise<void> {
    const sets = await store.list();
    for (const id of this.acknowledged.get(store.path) ?? []) {
      must(
        'complete or invisible',
        sets.some((set) => set.id === id),
        `Set ${id} was acknowledged and is not in the store`,
      );
    }
    for (const set of options.everySet ? sets : sets.slice(-1)) await this.#checkSet(store, set);
  }

  async #checkSet(store: Store, set: StoredSet): Promise<void> {
    must(
      'complete or invisible',
      set.damage === undefined && set.header !== undefined,
      `Set ${set.id} is damaged: ${set.damage}`,
    );
    const point = present(set.header, 'A sound set has a header').point;
    const isAcknowledged = this.acknowledged.get(store.path)?.has(set.id) === true;
    must(
      'complete or invisible',
      isAcknowledged || this.mayShow.has(point),
      `Set ${set.id} shows and was never sealed`,
    );
    await this.#checkOnce(store, set);
    const image = present(this.images.get(point), `Point ${point} is known`);
    const chain = await store.chain(set.id);
    try {
      const content = contentOfChain(chain);
      const problem = image.mismatch(content);
      must('exact points', problem === undefined, `Set ${set.id} differs from its freeze: ${problem}`);
      image.narrow(content);
      this.count('sets checked');
      this.count('tracks verified', chain.trackCount);
    } finally {
      await chain.close();
    }
  }

  /** A set holds each of its tracks once. */
  async #checkOnce(store: Store, set: StoredSet): Promise<void> {
    const reader = store.openSet(set);
    try {
      const stored = [...reader.readPlan(reader.present)].flatMap(({ tracks }) => [...tracks]);
      const tracks = [...stored, ...reader.zeroes.toArray()];
      must(
        'complete or invisible',
        new Set(tracks).size === tracks.length,
        `Set ${set.id} holds a track twice`,
      );
      must(
        'complete or invisible',
        tracks.length === reader.counters.tracks && tracks.length === reader.present.size,
        `Set ${set.id} counts ${reader.counters.tracks} tracks and holds ${tracks.length}`,
      );
    } finally {
      await reader.close();
    }
  }

  /**
   * What a failed flush lost shows when the cache is dropped, which a check does with a file; here the device
   * forgets it, as for a power cut.
   */
  async dropCache(): Promise<void> {
    await this.#faulty?.powerCut(this.random);
    const problem = this.model.cut(this.onDisk());
    must('flushed survives', problem === undefined, `Flushed content is lost: ${problem}`);
  }

  /**
   * The server is killed and the power with it: of what its home had not flushed, and of what its state had not
   * synced, anything may be lost. The store lies elsewhere. Then the volume is opened again.
   */
  async kill(): Promise<void> {
    await turns(1);
    const faulty = present(this.#faulty, 'The home can lose its power');
    this.count(`crashes: ${this.#crashPoint()}`);
    this.trace(`cut at ${this.#crashPoint()}`);
    this.#cutAt = undefined;
    this.isCutDue = false;
    this.isOff = true;
    for (const backup of this.backups) backup.sabotage('the server was killed');
    this.mayFail = true;
    this.#lossy.powerCut(this.random);
    // The old instance lives on where a real one would not: what it still does by path finds nothing.
    renameSync(this.#root, `${this.#root}.cut`);
    mkdirSync(this.#root);
    const cut = faulty.powerCut(this.random);
    faulty.switchOff();
    this.scheduler.fail('sync', new Error('The power was cut'));
    this.scheduler.open();
    for (const backup of this.backups) backup.kill();
    await cut;
    await within(Promise.all(this.writes), 'A write');
    for (const backup of this.backups) await within(backup.ended, 'A backup');
    await this.volume.close().catch(() => undefined);
    this.scheduler.close();
    rmSync(this.#root, { recursive: true });
    renameSync(`${this.#root}.cut`, this.#root);
    this.isOff = false;
    const problem = this.model.cut(this.onDisk());
    this.count('tracks verified', this.volume.geometry.trackCount);
    must('flushed survives', problem === undefined, `Flushed content is lost: ${problem}`);
    this.#faulty = this.#makeFaulty();
    await this.open();
    must('changes are known', !this.volume.startedClean, 'A killed volume was seen as stopped cleanly');
    this.checkChanges();
    await this.snapshots.check();
    this.count('kills');
  }

  /** The last sync that was held around, where one was. */
  #crashPoint(): CrashPoint {
    if (this.isCutDue && this.#cutAt !== undefined) return this.#cutAt;
    const held = this.scheduler.parked.filter((label) => label.startsWith('sync ')).at(-1);
    return CRASH_POINTS.find((point) => held === `sync ${point}`) ?? 'step';
  }

  /** Ends everything and removes what was made. */
  async destroy(): Promise<void> {
    this.#lossy.close();
    this.full.close();
    this.scheduler.open();
    await this.volume.close().catch(() => undefined);
    await Promise.allSettled(this.writes);
    for (const backup of this.backups) await backup.ended.catch(() => undefined);
    await turns(2);
    await rm(this.#parent, { recursive: true, force: true });
  }
}

/** Whether an error is one that a test injected. */
export function isInjected(error: unknown): boolean {
  return error instanceof Error && /Injected|The power was cut/.test(error.message);
}

/** The device without its end, so that it outlives each opening of the volume. */
function keptOpen(device: BlockDevice): BlockDevice {
  return new Proxy(device, {
    get: (target, name) => {
      if (name === 'close') return async () => undefined;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
