/**
 * The progress file: which tracks of a restore are durable on its targets, so that a restore that was interrupted goes
 * on from there. FORMAT.md describes it.
 *
 *     targets flushed --> new file written beside, synced --> takes the name --> directory synced
 *
 * Cut anywhere, it is the old file or the new one, and each says no more than what was flushed before it was written.
 * It names the set, the table and the targets that it was written for, and is of no use to any other restore.
 */

import { readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CorruptionError, LIMITS, messageOf, syncDirectory, syncPath, systemCode } from '../base/index.ts';
import { digest } from '../records/index.ts';
import { TrackSet } from '../tracks/index.ts';
import { RestoreError } from './errors.ts';
import type { RestorePlan, RestoreTarget } from './planner.ts';
import type { RemapTable } from './remap-table.ts';

const FORMAT = 'cowbell-restore-progress';
const VERSION = 0;

/** What a restore must agree in with the one before, to go on from it. */
export interface RestoreIdentity {
  /** The id of the set. */
  readonly set: string;
  /** The BLAKE3 of the table and the track size, in hexadecimal digits. */
  readonly table: string;
  /** Name, size and identity of each target. */
  readonly targets: readonly TargetIdentity[];
}

interface TargetIdentity {
  readonly name: string;
  readonly sizeBytes: number;
  readonly identity: string;
}

/** @param set the id of the set that is restored. */
export function identityOf(
  set: string,
  source: { readonly sizeBytes: number; readonly trackSizeBytes: number },
  restore: { readonly table: RemapTable; readonly plan: Pick<RestorePlan, 'targets'> },
): RestoreIdentity {
  const { sizeBytes, trackSizeBytes } = source;
  const rows = restore.table.rows.map((row) => [
    row.sourceOffsetBytes,
    row.lengthBytes,
    row.target,
    row.targetOffsetBytes,
  ]);
  return {
    set,
    table: hexDigest(JSON.stringify({ sizeBytes, trackSizeBytes, rows })),
    targets: restore.plan.targets.map((target) => ({
      name: target.name,
      sizeBytes: target.device.sizeBytes,
      identity: target.identity ?? target.name,
    })),
  };
}

/**
 * Reads how far a restore has come.
 *
 * @returns the tracks that are durable on the targets, or undefined where there is no file.
 * @throws {RestoreError} `bad-progress-file` where it is not one or is of another set or table, `target-changed` where
 *   a target is another one than it says.
 */
export async function readProgress(
  path: string,
  wanted: RestoreIdentity,
  targets: readonly RestoreTarget[],
): Promise<TrackSet | undefined> {
  const body = await readBody(path);
  if (body === undefined) return undefined;
  const found = parseBody(body, path);
  if (found.set !== wanted.set) {
    throw bad(path, `is of a restore of set ${found.set}, wanted ${wanted.set}`);
  }
  if (found.table !== wanted.table) {
    throw bad(path, 'is of a restore with another remap table, ranges or targets');
  }
  for (const target of targets) {
    const known = found.targets.find(({ name }) => name === target.name);
    const now = wanted.targets.find(({ name }) => name === target.name);
    if (known === undefined || now === undefined) throw bad(path, `does not name the target ${target.name}`);
    if (target.createdIn !== undefined) throw changed(target, 'was there and is missing now', path);
    if (known.sizeBytes !== now.sizeBytes) {
      throw changed(target, `had ${known.sizeBytes} bytes and has ${now.sizeBytes}`, path);
    }
    if (known.identity !== now.identity) throw changed(target, 'was another file or device', path);
  }
  try {
    return TrackSet.deserialize(Buffer.from(found.tracks, 'base64'), path);
  } catch (error) {
    throw bad(path, `holds no tracks: ${messageOf(error)}`, error);
  }
}

/** Replaces what the file says, durably; the tracks must be durable on the targets by then. */
export async function writeProgress(
  path: string,
  identity: RestoreIdentity,
  durable: TrackSet,
): Promise<void> {
  const tracks = durable.serialize().toString('base64');
  const body = JSON.stringify({ format: FORMAT, version: VERSION, ...identity, tracks });
  const fresh = `${path}.new`;
  await writeFile(fresh, `${body}\n${hexDigest(body)}\n`, { mode: 0o600 });
  await syncPath('restore-target', fresh);
  await rename(fresh, path);
  await syncDirectory('restore-target', dirname(path));
}

/** Removes the file, where it is one; whatever else has that name stays. */
export async function dropProgress(path: string): Promise<void> {
  try {
    if ((await readBody(path)) === undefined) return;
  } catch (error) {
    if (error instanceof RestoreError) return;
    throw error;
  }
  await rm(path);
  await syncDirectory('restore-target', dirname(path));
}

/** The error for a target whose content is not what was recorded. */
export function changed(
  { name, device }: RestoreTarget,
  reason: string,
  path: string,
): RestoreError<'target-changed'> {
  return new RestoreError(
    'target-changed',
    `Target ${name} (${device.description}) ${reason}, wanted it as the interrupted restore left it; remove ${path} to begin anew`,
    { target: name, reason },
  );
}

/** The first line of the file, its checksum compared; undefined where there is no file. */
async function readBody(path: string): Promise<string | undefined> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > LIMITS.progressFileBytesMax)
      throw bad(path, `has ${size} bytes, wanted no more than ${LIMITS.progressFileBytesMax}`);
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof RestoreError) throw error;
    if (systemCode(error) === 'ENOENT') return undefined;
    throw bad(path, `cannot be read: ${messageOf(error)}`, error);
  }
  const [body = '', seal] = text.split('\n');
  if (!body.startsWith(`{"format":"${FORMAT}"`)) throw bad(path, 'is no progress file of a restore');
  if (hexDigest(body) !== seal) throw bad(path, 'is damaged: its checksum does not fit');
  return body;
}

interface Body extends RestoreIdentity {
  readonly tracks: string;
}

/** The body is what was written; what may differ is the version that wrote it. */
function parseBody(body: string, path: string): Body {
  const value: unknown = JSON.parse(body);
  const isOurs =
    typeof value === 'object' &&
    value !== null &&
    'version' in value &&
    value.version === VERSION &&
    isBody(value);
  if (isOurs) return value;
  throw bad(path, `is of another version, wanted ${VERSION}`);
}

function isBody(value: object): value is Body {
  return (
    'set' in value &&
    typeof value.set === 'string' &&
    'table' in value &&
    typeof value.table === 'string' &&
    'tracks' in value &&
    typeof value.tracks === 'string' &&
    'targets' in value &&
    Array.isArray(value.targets)
  );
}

function bad(file: string, reason: string, cause?: unknown): RestoreError<'bad-progress-file'> {
  const advice = cause instanceof CorruptionError || cause === undefined ? '; remove it to begin anew' : '';
  return new RestoreError(
    'bad-progress-file',
    `Progress file ${file} ${reason}${advice}`,
    { file, reason },
    { cause },
  );
}

function hexDigest(text: string): string {
  return digest(Buffer.from(text)).toString('hex');
}
