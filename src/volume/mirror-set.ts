/**
 * Several devices with the same content, as one (seeds/2, Fig. 3A and 4): the mirrored part of a home.
 *
 *     change  -> all members that have a device; done when all have it
 *     read    -> one member that is in sync; another one where that fails
 *     flush   -> all members that were written to
 *
 * **A member that fails goes away, and the mirror goes on.** Only the failure of the last member in sync is the caller's.
 * That a member is away, with what it lacks, is on record before anything is answered that only the others have: who
 * opens the volume after a crash must not take it for current. `save` puts it there.
 *
 * **A member's lack** is kept exactly in memory, in tracks of the volume (`mirror-member.ts`). A member that comes back
 * gets every change from then on, and is brought what it lacks behind them (`mirror-rebuild.ts`).
 *
 * **Reads** go to members by regions of the address: what is read again is in one page cache, not in each, and what is
 * read in a row stays on one disk for a while. What a member cannot read is taken from another one and written there
 * anew; a member that cannot be written goes away.
 *
 * **No space.** Refused by all members in sync, it is the caller's, and the members are made equal again: a write may
 * have been done in part. Refused by some, these go away: the others have it, and a mirror is there to go on.
 *
 * Overlapping changes are carried out one after the other, so that all members see one order. Trims become zeroes, so
 * that all read the same afterwards.
 */

