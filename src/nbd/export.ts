/** What a server exports, and what each export offers to clients. */

import { assert, isPowerOfTwo, LIMITS } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TRANSMISSION_FLAG } from './codec.ts';
import type { ExportOffer } from './handshake.ts';

/** The protocol's upper bound of a minimum block size (NBD proto.md § Size constraints). */
const MINIMUM_BLOCK_BYTES_MAX = 65_536;

/** One export. The device stays the caller's: the server never closes it. */
export interface Export {
  /** At most 4096 bytes of UTF-8 without NUL; empty is the default export. */
  readonly name: string;
  /** For people, shown in lists; may be empty. */
  readonly description: string;
  readonly device: BlockDevice;
  /** Refuses changes even where the device would take them. A read-only device is read-only anyway. */
  readonly readOnly: boolean;
  /**
   * Lets clients use several connections at once. True only where a flush on one connection makes the
   * writes answered on all of them durable: of every device whose `flush` keeps the port's promise.
   */
  readonly multiConn: boolean;
  /** A power of two; what clients should align to. Default 4096, or the device's block size if larger. */
  readonly preferredBlockSizeBytes?: number;
}

export function isReadOnly(exported: Export): boolean {
  return exported.readOnly || exported.device.capabilities.readOnly;
}

/** The offer of an export: what the handshake tells clients about it. */
export function offerOf(exported: Export, maximumPayloadBytes: number): ExportOffer {
  const { device, name, description } = exported;
  const minimumBlockSizeBytes = device.blockSizeBytes;
  const preferred = exported.preferredBlockSizeBytes ?? LIMITS.blockSizeBytesPreferred;
  const preferredBlockSizeBytes = Math.max(preferred, minimumBlockSizeBytes);
  assert(
    isPowerOfTwo(minimumBlockSizeBytes) && minimumBlockSizeBytes <= MINIMUM_BLOCK_BYTES_MAX,
    `Block size ${minimumBlockSizeBytes} of ${device.description} is no power of two up to 65536`,
  );
  assert(
    isPowerOfTwo(preferredBlockSizeBytes) && preferredBlockSizeBytes <= maximumPayloadBytes,
    `Preferred block size ${preferredBlockSizeBytes} is no power of two up to ${maximumPayloadBytes}`,
  );
  return {
    name,
    description,
    sizeBytes: device.sizeBytes,
    transmissionFlags: transmissionFlagsOf(exported),
    minimumBlockSizeBytes,
    preferredBlockSizeBytes,
    maximumPayloadBytes,
  };
}

/** NBD proto.md § Transmission flags: only what works on this export. */
function transmissionFlagsOf(exported: Export): number {
  const flag = TRANSMISSION_FLAG;
  let flags: number = flag.hasFlags | flag.sendFlush | flag.sendFua;
  if (exported.multiConn) flags |= flag.canMultiConn;
  if (isReadOnly(exported)) return flags | flag.readOnly;
  flags |= flag.sendWriteZeroes;
  if (exported.device.capabilities.trim) flags |= flag.sendTrim;
  return flags;
}
