/**
 * The old content that one snapshot keeps: tracks as they were before the first write that replaced them.
 *
 *     save(track) ─┐
 *     save(track) ─┴─> one batch: header page, contents -> one write, one fdatasync -> all of them go on
 *
 * A store is one file, a row of batches that are never touched again (FORMAT.md). Header and contents are made
 * durable by the same sync, so saving costs one, shared by everybody who came while the last one ran. A batch that a
 * power cut tore is the last one: the next is begun when the sync of the one before has finished. Nobody was told of
 * it, so nothing was overwritten for it, and opening drops it.
 *
 * Where each track lies is kept in memory, and found again at opening by reading the headers.
 *
 * It does not know which tracks need saving; that is `snapshots.ts`.
 */

import { type FileHandle, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  assert,
  CorruptionError,
  type Deferred,
  deferred,
  LIMITS,
  messageOf,
  syncDirectory,
  syncFile,
  systemCode,
} from '../base/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';
import { SlotMap } from './slot-map.ts';
import {
  assertStoreHeader,
  BATCH_TRACKS_MAX,
  type BatchEntry,
  checksumOfSlot,
  decodeBatchHeader,
  encodeBatchHeader,
  encodeStoreHeader,
  PAGE_BYTES,
  slotBytesOf,
  type StoreIdentity,
} from './snapshot-format.ts';

/** Where a snapshot's file lies, and whose it is. */
export interface StorePlace extends StoreIdentity {
  readonly directory: string;
}

/** A track on its way into the store. */
interface Pending {
  readonly track: number;
  readonly content: Buffer;
  readonly done: Deferred;
}

/** The slot of a track that is nothing but zeroes; other slots are the page where the content begins. */
const ZEROES = 0xffff_ffff;
const BATCH_MAX = Math.min(LIMITS.snapshotBatchTracksMax, BATCH_TRACKS_MAX);

export class SnapshotStore {
  readonly path: string;
  readonly #place: StorePlace;
  readonly #file: FileHandle;
  readonly #slots = new SlotMap();
  /** Where the next batch goes. */
  #endBytes = PAGE_BYTES;
  #pending: Pending[] = [];
  #writing: Promise<void> | undefined;
  /** A sync failed: what the disk has is not known, nor would another sync tell. */
  #failure: VolumeError | undefined;
  #isClosed = false;
  /** Reads under way; closing waits for them. */
  readonly #reading = new Set<Promise<void>>();

  private constructor(place: StorePlace, file: FileHandle) {
    this.#place = place;
    this.path = SnapshotStore.pathOf(place);
    this.#file = file;
  }

  static nameOf(storeId: string): string {
    return `${storeId}.tracks`;
  }

  /** Whether a file of that name is some store's. */
  static isName(name: string): boolean {
    return /^[0-9a-f]{32}\.tracks$/.test(name);
  }

  static pathOf({ directory, storeId }: StorePlace): string {
    return join(directory, SnapshotStore.nameOf(storeId));
  }

  /**
   * Makes an empty store, durable when the promise resolves, its name too.
   *
   * @throws {VolumeError} `snapshot-full`, `snapshot-failed`
   */
  static async create(place: StorePlace): Promise<SnapshotStore> {
    const path = SnapshotStore.pathOf(place);
    const file = await open(path, 'wx+', 0o600).catch((error: unknown) => {
      throw unwritable(path, error);
    });
    try {
      await writeWhole(file, [encodeStoreHeader(place)], 0).catch((error: unknown) => {
        throw unwritable(path, error);
      });
      await syncFile('snapshot-store', file.fd, path);
      await syncDirectory('snapshot-directory', place.directory);
      return new SnapshotStore(place, file);
    } catch (error) {
      await file.close();
      await rm(path, { force: true });
      throw error;
    }
  }

