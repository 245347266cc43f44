/**
 * The home of a volume that has a layout (`layout.ts`), open: which of its members are there and current, the device
 * made of them, and what there is to record of them.
 *
 *     members opened -> in sync? -> extents -> one behind the other
 *
 * A member of a mirror is taken for current only where the volume's own record does not say that it is away; nothing on
 * a member itself counts. One that cannot be used begins away, as long as another one is current; one that is another
 * file than it was, or was changed while nobody served the volume, begins without anything. Where all that are current
 * were changed, the first of them counts, and the others are made equal to it.
 *
 * What a member that is away lacks is, after a clean stop, what is recorded; after any other, that and every track of the
 * epochs since: more, and never less.
 */

import { allFinished, type Clock, messageOf } from '../base/index.ts';
import {
  type BlockDevice,
  ConcatDevice,
  DeviceError,
  type DeviceRegistry,
  StripeDevice,
} from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { VolumeIdentity } from './directory.ts';
import type { EpochHistory } from './epoch-history.ts';
import { VolumeError } from './errors.ts';
import {
  extentLengths,
  type HomeLayout,
  type LayoutExtent,
  type LayoutMember,
  memberBytes,
  stripeBytesOf,
  wholePathOf,
} from './layout.ts';
import { inodeOf } from './layout-create.ts';
import type { MembersRecord } from './members-state.ts';
import type { MirrorMember, MirrorMemberStart } from './mirror-member.ts';
import { MirrorSet } from './mirror-set.ts';
import { homeStamp, type HomeStamp, type HomeStamps } from './file-looks.ts';

export interface LayoutOpenOptions {
  readonly identity: VolumeIdentity;
  readonly layout: HomeLayout;
  readonly readOnly: boolean;
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly clock: Clock;
  readonly onWarning?: ((sentence: string) => void) | undefined;
  readonly isClean: boolean;
  /** How the files looked at the clean stop. */
  readonly stamps: HomeStamps | undefined;
  readonly history: EpochHistory;
  /** After an unclean stop, what members in sync may hold differently. */
  readonly doubtful: TrackSet;
  /** What was recorded as missed by a member. */
  readonly missed: (member: string) => TrackSet;
  /** Makes durable what `record` tells. */
  readonly save: () => Promise<void>;
}

/** A mirror of the home. */
export interface MirrorPart {
  /** The extent's number. */
  readonly extent: number;
  readonly set: MirrorSet;
}

/** The name of a mirror's member in the record. */
export function memberKey(extent: number, member: number): string {
  return `${extent}.${member}`;
}

/** A member as it was found. */
interface FoundMember {
  readonly member: LayoutMember;
  readonly device: BlockDevice | undefined;
  readonly inode: string | undefined;
  /** Why it has no device. */
  readonly failure?: unknown;
  /** What it holds is not what it held. */
  readonly isUnknown: boolean;
}

/** Opens the home. @throws {VolumeError} `home-unusable`; 'busy' where a piece is somebody else's. */
export async function openLayoutHome(options: LayoutOpenOptions): Promise<LayoutHome> {
  const opener = new Opener(options);
  try {
    return await opener.open();
  } catch (error) {
    await opener.close();
    throw error;
  }
}

class Opener {
  readonly #options: LayoutOpenOptions;
  readonly #opened: BlockDevice[] = [];
  readonly #mirrors: MirrorPart[] = [];
  readonly #inodes = new Map<string, string>();
  #isTouched = false;

  constructor(options: LayoutOpenOptions) {
    this.#options = options;
  }

  async open(): Promise<LayoutHome> {
    const { layout, identity } = this.#options;
    const lengths = extentLengths(layout, identity.sizeBytes);
    const members: { readonly device: BlockDevice; readonly lengthBytes: number }[] = [];
    let startBytes = 0;
    for (const [index, extent] of layout.extents.entries()) {
      const lengthBytes = lengths[index] ?? 0;
      const device = await this.#openExtent(extent, index, { startBytes, lengthBytes });
      members.push({ device, lengthBytes });
      startBytes += lengthBytes;
    }
    return new LayoutHome({
      layout,
      device: new ConcatDevice(members),
      mirrors: this.#mirrors,
      inodes: this.#inodes,
      isTouched: this.#isTouched,
    });
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#opened.map((device) => device.close()));
  }

