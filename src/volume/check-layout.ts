/**
 * What may be wrong with a home that has a layout (`check.ts`): members that cannot be used, bytes that cannot be read,
 * of each copy of a mirror. Whether the copies are equal is for `volume scrub`: after an unclean stop they need not be
 * before the volume is opened.
 */

import { LIMITS, messageOf, systemClock } from '../base/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import { TrackBits, TrackSet } from '../tracks/index.ts';
import type { Finding } from './check.ts';
import { damage, note } from './check-state.ts';
import type { VolumeIdentity } from './directory.ts';
import { EpochHistory } from './epoch-history.ts';
import type { Geometry } from './geometry.ts';
import type { HomeLayout } from './layout.ts';
import { type LayoutHome, openLayoutHome } from './layout-home.ts';
import type { MirrorSet } from './mirror-set.ts';
import { readThrough, type Unreadable } from './read-through.ts';

export interface LayoutExam {
  readonly registry: Pick<DeviceRegistry, 'open'>;
  readonly identity: VolumeIdentity;
  readonly layout: HomeLayout;
  readonly geometry: Geometry;
  readonly report: (finding: Finding) => void;
  /** Called with the bytes of the volume read so far. What it throws ends the check. */
  readonly onProgress: (bytesRead: number) => void;
}

/** @returns whether the home can be opened, and what of the volume cannot be read. */
export async function examineLayout(
  exam: LayoutExam,
): Promise<{ readonly isUsable: boolean; readonly unreadable: Unreadable | undefined }> {
  const { identity, geometry, report, onProgress } = exam;
  let home: LayoutHome;
  try {
    home = await openForLook(exam);
  } catch (error) {
    const how = 'put it back there, or restore the volume from a backup';
    report(damage(`home ${identity.home}`, messageOf(error), how, false));
    return { isUsable: false, unreadable: undefined };
  }
  try {
    for (const { set } of home.mirrors) await examineMirror(set, report);
    return { isUsable: true, unreadable: await readThrough(home.device, identity, geometry, onProgress) };
  } finally {
    await home.device.close();
  }
}

function openForLook({ registry, identity, layout, geometry }: LayoutExam): Promise<LayoutHome> {
  const { trackCount } = geometry;
  const history = new EpochHistory({
    trackCount,
    openNumber: 1,
    open: new TrackBits(trackCount),
    closed: [],
  });
  return openLayoutHome({
    identity,
    layout,
    readOnly: true,
    registry,
    clock: systemClock,
    isClean: false,
    stamps: undefined,
    history,
    doubtful: TrackSet.empty(),
    // Nothing of a member that is away is looked at.
    missed: () => TrackSet.all(trackCount),
    save: async () => undefined,
  });
}

async function examineMirror(set: MirrorSet, report: (finding: Finding) => void): Promise<void> {
  for (const member of set.members) {
    const { place, isInSync, absence } = member;
    if (!isInSync) {
      const how = 'it is rebuilt when the volume is served; volume replace puts another in its place';
      report(note(`mirror member ${place}`, `it is not current: ${absence?.reason ?? 'away'}`, how));
      continue;
    }
    const buffer = Buffer.allocUnsafe(LIMITS.sessionRunBytesMax);
    let failure: { readonly error: unknown; readonly atBytes: number } | undefined;
    for (let at = 0; at < set.sizeBytes && failure === undefined; at += buffer.length) {
      const content = buffer.subarray(0, Math.min(buffer.length, set.sizeBytes - at));
      try {
        await member.use((device) => device.read(content, at));
      } catch (error) {
        failure = { error, atBytes: at };
      }
    }
    if (failure === undefined) continue;
    const what = `it cannot be read from byte ${failure.atBytes} on: ${messageOf(failure.error)}`;
    const how = 'volume scrub --repair writes it anew from another copy; volume replace gives the member up';
    report(damage(`mirror member ${place}`, what, how, false));
  }
}