import { assert, type Clock, LIMITS, type MaybePromise, messageOf, systemCode } from '../base/index.ts';
import {
  assertRange,
  type BlockDevice,
  type DeviceCapabilities,
  DeviceError,
  type DeviceExtent,
  extendTo,
  parseDeviceAddress,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';
import type { TrackRun, TrackSet } from '../tracks/index.ts';
import { VolumeError } from './errors.ts';
import { MirrorMember, type MirrorMemberStart, type MirrorMemberStatus } from './mirror-member.ts';
import { RangeOrder } from './range-order.ts';
import { isZero } from './snapshot-store.ts';

export interface MirrorSetOptions {
  /** At least one of them in sync. Closed with the mirror. */
  readonly members: readonly MirrorMemberStart[];
  readonly sizeBytes: number;
  /** Where it begins in the volume. */
  readonly startBytes: number;
  readonly trackSizeBytes: number;
  readonly readOnly: boolean;
  /** Makes durable which members are away, and what they lack, as `absentees` tells. */
  readonly save: () => Promise<void>;
  readonly clock: Clock;
  /** The volume's name, for messages. */
  readonly name: string;
  readonly onWarning?: ((sentence: string) => void) | undefined;
}

/** What a member did not do. */
interface Failure {
  readonly member: MirrorMember;
  readonly device: BlockDevice | undefined;
  readonly error: unknown;
}

export class MirrorSet implements BlockDevice {
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly members: readonly MirrorMember[];
  readonly startBytes: number;
  readonly trackSizeBytes: number;
  readonly #options: MirrorSetOptions;
  readonly #order = new RangeOrder();
  #sizeBytes: number;
  /** Those in sync, in their order. */
  #readers: readonly MirrorMember[] = [];
  /** Until what is known of the members is on record; rejected for ever where it could not be. */
  #unrecorded: Promise<void> | undefined;
  /** What goes on behind reads that failed on a member. */
  readonly #mending = new Set<Promise<void>>();
  #useCount = 0;

  constructor(options: MirrorSetOptions) {
    this.#options = options;
    this.#sizeBytes = options.sizeBytes;
    this.startBytes = options.startBytes;
    this.trackSizeBytes = options.trackSizeBytes;
    this.members = options.members.map((start, index) => new MirrorMember(index, start, this));
    this.#sort();
    assert(this.#readers.length > 0, `A mirror of volume ${options.name} has no member in sync`);
    const devices = this.members.flatMap(({ device }) => (device === undefined ? [] : [device]));
    this.description = `mirror of ${options.members.map(({ place }) => place).join(', ')}`;
    this.blockSizeBytes = Math.max(...devices.map((device) => device.blockSizeBytes));
    const { readOnly } = options;
    const extents = devices.some(({ capabilities }) => capabilities.extents);
    this.capabilities = { readOnly, trim: !readOnly, extents, fastZero: false };
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Up to the end of the mirror, from the beginning of the volume. */
  get trackCount(): number {
    return Math.ceil((this.startBytes + this.#sizeBytes) / this.trackSizeBytes);
  }

  /** The tracks that it has a part of. */
  get ownTracks(): TrackRun {
    return this.tracksOf(0, this.#sizeBytes);
  }

  get clock(): Clock {
    return this.#options.clock;
  }

  /** Counts what users do, for whoever comes after them. */
  get useCount(): number {
    return this.#useCount;
  }

  get isDegraded(): boolean {
    return this.#readers.length < this.members.length;
  }

  status(): readonly MirrorMemberStatus[] {
    return this.members.map((member) => member.status());
  }

  /** Members that are not in sync, for the record. */
  absentees(): readonly MirrorMember[] {
    return this.members.filter((member) => !member.isInSync);
  }

  tracksOf(offsetBytes: number, lengthBytes: number): TrackRun {
    const from = this.startBytes + offsetBytes;
    const first = Math.floor(from / this.trackSizeBytes);
    const last = Math.floor((from + lengthBytes - 1) / this.trackSizeBytes);
    return { first, count: last - first + 1 };
  }

  /** The bytes of the mirror that lie in tracks of the volume; undefined where none do. */
  rangeOf(run: TrackRun): { readonly from: number; readonly to: number } | undefined {
    const from = Math.max(0, run.first * this.trackSizeBytes - this.startBytes);
    const to = Math.min(this.#sizeBytes, (run.first + run.count) * this.trackSizeBytes - this.startBytes);
    return from < to ? { from, to } : undefined;
  }

  read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    assertRange(this, offsetBytes, target.length);
    this.#useCount += 1;
    const region = Math.floor(offsetBytes / LIMITS.mirrorReadRegionBytes);
    const member = this.#readers[region % this.#readers.length];
    assert(member !== undefined, `${this.description} has no member in sync`);
    const { device } = member;
    try {
      const done = member.use((used) => used.read(target, offsetBytes));
      return done?.catch((error: unknown) =>
        this.#readElsewhere({ member, device, error }, target, offsetBytes),
      );
    } catch (error) {
      return this.#readElsewhere({ member, device, error }, target, offsetBytes);
    }
  }

  write(source: Buffer, offsetBytes: number, options?: WriteOptions): MaybePromise<void> {
    this.#assertWritable(offsetBytes, source.length);
    return this.#change(offsetBytes, source.length, (device) => device.write(source, offsetBytes, options));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options?: ZeroOptions): MaybePromise<void> {
    this.#assertWritable(offsetBytes, lengthBytes);
    assert(options?.fast !== true, `${this.description} has no fast zeroes`);
    return this.#change(offsetBytes, lengthBytes, (device) =>
      device.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  trim(offsetBytes: number, lengthBytes: number, options?: WriteOptions): MaybePromise<void> {
    return this.writeZeroes(offsetBytes, lengthBytes, { ...options, mayTrim: true });
  }

  /** Makes durable what had finished, on every member that has a device. */
  async flush(): Promise<void> {
    const inFlight = [...this.#runsInFlight()];
    const flushed = this.members
      .filter((member) => member.device !== undefined)
      .map((member) => this.#attempt(member, () => member.flush(inFlight)));
    const failures = (await Promise.all(flushed)).filter((failure) => failure !== undefined);
    // A flush that found no room has lost something all the same.
    if (failures.length > 0) this.#settle(failures, []);
    await this.#unrecorded;
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    const [first, ...others] = this.#readers;
    assert(first?.device !== undefined, `${this.description} has no member in sync`);
    try {
      return await first.device.extents(offsetBytes, lengthBytes);
    } catch (error) {
      for (const { device } of others)
        if (device !== undefined) return device.extents(offsetBytes, lengthBytes);
      throw error;
    }
  }

  /** All members that have a device grow, and hold the same in what is new. @throws what extending them throws. */
  async extend(sizeBytes: number): Promise<void> {
    const beforeBytes = this.#sizeBytes;
    if (sizeBytes <= beforeBytes) return;
    for (const { device } of this.members) if (device !== undefined) await extendTo(device, sizeBytes);
    this.#sizeBytes = sizeBytes;
    const grown = this.tracksOf(beforeBytes, sizeBytes - beforeBytes);
    for (const member of this.members) {
      member.grow();
      if (member.device === undefined) member.miss(grown);
    }
    try {
      await this.makeEqual(beforeBytes, sizeBytes);
    } catch (error) {
      this.#sizeBytes = beforeBytes;
      throw error;
    }
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#mending);
    await Promise.all(this.members.map((member) => member.close()));
  }

  // --- For what goes on behind the users: rebuilding, comparing ---

  /** Does something while no change of bytes `from` to `to - 1` runs, nor anything else that is done this way. */
  async exclusively<T>(from: number, to: number, body: () => Promise<T>): Promise<T> {
    const turn = this.#order.acquire(from, to);
    try {
      await turn.ready;
      return await body();
    } finally {
      turn.release();
    }
  }

  /**
   * Fills a buffer with what the mirror holds.
   *
   * @param isWanted members that may be read; all in sync where left out.
   * @returns the member that gave it.
   * @throws the first one's error where none can.
   */
  async readGood(
    content: Buffer,
    offsetBytes: number,
    isWanted: (member: MirrorMember) => boolean = () => true,
  ): Promise<MirrorMember> {
    let first: Failure | undefined;
    for (const member of this.#readers.filter(isWanted)) {
      const failure = await this.#attempt(member, (device) => device.read(content, offsetBytes));
      if (failure === undefined) return member;
      first ??= failure;
    }
    throw first?.error ?? new Error(`No member of ${this.description} can be read`);
  }

  /** Writes to one member. @returns whether it has it; it is away, or has another device, where not. */
  async bring(member: MirrorMember, content: Buffer, offsetBytes: number): Promise<boolean> {
    const { device: before } = member;
    const run = this.tracksOf(offsetBytes, content.length);
    const isZeroes = isZero(content);
    const failure = await this.#attempt(member, () =>
      member.change(run, (device) =>
        isZeroes
          ? device.writeZeroes(offsetBytes, content.length, { mayTrim: true })
          : device.write(content, offsetBytes),
      ),
    );
    if (failure === undefined) return member.device === before;
    this.lose(failure.member, failure.device, failure.error);
    await this.#unrecorded;
    return false;
  }

  /** Makes durable what one member has. @returns whether it is; the member is away, or has another device, where not. */
  async flushMember(member: MirrorMember): Promise<boolean> {
    const { device: before } = member;
    const failure = await this.#attempt(member, () => member.flush(this.#runsInFlight()));
    if (failure === undefined) return member.device === before;
    this.lose(failure.member, failure.device, failure.error);
    await this.#unrecorded;
    return false;
  }

  /**
   * A member has nothing that counts from now on, and its device is closed; on record when the promise resolves.
   *
   * @throws {VolumeError} `last-member`
   */
  async giveUp(member: MirrorMember, reason: string): Promise<void> {
    if (member.isInSync && this.#readers.length === 1) throw lastMember(member.place);
    member.leave({ sinceMs: this.#options.clock.now(), reason }, true);
    this.#sort();
    await this.recordNow();
  }

  /** What is known of the members is on record when the promise resolves. */
  async recordNow(): Promise<void> {
    this.#record();
    await this.#unrecorded;
  }

  /** The member has everything, durably; that is on record when the promise resolves. */
  async recordWhole(member: MirrorMember): Promise<void> {
    member.whole();
    this.#sort();
    await this.recordNow();
  }

  /** Makes a device large enough for a member. @throws {DeviceError} 'too-small', 'unaligned'; what extending throws. */
  async makeFit(device: BlockDevice): Promise<void> {
    if (device.blockSizeBytes > this.blockSizeBytes) {
      const valueBytes = this.blockSizeBytes;
      const { description, blockSizeBytes } = device;
      const message = `${description} has blocks of ${blockSizeBytes} bytes, wanted at most ${valueBytes}`;
      throw new DeviceError('unaligned', message, { device: description, valueBytes, blockSizeBytes });
    }
    await extendTo(device, this.#sizeBytes);
  }

  /** A member has a device again, which gets every change from now on. @param isUnknown everything is missing there. */
  async join(member: MirrorMember, place: string, device: BlockDevice, isUnknown: boolean): Promise<void> {
    await this.makeFit(device);
    member.join(place, device, isUnknown);
  }

  /**
   * Copies what one member in sync holds over the others in sync, where they differ. Nobody changes the range meanwhile.
   *
   * @throws what reading throws where no member can be read.
   */
  async makeEqual(fromBytes: number, toBytes: number): Promise<void> {
    for (let at = fromBytes; at < toBytes; at += LIMITS.fillRunBytesMax) {
      const others = this.members.filter(({ device }) => device !== undefined);
      if (others.length < 2) return;
      const content = Buffer.allocUnsafe(Math.min(LIMITS.fillRunBytesMax, toBytes - at));
      const found = Buffer.allocUnsafe(content.length);
      const source = await this.readGood(content, at);
      for (const member of others) {
        if (member === source || member.device === undefined) continue;
        const failure = await this.#attempt(member, (device) => device.read(found, at));
        if (failure !== undefined || !found.equals(content)) await this.bring(member, content, at);
      }
    }
  }

  /** Makes the members in sync equal in tracks that may not be, and that durable. Nobody writes meanwhile. */
  async reconcile(tracks: TrackSet): Promise<void> {
    if (this.#readers.length < 2) return;
    const runTracks = Math.max(1, Math.floor(LIMITS.fillRunBytesMax / this.trackSizeBytes));
    for (const run of tracks.runs(runTracks)) {
      const range = this.rangeOf(run);
      if (range !== undefined) await this.makeEqual(range.from, range.to);
    }
    for (const member of this.#readers) await this.flushMember(member);
  }

  /**
   * A member failed. It goes away, unless it is the last one in sync.
   *
   * @param device the one that failed; nothing is done where the member has another one by now.
   * @returns whether it is away.
   */
  lose(member: MirrorMember, device: BlockDevice | undefined, error: unknown, isUnknown = false): boolean {
    // Somebody else may have seen it fail. What it failed counts as not flushed, and so as missing.
    if (device === undefined || member.device !== device) return member.device === undefined;
    if (member.isInSync && this.#readers.length === 1) return false;
    const { clock, name, onWarning } = this.#options;
    const reason = messageOf(error);
    member.leave({ sinceMs: clock.now(), reason }, isUnknown);
    this.#sort();
    this.#record();
    const left = this.#readers.length;
    onWarning?.(
      `Volume ${name} goes on without ${member.place}, with ${left} of ${this.members.length} copies: ${reason}`,
    );
    return true;
  }

  // --- Inside ---

  #sort(): void {
    this.#readers = this.members.filter(({ isInSync }) => isInSync);
  }

  #record(): void {
    const recorded = Promise.all([this.#unrecorded, this.#options.save()]).then(() => {
      if (this.#unrecorded === recorded) this.#unrecorded = undefined;
    });
    // Whoever waits hears of it.
    recorded.catch(() => undefined);
    this.#unrecorded = recorded;
  }

  *#runsInFlight(): Generator<TrackRun> {
    for (const { start, end } of this.#order.ranges()) yield this.tracksOf(start, end - start);
  }

  /** @returns what became of it: undefined where it was done. */
  async #attempt(
    member: MirrorMember,
    perform: (device: BlockDevice) => MaybePromise<void>,
  ): Promise<Failure | undefined> {
    const { device } = member;
    try {
      await member.use(perform);
      return undefined;
    } catch (error) {
      return { member, device, error };
    }
  }

  #change(
    offsetBytes: number,
    lengthBytes: number,
    perform: (device: BlockDevice) => MaybePromise<void>,
  ): MaybePromise<void> {
    this.#useCount += 1;
    const end = offsetBytes + lengthBytes;
    if (this.#order.size > 0 && this.#order.conflicts(offsetBytes, end))
      return this.exclusively(offsetBytes, end, async () =>
        this.#changeAll(offsetBytes, lengthBytes, perform),
      );
    const done = this.#changeAll(offsetBytes, lengthBytes, perform);
    if (done === undefined) return undefined;
    const turn = this.#order.acquire(offsetBytes, end);
    return done.finally(turn.release);
  }

  #changeAll(
    offsetBytes: number,
    lengthBytes: number,
    perform: (device: BlockDevice) => MaybePromise<void>,
  ): MaybePromise<void> {
    const run = this.tracksOf(offsetBytes, lengthBytes);
    const running: Promise<Failure | undefined>[] = [];
    const failures: Failure[] = [];
    for (const member of this.members) {
      const { device } = member;
      if (device === undefined) {
        member.miss(run);
        continue;
      }
      try {
        const done = member.change(run, perform);
        if (done === undefined) continue;
        running.push(
          done.then(
            () => undefined,
            (error: unknown) => ({ member, device, error }),
          ),
        );
      } catch (error) {
        failures.push({ member, device, error });
      }
    }
    if (running.length === 0 && failures.length === 0 && this.#unrecorded === undefined) return undefined;
    return this.#finish(offsetBytes, lengthBytes, running, failures);
  }

  async #finish(
    offsetBytes: number,
    lengthBytes: number,
    running: readonly Promise<Failure | undefined>[],
    atOnce: readonly Failure[],
  ): Promise<void> {
    // All must have ended before the buffer is the caller's again.
    const later = (await Promise.all(running)).filter((failure) => failure !== undefined);
    const failures = [...atOnce, ...later];
    if (failures.length > 0) {
      const refusals = failures.filter(({ member, error }) => member.isInSync && isRefusal(error));
      const refusal = this.#settle(failures, refusals);
      if (refusal !== undefined) {
        await this.makeEqual(offsetBytes, offsetBytes + lengthBytes);
        await this.#unrecorded;
        throw refusal.error;
      }
    }
    await this.#unrecorded;
  }

  /**
   * Decides what becomes of the members that failed. Those that others have outlived go away.
   *
   * @param refusals those of them that are no reason to go away, where all others in sync have failed as well.
   * @returns the first of these, where they stay.
   * @throws the first error, where no member in sync has done it, nor refused it.
   */
  #settle(failures: readonly Failure[], refusals: readonly Failure[]): Failure | undefined {
    const failed = new Set(failures.map(({ member }) => member));
    const isDone = this.#readers.some((member) => !failed.has(member));
    if (!isDone && refusals.length === 0) {
      const first = failures.find(({ member }) => member.isInSync) ?? failures[0];
      throw first?.error ?? new Error(`No member of ${this.description} is in sync`);
    }
    const staying = isDone ? [] : refusals;
    for (const failure of failures)
      if (!staying.includes(failure)) this.lose(failure.member, failure.device, failure.error);
    return staying[0];
  }

  async #readElsewhere(failure: Failure, target: Buffer, offsetBytes: number): Promise<void> {
    const { member, device, error } = failure;
    member.noteReadError();
    try {
      await this.readGood(target, offsetBytes, (other) => other !== member);
    } catch {
      throw error;
    }
    if (this.capabilities.readOnly || member.device !== device) return;
    const mended = this.#mend(failure, offsetBytes, target.length).finally(() =>
      this.#mending.delete(mended),
    );
    this.#mending.add(mended);
  }

  /** Writes anew what a member could not read, or gives it up. */
  async #mend({ member, device, error }: Failure, offsetBytes: number, lengthBytes: number): Promise<void> {
    if (!isOfMedium(error)) {
      this.lose(member, device, error, isCutShort(error, member.place));
      return;
    }
    const { name, onWarning } = this.#options;
    const end = offsetBytes + lengthBytes;
    await this.exclusively(offsetBytes, end, async () => {
      if (member.device !== device) return;
      const content = Buffer.allocUnsafe(lengthBytes);
      try {
        await this.readGood(content, offsetBytes, (other) => other !== member);
      } catch {
        // The others have failed meanwhile; it is the last one.
        return;
      }
      if (!(await this.bring(member, content, offsetBytes))) return;
      const range = `bytes ${offsetBytes} to ${end - 1}`;
      onWarning?.(
        `Volume ${name}: ${member.place} could not read ${range}, which were written there anew from another copy: ${messageOf(error)}`,
      );
    }).catch(() => undefined);
  }

  #assertWritable(offsetBytes: number, lengthBytes: number): void {
    assertRange(this, offsetBytes, lengthBytes);
    assert(!this.capabilities.readOnly, `Write to ${this.description}, which is open read-only`);
  }
}

/** The error of what would leave a mirror without a member in sync. */
export function lastMember(place: string, cause?: unknown): VolumeError<'last-member'> {
  const message = `${place} is the only copy that is current and can be read; let another one be rebuilt first`;
  return new VolumeError('last-member', message, { place }, { cause });
}

/** Nothing is wrong with the device: it has no room. */
function isRefusal(error: unknown): boolean {
  const code = systemCode(error);
  return code === 'no-space' || code === 'ENOSPC';
}

/** Errnos of a place on a disk that cannot be read, and is good again when it is written. */
const MEDIUM_ERRNOS: readonly string[] = ['EIO', 'EILSEQ', 'EBADMSG', 'ENODATA', 'EREMOTEIO'];

/** Whether it is a place of the device that cannot be read, and not the device. */
function isOfMedium(error: unknown): boolean {
  if (error instanceof DeviceError)
    return 'errno' in error.details && MEDIUM_ERRNOS.includes(error.details.errno ?? '');
  return systemCode(error) === 'io' || MEDIUM_ERRNOS.includes(systemCode(error) ?? '');
}

/** A file that has become shorter: the system names no reason. What is left of it nobody knows. */
function isCutShort(error: unknown, place: string): boolean {
  if (parseDeviceAddress(place).scheme !== 'file') return false;
  return error instanceof DeviceError && error.code === 'io' && !('errno' in error.details);
}
