/**
 * What may be wrong with a volume, and its repair as far as that needs no guessing (`volume check`).
 *
 *     lock -> state, intent log -> home, read through -> state written anew, what is left over removed -> unlock
 *          -> open, as any owner does -> poison cleared -> stop
 *
 * A volume that cannot be opened can be checked: everything is looked at by itself, and what is lost is replaced by
 * what is right in any case (`check-state.ts`). So a repair may cost a long incremental or a full backup, and never a
 * change. What only a guess could mend stays as it is, and the finding says what the user can do.
 *
 * Offline: it holds the volume's lock, and who serves a volume is told. It does not judge the bytes of the home, of
 * which nobody kept a checksum, except that they can be read.
 */

import { existsSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type Clock, CorruptionError, messageOf } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import type { TrackSet } from '../tracks/index.ts';
import { damage, lostState, note, StateExam } from './check-state.ts';
import { identityOf, lockVolume, STATE_FILE, type VolumeIdentity } from './directory.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import type { HomeLayout } from './layout.ts';
import { examineLayout } from './check-layout.ts';
import { findSegments, type FoundSegment, removeSegments, segmentName } from './intent-log.ts';
import type { OpenVolumeOptions } from './opening.ts';
import { readThrough, type Unreadable } from './read-through.ts';
import { SnapshotFolder } from './snapshot-folder.ts';
import { directoryIdentity } from './file-looks.ts';
import { type SnapshotRecord, type VolumeRecord, VolumeState } from './state.ts';
import { Volume } from './volume.ts';

export interface Finding {
  /** A file of the volume's directory, with the record in it, or the home. */
  readonly where: string;
  /** One clause: what is wrong. */
  readonly what: string;
  /** `note`: worth knowing, and nothing is lost by it. */
  readonly severity: 'damage' | 'note';
  /** Whether a check can mend it without guessing. */
  readonly isRepairable: boolean;
  /** Whether this check did. */
  readonly repaired: boolean;
  /** One clause: what the repair does; what the user can do where there is none. */
  readonly how: string;
}

export interface CheckOptions {
  readonly registry: OpenVolumeOptions['registry'];
  /** Of a volume under recovery, which is not opened without it. */
  readonly openSide?: OpenVolumeOptions['openSide'];
  readonly clock?: Clock;
  /** The directory was moved, not copied: it keeps its id and its points. */
  readonly moved?: boolean;
  /** Report only: nothing is written but the lock. */
  readonly dryRun?: boolean;
  readonly onFinding?: (finding: Finding) => void;
  /** The bytes of the home read so far, of how many. What it throws ends the check. */
  readonly onProgress?: (bytesRead: number, sizeBytes: number) => void;
}

export interface CheckResult {
  /** Undefined where the identity is lost. */
  readonly identity: VolumeIdentity | undefined;
  readonly findings: readonly Finding[];
  /** Whether the volume was stopped cleanly, and its home not touched since; undefined where it was not opened. */
  readonly startedClean: boolean | undefined;
  /** Why it had been poisoned, where it takes writes again now. */
  readonly clearedFailure: string | undefined;
}

/** Ranges of tracks named in a finding. */
const RANGES_SHOWN_MAX = 8;
/** What a process that was killed may leave, and nobody needs. */
const LEFT_OVER = /^(?:state\.mdb-lock-[0-9a-f]+|state\.mdb\.new(?:-lock.*)?)$/;

/**
 * Checks a volume and repairs it. Repairs are durable when the promise resolves.
 *
 * @throws {VolumeError} `not-a-volume`, `in-use`; and whatever the system refuses while repairing. Damage is not thrown but found.
 */
export async function checkVolume(path: string, options: CheckOptions): Promise<CheckResult> {
  const directory = resolve(path);
  const names = existsSync(directory) ? await readdir(directory) : [];
  // Before a lock file is put into it.
  if (!names.some((name) => name === STATE_FILE || name === 'home.raw' || name.startsWith('intent-'))) {
    const message = `Directory ${directory} holds no volume: ${STATE_FILE} is missing`;
    throw new VolumeError('not-a-volume', message, { directory });
  }
  const check = new Check(directory, options);
  const lock = await lockVolume(directory, 'volume check');
  let mayOpen: boolean;
  try {
    mayOpen = await check.examine();
  } finally {
    await lock.close();
  }
  return mayOpen && options.dryRun !== true ? await check.open() : check.result();
}

