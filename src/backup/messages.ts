/**
 * What the serving process and a session's child say to each other over Node's IPC channel (advanced
 * serialisation, so buffers travel as bytes).
 *
 *     host -> child    start, reply, cancel
 *     child -> host    call, offer, progress, step, done, failed
 *
 * Calls are answered one by one in the order in which they finish; `id` pairs them. The channel's end is the
 * end of the session on both sides.
 */

import type { WireError } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import type { DeviceExtent } from '../device/index.ts';
import type { SessionStep } from '../media/index.ts';
import type { TrackRun } from '../tracks/index.ts';
import type { DivertedTrack, PlannedDeltas, SessionPlan, SetLevel } from '../volume/index.ts';
import type { SavingProgress } from './saving.ts';
import type { BeginRequest, SourceVolume } from './source.ts';

export type Codec = 'none' | 'zstd';

/** How a session writes its set. */
export interface WriteStyle {
  readonly codec: Codec;
  /** Of zstd, -7 (fast) to 19 (small); the store's default where left out. */
  readonly compressionLevel?: number;
  /** Directories for further lanes, absolute. */
  readonly lanes?: readonly string[];
  /** Bytes a second that the main pass may read, at least 1. */
  readonly rateBytesPerSecond?: number;
}

export type Level = 'auto' | SetLevel;

/** Where media go that are written in the place of a store. */
export interface MediumTarget {
  /** A file (`{n}` is the medium's number), a pipe or a device, absolute. */
  readonly place: string;
  /** See `isLabel`. */
  readonly label: string;
  /** Bytes of one medium; left out where media say themselves when they are full. */
  readonly sizeBytes?: number;
  /** Command that loads a medium, run before each. */
  readonly load?: string;
  /** Files that exist are replaced. */
  readonly overwrite?: boolean;
}

export interface StartMessage {
  readonly kind: 'start';
  /** Nothing is saved: the child tells what the store offers, and leaves it alone. */
  readonly isDryRun?: boolean;
  readonly volume: SourceVolume;
  /** A file or block device that the child reads itself; undefined where it must ask for every byte. */
  readonly homePath: string | undefined;
  /** Of no meaning where there is a medium. */
  readonly storePath: string;
  readonly medium?: MediumTarget;
  /** Of an encrypted store. */
  readonly key: StoreKey | undefined;
  readonly level: Level;
  readonly style: WriteStyle;
}

/** A plan as it travels. */
export type WirePlan = Omit<SessionPlan, 'tracks' | 'deltas'> & {
  readonly tracks: Uint8Array;
  readonly deltas?: Omit<PlannedDeltas, 'tracks'> & { readonly tracks: Uint8Array };
};

/** A buffer arrives as a plain Uint8Array. */
export type WireDiverted = Omit<DivertedTrack, 'content'> & { readonly content: Uint8Array | undefined };

/** The calls a child makes, by name: what they take and what they give. */
export interface Calls {
  begin: { readonly takes: BeginRequest; readonly gives: WirePlan };
  read: {
    readonly takes: { readonly offsetBytes: number; readonly lengthBytes: number };
    readonly gives: Uint8Array;
  };
  extents: {
    readonly takes: { readonly offsetBytes: number; readonly lengthBytes: number };
    readonly gives: readonly DeviceExtent[];
  };
  confirm: { readonly takes: { readonly runs: readonly TrackRun[] }; readonly gives: readonly number[] };
  take: { readonly takes: { readonly countMax: number }; readonly gives: readonly WireDiverted[] };
  acknowledge: { readonly takes: { readonly ids: readonly number[] }; readonly gives: undefined };
  mayComplete: { readonly takes: undefined; readonly gives: undefined };
  complete: { readonly takes: { readonly set: string }; readonly gives: undefined };
  covered: { readonly takes: undefined; readonly gives: undefined };
  logsDamaged: { readonly takes: { readonly reason: string }; readonly gives: undefined };
}

export type CallName = keyof Calls;

export type CallMessage = {
  [Name in CallName]: {
    readonly kind: 'call';
    readonly id: number;
    readonly name: Name;
    readonly takes: Calls[Name]['takes'];
  };
}[CallName];

export type ReplyMessage =
  | { readonly kind: 'reply'; readonly id: number; readonly gives: Calls[CallName]['gives'] }
  | { readonly kind: 'reply'; readonly id: number; readonly error: WireError };

/** The result of a session. */
export interface SetOutcome {
  readonly set: string;
  readonly volume: string;
  readonly level: SetLevel;
  /** Why it is a full set, where the request was not for one. */
  readonly reason: string | undefined;
  readonly point: string;
  readonly base: string | undefined;
  /** Tracks in the set, zero ones included. */
  readonly tracks: number;
  readonly bytesRead: number;
  readonly bytesStored: number;
  /** Tracks left out because the base has the same. */
  readonly unchanged: number;
  /** Tracks with the content of another of the set. */
  readonly aliases: number;
  readonly lanes: number;
  /** Media that hold the set, and their name; left out where it is in a store. */
  readonly media?: number;
  readonly label?: string;
  readonly diverted: number;
  readonly freezeMs: number;
  readonly durationMs: number;
}

/** The answer to a dry run: what `begin` would be called with. */
export interface OfferMessage {
  readonly kind: 'offer';
  readonly request: BeginRequest;
}

export type HostMessage = StartMessage | ReplyMessage | { readonly kind: 'cancel' };

export type ChildMessage =
  | CallMessage
  | OfferMessage
  | { readonly kind: 'progress'; readonly progress: SavingProgress }
  | { readonly kind: 'step'; readonly step: SessionStep }
  | { readonly kind: 'done'; readonly outcome: SetOutcome }
  | { readonly kind: 'failed'; readonly error: WireError };

/** Whether something from the channel is a message of the child at all; both ends are of one version. */
export function isChildMessage(value: unknown): value is ChildMessage {
  return typeof value === 'object' && value !== null && 'kind' in value;
}

export function isHostMessage(value: unknown): value is HostMessage {
  return isChildMessage(value);
}
