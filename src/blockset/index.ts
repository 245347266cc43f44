export { isChainThreadData, runChainThread, ThreadedChain } from './chain-threads.ts';
export { ChainView, type ChainPlanEntry } from './chain-view.ts';
export { type CopiedSet, type CopyOptions, copySets } from './copy-sets.ts';
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
export { mergeChain, type MergeChainOptions, type MergedSet, type MergeOptions, mergeSets } from './merge.ts';
export type { Protection } from './protection.ts';
export { prune, type PruneOptions, type PruneResult } from './prune.ts';
export type { PrunePlan } from './prune-plan.ts';
export type { RefusedSet, RemovalOptions, RemovalResult } from './removal.ts';
export { isEmptyPolicy, type RetentionPolicy } from './retention.ts';
export { RAW_DATABASES, type RawDatabase, type RawRecord, RawSet, RawSetWriter } from './raw-set.ts';
export { unpackFrame } from './frame-codec.ts';
export { decodeCounters, decodeHeader, trackBytesOf, trackCountOf } from './set-format.ts';
export type { SealedSet, SessionCounters, SetCodec, SetCounters, SetHeader, SetLevel } from './set-format.ts';
export { type Compression, compressionOf, type PackedFrame } from './frame-codec.ts';
export type { FramePlan, StoredTrack } from './lane-reader.ts';
export { type LaneCounts, type LaneEnd, type LaneFrame, type LaneParts, LaneWriter } from './lane-writer.ts';
export { type LaneFile, SetAssembly } from './set-assembly.ts';
export {
  appendSession,
  type LoggedSession,
  type LoggedStep,
  logSession,
  readSessionLog,
} from './session-log.ts';
export { type NewStreamedSet, type StreamedSeal, StreamedSet } from './streamed-set.ts';
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
export {
  type ByteRange,
  type DamagedFrame,
  type VerifiedSet,
  verify,
  type VerifyExtent,
  type VerifyOptions,
} from './verify.ts';
