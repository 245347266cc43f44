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
  /** A set of a store, a directory. */
  | { readonly kind: 'store'; readonly storePath: string; readonly set: string }
  /** A device that somebody keeps: its path or URI. */
  | { readonly kind: 'device'; readonly uri: string };

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
