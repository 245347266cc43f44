/**
 * What a volume keeps beside its bytes, in one small LMDB file (FORMAT.md): identity, points, the closed
 * epochs' changed tracks, consumers, the clean mark and the poisoned state.
 *
 * Every change here is durable when its promise resolves, and each is one transaction, so that a crash leaves
 * the state before or after and nothing between. The tracks of the open epoch are saved at an opening and at a clean
 * stop; what was written between the two is told by the intent log.
 */

import { CorruptionError, randomId } from '../base/index.ts';
import { type LmdbDatabaseView, type LmdbFile, openLmdb } from '../records/index.ts';
import { TrackBits, type TrackRun, TrackSet } from '../tracks/index.ts';
import type { DeltasRecord, DeltasUse } from './delta-places.ts';
import { type ClosedEpoch, EpochHistory, type Fold, type FoldedPoint } from './epoch-history.ts';
import type { DirectoryIdentity, HomeStamp, HomeStamps } from './file-looks.ts';
import type { FoundSegment } from './intent-log.ts';
import { describeLayout, type HomeLayout } from './layout.ts';
import { MembersState } from './members-state.ts';
import type { RecentRecord } from './recent-use.ts';
import { RecoveryState, type RecoveryStart } from './recovery-state.ts';
import type {
  Consumer,
  PoisonRecord,
  RebuildRecord,
  SnapshotRecord,
  StartPoint,
  StateBeginning,
} from './state-records.ts';

export type {
  Consumer,
  CopiedTarget,
  CopyRecord,
  PoisonRecord,
  RebuildRecord,
  SnapshotRecord,
  StartPoint,
  StateBeginning,
} from './state-records.ts';

export const FORMAT_VERSION = 0;

export interface VolumeRecord {
  readonly formatVersion: number;
  readonly volumeId: string;
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  /** A path, relative to the directory where it lies inside it, or a URI; with a layout, what `describeLayout` says. */
  readonly home: string;
  /** Of a home of several extents or members. */
  readonly layout?: HomeLayout;
  readonly createdMs: number;
  readonly directory: DirectoryIdentity;
  /** What is done when a snapshot has no room; `refuse` where left out. */
  readonly snapshotFull?: 'refuse' | 'drop';
  /** How snapshots keep what is replaced; `copy` where left out. */
  readonly snapshotBy?: 'copy' | 'clone';
  /** Where every change goes a second time; nowhere where left out. */
  readonly deltas?: DeltasRecord;
}

export interface OpenRecord {
  readonly number: number;
  readonly isClean: boolean;
  /** The epoch that `open-tracks` belongs to; `number` where it is missing. */
  readonly tracksEpoch?: number;
  readonly stamp?: HomeStamp;
  /** The machine's run, from start to shutdown, that the volume was opened in; see `bootId`. */
  readonly boot?: string;
  /** Of a home with a layout, in place of the stamp. */
  readonly stamps?: HomeStamps;
}

export interface PointRecord {
  readonly point: string;
  readonly createdMs: number;
  /** Present where the boundary has folded: there is no epoch of its own then. */
  readonly folded?: true;
}

/** Points that a store may have sets of, beside the one that its consumer's record names. */
export interface Claim {
  /** The consumer. */
  readonly name: string;
  readonly points: readonly string[];
}

/** What else is recorded where the need for boundaries changes. */
export interface BoundaryChanges {
  readonly fold: Fold;
  /** All there are. */
  readonly claims: readonly Claim[];
  /** Consumers whose records go. */
  readonly dropped?: readonly string[];
}

/** Tracks that the volume grew by, and the epoch that was open then. */
interface GrownRecord extends TrackRun {
  readonly epoch: number;
}

/** What `load` found, and whether the volume was stopped cleanly. */
export interface LoadedEpochs {
  readonly history: EpochHistory;
  readonly isClean: boolean;
}

export class VolumeState {
  readonly #file: LmdbFile;
  readonly #state: LmdbDatabaseView;
  readonly #points: LmdbDatabaseView;
  readonly #epochs: LmdbDatabaseView;
  readonly #consumers: LmdbDatabaseView;
  readonly #snapshots: LmdbDatabaseView;
  /** Of a volume whose home is being filled. */
  readonly recovery: RecoveryState;
  #record: VolumeRecord;
  /** Of a home that has a layout: goes with every commit. */
  readonly members: MembersState;
  #laidOut: Pick<VolumeRecord, 'home' | 'layout'> | undefined;

