/** What a restore would do, in numbers: for people before they let it. Nothing is read of any track. */

import type { RestorePlan } from './planner.ts';
import type { SourceRange } from './remap-table.ts';
import type { ReadPlanEntry, RestoreSource } from './restore-source.ts';

export interface TargetSummary {
  readonly name: string;
  /** As it was asked for. */
  readonly uri: string;
  /** What it is or would be. */
  readonly sizeBytes: number;
  /** Whether a file would be made. */
  readonly isNew: boolean;
  /** The smallest size that fits. */
  readonly bytesWanted: number;
  readonly bytesToWrite: number;
  readonly bytesToZero: number;
  /** Zero on both sides. */
  readonly bytesToSkip: number;
}

export interface PlanSummary {
  readonly targets: readonly TargetSummary[];
  /** Tracks to read and write. */
  readonly tracks: number;
  /** Tracks that an earlier run has written, where the restore is resumed. */
  readonly tracksBefore: number;
  /** Frames to read, and the ids of the sets that they are in; null where only reading tells, as from media. */
  readonly frames: number | null;
  readonly sets: readonly string[] | null;
  readonly bytesToWrite: number;
  readonly bytesToZero: number;
  readonly bytesToSkip: number;
  /** Bytes at the end of the volume, all zero, for which there is no room. */
  readonly bytesLeftOut: number;
  /** What is known to be missing; more may show when it is read. */
  readonly missing: readonly SourceRange[];
}

/** @param options.before the tracks that need not be written any more. */
export function summarise<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  plan: RestorePlan,
  options: { readonly leftOutBytes: number; readonly before: RestorePlan['tracks'] },
): PlanSummary {
  const tracks = plan.tracks.difference(options.before);
  const sets = new Set<string>();
  let frames = 0;
  const isKnown = source.hashOf !== undefined;
  for (const { set } of isKnown && !tracks.isEmpty ? source.readPlan(tracks) : []) {
    frames += 1;
    if (set !== undefined) sets.add(set);
  }
  return {
    targets: plan.shares.map(({ target, wantedBytes, writeBytes, zeroBytes, skippedBytes }) => ({
      name: target.name,
      uri: target.uri ?? target.name,
      sizeBytes: target.device.sizeBytes,
      isNew: target.createdIn !== undefined,
      bytesWanted: wantedBytes,
      bytesToWrite: writeBytes,
      bytesToZero: zeroBytes,
      bytesToSkip: skippedBytes,
    })),
    tracks: tracks.size,
    tracksBefore: plan.tracks.size - tracks.size,
    frames: isKnown ? frames : null,
    sets: isKnown ? [...sets] : null,
    bytesToWrite: plan.dataBytes,
    bytesToZero: plan.zeroBytes,
    bytesToSkip: plan.skippedBytes,
    bytesLeftOut: options.leftOutBytes,
    missing: plan.rangesOf(plan.lost),
  };
}