  async #openExtent(
    extent: LayoutExtent,
    index: number,
    place: { readonly startBytes: number; readonly lengthBytes: number },
  ): Promise<BlockDevice> {
    const found = await allFinished(
      extent.members.map((member, at) => this.#find(member, memberBytes(extent, place.lengthBytes, at))),
    );
    for (const [at, { inode }] of found.entries())
      if (inode !== undefined) this.#inodes.set(memberKey(index, at), inode);
    if (extent.kind === 'mirror') return this.#openMirror(found, index, place);
    if (found.some(({ isUnknown }) => isUnknown)) this.#isTouched = true;
    const devices = found.map((one) => this.#assertUsable(one));
    const [only] = devices;
    if (extent.kind === 'plain' && only !== undefined) return only;
    return new StripeDevice({ devices, stripeBytes: stripeBytesOf(extent), sizeBytes: place.lengthBytes });
  }

  #assertUsable({ device, member, failure }: FoundMember): BlockDevice {
    if (device !== undefined) return device;
    if (failure instanceof DeviceError && failure.code === 'busy') throw failure;
    const { name } = this.#options.identity;
    const message = `Part ${member.place} of the home of volume ${name} cannot be used: ${messageOf(failure)}`;
    throw new VolumeError('home-unusable', message, { home: member.place }, { cause: failure });
  }

  /** Opens one member and looks whether it is what it was. */
  async #find(member: LayoutMember, wantedBytes: number): Promise<FoundMember> {
    const { registry, readOnly } = this.#options;
    const { place } = member;
    const lock = readOnly ? 'shared' : 'exclusive';
    let device: BlockDevice;
    try {
      device = await registry.open(place, { readOnly, syncName: 'home', lock });
    } catch (failure) {
      return { member, device: undefined, inode: undefined, failure, isUnknown: false };
    }
    this.#opened.push(device);
    const inode = await inodeOf(place);
    if (device.sizeBytes < wantedBytes) {
      await device.close();
      const failure = new Error(`it has ${device.sizeBytes} bytes, wanted ${wantedBytes}`);
      // What it lost at its end it may have lost elsewhere, too.
      return { member, device: undefined, inode, failure, isUnknown: true };
    }
    return { member, device, inode, isUnknown: await this.#isChanged(member, inode) };
  }

  async #isChanged(
    { place, inode: before, away }: LayoutMember,
    inode: string | undefined,
  ): Promise<boolean> {
    if (before !== undefined && inode !== undefined && before !== inode) return true;
    const { isClean, stamps } = this.#options;
    const stamp = stamps?.[place];
    // Of one that was away it is not known how it should look.
    if (!isClean || stamp === undefined || away !== undefined) return false;
    const path = wholePathOf(place);
    const now = path === undefined ? undefined : await homeStamp(path);
    // Another kind of thing has no stamp, and is found out by what it holds.
    return now !== undefined && !isSame(now, stamp);
  }

  #openMirror(
    found: readonly FoundMember[],
    extent: number,
    place: { readonly startBytes: number; readonly lengthBytes: number },
  ): MirrorSet {
    const { identity, readOnly, clock, onWarning, save } = this.#options;
    const current = found.filter(({ member, device }) => member.away === undefined && device !== undefined);
    let first = current.find(({ isUnknown }) => !isUnknown);
    if (first === undefined) {
      // All of them were changed: one has to count.
      [first] = current;
      this.#isTouched = true;
    }
    if (first === undefined) throw this.#noneCurrent(found, extent);
    const reference = first;
    const members = found.map((one, index) => this.#startOf(one, reference, extent, index));
    for (const { place: name, device, absence } of members) {
      if (absence === undefined) continue;
      const how = device === undefined ? 'goes on without' : 'has to rebuild';
      onWarning?.(`Volume ${identity.name} ${how} ${name}: ${absence.reason}`);
    }
    const set = new MirrorSet({
      members,
      sizeBytes: place.lengthBytes,
      startBytes: place.startBytes,
      trackSizeBytes: identity.trackSizeBytes,
      readOnly,
      save: readOnly ? async () => undefined : save,
      clock,
      name: identity.name,
      onWarning,
    });
    this.#mirrors.push({ extent, set });
    return set;
  }

  #noneCurrent(found: readonly FoundMember[], extent: number): VolumeError {
    const { name } = this.#options.identity;
    const reasons = found.map(({ member, device, failure }) =>
      device === undefined
        ? `${member.place} cannot be used (${messageOf(failure)})`
        : `${member.place} is not current (${member.away?.reason ?? 'away'})`,
    );
    const message = `No member of mirror ${extent} of volume ${name} is current and can be used: ${reasons.join('; ')}`;
    return new VolumeError('home-unusable', message, { home: found[0]?.member.place ?? '' });
  }

  /** @param first one in sync, which counts. */
  #startOf(found: FoundMember, first: FoundMember, extent: number, index: number): MirrorMemberStart {
    const { clock, isClean, doubtful, history } = this.#options;
    const { member, device, failure } = found;
    // Where it was changed itself, nobody knows what the others lack of that.
    const isUnknown = found.isUnknown || first.isUnknown;
    const { place, away } = member;
    const sinceMs = away?.sinceMs ?? clock.now();
    if (away === undefined && device !== undefined && (found === first || !isUnknown))
      return { place, device };
    const all = TrackSet.all(history.trackCount);
    if (away !== undefined) {
      const missing = isUnknown ? all : this.#missedSince(away.asOfEpoch, memberKey(extent, index));
      return { place, device, absence: { sinceMs, reason: away.reason, missing } };
    }
    if (device !== undefined) {
      const reason = 'it was changed, or replaced, while no process served the volume';
      return { place, device, absence: { sinceMs, reason, missing: all } };
    }
    const missing = isUnknown ? all : isClean ? TrackSet.empty() : doubtful;
    return { place, device, absence: { sinceMs, reason: messageOf(failure), missing } };
  }

  #missedSince(asOfEpoch: number, key: string): TrackSet {
    const { isClean, history, missed } = this.#options;
    const recorded = missed(key);
    if (isClean) return recorded;
    const since = history.closed.filter(({ number }) => number >= asOfEpoch).map(({ tracks }) => tracks);
    return TrackSet.union([recorded, ...since, history.openTracks()]);
  }
}