  private constructor(file: LmdbFile, record: VolumeRecord) {
    this.#file = file;
    this.#state = file.database('state');
    this.#points = file.database('points');
    this.#epochs = file.database('epochs');
    this.#consumers = file.database('consumers');
    this.#snapshots = file.database('snapshots');
    this.recovery = new RecoveryState(file);
    this.members = new MembersState(file);
    this.#record = record;
  }

  get record(): VolumeRecord {
    return this.#laidOut === undefined ? this.#record : { ...this.#record, ...this.#laidOut };
  }

  /** Records what is known of the home's members, and nothing else. */
  saveMembers(): Promise<void> {
    return this.#commit(() => undefined);
  }

  /**
   * Makes the file; the directory is synced by the caller.
   *
   * @param beginning what else is known of it.
   */
  static async create(
    path: string,
    fields: Omit<VolumeRecord, 'formatVersion'>,
    { start, recovery, rebuild, deltasUse }: StateBeginning = {},
  ): Promise<void> {
    const record: VolumeRecord = { formatVersion: FORMAT_VERSION, ...fields };
    const file = openLmdb(path, { create: true, ownLock: true });
    const state = new VolumeState(file, record);
    try {
      const stamp = start?.stamp;
      const number = start === undefined ? 1 : 2;
      const open: OpenRecord = { number, isClean: true, ...(stamp === undefined ? {} : { stamp }) };
      file.transaction(() => {
        state.#put('volume', record);
        if (start !== undefined) state.#putStart(start);
        if (recovery !== undefined) state.recovery.put(recovery);
        if (rebuild !== undefined) state.#put('rebuild', rebuild);
        if (deltasUse !== undefined) state.#put('deltas', deltasUse);
        state.#put('open', open);
        state.#state.put('open-tracks', TrackSet.empty().serialize());
      });
      await file.sync('volume-state');
    } finally {
      await file.close();
    }
  }

