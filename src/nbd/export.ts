/** What a server exports, and what each export offers to clients. */

import { assert, isPowerOfTwo, LIMITS } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { TRANSMISSION_FLAG } from './codec.ts';
import type { ExportOffer } from './handshake.ts';
import { allocationContext, type ContextCatalog, type MetaContext } from './meta-context.ts';

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
  /**
   * Lets clients make the export larger (NBD_CMD_RESIZE, experimental): when the promise resolves,
   * `device.sizeBytes` is at least `sizeBytes`, a multiple of the block size, and the device takes requests up
   * to there. Called once at a time, only with more than the device has. Default: clients may not.
   */
  resize?(sizeBytes: number): Promise<void>;
  /**
   * What else the export says of its bytes, besides `base:allocation`. Read once for each option of a client
   * that asks for other contexts than that and those `findContext` finds, so it may be a getter.
   */
  readonly contexts?: readonly MetaContext[];
  /** Contexts that are not in the list, by their exact name; asked before the list is. */
  findContext?(name: string): MetaContext | undefined;
}

export function isReadOnly(exported: Export): boolean {
  return exported.readOnly || exported.device.capabilities.readOnly;
}

/**
 * Whether NBD_CMD_FLAG_FAST_ZERO is put to the device, which may still refuse. The flag is offered either way: a
 * fast refusal is an answer too (NBD proto.md § Request types, NBD_CMD_WRITE_ZEROES).
 */
export function hasFastZeroes(exported: Export): boolean {
  return exported.device.capabilities.fastZero === true;
}

/**
 * How clients make the export larger; undefined where they may not. Resizes of several clients come one after
 * the other, so that a smaller size that was asked for meanwhile does not undo a larger one.
 */
export function growerOf(exported: Export): ((sizeBytes: number) => Promise<void>) | undefined {
  if (exported.resize === undefined) return undefined;
  let last = Promise.resolve();
  return (sizeBytes) => {
    const grow = async (): Promise<void> => {
      if (sizeBytes > exported.device.sizeBytes) await exported.resize?.(sizeBytes);
    };
    // Whether the one before failed is its client's affair.
    const turn = last.then(grow);
    last = turn.catch(() => undefined);
    return turn;
  };
}

function contextsOf(exported: Export): ContextCatalog {
  const allocation = allocationContext(exported.device);
  return {
    list: () => [allocation, ...(exported.contexts ?? [])],
    find: (name) => (name === allocation.name ? allocation : exported.findContext?.(name)),
  };
}

/** The offer of an export: what the handshake tells clients about it, which may change it only if not `readOnly`. */
export function offerOf(exported: Export, maximumPayloadBytes: number, readOnly: boolean): ExportOffer {
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
    // A device may grow while it is served.
    get sizeBytes() {
      return device.sizeBytes;
    },
    transmissionFlags: transmissionFlagsOf(exported, readOnly),
    minimumBlockSizeBytes,
    preferredBlockSizeBytes,
    maximumPayloadBytes,
    contexts: contextsOf(exported),
  };
}

/** NBD proto.md § Transmission flags: only what works on this export. The handshake adds what it agreed on. */
function transmissionFlagsOf(exported: Export, readOnly: boolean): number {
  const flag = TRANSMISSION_FLAG;
  let flags: number = flag.hasFlags | flag.sendFlush | flag.sendFua | flag.sendCache;
  if (exported.multiConn) flags |= flag.canMultiConn;
  if (readOnly) return flags | flag.readOnly;
  flags |= flag.sendWriteZeroes | flag.sendFastZero;
  if (exported.resize !== undefined) flags |= flag.sendResize;
  if (exported.device.capabilities.trim) flags |= flag.sendTrim;
  return flags;
}
