export {
  cancelSession,
  checkVolume,
  type ReachOptions,
  reachVolume,
  reachVolumes,
  type StatusRecord,
  type VolumeAccess,
} from './access.ts';
export {
  type BackupOutcome,
  type BackupMember,
  type BackupParams,
  type ContainerSpec,
  type Level,
  LEVELS,
  ON_FULL,
  type OnFull,
} from './backup-params.ts';
export type {
  BackupAction,
  KeyPlace,
  PolicedVolume,
  PolicyAction,
  SnapshotAction,
  VolumePolicy,
  VolumeSurvival,
} from './policy-config.ts';
export type { CopyForecast, CopyOutcome, CopyParams } from './copy-params.ts';
export { createDeviceRegistry } from './devices.ts';
export type { FillOutcome, FillParams } from './fill-from-media.ts';
export { type MediumFeedOptions, runMediumFeed } from './medium-feed-child.ts';
export {
  type ByteRange,
  type PreparedRecovery,
  prepareRecovery,
  type RecoverOptions,
} from './prepare-recovery.ts';
export {
  DaemonError,
  type DaemonErrorCode,
  type DaemonErrorDetails,
  errorCode,
  RemoteError,
} from './errors.ts';
export type { FreezeHookReport, FreezeHooks } from './freeze-hooks.ts';
export {
  describeEnd,
  hasSucceeded,
  type HookEnd,
  type HookProcessOptions,
  runHookProcess,
} from './hook-process.ts';
export { type Finding, findingsOf } from './health.ts';
export type { PolicyOutcome } from './policy-record.ts';
export type { PolicyEvent } from './policy-runner.ts';
export {
  type FurtherListener,
  type ReloadOutcome,
  Serving,
  type ServingMirror,
  type ServingOptions,
  type ServingPolicies,
  type ServingTls,
} from './serving.ts';
export { openStoreReader, type StoreReader, type StoreReaderOptions } from './store-reader.ts';
export type { Blueprint } from './rebuild-blueprint.ts';
export { type RebuildOptions, type RebuildOutcome, rebuildVolume } from './rebuild.ts';
export { type HistoryEvent, type HistoryOptions, readHistory } from './volume-history.ts';
export type { LogsWish } from './store-reader-messages.ts';
export { runStoreReader, type StoreReaderChannel } from './store-reader-child.ts';
export type { ServingSurvival } from './survival.ts';
export { type ServedSet, StoreServing, type StoreServingOptions } from './store-serving.ts';
