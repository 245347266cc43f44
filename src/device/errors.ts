/** The operating errors of devices, and how a system error becomes one. */

import { BlockError, messageOf, systemCode } from '../base/index.ts';

interface SystemDetails {
  /** The device, as its `description` says. */
  readonly device: string;
  /** The errno name where the system gave one, such as `EIO`. */
  readonly errno?: string;
}

/** What each code means, by the type of its details. */
export interface DeviceErrorDetails {
  /** There is nothing under that path. */
  'not-found': SystemDetails;
  /** A file is to be created and something has that name already. */
  exists: SystemDetails;
  /** The path is a directory, a socket or something else that is neither file nor block device. */
  'not-a-device': SystemDetails;
  /** The piece reaches beyond the end, or there is nothing to serve at all. */
  'too-small': { readonly device: string; readonly sizeBytes: number; readonly wantedBytes: number };
  /** Offset or size is no multiple of the block size. */
  unaligned: { readonly device: string; readonly valueBytes: number; readonly blockSizeBytes: number };
  /** It was to be written, and its filesystem is read-only. */
  'read-only': SystemDetails;
  /** Its permissions, or a block device's write protection, do not allow the access. */
  denied: SystemDetails;
  /** Someone else has it locked, mounted or open exclusively. */
  busy: SystemDetails;
  /** A write found no space. Nothing else is known to be lost; it may be tried again. */
  'no-space': SystemDetails;
  /**
   * A flush failed, perhaps for want of space. What was written since the last good flush may be lost although
   * it still reads back, so every later flush of this open device fails as well.
   */
  'flush-failed': SystemDetails;
  /** Zeroes were to be `fast`, and would take as long as a write. Nothing has failed. */
  'not-fast': SystemDetails;
  /** Reading, writing or opening failed in another way. */
  io: SystemDetails;
  /** A URI has a scheme that no adapter is registered for. */
  'unknown-scheme': { readonly uri: string; readonly known: readonly string[] };
  /** A URI is malformed. */
  'bad-uri': { readonly uri: string };
}

export type DeviceErrorCode = keyof DeviceErrorDetails;

export class DeviceError extends BlockError<DeviceErrorDetails> {}

type SystemCode = {
  [Code in DeviceErrorCode]: DeviceErrorDetails[Code] extends SystemDetails ? Code : never;
}[DeviceErrorCode];

const CODES: Readonly<Record<string, SystemCode>> = {
  ENOENT: 'not-found',
  ENXIO: 'not-found',
  ENODEV: 'not-found',
  ENOTDIR: 'not-found',
  EEXIST: 'exists',
  EISDIR: 'not-a-device',
  EROFS: 'read-only',
  EACCES: 'denied',
  EPERM: 'denied',
  EBUSY: 'busy',
  ETXTBSY: 'busy',
  ENOSPC: 'no-space',
  EDQUOT: 'no-space',
};

/**
 * The error to throw for one that the system gave.
 *
 * @param action what failed, at the start of the message: `Write of 4096 bytes at 0`.
 * @param code the code to give it; found from the errno where left out, `io` for those not in the table.
 */
export function deviceErrorFrom(
  action: string,
  device: string,
  error: unknown,
  code?: SystemCode,
): DeviceError {
  if (error instanceof DeviceError) return error;
  const errno = systemCode(error);
  const details = errno === undefined ? { device } : { device, errno };
  return new DeviceError(
    code ?? CODES[errno ?? ''] ?? 'io',
    `${action} on ${device} failed: ${messageOf(error)}`,
    details,
    { cause: error },
  );
}

/** Whether nothing is wrong with the device: it has no room, or the call would not have been fast. It may have been done in part. */
export function isRefusal(error: unknown): boolean {
  const code = systemCode(error);
  return code === 'no-space' || code === 'ENOSPC' || code === 'not-fast';
}
