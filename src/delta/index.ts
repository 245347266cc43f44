export type { DeltaIndex } from './delta-index.ts';
export {
  type DeltaPoint,
  DeltaReader,
  type DeltaReaderOptions,
  type DeltaRecord,
  type DeltaUntil,
  type DeltaVolume,
} from './delta-reader.ts';
export { DeltaStore } from './delta-store.ts';
export { DeltaError, type DeltaErrorCode, type DeltaErrorDetails } from './errors.ts';
export type {
  DeltaChange,
  DeltaMemberState,
  DeltaMemberStatus,
  DeltaPlace,
  DeltaStatus,
  DeltaStoreOptions,
} from './types.ts';
