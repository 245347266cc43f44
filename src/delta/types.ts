/** What a delta store is told and tells. */

import type { Clock } from '../base/index.ts';
import type { DeviceRegistry } from '../device/index.ts';

/** Where a member is: the path of a directory, or the URI of a device that it uses whole. */
export interface DeltaPlace {
  readonly place: string;
  /** What its logs may take; up to the device's end, or the disk's, where left out. */
  readonly bytesMax?: number | undefined;
}

export type DeltaChange =
  /** @property source belongs to the caller, and is used until the call has finished. */
  { readonly kind: 'write'; readonly source: Buffer } | { readonly kind: 'zeroes' };

export interface DeltaStoreOptions {
  readonly volumeId: string;
  readonly volumeName: string;
  readonly trackSizeBytes: number;
  /** Of the volume as it is; it may grow. */
  readonly sizeBytes: () => number;
  /** Where the first log begins: a point of the volume; empty for its making. A store that has begun goes on where it was. */
  readonly startPoint: string;
  /** Nothing was ever logged: what is logged from now on begins at the start point. Otherwise logs that are not there are missing. */
  readonly isNew: boolean;
  readonly members: readonly DeltaPlace[];
  /** Places known to be lost: what is there is not looked at until they are made anew. */
  readonly lostMembers: readonly string[];
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly clock: Clock;
  /** A member is lost. Resolves when that is durable: until then nothing is acknowledged that only the others have. */
  readonly onMemberLost: (place: string, error: unknown) => Promise<void>;
  /** Room was made. */
  readonly onRoom?: (() => void) | undefined;
  /** LIMITS.deltaSegmentBytes where left out. */
  readonly segmentBytes?: number | undefined;
}

export type DeltaMemberState = 'healthy' | 'lost' | 'recreating';

export interface DeltaMemberStatus {
  readonly place: string;
  readonly state: DeltaMemberState;
  /** Why it is lost. */
  readonly reason?: string;
  readonly bytesUsed: number;
  readonly bytesMax?: number;
}

export interface DeltaStatus {
  readonly members: readonly DeltaMemberStatus[];
  /** Of the fullest member. */
  readonly bytesUsed: number;
  /** Of the member with the least room. */
  readonly bytesMax?: number;
  readonly logs: number;
  readonly records: number;
  /** The time of the oldest record. */
  readonly oldestMs?: number;
  readonly lastSequence: number;
  /** Writes that wait for room. */
  readonly writesWaiting: number;
}
