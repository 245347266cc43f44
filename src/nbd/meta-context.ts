/**
 * Metadata contexts: what an export can say of its bytes besides the bytes.
 *
 * A context has a name and says, run by run, what kind the bytes of a range are. Every export has
 * `base:allocation`, made here from the device's extents; others come with the export, as a list or through
 * `findContext`, for those too many to list.
 *
 *     handshake: query -> find -> selected, with an id          transmission: id -> extents -> merged, bounded
 *
 * Source: NBD proto.md § Metadata querying, § Request types, NBD_CMD_BLOCK_STATUS.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import { assert, MIB } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import { ALLOCATION_FLAG, type StatusExtent } from './codec-chunks.ts';

/** Something an export can say of its bytes. */
export interface MetaContext {
  /** A namespace, a colon and a leaf-name; at most 4096 bytes of UTF-8 without NUL. */
  readonly name: string;
  /**
   * The kinds of the range's bytes, in order from `offsetBytes` on and without gaps.
   *
   * Lengths are positive multiples of the device's block size. At least one extent is returned; there may be
   * fewer than it takes to cover the range, and should be no more than `countMax`, which merged ones count
   * for: what is beyond the range or the count is dropped. Flags are unsigned 32-bit numbers.
   */
  extents(offsetBytes: number, lengthBytes: number, countMax: number): Promise<readonly StatusExtent[]>;
}

/** A context that a client has chosen, under the id that its replies carry. */
export interface SelectedContext {
  readonly id: number;
  readonly context: MetaContext;
}

/** The contexts of one export. */
export interface ContextCatalog {
  /** Those that can be listed; may cost something. */
  list(): readonly MetaContext[];
  /** The context of exactly that name, if it is found without the list. */
  find(name: string): MetaContext | undefined;
}

/** Bytes a device is asked for at once, so that no list of extents grows without end. */
const WINDOW_BYTES = 256 * MIB;
/** Windows of one request: a map of a very large volume takes several requests instead of a long one. */
const WINDOW_COUNT_MAX = 64;

/** NBD proto.md § `base:allocation` metadata context. */
export function allocationContext(device: BlockDevice): MetaContext {
  return {
    name: 'base:allocation',
    extents: async (offsetBytes, lengthBytes, countMax) => {
      const merged = new MergedExtents(countMax);
      const endBytes = offsetBytes + lengthBytes;
      for (let window = 0; window < WINDOW_COUNT_MAX; window += 1) {
        const at = offsetBytes + merged.lengthBytes;
        if (at >= endBytes) break;
        if (window > 0) await nextTurn();
        for (const extent of await device.extents(at, Math.min(WINDOW_BYTES, endBytes - at))) {
          const flags = (extent.hole ? ALLOCATION_FLAG.hole : 0) | (extent.zero ? ALLOCATION_FLAG.zero : 0);
          if (!merged.add(extent.lengthBytes, flags)) return merged.extents;
        }
      }
      return merged.extents;
    },
  };
}

/** What a reply about one context may hold. */
export interface StatusBounds {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly countMax: number;
  readonly blockSizeBytes: number;
}

/** Asks a context and makes of its answer what a reply may hold: merged, cut to the range, bounded in count. */
export async function statusOf(context: MetaContext, bounds: StatusBounds): Promise<readonly StatusExtent[]> {
  const { offsetBytes, lengthBytes, countMax, blockSizeBytes } = bounds;
  const merged = new MergedExtents(countMax);
  for (const extent of await context.extents(offsetBytes, lengthBytes, countMax)) {
    assert(
      extent.lengthBytes > 0 && extent.lengthBytes % blockSizeBytes === 0,
      `An extent of ${context.name} has ${extent.lengthBytes} bytes, which are no blocks of ${blockSizeBytes}`,
    );
    const leftBytes = lengthBytes - merged.lengthBytes;
    if (leftBytes <= 0 || !merged.add(Math.min(extent.lengthBytes, leftBytes), extent.flags)) break;
  }
  assert(merged.extents.length > 0, `Context ${context.name} has no extents at ${offsetBytes}`);
  return merged.extents;
}

/**
 * Extents one after another, neighbours of one kind made one. None is longer than the range they were asked
 * for, so each fits into the reply's form: a compact request has no longer ranges than a compact reply.
 */
class MergedExtents {
  readonly extents: StatusExtent[] = [];
  lengthBytes = 0;
  readonly #countMax: number;

  constructor(countMax: number) {
    this.#countMax = countMax;
  }

  /** @returns false where there is no room: the extent was not taken, and nothing may follow. */
  add(lengthBytes: number, flags: number): boolean {
    const last = this.extents.at(-1);
    if (last?.flags === flags) {
      this.extents[this.extents.length - 1] = { lengthBytes: last.lengthBytes + lengthBytes, flags };
    } else if (this.extents.length < this.#countMax) {
      this.extents.push({ lengthBytes, flags });
    } else {
      return false;
    }
    this.lengthBytes += lengthBytes;
    return true;
  }
}
