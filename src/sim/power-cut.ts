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
import { messageOf, SeededRandom, type SyncEvent } from '../base/index.ts';
import { Store, type StoredSet, verify } from '../blockset/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { restore } from '../restore/index.ts';
import { createVolume, isVolumeHome, MemoryArea, Volume } from '../volume/index.ts';
import { AskedClock } from './asked-clock.ts';
import { LossyDisk } from './lossy-disk.ts';
import { contentOf, type ModelImage, ModelVolume, SECTOR_BYTES } from './model.ts';
import { contentOfChain } from './model-content.ts';
import { makeScratchDirectory } from './scratch.ts';
import { within } from './scheduler.ts';
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
  store: boolean;
  stoppedClean: boolean;
  readonly sets: Set<string>;
  /** The set that was restored, by its point. */
  restored: string | undefined;
}

export interface Life {
  readonly seed: number;
  /**
   * The event at which the power is cut, by its number from 1, or by its place among those whose names begin so;
   * beyond the last one, the cut comes at the end.
   */
  readonly cutAt: number | { readonly event: string; readonly nth: number };
  /** Syncs that do nothing, as `LifeResult.events` names them. */
  readonly without?: string;
}

export interface LifeResult {
  /** What happened up to the cut: `before home file v/home.raw`, `commit s/catalog`, `step`. */
  readonly events: readonly string[];
  /** The first promise that did not hold; undefined where all did. */
  readonly broken: string | undefined;
}

/** Lives one life, cuts it short and looks what is left. */
export async function live(life: Life): Promise<LifeResult> {
  const world = new CutWorld(life);
  try {
    await world.live();
    return { events: world.events, broken: await world.whatIsBroken() };
  } finally {
    await world.destroy();
  }
}

