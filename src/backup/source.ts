/**
 * What a lane sees of the volume it saves: the volume's own session beside it in one process, or the same
 * calls through a socket (`remote-source.ts`). The lane cannot tell the difference.
 */

import type { DivertedTrack, SessionPlan, SessionRequest } from '../volume/index.ts';
import type { DeviceExtent } from '../device/index.ts';
import type { TrackRun } from '../tracks/index.ts';

export interface SourceVolume {
  readonly volumeId: string;
  readonly name: string;
  readonly trackSizeBytes: number;
}

/** What the consumer knows of its own sets, so that the volume can choose the base. */
export type BeginRequest = Omit<SessionRequest, 'areas'>;

/** Reading the home, torn or not: what was read is good only for tracks that `confirm` does not name. */
export interface HomeReader {
  read(target: Buffer, offsetBytes: number): void | Promise<void>;
  extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]>;
}

/** The calls of `BackupSession`, which documents them. */
export interface SessionSource {
  readonly volume: SourceVolume;
  readonly home: HomeReader;
  /** Whether a lane may read the home itself, from where `home` does: it is local and has all of the plan. */
  readonly isHomeWhole: boolean;
  /** Freezes; everything below needs it. */
  begin(request: BeginRequest): Promise<SessionPlan>;
  confirm(runs: readonly TrackRun[]): Promise<readonly number[]>;
  take(countMax: number): Promise<readonly DivertedTrack[]>;
  acknowledge(ids: readonly number[]): Promise<void>;
  mayComplete(): Promise<void>;
  complete(set: string): Promise<void>;
  covered(): Promise<void>;
  logsDamaged(reason: string): Promise<void>;
}
