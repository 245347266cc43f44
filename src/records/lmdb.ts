/**
 * The one LMDB module: named databases of binary keys and values in one environment file.
 *
 * Each rule here is a trap that was met (DESIGN section 5):
 *
 * - before a file is mapped, its structure is checked with plain reads (`lmdb-file.ts`), since a mapped
 *   file that is cut short or damaged kills the process;
 * - every value is stored with a checksum over key and value, checked at each read: LMDB's pages have none;
 * - writes go through `putSync` in a void `transactionSync` callback. A callback that returned a promise
 *   would return before anything is written, an asynchronous put that fails raises unhandled rejections;
 * - nothing is durable by `close`. `sync(name)` issues an fdatasync through a descriptor of its own;
 * - lmdb-js's overlapping sync, caching, encoders, compression and versions stay off.
 *
 * Two ways to commit. Without `bulk` LMDB itself syncs the pages before it writes the meta page, so that a
 * power cut at any moment leaves the last commit or the one before; a commit then waits for the disk. With
 * `bulk` a commit only reaches the page cache: fast, but after a power cut before the next `sync` the file
 * may be damaged as a whole. Bulk is for files that count for nothing until they are synced; they are written back
 * while they grow, and leave the page cache to others (`write-behind.ts`).
 *
 * LMDB keeps a file `<path>-lock` beside the data for its readers. It is removed at close where the caller
 * says that no other process writes (`ownLock`). On a read-only file system LMDB goes without. LMDB would
 * make it sparse and map it, and on a full file system the first touch is SIGBUS: it is made here first, with
 * its blocks, whole or not at all.
 *
 * A write that the system refuses makes lmdb-js (3.5.6, in `mdb_page_flush`) format a message into a buffer that
 * is too short for it, and the process may die of that at any later time. So a transaction for which the file
 * system seems to have no room is given up before LMDB writes; what takes the last room in that very moment
 * is left to chance.
 *
 * Files are lmdb-js's own format: `mdb_stat` cannot read them.
 */

import { closeSync, existsSync, fstatSync, openSync, rmSync, statfsSync, statSync } from 'node:fs';
import { ftruncateSync, linkSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Database as LmdbDatabase, open, type RootDatabase } from 'lmdb';
import {
  assert,
  BlockError,
  CorruptionError,
  LIMITS,
  messageOf,
  noteCommit,
  randomId,
  type SyncName,
  syncPath,
  systemCode,
} from '../base/index.ts';
import { checksum, CHECKSUM_BYTES } from './digest.ts';
import { checkLmdbFile } from './lmdb-file.ts';
import { WriteBehind } from './write-behind.ts';

/** Codes: `missing` no file and not to be created; `no-space` the file system is full; `io` anything else that the system refused. */
export interface LmdbErrorDetails {
  readonly missing: { readonly path: string };
  readonly 'no-space': { readonly path: string };
  readonly io: { readonly path: string };
}

/**
 * The system refused an operation on a database file. Nothing of the transaction was committed, unless the file is in
 * bulk and the disk did not take what it was given before: then the file is of no use any more.
 */
export class LmdbError extends BlockError<LmdbErrorDetails> {}

export interface LmdbOptions {
  /** Open for reading only; works on a read-only file system. */
  readonly readOnly?: boolean;
  /** Make the file where there is none; without it a missing file is an error. */
  readonly create?: boolean;
  /** Commits reach the page cache only; see the file header. */
  readonly bulk?: boolean;
  /** The file is complete and never written again: refuse it where any byte is missing. */
  readonly whole?: boolean;
  /** No other process writes this file: remove LMDB's lock file at close. */
  readonly ownLock?: boolean;
}

export interface LmdbRange {
  /** First key, inclusive. */
  readonly start?: Buffer;
  /** Last key, exclusive. */
  readonly end?: Buffer;
  /** Descending; `start` is still the lower bound. */
  readonly reverse?: boolean;
}

export interface LmdbEntry {
  readonly key: Buffer;
  readonly value: Buffer;
}

