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
import { dropCache, LIMITS, messageOf, systemCode, tryLock } from '../base/index.ts';
import {
  type BlockDevice,
  createSparseFile,
  type DeviceAddress,
  DeviceError,
  type DeviceRegistry,
  parseDeviceAddress,
} from '../device/index.ts';
import { RestoreError } from './errors.ts';
import { settleLayout, type SettledLayout, type TargetLayout, wholeBlocks } from './layout.ts';
import { PlannedFile } from './planned-file.ts';
import type { RestoreTarget } from './planner.ts';
import type { RemapTable } from './remap-table.ts';
import { blockDeviceUse, deviceNumber, fileUse, KERNEL_TABLES, type KernelTables } from './target-use.ts';

/** A target as it was asked for. */
export interface TargetRequest {
  readonly name: string;
  /** A path, or a URI that the registry knows. */
  readonly uri: string;
  /** The size of the file to create when there is none; the room wanted of it when absent. */
  readonly sizeBytes?: number;
}

export interface OpenTargetsOptions {
  readonly registry: Pick<DeviceRegistry, 'open'>;
  /** Whether a file is the home of a volume, which is never overwritten from outside. */
  readonly isVolumeHome: (path: string) => Promise<boolean>;
  readonly kernelTables?: KernelTables;
  /** Files that are missing are not made: something of their size stands for each. */
  readonly isDryRun?: boolean;
}

/** Opened targets with the table that goes onto them. */
export class OpenTargets {
  readonly targets: readonly RestoreTarget[];
  readonly table: RemapTable;
  /** Bytes of the volume, all zero, for which the targets have no room. */
  readonly leftOutBytes: number;
  readonly #resources: Resources;

  constructor(
    targets: readonly RestoreTarget[],
    layout: { readonly table: RemapTable; readonly leftOutBytes: number },
    resources: Resources,
  ) {
    this.targets = targets;
    this.table = layout.table;
    this.leftOutBytes = layout.leftOutBytes;
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
 * @throws {RestoreError} `target-in-use`, `bad-target`, `target-too-small` where targets in sequence do not hold
 *   what they shall, `bad-table` or `outside-source` for ranges; files created until then are removed.
 */
export async function openTargets(
  requests: readonly TargetRequest[],
  layout: TargetLayout,
  options: OpenTargetsOptions,
): Promise<OpenTargets> {
  const settled = settleLayout(layout);
  const inspected = await inspectAll(requests);
  const resources = new Resources();
  try {
    const opened = new Map<string, RestoreTarget>();
    for (const place of inspected) {
      if (place.kind === 'missing') continue;
      const handle = place.kind === 'remote' ? undefined : await claim(place, options, resources);
      const device = await openDevice(place, options, resources);
      opened.set(place.name, await openedTarget(place, device, handle));
    }
    const { sizes, ...layedOut } = layOut(inspected, opened, settled);
    for (const place of inspected) {
      if (place.kind !== 'missing') continue;
      const sizeBytes = sizes.get(place.name) ?? 0;
      // Nothing goes there and no size was asked for: a file of no bytes would serve nobody.
      if (sizeBytes === 0) continue;
      opened.set(place.name, await newTarget(place, sizeBytes, options, resources));
    }
    const targets = inspected.flatMap(({ name }) => opened.get(name) ?? []);
    return new OpenTargets(targets, layedOut, resources);
  } catch (error) {
    await resources.discard();
    throw error;
  }
}

/** @param handle of the claim, on the same file; undefined for what is not on this machine. */
async function openedTarget(
  { name, uri }: Named,
  device: BlockDevice,
  handle: FileHandle | undefined,
): Promise<RestoreTarget> {
  const target = { name, uri, device, knownZero: false };
  if (handle === undefined) return { ...target, identity: uri };
  const stats = await handle.stat();
  const identity = stats.isFile() ? `file ${stats.ino}` : `device ${deviceNumber(stats.rdev)}`;
  return { ...target, identity, dropCache: () => dropCache(handle.fd) };
}

async function newTarget(
  place: Extract<Place, { readonly kind: 'missing' }>,
  sizeBytes: number,
  options: OpenTargetsOptions,
  resources: Resources,
): Promise<RestoreTarget> {
  const { name, uri, path } = place;
  const fresh = { knownZero: true, createdIn: dirname(path) };
  if (options.isDryRun === true) {
    return { name, uri, device: new PlannedFile(path, sizeBytes), ...fresh };
  }
  const handle = await create(place, sizeBytes, resources);
  const device = await openDevice(place, options, resources);
  return { ...(await openedTarget(place, device, handle)), ...fresh };
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
): Promise<FileHandle> {
  const tables = options.kernelTables ?? KERNEL_TABLES;
  const by =
    place.kind === 'block'
      ? await blockDeviceUse(deviceNumber(place.stats.rdev), tables)
      : await fileUse(place.stats, tables);
  if (by !== undefined) throw inUse(place, by);
  if (await options.isVolumeHome(place.path)) throw inUse(place, 'the home of a volume');
  return await lockFile(place, place.path, resources);
}

/** Takes the flock; the lock on the bytes comes with the device. */
async function lockFile(
  place: Exclude<Place, { readonly kind: 'remote' }>,
  path: string,
  resources: Resources,
): Promise<FileHandle> {
  let handle: FileHandle;
  let free: boolean;
  try {
    handle = await open(path, 'r');
    resources.addClaim(handle);
    const isPiece = place.kind !== 'missing' && place.piece !== undefined;
    free = tryLock(handle.fd, isPiece ? 'shared' : 'exclusive');
  } catch (error) {
    throw badTarget(place, `cannot be locked: ${messageOf(error)}`, error);
  }
  if (!free) throw inUse(place, 'another process, which holds its lock');
  return handle;
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
  opened: ReadonlyMap<string, RestoreTarget>,
  settled: SettledLayout,
): {
  readonly sizes: ReadonlyMap<string, number>;
  readonly table: RemapTable;
  readonly leftOutBytes: number;
} {
  const sizes = new Map<string, number>();
  let restBytes = settled.spaceBytes;
  for (const place of places) {
    const wantedBytes = settled.rooms === undefined ? restBytes : (settled.rooms.get(place.name) ?? 0);
    const created = place.kind === 'missing' ? (place.sizeBytes ?? wantedBytes) : 0;
    const sizeBytes = opened.get(place.name)?.device.sizeBytes ?? created;
    sizes.set(place.name, sizeBytes);
    restBytes -= Math.min(restBytes, wholeBlocks(sizeBytes));
  }
  const sized = places.map(({ name }) => ({ name, sizeBytes: sizes.get(name) ?? 0 }));
  return { sizes, ...settled.tableFor(sized) };
}

async function create(
  place: Extract<Place, { readonly kind: 'missing' }>,
  sizeBytes: number,
  resources: Resources,
): Promise<FileHandle> {
  try {
    await createSparseFile(place.path, sizeBytes, 'restore-target');
  } catch (error) {
    throw badTarget(place, `cannot be created: ${messageOf(error)}`, error);
  }
  resources.addCreated(place.path);
  return await lockFile(place, place.path, resources);
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
