/**
 * What is wrong with a volume's state file, record by record, and a state file without it.
 *
 *     state.mdb --(each record: checksum, form, what others say)--> findings and changes
 *               --(sound records, changes)--> state.mdb.new --(synced, renamed)--> state.mdb
 *
 * The rule for every repair: never fewer changed tracks than there were. A set that is lost becomes all tracks, a
 * point that is lost takes its epoch's tracks to the next point, and what the open epoch had is all tracks as soon as
 * anything it is made of is lost. The identity is the one thing that nothing else tells; without it there is no repair.
 *
 * The file is written anew rather than in place: in a damaged file a key may stand where nothing finds it again.
 * It is read record by record, and `state.ts` is not used, since one damaged record must not hide the next.
 */

import { existsSync } from 'node:fs';
import { readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { CorruptionError, messageOf, present, syncDirectory } from '../base/index.ts';
import {
  checkLmdbFile,
  checksum,
  CHECKSUM_BYTES,
  type LmdbDatabaseView,
  type LmdbFile,
  openLmdb,
} from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { Finding } from './check.ts';
import { Geometry } from './geometry.ts';
import { type FoundSegment, segmentName } from './intent-log.ts';
import { isOpenRecord, isPoint, isRecord, isSnapshot, parse } from './check-records.ts';
import { MISSED_PREFIX } from './members-state.ts';
import { hasWholeRecovery, isRecoveryKey, RECOVERED_KEY } from './recovery-state.ts';
import {
  FORMAT_VERSION,
  type OpenRecord,
  type PoisonRecord,
  type SnapshotRecord,
  type VolumeRecord,
} from './state.ts';

const DATABASES = ['state', 'points', 'epochs', 'consumers', 'snapshots'] as const;
type DatabaseName = (typeof DATABASES)[number];

/** Records of `state` that have a repair of their own below. */
const KNOWN_RECORDS: ReadonlySet<string> = new Set([
  'volume',
  'open',
  'open-tracks',
  'grown',
  'poison',
  'suspect',
  'claims',
  'deltas',
  'recent',
  RECOVERED_KEY,
]);

const NEW_STATE_FILE = 'state.mdb.new';
/** No file has it. */
const NO_STORE = '0'.repeat(32);
/** Records of one transaction; a set of tracks is a few MiB at the most. */
const COPIED_RECORDS_MAX = 16;
/** The home's path is the longest part of it. */
const IDENTITY_BYTES_MAX = 8192;
const EVERY_TRACK = 'every track counts as changed in the open epoch';

interface Key {
  readonly bytes: Buffer;
  readonly isSound: boolean;
}

/** One state file, looked at. To be closed; nothing is written before `repair`. */
export class StateExam {
  readonly findings: Finding[] = [];
  readonly #path: string;
  readonly #source: LmdbFile;
  readonly #keys = new Map<DatabaseName, readonly Key[]>();
  /** By database and key in hex; undefined takes the record away. */
  readonly #changes = new Map<string, Buffer | undefined>();
  #mustRewrite = false;
  #losesOpenTracks = false;
  /** What the home holds is not known, and nothing says how to find out. */
  #isLost = false;
  #record: VolumeRecord | undefined;
  #trackCount = 0;

  /** @throws {CorruptionError} where the file's structure is damaged, so that none of its records can be found. */
  constructor(path: string) {
    this.#path = path;
    this.#source = openLmdb(path, { readOnly: true, ownLock: true });
    try {
      for (const name of DATABASES) this.#keys.set(name, this.#keysOf(name));
      this.#checkFreePages();
      this.#record = this.#readIdentity();
    } catch (error) {
      void this.#source.close();
      throw error;
    }
  }

  /** Undefined where it is lost. */
  get record(): VolumeRecord | undefined {
    return this.#record;
  }

  get needsRepair(): boolean {
    return this.#mustRewrite && !this.#isLost;
  }

  /** The volume must not be opened, whatever else is repaired. */
  get isLost(): boolean {
    return this.#record === undefined || this.#isLost;
  }

  /** Oldest first, as they are after the repair. */
  snapshots(): SnapshotRecord[] {
    return this.#recordsOf('snapshots').filter(isSnapshot);
  }

  close(): Promise<void> {
    return this.#source.close();
  }

  /** @param segments of the intent log. @returns those that still count for something. */
  examine(segments: readonly FoundSegment[]): readonly FoundSegment[] {
    if (this.#record === undefined) return segments;
    this.#examineOthers();
    this.#examineSnapshots();
    const { points, last } = this.#examinePoints();
    const open = this.#examineOpen(last, segments);
    const counting = open.isClean ? [] : segments.filter(({ epoch }) => !points.has(epoch));
    if (!open.isClean) this.#examineSegments(open, counting);
    this.#settleOpen(open);
    this.#examinePoison();
    return counting;
  }

  /** The suspect tracks of a poisoned volume; undefined where it is not poisoned. */
  suspects(): TrackSet | undefined {
    if (this.#record === undefined || this.#after('state', 'poison') === undefined) return undefined;
    const bytes = this.#after('state', 'suspect');
    return bytes === undefined
      ? TrackSet.all(this.#trackCount)
      : TrackSet.deserialize(bytes, this.#path, this.#trackCount);
  }

  /** Writes the file anew, durable when the promise resolves. The exam must be closed before the file is used. */
  async repair(): Promise<void> {
    const directory = dirname(this.#path);
    const path = `${directory}/${NEW_STATE_FILE}`;
    await rm(path, { force: true });
    const target = openLmdb(path, { create: true, ownLock: true });
    try {
      for (const name of DATABASES) this.#copy(name, target);
      await target.sync('volume-state');
    } finally {
      await target.close();
    }
    await rename(path, this.#path);
    await syncDirectory('volume-directory', directory);
  }

  #copy(name: DatabaseName, target: LmdbFile): void {
    const database = target.database(name);
    const source = this.#database(name);
    const prefix = `${name} `;
    const kept = (this.#keys.get(name) ?? []).filter(
      ({ bytes, isSound }) => isSound && !this.#changes.has(changeKey(name, bytes)),
    );
    for (let first = 0; first < kept.length; first += COPIED_RECORDS_MAX) {
      target.transaction(() => {
        for (const { bytes } of kept.slice(first, first + COPIED_RECORDS_MAX)) {
          const value = source?.get(bytes);
          if (value !== undefined) database.put(bytes, value);
        }
      });
    }
    target.transaction(() => {
      for (const [key, value] of this.#changes) {
        if (key.startsWith(prefix) && value !== undefined)
          database.put(Buffer.from(key.slice(prefix.length), 'hex'), value);
      }
    });
  }

  #database(name: DatabaseName): LmdbDatabaseView | undefined {
    try {
      return this.#source.database(name);
    } catch (error) {
      if (error instanceof CorruptionError) return undefined;
      throw error;
    }
  }

  #keysOf(name: DatabaseName): Key[] {
    const database = this.#database(name);
    if (database === undefined) return [];
    return Array.from(database.keys(), (bytes) => ({ bytes, isSound: isReadable(database, bytes) }));
  }

  /** The value as it will be after the repair. */
  #after(name: DatabaseName, key: string | Buffer): Buffer | undefined {
    const bytes = Buffer.from(key);
    const change = changeKey(name, bytes);
    if (this.#changes.has(change)) return this.#changes.get(change);
    const known = this.#keys.get(name)?.find((one) => one.bytes.equals(bytes));
    return known?.isSound === true ? this.#database(name)?.get(bytes) : undefined;
  }

  #isDamaged(name: DatabaseName, key: string): boolean {
    const bytes = Buffer.from(key);
    return this.#keys.get(name)?.some((one) => one.bytes.equals(bytes) && !one.isSound) ?? false;
  }

  #change(name: DatabaseName, key: string | Buffer, value: Buffer | object | undefined): void {
    this.#mustRewrite = true;
    const bytes = value === undefined || Buffer.isBuffer(value) ? value : json(value);
    this.#changes.set(changeKey(name, Buffer.from(key)), bytes);
  }

  #found(where: string, what: string, how: string): void {
    this.findings.push(damage(`${basename(this.#path)} ${where}`, what, how, true));
  }

  /** Reading needs no list of free pages, writing does. */
  #checkFreePages(): void {
    try {
      checkLmdbFile(this.#path, { writable: true });
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.#mustRewrite = true;
      this.#found('free pages', messageOf(error), 'its records are sound; they are written to a new file');
    }
  }

  #readIdentity(): VolumeRecord | undefined {
    const lost = (what: string, how: string): undefined => {
      this.findings.push(damage(`${basename(this.#path)} volume`, what, how, false));
    };
    const advice = adviceFor(this.#path, undefined);
    const bytes = this.#after('state', 'volume');
    if (bytes === undefined) return lost('the record of the identity is lost', advice);
    try {
      const record: VolumeRecord = JSON.parse(bytes.toString());
      if (record.formatVersion !== FORMAT_VERSION) {
        const what = `it has format version ${record.formatVersion}, wanted ${FORMAT_VERSION}`;
        return lost(what, 'use the version of cowbell that wrote it');
      }
      this.#trackCount = new Geometry(record.sizeBytes, record.trackSizeBytes).trackCount;
      return record;
    } catch (error) {
      return lost(`the record of the identity makes no sense: ${messageOf(error)}`, advice);
    }
  }

  /** Records that no other one depends on. */
  #examineOthers(): void {
    for (const { bytes } of this.#damagedIn('consumers')) {
      const how = 'it is removed; the next backup to that store records it again';
      this.#found(`consumer ${nameOfKey(bytes)}`, 'the record is damaged', how);
      this.#change('consumers', bytes, undefined);
    }
    this.#examineRecovery();
    if (this.#isDamaged('state', 'claims')) {
      const how = 'it is removed; a store whose last backup was cut short may need a full one next';
      this.#found('claims', 'the record is damaged', how);
      this.#change('state', 'claims', undefined);
    }
    if (this.#isDamaged('state', 'deltas')) {
      const how =
        'it is replaced: members show by themselves what they lack, and logs stay until the next backup';
      this.#found('deltas', 'the record of which deltas are lost is damaged', how);
      this.#change('state', 'deltas', { lost: [], readable: [] });
    }
    for (const advice of ['recent', RECOVERED_KEY].filter((key) => this.#isDamaged('state', key))) {
      this.#found(advice, 'the record is damaged', 'it is removed; nothing depends on it');
      this.#change('state', advice, undefined);
    }
    for (const { bytes } of this.#damagedIn('state')) {
      const name = bytes.toString('latin1');
      if (KNOWN_RECORDS.has(name) || isRecoveryKey(name)) continue;
      if (name.startsWith(MISSED_PREFIX)) {
        // That the member is away is in the record of the identity.
        const what = 'the record of what a member of a mirror lacks is damaged';
        this.#found(name, what, 'it is removed; the member is brought everything');
        this.#change('state', bytes, undefined);
        continue;
      }
      // What it was is not known where its key is damaged, too.
      const hasSnapshots = (this.#keys.get('snapshots')?.length ?? 0) > 0;
      if (name === 'rollback' || hasSnapshots) {
        const what = 'the record is damaged, and the volume may be rolled back in parts';
        const where = `${basename(this.#path)} record ${nameOfKey(bytes)}`;
        this.findings.push(damage(where, what, 'restore the volume from a backup', false));
        this.#isLost = true;
        continue;
      }
      // It may have been the mark of a failed flush under a changed key: the check reads the home in any case.
      this.#found(`record ${nameOfKey(bytes)}`, 'the record is damaged', `it is removed; ${EVERY_TRACK}`);
      this.#change('state', bytes, undefined);
      this.#losesOpenTracks = true;
    }
  }

  /** Without all of it nobody knows which of the home's tracks are there, and which would be replaced by older ones. */
  #examineRecovery(): void {
    const sound = (this.#keys.get('state') ?? []).filter(({ isSound }) => isSound);
    if (
      hasWholeRecovery(
        sound.map(({ bytes }) => bytes.toString('latin1')),
        this.#trackCount,
      )
    )
      return;
    this.#isLost = true;
    const where = `${basename(this.#path)} recovery`;
    const what = 'the record of a recovery is damaged; which of its tracks are in the home is not known';
    this.findings.push(damage(where, what, 'recover the volume again, from the beginning', false));
  }

  /** Without its record nobody knows a snapshot's file, and older ones need what is in it. */
  #examineSnapshots(): void {
    const keys = this.#keys.get('snapshots') ?? [];
    const lost = keys.filter(({ bytes }) => !isSnapshot(this.#parsed('snapshots', bytes)));
    if (lost.length === 0) return;
    const numbers = lost.map(({ bytes }) => (bytes.length === 4 ? bytes.readUInt32BE(0) : 0));
    const reason = 'the record of a snapshot was damaged';
    const { sizeBytes } = present(this.#record, 'Snapshots of no volume are looked at');
    for (const [index, { bytes }] of lost.entries()) {
      const number = numbers[index] ?? 0;
      const where = `${basename(this.#path)} snapshot ${nameOfKey(bytes)}`;
      const how = `it is shown as lost-${number}, and it and all older ones can only be deleted`;
      this.findings.push(damage(where, 'the record is damaged', how, false));
      this.#change('snapshots', bytes, undefined);
      if (number === 0) continue;
      const name = `lost-${number}`;
      const record: SnapshotRecord = {
        number,
        name,
        storeId: NO_STORE,
        point: '',
        createdMs: 0,
        sizeBytes,
        state: 'damaged',
        reason,
      };
      this.#change('snapshots', bytes, record);
    }
    const newest = Math.max(...numbers);
    for (const record of this.snapshots()) {
      // A number that is damaged itself may have been any.
      // One by clone needs nothing of others.
      if (record.by === 'clone') continue;
      if (record.state === 'damaged' || (record.number > newest && !numbers.includes(0))) continue;
      this.#change('snapshots', keyOf(record.number), { ...record, state: 'damaged', reason });
    }
  }

  #parsed(name: DatabaseName, key: Buffer): unknown {
    const bytes = this.#after(name, key);
    return bytes === undefined ? undefined : parse(bytes);
  }

  #recordsOf(name: DatabaseName): unknown[] {
    return (this.#keys.get(name) ?? []).map(({ bytes }) => this.#parsed(name, bytes));
  }

  #damagedIn(name: DatabaseName): readonly Key[] {
    return this.#keys.get(name)?.filter((key) => !key.isSound) ?? [];
  }

  /** @returns the epochs of the points that have boundaries, and the last number of any point. */
  #examinePoints(): { readonly points: ReadonlySet<number>; readonly last: number } {
    const points = new Set<number>();
    let last = 0;
    for (const { bytes, isSound: sound } of this.#keys.get('points') ?? []) {
      const record = sound && bytes.length === 4 ? this.#parsed('points', bytes) : undefined;
      if (isPoint(record)) {
        const number = bytes.readUInt32BE(0);
        last = Math.max(last, number);
        // What a folded one had is in the next boundary's epoch.
        if (record.folded !== true) points.add(number);
        continue;
      }
      const how = 'the point is forgotten: what was backed up there next needs a full backup';
      this.#found(`point ${nameOfKey(bytes)}`, 'the record is damaged', how);
      this.#change('points', bytes, undefined);
    }
    for (const epoch of points) this.#examineEpoch(epoch);
    if (this.#isDamaged('state', 'grown')) this.#loseGrown(points);
    for (const { bytes } of this.#keys.get('epochs') ?? []) {
      if (bytes.length !== 4 || !points.has(bytes.readUInt32BE(0))) this.#foldEpoch(bytes, points);
    }
    return { points, last };
  }

  /** In which epochs the volume grew, and by what, is told by nothing else. */
  #loseGrown(points: ReadonlySet<number>): void {
    const how = 'every track counts as changed in every epoch';
    this.#found('grown', 'the record of what the volume grew by is damaged', how);
    this.#change('state', 'grown', undefined);
    const all = TrackSet.all(this.#trackCount).serialize();
    for (const epoch of points) this.#change('epochs', keyOf(epoch), all);
    this.#losesOpenTracks = true;
  }

  #examineEpoch(epoch: number): void {
    const key = keyOf(epoch);
    if (this.#tracksOf('epochs', key) !== undefined) return;
    const isThere = this.#keys.get('epochs')?.some(({ bytes }) => bytes.equals(key)) ?? false;
    const what = isThere ? 'its changed tracks are damaged' : 'its changed tracks are missing';
    this.#found(`epoch ${epoch}`, what, 'every track counts as changed in it');
    this.#change('epochs', key, TrackSet.all(this.#trackCount).serialize());
  }

  /** An epoch without a point: its tracks belong to the next point, else to the open epoch. */
  #foldEpoch(key: Buffer, points: ReadonlySet<number>): void {
    const tracks = key.length === 4 ? this.#tracksOf('epochs', key) : undefined;
    const epoch = key.length === 4 ? key.readUInt32BE(0) : 0;
    const next = Math.min(...[...points].filter((one) => one > epoch));
    this.#change('epochs', key, undefined);
    const what = 'it has no point';
    if (next === Infinity) {
      this.#found(`epoch ${nameOfKey(key)}`, what, EVERY_TRACK);
      this.#losesOpenTracks = true;
      return;
    }
    this.#found(`epoch ${nameOfKey(key)}`, what, `its tracks count as changed in epoch ${next}`);
    const before = this.#tracksOf('epochs', keyOf(next)) ?? TrackSet.all(this.#trackCount);
    const folded = TrackSet.union([before, tracks ?? TrackSet.all(this.#trackCount)]);
    this.#change('epochs', keyOf(next), folded.serialize());
  }

  #tracksOf(name: DatabaseName, key: string | Buffer): TrackSet | undefined {
    const bytes = this.#after(name, key);
    try {
      return bytes === undefined
        ? undefined
        : TrackSet.deserialize(bytes, `${this.#path} ${name}`, this.#trackCount);
    } catch (error) {
      if (error instanceof CorruptionError) return undefined;
      throw error;
    }
  }

  #examineOpen(last: number, segments: readonly FoundSegment[]): OpenRecord {
    const bytes = this.#after('state', 'open');
    const record: unknown = bytes === undefined ? undefined : parse(bytes);
    if (isOpenRecord(record) && record.number > last) return record;
    const what = isOpenRecord(record)
      ? `its number ${record.number} is not above that of the last point, ${last}`
      : 'its record is damaged or missing';
    this.#found('open epoch', what, EVERY_TRACK);
    this.#losesOpenTracks = true;
    // No number is used twice.
    const number = Math.max(last, ...segments.map(({ epoch }) => epoch)) + 1;
    return { number, isClean: false };
  }

  #examineSegments(open: OpenRecord, counting: readonly FoundSegment[]): void {
    if (this.#losesOpenTracks || this.#tracksOf('state', 'open-tracks')?.size === this.#trackCount) return;
    const lose = (epoch: number, what: string): void => {
      this.findings.push(damage(segmentName(epoch), what, EVERY_TRACK, true));
      this.#losesOpenTracks = true;
    };
    if (!counting.some(({ epoch }) => epoch === open.number))
      lose(open.number, 'the intent log of the open epoch is missing after an unclean stop');
    for (const { epoch, condition, isBegun } of counting) {
      if (condition === 'damaged') lose(epoch, 'the intent log is damaged');
      else if (!isBegun && epoch <= open.number) lose(epoch, 'the intent log has lost its beginning');
      else if (condition === 'torn') {
        const how = 'that is normal after a power cut: nothing was written by it';
        this.findings.push(note(segmentName(epoch), 'the last entry of the intent log is torn', how));
      }
    }
  }

  #settleOpen(open: OpenRecord): void {
    if (!this.#losesOpenTracks && this.#tracksOf('state', 'open-tracks') === undefined) {
      const isThere = this.#isDamaged('state', 'open-tracks');
      // A state whose open epoch was never saved means the same by its absence.
      this.#found('open-tracks', isThere ? 'the record is damaged' : 'the record is missing', EVERY_TRACK);
      this.#losesOpenTracks = true;
    }
    if (!this.#losesOpenTracks) return;
    this.#change('state', 'open-tracks', TrackSet.all(this.#trackCount).serialize());
    // The tracks are those of the open epoch now, not of one that a point has closed since.
    this.#change('state', 'open', open.isClean ? open : { ...open, tracksEpoch: open.number });
  }

  #examinePoison(): void {
    const bytes = this.#after('state', 'poison');
    const record: unknown = bytes === undefined ? undefined : parse(bytes);
    const isPoison = isRecord(record) && typeof record['reason'] === 'string';
    if (bytes === undefined ? this.#isDamaged('state', 'poison') : !isPoison) {
      this.#found('poison', 'the record of a failed flush is damaged', 'the volume counts as poisoned');
      const poison: PoisonRecord = { reason: 'a failure whose record is damaged', atMs: 0 };
      this.#change('state', 'poison', poison);
    }
    if (this.#after('state', 'poison') === undefined) {
      if (this.#isDamaged('state', 'suspect')) this.#change('state', 'suspect', undefined);
      return;
    }
    if (this.#tracksOf('state', 'suspect') !== undefined) return;
    if (this.#isDamaged('state', 'suspect'))
      this.#found('suspect', 'the record of the suspect tracks is damaged', 'every track is suspect');
    this.#change('state', 'suspect', TrackSet.all(this.#trackCount).serialize());
  }
}

/** What can be done about a state file that nothing can be read from. */
export async function lostState(path: string, what: string): Promise<Finding> {
  const bytes = existsSync(path) ? await readFile(path) : undefined;
  return damage(
    basename(path),
    what,
    adviceFor(path, bytes === undefined ? undefined : findIdentity(bytes)),
    false,
  );
}

export function damage(where: string, what: string, how: string, isRepairable: boolean): Finding {
  return { where, what, how, severity: 'damage', isRepairable, repaired: false };
}

/** Something to know, and nothing to mend. */
export function note(where: string, what: string, how: string): Finding {
  return { where, what, how, severity: 'note', isRepairable: false, repaired: false };
}

function adviceFor(path: string, record: VolumeRecord | undefined): string {
  const size = record === undefined ? '<its size>' : String(record.sizeBytes);
  const track = record === undefined ? '' : ` --track-size ${record.trackSizeBytes}`;
  const home = record?.home ?? 'home.raw';
  return `the home is untouched: put back a copy of ${path}, or move the home ${home} out of the directory and make a new volume of it with \`volume create <new> --size ${size}${track} --home <home>\`; its next backup is a full one`;
}

/**
 * A record of the identity that is whole by its checksum, somewhere in the bytes of a damaged file. It may be an old
 * one, so it is for advice only. Of several it is the largest: a volume never gets smaller.
 */
function findIdentity(bytes: Buffer): VolumeRecord | undefined {
  const start = Buffer.from('{"formatVersion":');
  let largest: VolumeRecord | undefined;
  for (let at = bytes.indexOf(start); at >= 0; at = bytes.indexOf(start, at + 1)) {
    const stop = Math.min(bytes.length, at + IDENTITY_BYTES_MAX);
    for (let end = bytes.indexOf('}', at) + 1; end > 0 && end < stop; end = bytes.indexOf('}', end) + 1) {
      const value = bytes.subarray(at, end);
      const stored = bytes.subarray(end, end + CHECKSUM_BYTES);
      if (!checksum(Buffer.from('volume'), value).equals(stored)) continue;
      const record: VolumeRecord = JSON.parse(value.toString());
      if (record.sizeBytes > (largest?.sizeBytes ?? 0)) largest = record;
    }
  }
  return largest;
}

function isReadable(database: LmdbDatabaseView, key: Buffer): boolean {
  try {
    return database.get(key) !== undefined;
  } catch (error) {
    if (error instanceof CorruptionError) return false;
    throw error;
  }
}

function changeKey(name: DatabaseName, key: Buffer): string {
  return `${name} ${key.toString('hex')}`;
}

function nameOfKey(key: Buffer): string {
  if (key.length === 4) return String(key.readUInt32BE(0));
  const text = key.toString('latin1');
  return /^[\x21-\x7e]+$/.test(text) ? text : `0x${key.toString('hex')}`;
}

function keyOf(number: number): Buffer {
  const key = Buffer.alloc(4);
  key.writeUInt32BE(number);
  return key;
}

function json(value: object): Buffer {
  return Buffer.from(JSON.stringify(value));
}
