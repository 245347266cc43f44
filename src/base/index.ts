export { allFinished, closeAll } from './all-finished.ts';
export { assert, AssertionError, present, unreachable } from './assert.ts';
export { bootId } from './boot-id.ts';
export { appendLogLine } from './bounded-log.ts';
export { type Clock, ManualClock, systemClock, systemTimer, type Timer } from './clock.ts';
export { type Deferred, deferred } from './deferred.ts';
export { BlockError, CorruptionError, type CorruptionPlace, messageOf, systemCode } from './errors.ts';
export { LIMITS } from './limits.ts';
export {
  beginWriteBack,
  blockDeviceSize,
  bytesToPage,
  dropCache,
  endWriteBack,
  getAttribute,
  hasSparseFiles,
  type LockMode,
  NO_WAIT,
  punchHole,
  readNoWait,
  seekData,
  seekHole,
  setAttribute,
  type SharedRange,
  shareRange,
  tryLock,
  tryLockRange,
  zeroRange,
} from './native-files.ts';
export {
  getSocketOption,
  hasPeerClosed,
  POLL,
  pollDescriptors,
  type PollRequest,
  setSocketOption,
} from './native-sockets.ts';
export { forcePlainNode, NativeError, threadPoolSize } from './native.ts';
export {
  decodeAttributes,
  encodeAttributes,
  encodeRequest,
  findAttribute,
  GenericNetlink,
  type NetlinkAttribute,
  type NetlinkFamily,
  type NetlinkMessage,
  type NetlinkValue,
  type ReceivedAttribute,
} from './netlink.ts';
export { makeUlid, randomId, seedIds, SeededRandom } from './rng.ts';
export { Slots } from './slots.ts';
export {
  noteCommit,
  observeSyncs,
  SYNC_NAMES,
  syncDirectory,
  type SyncEvent,
  syncFile,
  type SyncName,
  type SyncObserver,
  syncPath,
} from './sync.ts';
export { formatSize, GIB, isPowerOfTwo, KIB, type MaybePromise, MIB, parseSize, roundUp } from './units.ts';
export { answerCalls, type Perform, ThreadCalls } from './thread-calls.ts';
export { errorFromWire, toWireError, type WireError } from './wire-error.ts';
