/**
 * The second channel of a recovery by a medium that has arrived (seeds/4, Fig. 3): what is missing is taken from it, and
 * what is current is passed over.
 *
 * A medium may be applied where nothing on it can be older than what the overwrite map knows of: it holds the point that
 * the volume is recovered from, or a live backup side was its source and its point was fixed after the recovery began.
 */

import { type FedTrack, MediumFeed, type MediaPlaces, type MediumSet } from './medium-feed.ts';
import type { Recovery, Volume } from '../volume/index.ts';
import { DaemonError } from './errors.ts';

/** What a fill from media is asked for. */
export interface FillParams extends MediaPlaces {
  /** A set id or unique prefix, `latest` or `latest:<volume id or name>`. */
  readonly set: string;
}

export interface FillOutcome {
  readonly volume: string;
  readonly set: string;
  /** Tracks that were missing, and were taken. */
  readonly tracks: number;
  /** Tracks that became current otherwise before their turn came. */
  readonly passedOver: number;
  /** Tracks that are missing still. */
  readonly missingTracks: number;
}

/** Both ends are of one version: enough is looked at to know that it is one. */
export function isFillOutcome(value: unknown): value is FillOutcome {
  return typeof value === 'object' && value !== null && 'set' in value && 'missingTracks' in value;
}

export interface FillFromMediaOptions {
  readonly volume: Volume;
  readonly params: FillParams;
  readonly program: string;
  readonly signal: AbortSignal;
  readonly warn: (sentence: string) => void;
  readonly onProgress: (done: number, total: number) => void;
}

/**
 * @throws {DaemonError} `not-recovering`, `other-recovery`; {CorruptionError} where the media lack tracks, after those
 *   that they have were taken; what reading media throws.
 */
export async function fillFromMedia(options: FillFromMediaOptions): Promise<FillOutcome> {
  const { volume, params, program, signal, warn } = options;
  if (volume.recovery === undefined) throw notRecovering(volume);
  const feed = await MediumFeed.open({ media: params, set: params.set, program, warn });
  const giveUp = (): void => void feed.close();
  signal.addEventListener('abort', giveUp);
  const taken = { tracks: 0, passedOver: 0 };
  try {
    await volume.fill(async (recovery, stopped) => {
      assertFits(volume, recovery, feed.set);
      const wanted = recovery.filling.missing();
      for await (const batch of feed.read(wanted)) {
        stopped.throwIfAborted();
        await take(recovery, batch, taken);
        options.onProgress(taken.tracks + taken.passedOver, wanted.size);
      }
    });
  } finally {
    signal.removeEventListener('abort', giveUp);
    await feed.close();
  }
  const missingTracks = volume.recovery?.filling.missingCount ?? 0;
  return { volume: volume.identity.name, set: feed.set.set, ...taken, missingTracks };
}

/** Whoever waits for a track comes first. */
async function take(
  recovery: Recovery,
  batch: readonly FedTrack[],
  taken: { tracks: number; passedOver: number },
): Promise<void> {
  await recovery.filling.whenUnasked();
  for (const { track, content } of batch) {
    const isTaken = await recovery.offer(track, content === undefined ? undefined : asBuffer(content));
    if (isTaken) taken.tracks += 1;
    else taken.passedOver += 1;
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function assertFits(volume: Volume, recovery: Recovery, set: MediumSet): void {
  const { name, sizeBytes, trackSizeBytes } = volume.identity;
  const { record } = recovery;
  const refuse = (why: string): DaemonError =>
    new DaemonError('other-recovery', `Set ${set.set} of the medium cannot fill volume ${name}: ${why}`, {
      directory: volume.identity.directory,
    });
  if (set.sizeBytes !== sizeBytes || set.trackSizeBytes !== trackSizeBytes) {
    const found = `${set.sizeBytes} bytes in tracks of ${set.trackSizeBytes}`;
    throw refuse(`it has ${found}, wanted ${sizeBytes} in tracks of ${trackSizeBytes}`);
  }
  if (set.point === record.point) return;
  if (record.side.kind === 'store')
    throw refuse(`it holds point ${set.point}, wanted ${record.point ?? 'none'}`);
  if (set.createdMs < record.startedMs) {
    const [fixed, began] = [set.createdMs, record.startedMs].map((ms) => new Date(ms).toISOString());
    throw refuse(`it was fixed at ${fixed}, before the recovery began at ${began}, and may be older than it`);
  }
}

function notRecovering({ identity }: Volume): DaemonError {
  const message = `Volume ${identity.name} is not being recovered: everything is in its home`;
  return new DaemonError('not-recovering', message, { directory: identity.directory });
}
