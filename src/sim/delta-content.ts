/**
 * What a volume was, put together from a store and delta logs alone: the newest set that the logs join, and what they tell
 * since. For tests, which compare it with a model; a rebuild of a real home is another matter.
 */

import type { Store } from '../blockset/index.ts';
import { DeltaReader } from '../delta/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { contentOfChain } from './model-content.ts';

export interface WithoutHome {
  readonly volumeId: string;
  readonly sizeBytes: number;
  /** The members of the delta store. */
  readonly places: readonly string[];
  readonly store: Store | undefined;
  /** Records of this time and later are left out, and sets of points at or after it. */
  readonly beforeMs?: number;
}

/** @throws where the logs join no set, and do not reach back to the beginning. */
export async function contentWithoutHome(wanted: WithoutHome): Promise<Buffer> {
  const { volumeId, sizeBytes, places, store, beforeMs } = wanted;
  const reader = await DeltaReader.open(places, { registry: new DeviceRegistry(), volumeId });
  try {
    const point = await newestJoined(reader, wanted);
    const set = point === '' ? undefined : await store?.setWithPoint(volumeId, point);
    const content = Buffer.alloc(sizeBytes);
    if (set !== undefined && store !== undefined) {
      const chain = await store.chain(set.id);
      contentOfChain(chain).copy(content);
      await chain.close();
    }
    const index = await reader.index(point, { beforeMs });
    const { trackSizeBytes } = reader.volume;
    for (let at = 0; at < sizeBytes; at += trackSizeBytes)
      await index.overlay(at / trackSizeBytes, content.subarray(at, at + trackSizeBytes));
    return content;
  } finally {
    await reader.close();
  }
}

async function newestJoined(
  reader: DeltaReader,
  { volumeId, store, beforeMs }: WithoutHome,
): Promise<string> {
  const begins = new Map(reader.points.map(({ point, createdMs }) => [point, createdMs]));
  for (const { point } of (await store?.newestPoints(volumeId)) ?? []) {
    const atMs = begins.get(point);
    if (atMs !== undefined && (beforeMs === undefined || atMs < beforeMs)) return point;
  }
  return '';
}