export interface LayoutHomeParts {
  readonly layout: HomeLayout;
  readonly device: BlockDevice;
  readonly mirrors: readonly MirrorPart[];
  /** Of the members that are regular files, by `memberKey`. */
  readonly inodes: Map<string, string>;
  readonly isTouched: boolean;
}

export class LayoutHome {
  /** The home; closing it closes the members. */
  readonly device: BlockDevice;
  readonly mirrors: readonly MirrorPart[];
  /** Whether the home may hold something else than at the last stop. */
  readonly isTouched: boolean;
  readonly #layout: HomeLayout;
  readonly #inodes: Map<string, string>;

  constructor(parts: LayoutHomeParts) {
    this.device = parts.device;
    this.mirrors = parts.mirrors;
    this.isTouched = parts.isTouched;
    this.#layout = parts.layout;
    this.#inodes = parts.inodes;
  }

  /** What is known of the members now. @param openNumber the open epoch's: what a member misses from now on is in it. */
  record(openNumber: number): MembersRecord {
    const missed = new Map<string, TrackSet>();
    for (const { extent, set } of this.mirrors)
      for (const member of set.absentees()) missed.set(memberKey(extent, member.index), member.lacking());
    return { layout: this.layout(openNumber), missed };
  }

  layout(openNumber: number): HomeLayout {
    const sets = new Map(this.mirrors.map(({ extent, set }) => [extent, set]));
    const extents = this.#layout.extents.map((extent, number) => ({
      ...extent,
      members: extent.members.map((before, index): LayoutMember => {
        const member = sets.get(number)?.members[index];
        const place = member?.place ?? before.place;
        const inode =
          this.#inodes.get(memberKey(number, index)) ?? (place === before.place ? before.inode : undefined);
        return { place, ...(inode === undefined ? {} : { inode }), ...awayOf(member, openNumber) };
      }),
    }));
    return { extents };
  }

  /** Of a member that has a device again. */
  noteInode(extent: number, member: number, inode: string | undefined): void {
    const key = memberKey(extent, member);
    if (inode === undefined) this.#inodes.delete(key);
    else this.#inodes.set(key, inode);
  }

  inodeOf(extent: number, member: number): string | undefined {
    return (
      this.#inodes.get(memberKey(extent, member)) ?? this.#layout.extents[extent]?.members[member]?.inode
    );
  }

  /** Makes members in sync equal after an unclean stop. @param doubtful where they may differ. */
  async reconcile(doubtful: TrackSet): Promise<void> {
    for (const { set } of this.mirrors) await set.reconcile(doubtful);
  }

  /** How the files look that are part of the home and nothing else's. */
  async stamps(): Promise<HomeStamps> {
    const stamps: Record<string, HomeStamp> = {};
    for (const { members } of this.layout(0).extents) {
      for (const { place, away } of members) {
        const path = wholePathOf(place);
        if (path === undefined || away !== undefined) continue;
        // One that is gone has none; it is found missing at the next opening.
        const stamp = await homeStamp(path).catch(() => undefined);
        if (stamp !== undefined) stamps[place] = stamp;
      }
    }
    return stamps;
  }
}

function awayOf(member: MirrorMember | undefined, asOfEpoch: number): Pick<LayoutMember, 'away'> {
  if (member === undefined || member.isInSync || member.absence === undefined) return {};
  const { sinceMs, reason } = member.absence;
  return { away: { sinceMs, reason, asOfEpoch } };
}

function isSame(now: HomeStamp, before: HomeStamp): boolean {
  return (
    now.sizeBytes === before.sizeBytes && now.inode === before.inode && now.modifiedNs === before.modifiedNs
  );
}
