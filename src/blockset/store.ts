/**
 * A store: a directory of block sets with a catalog.
 *
 *     store.json            says that this is a store, and of which format
 *     lock                  flock, see store-lock.ts
 *     catalog               index of the complete sets, can be rebuilt (catalog.ts)
 *     keys.json             of an encrypted store: what opens it (store-keys.ts)
 *     sets/<id>-<lane>.cbs          a lane of a complete set; further lanes may lie elsewhere
 *     sets/<id>-<lane>.cbs.partial  one that is being written, or was cut off
 *     sets/<id>-0.cbs.removed       lane 0 of a set that is being removed, or whose removal was cut off (removal.ts)
 *     sets/<id>.copy/       a set that is being copied here, or was cut off (copy-sets.ts)
 *     removing              sets whose removal was begun
 *     protected             sets that must not be removed (protection.ts)
 *     ancestry              what removed points came after (ancestry.ts)
 *     verify                how far verifying has come (verify-state.ts)
 *     sessions.log          how sessions ended (session-log.ts)
 *     media/                which media hold which sets, and their log; written by the room `media`
 *
 * Opening a store for writing puts in order what a crash left: a sealed partial set is finished, an unsealed
 * one removed, a removal that was begun is ended, sets without a catalog entry are entered. A partial set whose
 * writer lives, which its flock shows, is left alone.
 *
 * Calls work synchronously on LMDB and may hold the loop for long: stores belong into child processes, also
 * because a failing disk under a mapped file kills the process.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import {
  assert,
  type Clock,
  CorruptionError,
  makeUlid,
  present,
  randomId,
  syncDirectory,
  systemClock,
} from '../base/index.ts';
import { openLmdb } from '../records/index.ts';
import { type Ancestry, ancestryWithout, encodeAncestry, followedBy, readAncestry } from './ancestry.ts';
import { type CatalogEntry, dropCatalog, readCatalog, updateCatalog } from './catalog.ts';
import { ChainView } from './chain-view.ts';
import { salvageChain } from './salvage.ts';
import { SalvagedSet } from './salvaged-set.ts';
import { asStoreErrorsLater, StoreError } from './errors.ts';
import { isLeased } from './leases.ts';
import { chainOf, pointsOf, previousPoint, selectSet, type StoredPoint, type StoredSet } from './lineage.ts';
import { compressionOf } from './frame-codec.ts';
import type { StoreKey } from './key-slots.ts';
import { type LaneEnd, type LaneParts, LaneWriter } from './lane-writer.ts';
import type { MasterKey } from './master-key.ts';
import { encodeProtections, type Protection, protectionOf, readProtections } from './protection.ts';
import {
  decodeWish,
  type RemovalOptions,
  type RemovalResult,
  type RemovalWish,
  removeSets,
  withObjections,
} from './removal.ts';
import { type LaneFile, renameLanes, SetAssembly } from './set-assembly.ts';
import {
  listRemoved,
  listSetFiles,
  removeCutCopies,
  removeOrphans,
  settlePartials,
  unlinkRemoved,
} from './set-files.ts';
import {
  DATABASES,
  KEY_KEY,
  LANES_MAX,
  laneFileName,
  type SetCodec,
  type SetHeader,
  type SetLevel,
} from './set-format.ts';
import { RawSetWriter } from './raw-set.ts';
import { SetReader } from './set-reader.ts';
import { SetWriter } from './set-writer.ts';
import { dropStateFile, readStateFile, writeStateFile } from './state-file.ts';
import {
  createKeys,
  KEYS_NAME,
  masterOf,
  type NewKeyOptions,
  openKeptKeys,
  writeKeptKeys,
} from './store-keys.ts';
import { readEntry, storedSet, unreadableSet } from './stored-sets.ts';
import { withStoreLock } from './store-lock.ts';
import { readMarker, type StoreMarker, writeMarker } from './store-marker.ts';

/** How often a chain is looked for anew because one of its sets went before it could be leased. */
const CHAIN_ATTEMPTS = 4;