class CutWorld {
  readonly #random: SeededRandom;
  readonly #cutAt: Life['cutAt'];
  #seen = 0;
  readonly #parent = makeScratchDirectory();
  readonly #root = join(this.#parent, 'disk');
  readonly #disk: LossyDisk;
  readonly #model = new ModelVolume(SIZE_BYTES);
  readonly #clock = new AskedClock(this.#model);
  readonly #images = new Map<string, ModelImage>();
  readonly #maySeal = new Set<string>();
  readonly #journal: Journal = {
    volume: false,
    store: false,
    stoppedClean: false,
    sets: new Set(),
    restored: undefined,
  };
  #volume: Volume | undefined;
  #isCut = false;
  /** The power is back. */
  #isBack = false;
  readonly events: string[] = [];

  constructor({ seed, cutAt, without }: Life) {
    this.#random = new SeededRandom(seed);
    this.#cutAt = cutAt;
    mkdirSync(this.#root);
    this.#disk = new LossyDisk(this.#root, {
      tear: (path) => path.endsWith('.raw'),
      tearCommits: (path) => path.startsWith('s/sets/'),
      onEvent: (event, when) => {
        const label = this.#labelOf(event);
        this.#event(event.kind === 'commit' ? label : `${when} ${label}`);
        return when === 'before' && label === without ? 'skip' : undefined;
      },
    });
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
      .replace(/intent-\d+/, 'intent-*');
    return event.kind === 'commit'
      ? `commit ${path}`
      : `${event.name} ${event.kind} ${path === '' ? '.' : path}`;
  }

  #event(label = 'step'): void {
    if (this.#isBack) return;
    if (this.#isCut) throw new PowerCut('The power is off');
    this.events.push(label);
    const cutAt = this.#cutAt;
    if (typeof cutAt !== 'number' && label.startsWith(cutAt.event)) this.#seen += 1;
    const isNow = typeof cutAt === 'number' ? this.events.length === cutAt : this.#seen === cutAt.nth;
    if (isNow) this.#cut();
  }

  #cut(): void {
    this.#isCut = true;
    // With everything closed nobody writes into the old files any more, and they may stay what they are.
    this.#disk.powerCut(this.#random, { keepInodes: this.#volume === undefined });
    renameSync(this.#root, `${this.#root}.cut`);
    mkdirSync(this.#root);
    throw new PowerCut('The power was cut');
  }

  /** The scenario up to the cut. */
  async live(): Promise<void> {
    try {
      await this.#scenario();
      this.#cut();
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
    await createVolume(this.#volumePath, { sizeBytes: SIZE_BYTES, trackSizeBytes: TRACK_BYTES });
    journal.volume = true;
    this.#event();
    const store = await Store.init(this.#storePath);
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
    await this.#write(volume, 1);
    await this.#backUp(volume, store);
    await this.#write(volume, 1);
    await this.#close(volume);
    const again = await this.#open();
    await this.#write(again, 1, true);
    await this.#write(again, 1);
    const last = await this.#backUp(again, store);
    await this.#close(again);
    const chain = await store.chain(last.set);
    try {
      await restore(chain, [{ name: 'target', uri: this.#targetPath }], {
        registry: new DeviceRegistry(),
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
    const volume = await Volume.open(this.#volumePath, {
      registry: new DeviceRegistry(),
      clock: this.#clock,
      activity: 'being cut',
      intentRegionTracks: 2,
    });
    this.#volume = volume;
    this.#event();
    return volume;
  }

  async #close(volume: Volume): Promise<void> {
    await volume.close();
    this.#volume = undefined;
    this.#journal.stoppedClean = true;
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
        this.#images.set(session.plan.point, this.#clock.image);
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
  async whatIsBroken(): Promise<string | undefined> {
    try {
      return await within(this.#whatIsBroken(), 'Looking at what the cut left');
    } catch (error) {
      return `failed: ${messageOf(error)}`;
    }
  }

  async #whatIsBroken(): Promise<string | undefined> {
    const fromCatalog = this.#journal.store ? await this.#lostFromCatalog() : undefined;
    const store = this.#journal.store ? await Store.open(this.#storePath) : undefined;
    const volume = this.#journal.volume ? await this.#reopen() : undefined;
    return (
      fromCatalog ??
      (await this.#checkTarget()) ??
      (store === undefined ? undefined : await this.#checkStore(store)) ??
      (volume === undefined ? undefined : await this.#checkVolume(volume)) ??
      (volume === undefined || store === undefined ? undefined : await this.#checkNext(volume, store))
    );
  }

  /** The catalog knows acknowledged sets by itself: one whose file goes away later shows as missing. */
  async #lostFromCatalog(): Promise<string | undefined> {
    const sets = join(this.#storePath, 'sets');
    await rename(sets, `${sets}.away`);
    mkdirSync(sets);
    const listed = await (await Store.open(this.#storePath, { readOnly: true })).list();
    rmSync(sets, { recursive: true });
    await rename(`${sets}.away`, sets);
    for (const id of this.#journal.sets) {
      if (!listed.some((set) => set.id === id)) return `the catalog lost acknowledged set ${id}`;
    }
    return undefined;
  }

  async #reopen(): Promise<Volume> {
    this.#volume = await Volume.open(this.#volumePath, {
      registry: new DeviceRegistry(),
      clock: this.#clock,
      activity: 'being checked',
      intentRegionTracks: 2,
    });
    return this.#volume;
  }

  async #checkTarget(): Promise<string | undefined> {
    const image = this.#journal.restored === undefined ? undefined : this.#images.get(this.#journal.restored);
    if (image === undefined) return undefined;
    const content = await readFile(this.#targetPath);
    if (content.length !== SIZE_BYTES) return `the restored target has ${content.length} bytes`;
    const problem = image.mismatch(content);
    return problem === undefined ? undefined : `the restored target: ${problem}`;
  }

  async #checkStore(store: Store): Promise<string | undefined> {
    const sets = await store.list();
    for (const id of this.#journal.sets) {
      if (!sets.some((set) => set.id === id)) return `acknowledged set ${id} is lost`;
    }
    for await (const verified of verify(store)) {
      if (!verified.sound) return `set ${verified.set.id} is damaged: ${verified.findings.join('; ')}`;
    }
    for (const set of sets) {
      const problem = await this.#checkSet(store, set);
      if (problem !== undefined) return `set ${set.id}: ${problem}`;
    }
    return undefined;
  }

  async #checkSet(store: Store, set: StoredSet): Promise<string | undefined> {
    const point = set.header?.point ?? '';
    if (!this.#maySeal.has(point)) return 'it shows and was not to be sealed';
    const chain = await store.chain(set.id);
    try {
      return this.#images.get(point)?.mismatch(contentOfChain(chain));
    } finally {
      await chain.close();
    }
  }

  async #checkVolume(volume: Volume): Promise<string | undefined> {
    const content = Buffer.alloc(SIZE_BYTES);
    await volume.read(content, 0);
    const problem = this.#model.cut(content);
    if (problem !== undefined) return `flushed content is lost: ${problem}`;
    for (const [point, image] of this.#images) {
      const changed = volume.changedSince(point);
      for (const sector of this.#model.differences(image)) {
        const track = volume.geometry.trackAt(sector * SECTOR_BYTES);
        if (!changed.has(track)) return `changedSince lacks track ${track}`;
      }
    }
    if (this.#journal.stoppedClean && !volume.startedClean) return 'a clean stop was forgotten';
    return undefined;
  }

  /** The consumer is at a set that is there, and the next one builds on the newest. */
  async #checkNext(volume: Volume, store: Store): Promise<string | undefined> {
    const points = await store.basePoints(volume.identity.volumeId);
    const consumer = volume.status().consumers.find(({ name }) => name === store.id);
    if (consumer !== undefined && !points.includes(consumer.point))
      return 'the consumer is ahead of the store';
    if (consumer === undefined && this.#journal.sets.size > 0) return 'the consumer was forgotten';
    this.#maySeal.clear();
    const next = await this.#backUp(volume, store);
    if (next.base !== points[0]) return `the volume forgot a point that has a set: ${next.reason}`;
    const problem = await this.#checkSet(store, await store.find(next.set));
    return problem === undefined ? undefined : `the next set: ${problem}`;
  }

  async destroy(): Promise<void> {
    await this.#volume?.close().catch(() => undefined);
    rmSync(this.#parent, { recursive: true, force: true });
  }
}
