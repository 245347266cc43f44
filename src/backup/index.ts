export { backUp, type BackUpOptions } from './backup.ts';
export { BackupError, type BackupErrorCode, type BackupErrorDetails } from './errors.ts';
export { type BackupOptions, runBackupSession } from './host.ts';
export { isLaneThreadData, type LaneThreadData } from './lane-messages.ts';
export { runLaneThread } from './lane-thread.ts';
export type { Codec, Level, SetOutcome } from './messages.ts';
export type { SavingProgress } from './saving.ts';
export type { BeginRequest, HomeReader, SessionSource, SourceVolume } from './source.ts';
export { runWorker, type WorkerChannel } from './worker.ts';