  /**
   * Opens a store and finds its tracks. A batch that a crash tore is dropped. The last batch may be there in memory
   * only, where its sync failed or the process died before it: it is written again, durably, before anybody relies on it.
   *
   * @param options.durableBytes so much of the file is known to be durable.
   * @throws {CorruptionError} where the file is missing, another snapshot's, or damaged before its end.
   */
  static async open(
    place: StorePlace,
    options: { readonly readOnly: boolean; readonly durableBytes?: number },
  ): Promise<SnapshotStore> {
    const store = new SnapshotStore(place, await openExisting(SnapshotStore.pathOf(place), options.readOnly));
    try {
      const lastBytes = await store.#find();
      const isDurable = store.#endBytes <= (options.durableBytes ?? 0);
      if (!options.readOnly && !isDurable && lastBytes < store.#endBytes) await store.#writeAgain(lastBytes);
      return store;
    } catch (error) {
      await store.#file.close();
      throw error;
    }
  }

  /** Tracks whose old content is here, durably. */
  get trackCount(): number {
    return this.#slots.size;
  }

  /** Bytes of the file, up to the end of the last batch. */
  get usedBytes(): number {
    return this.#endBytes;
  }

  has(track: number): boolean {
    return this.#slots.get(track) !== 0;
  }

  /** The tracks it has, ascending. */
  tracks(): Iterable<number> {
    return this.#slots.tracks();
  }

  /** Finishes when nothing that was to be saved before the call is still on its way. */
  async whenWritten(): Promise<void> {
    await this.#writing;
  }

  /**
   * Keeps the content of one whole track, as far as it lies in the volume; durable when the promise resolves, and
   * `has` knows it from then on. Callers share batches. The buffer is the store's until then.
   *
   * @throws {VolumeError} `snapshot-full`, after which it may be tried again; `snapshot-failed`, and no more.
   */
  save(track: number, content: Buffer): Promise<void> {
    if (this.#isClosed) return Promise.reject(this.#closed());
    const pending: Pending = { track, content, done: deferred() };
    this.#pending.push(pending);
    this.#writing ??= this.#write();
    return pending.done.promise;
  }

  /**
   * Reads a part of a track that the store has.
   *
   * @param fromBytes where in the track the part begins.
   * @throws {CorruptionError} where the file ends too early.
   */
  read(target: Buffer, track: number, fromBytes: number): Promise<void> {
    const slot = this.#slots.get(track);
    assert(slot !== 0, `Track ${track} is not in ${this.path}`);
    if (slot === ZEROES) {
      target.fill(0);
      return Promise.resolve();
    }
    const reading = readWhole(this.#file, target, slot * PAGE_BYTES + fromBytes, this.path).finally(() =>
      this.#reading.delete(reading),
    );
    this.#reading.add(reading);
    return reading;
  }

  /** Reads everything and compares it with its checksums. @returns the tracks whose content is damaged. */
  async verify(): Promise<TrackSet> {
    const damaged = TrackSet.empty();
    await this.#batches(async (atBytes, entries) => {
      for (const track of await this.#damagedIn(atBytes, entries)) damaged.add(track);
    });
    return damaged;
  }

  /** Gives the space of the content back, which nobody needs any more: reading it fails from now on. */
  async giveUp(): Promise<void> {
    // A file that grew again would have holes in place of content.
    this.#failure ??= this.#closed();
    await this.#writing;
    await this.#file.truncate(0);
  }

  /** Waits for what is being written or read. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#writing;
    await Promise.allSettled(this.#reading);
    await this.#file.close();
  }

  /** Closes the store and gives its space back. */
  async remove(): Promise<void> {
    await this.close();
    await rm(this.path, { force: true });
  }

  #closed(): VolumeError {
    return new VolumeError('snapshot-failed', `Snapshot file ${this.path} is closed`, { path: this.path });
  }

