/**
 * Opens the targets of a restore, and refuses those that somebody uses.
 *
 * A target is a path (regular file or block device) or the URI of a device. In this order, so that a restore
 * that is refused has changed nothing:
 *
 *     inspect all -> claim the existing ones -> open them -> size and create the missing ones -> plan -> write
 *
 * A file that does not exist is created sparse, mode 0600 (it will hold a disk's content), and is removed
 * again by `discard` when the restore is refused afterwards. An existing one is used as it is and never
 * resized. Claims are held until `close`: a lock on the whole file and on all its bytes, the same ones that
 * volumes take, and on block devices the kernel's exclusive open, which keeps others from mounting it.
 *
 * What stands behind a URI cannot be inspected: whoever serves it decides.
 */

import { constants, type Stats } from 'node:fs';
import { type FileHandle, open, realpath, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LIMITS, messageOf, systemCode, tryLock, tryLockRange } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
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

/** What opens devices; the device room's registry, told to sync as `restore-target`. */
export interface TargetOpener {
  open(uri: string): Promise<BlockDevice>;
}

export interface OpenTargetsOptions {
  readonly registry: TargetOpener;
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

/** What stands behind a request. */
type Place =
  | { readonly kind: 'file' | 'block'; readonly name: string; readonly path: string; readonly stats: Stats }
  | {
      readonly kind: 'missing';
      readonly name: string;
      readonly path: string;
      readonly sizeBytes: number | undefined;
    }
  | { readonly kind: 'remote'; readonly name: string; readonly path: string };

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
  if (requests.length > LIMITS.restoreTargetCountMax) {
    const reason = `is one of ${requests.length} targets, wanted at most ${LIMITS.restoreTargetCountMax}`;
    throw badTarget({ name: requests[0]?.name ?? '', path: requests[0]?.uri ?? '' }, reason);
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

async function inspect({ name, uri, sizeBytes }: TargetRequest): Promise<Place> {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(uri)?.[1]?.toLowerCase();
  if (scheme !== undefined && scheme !== 'file') return { kind: 'remote', name, path: uri };
  const path = scheme === 'file' ? pathOf(name, uri) : uri;
  let stats: Stats;
  try {
    stats = await stat(path);
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw badTarget({ name, path }, messageOf(error), error);
    await checkParent(name, path);
    return { kind: 'missing', name, path, sizeBytes };
  }
  if (stats.isDirectory()) throw badTarget({ name, path }, 'is a directory, wanted a file or a device');
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw badTarget({ name, path }, 'is neither a regular file nor a block device');
  }
  if (sizeBytes !== undefined && stats.isFile() && stats.size < sizeBytes) {
    throw new RestoreError(
      'target-too-small',
      `Target ${name} (${path}) exists with ${stats.size} bytes, wanted ${sizeBytes}`,
      { target: name, sizeBytes: stats.size, wantedBytes: sizeBytes },
    );
  }
  return { kind: stats.isFile() ? 'file' : 'block', name, path, stats };
}

function pathOf(name: string, uri: string): string {
  try {
    return fileURLToPath(uri);
  } catch (error) {
    throw badTarget({ name, path: uri }, messageOf(error), error);
  }
}

async function checkParent(name: string, path: string): Promise<void> {
  const parent = dirname(path);
  const stats = await stat(parent).catch(() => undefined);
  if (stats?.isDirectory() === true) return;
  throw badTarget({ name, path }, `cannot be created, because ${parent} is no directory`);
}

/** The same text for two places that are the same bytes, as far as can be seen. */
async function identityOf(place: Place): Promise<string> {
  switch (place.kind) {
    case 'file':
      return `file ${place.stats.dev}:${place.stats.ino}`;
    case 'block':
      return `block ${place.stats.rdev}`;
    case 'missing':
      return `path ${join(await realpath(dirname(place.path)), basename(place.path))}`;
    case 'remote':
      return place.path;
  }
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
  let handle: FileHandle;
  try {
    const exclusive = place.kind === 'block' ? constants.O_EXCL : 0;
    handle = await open(place.path, constants.O_RDWR | exclusive);
  } catch (error) {
    if (systemCode(error) === 'EBUSY') throw inUse(place, 'the system, as an exclusive open shows');
    throw badTarget(place, messageOf(error), error);
  }
  resources.addClaim(handle);
  lock(place, handle);
}

function lock(place: Place, handle: FileHandle): void {
  if (!tryLock(handle.fd, 'exclusive')) throw inUse(place, 'another process, which holds its lock');
  if (!tryLockRange(handle.fd, 0, LOCK_BYTES, 'exclusive')) {
    throw inUse(place, 'another process, which holds a lock on a part of it');
  }
}

/** All bytes that a file can have. */
const LOCK_BYTES = Number.MAX_SAFE_INTEGER;

async function openDevice(
  place: Place,
  options: OpenTargetsOptions,
  resources: Resources,
): Promise<BlockDevice> {
  try {
    const device = await options.registry.open(place.path);
    resources.addDevice(device);
    return device;
  } catch (error) {
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
    const handle = await open(place.path, 'wx+', 0o600);
    resources.addClaim(handle);
    resources.addCreated(place.path);
    lock(place, handle);
    await handle.truncate(sizeBytes);
  } catch (error) {
    if (error instanceof RestoreError) throw error;
    throw badTarget(place, `cannot be created: ${messageOf(error)}`, error);
  }
}

function badTarget(
  { name, path }: { readonly name: string; readonly path: string },
  reason: string,
  cause?: unknown,
): RestoreError<'bad-target'> {
  return new RestoreError(
    'bad-target',
    `Target ${name} (${path}) ${reason}`,
    { target: name, path, reason },
    { cause },
  );
}

function inUse(
  { name, path }: { readonly name: string; readonly path: string },
  by: string,
): RestoreError<'target-in-use'> {
  return new RestoreError('target-in-use', `Target ${name} (${path}) is in use: ${by}`, {
    target: name,
    path,
    by,
  });
}
