/** The errors of kernel devices: what the driver, the device or the export did not allow. */

import { BlockError } from '../base/index.ts';

export interface KernelDeviceErrorDetails {
  /** The kernel has no nbd driver, or none that speaks netlink. */
  'driver-missing': { readonly device: string };
  /** Only root (CAP_SYS_ADMIN) may attach and detach. */
  'not-permitted': { readonly device: string };
  /** The path does not name a device of the driver. */
  'device-invalid': { readonly device: string };
  /** The device is attached to something else already. */
  'device-attached': { readonly device: string; readonly backend: string };
  /** The device is not attached to anything. */
  'device-detached': { readonly device: string };
  /** The device is mounted, or otherwise held by someone. */
  'device-in-use': { readonly device: string };
  /** The export cannot become such a device: its size, its block size, its connections. */
  'export-unusable': { readonly device: string; readonly address: string };
  /** What the server offers now is not what the device was made from. */
  'export-changed': { readonly device: string; readonly address: string };
  /** The driver refused for another reason, `reason`. */
  'driver-refused': { readonly device: string; readonly reason: string };
}

export class KernelDeviceError<
  Code extends keyof KernelDeviceErrorDetails = keyof KernelDeviceErrorDetails,
> extends BlockError<KernelDeviceErrorDetails, Code> {}
