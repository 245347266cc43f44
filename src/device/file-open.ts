/**
 * Opening what a file device stands on: finding out what the path is, checking that the piece lies inside, and
 * taking its lock.
 */

import {
  close as closeCallback,
  constants,
  fstat as fstatCallback,
  ftruncate as ftruncateCallback,
  open as openCallback,
  stat as statCallback,
  type Stats,
  unlink as unlinkCallback,
} from 'node:fs';
import { promisify } from 'node:util';
import {
  assert,
  blockDeviceSize,
  LIMITS,
  type LockMode,
  syncFile,
  type SyncName,
  tryLockRange,
} from '../base/index.ts';
import { DeviceError, deviceErrorFrom } from './errors.ts';

const openFile = promisify(openCallback);
const closeFile = promisify(closeCallback);
const fstat = promisify(fstatCallback);
const stat = promisify(statCallback);
const ftruncate = promisify(ftruncateCallback);
const unlink = promisify(unlinkCallback);

export interface Piece {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** `file /srv/a.raw`, with `@offset+length` where it is not the whole. */
  readonly description: string;
}

/** Opens the path if it is a regular file or a block device. The descriptor belongs to the caller. */
export async function openPath(options: {
  readonly path: string;
  readonly readOnly: boolean;
  readonly exclusive?: boolean | undefined;
}): Promise<{ readonly descriptor: number; readonly stats: Stats }> {
  const { path } = options;
  let descriptor: number;
  try {
    // Before the open, because opening a pipe waits and opening a tape moves it.
    const before = await stat(path);
    if (!before.isFile() && !before.isBlockDevice()) throw notADevice(path);
    let flags = options.readOnly ? constants.O_RDONLY : constants.O_RDWR;
    if (options.exclusive === true && before.isBlockDevice()) flags |= constants.O_EXCL;
    descriptor = await openFile(path, flags);
  } catch (error) {
    throw deviceErrorFrom('Opening', path, error);
  }
  const stats = await fstat(descriptor);
  if (stats.isFile() || stats.isBlockDevice()) return { descriptor, stats };
  await closeFile(descriptor);
  throw notADevice(path);
}

function notADevice(path: string): DeviceError {
  return new DeviceError(
    'not-a-device',
    `${path} is neither a regular file nor a block device, wanted one of them`,
    { device: path },
  );
}

/** Where the wanted piece lies. @throws {DeviceError} 'too-small', 'unaligned'. */
export function measure(
  descriptor: number,
  stats: Stats,
  options: {
    readonly path: string;
    readonly offsetBytes?: number | undefined;
    readonly lengthBytes?: number | undefined;
  },
): Piece {
  const wholeBytes = stats.isBlockDevice() ? blockDeviceSize(descriptor) : stats.size;
  const isWhole = options.offsetBytes === undefined && options.lengthBytes === undefined;
  const offsetBytes = options.offsetBytes ?? 0;
  const lengthBytes = options.lengthBytes ?? wholeBytes - offsetBytes;
  const kind = stats.isBlockDevice() ? 'device' : 'file';
  const description = `${kind} ${options.path}${isWhole ? '' : `@${offsetBytes}+${lengthBytes}`}`;
  for (const valueBytes of [offsetBytes, lengthBytes]) {
    if (valueBytes % LIMITS.blockSizeBytesMin === 0) continue;
    throw new DeviceError(
      'unaligned',
      `${description} has an offset or size of ${valueBytes} bytes, wanted a multiple of ${LIMITS.blockSizeBytesMin}`,
      { device: description, valueBytes, blockSizeBytes: LIMITS.blockSizeBytesMin },
    );
  }
  if (lengthBytes <= 0 || offsetBytes + lengthBytes > wholeBytes) {
    const wantedBytes = offsetBytes + Math.max(lengthBytes, LIMITS.blockSizeBytesMin);
    throw new DeviceError(
      'too-small',
      `${description} ends after ${wholeBytes} bytes, wanted at least ${wantedBytes}`,
      { device: description, sizeBytes: wholeBytes, wantedBytes },
    );
  }
  return { offsetBytes, lengthBytes, description };
}

/** Locks the piece until the descriptor closes. @throws {DeviceError} 'busy' where someone else has it. */
export function lockPiece(descriptor: number, piece: Piece, path: string, mode: LockMode): void {
  let free: boolean;
  try {
    free = tryLockRange(descriptor, piece.offsetBytes, piece.lengthBytes, mode);
  } catch (error) {
    throw deviceErrorFrom('Locking', piece.description, error);
  }
  if (!free) {
    throw new DeviceError('busy', `${piece.description} is locked by another user, wanted it unlocked`, {
      device: path,
    });
  }
}

/**
 * Makes a file at least `sizeBytes` long, by a hole; never shorter. A block device stays as it is. Not durable.
 *
 * @returns the size that it has now.
 * @throws {DeviceError} 'no-space', 'io'
 */
export async function extendFile(
  descriptor: number,
  description: string,
  sizeBytes: number,
): Promise<number> {
  const stats = await fstat(descriptor);
  if (stats.isBlockDevice()) return blockDeviceSize(descriptor);
  if (stats.size >= sizeBytes) return stats.size;
  try {
    await ftruncate(descriptor, sizeBytes);
  } catch (error) {
    throw deviceErrorFrom(`Extension to ${sizeBytes} bytes`, description, error);
  }
  return sizeBytes;
}

/**
 * Creates a file of `sizeBytes` that is one hole, and makes it durable under `syncName`. Its name is durable
 * only after the caller has synced the directory. Nothing is left behind where it fails.
 *
 * @throws {DeviceError} 'exists', 'not-found', 'denied', 'no-space', 'io'.
 */
export async function createSparseFile(path: string, sizeBytes: number, syncName: SyncName): Promise<void> {
  assert(
    Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes % LIMITS.blockSizeBytesMin === 0,
    `File size ${sizeBytes} is not a positive multiple of ${LIMITS.blockSizeBytesMin}`,
  );
  let descriptor: number;
  try {
    descriptor = await openFile(path, 'wx', 0o600);
  } catch (error) {
    throw deviceErrorFrom('Creation', path, error);
  }
  try {
    await ftruncate(descriptor, sizeBytes);
    await syncFile(syncName, descriptor, path);
  } catch (error) {
    await unlink(path);
    throw deviceErrorFrom(`Creation with ${sizeBytes} bytes`, path, error);
  } finally {
    await closeFile(descriptor);
  }
}
