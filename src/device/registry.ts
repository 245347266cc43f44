/**
 * From a path or a URI to an open device.
 *
 *     /srv/a.raw                    a regular file or a block device
 *     file:relative/a.raw           the same, for names that look like a URI
 *     /dev/sdb@1G+20G               a piece: offset and length, in bytes or with K, M, G, T
 *     nbd://host/export@0+64M       any registered scheme, pieces too
 *
 * A suffix is a piece only where both numbers are sizes, so that most names with `@` or `+` in them are just
 * names. A name of a file that itself ends like a piece must be given another way, such as through a link.
 */

import { assert, type LockMode, parseSize, type SyncName } from '../base/index.ts';
import type { BlockDevice } from './block-device.ts';
import { DeviceError } from './errors.ts';
import { openFileDevice } from './file.ts';
import { PieceDevice } from './piece.ts';

export interface OpenOptions {
  readonly readOnly: boolean;
  /** The name of the device's syncs, where it has any. */
  readonly syncName: SyncName;
  /** See `FileDeviceOptions`; schemes without locks ignore it. */
  readonly lock?: LockMode | undefined;
  /** See `FileDeviceOptions`; schemes without exclusive opens ignore it. */
  readonly exclusive?: boolean | undefined;
}

/** Opens a URI, given without its piece. The device belongs to the caller. */
export type DeviceOpener = (uri: string, options: OpenOptions) => Promise<BlockDevice>;

/** A URI in its parts. */
export interface DeviceAddress {
  /** `file` for plain paths. */
  readonly scheme: string;
  /** The URI without its piece; for `file` the path alone. */
  readonly target: string;
  readonly piece?: { readonly offsetBytes: number; readonly lengthBytes: number };
}

/**
 * Takes a path or URI apart.
 *
 * @throws {DeviceError} 'bad-uri' where nothing names a device, or a piece is empty.
 */
export function parseDeviceAddress(uri: string): DeviceAddress {
  const { target, piece } = splitPiece(uri);
  const scheme = /^([a-z][a-z0-9.+-]*):/i.exec(target)?.[1]?.toLowerCase() ?? 'file';
  const isFileUri = target.slice(0, 5).toLowerCase() === 'file:';
  const rest = isFileUri ? target.slice(5).replace(/^\/\/(?=\/)/, '') : target;
  if (rest === '') {
    throw new DeviceError('bad-uri', `Device ${JSON.stringify(uri)} names nothing, wanted a path or a URI`, {
      uri,
    });
  }
  return piece === undefined ? { scheme, target: rest } : { scheme, target: rest, piece };
}

function splitPiece(uri: string): Pick<DeviceAddress, 'target' | 'piece'> {
  const match = /^(.*)@([0-9.]+[KMGTiB]*)\+([0-9.]+[KMGTiB]*)$/is.exec(uri);
  const offsetBytes = parseSize(match?.[2] ?? '');
  const lengthBytes = parseSize(match?.[3] ?? '');
  if (match === null || offsetBytes === undefined || lengthBytes === undefined) return { target: uri };
  if (lengthBytes === 0) {
    throw new DeviceError('bad-uri', `Device ${JSON.stringify(uri)} names a piece of 0 bytes, wanted more`, {
      uri,
    });
  }
  return { target: match[1] ?? '', piece: { offsetBytes, lengthBytes } };
}

export class DeviceRegistry {
  readonly #openers = new Map<string, DeviceOpener>();

  /** Schemes that can be opened, sorted. */
  get schemes(): readonly string[] {
    return ['file', ...this.#openers.keys()].sort();
  }

  /** @param scheme lower case, without the colon; each can be registered once. */
  register(scheme: string, opener: DeviceOpener): void {
    assert(/^[a-z][a-z0-9.+-]*$/.test(scheme), `Scheme ${scheme} is not lower-case letters and digits`);
    assert(scheme !== 'file' && !this.#openers.has(scheme), `Scheme ${scheme} is registered already`);
    this.#openers.set(scheme, opener);
  }

  /**
   * Opens a path or URI; the device belongs to the caller.
   *
   * @throws {DeviceError} 'bad-uri', 'unknown-scheme', and what the adapter says.
   */
  async open(uri: string, options: OpenOptions): Promise<BlockDevice> {
    const { scheme, target, piece } = parseDeviceAddress(uri);
    if (scheme === 'file') return openFileDevice({ ...options, path: target, ...piece });
    const opener = this.#openers.get(scheme);
    if (opener === undefined) {
      const known = this.schemes;
      throw new DeviceError(
        'unknown-scheme',
        `Device ${uri} has the scheme ${scheme}, wanted one of ${known.join(', ')}; write ./${uri} for a file of that name`,
        { uri, known },
      );
    }
    const device = await opener(target, options);
    if (piece === undefined) return device;
    try {
      return new PieceDevice(device, piece.offsetBytes, piece.lengthBytes);
    } catch (error) {
      await device.close();
      throw error;
    }
  }
}
