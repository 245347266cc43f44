/**
 * What a backup would read and store, without a freeze and without a byte written: the child looks what the store
 * offers, read-only, and the volume chooses as it would for a session that began now.
 *
 * Writes go on, so a backup that is taken afterwards may find more changed. How much it stores depends on what
 * compression and comparison with the base make of the content, which only reading would tell: at most what it reads.
 */

import { fork } from 'node:child_process';
import { deferred } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import {
  Geometry,
  homePathOf,
  type SessionPreview,
  type SetLevel,
  type Volume,
  ZeroRuns,
} from '../volume/index.ts';
import { BackupError } from './errors.ts';
import { type HostMessage, isChildMessage, type Level, type OfferMessage } from './messages.ts';
import { fromWireError } from './remote-source.ts';

export interface DryRunOptions {
  readonly volume: Volume;
  readonly storePath: string;
  readonly key?: StoreKey;
  readonly level: Level;
  readonly fullEvery?: number;
  /** Of the volume, in the place of what it holds now. */
  readonly snapshot?: string;
  /** The module that the child runs; it calls `runWorker`. */
  readonly workerPath: string;
}

export interface DryRun {
  readonly volume: string;
  readonly level: SetLevel;
  /** The point that the set would build on. */
  readonly base: string | undefined;
  /** Why it would be a full set, where the request was not for one. */
  readonly reason: string | undefined;
  /** Tracks that it would look at. */
  readonly tracks: number;
  /** Of these, tracks that are known to be zero without reading them. */
  readonly zeroTracks: number;
  /** Bytes that it would read, and store at most. */
  readonly bytes: number;
}

/**
 * @throws {BackupError} `worker-died`, `worker-failed`
 * @throws {VolumeError} of a snapshot: `unknown-snapshot`, `snapshot-damaged`, `snapshot-behind`
 * @throws {CorruptionError} where the store is damaged
 */
export async function dryRun(options: DryRunOptions): Promise<DryRun> {
  const { volume, fullEvery, snapshot } = options;
  const offer = await askStore(options);
  const preview = volume.previewSession({
    ...offer.request,
    ...(fullEvery === undefined ? {} : { fullEvery }),
    ...(snapshot === undefined ? {} : { snapshot }),
  });
  const { level, base, reason, tracks } = preview;
  const { zeroTracks, bytes } = await measure(volume, preview);
  return { volume: volume.identity.name, level, base, reason, tracks: tracks.size, zeroTracks, bytes };
}

async function askStore(options: DryRunOptions): Promise<OfferMessage> {
  const { volume, storePath, key, level, workerPath } = options;
  const { volumeId, name, directory, home, trackSizeBytes } = volume.identity;
  const result = deferred<OfferMessage>();
  const exited = deferred();
  const child = fork(workerPath, [], {
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  child.on('error', result.reject);
  child.on('message', (message: unknown) => {
    if (!isChildMessage(message)) return;
    if (message.kind === 'offer') result.resolve(message);
    if (message.kind === 'failed') result.reject(fromWireError(message.error, name));
  });
  child.on('close', (exitCode, signal) => {
    exited.resolve();
    const message = `Backup process of volume ${name} died (${signal ?? `exit status ${exitCode}`})`;
    result.reject(new BackupError('worker-died', message, { volume: name, exitCode, signal }));
  });
  const start: HostMessage = {
    kind: 'start',
    isDryRun: true,
    volume: { volumeId, name, trackSizeBytes },
    homePath: homePathOf(directory, home),
    storePath,
    key,
    level,
    style: { codec: 'none' },
  };
  child.send(start, () => undefined);
  try {
    return await result.promise;
  } finally {
    await exited.promise;
  }
}

/** What lies in holes of the home is not read. */
async function measure(
  volume: Volume,
  { tracks, sizeBytes }: SessionPreview,
): Promise<{ readonly zeroTracks: number; readonly bytes: number }> {
  const geometry = new Geometry(sizeBytes, volume.geometry.trackSizeBytes);
  let zeroTracks = 0;
  let bytes = 0;
  for await (const run of new ZeroRuns(geometry, volume).split(tracks)) {
    if (run.isZero) zeroTracks += run.count;
    else bytes += geometry.lengthOf(run);
  }
  return { zeroTracks, bytes };
}
