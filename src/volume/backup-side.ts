/**
 * What a volume under recovery is filled from: its _backup side_ (seeds/4), a store read through one of its sets, or a
 * live export that may also be written, so that it stays the volume's equal.
 *
 * A volume does not open its backup side: it is told how by who opens the volume, since neither stores nor the network
 * are this room's business.
 */

import type { BlockDevice } from '../device/index.ts';
import type { TrackRun, TrackSet } from '../tracks/index.ts';

/** Where a volume's backup side is; kept in the volume's state while the recovery lasts. */
export type SidePlace =
  /** A set of a store, a directory; with what delta logs tell since, where there are some. */
  | {
      readonly kind: 'store';
      readonly storePath: string;
      readonly set: string;
      readonly logs?: LogsPlace;
    }
  /** A device that somebody keeps: its path or URI. */
  | { readonly kind: 'device'; readonly uri: string };

/** The part of a delta store that a backup side has. */
export interface LogsPlace {
  /** Its members: directories, or URIs of devices. */
  readonly places: readonly string[];
  readonly volumeId: string;
  /** Where the first of the logs begins: at the set's point; '' where there is no set. */
  readonly startPoint: string;
  /** Records of an earlier time only, in milliseconds since 1970. */
  readonly beforeMs?: number;
  /** Records up to this sequence number only. */
  readonly upTo?: number;
}

/** What is kept of a recovery beside the overwrite map. */
export interface RecoveryRecord {
  readonly side: SidePlace;
  /** The point that the side holds, where it has one. */
  readonly point?: string;
  /** A device that gets every change too: its path or URI. */
  readonly mirror?: string;
  /** The ranges of bytes that were lost; everything was, where left out. */
  readonly ranges?: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[];
  /** Why the mirror gets no changes any more. */
  readonly mirrorLost?: string;
  readonly startedMs: number;
}

/** An opened backup side. */
export interface BackupSide {
  /** Holds every track of the volume as it was at the point; as large as the volume at least. */
  readonly device: Pick<BlockDevice, 'read' | 'sizeBytes' | 'description'>;
  /** Gets every change; it may be `device` itself. */
  readonly mirror?: BlockDevice;
  /** The runs of these tracks in the order in which reading them all is cheapest; ascending where left out. */
  order?(tracks: TrackSet): AsyncIterable<readonly TrackRun[]>;
  close(): Promise<void>;
}

/** The place as a part of a sentence. */
export function describeSide(side: SidePlace): string {
  if (side.kind === 'device') return side.uri;
  const set = `set ${side.set} of ${side.storePath}`;
  return side.logs === undefined ? set : `${set} and the deltas since`;
}
