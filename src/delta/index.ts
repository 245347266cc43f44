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