/** One named database. Keys are 1 to 511 bytes, ordered bytewise; strings are their UTF-8. */
export interface LmdbDatabaseView {
  /**
   * The value, a fresh buffer that belongs to the caller, or undefined where there is none.
   *
   * @throws {CorruptionError} where the value fails its checksum.
   */
  get(key: Buffer | string): Buffer | undefined;
  /** Stores the parts in a row as one value; only inside `transaction`. The buffers are free afterwards. */
  put(key: Buffer | string, ...parts: readonly Buffer[]): void;
  /** As `put`, for a key above all others: about twice as fast and fills pages. */
  append(key: Buffer | string, ...parts: readonly Buffer[]): void;
  /** As `append`, without copying first: the buffer's last CHECKSUM_BYTES are no part of the value and overwritten. */
  appendInPlace(key: Buffer | string, valueWithRoom: Buffer): void;
  /** Removes the entry, if it is there; only inside `transaction`. @returns whether it was. */
  remove(key: Buffer | string): boolean;
  /** The entries in key order, each checked as by `get`. The database must not be written meanwhile. */
  range(range?: LmdbRange): Generator<LmdbEntry>;
  /** The keys of `range`, and nothing checked: to go on behind a damaged value. */
  keys(): Generator<Buffer>;
  count(): number;
}

export interface LmdbFile {
  readonly path: string;
  /**
   * The named database, made where it is missing in a file that is open for writing.
   *
   * @throws {CorruptionError} where it is missing in a file that is open for reading.
   */
  database(name: string): LmdbDatabaseView;
  /**
   * Runs `body` and commits what it did, or nothing where it threw. Not nested.
   *
   * @throws {LmdbError} `no-space` or `io` where the commit failed, or, in bulk, writing back what is before it.
   */
  transaction(body: () => void): void;
  /** Makes every commit so far durable. */
  sync(name: SyncName): Promise<void>;
  /** Releases the file. Makes nothing durable. */
  close(): Promise<void>;
}

const BINARY = { keyEncoding: 'binary', encoding: 'binary', cache: false } as const;
const DATABASES_MAX = 16;
/** LMDB's lock file with its usual number of readers takes a little more than two pages; it uses what it finds. */
const LOCK_FILE_BYTES = 3 * 4096;
/** Room that a commit must find beside its values: pages of the trees and the list of free ones. */
const COMMIT_ROOM_BYTES = 64 * 1024;
const PAGE_BYTES = 4096;
/** Below this many free bytes a refused write counts as a full file system: LMDB writes pages in batches. */
const FULL_BELOW_BYTES = 1024 * 1024;

/**
 * Opens the database file at `path`.
 *
 * @throws {LmdbError} `missing`, or `io` where it cannot be opened.
 * @throws {CorruptionError} where its structure is damaged or it is cut short.
 */
export function openLmdb(path: string, options: LmdbOptions = {}): LmdbFile {
  const readOnly = options.readOnly ?? false;
  assert(!(readOnly && (options.create ?? false)), 'A file opened for reading is not created');
  const lengthBytes = existsSync(path) ? statSync(path).size : 0;
  const isNew = options.create === true && lengthBytes === 0;
  if (!isNew) {
    if (!existsSync(path)) throw new LmdbError('missing', `Database file ${path} does not exist`, { path });
    checkLmdbFile(path, { whole: options.whole ?? false, writable: !readOnly });
  }
  if (isNew && !hasRoom(dirname(path), 0)) throw noSpace(path, 'open');
  reserveLockFile(path);
  try {
    const root = open<Buffer, Buffer>({
      ...BINARY,
      path,
      noSubdir: true,
      readOnly,
      noSync: options.bulk ?? false,
      overlappingSync: false,
      maxDbs: DATABASES_MAX,
    });
    return new OpenFile(path, root, options);
  } catch (error) {
    throw systemError(path, 'open', error);
  }
}

/**
 * Makes LMDB's lock file where there is none. Another process may do so at the same time, hence the link:
 * LMDB must never find a file that is still being filled.
 */
