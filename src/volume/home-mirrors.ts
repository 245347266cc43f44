/**
 * The mirrors of a volume's home, for who looks after them: which members are away, how one comes back or is replaced,
 * and whether all hold the same.
 *
 *     away -> rejoin: it has a device again, and gets every change -> rebuild: it has everything -> in sync
 *
 * Nothing here decides when: `daemon` tries again what is away, and commands ask for the rest.
 */

import { rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setAttribute, Slots, syncDirectory } from '../base/index.ts';
import { type BlockDevice, createSparseFile, type DeviceRegistry } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { exists, HOME_ATTRIBUTE, type VolumeIdentity } from './directory.ts';
import { VolumeError } from './errors.ts';
import type { Geometry } from './geometry.ts';
import { describeLayout, type ExtentKind, extentLengths, wholePathOf } from './layout.ts';
import { inodeOf } from './layout-create.ts';
import type { LayoutHome, MirrorPart } from './layout-home.ts';
import type { MirrorMember, MirrorMemberStatus } from './mirror-member.ts';
import { lastMember, type MirrorSet } from './mirror-set.ts';
import { type MirrorWork, rebuildMember, scrubMirror, type ScrubOptions } from './mirror-rebuild.ts';
import { dropCaches } from './read-through.ts';
import type { HomeStamps } from './file-looks.ts';

export interface HomeMirrorsOptions {
  readonly identity: VolumeIdentity;
  /** The volume's; its size changes. */
  readonly geometry: Geometry;
  readonly laidOut: LayoutHome;
  readonly registry: Pick<DeviceRegistry, 'open'>;
}

/** A part of a home, as `status` shows it. */
export interface ExtentStatus {
  readonly kind: ExtentKind;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly stripeBytes?: number;
  /** Mirrors alone have more to say of a member than its place. */
  readonly members: readonly (MirrorMemberStatus | { readonly place: string })[];
}

export interface ScrubOutcome {
  /** Bytes that were compared, counted once. */
  readonly bytesCompared: number;
  /** Tracks that differed. */
  readonly tracks: TrackSet;
  /** Mirrors of which just one member is in sync: there is nothing to compare. */
  readonly skipped: number;
}

/** A member and where it is. */
interface Place extends MirrorPart {
  readonly member: MirrorMember;
}

export class HomeMirrors {
  readonly #options: HomeMirrorsOptions;
  /** One at a time gives a member another device. */
  readonly #changing = new Slots(1);

  constructor(options: HomeMirrorsOptions) {
    this.#options = options;
  }

  /** The parts of the home, in their order. */
  status(): readonly ExtentStatus[] {
    const { laidOut, geometry } = this.#options;
    const layout = laidOut.layout(0);
    const lengths = extentLengths(layout, geometry.sizeBytes);
    let offsetBytes = 0;
    return layout.extents.map((extent, number): ExtentStatus => {
      const { kind, stripeBytes } = extent;
      const set = laidOut.mirrors.find((mirror) => mirror.extent === number)?.set;
      const lengthBytes = lengths[number] ?? 0;
      const part = {
        kind,
        offsetBytes,
        lengthBytes,
        ...(stripeBytes === undefined ? {} : { stripeBytes }),
        members: set?.status() ?? extent.members.map(({ place }) => ({ place })),
      };
      offsetBytes += lengthBytes;
      return part;
    });
  }

  /** See `LayoutHome.stamps`. */
  stamps(): Promise<HomeStamps> {
    return this.#options.laidOut.stamps();
  }

  /** What the volume's identity says of its home when it is opened, as it is now. */
  home(): Pick<VolumeIdentity, 'home' | 'layout'> {
    const layout = this.#options.laidOut.layout(0);
    return { home: describeLayout(layout), layout };
  }

  /** Whether there is any mirror. */
  get isMirrored(): boolean {
    return this.#options.laidOut.mirrors.length > 0;
  }

  /** Bytes of the volume that lie in mirrors. */
  get mirroredBytes(): number {
    return this.#options.laidOut.mirrors.reduce((sum, { set }) => sum + set.sizeBytes, 0);
  }

  get awayCount(): number {
    return this.#places().filter(({ member }) => member.device === undefined).length;
  }

  get rebuildingCount(): number {
    return this.#places().filter(({ member }) => member.isRebuilding).length;
  }

  /** Tracks that members with a device still lack. */
  get missingTracks(): number {
    const rebuilding = this.#places().filter(({ member }) => member.isRebuilding);
    return rebuilding.reduce((sum, { member }) => sum + member.missingCount, 0);
  }

  /**
   * Tries to open every member that is away. Those that can be get every change from then on; `rebuild` brings them the
   * rest.
   *
   * @returns how many are back.
   */
  rejoin(): Promise<number> {
    return this.#changing.run(() => this.#rejoinAll());
  }

