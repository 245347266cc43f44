export { DirectSet, type DirectSetOptions } from './direct-set.ts';
export { MediaError, type MediaErrorDetails } from './errors.ts';
export { type ExportOptions, type ExportProgress, type ExportResult, exportSets } from './export.ts';
export {
  type ImportOptions,
  type ImportProgress,
  type ImportResult,
  importMedia,
  type IncompleteSet,
  incompleteError,
  lackOf,
  type OpenStore,
} from './import.ts';
export { MediaChain, type MediaPlanEntry, type MediaTrack } from './media-chain.ts';
export type { OpenInput, ReadingOptions, WantedInput } from './media-reading.ts';
export {
  logMedia,
  type MediaLogEntry,
  mediaOfSet,
  readRecordedMedia,
  recordMedia,
  type RecordedMedia,
  type SetOnMedia,
} from './media-record.ts';
export type {
  MediaFailure,
  MediaSessionOptions,
  OpenOutput,
  WantedOutput,
  WritingOptions,
} from './media-writing.ts';
export { isLabel, type MediaCatalog, mediumName } from './medium-format.ts';
export { descriptorInput, type MediumInput, openMediumInput, type ReadableFile } from './medium-input.ts';
export {
  descriptorOutput,
  EndOfMedium,
  type MediumOutput,
  openMediumOutput,
  type WritableFile,
} from './medium-output.ts';
export { type SessionState, SessionStates, type SessionStep, type TransferState } from './session-states.ts';