function reserveLockFile(path: string): void {
  const lockPath = `${path}-lock`;
  if (existsSync(lockPath)) return;
  const draft = `${lockPath}-${randomId()}`;
  let descriptor: number;
  try {
    descriptor = openSync(draft, 'wx', 0o664);
  } catch (error) {
    if (isNoSpace(error)) throw systemError(path, 'open', error);
    return; // A file system or directory that cannot be written: LMDB goes without, or says what it misses.
  }
  try {
    writeFileSync(descriptor, Buffer.alloc(LOCK_FILE_BYTES));
    linkSync(draft, lockPath);
  } catch (error) {
    // Somebody else was first, or there are no links here and LMDB makes its own.
    if (isNoSpace(error)) throw systemError(path, 'open', error);
  } finally {
    closeSync(descriptor);
    rmSync(draft, { force: true });
  }
}

function isNoSpace(error: unknown): boolean {
  const code = systemCode(error);
  return code === 'ENOSPC' || code === 'EDQUOT';
}

class OpenFile implements LmdbFile {
  readonly path: string;
  readonly #root: RootDatabase<Buffer, Buffer>;
  readonly #options: LmdbOptions;
  readonly #databases = new Map<string, OpenDatabase>();
  #inTransaction = false;
  #failed: unknown;
  /** Bytes that this transaction's values take in pages, about. */
  #pendingBytes = 0;
  #closed = false;
  readonly #writeBehind: WriteBehind | undefined;

  constructor(path: string, root: RootDatabase<Buffer, Buffer>, options: LmdbOptions) {
    this.path = path;
    this.#root = root;
    this.#options = options;
    const grows = options.bulk === true && options.readOnly !== true;
    this.#writeBehind = grows ? new WriteBehind(path) : undefined;
  }

