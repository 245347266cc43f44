/**
 * The snapshots of a volume, oldest to newest, and copy-before-write for them.
 *
 *     oldest ........ newest      home
 *     [store] [store] [store]     [current content]
 *
 * Before the first write that replaces a track since the newest snapshot, its old content goes into the newest one's
 * store, durably. That one copy serves all snapshots: what a snapshot holds of a track is in the first store that has
 * it, from its own to the newest; where none has it, nothing has replaced it and it is in the home. So a snapshot that
 * is deleted leaves what it alone holds to the next older one, and the oldest can simply go.
 *
 * A snapshot's record is durable, as `creating`, before the first copy may go into its store instead of the older
 * one's: after a crash before it was finished, the older ones find there what they need. A record `deleting` stays
 * until the older neighbour has everything. Both are dissolved when the volume is opened again.
 *
 * Readers need no lock: they read the home, then look whether a store has got the track meanwhile.
 */

import {
  allFinished,
  CorruptionError,
  LIMITS,
  messageOf,
  randomId,
  Slots,
  systemCode,
} from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TrackBits, type TrackRun } from '../tracks/index.ts';
import { CopyBuffers } from './copy-buffers.ts';
import type { VolumeIdentity } from './directory.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import type { Geometry } from './geometry.ts';
import type { SnapshotClone } from './snapshot-clone.ts';
import { assertSnapshotName, gone, unknown } from './snapshot-errors.ts';
import { SnapshotFolder } from './snapshot-folder.ts';
import type { SnapshotInfo } from './snapshot-info.ts';
import {
  infoOf,
  isLive,
  type Member,
  memberOf,
  type PreparedSnapshot,
  type Snapshot,
} from './snapshot-member.ts';
import { SnapshotStore } from './snapshot-store.ts';
import type { SnapshotRecord, VolumeState } from './state.ts';
import type { Protector } from './write-path.ts';

export interface SnapshotsOptions {
  readonly identity: Pick<VolumeIdentity, 'directory' | 'snapshotFull' | 'snapshotBy'>;
  readonly geometry: Geometry;
  readonly state: VolumeState;
  readonly readOnly: boolean;
  readonly home: Pick<BlockDevice, 'read' | 'share' | 'description'>;
  /** Tell which tracks may have been replaced since a snapshot by clone. */
  readonly epochs: Pick<EpochHistory, 'changedIn'>;
  /** Tracks may be written without a copy. */
  readonly onReleased: (run: TrackRun) => void;
  /** A snapshot was dropped for want of room; somebody must be told. */
  readonly onDropped: (name: string, reason: string) => void;
}

export class Snapshots implements Protector {
  readonly #options: SnapshotsOptions;
  readonly #folder: SnapshotFolder;
  /** In the order of their points. */
  readonly #chain: Member[] = [];
  /** The newest that copies are made for. */
  #newest: Member | undefined;
  /** Tracks that no store from the newest on has: the next write of one needs a copy. */
  #unsaved: TrackBits | undefined;
  readonly #copies = new Map<number, Promise<void>>();
  readonly #buffers: CopyBuffers;
  #dropping: Promise<void> | undefined;
  readonly #deletions = new Set<Promise<void>>();
  /** Deletions and what they leave to be done, one after the other. */
  readonly #turn = new Slots(1);
  #isClosing = false;

  private constructor(options: SnapshotsOptions) {
    this.#options = options;
    const { identity, geometry, readOnly } = options;
    const { trackSizeBytes } = geometry;
    this.#folder = new SnapshotFolder({ volumeDirectory: identity.directory, trackSizeBytes, readOnly });
    this.#buffers = new CopyBuffers(trackSizeBytes, LIMITS.snapshotIdleBufferBytesMax);
  }

  /**
   * Opens the stores of all snapshots. One that cannot be used, and those that depend on it, are recorded as damaged:
   * the volume itself is none the worse.
   *
   * @param homeDamage why the home cannot be trusted to hold what it did; undefined where it can.
   */
  static async open(options: SnapshotsOptions, homeDamage: string | undefined): Promise<Snapshots> {
    const snapshots = new Snapshots(options);
    await snapshots.#load(homeDamage);
    snapshots.#renew();
    return snapshots;
  }