  /** Batch after batch while there is something to save. */
  async #write(): Promise<void> {
    while (this.#pending.length > 0) {
      const batch = this.#pending.splice(0, BATCH_MAX);
      try {
        await this.#append(batch);
        for (const { done } of batch) done.resolve();
      } catch (error) {
        for (const { done } of batch) done.reject(error);
      }
    }
    this.#writing = undefined;
  }

  async #append(batch: readonly Pending[]): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    const atBytes = this.#endBytes;
    const slots = batch.map(({ content }) => (isZero(content) ? undefined : this.#slotOf(content)));
    const entries = batch.map(({ track }, index): BatchEntry => {
      const slot = slots[index];
      return {
        track,
        isZero: slot === undefined,
        checksum: checksumOfSlot(this.#place, track, slot ?? Buffer.alloc(0)),
      };
    });
    const contents = slots.filter((slot) => slot !== undefined);
    await this.#put([encodeBatchHeader(this.#place, atBytes, entries), ...contents], atBytes);
    this.#endBytes = this.#addSlots(atBytes, entries);
  }

  /** Writes and syncs. */
  async #put(parts: readonly Buffer[], atBytes: number): Promise<void> {
    try {
      await writeWhole(this.#file, parts, atBytes);
    } catch (error) {
      // What was written of the batch is not valid, and the next one goes over it; until then others may need the room.
      await this.#file.truncate(atBytes).catch(() => undefined);
      throw unwritable(this.path, error);
    }
    try {
      await syncFile('snapshot-store', this.#file.fd, this.path);
    } catch (error) {
      const message = `Snapshot file ${this.path} cannot be made durable: ${messageOf(error)}`;
      this.#failure = new VolumeError('snapshot-failed', message, { path: this.path }, { cause: error });
      throw this.#failure;
    }
  }

  /** The content as it lies in the file: on whole pages. */
  #slotOf(content: Buffer): Buffer {
    const slotBytes = slotBytesOf(this.#place);
    if (content.length === slotBytes) return content;
    const slot = Buffer.alloc(slotBytes);
    content.copy(slot);
    return slot;
  }

  /** @returns where the batch ends. */
  #addSlots(atBytes: number, entries: readonly BatchEntry[]): number {
    let at = atBytes + PAGE_BYTES;
    for (const { track, isZero: hasNone } of entries) {
      this.#slots.set(track, hasNone ? ZEROES : at / PAGE_BYTES);
      if (!hasNone) at += slotBytesOf(this.#place);
    }
    return at;
  }

  /** A sync alone would not do: after one that failed, the next finds nothing to write. */
  async #writeAgain(fromBytes: number): Promise<void> {
    const bytes = Buffer.allocUnsafe(this.#endBytes - fromBytes);
    await readWhole(this.#file, bytes, fromBytes, this.path);
    await writeWhole(this.#file, [bytes], fromBytes);
    await syncFile('snapshot-store', this.#file.fd, this.path);
  }

  /** @returns where the last whole batch begins; the end where there is none. */
  async #find(): Promise<number> {
    const { size } = await this.#file.stat();
    assertStoreHeader(await readPage(this.#file, 0), this.#place, this.path);
    let last: { readonly atBytes: number; readonly entries: readonly BatchEntry[] } | undefined;
    const endBytes = await this.#batches(async (atBytes, entries) => {
      if (last !== undefined) this.#addSlots(last.atBytes, last.entries);
      last = { atBytes, entries };
    });
    this.#endBytes = endBytes;
    if (last !== undefined && (await this.#damagedIn(last.atBytes, last.entries)).length > 0) {
      // Header and contents share a sync: without all of it nobody was told.
      this.#endBytes = last.atBytes;
    } else if (last !== undefined) {
      this.#addSlots(last.atBytes, last.entries);
    }
    await this.#assertTorn(size);
    return Math.min(last?.atBytes ?? this.#endBytes, this.#endBytes);
  }

  /** What lies behind the last whole batch must be less than one batch, and no later batch may stand in it. */
  async #assertTorn(sizeBytes: number): Promise<void> {
    const batchBytesMax = PAGE_BYTES + BATCH_TRACKS_MAX * slotBytesOf(this.#place);
    let isDamaged = sizeBytes - this.#endBytes > batchBytesMax;
    for (let at = this.#endBytes + PAGE_BYTES; at < sizeBytes && !isDamaged; at += PAGE_BYTES) {
      isDamaged = decodeBatchHeader(this.#place, at, await readPage(this.#file, at)) !== undefined;
    }
    if (!isDamaged) return;
    const message = `Snapshot file ${this.path} is damaged at byte ${this.#endBytes}, in front of whole batches`;
    throw new CorruptionError(message, { where: this.path });
  }

  /** Hands out one batch header after the other. @returns where the last one ends. */
  async #batches(body: (atBytes: number, entries: readonly BatchEntry[]) => Promise<void>): Promise<number> {
    for (let at = PAGE_BYTES; ;) {
      const entries = decodeBatchHeader(this.#place, at, await readPage(this.#file, at));
      if (entries === undefined) return at;
      await body(at, entries);
      at += PAGE_BYTES + entries.filter((entry) => !entry.isZero).length * slotBytesOf(this.#place);
    }
  }

  async #damagedIn(atBytes: number, entries: readonly BatchEntry[]): Promise<number[]> {
    const damaged: number[] = [];
    const slot = Buffer.allocUnsafe(slotBytesOf(this.#place));
    let at = atBytes + PAGE_BYTES;
    for (const entry of entries) {
      if (entry.isZero) continue;
      const { bytesRead } = await this.#file.read(slot, 0, slot.length, at);
      const isWhole = checksumOfSlot(this.#place, entry.track, slot.subarray(0, bytesRead)).equals(
        entry.checksum,
      );
      if (!isWhole) damaged.push(entry.track);
      at += slot.length;
    }
    return damaged;
  }
}

function unwritable(path: string, error: unknown): VolumeError {
  const code = systemCode(error);
  const isFull = code === 'ENOSPC' || code === 'EDQUOT';
  const message = `Snapshot file ${path} cannot be written: ${messageOf(error)}`;
  return new VolumeError(isFull ? 'snapshot-full' : 'snapshot-failed', message, { path }, { cause: error });
}

async function openExisting(path: string, readOnly: boolean): Promise<FileHandle> {
  try {
    return await open(path, readOnly ? 'r' : 'r+');
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error;
    throw new CorruptionError(`Snapshot file ${path} is missing`, { where: path }, { cause: error });
  }
}

/** One page; shorter where the file ends in it. The buffer is the caller's. */
async function readPage(file: FileHandle, atBytes: number): Promise<Buffer> {
  const page = Buffer.allocUnsafe(PAGE_BYTES);
  const { bytesRead } = await file.read(page, 0, PAGE_BYTES, atBytes);
  return page.subarray(0, bytesRead);
}

async function readWhole(file: FileHandle, target: Buffer, atBytes: number, path: string): Promise<void> {
  for (let done = 0; done < target.length;) {
    const { bytesRead } = await file.read(target, done, target.length - done, atBytes + done);
    if (bytesRead === 0)
      throw new CorruptionError(`Snapshot file ${path} ends at byte ${atBytes + done}`, { where: path });
    done += bytesRead;
  }
}

async function writeWhole(file: FileHandle, parts: readonly Buffer[], atBytes: number): Promise<void> {
  const lengthBytes = parts.reduce((sum, part) => sum + part.length, 0);
  const { bytesWritten } = await file.writev(parts, atBytes);
  if (bytesWritten === lengthBytes) return;
  // A file system that is nearly full takes a part first, and says why with the rest.
  const rest = Buffer.concat(parts).subarray(bytesWritten);
  for (let done = 0; done < rest.length;) {
    const written = await file.write(rest, done, rest.length - done, atBytes + bytesWritten + done);
    assert(written.bytesWritten > 0, 'Nothing was written of a batch of a snapshot');
    done += written.bytesWritten;
  }
}

/** Whether all bytes are zero. */
export function isZero(content: Buffer): boolean {
  // The first bytes tell of most contents; the rest is one comparison with itself, shifted.
  if (content.length === 0 || content[0] !== 0) return content.length === 0;
  return content.subarray(1).equals(content.subarray(0, -1));
}
