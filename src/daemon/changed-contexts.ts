/**
 * What a served volume says of its changes over NBD, as metadata contexts:
 *
 *     cowbell:changed-since:<point>   tracks that may differ from what they were at the point
 *     qemu:dirty-bitmap:<consumer>    the same, since the last complete backup of that consumer
 *
 * Bit 0 of the flags is set where something may have changed, as in QEMU's dirty bitmaps, so that tools made
 * for those can read ours. Everything has changed since a point that the volume does not know. A consumer's
 * point is looked up once, when a client selects the context: a backup that ends meanwhile does not move it.
 *
 * The answer is that of the moment: a write that is answered before the question is in it, and a freeze between
 * two questions changes neither answer. It costs what the asked range does, however large the volume.
 */

import type { MetaContext, StatusExtent } from '../nbd/index.ts';
import type { Volume } from '../volume/index.ts';

const SINCE = 'cowbell:changed-since:';
const BITMAP = 'qemu:dirty-bitmap:';

/** NBD_STATE_DIRTY of QEMU's interop/nbd.txt. */
const DIRTY = 1;

/** A longer range takes several requests: the runs of so many tracks are found in some milliseconds. */
const TRACKS_PER_ANSWER = 2 ** 18;

/** Part of a volume that this needs. */
export interface TrackedVolume extends Pick<Volume, 'geometry' | 'changedIn'> {
  consumers(): readonly { readonly name: string; readonly point: string }[];
}

/** The contexts of each registered consumer, by both names. */
export function listChangedContexts(volume: TrackedVolume): readonly MetaContext[] {
  return volume
    .consumers()
    .flatMap(({ name, point }) => [
      changedContext(volume, `${BITMAP}${name}`, point),
      changedContext(volume, `${SINCE}${point}`, point),
    ]);
}

/** The context of changes since any point; the volume need not know it. Consumers are found in the list. */
export function findChangedContext(volume: TrackedVolume, name: string): MetaContext | undefined {
  return name.startsWith(SINCE) ? changedContext(volume, name, name.slice(SINCE.length)) : undefined;
}

function changedContext(volume: TrackedVolume, name: string, point: string): MetaContext {
  return {
    name,
    extents: (offsetBytes, lengthBytes, countMax) =>
      Promise.resolve(extentsOf(volume, point, { offsetBytes, lengthBytes }, countMax)),
  };
}

function extentsOf(
  volume: TrackedVolume,
  point: string,
  range: { readonly offsetBytes: number; readonly lengthBytes: number },
  countMax: number,
): readonly StatusExtent[] {
  const { geometry } = volume;
  const lengthBytes = Math.min(range.lengthBytes, TRACKS_PER_ANSWER * geometry.trackSizeBytes);
  const changed = volume.changedIn(point, geometry.tracksOf(range.offsetBytes, lengthBytes));
  const endBytes = range.offsetBytes + lengthBytes;
  const extents: StatusExtent[] = [];
  let at = range.offsetBytes;
  for (const run of changed.runs()) {
    if (extents.length >= countMax) return extents;
    const from = Math.max(geometry.offsetOf(run.first), range.offsetBytes);
    const to = Math.min(geometry.offsetOf(run.first) + geometry.lengthOf(run), endBytes);
    if (from > at) extents.push({ lengthBytes: from - at, flags: 0 });
    extents.push({ lengthBytes: to - from, flags: DIRTY });
    at = to;
  }
  if (at < endBytes) extents.push({ lengthBytes: endBytes - at, flags: 0 });
  return extents;
}
