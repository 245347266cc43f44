/**
 * A writable clone of a snapshot: a volume of its own, with a new id, that begins at the snapshot's point.
 *
 *     <new>.cloning-XXXXXX/home.raw     the content, step by step, each durable
 *     <new>.cloning-XXXXXX/state.mdb    only then: the directory becomes a volume
 *     <new>/                            renamed, all or nothing
 *
 * The content is read from the snapshot while the origin is written; where the filesystem can, what the origin's home
 * still holds is shared instead of copied, and only replaced tracks are written. Zeroes stay holes. Afterwards the two
 * know nothing of each other.
 *
 * A clone that fails or is cancelled leaves nothing. One whose process was killed leaves the directory `.cloning-`,
 * which is no volume, and its home where that lies elsewhere; both can be removed.
 */

import { mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { type Clock, LIMITS, syncDirectory, systemCode } from '../base/index.ts';
import { type BlockDevice, openFileDevice } from '../device/index.ts';
import { createVolume, readVolumeIdentity, type VolumeIdentity } from './directory.ts';
import { VolumeError } from './errors.ts';
import type { SnapshotDevice } from './snapshot-device.ts';
import { isZero } from './snapshot-store.ts';
import type { Volume } from './volume.ts';

export interface CloneOptions {
  /** Path of a file that is not there yet; in the new directory where left out. */
  readonly home?: string;
  readonly clock?: Clock;
  /** Ends the clone; nothing is left of it. */
  readonly signal?: AbortSignal;
  /** Called after each step with the tracks done so far, and their number. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** A volume that was just made. */
export interface ClonedVolume extends VolumeIdentity {
  /** The snapshot's, and the first of the new volume. */
  readonly point: string;
  /** Bytes that were written: neither zeroes nor shared. */
  readonly copiedBytes: number;
  /** Bytes that the two homes share for now, holes included. */
  readonly sharedBytes: number;
}

/**
 * Makes a volume of what a snapshot holds; durable when the promise resolves. The snapshot is held meanwhile.
 *
 * @param path the new volume's directory, which is not there yet.
 * @throws {VolumeError} `exists`, `home-unusable`, `unknown-snapshot`, `snapshot-damaged`, `snapshot-gone`;
 *   {DeviceError} `no-space`; the signal's reason.
 */
export async function cloneSnapshot(
  volume: Volume,
  name: string,
  path: string,
  options: CloneOptions = {},
): Promise<ClonedVolume> {
  const directory = resolve(path);
  await assertAbsent(directory);
  const snapshot = volume.openSnapshot(name);
  /** What has to go where the clone fails. */
  const made: string[] = [];
  try {
    const temporary = await mkdtemp(`${directory}.cloning-`);
    made.push(temporary);
    const { home, ...copied } = await makeCopy(volume, snapshot, temporary, options);
    if (options.home !== undefined) made.push(home);
    await putInPlace(temporary, directory);
    made.push(directory);
    await syncDirectory('volume-directory', dirname(directory));
    return { ...(await readVolumeIdentity(directory)), point: snapshot.snapshot.point, ...copied };
  } catch (error) {
    for (const one of made) await rm(one, { recursive: true, force: true });
    throw error;
  } finally {
    await snapshot.close();
  }
}

type Copied = Pick<ClonedVolume, 'home' | 'copiedBytes' | 'sharedBytes'>;

async function makeCopy(
  { identity }: Volume,
  snapshot: SnapshotDevice,
  directory: string,
  options: CloneOptions,
): Promise<Copied> {
  const { point, createdMs } = snapshot.snapshot;
  const copy = new Copy(snapshot, identity.trackSizeBytes, options);
  const { home } = await createVolume(directory, {
    sizeBytes: snapshot.sizeBytes,
    trackSizeBytes: identity.trackSizeBytes,
    snapshotFull: identity.snapshotFull,
    copyOf: { point, createdMs, fill: (homePath) => copy.fill(homePath) },
    ...(options.home === undefined ? {} : { home: options.home }),
    ...(options.clock === undefined ? {} : { clock: options.clock }),
  });
  const { copiedBytes, sharedBytes } = copy;
  return { home, copiedBytes, sharedBytes };
}

/** Fills one home, once. */
class Copy {
  copiedBytes = 0;
  sharedBytes = 0;
  readonly #source: SnapshotDevice;
  readonly #trackSizeBytes: number;
  readonly #options: CloneOptions;
  readonly #buffer = Buffer.allocUnsafe(LIMITS.sessionRunBytesMax);
  /** Until the filesystem says no. */
  #mayShare = true;

  constructor(source: SnapshotDevice, trackSizeBytes: number, options: CloneOptions) {
    this.#source = source;
    this.#trackSizeBytes = trackSizeBytes;
    this.#options = options;
  }

  async fill(homePath: string): Promise<void> {
    const { sizeBytes } = this.#source;
    const { signal, onProgress } = this.#options;
    const target = await openFileDevice({
      path: homePath,
      readOnly: false,
      syncName: 'home-create',
      lock: 'exclusive',
    });
    const tracksTotal = Math.ceil(sizeBytes / this.#trackSizeBytes);
    try {
      for (let from = 0; from < sizeBytes; from += LIMITS.cloneStepBytes) {
        const end = Math.min(sizeBytes, from + LIMITS.cloneStepBytes);
        await this.#step(target, from, end);
        // Much left for one sync at the end would hold up whoever else syncs on this disk.
        await target.flush();
        signal?.throwIfAborted();
        onProgress?.(Math.ceil(end / this.#trackSizeBytes), tracksTotal);
      }
    } finally {
      await target.close();
    }
  }

  async #step(target: BlockDevice, from: number, end: number): Promise<void> {
    const replaced = this.#mayShare ? await this.#source.shareHome(target, from, end - from) : undefined;
    if (replaced === undefined) {
      this.#mayShare = false;
      await this.#copyData(target, from, end);
      return;
    }
    this.sharedBytes += end - from;
    for (const track of replaced) {
      const first = track * this.#trackSizeBytes;
      const length = Math.min(end, first + this.#trackSizeBytes) - first;
      this.sharedBytes -= length;
      // What was shared there is something else.
      await target.writeZeroes(first, length, { mayTrim: true });
      await this.#copyRun(target, first, first + length);
    }
  }

  async #copyData(target: BlockDevice, from: number, end: number): Promise<void> {
    for (const { offsetBytes, lengthBytes, zero } of await this.#source.extents(from, end - from)) {
      if (!zero) await this.#copyRun(target, offsetBytes, offsetBytes + lengthBytes);
    }
  }

  /** Copies a range that reads as zeroes in the target. */
  async #copyRun(target: BlockDevice, from: number, end: number): Promise<void> {
    for (let at = from; at < end; at += this.#buffer.length) {
      const piece = this.#buffer.subarray(0, Math.min(this.#buffer.length, end - at));
      await this.#source.read(piece, at);
      for (const { start, stop } of dataIn(piece, this.#trackSizeBytes)) {
        await target.write(piece.subarray(start, stop), at + start);
        this.copiedBytes += stop - start;
      }
      this.#options.signal?.throwIfAborted();
    }
  }
}

/** The parts that are not zero, in units of some bytes. */
function* dataIn(piece: Buffer, unitBytes: number): Generator<{ start: number; stop: number }> {
  let start: number | undefined;
  for (let at = 0; at < piece.length; at += unitBytes) {
    if (!isZero(piece.subarray(at, at + unitBytes))) {
      start ??= at;
      continue;
    }
    if (start !== undefined) yield { start, stop: at };
    start = undefined;
  }
  if (start !== undefined) yield { start, stop: piece.length };
}

/** The volume that was made gets its name. */
async function putInPlace(made: string, directory: string): Promise<void> {
  try {
    await rename(made, directory);
  } catch (error) {
    if (systemCode(error) === 'ENOTEMPTY' || systemCode(error) === 'EEXIST') throw present(directory);
    throw error;
  }
}

async function assertAbsent(directory: string): Promise<void> {
  try {
    await stat(directory);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return;
    throw error;
  }
  throw present(directory);
}

function present(directory: string): VolumeError {
  const message = `Cannot make a clone ${directory}: ${basename(directory)} exists, wanted a new directory`;
  return new VolumeError('exists', message, { directory });
}
