/**
 * Makes the home that a layout asks for: finds out what it leaves open, refuses what cannot be, and creates the files
 * that are not there yet.
 *
 *     asked for -> judged by itself -> members looked at, locked for a moment -> lengths -> room -> files made
 *
 * A member that is there is used as it is. Of a mirror, whose members must hold the same, the first one that was there
 * counts: the others begin without any of it, and are made equal while the volume is used.
 */

import { rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { messageOf, setAttribute, syncDirectory, systemCode } from '../base/index.ts';
import { createSparseFile, type DeviceRegistry, parseDeviceAddress } from '../device/index.ts';
import { VolumeError } from './errors.ts';
import {
  assertLayout,
  badLayout,
  extentLengths,
  type HomeLayout,
  type LayoutExtent,
  type LayoutMember,
  type LayoutRequest,
  memberBytes,
  stripeBytesOf,
  wholePathOf,
} from './layout.ts';

export interface LayoutCreateOptions {
  readonly sizeBytes: number;
  readonly nowMs: number;
  readonly registry: Pick<DeviceRegistry, 'open'>;
  /** Begins messages: the file that the layout is from. */
  readonly from?: string;
}

export interface MadeLayout {
  readonly layout: HomeLayout;
  /** Files that were made. */
  readonly made: readonly string[];
  /** Marks the files as homes of the volume, and makes the names of those that were made durable. */
  finish: (attribute: string, volumeId: string) => Promise<void>;
  /** Removes the files that were made. */
  undo: () => Promise<void>;
}

/** Something that a member may be on: two of one key share their bytes. */
interface Found {
  readonly key: string;
  /** Undefined where there is nothing yet. */
  readonly sizeBytes: number | undefined;
  readonly inode: string | undefined;
}

/**
 * Everything that was made is durable after `finish`; where this fails, nothing is left.
 *
 * @throws {VolumeError} `bad-layout`, `home-unusable`; what opening members throws, 'busy' where one is in use.
 */
export async function makeLayout(request: LayoutRequest, options: LayoutCreateOptions): Promise<MadeLayout> {
  const from = options.from ?? 'the layout';
  assertLayout(request, from);
  const places = request.extents.flatMap(({ members }) => members.map(({ place }) => place));
  const found = new Map<string, Found>();
  for (const place of places) found.set(place, await lookAt(place, options.registry));
  const extents = withLengths(request.extents, options.sizeBytes, found, from);
  const lengths = extentLengths({ extents }, options.sizeBytes);
  const needs = needsOf(extents, lengths, found);
  assertApart(needs, from);
  assertRoom(needs, from);
  const made: string[] = [];
  const undo = async (): Promise<void> => {
    for (const path of made) await rm(path, { force: true });
  };
  try {
    for (const [path, sizeBytes] of filesToMake(needs)) {
      await createSparseFile(path, sizeBytes, 'home-create');
      made.push(path);
    }
    const layout = {
      extents: await Promise.all(extents.map((extent) => recordOf(extent, found, options.nowMs))),
    };
    return { layout, made, undo, finish: (attribute, volumeId) => finish(places, made, attribute, volumeId) };
  } catch (error) {
    await undo();
    throw error;
  }
}

async function finish(
  places: readonly string[],
  made: readonly string[],
  attribute: string,
  volumeId: string,
): Promise<void> {
  for (const place of places) {
    const path = wholePathOf(place);
    if (path !== undefined) setAttribute(path, attribute, volumeId);
  }
  for (const directory of new Set(made.map((path) => dirname(path))))
    await syncDirectory('volume-directory', directory);
}

/** Opens what is there, with its lock, so that what somebody else uses is refused now rather than at the first `serve`. */
async function lookAt(place: string, registry: Pick<DeviceRegistry, 'open'>): Promise<Found> {
  const { scheme, target, piece } = parseDeviceAddress(place);
  const stats = scheme === 'file' ? await statOf(target) : undefined;
  if (scheme === 'file' && stats === undefined)
    return { key: `path ${target}`, sizeBytes: undefined, inode: undefined };
  const device = await registry.open(place, { readOnly: false, syncName: 'home', lock: 'exclusive' });
  const { sizeBytes } = device;
  await device.close();
  const key = stats === undefined ? `uri ${target}` : keyOf(stats);
  const inode = stats?.isFile() === true ? String(stats.ino) : undefined;
  return { key, sizeBytes: piece?.lengthBytes ?? sizeBytes, inode };
}

type Stats = Awaited<ReturnType<typeof statOf>>;

async function statOf(path: string) {
  try {
    return await stat(path, { bigint: true });
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw new VolumeError('home-unusable', `Home ${path} cannot be used: ${messageOf(error)}`, {
      home: path,
    });
  }
}

/** One block device has many names. */
function keyOf(stats: NonNullable<Stats>): string {
  return stats.isBlockDevice() ? `device ${stats.rdev}` : `file ${stats.dev} ${stats.ino}`;
}

/** All lengths but the last one's are in the record. */
function withLengths(
  extents: readonly LayoutExtent[],
  sizeBytes: number,
  found: ReadonlyMap<string, Found>,
  from: string,
): readonly LayoutExtent[] {
  let rest = sizeBytes;
  return extents.map((extent, index) => {
    const where = `extents[${index}]`;
    const isLast = index === extents.length - 1;
    const stripes = extent.kind === 'stripe' ? { stripeBytes: stripeBytesOf(extent) } : {};
    if (isLast) {
      const { lengthBytes = rest } = extent;
      if (rest <= 0) throw badLayout(from, where, `begins where the volume of ${sizeBytes} bytes has ended`);
      if (lengthBytes !== rest)
        throw badLayout(from, `${where}.length`, `is ${lengthBytes}, wanted ${rest}, the rest of the volume`);
      const { kind, members } = extent;
      return { kind, members, ...stripes };
    }
    const lengthBytes = extent.lengthBytes ?? ownLength(extent, found);
    if (lengthBytes === undefined)
      throw badLayout(from, `${where}.length`, 'is missing, wanted it where a member is yet to be made');
    rest -= lengthBytes;
    return { ...extent, ...stripes, lengthBytes };
  });
}

/** As much as its members have room for; undefined where one of them says nothing of that. */
function ownLength(
  { kind, members, stripeBytes }: LayoutExtent,
  found: ReadonlyMap<string, Found>,
): number | undefined {
  const sizes = members.map(({ place }) => roomAt(place, found));
  const known = sizes.filter((size) => size !== undefined);
  if (known.length < sizes.length) return undefined;
  const least = Math.min(...known);
  if (kind !== 'stripe') return least - (least % 4096);
  const stripe = stripeBytesOf({ kind, members, ...(stripeBytes === undefined ? {} : { stripeBytes }) });
  return Math.floor(least / stripe) * stripe * members.length;
}

function roomAt(place: string, found: ReadonlyMap<string, Found>): number | undefined {
  return parseDeviceAddress(place).piece?.lengthBytes ?? found.get(place)?.sizeBytes;
}

/** What one member is needed for. */
interface Need {
  readonly place: string;
  readonly where: string;
  readonly found: Found;
  readonly wantedBytes: number;
}

function needsOf(
  extents: readonly LayoutExtent[],
  lengths: readonly number[],
  found: ReadonlyMap<string, Found>,
): readonly Need[] {
  return extents.flatMap((extent, index) =>
    extent.members.map(({ place }, member): Need => {
      const there = found.get(place) ?? { key: place, sizeBytes: undefined, inode: undefined };
      const where = `extents[${index}].members[${member}]`;
      return { place, where, found: there, wantedBytes: memberBytes(extent, lengths[index] ?? 0, member) };
    }),
  );
}

function assertApart(needs: readonly Need[], from: string): void {
  for (const [index, need] of needs.entries()) {
    const other = needs.slice(0, index).find((one) => one.found.key === need.found.key && overlap(one, need));
    if (other === undefined) continue;
    const what = `is ${need.place}, which has bytes of ${other.where} (${other.place}), wanted pieces apart`;
    throw badLayout(from, need.where, what);
  }
}

function overlap(one: Need, other: Need): boolean {
  const [a, b] = [one, other].map(({ place }) => parseDeviceAddress(place).piece);
  if (a === undefined || b === undefined) return true;
  return a.offsetBytes < b.offsetBytes + b.lengthBytes && b.offsetBytes < a.offsetBytes + a.lengthBytes;
}

function assertRoom(needs: readonly Need[], from: string): void {
  for (const { place, where, found, wantedBytes } of needs) {
    const bytes = parseDeviceAddress(place).piece?.lengthBytes ?? found.sizeBytes;
    if (bytes === undefined || bytes >= wantedBytes) continue;
    throw badLayout(from, where, `is ${place} with ${bytes} bytes, wanted at least ${wantedBytes}`);
  }
}

/** As large as what is to lie in them. */
function filesToMake(needs: readonly Need[]): ReadonlyMap<string, number> {
  const files = new Map<string, number>();
  for (const { place, found, wantedBytes } of needs) {
    if (found.sizeBytes !== undefined) continue;
    const { target, piece } = parseDeviceAddress(place);
    const endBytes = piece === undefined ? wantedBytes : piece.offsetBytes + piece.lengthBytes;
    files.set(target, Math.max(files.get(target) ?? 0, endBytes));
  }
  return files;
}

async function recordOf(
  extent: LayoutExtent,
  found: ReadonlyMap<string, Found>,
  nowMs: number,
): Promise<LayoutExtent> {
  const isThere = extent.members.map(({ place }) => found.get(place)?.sizeBytes !== undefined);
  const first = isThere.indexOf(true);
  const members = extent.members.map(async ({ place }, index): Promise<LayoutMember> => {
    const inode = await inodeOf(place);
    const base = inode === undefined ? { place } : { place, inode };
    // Files that were made hold zeroes, all of them.
    if (extent.kind !== 'mirror' || first === -1 || index === first) return base;
    const reason = 'it has not been made equal yet';
    return { ...base, away: { sinceMs: nowMs, reason, asOfEpoch: 0 } };
  });
  return { ...extent, members: await Promise.all(members) };
}

/** Tells one file from another; undefined for what is no regular file. */
export async function inodeOf(place: string): Promise<string | undefined> {
  const { scheme, target } = parseDeviceAddress(place);
  if (scheme !== 'file') return undefined;
  const stats = await statOf(target);
  return stats?.isFile() === true ? String(stats.ino) : undefined;
}