export interface StoreOptions {
  /** Nothing is written, not even to put the store in order; works on a read-only file system. */
  readonly readOnly?: boolean;
  readonly clock?: Clock;
  /** Of an encrypted store; another must not have one. */
  readonly key?: StoreKey;
}

/** What a store is to those who know it, beside its sets. */
export interface LostStore {
  readonly id: string;
  /** A copy of the `keys.json` of an encrypted store. */
  readonly keys?: Buffer;
}

export interface NewStoreOptions extends NewKeyOptions {
  /** Encrypts the store, and is the first key that opens it; with `lost.keys`, one of those that do. */
  readonly key?: StoreKey;
  /** The store that this one takes the place of, as far as it left more than sets. */
  readonly lost?: LostStore;
}

export interface NewSet {
  readonly volumeId: string;
  readonly volumeName: string;
  readonly level: SetLevel;
  /** The point that the set builds on; null for a full set. */
  readonly base: string | null;
  /** The set's own point. */
  readonly point: string;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly codec: SetCodec;
  /** Of zstd, -7 (fast) to 19 (small); `LEVEL_DEFAULT` where left out. */
  readonly compressionLevel?: number;
  /** For a set that stands for others and is no session's: their place in the lineage, and their time. */
  readonly previous?: string | null;
  readonly createdMs?: number;
}

/** How many lanes a set has, and where those are that do not lie in the store. */
export interface LaneWish {
  /** 1 to `LANES_MAX`. */
  readonly count: number;
  /** Directories for further lanes, absolute; they and the store take lanes in turn. */
  readonly directories: readonly string[];
}

export class Store {
  readonly path: string;
  /** Given at `init`: names the store to the volumes it takes backups of. */
  readonly id: string;
  readonly #readOnly: boolean;
  readonly #clock: Clock;
  /** Of an encrypted store. */
  readonly #master: MasterKey | undefined;

  private constructor(marker: StoreMarker, master: MasterKey | undefined, options: StoreOptions) {
    this.path = marker.path;
    this.id = marker.id;
    this.#master = master;
    this.#readOnly = options.readOnly ?? false;
    this.#clock = options.clock ?? systemClock;
  }

  /**
   * Makes an empty store in a directory that does not exist or is empty; durable when it returns.
   *
   * @throws {StoreError} `not-empty`, `bad-key`, `no-space` or `io`.
   */
  static async init(path: string, options: NewStoreOptions = {}): Promise<Store> {
    return await asStoreErrorsLater(path, async () => {
      if (existsSync(path) && readdirSync(path).length > 0) {
        throw new StoreError('not-empty', `Directory ${path} is not empty`, { path });
      }
      const { key, lost } = options;
      const id = lost?.id ?? randomId();
      const kept = lost?.keys === undefined ? undefined : await openKeptKeys({ path, id }, lost.keys, key);
      await mkdir(join(path, 'sets'), { recursive: true });
      await writeFile(join(path, 'lock'), '', { mode: 0o600 });
      if (kept !== undefined) await writeKeptKeys(path, kept);
      const made =
        key === undefined || kept !== undefined ? undefined : await createKeys({ path, id }, key, options);
      const master = kept?.master ?? made;
      await updateCatalog(join(path, 'catalog'), new Map(), master?.catalog);
      // The marker comes last and whole, so that a store that was cut off in the making is none.
      const marker = { path, id, isEncrypted: master !== undefined };
      await writeMarker(marker);
      await syncDirectory('store-directory', dirname(path));
      return new Store(marker, master, options);
    });
  }

  /** Whether a key is needed to open the store; false where there is none. Never throws. */
  static isEncrypted(path: string): boolean {
    try {
      return readMarker(path).isEncrypted;
    } catch {
      return false;
    }
  }

