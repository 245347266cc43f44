/**
 * What commands ask of a volume's mirrors: to compare the members, and to put another device in the place of one.
 *
 * Each is a session of the volume, which can be cancelled. A replacement that is cancelled has begun: its member stays,
 * and is rebuilt by whoever serves the volume.
 */

import { LIMITS } from '../base/index.ts';
import type { MirrorDifference } from '../volume/index.ts';
import type { RequestEvents } from './control-server.ts';
import type { ReplaceOutcome, ReplaceParams, ScrubParams, ScrubReport } from './mirror-params.ts';
import { fillRate } from './recovery-fill.ts';
import type { VolumeHost } from './volume-host.ts';

/** See `HomeMirrors.scrub`. */
export function scrubVolume(
  host: VolumeHost,
  params: ScrubParams,
  events: RequestEvents,
): Promise<ScrubReport> {
  const { volume, options } = host;
  const { repair, rateBytesPerSecond } = params;
  return host.sessions.run('scrub', (session) => {
    events.session(session.id);
    return volume.careForMirrors(async (mirrors, stopped) => {
      const signal = AbortSignal.any([stopped, session.signal]);
      const differences: MirrorDifference[] = [];
      let repairedTracks = 0;
      const { tracks, bytesCompared, skipped } = await mirrors.scrub({
        isRepairing: repair,
        onDifference: (difference) => {
          if (difference.repaired) repairedTracks += 1;
          if (differences.length < LIMITS.scrubDifferencesShownMax) differences.push(difference);
        },
        signal,
        ...fillRate(rateBytesPerSecond, options.clock, signal),
        onProgress: progressOf(events, session, mirrors.mirroredBytes, volume.geometry.trackSizeBytes),
      });
      return {
        volume: volume.identity.name,
        bytesCompared,
        tracks: tracks.size,
        repairedTracks,
        differences,
        skippedMirrors: skipped,
      };
    });
  });
}

/** See `HomeMirrors.replace`; it has everything, durably, when the promise resolves. */
export function replaceMember(
  host: VolumeHost,
  params: ReplaceParams,
  events: RequestEvents,
): Promise<ReplaceOutcome> {
  const { volume, options } = host;
  const { member, place, rateBytesPerSecond } = params;
  return host.sessions.run('replace', (session) => {
    events.session(session.id);
    return volume.careForMirrors(async (mirrors, stopped) => {
      const signal = AbortSignal.any([stopped, session.signal]);
      await mirrors.replace(member, place);
      const { trackSizeBytes } = volume.geometry;
      let bytesWritten = 0;
      const tell = progressOf(events, session, mirrors.missingTracks * trackSizeBytes, trackSizeBytes);
      await mirrors.rebuild({
        signal,
        ...fillRate(rateBytesPerSecond, options.clock, signal),
        onProgress: (bytes) => {
          bytesWritten += bytes;
          tell(bytes);
        },
      });
      return { volume: volume.identity.name, member, place, bytesWritten };
    });
  });
}

function progressOf(
  events: RequestEvents,
  session: { note(progress: unknown): void },
  totalBytes: number,
  trackSizeBytes: number,
): (bytes: number) => void {
  let doneBytes = 0;
  const tracksTotal = Math.ceil(totalBytes / trackSizeBytes);
  return (bytes) => {
    doneBytes += bytes;
    const tracksDone = Math.min(tracksTotal, Math.floor(doneBytes / trackSizeBytes));
    const progress = { tracksDone, tracksTotal, bytesRead: doneBytes };
    session.note(progress);
    events.progress(progress);
  };
}
