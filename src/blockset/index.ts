export { ChainView, type ChainPlanEntry } from './chain-view.ts';
export { StoreError, type StoreErrorDetails } from './errors.ts';
export type { KeySlot, StoreKey } from './key-slots.ts';
export { chainOf, selectSet, type StoredPoint, type StoredSet } from './lineage.ts';
export {
  type AddressRow,
  type Ordering,
  type OrderingForm,
  type OrderingRow,
  type PositionRow,
  type StoredObject,
} from './ordering.ts';
export { RAW_DATABASES, type RawDatabase, type RawRecord, RawSet, RawSetWriter } from './raw-set.ts';
export { unpackFrame } from './frame-codec.ts';
export { decodeCounters, decodeHeader, trackBytesOf, trackCountOf } from './set-format.ts';
export type { SealedSet, SessionCounters, SetCodec, SetCounters, SetHeader, SetLevel } from './set-format.ts';
export type { Compression, PackedFrame } from './frame-codec.ts';
export type { FramePlan, StoredTrack } from './lane-reader.ts';
export { type LaneCounts, type LaneEnd, type LaneParts, LaneWriter } from './lane-writer.ts';
export { type LaneFile, SetAssembly } from './set-assembly.ts';
export { type LoggedSession, type LoggedStep, logSession, readSessionLog } from './session-log.ts';
export { SetReader } from './set-reader.ts';
export { SetWriter } from './set-writer.ts';
export {
  type LaneWish,
  type LostStore,
  type NewSet,
  type NewStoreOptions,
  Store,
  type StoreOptions,
} from './store.ts';
export { StoreKeys } from './store-keys.ts';
export { type VerifiedSet, verify } from './verify.ts';