class Check {
  readonly #directory: string;
  readonly #options: CheckOptions;
  readonly #findings: Finding[] = [];
  /** Snapshots of which it was told that they are damaged. */
  readonly #toldSnapshots = new Set<number>();
  #identity: VolumeIdentity | undefined;
  #isReadable = false;
  #clearedFailure: string | undefined;
  #suspects: TrackSet | undefined;

  constructor(directory: string, options: CheckOptions) {
    this.#directory = directory;
    this.#options = options;
  }

  get #isWriting(): boolean {
    return this.#options.dryRun !== true;
  }

  result(startedClean?: boolean): CheckResult {
    const clearedFailure = this.#clearedFailure;
    return { identity: this.#identity, findings: this.#findings, startedClean, clearedFailure };
  }

  /** @returns whether the volume can be opened. */
  async examine(): Promise<boolean> {
    let exam: StateExam;
    const path = join(this.#directory, STATE_FILE);
    try {
      if (!existsSync(path)) throw new CorruptionError(`${STATE_FILE} is missing`, { where: path });
      exam = new StateExam(path);
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      this.#report(await lostState(path, error.message), false);
      return false;
    }
    let mayOpen: boolean;
    try {
      mayOpen = await this.#examineWith(exam);
    } finally {
      await exam.close();
    }
    if (this.#suspects !== undefined) {
      if (mayOpen && this.#isReadable && this.#isWriting) await this.#clearPoison(path);
      this.#tellPoison(this.#suspects);
    }
    return mayOpen;
  }

  async #examineWith(exam: StateExam): Promise<boolean> {
    const { record } = exam;
    if (record === undefined) {
      for (const finding of exam.findings) this.#report(finding, false);
      return false;
    }
    const identity = identityOf(this.#directory, { record });
    const geometry = new Geometry(record.sizeBytes, record.trackSizeBytes);
    this.#identity = identity;
    const segments = await this.#segments(identity.volumeId, geometry.trackCount);
    const counting = exam.examine(segments);
    const mayRepair = this.#isWriting && !exam.isLost;
    if (mayRepair && exam.needsRepair) await exam.repair();
    for (const finding of exam.findings) this.#report(finding, finding.isRepairable && mayRepair);
    if (exam.isLost) return false;
    await this.#clearAway(segments, counting);
    await this.#tellPlace(record);
    const isUsable = await this.#examineHome(identity, geometry);
    await this.#examineSnapshots(exam.snapshots(), geometry);
    this.#suspects = exam.suspects();
    return isUsable;
  }

  #segments(volumeId: string, trackCount: number): Promise<FoundSegment[]> {
    // A segment says itself how large its regions are.
    return findSegments({ directory: this.#directory, volumeId, trackCount, regionTracks: 1 });
  }

  /** Every content is read, and compared with its checksum. */
  async #examineSnapshots(records: readonly SnapshotRecord[], geometry: Geometry): Promise<void> {
    const folder = new SnapshotFolder({
      volumeDirectory: this.#directory,
      trackSizeBytes: geometry.trackSizeBytes,
      readOnly: true,
    });
    // From the newest on: what one of them has lost, all older ones have lost.
    for (const record of records.toReversed()) {
      if (record.state === 'damaged') {
        this.#tellSnapshot(record, record.reason ?? 'it was found damaged before');
        continue;
      }
      if (record.by === 'clone') {
        await this.#examineClone(record, folder);
        continue;
      }
      const store = await folder.open(record);
      if (store instanceof CorruptionError) {
        this.#tellSnapshot(record, store.message);
        continue;
      }
      try {
        const damaged = await store.verify();
        if (!damaged.isEmpty)
          this.#tellSnapshot(
            record,
            `${tracksText(damaged)} of its file ${damaged.size === 1 ? 'fails its' : 'fail their'} checksum`,
          );
      } finally {
        await store.close();
      }
    }
    await this.#clearSnapshotFolder(records);
  }

  /** It has no checksums: whether it is there, and as long as it was, is all that can be told. */
  async #examineClone(record: SnapshotRecord, folder: SnapshotFolder): Promise<void> {
    if (record.state !== 'ready') return;
    const clone = await folder.openClone(record);
    if (clone instanceof CorruptionError) this.#tellSnapshot(record, clone.message);
    else await clone.close();
  }

  #tellSnapshot({ number, name, by }: Pick<SnapshotRecord, 'number' | 'name' | 'by'>, what: string): void {
    this.#toldSnapshots.add(number);
    const how = by === 'clone' ? 'delete it' : 'delete it; older snapshots need what it held, too';
    this.#report(damage(`snapshot ${name}`, what, how, false), false);
  }

  async #clearSnapshotFolder(records: readonly SnapshotRecord[]): Promise<void> {
    const folder = join(this.#directory, 'snapshots');
    if (!existsSync(folder)) return;
    const known = new Set(records.map((record) => SnapshotFolder.nameOf(record)));
    for (const name of await readdir(folder)) {
      if (!SnapshotFolder.isName(name) || known.has(name)) continue;
      if (this.#isWriting) await rm(join(folder, name), { force: true });
      const finding = note(`snapshots/${name}`, 'no snapshot has the file', 'it is removed');
      this.#report({ ...finding, isRepairable: true }, this.#isWriting);
    }
  }

  /** In the state itself: a rollback that was interrupted by the failure can be finished by an opening only then. */
  async #clearPoison(path: string): Promise<void> {
    const state = VolumeState.open(path, { readOnly: false });
    try {
      const { volumeId, sizeBytes, trackSizeBytes } = state.record;
      const { trackCount } = new Geometry(sizeBytes, trackSizeBytes);
      const segments = await this.#segments(volumeId, trackCount);
      const { history } = state.load(trackCount, segments);
      this.#clearedFailure = state.poison?.reason;
      history.markAll();
      await state.saveChecked(history);
    } finally {
      await state.close();
    }
  }

  #report(finding: Finding, repaired: boolean): void {
    const told: Finding = { ...finding, repaired };
    this.#findings.push(told);
    this.#options.onFinding?.(told);
  }

  /** Segments that no epoch needs, and drafts of files. */
  async #clearAway(segments: readonly FoundSegment[], counting: readonly FoundSegment[]): Promise<void> {
    const needless = segments.filter((segment) => !counting.includes(segment));
    const names = (await readdir(this.#directory)).filter((name) => LEFT_OVER.test(name));
    if (this.#isWriting) {
      await removeSegments(this.#directory, (epoch) => needless.some((segment) => segment.epoch === epoch));
      for (const name of names) await rm(join(this.#directory, name), { force: true });
    }
    for (const name of [...needless.map(({ epoch }) => segmentName(epoch)), ...names]) {
      const finding = note(name, 'the file is left over and nothing needs it', 'it is removed');
      this.#report({ ...finding, isRepairable: true }, this.#isWriting);
    }
  }

  async #tellPlace({ directory: before }: VolumeRecord): Promise<void> {
    const now = await directoryIdentity(this.#directory);
    if (now.device === before.device && now.inode === before.inode) return;
    const how =
      this.#options.moved === true
        ? 'it was moved, and keeps its id and its points'
        : 'it is taken for a copy: it gets an id of its own and the next backup is a full one (--moved keeps both)';
    this.#report(note('directory', 'the volume is not in the directory it was in', how), false);
  }

  /** @returns whether the volume can be opened on it. */
  async #examineHome(identity: VolumeIdentity, geometry: Geometry): Promise<boolean> {
    const { home, sizeBytes, layout } = identity;
    if (layout !== undefined) return this.#examineLayout(identity, layout, geometry);
    let device: BlockDevice;
    try {
      device = await this.#options.registry.open(home, { readOnly: true, syncName: 'home', lock: 'shared' });
    } catch (error) {
      const how = 'put it back there, or restore the volume from a backup';
      this.#report(damage(`home ${home}`, `it cannot be opened: ${messageOf(error)}`, how, false), false);
      return false;
    }
    try {
      if (device.sizeBytes < sizeBytes) {
        const what = `it has ${device.sizeBytes} bytes, wanted ${sizeBytes}`;
        const how = 'what it lost is in no other place: restore the volume from a backup';
        this.#report(damage(`home ${home}`, what, how, false), false);
        return false;
      }
      const { onProgress } = this.#options;
      const unreadable = await readThrough(device, identity, geometry, (bytes) =>
        onProgress?.(bytes, sizeBytes),
      );
      this.#tellUnreadable(home, unreadable);
      return true;
    } finally {
      await device.close();
    }
  }

  async #examineLayout(identity: VolumeIdentity, layout: HomeLayout, geometry: Geometry): Promise<boolean> {
    const { registry, onProgress } = this.#options;
    const { isUsable, unreadable } = await examineLayout({
      registry,
      identity,
      layout,
      geometry,
      report: (finding) => this.#report(finding, false),
      onProgress: (bytes) => onProgress?.(bytes, identity.sizeBytes),
    });
    if (isUsable) this.#tellUnreadable(identity.home, unreadable);
    return isUsable;
  }

  #tellUnreadable(home: string, unreadable: Unreadable | undefined): void {
    this.#isReadable = unreadable === undefined;
    if (unreadable === undefined) return;
    const what = `${tracksText(unreadable.tracks)} cannot be read: ${messageOf(unreadable.error)}`;
    const how = 'restore the volume from a backup, on another disk if this one fails';
    this.#report(damage(`home ${home}`, what, how, false), false);
  }

  #tellPoison(suspects: TrackSet): void {
    const what = suspects.isEmpty
      ? 'a write or flush failed, and the volume refuses writes; no track is suspect'
      : `a write or flush failed, and the volume refuses writes; ${tracksText(suspects)} may not hold what was written last`;
    const finding = note(STATE_FILE, what, 'have what is on the volume checked by its filesystem');
    if (this.#isReadable) this.#report({ ...finding, isRepairable: true }, this.#isWriting);
    else this.#report(finding, false);
  }

  /** The proof that it can be used again; settles the identity, and clears the mark of a failure. */
  async open(): Promise<CheckResult> {
    const { registry, clock, moved } = this.#options;
    let volume: Volume;
    try {
      volume = await Volume.open(this.#directory, {
        ...(this.#options.openSide === undefined ? {} : { openSide: this.#options.openSide }),
        registry,
        activity: 'volume check',
        ...(clock === undefined ? {} : { clock }),
        ...(moved === undefined ? {} : { moved }),
      });
    } catch (error) {
      const isFinding =
        error instanceof CorruptionError ||
        (error instanceof VolumeError && error.code === 'rollback-unfinished');
      if (!isFinding) throw error;
      const how = 'restore the volume from a backup';
      this.#report(damage(STATE_FILE, `the volume cannot be opened: ${error.message}`, how, false), false);
      return this.result();
    }
    try {
      this.#identity = volume.identity;
      // Some become damaged by the opening: those that a changed home has lost.
      for (const snapshot of volume.snapshots().toReversed())
        if (snapshot.state === 'damaged' && !this.#toldSnapshots.has(snapshot.number))
          this.#tellSnapshot(snapshot, snapshot.reason ?? 'it is damaged');
      return this.result(volume.startedClean);
    } finally {
      await volume.close();
    }
  }
}

/** The tracks as a part of a sentence, as ranges, and not without end. */
function tracksText(tracks: TrackSet): string {
  const ranges: string[] = [];
  let count = 0;
  for (const { first, count: length } of tracks.runs()) {
    count += 1;
    if (count > RANGES_SHOWN_MAX) break;
    ranges.push(length === 1 ? String(first) : `${first}-${first + length - 1}`);
  }
  const more = count > RANGES_SHOWN_MAX ? ` and others, ${tracks.size} in all` : '';
  return `${tracks.size === 1 ? 'track' : 'tracks'} ${ranges.join(', ')}${more}`;
}
