export { type ContainerArea, DeviceArea, MemoryArea } from '../container/index.ts';
export {
  type BackupSide,
  describeSide,
  type LogsPlace,
  type RecoveryRecord,
  type SidePlace,
} from './backup-side.ts';
export { changeDeltas, type DeltasChange } from './change-deltas.ts';
export type { DeltasRecord } from './delta-places.ts';
export type { NewestContent, SurvivalPlan } from './survival.ts';
export {
  lookForLost,
  lookForRecovery,
  loseTracks,
  moveRecovery,
  putLostAside,
  type RecoveryLook,
} from './begin-recovery.ts';
export { checkVolume, type CheckOptions, type CheckResult, type Finding } from './check.ts';
export { cloneSnapshot, type ClonedVolume, type CloneOptions } from './clone.ts';
export {
  createVolume,
  type CreateOptions,
  type RecoveryOrigin,
  homePathOf,
  isVolumeDirectory,
  isVolumeHome,
  readVolumeIdentity,
  type LostVolume,
  type VolumeIdentity,
} from './directory.ts';
export { type ExtentStatus, HomeMirrors, type ScrubOutcome } from './home-mirrors.ts';
export {
  assertLayout,
  describeLayout,
  type HomeLayout,
  homePlaces,
  type LayoutExtent,
  layoutOf,
  type LayoutRequest,
  parseLayoutFile,
} from './layout.ts';
export type { MirrorMemberStatus } from './mirror-member.ts';
export type { MirrorDifference, MirrorWork } from './mirror-rebuild.ts';
export { VolumeError, type VolumeErrorCode, type VolumeErrorDetails } from './errors.ts';
export { beginSessions, createSnapshots } from './group.ts';
export { Geometry } from './geometry.ts';
export type { DivertedTrack } from './protection.ts';
export {
  BackupSession,
  type PlannedDeltas,
  type SessionPlan,
  type SessionState,
  type SessionStatus,
  type SetLevel,
} from './session.ts';
export { FillingDevice, type FillingDeviceOptions } from './filling-device.ts';
export { MirroredDevice, type MirroredDeviceOptions } from './mirrored-device.ts';
export { Rebuilding } from './rebuilding.ts';
export { recentRanges, type RecentRecord } from './recent-use.ts';
export type { Mirroring, MirroringStatus } from './mirroring.ts';
export type { FillOptions } from './fill-all.ts';
export type { Recovery, RecoveryStatus } from './recovery.ts';
export type { OpenVolumeOptions } from './opening.ts';
export type { BaseCandidate } from './base-choice.ts';
export type { SessionPreview, SessionRequest } from './sessions.ts';
export { homeStamp, type HomeStamp } from './file-looks.ts';
export type { Consumer, CopiedTarget, CopyRecord } from './state.ts';
export type { SnapshotDevice } from './snapshot-device.ts';
export {
  FULL_POLICIES,
  type FullPolicy,
  SNAPSHOT_KINDS,
  type SnapshotKind,
  type SnapshotInfo,
} from './snapshot-info.ts';
export { isZero } from './snapshot-store.ts';
export type { CreatedSnapshot, VolumeStatus } from './volume-status.ts';
export { Volume } from './volume.ts';
export { type AlikeRun, ZeroRuns } from './zero-runs.ts';
