export { type ContainerArea, DeviceArea, MemoryArea } from '../container/index.ts';
export {
  createVolume,
  type CreateOptions,
  homePathOf,
  isVolumeHome,
  readVolumeIdentity,
  type VolumeIdentity,
} from './directory.ts';
export { VolumeError, type VolumeErrorCode, type VolumeErrorDetails } from './errors.ts';
export { Geometry } from './geometry.ts';
export type { DivertedTrack } from './protection.ts';
export { BackupSession, type SessionPlan, type SessionState, type SessionStatus } from './session.ts';
export type { OpenVolumeOptions } from './opening.ts';
export { type SessionRequest, Volume, type VolumeStatus } from './volume.ts';