  /**
   * Opens a store and, unless it is for reading only, puts in order what a crash left.
   *
   * @throws {StoreError} `not-a-store`, `newer-format`, `locked`, `no-space` or `io`; `key-needed`, `wrong-key`,
   *   `bad-key` or `not-encrypted` where store and key do not go together.
   * @throws {CorruptionError} where the keys of an encrypted store are damaged.
   */
  static async open(path: string, options: StoreOptions = {}): Promise<Store> {
    return await asStoreErrorsLater(path, async () => {
      const marker = readMarker(path);
      const store = new Store(marker, await masterOf(marker, options.key), options);
      if (options.readOnly !== true) await store.#locked('exclusive', () => store.#putInOrder());
      return store;
    });
  }

  #catalogue(entries: ReadonlyMap<string, CatalogEntry | null>): Promise<void> {
    return updateCatalog(this.#catalogPath, entries, this.#master?.catalog);
  }

  #locked<T>(mode: 'exclusive' | 'shared', body: () => Promise<T>): Promise<T> {
    return asStoreErrorsLater(this.path, () => withStoreLock(join(this.path, 'lock'), mode, body));
  }

  get #catalogPath(): string {
    return join(this.path, 'catalog');
  }

  get #protectedPath(): string {
    return join(this.path, 'protected');
  }

  get #removingPath(): string {
    return join(this.path, 'removing');
  }

  get #ancestryPath(): string {
    return join(this.path, 'ancestry');
  }

  #setPath(id: string): string {
    return join(this.path, 'sets', `${id}-0.cbs`);
  }

  // ---- putting in order -------------------------------------------------------------------------------

  /** Under the exclusive lock. */
  async #putInOrder(): Promise<void> {
    await this.#finishRemovals();
    await settlePartials(join(this.path, 'sets'), this.#master);
    removeCutCopies(join(this.path, 'sets'));
    const known = await readCatalog(this.#catalogPath, this.#master?.catalog);
    if (known === undefined) dropCatalog(this.#catalogPath);
    const missing = new Map<string, CatalogEntry>();
    for (const id of this.#completeSets()) {
      if (known?.has(id) === true) continue;
      const read = await readEntry(this.#setPath(id), this.#master);
      if ('header' in read) missing.set(id, read);
    }
    if (known === undefined || missing.size > 0) await this.#catalogue(missing);
    const wish = orElse(() => decodeWish(readStateFile(this.#removingPath)), undefined);
    if (wish !== undefined) await this.#removeUnderLock(wish);
  }

  /** A set whose lane 0 has been renamed is gone; what is left of it goes now. */
  async #finishRemovals(): Promise<void> {
    const sets = join(this.path, 'sets');
    const ids = listRemoved(sets);
    if (ids.length === 0) return;
    // The renames may have been seen in the page cache only.
    await syncDirectory('set-directory', sets);
    await this.#forget(ids);
    for (const id of ids) await unlinkRemoved(this.#setPath(id), this.id, this.#master);
  }

  async #forget(ids: readonly string[]): Promise<void> {
    const known = await readCatalog(this.#catalogPath, this.#master?.catalog);
    const named = ids.filter((id) => known?.has(id) === true);
    if (named.length > 0) await this.#catalogue(new Map(named.map((id) => [id, null])));
  }

  #completeSets(): string[] {
    const files = listSetFiles(join(this.path, 'sets'));
    return files.filter(({ lane, partial }) => lane === 0 && !partial).map(({ id }) => id);
  }

  // ---- writing ----------------------------------------------------------------------------------------

  /**
   * Begins a set of one lane, written by the caller. The point that is latest for the volume now becomes its
   * previous point.
   *
   * @throws {StoreError} `no-space`, `io`, `locked` or `read-only`.
   */
  async createSet(wanted: NewSet): Promise<SetWriter> {
    const { assembly, lanes } = await this.beginSet(wanted, { count: 1, directories: [] }, async (parts) =>
      parts.map((part) => new LaneWriter(part)),
    );
    return new SetWriter(present(lanes[0], 'One lane was asked for'), assembly);
  }

  /**
   * Begins a set of several lanes.
   *
   * @param start begins the lanes, wherever they are to be written; it gives up all where one fails. Called under
   *   the store's lock.
   * @throws {StoreError} as `createSet`.
   */
  async beginSet<Lane extends LaneEnd>(
    wanted: NewSet,
    wish: LaneWish,
    start: (parts: readonly LaneParts[]) => Promise<readonly Lane[]>,
  ): Promise<{ readonly assembly: SetAssembly; readonly lanes: readonly Lane[] }> {
    this.#assertWritable();
    assert(wish.count >= 1 && wish.count <= LANES_MAX, `A set of ${wish.count} lanes is asked for`);
    return await this.#locked('exclusive', async () => {
      const header = await this.#newHeader(wanted, wish.count);
      const files = await this.#laneFiles(header.id, wish);
      const directories = files.map(({ directory }) => directory);
      const lanes = await start(
        files.map(({ partialPath }, lane) => ({
          header,
          lane,
          directories,
          partialPath,
          compression: compressionOf(wanted.codec, wanted.compressionLevel),
          key: this.#master?.newSetKey(),
        })),
      );
      const assembly = new SetAssembly({
        header,
        lanes,
        files,
        publish: (name) =>
          this.#locked('exclusive', async () => this.#catalogue(new Map([[header.id, await name()]]))),
      });
      return { assembly, lanes };
    });
  }

  async #newHeader(wanted: NewSet, lanes: number): Promise<SetHeader> {
    const { volumeId, volumeName, level, base, point, sizeBytes, trackSizeBytes, codec } = wanted;
    const sets = await this.#listUnderLock();
    return {
      volumeId,
      volumeName,
      level,
      base,
      point,
      sizeBytes,
      trackSizeBytes,
      codec,
      id: makeUlid(this.#clock.now()),
      previous: wanted.previous === undefined ? previousPoint(sets, volumeId, base) : wanted.previous,
      createdMs: wanted.createdMs ?? this.#clock.now(),
      lanes,
    };
  }

  /** Directories of other disks get one of their own for this store, so that what a crash leaves there is known as its. */
  async #laneFiles(id: string, { count, directories }: LaneWish): Promise<LaneFile[]> {
    const sets = join(this.path, 'sets');
    const places = ['', ...directories.map((directory) => join(directory, this.id))];
    for (const directory of places.slice(1)) {
      await mkdir(directory, { recursive: true });
      await syncDirectory('set-directory', dirname(directory));
      await removeOrphans(directory, (other) => listSetFiles(sets).some((file) => file.id === other));
    }
    return Array.from({ length: count }, (_, lane) => {
      const directory = present(places[lane % places.length], 'The store itself is a place');
      const path = join(directory === '' ? sets : directory, laneFileName(id, lane));
      return { partialPath: `${path}.partial`, path, directory };
    });
  }

  /**
   * Begins to take a set over, record by record, as it is. `enterComplete` makes the catalog know it when it is sealed.
   *
   * @throws {StoreError} `read-only`.
   */
  takeSet(id: string): RawSetWriter {
    this.#assertWritable();
    return new RawSetWriter(join(this.path, 'sets'), id, this.#master);
  }

  /** Enters sets into the catalog that have become complete without it, and puts in order what a crash left. */
  async enterComplete(): Promise<void> {
    await this.#locked('exclusive', () => this.#putInOrder());
  }

  /** A copy of what opens the store for whoever has a key; undefined where it is not encrypted. */
  keysCopy(): Buffer | undefined {
    return this.#master === undefined ? undefined : readFileSync(join(this.path, KEYS_NAME));
  }

  // ---- reading ----------------------------------------------------------------------------------------

  /** All sets, oldest id first; those that are missing or visibly damaged say so. */
  async list(): Promise<StoredSet[]> {
    return await this.#locked('shared', () => this.#listUnderLock());
  }

  async #listUnderLock(): Promise<StoredSet[]> {
    const known =
      (await readCatalog(this.#catalogPath, this.#master?.catalog)) ?? new Map<string, CatalogEntry>();
    const removed = new Set(listRemoved(join(this.path, 'sets')));
    const sets: StoredSet[] = [];
    for (const [id, entry] of known) {
      if (removed.has(id)) continue;
      const path = this.#setPath(id);
      sets.push(storedSet(path, entry));
    }
    for (const id of this.#completeSets()) {
      if (known.has(id)) continue;
      const path = this.#setPath(id);
      const read = await readEntry(path, this.#master);
      sets.push('header' in read ? storedSet(path, read) : unreadableSet(id, path, read.damage));
    }
    return this.#annotated(sets.sort((a, b) => (a.id < b.id ? -1 : 1)));
  }

  /** With what the store knows of the sets beside them. A damaged record is seen where it counts: by `remove`. */
  #annotated(sets: readonly StoredSet[]): StoredSet[] {
    const ancestry = this.ancestry();
    const protections = orElse(() => readProtections(this.#protectedPath), new Map());
    return sets.map((set) => {
      const protection = protectionOf(protections, set.id, this.#clock.now());
      const follows = set.header === undefined ? [] : followedBy(set.header, ancestry);
      return { ...set, follows, ...(protection === undefined ? {} : { protection }) };
    });
  }

  /**
   * The set that a selector names: a set id or unique prefix, `latest`, `latest:<volume id or name>`.
   *
   * @throws {StoreError} `unknown-set` or `ambiguous-set`, with the candidates in `details`.
   */
  async find(selector: string): Promise<StoredSet> {
    return selectSet(await this.list(), selector);
  }

  /**
   * The volume's points that a set can build on, newest first by lineage: each has an undamaged set whose
   * chain is complete. Damage that only reading shows is found by `chain`.
   */
  async newestPoints(volumeId: string): Promise<StoredPoint[]> {
    const sets = await this.list();
    return pointsOf(sets, volumeId).filter(({ sets: holding }) =>
      holding.some((set) => isComplete(sets, set.id)),
    );
  }

  /** The points of `newestPoints` by themselves. */
  async basePoints(volumeId: string): Promise<string[]> {
    return (await this.newestPoints(volumeId)).map(({ point }) => point);
  }

  /** The best set with this point: one whose chain is complete, full sets first; undefined where there is none. */
  async setWithPoint(volumeId: string, point: string): Promise<StoredSet | undefined> {
    const sets = await this.list();
    const found = pointsOf(sets, volumeId).find((entry) => entry.point === point);
    return found?.sets.find((set) => isComplete(sets, set.id));
  }

  /**
   * Opens one set by itself; the caller closes it.
   *
   * @throws {CorruptionError} where it is damaged.
   */
  openSet(set: StoredSet): SetReader {
    if (set.damage !== undefined && !existsSync(set.path)) {
      throw new CorruptionError(`Block set ${set.id} is damaged: ${set.damage}`, { where: set.path });
    }
    return SetReader.open(set.path, {
      master: this.#master,
      ...(set.seal === undefined ? {} : { seal: set.seal }),
    });
  }

  /**
   * The volume at a set's point; the caller closes it.
   *
   * @param setId a whole id, as `find` gives it.
   * @throws {StoreError} `unknown-set`, `missing-base` naming the point, or `wrong-volume`.
   * @throws {CorruptionError} where a set of the chain is damaged.
   */
  async chain(setId: string): Promise<ChainView> {
    for (let attempt = 1; ; attempt += 1) {
      const readers: SetReader[] = [];
      try {
        for (const set of chainOf(await this.list(), setId)) readers.push(this.openSet(set));
        return new ChainView(readers);
      } catch (error) {
        for (const reader of readers) await reader.close();
        // A merge may have put another set in the place of one, between the list and the lease.
        const isGone = error instanceof StoreError && error.code === 'removed';
        if (!isGone || attempt === CHAIN_ATTEMPTS) throw error;
      }
    }
  }

  /**
   * The volume at a set's point as far as it can be read, whatever is damaged or missing of its chain; the caller closes
   * it. Its `lost` tells what cannot be read, its `findings` why; more may show when it is read.
   *
   * @param setId a whole id, as `find` gives it.
   * @throws {StoreError} `unknown-set`.
   * @throws {CorruptionError} where nothing of the set itself can be read.
   */
  async salvage(setId: string): Promise<ChainView> {
    const master = this.#master;
    return await salvageChain(await this.list(), setId, (set) => SalvagedSet.open(set, { master }));
  }

  // ---- looking after ----------------------------------------------------------------------------------

  /**
   * Removes what may be removed of the given sets, durably: what is protected, leased, or needed by a set that stays,
   * stays too, and the result says so.
   *
   * @throws {StoreError} `read-only`, `locked`, `no-space` or `io`.
   * @throws {CorruptionError} where the record of protected sets is damaged: nothing is removed then.
   */
  async remove(ids: readonly string[], options: RemovalOptions = {}): Promise<RemovalResult> {
    return await this.#changing(async () => {
      const { wish, refused } = withObjections(await this.#listUnderLock(), ids, options);
      if (wish.ids.length > 1) await writeStateFile(this.#removingPath, { cowbellRemoving: 0, ...wish });
      const result = await this.#removeUnderLock(wish);
      return { removed: result.removed, refused: [...refused, ...result.refused] };
    });
  }

  async #removeUnderLock(wish: RemovalWish): Promise<RemovalResult> {
    const protections = readProtections(this.#protectedPath);
    const sets = await this.#listUnderLock();
    const result = await removeSets({
      sets,
      wish,
      prepare: (going) => this.#writeAncestry(sets, going),
      forget: (gone) => this.#forget(gone),
      unlink: (path) => unlinkRemoved(path, this.id, this.#master),
    });
    const gone = result.removed.filter(({ id }) => protections.delete(id));
    if (gone.length > 0) await writeStateFile(this.#protectedPath, encodeProtections(protections));
    await dropStateFile(this.#removingPath);
    return result;
  }

  /** Ids of the sets that somebody reads now; by the time of the answer that may have changed. */
  async leasedSets(): Promise<Set<string>> {
    return await this.#locked('shared', async () => {
      const sets = await this.#listUnderLock();
      return new Set(sets.filter(({ path }) => isLeased(path)).map(({ id }) => id));
    });
  }

  /** What points that the store no longer holds came after. */
  ancestry(): Ancestry {
    return orElse(() => readAncestry(this.#ancestryPath), new Map());
  }

  /**
   * Learns from another store what comes after what, for its own sets and for those it is about to get.
   *
   * @param arriving sets of the other store.
   */
  async learnLineage(other: Store, arriving: readonly StoredSet[]): Promise<void> {
    const theirs = await other.list();
    await this.#changing(async () => {
      const own = await this.#listUnderLock();
      const known = new Map([...other.ancestry(), ...this.ancestry()]);
      const ancestry = ancestryWithout([...theirs, ...own], new Set([...own, ...arriving]), known);
      if (ancestry.size > 0) await writeStateFile(this.#ancestryPath, encodeAncestry(ancestry));
    });
  }

  /**
   * Says whether sets of another store can be copied here as they are.
   *
   * @throws {StoreError} `wrong-key` where only one of the stores is encrypted.
   */
  assertCanTakeFrom(source: Store): void {
    if ((source.#master === undefined) === (this.#master === undefined)) return;
    const message = `Sets of store ${source.path} cannot be copied to ${this.path}: only one of them is encrypted`;
    throw new StoreError('wrong-key', message, { path: this.path });
  }

  /**
   * Makes a file that was copied from another encrypted store open with this one's key: its own key, which the seal
   * leaves out, is wrapped anew. Nothing else of it changes.
   */
  async takeOverKey(source: Store, path: string): Promise<void> {
    const theirs = source.#master;
    const own = this.#master;
    if (theirs === undefined || own === undefined) return;
    const file = openLmdb(path, { bulk: true, ownLock: true });
    try {
      const header = file.database(DATABASES.header);
      const record = present(header.get(KEY_KEY), 'A file of an encrypted store has a key');
      const wrapped = own.wrapSetKey(theirs.openSetKey(record, path).secret);
      file.transaction(() => header.put(KEY_KEY, Buffer.from(wrapped.record)));
    } finally {
      await file.close();
    }
  }

  /** Opens a set that is not of the store yet, with the store's key; the caller closes it. */
  openCopied(path: string, seal: string): SetReader {
    return SetReader.open(path, { seal, lease: false, master: this.#master });
  }

  /**
   * Takes in a set whose files lie, durable and verified, in a directory of this store's (copy-sets.ts). Afterwards it
   * is complete and visible.
   *
   * @throws {StoreError} `no-space`, `io`, `locked` or `read-only`.
   */
  async adopt(id: string, directory: string): Promise<void> {
    await this.#changing(async () => {
      const read = await readEntry(join(directory, laneFileName(id, 0)), this.#master);
      if (!('header' in read)) throw new CorruptionError(read.damage, { where: directory });
      const files = read.lanes.map((_, lane) => ({
        partialPath: join(directory, laneFileName(id, lane)),
        path: join(this.path, 'sets', laneFileName(id, lane)),
      }));
      await renameLanes(files);
      await this.#catalogue(new Map([[id, read]]));
    });
  }

  async #writeAncestry(sets: readonly StoredSet[], going: ReadonlySet<StoredSet>): Promise<void> {
    const known = this.ancestry();
    const remaining = new Set(sets.filter((set) => !going.has(set)));
    const ancestry = ancestryWithout(sets, remaining, known);
    if (ancestry.size === 0 && known.size === 0) return;
    await writeStateFile(this.#ancestryPath, encodeAncestry(ancestry));
  }

  /**
   * Forbids the removal of a set until a time, or for ever (null); undefined allows it again. Durable when it returns.
   * What was said before of the set no longer counts.
   *
   * @param setId a whole id, as `find` gives it.
   */
  async protect(setId: string, protection: Protection | undefined): Promise<void> {
    await this.#changing(async () => {
      const protections = readProtections(this.#protectedPath);
      if (protection === undefined) protections.delete(setId);
      else protections.set(setId, protection);
      await writeStateFile(this.#protectedPath, encodeProtections(protections));
    });
  }

  /** Makes the catalog anew from the sets; what it knew of sets whose files are missing is forgotten. */
  async rebuildCatalog(): Promise<void> {
    await this.#changing(async () => {
      dropCatalog(this.#catalogPath);
      await this.#putInOrder();
    });
  }

  /** Under the exclusive lock, in a store that is open for writing. */
  #changing<T>(body: () => Promise<T>): Promise<T> {
    this.#assertWritable();
    return this.#locked('exclusive', body);
  }

  #assertWritable(): void {
    if (!this.#readOnly) return;
    throw new StoreError('read-only', `Store ${this.path} is open for reading only`, { path: this.path });
  }
}

/** What `read` gives, or, where what it reads is damaged, the other. */
function orElse<T>(read: () => T, other: T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof CorruptionError) return other;
    throw error;
  }
}

function isComplete(sets: readonly StoredSet[], id: string): boolean {
  try {
    chainOf(sets, id);
    return true;
  } catch (error) {
    if (error instanceof StoreError || error instanceof CorruptionError) return false;
    throw error;
  }
}
