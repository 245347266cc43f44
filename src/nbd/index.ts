export {
  type NbdBlockStatusOptions,
  NbdClient,
  type NbdConnectOptions,
  type NbdWriteOptions,
  type NbdZeroOptions,
} from './client.ts';
export { NbdClientError, type NbdClientErrorDetails, type RequestRefusal } from './client-error.ts';
export type { NbdExportInfo } from './client-handshake.ts';
export type { ServerEntry } from './codec.ts';
export type { ReplyMode, StatusExtent } from './codec-chunks.ts';
export { NbdDevice, openNbdDevice } from './device.ts';
export { nbdErrorName, type NbdErrorName, nbdErrorOfCode } from './errno.ts';
export type { Export } from './export.ts';
export type { TlsPolicy } from './handshake.ts';
export {
  attachKernelDevice,
  detachKernelDevice,
  type KernelDevice,
  type KernelDeviceOptions,
} from './kernel.ts';
export { KernelDeviceError, type KernelDeviceErrorDetails } from './kernel-error.ts';
export type { KernelDeviceEvent } from './kernel-supervisor.ts';
export type { NbdLimits } from './limits.ts';
export type { NbdDescriptor, NbdListenPlace } from './listening.ts';
export type { NbdLog, NbdLogEvent } from './log.ts';
export type { MetaContext } from './meta-context.ts';
export { type ListenOptions, NbdServer, type NbdServerOptions } from './server.ts';
export { NbdServerError, type NbdServerErrorDetails } from './server-error.ts';
export {
  loadTlsServerCredentials,
  type NbdServerCredentials,
  type NbdServerCredentialsOptions,
} from './tls-credentials.ts';
export { NbdTlsError, type NbdTlsErrorDetails } from './tls-error.ts';
export type { NbdListenerTls } from './tls-server.ts';
export {
  formatNbdUri,
  isNbdUri,
  NBD_PORT,
  type NbdAddress,
  type NbdTlsParameters,
  type NbdTransport,
  NbdUriError,
  type NbdUriErrorDetails,
  parseNbdUri,
} from './uri.ts';
// A user of the published room has no other way to name what an export needs, and what errors are.
export { AssertionError, BlockError, type Clock, type MaybePromise } from '../base/index.ts';
export type {
  BlockDevice,
  DeviceCapabilities,
  DeviceExtent,
  WriteOptions,
  ZeroOptions,
} from '../device/index.ts';
