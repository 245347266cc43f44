export { ChainDevice, type ChainDeviceOptions } from './chain-device.ts';
export {
  copyVolume,
  planCopy,
  type CopyOptions,
  type CopyPlan,
  type CopyPlanOptions,
  type CopyResult,
} from './copy.ts';
export type { CopyProgress } from './copy-run.ts';
export {
  isRestoreError,
  RestoreCorruptionError,
  RestoreError,
  type RestoreErrorCode,
  type RestoreErrorDetails,
} from './errors.ts';
export { type JoinedSet, joinLogs, type JoinWish } from './join-logs.ts';
export { type LoggedEntry, LoggedSource, type LoggedTracks } from './logged-source.ts';
export { openOverlay, OverlayDevice, type OverlayOptions } from './overlay-device.ts';
export type { TableLayout, TargetLayout, VolumeLayout } from './layout.ts';
export type { PlanSummary, TargetSummary } from './plan-summary.ts';
export {
  planRestore,
  type RestorePlan,
  type RestoreTarget,
  type TargetShare,
  type TrackPiece,
  type ZeroRange,
} from './planner.ts';
export {
  formatRemapFile,
  parseRemapFile,
  readRemapFile,
  type RemapFile,
  type RemapFileTarget,
  requestsOf,
} from './remap-file.ts';
export {
  type AllocatedExtent,
  logicalBytes,
  mergeRemap,
  sliceLogical,
  type SourceExtent,
} from './remap-merge.ts';
export {
  type RemapRow,
  RemapTable,
  type SizedTarget,
  type SourceRange,
  type TargetRoom,
} from './remap-table.ts';
export {
  type PlannedRestore,
  planOnly,
  restore,
  type ResumeOptions,
  type WholeRestoreOptions,
  wholeVolume,
} from './restore.ts';
export type { ReadPlanEntry, RestoredTrack, RestoreSource } from './restore-source.ts';
export { openTargets, OpenTargets, type OpenTargetsOptions, type TargetRequest } from './targets.ts';
export {
  type RestoreCheckpoint,
  type RestoreOptions,
  type RestoreProgress,
  type RestoreResult,
  writeRestore,
} from './writer.ts';
