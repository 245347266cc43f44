/** The operating errors of a volume. Each code is documented here, with what its details say. */

import { BlockError } from '../base/index.ts';

export interface VolumeErrorDetails {
  /** The directory holds no volume, or a format this version does not know. */
  'not-a-volume': { readonly directory: string };
  /** `create`: something is there already. */
  exists: { readonly directory: string };
  /** A size, track size or home that cannot be. */
  'invalid-geometry': { readonly value: number | string };
  /** Another process owns the volume or a piece of its home. */
  'in-use': { readonly directory: string; readonly pid?: number; readonly activity?: string };
  /** A volume is not made smaller: that would lose what lies behind the new end. */
  'shrink-refused': { readonly sizeBytes: number; readonly wantedBytes: number };
  /** The home is missing or smaller than the volume; that of a copy is there already or is no plain file. */
  'home-unusable': { readonly home: string };
  /** The home failed or is gone, and the volume has nothing else to go on with. */
  'home-lost': { readonly directory: string };
  /** A description of a home that cannot be; `where` is the part of it. */
  'bad-layout': { readonly where: string };
  /** Not with a home of several parts or members. */
  'has-layout': { readonly home: string };
  /** A member of a mirror failed while it was rebuilt. */
  'member-lost': { readonly place: string; readonly reason: string };
  /** No mirror of the volume has a member of that name, or it cannot be what was asked for. */
  'unknown-member': { readonly place: string };
  /** What is asked for would leave a mirror without a member in sync. */
  'last-member': { readonly place: string };
  'read-only': { readonly directory: string };
  /** A flush or a home write failed earlier; only `volume check` clears it (promise 10). */
  poisoned: { readonly directory: string; readonly reason: string };
  /** The gate did not empty in time; nothing has changed. */
  'freeze-timeout': { readonly waitedMs: number };
  /** One session per volume and store. */
  'session-running': { readonly session: string };
  /** A write has waited longer for room in a session's container than the session may let it; the session failed. */
  'container-full': { readonly track: number; readonly waitedMs: number };
  /** The session ended before it was complete. */
  'session-ended': { readonly session: string; readonly reason: string };
  /** Zeroes were to be fast, and `track` has to be copied for a backup first. Nothing has changed. */
  'not-fast': { readonly track: number };
  /** A name that no snapshot may have. */
  'invalid-name': { readonly name: string };
  'snapshot-exists': { readonly name: string };
  /** No snapshot has the name. */
  'unknown-snapshot': { readonly name: string };
  /** No room for the old content of a track; the write that would have replaced it is refused (ENOSPC). */
  'snapshot-full': { readonly path: string };
  /** Old content cannot be kept for another reason; the write is refused (EIO). */
  'snapshot-failed': { readonly path: string };
  /** The snapshot was deleted, or dropped for want of space, while it was read. */
  'snapshot-gone': { readonly name: string };
  /** The snapshot is not what it was, for the reason given; it can only be deleted. */
  'snapshot-damaged': { readonly name: string; readonly reason: string };
  /** The store that it was to be saved to has a set of a later point, or of the same one. */
  'snapshot-behind': { readonly name: string };
  /** Snapshots by clone need a filesystem that shares blocks, with the home and the volume's directory on it. */
  'cannot-clone': { readonly home: string };
  /** Somebody reads the snapshot. */
  'snapshot-in-use': { readonly name: string };
  /** A rollback was interrupted, and opening the volume could not finish it. */
  'rollback-unfinished': { readonly directory: string };
  /** A rebuild of the home was interrupted: it holds a part of the volume. */
  'rebuild-unfinished': { readonly directory: string };
  /** The volume is being recovered, and what that needs cannot be opened. */
  'side-unavailable': { readonly directory: string; readonly side: string };
  /** A device cannot be the volume's mirror. */
  'mirror-unusable': { readonly directory: string };
  /** Not while a mirror gets every change. */
  mirrored: { readonly directory: string };
  /** A snapshot may need what a range of the home held that is to be recovered. */
  'has-snapshots': { readonly directory: string; readonly snapshot: string };
  /** Not while the volume is being recovered. */
  recovering: { readonly directory: string; readonly missingTracks: number };
  'too-many-snapshots': { readonly count: number };
  closed: { readonly directory: string };
}

export type VolumeErrorCode = keyof VolumeErrorDetails;

export class VolumeError<Code extends VolumeErrorCode = VolumeErrorCode> extends BlockError<
  VolumeErrorDetails,
  Code
> {}
