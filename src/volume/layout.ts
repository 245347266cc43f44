/**
 * How a home is laid out over members (seeds/2, Fig. 2A, 3A, 4): extents one behind the other, each of which is one
 * member, stripes over several, or a mirror of several.
 *
 *     volume   |  extent 0: mirror  |  extent 1: stripe  | extent 2: plain |
 *              |  /dev/a   /dev/b   |  /c  /d  /c ...    |  /dev/a@1T+20G  |
 *
 * All extents but the last have a length, so that where a byte lies never changes; the last one is the rest of the
 * volume, and grows with it.
 *
 * The record of a layout also says which members of its mirrors are away. It is part of the volume's own record: a
 * member must not pass for current because a record of its own was lost.
 */

import { LIMITS, parseSize } from '../base/index.ts';
import { type DeviceAddress, DeviceError, parseDeviceAddress, stripeMemberBytes } from '../device/index.ts';
import { VolumeError } from './errors.ts';

export const EXTENT_KINDS = ['plain', 'stripe', 'mirror'] as const;
export type ExtentKind = (typeof EXTENT_KINDS)[number];

/** That a member of a mirror is not in sync. What it lacks is beside it (FORMAT.md). */
export interface AwayRecord {
  readonly sinceMs: number;
  readonly reason: string;
  /** What was recorded as missed has everything that it missed before this epoch. */
  readonly asOfEpoch: number;
}

export interface LayoutMember {
  /** An absolute path or a URI, perhaps with a piece. */
  readonly place: string;
  /** Of a regular file when it became a member: another file there is another member. */
  readonly inode?: string;
  /** Of a mirror's member alone. */
  readonly away?: AwayRecord;
}

export interface LayoutExtent {
  readonly kind: ExtentKind;
  /** Bytes of the volume; of the last extent the rest. */
  readonly lengthBytes?: number;
  /** There for stripes. */
  readonly stripeBytes?: number;
  readonly members: readonly LayoutMember[];
}

export interface HomeLayout {
  readonly extents: readonly LayoutExtent[];
}

/** A layout as it is asked for: what is left out is found out when the volume is made. */
export type LayoutRequest = HomeLayout;

/** How long each extent is, of a volume that has the size. */
export function extentLengths(layout: HomeLayout, sizeBytes: number): readonly number[] {
  let rest = sizeBytes;
  return layout.extents.map(({ lengthBytes }, index) => {
    const length = index === layout.extents.length - 1 ? rest : (lengthBytes ?? 0);
    rest -= length;
    return length;
  });
}

/** How many bytes of an extent lie on one of its members. */
export function memberBytes(extent: LayoutExtent, lengthBytes: number, member: number): number {
  if (extent.kind !== 'stripe') return lengthBytes;
  return stripeMemberBytes(lengthBytes, stripeBytesOf(extent), extent.members.length, member);
}

export function stripeBytesOf(extent: LayoutExtent): number {
  return extent.stripeBytes ?? LIMITS.stripeBytesDefault;
}

/**
 * What stands in for the home where there is a layout: `layout:mirror of /a, /b`. It names no device, so nothing opens a
 * part of such a home and takes it for the whole.
 */
export function describeLayout({ extents }: HomeLayout): string {
  const parts = extents.map(({ kind, members }) => {
    const places = members.map(({ place }) => place).join(', ');
    return kind === 'plain' ? places : `${kind} of ${places}`;
  });
  return `layout:${parts.join(' + ')}`;
}

/** The places of a home, whether it has a layout or not. */
export function homePlaces(volume: {
  readonly home: string;
  readonly layout?: HomeLayout;
}): readonly string[] {
  if (volume.layout === undefined) return [volume.home];
  return volume.layout.extents.flatMap(({ members }) => members.map(({ place }) => place));
}

/** The path of a place that is a whole file or device; undefined for a piece or a URI. */
export function wholePathOf(place: string): string | undefined {
  const { scheme, piece, target } = parseDeviceAddress(place);
  return scheme === 'file' && piece === undefined ? target : undefined;
}

/** The home that `--home` and `--layout` describe. @throws {VolumeError} `bad-layout` */
export function layoutOf(kind: 'concat' | 'stripe' | 'mirror', homes: readonly string[]): LayoutRequest {
  const members = homes.map((place) => ({ place }));
  const extents: LayoutExtent[] =
    kind === 'concat' ? members.map((member) => ({ kind: 'plain', members: [member] })) : [{ kind, members }];
  const layout = { extents };
  assertLayout(layout, 'the layout');
  return layout;
}

/**
 * Judges a layout by itself, before anything is opened. @param from begins the messages: the file that it is from.
 *
 * @throws {VolumeError} `bad-layout`, which names the part, what it is and what was wanted.
 */
export function assertLayout({ extents }: LayoutRequest, from: string): void {
  const countMax = LIMITS.layoutExtentCountMax;
  if (extents.length === 0 || extents.length > countMax)
    throw badLayout(from, 'extents', `has ${extents.length} of them, wanted 1 to ${countMax}`);
  for (const [index, extent] of extents.entries()) assertExtent(extent, from, `extents[${index}]`);
}

