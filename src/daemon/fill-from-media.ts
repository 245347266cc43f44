/**
 * The second channel of a recovery by a medium that has arrived (seeds/4, Fig. 3): what is missing is taken from it, and
 * what is current is passed over.
 *
 * A medium may be applied where nothing on it can be older than what the overwrite map knows of: it holds the point that
 * the volume is recovered from, or a live backup side was its source and its point was fixed after the recovery began. A
 * mirror that is brought up takes points of the volume that were fixed after its map began (EXAMPLES R3).
 */

import { type FedTrack, MediumFeed, type MediaPlaces } from './medium-feed.ts';
import type { Mirroring, Recovery, Volume } from '../volume/index.ts';
import { DaemonError } from './errors.ts';
import type { SetFacts } from './set-facts.ts';

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
  if (volume.recovery === undefined && volume.mirroring === undefined) throw notRecovering(volume);
  const feed = await MediumFeed.open({ media: params, set: params.set, program, warn });
  const giveUp = (): void => void feed.close();
  signal.addEventListener('abort', giveUp);
  const taken = { tracks: 0, passedOver: 0 };
  try {
    const takeAll = async (target: Recovery | Mirroring, stopped: AbortSignal): Promise<void> => {
      const wanted = target.filling.missing();
      for await (const batch of feed.read(wanted)) {
        stopped.throwIfAborted();
        await take(target, batch, taken);
        options.onProgress(taken.tracks + taken.passedOver, wanted.size);
      }
    };
    if (volume.recovery === undefined) {
      await volume.fillMirror(async (mirroring, stopped) => {
        assertFitsMirror(volume, mirroring, feed.set);
        await takeAll(mirroring, stopped);
        await mirroring.filling.flush();
      });
    } else {
      await volume.fill(async (recovery, stopped) => {
        assertFits(volume, recovery, feed.set);
        await takeAll(recovery, stopped);
      });
    }
  } finally {
    signal.removeEventListener('abort', giveUp);
    await feed.close();
  }
  const { filling } = volume.recovery ?? volume.mirroring ?? {};
  const missingTracks = filling?.missingCount ?? 0;
  return { volume: volume.identity.name, set: feed.set.set, ...taken, missingTracks };
}

/** Whoever waits for a track comes first. */
async function take(
  target: Recovery | Mirroring,
  batch: readonly FedTrack[],
  taken: { tracks: number; passedOver: number },
): Promise<void> {
  await target.filling.whenUnasked();
  for (const { track, content } of batch) {
    const isTaken = await target.offer(track, content === undefined ? undefined : asBuffer(content));
    if (isTaken) taken.tracks += 1;
    else taken.passedOver += 1;
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function assertFits(volume: Volume, { record }: Recovery, set: SetFacts): void {
  assertSameShape(volume, set);
  if (set.point === record.point) return;
  if (record.side.kind === 'store')
    throw misfit(volume, set, `it holds point ${set.point}, wanted ${record.point ?? 'none'}`);
  assertLater(volume, set, record.startedMs, 'the recovery began');
}

/** What the mirror lacks has not changed since its map began, so a later point of the volume has it as it is. */
function assertFitsMirror(volume: Volume, { startedMs }: Mirroring, set: SetFacts): void {
  assertSameShape(volume, set);
  if (set.volumeId !== volume.identity.volumeId) throw misfit(volume, set, 'it is of another volume');
  assertLater(volume, set, startedMs, 'the mirror was begun');
}

function assertSameShape(volume: Volume, set: SetFacts): void {
  const { sizeBytes, trackSizeBytes } = volume.identity;
  if (set.sizeBytes === sizeBytes && set.trackSizeBytes === trackSizeBytes) return;
  const found = `${set.sizeBytes} bytes in tracks of ${set.trackSizeBytes}`;
  throw misfit(volume, set, `it has ${found}, wanted ${sizeBytes} in tracks of ${trackSizeBytes}`);
}

function assertLater(volume: Volume, set: SetFacts, startedMs: number, what: string): void {
  if (set.createdMs >= startedMs) return;
  const [fixed, began] = [set.createdMs, startedMs].map((ms) => new Date(ms).toISOString());
  throw misfit(volume, set, `it was fixed at ${fixed}, before ${what} at ${began}, and may be older`);
}

function misfit({ identity }: Volume, { set }: SetFacts, why: string): DaemonError {
  const { name, directory } = identity;
  return new DaemonError('other-recovery', `Set ${set} of the medium cannot fill volume ${name}: ${why}`, {
    directory,
  });
}

function notRecovering({ identity }: Volume): DaemonError {
  const message = `Volume ${identity.name} is not being recovered, and no mirror of it is brought up: nothing is missing`;
  return new DaemonError('not-recovering', message, { directory: identity.directory });
}
