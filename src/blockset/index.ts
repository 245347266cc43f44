export { ChainView, type ChainPlanEntry } from './chain-view.ts';
export { StoreError, type StoreErrorDetails } from './errors.ts';
export type { StoredPoint, StoredSet } from './lineage.ts';
export {
  type AddressRow,
  type Ordering,
  type OrderingForm,
  type OrderingRow,
  type PositionRow,
  type StoredObject,
} from './ordering.ts';
export type { SessionCounters, SetCodec, SetCounters, SetHeader, SetLevel } from './set-format.ts';
export { type FramePlan, SetReader, type StoredTrack } from './set-reader.ts';
export { type SealedSet, SetWriter } from './set-writer.ts';
export { type NewSet, Store, type StoreOptions } from './store.ts';
export { type VerifiedSet, verify } from './verify.ts';