function assertExtent(extent: LayoutExtent, from: string, where: string): void {
  const { kind, members, lengthBytes, stripeBytes } = extent;
  const memberMax = LIMITS.layoutMemberCountMax;
  const page = LIMITS.blockSizeBytesPreferred;
  const [least, most] = kind === 'plain' ? [1, 1] : [2, memberMax];
  if (members.length < least || members.length > most) {
    const wanted = least === most ? 'just one' : `${least} to ${most}`;
    throw badLayout(from, `${where}.members`, `has ${members.length} of them, wanted ${wanted} for ${kind}`);
  }
  if (lengthBytes !== undefined && !isPages(lengthBytes))
    throw badLayout(from, `${where}.length`, `is ${lengthBytes}, wanted a multiple of ${page} bytes`);
  if (stripeBytes !== undefined && kind !== 'stripe')
    throw badLayout(from, `${where}.stripe`, `is ${stripeBytes}, wanted it for stripes only`);
  if (stripeBytes !== undefined && !isPages(stripeBytes))
    throw badLayout(from, `${where}.stripe`, `is ${stripeBytes}, wanted a multiple of ${page} bytes`);
  for (const [index, { place }] of members.entries()) {
    const at = `${where}.members[${index}]`;
    const { piece } = addressOf(place, from, at);
    const odd = piece === undefined ? undefined : [piece.offsetBytes, piece.lengthBytes].find(isOdd);
    if (odd !== undefined)
      throw badLayout(from, at, `has an offset or length of ${odd}, wanted a multiple of ${page} bytes`);
  }
}

function isPages(bytes: number): boolean {
  return Number.isSafeInteger(bytes) && bytes > 0 && !isOdd(bytes);
}

function isOdd(bytes: number): boolean {
  return bytes % LIMITS.blockSizeBytesPreferred !== 0;
}

/** @throws {VolumeError} `bad-layout` */
function addressOf(place: string, from: string, where: string): DeviceAddress {
  try {
    return parseDeviceAddress(place);
  } catch (error) {
    if (error instanceof DeviceError) throw badLayout(from, where, `is no place: ${error.message}`);
    throw error;
  }
}

export function badLayout(from: string, where: string, what: string): VolumeError<'bad-layout'> {
  return new VolumeError('bad-layout', `${from}: ${where} ${what}`, { where });
}

// --- The file ---

const FORMAT = 'cowbell-layout';
const VERSION = 0;

/**
 * Reads a layout file (FORMAT.md). Unknown keys, wrong types and odd numbers are refused: a typing error decides where
 * bytes go.
 *
 * @param from begins the messages: the file's name.
 * @param absolute makes a place absolute.
 * @throws {VolumeError} `bad-layout`
 */
export function parseLayoutFile(
  text: string,
  from: string,
  absolute: (place: string) => string,
): LayoutRequest {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (error) {
    throw badLayout(from, 'the document', `is no JSON: ${error instanceof Error ? error.message : ''}`);
  }
  const root = objectAt(document, from, 'the document', ['format', 'version', 'extents']);
  if (root['format'] !== FORMAT)
    throw badLayout(from, 'format', `is ${shown(root['format'])}, wanted "${FORMAT}"`);
  if (root['version'] !== VERSION)
    throw badLayout(from, 'version', `is ${shown(root['version'])}, wanted ${VERSION}`);
  const extents = listAt(root['extents'], from, 'extents').map((value, index) =>
    readExtent(value, from, `extents[${index}]`, absolute),
  );
  const layout = { extents };
  assertLayout(layout, from);
  return layout;
}

function readExtent(
  value: unknown,
  from: string,
  where: string,
  absolute: (place: string) => string,
): LayoutExtent {
  const extent = objectAt(value, from, where, ['kind', 'length', 'stripe', 'members']);
  const kind = EXTENT_KINDS.find((one) => one === extent['kind']);
  if (kind === undefined)
    throw badLayout(from, `${where}.kind`, `is ${shown(extent['kind'])}, wanted ${EXTENT_KINDS.join(', ')}`);
  const lengthBytes = sizeAt(extent['length'], from, `${where}.length`);
  const stripeBytes = sizeAt(extent['stripe'], from, `${where}.stripe`);
  const members = listAt(extent['members'], from, `${where}.members`).map((member, index) => {
    if (typeof member === 'string' && member !== '') return { place: absolute(member) };
    throw badLayout(from, `${where}.members[${index}]`, `is ${shown(member)}, wanted a path or a URI`);
  });
  return {
    kind,
    members,
    ...(lengthBytes === undefined ? {} : { lengthBytes }),
    ...(stripeBytes === undefined ? {} : { stripeBytes }),
  };
}

function sizeAt(value: unknown, from: string, where: string): number | undefined {
  if (value === undefined) return undefined;
  const bytes = typeof value === 'string' ? parseSize(value) : value;
  if (typeof bytes === 'number' && Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw badLayout(from, where, `is ${shown(value)}, wanted a size such as "10G" or a number of bytes`);
}

function listAt(value: unknown, from: string, where: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw badLayout(from, where, `is ${shown(value)}, wanted a list`);
}

function objectAt(
  value: unknown,
  from: string,
  where: string,
  keys: readonly string[],
): Readonly<Record<string, unknown>> {
  if (!isObject(value)) throw badLayout(from, where, `is ${shown(value)}, wanted an object`);
  const extra = Object.keys(value).find((key) => !keys.includes(key));
  if (extra === undefined) return value;
  throw badLayout(from, `${where}.${extra}`, `is ${shown(value[extra])}, wanted only ${keys.join(', ')}`);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A value as a message shows it: short, whatever it is. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? 'missing';
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
