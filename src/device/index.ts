export {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
export {
  DeviceError,
  type DeviceErrorCode,
  type DeviceErrorDetails,
  deviceErrorFrom,
  isRefusal,
} from './errors.ts';
export { ConcatDevice, type ConcatMember } from './concat-device.ts';
export {
  FaultyDevice,
  type FaultyGate,
  type FaultyKind,
  type FaultyMatch,
  type FaultyOperation,
  type FaultyRule,
} from './faulty.ts';
export { createSparseFile } from './file-open.ts';
export { type FileDeviceOptions, openFileDevice } from './file.ts';
export { LayerDevice } from './layer-device.ts';
export { MemoryDevice, type MemoryDeviceOptions } from './memory.ts';
export { PieceDevice } from './piece.ts';
export {
  type DeviceAddress,
  type DeviceOpener,
  DeviceRegistry,
  type OpenOptions,
  parseDeviceAddress,
} from './registry.ts';
export { SharedFlush } from './shared-flush.ts';
export { extendTo } from './spread-device.ts';
export { StripeDevice, stripeMemberBytes, type StripeOptions } from './stripe-device.ts';
export { WrittenFlush } from './written-flush.ts';
