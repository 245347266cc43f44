/** Which device URIs a process of Cowbell can open: files, block devices, and other NBD servers. */

import { DeviceRegistry } from '../device/index.ts';
import { openNbdDevice } from '../nbd/index.ts';

export function createDeviceRegistry(): DeviceRegistry {
  const registry = new DeviceRegistry();
  for (const scheme of ['nbd', 'nbd+unix', 'nbds', 'nbds+unix']) {
    registry.register(scheme, (uri) => openNbdDevice(uri));
  }
  return registry;
}
