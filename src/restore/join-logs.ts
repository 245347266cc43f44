/**
 * Which set of a store delta logs go on from: the newest one whose point is one that the logs begin at, before an instant
 * where that is asked for.
 */

import type { StoredSet, Store } from '../blockset/index.ts';
import type { DeltaReader } from '../delta/index.ts';
import { RestoreError } from './errors.ts';

export interface JoinWish {
  /** Only points that were made before, in milliseconds since 1970. */
  readonly beforeMs?: number | undefined;
  /** This set and no other. */
  readonly set?: StoredSet | undefined;
}

export interface JoinedSet {
  /** Undefined where the logs reach back to the beginning of the volume. */
  readonly set: StoredSet | undefined;
  /** What the logs are read from. */
  readonly startPoint: string;
}

/**
 * Chooses it.
 *
 * @param store where sets are looked for; without one, the logs have to reach back to the beginning.
 * @throws {RestoreError} 'no-base' where nothing joins the logs.
 */
export async function joinLogs(
  store: Pick<Store, 'setWithPoint' | 'path'> | undefined,
  { volume, points }: Pick<DeltaReader, 'volume' | 'points'>,
  { beforeMs, set: wanted }: JoinWish = {},
): Promise<JoinedSet> {
  const isBefore = (createdMs: number): boolean => beforeMs === undefined || createdMs < beforeMs;
  if (wanted !== undefined) {
    const point = points.find((one) => one.point === wanted.header?.point);
    if (point !== undefined && isBefore(point.createdMs)) return { set: wanted, startPoint: point.point };
    throw noBase(volume, `set ${wanted.id} is at a point that they do not begin at`, beforeMs);
  }
  for (const { point, createdMs } of points.toReversed()) {
    if (!isBefore(createdMs)) continue;
    const set = point === '' ? undefined : await store?.setWithPoint(volume.volumeId, point);
    if (set !== undefined || point === '') return { set, startPoint: point };
  }
  const why =
    store === undefined
      ? 'they do not reach back to its beginning, and no store was named'
      : `store ${store.path} has no complete set at a point that they begin at`;
  throw noBase(volume, why, beforeMs);
}

function noBase(
  { volumeId, name }: DeltaReader['volume'],
  why: string,
  beforeMs: number | undefined,
): RestoreError {
  const instant = beforeMs === undefined ? '' : ` before ${new Date(beforeMs).toISOString()}`;
  const message = `Nothing joins the delta logs of volume ${name}${instant}: ${why}`;
  return new RestoreError('no-base', message, { volumeId });
}
