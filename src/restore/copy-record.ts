/**
 * What a volume remembers of the targets of its copies, and whether a later copy may build on it.
 *
 *     complete    the targets hold the point: what changed since is enough
 *     incomplete  they did, and then a copy that was not completed wrote over some of what had changed since: what
 *                 changed since, up to now, is still enough, since it has all that that copy wrote
 *     none        nothing is known: everything
 *
 * That holds only as long as nobody else writes to the targets. A regular file is watched: its size, inode and
 * modification time must be what they were when the copy ended. After a copy that ended with its process nobody knows
 * them, and the next one is a full one. Block devices and what stands behind a URI cannot be watched; of them the
 * size alone must be the same.
 */

import { realpath, utimes } from 'node:fs/promises';
import type { Clock } from '../base/index.ts';
import { type DeviceAddress, parseDeviceAddress } from '../device/index.ts';
import { digestOf } from '../records/index.ts';
import { type Consumer, type CopiedTarget, homeStamp } from '../volume/index.ts';
import type { RestoreTarget } from './planner.ts';
import type { RemapTable } from './remap-table.ts';

/** A target of a copy, and where it is. */
export interface CopyPlace {
  readonly target: RestoreTarget;
  /** A path without links, perhaps with a piece, or a URI: one text for each device. */
  readonly place: string;
  /** Of a file or a block device. */
  readonly path: string | undefined;
}

/** @param uri as the target was asked for; what it names is there. */
export async function placeOf(target: RestoreTarget, uri: string): Promise<CopyPlace> {
  const { scheme, target: name, piece } = parseDeviceAddress(uri);
  if (scheme !== 'file') return { target, place: uri, path: undefined };
  const path = await realpath(name);
  const place = piece === undefined ? path : `${path}@${piece.offsetBytes}+${piece.lengthBytes}`;
  return { target, place, path };
}

/**
 * The name under which the volume keeps the point of copies to these targets.
 *
 * @param table what goes where, where that was asked for; with another table they are another consumer. Left out for
 *   the volume over the targets in sequence, which stays the same when the volume grows.
 */
export function consumerOf(places: readonly CopyPlace[], table: RemapTable | undefined): string {
  const names = new Map(places.map(({ target }, index) => [target.name, index]));
  const parts = function* (): Generator<Buffer> {
    yield Buffer.from(JSON.stringify(places.map(({ place }) => place)));
    for (const row of table?.rows ?? []) {
      const { sourceOffsetBytes, lengthBytes, target, targetOffsetBytes } = row;
      yield Buffer.from(
        JSON.stringify([sourceOffsetBytes, lengthBytes, names.get(target) ?? null, targetOffsetBytes]),
      );
    }
  };
  return `copy ${digestOf(parts()).toString('hex', 0, 16)}`;
}

/** How the targets look now. Nothing of ours writes to them. */
export function lookAt(places: readonly CopyPlace[]): Promise<readonly CopiedTarget[]> {
  return Promise.all(
    places.map(async ({ target, place, path }): Promise<CopiedTarget> => {
      const stamp = path === undefined ? undefined : await homeStamp(path);
      const { sizeBytes } = target.device;
      return { place, sizeBytes, ...(stamp === undefined ? {} : { stamp }) };
    }),
  );
}

/**
 * How the targets look now that the copy has written its last. The kernel's times go in steps of some milliseconds, so
 * that another's write right behind ours could leave a file looking as it did: it gets a time that is on no step.
 */
export async function lookAfterWriting(
  places: readonly CopyPlace[],
  clock: Clock,
): Promise<readonly CopiedTarget[]> {
  for (const { path } of places) {
    if (path === undefined || (await homeStamp(path)) === undefined) continue;
    const seconds = clock.now() / 1000 + 0.000_123;
    // Only the owner of a file may; others have to do without.
    await utimes(path, seconds, seconds).catch(() => undefined);
  }
  return lookAt(places);
}

/** Other copies whose targets share bytes with these, perhaps under another table: theirs hold their point no more. */
export function othersOn(
  consumers: readonly Consumer[],
  consumer: string,
  places: readonly CopyPlace[],
): readonly string[] {
  return consumers
    .filter(({ name }) => name !== consumer)
    .filter(({ copy }) =>
      copy?.targets.some((other) => places.some(({ place }) => shareBytes(place, other.place))),
    )
    .map(({ name }) => name);
}

/** Whether two places, as `placeOf` or a volume names them, have bytes in common, as far as names tell. */
export function shareBytes(place: string, other: string): boolean {
  const [one, two] = [parseDeviceAddress(place), parseDeviceAddress(other)];
  return one.scheme === two.scheme && one.target === two.target && overlap(one.piece, two.piece);
}

function overlap(one: DeviceAddress['piece'], other: DeviceAddress['piece']): boolean {
  if (one === undefined || other === undefined) return true;
  const isBefore = one.offsetBytes + one.lengthBytes <= other.offsetBytes;
  return !isBefore && other.offsetBytes + other.lengthBytes > one.offsetBytes;
}

/** What a copy may build on. */
export interface CopyBase {
  /** The point of the last complete copy; undefined for none. */
  readonly base: string | undefined;
  /** Why there is none. */
  readonly reason?: string;
  /** The targets hold the wanted point already. */
  readonly isCurrent?: true;
}

/**
 * @param now how the targets look, which are claimed.
 * @param point that is to be copied, of a snapshot; undefined for a new one.
 */
export function baseOf(
  record: Consumer | undefined,
  now: readonly CopiedTarget[],
  point: string | undefined,
): CopyBase {
  const { copy } = record ?? {};
  if (record === undefined || copy === undefined)
    return { base: undefined, reason: 'no complete copy to the target is known' };
  const reason = whyUnusable(copy.targets, now);
  if (reason !== undefined) return { base: undefined, reason };
  if (copy.isIncomplete === true && point !== undefined) {
    // What was written over may be younger than the snapshot, and would not be among what changed up to it.
    return { base: undefined, reason: 'the last copy to the target was not completed' };
  }
  if (record.point === point) return { base: point, isCurrent: true };
  return { base: record.point };
}

function whyUnusable(before: readonly CopiedTarget[], now: readonly CopiedTarget[]): string | undefined {
  for (const [index, { place, sizeBytes, stamp }] of now.entries()) {
    const then = before[index];
    if (then === undefined || then.place !== place) return 'the last copy was to other targets';
    if (then.sizeBytes !== sizeBytes)
      return `target ${place} has ${sizeBytes} bytes, and had ${then.sizeBytes} after the last copy`;
    if (stamp === undefined && then.stamp === undefined) continue;
    if (stamp === undefined) return `target ${place} is no regular file any more`;
    if (then.stamp === undefined) return `the last copy to target ${place} was cut off`;
    const isSame =
      stamp.inode === then.stamp.inode &&
      stamp.sizeBytes === then.stamp.sizeBytes &&
      stamp.modifiedNs === then.stamp.modifiedNs;
    if (!isSame) return `target ${place} was changed or replaced since the last copy`;
  }
  return undefined;
}
