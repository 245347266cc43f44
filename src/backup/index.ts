export { backUp, type BackUpOptions } from './backup.ts';
export { BackupError, type BackupErrorCode, type BackupErrorDetails } from './errors.ts';
export { type BackupOptions, runBackupSession } from './host.ts';
export type { LaneProgress } from './lane.ts';
export type { Codec, Level, SetOutcome } from './messages.ts';
export type { BeginRequest, HomeReader, SessionSource, SourceVolume } from './source.ts';
export { runWorker, type WorkerChannel } from './worker.ts';
