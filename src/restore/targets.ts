/**
 * Opens the targets of a restore, and refuses those that somebody uses.
 *
 * A target is whatever the device registry can open: a path (regular file or block device), a piece of one,
 * or the URI of a device. In this order, so that a restore that is refused has changed nothing:
 *
 *     inspect all -> claim and open the existing ones -> size and create the missing ones -> plan -> write
 *
 * A file that does not exist is created sparse and readable to its owner only (it will hold a disk's
 * content), and is removed again by `discard` when the restore is refused afterwards. An existing one is used
 * as it is and never resized.
 *
 * A claim is held until `close`. It is three things: a flock on the file (shared for a piece), a lock on the
 * bytes written, the same that volumes take on their homes, and on a block device the kernel's exclusive
 * open, which keeps others from mounting it.
 *
 * What stands behind a URI cannot be inspected: whoever serves it decides.
 */

import type { Stats } from 'node:fs';
import { type FileHandle, open, realpath, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { LIMITS, messageOf, systemCode, tryLock } from '../base/index.ts';
import {
  type BlockDevice,
  createSparseFile,
  type DeviceAddress,
  DeviceError,
  type DeviceRegistry,
  parseDeviceAddress,
} from '../device/index.ts';
import { RestoreError } from './errors.ts';
import type { RestoreTarget } from './planner.ts';
import { RemapTable } from './remap-table.ts';
import { blockDeviceUse, deviceNumber, fileUse, KERNEL_TABLES, type KernelTables } from './target-use.ts';

/** A target as it was asked for. */
export interface TargetRequest {
  readonly name: string;
  /** A path, or a URI that the registry knows. */
  readonly uri: string;
  /** The size of the file to create when there is none; the room wanted of it when absent. */
  readonly sizeBytes?: number;
}

/** What shall go to the targets: rows of a table, or the volume over all targets in sequence. */
export type TargetLayout = { readonly table: RemapTable } | { readonly sequenceBytes: number };

export interface OpenTargetsOptions {
  readonly registry: Pick<DeviceRegistry, 'open'>;
  /** Whether a file is the home of a volume, which is never overwritten from outside. */
  readonly isVolumeHome: (path: string) => Promise<boolean>;
  readonly kernelTables?: KernelTables;
}

/** Opened targets with the table that goes onto them. */
export class OpenTargets {
  readonly targets: readonly RestoreTarget[];
  readonly table: RemapTable;
  readonly #resources: Resources;

  constructor(targets: readonly RestoreTarget[], table: RemapTable, resources: Resources) {
    this.targets = targets;
    this.table = table;
    this.#resources = resources;
  }

  /** Closes devices and gives up the claims; what was written stays. Does not flush. */
  close(): Promise<void> {
    return this.#resources.release();
  }

  /** Closes, and removes the files that were created: for a restore that has written nothing. */
  discard(): Promise<void> {
    return this.#resources.discard();
  }
}

/**
 * Opens all targets, or none.
 *
 * @throws {RestoreError} `target-in-use`, `bad-target`, or `target-too-small` where targets in sequence do
 *   not hold the volume; files created until then are removed.
 */
export async function openTargets(
  requests: readonly TargetRequest[],
  layout: TargetLayout,
  options: OpenTargetsOptions,
): Promise<OpenTargets> {
  const inspected = await inspectAll(requests);
  const resources = new Resources();
  try {
    const devices = new Map<string, BlockDevice>();
    for (const place of inspected) {
      if (place.kind === 'missing') continue;
      if (place.kind !== 'remote') await claim(place, options, resources);
      devices.set(place.name, await openDevice(place, options, resources));
    }
    const { sizes, table } = layOut(inspected, devices, layout);
    for (const place of inspected) {
      if (place.kind !== 'missing') continue;
      const sizeBytes = sizes.get(place.name) ?? 0;
      // Nothing goes there and no size was asked for: a file of no bytes would serve nobody.
      if (sizeBytes === 0) continue;
      await create(place, sizeBytes, resources);
      devices.set(place.name, await openDevice(place, options, resources));
    }
    const targets = inspected.flatMap((place): RestoreTarget[] => {
      const device = devices.get(place.name);
      if (device === undefined) return [];
      const { name } = place;
      if (place.kind !== 'missing') return [{ name, device, knownZero: false }];
      return [{ name, device, knownZero: true, createdIn: dirname(place.path) }];
    });
    return new OpenTargets(targets, table, resources);
  } catch (error) {
    await resources.discard();
    throw error;
  }
}

interface Named {
  readonly name: string;
  /** As it was asked for. */
  readonly uri: string;
}

/** What stands behind a request. */
type Place =
  | (Named & {
      readonly kind: 'file' | 'block';
      readonly path: string;
      readonly stats: Stats;
      readonly piece: DeviceAddress['piece'];
    })
  | (Named & { readonly kind: 'missing'; readonly path: string; readonly sizeBytes: number | undefined })
  | (Named & { readonly kind: 'remote' });

/** What must be given back, in the order in which it was taken. */
class Resources {
  readonly #devices: BlockDevice[] = [];
  readonly #claims: FileHandle[] = [];
  readonly #created: string[] = [];

  addDevice(device: BlockDevice): void {
    this.#devices.push(device);
  }

  addClaim(handle: FileHandle): void {
    this.#claims.push(handle);
  }

  addCreated(path: string): void {
    this.#created.push(path);
  }

  async release(): Promise<void> {
    for (const device of this.#devices.splice(0)) await device.close();
    for (const handle of this.#claims.splice(0)) await handle.close();
  }

  async discard(): Promise<void> {
    for (const path of this.#created.splice(0)) await unlink(path);
    await this.release();
  }
}

async function inspectAll(requests: readonly TargetRequest[]): Promise<Place[]> {
  const [first] = requests;
  if (first !== undefined && requests.length > LIMITS.restoreTargetCountMax) {
    throw badTarget(
      first,
      `is one of ${requests.length} targets, wanted at most ${LIMITS.restoreTargetCountMax}`,
    );
  }
  const places: Place[] = [];
  const names = new Set<string>();
  const identities = new Map<string, string>();
  for (const request of requests) {
    const place = await inspect(request);
    if (names.has(place.name)) throw badTarget(place, 'has the name of another target');
    names.add(place.name);
    const identity = await identityOf(place);
    const other = identities.get(identity);
    if (other !== undefined) throw inUse(place, `target ${other} of the same restore`);
    identities.set(identity, place.name);
    places.push(place);
  }
  return places;
}

async function inspect(request: TargetRequest): Promise<Place> {
  const { name, uri, sizeBytes } = request;
  let address: DeviceAddress;
  try {
    address = parseDeviceAddress(uri);
  } catch (error) {
    throw badTarget(request, `names no device: ${messageOf(error)}`, error);
  }
  const { scheme, target: path, piece } = address;
  if (scheme !== 'file') return { kind: 'remote', name, uri };
  let stats: Stats;
  try {
    stats = await stat(path);
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw badTarget(request, `failed: ${messageOf(error)}`, error);
    await checkCreatable(request, path, piece);
    return { kind: 'missing', name, uri, path, sizeBytes };
  }
  if (stats.isDirectory()) throw badTarget(request, 'is a directory, wanted a file or a device');
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw badTarget(request, 'is neither a regular file nor a block device');
  }
  return { kind: stats.isFile() ? 'file' : 'block', name, uri, path, stats, piece };
}

async function checkCreatable(
  request: TargetRequest,
  path: string,
  piece: DeviceAddress['piece'],
): Promise<void> {
  const { sizeBytes } = request;
  if (piece !== undefined) throw badTarget(request, 'is a piece of a file that does not exist');
  if (sizeBytes !== undefined && sizeBytes % LIMITS.blockSizeBytesMin !== 0) {
    throw badTarget(
      request,
      `would get ${sizeBytes} bytes, wanted a multiple of ${LIMITS.blockSizeBytesMin}`,
    );
  }
  const parent = dirname(path);
  const stats = await stat(parent).catch(() => undefined);
  if (stats?.isDirectory() === true) return;
  throw badTarget(request, `cannot be created, because ${parent} is no directory`);
}

/** The same text for two places that are the same bytes, as far as can be seen; locks see pieces that overlap. */
async function identityOf(place: Place): Promise<string> {
  switch (place.kind) {
    case 'file':
      return `file ${place.stats.dev}:${place.stats.ino} ${pieceText(place.piece)}`;
    case 'block':
      return `block ${place.stats.rdev} ${pieceText(place.piece)}`;
    case 'missing':
      return `path ${join(await realpath(dirname(place.path)), basename(place.path))}`;
    case 'remote':
      return place.uri;
  }
}

function pieceText(piece: DeviceAddress['piece']): string {
  return piece === undefined ? 'whole' : `${piece.offsetBytes}+${piece.lengthBytes}`;
}

/** Makes sure that nobody else uses a place, and that nobody starts to while it is claimed. */
async function claim(
  place: Extract<Place, { readonly stats: Stats }>,
  options: OpenTargetsOptions,
  resources: Resources,
): Promise<void> {
  const tables = options.kernelTables ?? KERNEL_TABLES;
  const by =
    place.kind === 'block'
      ? await blockDeviceUse(deviceNumber(place.stats.rdev), tables)
      : await fileUse(place.stats, tables);
  if (by !== undefined) throw inUse(place, by);
  if (await options.isVolumeHome(place.path)) throw inUse(place, 'the home of a volume');
  await lockFile(place, place.path, resources);
}

/** Takes the flock; the lock on the bytes comes with the device. */
async function lockFile(
  place: Exclude<Place, { readonly kind: 'remote' }>,
  path: string,
  resources: Resources,
): Promise<void> {
  let free: boolean;
  try {
    const handle = await open(path, 'r');
    resources.addClaim(handle);
    const isPiece = place.kind !== 'missing' && place.piece !== undefined;
    free = tryLock(handle.fd, isPiece ? 'shared' : 'exclusive');
  } catch (error) {
    throw badTarget(place, `cannot be locked: ${messageOf(error)}`, error);
  }
  if (!free) throw inUse(place, 'another process, which holds its lock');
}

async function openDevice(
  place: Place,
  options: OpenTargetsOptions,
  resources: Resources,
): Promise<BlockDevice> {
  try {
    const device = await options.registry.open(place.uri, {
      readOnly: false,
      syncName: 'restore-target',
      lock: 'exclusive',
      exclusive: true,
    });
    resources.addDevice(device);
    return device;
  } catch (error) {
    if (error instanceof DeviceError && error.code === 'busy') {
      throw inUse(place, 'the system or another process, which holds all or a part of it', error);
    }
    throw badTarget(place, `cannot be opened: ${messageOf(error)}`, error);
  }
}

/** Decides the size of each file to create, and what goes where. */
function layOut(
  places: readonly Place[],
  devices: ReadonlyMap<string, BlockDevice>,
  layout: TargetLayout,
): { readonly sizes: ReadonlyMap<string, number>; readonly table: RemapTable } {
  const rooms = 'table' in layout ? layout.table.roomNeeded() : undefined;
  const sizes = new Map<string, number>();
  let restBytes = 'table' in layout ? 0 : layout.sequenceBytes;
  for (const place of places) {
    const wantedBytes = rooms === undefined ? restBytes : (rooms.get(place.name)?.endBytes ?? 0);
    const created = place.kind === 'missing' ? (place.sizeBytes ?? wantedBytes) : 0;
    const sizeBytes = devices.get(place.name)?.sizeBytes ?? created;
    sizes.set(place.name, sizeBytes);
    restBytes -= Math.min(restBytes, sizeBytes - (sizeBytes % LIMITS.blockSizeBytesMin));
  }
  if ('table' in layout) return { sizes, table: layout.table };
  const sized = places.map(({ name }) => ({ name, sizeBytes: sizes.get(name) ?? 0 }));
  return { sizes, table: RemapTable.sequence(layout.sequenceBytes, sized) };
}

async function create(
  place: Extract<Place, { readonly kind: 'missing' }>,
  sizeBytes: number,
  resources: Resources,
): Promise<void> {
  try {
    await createSparseFile(place.path, sizeBytes, 'restore-target');
  } catch (error) {
    throw badTarget(place, `cannot be created: ${messageOf(error)}`, error);
  }
  resources.addCreated(place.path);
  await lockFile(place, place.path, resources);
}

function badTarget({ name, uri }: Named, reason: string, cause?: unknown): RestoreError<'bad-target'> {
  return new RestoreError(
    'bad-target',
    `Target ${describe({ name, uri })} ${reason}`,
    { target: name, path: uri, reason },
    { cause },
  );
}

function inUse({ name, uri }: Named, by: string, cause?: unknown): RestoreError<'target-in-use'> {
  return new RestoreError(
    'target-in-use',
    `Target ${describe({ name, uri })} is in use: ${by}`,
    { target: name, path: uri, by },
    { cause },
  );
}

/** Name and place, once where they are the same, as with targets of the command line. */
function describe({ name, uri }: Named): string {
  return name === uri ? uri : `${name} (${uri})`;
}