  /**
   * Opens the file.
   *
   * @param options.readOnly leaves the file alone: for a look without owning the volume.
   * @throws {CorruptionError} where the file or a record in it is damaged or of a later version.
   */
  static open(path: string, options: { readonly readOnly: boolean }): VolumeState {
    const file = openLmdb(path, options.readOnly ? { readOnly: true } : { ownLock: true });
    const bytes = file.database('state').get('volume');
    if (bytes === undefined)
      throw new CorruptionError(`Volume record is missing in ${path}`, { where: path });
    const record: VolumeRecord = JSON.parse(bytes.toString());
    if (record.formatVersion !== FORMAT_VERSION) {
      throw new CorruptionError(
        `Volume state ${path} has format version ${record.formatVersion}, wanted ${FORMAT_VERSION}`,
        { where: path },
      );
    }
    return new VolumeState(file, record);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  /**
   * The epochs as they were left. After an unclean stop what the intent log tells is added to them, by whole
   * regions; without it, every track is in the open one.
   *
   * @param segments of the intent log; looked at after an unclean stop only.
   */
  load(trackCount: number, segments: readonly FoundSegment[]): LoadedEpochs {
    const { path } = this.#file;
    const open = this.#open;
    if (open === undefined)
      throw new CorruptionError(`Record of the open epoch is missing in ${path}`, { where: path });
    const { closed, aliases } = this.#loadPoints(trackCount);
    const bytes = this.#state.get('open-tracks');
    const saved =
      bytes === undefined
        ? TrackSet.all(trackCount)
        : TrackSet.deserialize(bytes, `${path} open epoch`, trackCount);
    // Numbers of segments are not used again: an old one must not be taken for a new epoch's.
    const openNumber = Math.max(open.number, ...segments.map(({ epoch }) => epoch + 1));
    const openTracks = open.isClean ? saved : TrackSet.empty();
    if (!open.isClean) {
      const all = TrackSet.all(trackCount);
      const isLogged = segments.some(({ epoch }) => epoch === open.number);
      // The segment of an epoch that the state names was complete when it came to be named.
      const told = segments.map(({ epoch, tracks, isBegun }) =>
        isBegun || epoch > open.number ? { epoch, tracks } : { epoch, tracks: all },
      );
      const loose = [{ epoch: open.tracksEpoch ?? open.number, tracks: saved }, ...told];
      if (!isLogged) loose.push({ epoch: open.number, tracks: all });
      for (const { epoch, first, count } of this.#grown)
        loose.push({ epoch, tracks: TrackSet.ofRun({ first, count }) });
      for (const { epoch, tracks } of loose) addLoose(tracks, epoch, closed, openTracks);
    }
    const openBits = TrackBits.from(openTracks, trackCount);
    const history = new EpochHistory({ trackCount, openNumber, open: openBits, closed, aliases });
    return { history, isClean: open.isClean };
  }

  #loadPoints(trackCount: number): { readonly closed: ClosedEpoch[]; readonly aliases: FoldedPoint[] } {
    const { path } = this.#file;
    const closed: ClosedEpoch[] = [];
    const aliases: FoldedPoint[] = [];
    for (const { key, value } of this.#points.range()) {
      const { point, createdMs, folded }: PointRecord = JSON.parse(value.toString());
      const number = key.readUInt32BE(0);
      if (folded === true) {
        aliases.push({ number, point });
        continue;
      }
      const bytes = this.#epochs.get(key);
      if (bytes === undefined)
        throw new CorruptionError(`Epoch ${number} is missing in ${path}`, { where: path });
      const tracks = TrackSet.deserialize(bytes, `${path} epoch ${number}`, trackCount);
      closed.push({ number, point, createdMs, tracks });
    }
    return { closed, aliases };
  }

  get stamp(): HomeStamp | undefined {
    return this.#open?.stamp;
  }

  get stamps(): HomeStamps | undefined {
    return this.#open?.stamps;
  }

  /**
   * Clears the clean mark and records what counts as changed at this opening. The segment of the open epoch is there
   * by then; segments of older epochs are needed no more.
   */
  async saveOpened({ history, isClean }: LoadedEpochs, boot?: string): Promise<void> {
    const tracks = history.openTracks().serialize();
    const closed = isClean ? [] : history.closed;
    await this.#commit(() => {
      this.#putOpen(history.openNumber, tracks, boot);
      this.#state.remove('grown');
      for (const epoch of closed) this.#epochs.put(keyOf(epoch.number), epoch.tracks.serialize());
    });
  }

  /** Every track counts as changed from now on, and the volume is poisoned no more. */
  async saveChecked(history: EpochHistory): Promise<void> {
    const tracks = history.openTracks().serialize();
    await this.#commit(() => {
      this.#putOpen(history.openNumber, tracks);
      this.#state.remove('poison');
      this.#state.remove('suspect');
    });
  }

  #putOpen(number: number, tracks: Buffer, boot?: string): void {
    const open: OpenRecord = {
      number,
      isClean: false,
      tracksEpoch: number,
      ...(boot === undefined ? {} : { boot }),
    };
    this.#put('open', open);
    this.#state.put('open-tracks', tracks);
  }

  /**
   * Records a point with the epoch it closed; boundaries fold in the same transaction, perhaps into this one.
   * Points may be recorded in any order: that of a session which failed early may come after the next one's.
   */
  async savePoint(closed: ClosedEpoch, changes: BoundaryChanges): Promise<void> {
    const record: PointRecord = { point: closed.point, createdMs: closed.createdMs };
    const before = this.#open;
    const number = Math.max(closed.number + 1, before?.number ?? 0);
    const tracksEpoch = before?.tracksEpoch ?? before?.number ?? number;
    const open: OpenRecord = {
      number,
      isClean: false,
      tracksEpoch,
      ...(before?.boot === undefined ? {} : { boot: before.boot }),
    };
    const tracks = closed.tracks.serialize();
    await this.#commit(() => {
      // They are part of what the epoch closed with.
      if (tracksEpoch === closed.number) this.#state.put('open-tracks', TrackSet.empty().serialize());
      this.#points.put(keyOf(closed.number), json(record));
      this.#epochs.put(keyOf(closed.number), tracks);
      this.#put('open', open);
      this.#putBoundaries(changes);
    });
  }

  /**
   * In one transaction the tracks of a folded epoch are in the younger one, and its own record goes. A boundary may be
   * here that folded for a transaction which failed: it misses nothing, since tracks only go to younger epochs, and all
   * that is older than the oldest boundary goes, whether it is known to be here or not.
   */
  #putBoundaries({ fold, claims }: BoundaryChanges): void {
    for (const { number, tracks } of fold.grown) this.#epochs.put(keyOf(number), tracks.serialize());
    for (const { number, point, createdMs } of fold.folded) {
      const record: PointRecord = { point, createdMs, folded: true };
      this.#points.put(keyOf(number), json(record));
      this.#epochs.remove(keyOf(number));
    }
    for (const key of fold.forgotten.map(keyOf))
      if (this.#epochs.get(key) === undefined) this.#points.remove(key);
    for (const table of [this.#points, this.#epochs]) {
      const older = Array.from(table.range({ end: keyOf(fold.oldest) }), ({ key }) => key);
      for (const key of older) table.remove(key);
    }
    this.#put('claims', claims);
  }

  claims(): Claim[] {
    const bytes = this.#state.get('claims');
    return bytes === undefined ? [] : JSON.parse(bytes.toString());
  }

  async saveClaims(claims: readonly Claim[]): Promise<void> {
    await this.#commit(() => this.#put('claims', claims));
  }

  /** The clean mark: the open epoch exactly, and how the home looks. The home was flushed before. */
  async saveClean(
    history: EpochHistory,
    look: { readonly stamp?: HomeStamp; readonly stamps?: HomeStamps },
  ): Promise<void> {
    const open: OpenRecord = { number: history.openNumber, isClean: true, ...look };
    const tracks = history.openTracks().serialize();
    await this.#commit(() => {
      this.#put('open', open);
      this.#state.put('open-tracks', tracks);
      this.#state.remove('grown');
    });
  }

  /** A recovery of part of the home begins, and its tracks count as changed: in one commit. */
  async saveLost(start: RecoveryStart, lost: TrackSet): Promise<void> {
    const open = this.#open;
    const bytes = this.#state.get('open-tracks');
    const isKnown = open?.isClean === true && bytes !== undefined;
    const tracks = isKnown ? TrackSet.union([TrackSet.deserialize(bytes, this.#file.path), lost]) : lost;
    const epoch = open?.number ?? 0;
    await this.#commit(() => {
      this.recovery.put(start);
      if (isKnown) this.#state.put('open-tracks', tracks.serialize());
      // After an unclean stop this is what the next opening adds to what it finds in the intent log.
      else this.#put('grown', [...this.#grown, ...Array.from(lost.runs(), (run) => ({ epoch, ...run }))]);
    });
  }

  /**
   * Records another size, and which tracks count as changed by it, whatever happens before the epoch's own record. Where
   * this fails and `record` has the new size, it is not known which of the two a later opening will find.
   *
   * @param epoch the open one's number.
   * @param grown from the first track that the new size changes to the new end.
   */
  async saveSize(sizeBytes: number, epoch: number, grown: TrackRun): Promise<void> {
    const record: VolumeRecord = { ...this.#record, sizeBytes };
    const before = this.#grown;
    const last = before.at(-1);
    // Growing again in one epoch goes on where the last time ended.
    const first = last?.epoch === epoch ? Math.min(last.first, grown.first) : grown.first;
    const next: GrownRecord = { epoch, first, count: grown.first + grown.count - first };
    const records = [...(last?.epoch === epoch ? before.slice(0, -1) : before), next];
    this.#file.transaction(() => {
      this.#putVolume(record);
      this.#put('grown', records);
    });
    this.#record = record;
    await this.#file.sync('volume-state');
  }

  consumers(): Consumer[] {
    return [...this.#consumers.range()].map(({ value }): Consumer => JSON.parse(value.toString()));
  }

  /** Moves a consumer's point; only after its set is sealed and catalogued (promise 4). */
  async saveConsumer(consumer: Consumer, changes: BoundaryChanges): Promise<void> {
    await this.#commit(() => {
      this.#consumers.put(consumer.name, json(consumer));
      for (const name of changes.dropped ?? []) this.#consumers.remove(name);
      this.#putBoundaries(changes);
    });
  }

  /** Records of consumers go, and one changes whose point stays where it is. Boundaries stay as they are. */
  async replaceConsumers(dropped: readonly string[], changed: Consumer | undefined): Promise<void> {
    await this.#commit(() => {
      for (const name of dropped) this.#consumers.remove(name);
      if (changed !== undefined) this.#consumers.put(changed.name, json(changed));
    });
  }

  /** Oldest first. */
  snapshots(): SnapshotRecord[] {
    return [...this.#snapshots.range()].map(({ value }): SnapshotRecord => JSON.parse(value.toString()));
  }

  async saveSnapshot(record: SnapshotRecord): Promise<void> {
    await this.#commit(() => this.#snapshots.put(keyOf(record.number), json(record)));
  }

  async removeSnapshot(number: number): Promise<void> {
    await this.#commit(() => {
      this.#snapshots.remove(keyOf(number));
    });
  }

  /** The number of the snapshot that the volume is being rolled back to. */
  get rollback(): number | undefined {
    return this.#state.get('rollback')?.readUInt32BE(0);
  }

  /** Durable before the first write of a rollback, and taken back after its last one is. */
  async saveRollback(number: number | undefined): Promise<void> {
    await this.#commit(() => {
      if (number === undefined) this.#state.remove('rollback');
      else this.#state.put('rollback', keyOf(number));
    });
  }

  /** What was used of late, as far as that was kept. */
  get recent(): RecentRecord | undefined {
    try {
      const bytes = this.#state.get('recent');
      return bytes === undefined ? undefined : JSON.parse(bytes.toString());
    } catch (error) {
      // Advice is no reason to refuse a volume; a check mends it.
      if (error instanceof CorruptionError) return undefined;
      throw error;
    }
  }

  async saveRecent(recent: RecentRecord): Promise<void> {
    await this.#commit(() => this.#put('recent', recent));
  }

  /** How far the delta store is; undefined where it has not begun. */
  get deltasUse(): DeltasUse | undefined {
    const bytes = this.#state.get('deltas');
    return bytes === undefined ? undefined : JSON.parse(bytes.toString());
  }

  /** Other members of the delta store, or none. @param use undefined for one that begins anew. */
  async saveDeltas(deltas: DeltasRecord | undefined, use: DeltasUse | undefined): Promise<void> {
    const { deltas: _deltas, ...rest } = this.#record;
    await this.#commit(
      () => {
        if (use === undefined) this.#state.remove('deltas');
        else this.#put('deltas', use);
      },
      deltas === undefined ? rest : { ...rest, deltas },
    );
  }

  async saveDeltasUse(use: DeltasUse): Promise<void> {
    await this.#commit(() => this.#put('deltas', use));
  }

  /** The volume has another home from now on, which is being filled. */
  async saveTakenOver(home: string, recovery: RecoveryStart): Promise<void> {
    this.#forgetLayout();
    await this.#commit(() => this.recovery.put(recovery), { ...this.#withoutLayout, home });
  }

  /** Undefined where none is unfinished. */
  get rebuild(): RebuildRecord | undefined {
    const bytes = this.#state.get('rebuild');
    return bytes === undefined ? undefined : JSON.parse(bytes.toString());
  }

  /** Durable before the first write of a rebuild. */
  async saveRebuild(rebuild: RebuildRecord): Promise<void> {
    await this.#commit(() => this.#put('rebuild', rebuild));
  }

  /**
   * The volume has a home that holds all of it, durably, and looks like this: as after a clean stop. What its last owner
   * left unrecorded is in `loaded`.
   *
   * @param home where that is another one than before.
   */
  async saveRebuilt(
    home: string | undefined,
    { history }: LoadedEpochs,
    stamp: HomeStamp | undefined,
  ): Promise<void> {
    if (home !== undefined) this.#forgetLayout();
    const record: VolumeRecord = home === undefined ? this.#record : { ...this.#withoutLayout, home };
    const tracks = history.openTracks().serialize();
    const number = history.openNumber;
    const open: OpenRecord = { number, isClean: true, ...(stamp === undefined ? {} : { stamp }) };
    await this.#commit(() => {
      this.#put('open', open);
      this.#state.put('open-tracks', tracks);
      for (const epoch of history.closed) this.#epochs.put(keyOf(epoch.number), epoch.tracks.serialize());
      for (const key of ['rebuild', 'poison', 'suspect', 'grown']) this.#state.remove(key);
    }, record);
  }

  /** Whatever the home consisted of, it is one device now. */
  #forgetLayout(): void {
    this.members.stop();
    this.#laidOut = undefined;
  }

  get #withoutLayout(): VolumeRecord {
    const { layout: _, ...rest } = this.#record;
    return rest;
  }

  get boot(): string | undefined {
    return this.#open?.boot;
  }

  get poison(): PoisonRecord | undefined {
    const bytes = this.#state.get('poison');
    return bytes === undefined ? undefined : JSON.parse(bytes.toString());
  }

  /** The tracks that count as suspect; all where nobody has recorded which. */
  suspects(trackCount: number): TrackSet {
    if (this.poison === undefined) return TrackSet.empty();
    const bytes = this.#state.get('suspect');
    if (bytes === undefined) return TrackSet.all(trackCount);
    return TrackSet.deserialize(bytes, `${this.#file.path} suspect tracks`, trackCount);
  }

  async savePoison(poison: PoisonRecord, suspects: TrackSet): Promise<void> {
    const tracks = suspects.serialize();
    await this.#commit(() => {
      this.#put('poison', poison);
      this.#state.put('suspect', tracks);
    });
  }

  /** The volume under a new identity: no point of the old one is known any more. */
  async saveIdentity(volumeId: string, directory: DirectoryIdentity): Promise<void> {
    const isRenamed = volumeId !== this.#record.volumeId;
    const { deltas } = this.#record;
    const record: VolumeRecord = {
      ...this.#record,
      volumeId,
      directory,
      // Its logs are its own from now on, and what it is now they cannot tell.
      ...(deltas === undefined || !isRenamed ? {} : { deltas: { ...deltas, since: randomId() } }),
    };
    await this.#commit(() => {
      if (!isRenamed) return;
      this.#state.remove('claims');
      this.#state.remove('deltas');
      for (const table of [this.#points, this.#epochs, this.#consumers]) {
        for (const key of Array.from(table.range(), (entry) => entry.key)) table.remove(key);
      }
    }, record);
  }

  get #grown(): readonly GrownRecord[] {
    const bytes = this.#state.get('grown');
    return bytes === undefined ? [] : JSON.parse(bytes.toString());
  }

  get #open(): OpenRecord | undefined {
    const bytes = this.#state.get('open');
    return bytes === undefined ? undefined : JSON.parse(bytes.toString());
  }

  #putStart({ point, createdMs }: StartPoint): void {
    const record: PointRecord = { point, createdMs };
    this.#points.put(keyOf(1), json(record));
    this.#epochs.put(keyOf(1), TrackSet.empty().serialize());
  }

  #put(key: string, value: object): void {
    this.#state.put(key, json(value));
  }

  /** Whatever changes in the record: the layout in it is the present one. */
  #putVolume(record: VolumeRecord): void {
    this.#put('volume', { ...record, ...this.#laidOut });
  }

  async #commit(body: () => void, changed?: VolumeRecord): Promise<void> {
    this.members.commit(
      () => {
        if (changed !== undefined) this.#putVolume(changed);
        body();
      },
      (layout) => {
        this.#laidOut = { home: describeLayout(layout), layout };
        this.#putVolume(changed ?? this.#record);
      },
    );
    try {
      await this.#file.sync('volume-state');
    } catch (error) {
      this.members.forget();
      throw error;
    }
    if (changed !== undefined) this.#record = changed;
  }
}

/**
 * Adds tracks to the first recorded point's epoch at or after theirs, else to the open epoch. Where the point of their
 * epoch was recorded, that has them exactly.
 */
function addLoose(tracks: TrackSet, epoch: number, closed: ClosedEpoch[], open: TrackSet): void {
  const place = closed.findIndex(({ number }) => number >= epoch);
  const target = closed[place];
  if (target === undefined) open.addAll(tracks);
  else if (target.number !== epoch)
    closed[place] = { ...target, tracks: TrackSet.union([target.tracks, tracks]) };
}

function keyOf(number: number): Buffer {
  const key = Buffer.alloc(4);
  key.writeUInt32BE(number);
  return key;
}

function json(value: object): Buffer {
  return Buffer.from(JSON.stringify(value));
}