  async #rejoinAll(): Promise<number> {
    let count = 0;
    for (const place of this.#places()) {
      if (place.member.device !== undefined) continue;
      try {
        await this.#rejoin(place);
        count += 1;
      } catch {
        // Away as before, for whatever reason now.
      }
    }
    return count;
  }

  /**
   * Brings members that are back everything they lack; they are in sync, durably, when the promise resolves.
   *
   * @throws {VolumeError} `member-lost` where one goes away again, when the others are done; the signal's reason.
   */
  async rebuild(work: MirrorWork): Promise<void> {
    let failure: { readonly error: unknown } | undefined;
    for (const { set, member } of this.#places()) {
      if (!member.isRebuilding) continue;
      try {
        await rebuildMember(set, member, work);
      } catch (error) {
        work.signal?.throwIfAborted();
        failure ??= { error };
      }
    }
    if (failure !== undefined) throw failure.error;
  }

  /**
   * Puts another device, or the same place with whatever is there now, in a member's place: durably so when the promise
   * resolves. It gets every change from then on, and has everything after `rebuild`. A file that is missing is made.
   *
   * @throws {VolumeError} `unknown-member`, `last-member`; what opening the new place throws. Where it is another place,
   *   nothing has changed then.
   */
  replace(place: string, newPlace: string): Promise<void> {
    return this.#changing.run(() => this.#replace(place, newPlace));
  }

  async #replace(place: string, newPlace: string): Promise<void> {
    const found = this.#find(place);
    const { set, member, extent } = found;
    if (member.isInSync) await assertSpare(set, member);
    const made = await makeFile(newPlace, set.sizeBytes);
    const isSame = newPlace === place;
    try {
      // In its own place the lock is held until it is given up.
      const device = isSame ? undefined : await this.#open(newPlace);
      try {
        if (device !== undefined) await set.makeFit(device);
        await set.giveUp(member, `it is being replaced by ${newPlace}`);
      } catch (error) {
        await device?.close();
        throw error;
      }
      await member.whenRetired();
      await this.#join(found, newPlace, device ?? (await this.#open(newPlace)), true);
    } catch (error) {
      if (made !== undefined && member.place !== newPlace) await made.undo();
      throw error;
    }
    this.#options.laidOut.noteInode(extent, member.index, await inodeOf(newPlace));
    const path = wholePathOf(newPlace);
    if (path !== undefined) setAttribute(path, HOME_ATTRIBUTE, this.#options.identity.volumeId);
    await set.recordNow();
  }

  /**
   * Compares what the members in sync hold; see `scrubMirror`.
   *
   * @throws {VolumeError} `unknown-member` where there is no mirror.
   */
  async scrub(options: ScrubOptions): Promise<ScrubOutcome> {
    const { laidOut, identity } = this.#options;
    if (!this.isMirrored) {
      const { name, home } = identity;
      const message = `The home of volume ${name} has no mirror, wanted one to compare`;
      throw new VolumeError('unknown-member', message, { place: home });
    }
    await dropCaches(this.#places().map(({ member }) => member.place));
    const tracks = TrackSet.empty();
    let bytesCompared = 0;
    let skipped = 0;
    for (const { set } of laidOut.mirrors) {
      if (set.members.filter(({ isInSync }) => isInSync).length < 2) {
        skipped += 1;
        continue;
      }
      tracks.addAll(await scrubMirror(set, options));
      bytesCompared += set.sizeBytes;
    }
    return { bytesCompared, tracks, skipped };
  }

  #places(): readonly Place[] {
    return this.#options.laidOut.mirrors.flatMap((part) =>
      part.set.members.map((member) => ({ ...part, member })),
    );
  }

  #find(place: string): Place {
    const found = this.#places().find(({ member }) => member.place === place);
    if (found !== undefined) return found;
    const places = this.#places().map(({ member }) => member.place);
    const known = places.length === 0 ? 'it has no mirror' : `wanted one of ${places.join(', ')}`;
    const message = `No mirror of volume ${this.#options.identity.name} has the member ${place}, ${known}`;
    throw new VolumeError('unknown-member', message, { place });
  }

  async #rejoin(found: Place): Promise<void> {
    const { member, extent } = found;
    await member.whenRetired();
    const device = await this.#open(member.place);
    const inode = await inodeOf(member.place);
    const before = this.#options.laidOut.inodeOf(extent, member.index);
    const isOther = before !== undefined && inode !== undefined && before !== inode;
    await this.#join(found, member.place, device, isOther || device.sizeBytes < found.set.sizeBytes);
    this.#options.laidOut.noteInode(extent, member.index, inode);
  }

  #open(place: string): Promise<BlockDevice> {
    return this.#options.registry.open(place, { readOnly: false, syncName: 'home', lock: 'exclusive' });
  }

  async #join({ set, member }: Place, place: string, device: BlockDevice, isUnknown: boolean): Promise<void> {
    try {
      await set.join(member, place, device, isUnknown);
    } catch (error) {
      await device.close();
      throw error;
    }
  }
}

/** @throws {VolumeError} `last-member` where no other member is in sync, and can be read. */
async function assertSpare(set: MirrorSet, member: MirrorMember): Promise<void> {
  try {
    // One that has died is not noticed before it is used.
    await set.readGood(Buffer.alloc(set.blockSizeBytes), 0, (other) => other !== member);
  } catch (error) {
    throw lastMember(member.place, error);
  }
}

/** Makes a file where a path names nothing. @returns undefined where nothing was made. */
async function makeFile(
  place: string,
  sizeBytes: number,
): Promise<{ undo: () => Promise<void> } | undefined> {
  const path = wholePathOf(place);
  if (path === undefined || (await exists(path))) return undefined;
  await createSparseFile(path, sizeBytes, 'home-create');
  await syncDirectory('volume-directory', dirname(path));
  return { undo: () => rm(path, { force: true }) };
}
