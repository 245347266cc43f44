export { ChainDevice, type ChainDeviceOptions } from './chain-device.ts';
export {
  isRestoreError,
  RestoreCorruptionError,
  RestoreError,
  type RestoreErrorCode,
  type RestoreErrorDetails,
} from './errors.ts';
export { openOverlay, OverlayDevice, type OverlayOptions } from './overlay-device.ts';
export {
  planRestore,
  type RestorePlan,
  type RestoreTarget,
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
export { restore } from './restore.ts';
export type { ReadPlanEntry, RestoredTrack, RestoreSource } from './restore-source.ts';
export {
  openTargets,
  OpenTargets,
  type OpenTargetsOptions,
  type TargetLayout,
  type TargetRequest,
} from './targets.ts';
export { type RestoreOptions, type RestoreProgress, type RestoreResult, writeRestore } from './writer.ts';