  /** Finishes what a crash interrupted; may take long, and the volume is served meanwhile. */
  async resume(): Promise<void> {
    await this.#turn.run(async () => {
      const left = this.#chain.filter(({ record }) => !isLive(record) && record.state !== 'damaged');
      for (const member of left.toReversed()) await this.#dissolve(member);
    });
  }

  /** Waits for copies and moves under way, and closes the stores. Nothing may be written any more. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.allSettled(this.#copies.values());
    await this.#turn.run(async () => undefined);
    for (const member of this.#chain) await this.#closeStore(member);
  }

  /** Oldest first. Those that are being made or deleted are listed too. */
  list(): SnapshotInfo[] {
    return this.#chain.map((member) => infoOf(member, this.#options.epochs));
  }

  /** Points that must stay boundaries of `changedSince`. */
  points(): string[] {
    return this.#chain.map(({ point }) => point);
  }

  // --- Making one: prepare, fix with the gate closed, finish ---

  /**
   * Makes a snapshot's file and record, durably, so that copies may go there from the freeze on.
   *
   * @throws {VolumeError} `invalid-name`, `snapshot-exists`, `too-many-snapshots`
   */
  async prepare(name: string, createdMs: number): Promise<PreparedSnapshot> {
    this.#assertNew(name);
    const { state, geometry, identity } = this.#options;
    const by = identity.snapshotBy;
    await this.#folder.make();
    const number = Math.max(0, ...state.snapshots().map((record) => record.number)) + 1;
    const record: SnapshotRecord = {
      number,
      name,
      storeId: randomId(),
      point: '',
      createdMs,
      sizeBytes: geometry.sizeBytes,
      state: 'creating',
      ...(by === 'clone' ? { by } : {}),
    };
    const clone = by === 'clone' ? await this.#folder.createClone(record) : undefined;
    const store = clone === undefined ? await this.#folder.create(record) : undefined;
    try {
      await state.saveSnapshot(record);
    } catch (error) {
      // The record may be there all the same. A file that it names must not go before it has gone for sure.
      const file = store ?? clone;
      await state.removeSnapshot(number).then(
        () => file?.remove(),
        () => file?.close(),
      );
      throw error;
    }
    return { record, store, clone, unsaved: TrackBits.all(geometry.trackCount) };
  }

  /**
   * What `fix` needs to be made while nothing is written. Called with the gate closed.
   *
   * @throws {VolumeError} `cannot-clone`; {DeviceError}
   */
  async takeClone({ clone }: PreparedSnapshot): Promise<void> {
    await clone?.take(this.#options.home);
  }

  /** From this instant every track is kept before it is replaced. Called with the gate closed. */
  fix({ record, store, clone, unsaved }: PreparedSnapshot, point: string): void {
    const member = this.#memberOf({ ...record, point }, { store, clone });
    this.#chain.push(member);
    // It has everything already, and older ones go on as before.
    if (clone !== undefined) return;
    this.#newest = member;
    this.#unsaved = unsaved;
  }

  /**
   * The snapshot is durable: its point is recorded, and all that was written before it flushed.
   *
   * @throws {VolumeError} `snapshot-gone` where it was dropped meanwhile.
   */
  async finish({ record, clone }: PreparedSnapshot): Promise<void> {
    await clone?.flush();
    const member = this.#chain.find(({ number }) => number === record.number);
    if (member?.record.state !== 'creating') throw gone(record.name);
    await this.#record(member, { ...member.record, state: 'ready' });
  }

  /** The snapshot will not be: what was made is taken back. */
  async abandon({ record, store, clone }: PreparedSnapshot): Promise<void> {
    const member = this.#chain.find(({ number }) => number === record.number);
    if (member !== undefined) {
      await this.#deleteMember(member);
      return;
    }
    await this.#options.state.removeSnapshot(record.number);
    await (store ?? clone)?.remove();
  }

  // --- On the way of every write ---

  /** The lowest track of the run whose content must be kept before it is replaced. */
  firstProtected(run: TrackRun): number | undefined {
    return this.#unsaved?.firstIn(run);
  }

  /**
   * Keeps a track's content, durably, so that a write may replace it. All writes to the track share one copy.
   *
   * @throws {VolumeError} `snapshot-full`, `snapshot-failed`; what reading the home throws. The write must not be done then.
   */
  save(track: number): Promise<void> {
    const running = this.#copies.get(track);
    if (running !== undefined) return running;
    const copy = this.#buffers.lend((buffer) => this.#copy(buffer, track));
    const ended = copy.finally(() => this.#copies.delete(track));
    this.#copies.set(track, ended);
    return ended;
  }

  /** Begins what the next writes need; a failure shows when they come. */
  saveAhead(run: TrackRun): void {
    const end = run.first + run.count;
    for (let first = run.first; first < end && this.#copies.size < LIMITS.snapshotCopiesAheadMax;) {
      const track = this.firstProtected({ first, count: end - first });
      if (track === undefined) return;
      this.save(track).catch(() => undefined);
      first = track + 1;
    }
  }

  // --- Reading ---

  /** @throws {VolumeError} `unknown-snapshot`, `snapshot-damaged` */
  find(name: string): Snapshot {
    return this.#find(name);
  }

  /**
   * From now on the snapshot is not deleted until the reader has let it go; only a full disk may drop it, and with
   * `isPinned` not even that.
   */
  hold(
    name: string,
    { isPinned = false }: { readonly isPinned?: boolean } = {},
  ): { readonly snapshot: Snapshot; readonly release: () => void } {
    const member = this.#find(name);
    const pins = isPinned ? 1 : 0;
    member.readerCount += 1;
    member.pinCount += pins;
    let isHeld = true;
    const release = (): void => {
      if (!isHeld) return;
      isHeld = false;
      member.readerCount -= 1;
      member.pinCount -= pins;
    };
    return { snapshot: member, release };
  }

  /**
   * Whether the snapshot's content of the track is still the home's: nothing has replaced it.
   *
   * @throws {VolumeError} `snapshot-gone`
   */
  isAtHome(snapshot: Snapshot, track: number): boolean {
    if (this.cloneOf(snapshot) !== undefined)
      return this.#options.epochs.changedIn(snapshot.point, { first: track, count: 1 }).size === 0;
    return this.#holderOf(snapshot, track) === undefined;
  }

  /**
   * The file of a snapshot by clone, which is all of its content.
   *
   * @throws {VolumeError} `snapshot-gone`
   */
  cloneOf(snapshot: Snapshot): SnapshotClone | undefined {
    const member = this.#chain.find((one) => one === snapshot);
    if (member === undefined || !isLive(member.record)) throw gone(snapshot.name);
    return member.clone;
  }

  /**
   * Reads as the volume was at the snapshot's point. The range lies in the volume as it was.
   *
   * @throws {VolumeError} `snapshot-gone`; {CorruptionError} where a store is damaged.
   */
  async read(snapshot: Snapshot, target: Buffer, offsetBytes: number): Promise<void> {
    const { geometry } = this.#options;
    const clone = this.cloneOf(snapshot);
    if (clone !== undefined) {
      await clone.read(target, offsetBytes);
      return;
    }
    const run = geometry.tracksOf(offsetBytes, target.length);
    const parts: Promise<void>[] = [];
    for (let first = run.first; first < run.first + run.count;) {
      const end = this.#endOfPart(snapshot, first, run.first + run.count);
      const from = Math.max(offsetBytes, geometry.offsetOf(first));
      const to = Math.min(offsetBytes + target.length, geometry.offsetOf(end));
      const part = target.subarray(from - offsetBytes, to - offsetBytes);
      const holder = this.#holderOf(snapshot, first);
      parts.push(
        holder === undefined
          ? this.#readHome(snapshot, part, from)
          : holder.read(part, first, from - geometry.offsetOf(first)),
      );
      first = end;
    }
    await Promise.all(parts);
  }

  // --- Deleting ---

  /**
   * Deletes a snapshot: what older ones need of it moves to the next older one. Gone for good, also after a crash, as
   * soon as this has begun; where there is too little room to move, the rest is done at the next attempt or opening.
   *
   * @throws {VolumeError} `unknown-snapshot`, `snapshot-in-use`, `snapshot-full`
   */
  async delete(name: string): Promise<void> {
    const member = this.#chain.findLast((one) => one.name === name && one.record.state !== 'creating');
    if (member === undefined) throw unknown(name);
    const isRollback = member.number === this.#options.state.rollback;
    if (isRollback || member.readerCount > 0) {
      const users = isRollback ? 'a rollback to it, which' : `${member.readerCount} readers, which`;
      throw new VolumeError('snapshot-in-use', `Snapshot ${name} is in use by ${users} must end first`, {
        name,
      });
    }
    await this.#deleteMember(member);
  }

  async #copy(buffer: Buffer, track: number): Promise<void> {
    const { home, onReleased } = this.#options;
    for (;;) {
      const unsaved = this.#unsaved;
      if (this.#newest === undefined || unsaved?.has(track) !== true) return;
      // What lies beyond the snapshot's end is none of its content.
      const { geometry } = this.#newest;
      const content = buffer.subarray(0, geometry.lengthOf({ first: track, count: 1 }));
      await home.read(content, geometry.offsetOf(track));
      // With another set the track may have been written meanwhile: what was read is no copy for it.
      if (this.#unsaved !== unsaved || this.#newest?.store === undefined) continue;
      try {
        await this.#newest.store.save(track, content);
      } catch (error) {
        if (this.#options.identity.snapshotFull === 'refuse' || systemCode(error) !== 'snapshot-full')
          throw error;
        await this.#dropOldest(error);
        continue;
      }
      // A snapshot made or deleted meanwhile has another set: the write will find out.
      unsaved.delete(track);
      if (this.#unsaved === unsaved) onReleased({ first: track, count: 1 });
      return;
    }
  }

  /** Room is made by the loss that hurts least. Callers share one drop. */
  #dropOldest(reason: unknown): Promise<void> {
    this.#dropping ??= this.#drop(reason).finally(() => {
      this.#dropping = undefined;
    });
    return this.#dropping;
  }

  /** @throws the reason where nothing may be dropped. */
  async #drop(reason: unknown): Promise<void> {
    if (this.#deletions.size > 0) {
      // They make room, or are left to be finished.
      await Promise.allSettled(this.#deletions);
      return;
    }
    const oldest = this.#chain.find(({ record }) => record.state !== 'damaged');
    if (oldest === undefined) return;
    if (oldest.record.state === 'deleting') {
      await this.#deleteMember(oldest);
      return;
    }
    // Without it a rollback could never be finished. No other may go in its place: this one needs what they hold.
    if (oldest.pinCount > 0 || oldest.number === this.#options.state.rollback) throw reason;
    await this.#recordDeleting(oldest);
    // Whoever is deleting it may have been faster.
    if (!this.#chain.includes(oldest)) return;
    this.#remove(oldest);
    this.#options.onDropped(oldest.name, messageOf(reason));
    await this.#options.state.removeSnapshot(oldest.number);
    await (oldest.store ?? oldest.clone)?.remove();
  }

  #deleteMember(member: Member): Promise<void> {
    const deletion = this.#deleteAndDissolve(member).finally(() => this.#deletions.delete(deletion));
    this.#deletions.add(deletion);
    return deletion;
  }

  async #deleteAndDissolve(member: Member): Promise<void> {
    if (member.record.state !== 'deleting') {
      await this.#recordDeleting(member);
      this.#renew();
    }
    await this.#turn.run(() => this.#dissolve(member));
  }

  async #recordDeleting(member: Member): Promise<void> {
    const record: SnapshotRecord = { ...member.record, state: 'deleting' };
    member.isLeaving = true;
    try {
      try {
        await this.#record(member, record);
      } catch (error) {
        if (systemCode(error) !== 'no-space' || this.#olderOf(member) !== undefined) throw error;
        // Nobody else needs what it holds, and without that the record has room.
        await member.store?.giveUp();
        await this.#record(member, record);
      }
    } finally {
      member.isLeaving = false;
    }
  }

  /** Leaves to the next older snapshot what it needs, and takes this one away. */
  async #dissolve(member: Member): Promise<void> {
    if (this.#isClosing || !this.#chain.includes(member)) return;
    await member.store?.whenWritten();
    for (let older = this.#olderOf(member); older !== undefined;) {
      const isMoved = await this.#moveAll(member, older);
      if (this.#isClosing) return;
      const next = this.#olderOf(member);
      if (isMoved && next === older) break;
      older = next;
    }
    if (!this.#chain.includes(member)) return;
    this.#remove(member);
    await this.#options.state.removeSnapshot(member.number);
    const file = member.store ?? member.clone;
    if (file === undefined) await this.#folder.remove(member.record);
    else await file.remove();
  }

  /** @returns false where the older one was dropped meanwhile, or the volume is being closed. */
  async #moveAll(from: Member, to: Member): Promise<boolean> {
    if (from.store === undefined || to.store === undefined) return true;
    const batch: number[] = [];
    try {
      for (const track of from.store.tracks()) {
        // The volume may have grown between the two.
        if (track >= to.geometry.trackCount || this.#hasBetween(to, from, track)) continue;
        batch.push(track);
        if (batch.length < LIMITS.snapshotMoveTracksMax) continue;
        await this.#move(batch.splice(0), from.store, to.store, to.geometry);
        if (this.#isClosing) return false;
      }
      await this.#move(batch, from.store, to.store, to.geometry);
      return true;
    } catch (error) {
      if (isLive(to.record)) throw error;
      return false;
    }
  }

  /** Whether the older one needs nothing of the newer one: it has the track, or one that is older than the newer one. */
  #hasBetween(older: Member, newer: Member, track: number): boolean {
    return this.#chain.some(
      ({ number, store }) => number >= older.number && number < newer.number && store?.has(track) === true,
    );
  }

  /** @param geometry of the snapshot that gets them. */
  async #move(
    tracks: readonly number[],
    from: SnapshotStore,
    to: SnapshotStore,
    geometry: Geometry,
  ): Promise<void> {
    const moves = tracks.map(async (track) => {
      const content = Buffer.allocUnsafe(geometry.lengthOf({ first: track, count: 1 }));
      await from.read(content, track, 0);
      await to.save(track, content);
    });
    await allFinished(moves);
  }

  #olderOf(member: Member): Member | undefined {
    return this.#chain.findLast(
      (other) => other.number < member.number && isLive(other.record) && other.store !== undefined,
    );
  }

  /** The member is no more. */
  #remove(member: Member): void {
    this.#chain.splice(this.#chain.indexOf(member), 1);
    this.#renew();
  }

  /** Which snapshot copies are made for, and which tracks it lacks, where that may have changed. */
  #renew(): void {
    const newest = this.#chain.findLast(({ record, store }) => isLive(record) && store !== undefined);
    if (newest === this.#newest) return;
    this.#newest = newest;
    if (newest === undefined) {
      this.#unsaved = undefined;
      this.#options.onReleased({ first: 0, count: this.#options.geometry.trackCount });
      return;
    }
    const unsaved = TrackBits.all(newest.geometry.trackCount);
    for (const { number, store } of this.#chain) {
      if (number < newest.number || store === undefined) continue;
      for (const track of store.tracks()) unsaved.delete(track);
    }
    this.#unsaved = unsaved;
  }

  #find(name: string): Member {
    const member = this.#chain.findLast((one) => one.name === name && one.record.state !== 'deleting');
    if (member === undefined || member.record.state === 'creating' || member.isLeaving) throw unknown(name);
    if (member.record.state === 'damaged') {
      const reason = member.record.reason ?? 'its file cannot be read';
      throw new VolumeError('snapshot-damaged', `Snapshot ${name} is damaged: ${reason}`, { name, reason });
    }
    return member;
  }

  /** The store that has a snapshot's content of a track; undefined where the home has it. */
  #holderOf(snapshot: Snapshot, track: number): SnapshotStore | undefined {
    const place = this.#chain.findIndex((one) => one === snapshot);
    const member = this.#chain[place];
    if (member === undefined || !isLive(member.record)) throw gone(snapshot.name);
    for (let index = place; index < this.#chain.length; index += 1) {
      const store = this.#chain[index]?.store;
      if (store?.has(track) === true) return store;
    }
    return undefined;
  }

  /** Where the part that begins with a track ends: one track of a store, or as many as the home has. */
  #endOfPart(snapshot: Snapshot, first: number, end: number): number {
    if (!this.isAtHome(snapshot, first)) return first + 1;
    let next = first + 1;
    while (next < end && this.isAtHome(snapshot, next)) next += 1;
    return next;
  }

  /** Reads tracks that the home had a moment ago, and again those that were replaced while it was read. */
  async #readHome(snapshot: Snapshot, target: Buffer, offsetBytes: number): Promise<void> {
    const { geometry, home } = this.#options;
    await home.read(target, offsetBytes);
    const run = geometry.tracksOf(offsetBytes, target.length);
    for (let track = run.first; track < run.first + run.count; track += 1) {
      const holder = this.#holderOf(snapshot, track);
      if (holder === undefined) continue;
      const from = Math.max(offsetBytes, geometry.offsetOf(track));
      const to = Math.min(offsetBytes + target.length, geometry.offsetOf(track + 1));
      await holder.read(
        target.subarray(from - offsetBytes, to - offsetBytes),
        track,
        from - geometry.offsetOf(track),
      );
    }
  }

  #assertNew(name: string): void {
    assertSnapshotName(name);
    if (this.#chain.some((member) => member.name === name && member.record.state !== 'deleting')) {
      throw new VolumeError('snapshot-exists', `Snapshot ${name} exists already`, { name });
    }
    const count = this.#chain.length;
    if (count < LIMITS.snapshotCountMax) return;
    const message = `The volume has ${count} snapshots already; delete one first`;
    throw new VolumeError('too-many-snapshots', message, { count });
  }

  #memberOf(record: SnapshotRecord, files: Pick<Member, 'store' | 'clone'>): Member {
    return memberOf(record, files, this.#options.geometry.trackSizeBytes);
  }

  async #record(member: Member, record: SnapshotRecord): Promise<void> {
    await this.#options.state.saveSnapshot(record);
    member.record = record;
  }

  async #load(homeDamage: string | undefined): Promise<void> {
    const { state, readOnly } = this.#options;
    // From the newest on: what one of them has lost, all older ones have lost.
    let damage = homeDamage;
    for (const record of state.snapshots().toReversed()) {
      if (record.by === 'clone') {
        await this.#loadClone(record);
        continue;
      }
      const opened = record.state === 'damaged' ? undefined : await this.#folder.open(record);
      if (opened instanceof CorruptionError) damage ??= opened.message;
      // What was being made when the process ended was promised to nobody.
      let now: SnapshotRecord = record.state === 'creating' ? { ...record, state: 'deleting' } : record;
      if (damage !== undefined && opened instanceof SnapshotStore) await opened.close();
      if (damage !== undefined && now.state === 'ready') {
        now = { ...record, state: 'damaged', reason: damage };
        if (!readOnly) await state.saveSnapshot(now);
      }
      const store = damage === undefined && opened instanceof SnapshotStore ? opened : undefined;
      this.#chain.unshift(this.#memberOf(now, { store, clone: undefined }));
    }
    if (!readOnly) await this.#folder.removeStrays(this.#chain.map(({ record }) => record));
  }

  /** A clone stands by itself: what the home or others have lost is nothing to it. */
  async #loadClone(record: SnapshotRecord): Promise<void> {
    const { state, readOnly } = this.#options;
    let now: SnapshotRecord = record.state === 'creating' ? { ...record, state: 'deleting' } : record;
    const opened = now.state === 'ready' ? await this.#folder.openClone(record) : undefined;
    if (opened instanceof CorruptionError) {
      now = { ...record, state: 'damaged', reason: opened.message };
      if (!readOnly) await state.saveSnapshot(now);
    }
    const clone = opened instanceof CorruptionError ? undefined : opened;
    this.#chain.unshift(this.#memberOf(now, { store: undefined, clone }));
  }

  /** Remembers how long the store was, so that it can be seen when some of it is lost. */
  async #closeStore(member: Member): Promise<void> {
    const { store, clone, record } = member;
    await (store ?? clone)?.close();
    if (store === undefined || this.#options.readOnly || store.usedBytes === record.endBytes) return;
    try {
      await this.#record(member, { ...record, endBytes: store.usedBytes });
    } catch {
      // The last known length remains; it is a lower bound at any time.
    }
  }
}