  database(name: string): LmdbDatabaseView {
    assert(!this.#closed, `Database file ${this.path} is closed`);
    const known = this.#databases.get(name);
    if (known !== undefined) return known;
    assert(!this.#inTransaction, `Database ${name} is opened inside a transaction`);
    const inner = this.#openDatabase(name);
    const opened = new OpenDatabase({
      path: this.path,
      name,
      inner,
      write: (action, lengthBytes) => this.#write(action, lengthBytes),
    });
    this.#databases.set(name, opened);
    return opened;
  }

  #openDatabase(name: string): LmdbDatabase<Buffer, Buffer> {
    let inner: LmdbDatabase<Buffer, Buffer> | undefined;
    try {
      inner = this.#root.openDB<Buffer, Buffer>({ ...BINARY, name });
    } catch (error) {
      throw systemError(this.path, 'open', error);
    }
    // lmdb-js returns undefined, against its types, for a missing database of a file opened for reading.
    if ((inner as unknown) === undefined) {
      throw new CorruptionError(`Database file ${this.path} has no database ${name}`, {
        where: `${this.path} ${name}`,
      });
    }
    return inner;
  }

  transaction(body: () => void): void {
    assert(!this.#closed, `Database file ${this.path} is closed`);
    assert(this.#options.readOnly !== true, `Database file ${this.path} is open for reading only`);
    assert(!this.#inTransaction, `Transactions on ${this.path} do not nest`);
    this.#inTransaction = true;
    this.#failed = undefined;
    this.#pendingBytes = 0;
    let finished = false;
    try {
      this.#root.transactionSync(() => {
        const result: unknown = body();
        assert(result === undefined, 'A transaction returned a value, perhaps a promise');
        // A put that failed has spoilt the transaction even where the body went on.
        if (this.#failed !== undefined) throw this.#failed;
        if (!hasRoom(this.path, this.#pendingBytes)) throw noSpace(this.path, 'write');
        finished = true;
      });
    } catch (error) {
      if (!finished && this.#failed === undefined) throw error;
      throw systemError(this.path, 'write', error);
    } finally {
      this.#inTransaction = false;
    }
    noteCommit(this.path);
    try {
      this.#writeBehind?.advance();
    } catch (error) {
      throw systemError(this.path, 'write', error);
    }
  }

  #write(action: () => boolean, lengthBytes: number): boolean {
    assert(this.#inTransaction, `Database file ${this.path} is written outside a transaction`);
    // Small values share pages that may be half empty, large ones have pages of their own.
    const isSmall = lengthBytes < PAGE_BYTES / 2;
    this.#pendingBytes += isSmall ? 2 * lengthBytes : PAGE_BYTES * Math.ceil(lengthBytes / PAGE_BYTES + 1);
    try {
      return action();
    } catch (error) {
      this.#failed = error;
      throw error;
    }
  }

  async sync(name: SyncName): Promise<void> {
    assert(!this.#closed, `Database file ${this.path} is closed`);
    this.#fillLastPages();
    await syncPath(name, this.path);
  }

  /**
   * LMDB may end a commit with pages it took and freed again without writing them, and the file is then
   * shorter than the meta page says. It is made that long, so that `whole` can tell a file cut short.
   */
  #fillLastPages(): void {
    if (this.#options.readOnly === true) return;
    const descriptor = openSync(this.path, 'r+');
    try {
      const wantedBytes = lastPageEnd(this.#root);
      if (fstatSync(descriptor).size < wantedBytes) ftruncateSync(descriptor, wantedBytes);
    } finally {
      closeSync(descriptor);
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#writeBehind?.close();
    await this.#root.close();
    if (this.#options.ownLock !== true) return;
    try {
      rmSync(`${this.path}-lock`, { force: true });
    } catch (error) {
      const code = systemCode(error);
      if (code !== 'EROFS' && code !== 'EACCES' && code !== 'EPERM') throw error;
    }
  }
}

/** The end of the last page that the newest commit counts, in bytes. */
function lastPageEnd(root: RootDatabase<Buffer, Buffer>): number {
  const stats = root.getStats();
  if (!('lastPageNumber' in stats) || !('pageSize' in stats)) return 0;
  return (Number(stats.lastPageNumber) + 1) * Number(stats.pageSize);
}

interface DatabaseParts {
  readonly path: string;
  readonly name: string;
  readonly inner: LmdbDatabase<Buffer, Buffer>;
  readonly write: (action: () => boolean, lengthBytes: number) => boolean;
}

class OpenDatabase implements LmdbDatabaseView {
  readonly #path: string;
  readonly #name: string;
  readonly #inner: LmdbDatabase<Buffer, Buffer>;
  readonly #write: (action: () => boolean, lengthBytes: number) => boolean;
  /** Value and checksum in a row, as LMDB wants them; LMDB has copied it when a put returns. */
  #scratch = Buffer.alloc(4096);

  constructor(parts: DatabaseParts) {
    this.#path = parts.path;
    this.#name = parts.name;
    this.#inner = parts.inner;
    this.#write = parts.write;
  }

  get(key: Buffer | string): Buffer | undefined {
    const wanted = keyOf(key);
    let stored: Uint8Array | undefined;
    try {
      stored = this.#inner.getBinary(wanted);
    } catch (error) {
      throw systemError(this.#path, 'read', error);
    }
    return stored === undefined ? undefined : this.#checked(wanted, stored);
  }

  put(key: Buffer | string, ...parts: readonly Buffer[]): void {
    const wanted = keyOf(key);
    const value = this.#frame(wanted, parts);
    // The types of lmdb-js say that putSync returns nothing; it returns whether the value was stored.
    const stored = this.#write(() => (this.#inner.putSync(wanted, value) as unknown) !== false, value.length);
    assert(stored, `Database ${this.#name} of ${this.#path} refused a value`);
  }

  append(key: Buffer | string, ...parts: readonly Buffer[]): void {
    const wanted = keyOf(key);
    this.#append(wanted, this.#frame(wanted, parts));
  }

  appendInPlace(key: Buffer | string, valueWithRoom: Buffer): void {
    const wanted = keyOf(key);
    const end = valueWithRoom.length - CHECKSUM_BYTES;
    assert(
      end >= 0 && valueWithRoom.length <= LIMITS.databaseValueBytesMax,
      'The value has no room or is too large',
    );
    checksum(wanted, valueWithRoom.subarray(0, end)).copy(valueWithRoom, end);
    this.#append(wanted, valueWithRoom);
  }

  #append(wanted: Buffer, value: Buffer): void {
    const stored = this.#write(
      () => (this.#inner.putSync(wanted, value, { append: true }) as unknown) !== false,
      value.length,
    );
    assert(stored, `Key ${wanted.toString('hex')} is not the last of ${this.#name} in ${this.#path}`);
  }

  remove(key: Buffer | string): boolean {
    return this.#write(() => this.#inner.removeSync(keyOf(key)), 0);
  }

  *range(range: LmdbRange = {}): Generator<LmdbEntry> {
    for (const { key, value } of this.#inner.getRange(rangeOptions(range))) {
      const owned = Buffer.from(key);
      yield { key: owned, value: this.#checked(owned, value) };
    }
  }

  *keys(): Generator<Buffer> {
    for (const key of this.#inner.getKeys(rangeOptions({}))) yield Buffer.from(key);
  }

  count(): number {
    const stats = this.#inner.getStats();
    return 'entryCount' in stats ? Number(stats.entryCount) : this.#inner.getCount();
  }

  /** The parts and the checksum over key and parts, in the scratch buffer. */
  #frame(key: Buffer, parts: readonly Buffer[]): Buffer {
    let lengthBytes = CHECKSUM_BYTES;
    for (const part of parts) lengthBytes += part.length;
    assert(lengthBytes <= LIMITS.databaseValueBytesMax, `A value of ${lengthBytes} bytes is too large`);
    if (this.#scratch.length < lengthBytes)
      this.#scratch = Buffer.alloc(2 ** Math.ceil(Math.log2(lengthBytes)));
    const value = this.#scratch.subarray(0, lengthBytes);
    let at = 0;
    for (const part of parts) at += part.copy(value, at);
    checksum(key, value.subarray(0, at)).copy(value, at);
    return value;
  }

  #checked(key: Buffer, stored: Uint8Array): Buffer {
    const bytes = Buffer.from(stored.buffer, stored.byteOffset, stored.byteLength);
    const end = bytes.length - CHECKSUM_BYTES;
    if (end < 0 || !checksum(key, bytes.subarray(0, end)).equals(bytes.subarray(end))) {
      const where = `${this.#path} ${this.#name} ${printable(key)}`;
      throw new CorruptionError(`Value ${printable(key)} in ${this.#name} of ${this.#path} is damaged`, {
        where,
      });
    }
    return bytes.subarray(0, end);
  }
}

function keyOf(key: Buffer | string): Buffer {
  const bytes = typeof key === 'string' ? Buffer.from(key) : key;
  assert(
    bytes.length > 0 && bytes.length <= LIMITS.databaseKeyBytesMax,
    `A key of ${bytes.length} bytes is not 1 to ${LIMITS.databaseKeyBytesMax} long`,
  );
  return bytes;
}

/** lmdb-js takes the bounds of a descending range the other way round, and its default start leaves out zeroes. */
function rangeOptions(range: LmdbRange): object {
  const { start, end } = range;
  if (range.reverse !== true) {
    return { start: start ?? Buffer.from([0]), ...(end === undefined ? {} : { end }) };
  }
  return {
    reverse: true,
    ...(end === undefined ? {} : { start: end, exclusiveStart: true }),
    ...(start === undefined ? {} : { end: start, inclusiveEnd: true }),
  };
}

function printable(key: Buffer): string {
  const text = key.toString('latin1');
  return /^[\x21-\x7e]+$/.test(text) ? text : `0x${key.toString('hex')}`;
}

/**
 * A full file system shows as EIO, ENOSPC or a full map, depending on where LMDB met it, so the file system
 * is asked.
 */
function systemError(path: string, action: 'open' | 'read' | 'write', error: unknown): LmdbError {
  const reason = messageOf(error);
  if (/ENOSPC|No space left|MDB_MAP_FULL/i.test(reason) || (action !== 'read' && isFull(path))) {
    return noSpace(path, action, error);
  }
  return new LmdbError('io', `Cannot ${action} ${path}: ${reason}`, { path }, { cause: error });
}

function noSpace(path: string, action: string, cause?: unknown): LmdbError {
  return new LmdbError('no-space', `Cannot ${action} ${path}: no space is left`, { path }, { cause });
}

function isFull(path: string): boolean {
  return freeBytes(path) < FULL_BELOW_BYTES;
}

function hasRoom(path: string, lengthBytes: number): boolean {
  return freeBytes(path) >= lengthBytes + COMMIT_ROOM_BYTES;
}

/** What the file system at `path` says is free; infinite where it does not tell. */
function freeBytes(path: string): number {
  try {
    const { blocks, bavail, bsize } = statfsSync(path);
    // A tmpfs without a limit counts no blocks at all.
    return blocks === 0 ? Infinity : bavail * bsize;
  } catch {
    return Infinity;
  }
}
